//! A client's request: its body, read without waiting for a slow client for long; what it is told by; what the function
//! sees of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fulmar_model::{Code, Problem};
use fulmar_state::record::StoredRequest;
use http::{Method, Request};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame};
use sha2::{Digest, Sha256};

use crate::admission::Admitted;
use crate::body::RequestBody;
use crate::core::Core;
use crate::target::Target;
use crate::{carry, respond, route, transition};

/// Bytes a second that a client has to send at least, on average, once it has begun.
const MIN_BODY_RATE: u64 = 16 << 10;
/// How long a body may take while others wait for the room that it has.
const HURRY: Duration = Duration::from_secs(1);

pub(super) fn request_digest(method: &Method, path: &str, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(method.as_str());
    hash.update([0]);
    hash.update(path);
    hash.update([0]);
    hash.update(body);
    hash.finalize().into()
}

/// Path and query as the function sees them: below its own path.
fn inner_path(head: &http::request::Parts, target: &Target<'_>) -> String {
    match head.uri.query() {
        Some(query) => format!("{}?{query}", target.rest),
        None => target.rest.to_owned(),
    }
}

pub(super) fn http_request(
    mut head: http::request::Parts,
    target: &Target<'_>,
    body: Bytes,
) -> Result<http::Request<Bytes>, Problem> {
    let path = inner_path(&head, target);
    let authority = head
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost")
        .to_owned();
    head.uri = http::Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|error| Problem::new(Code::BadRequest, format!("the request's URI: {error}")))?;
    respond::strip_hop_by_hop(&mut head.headers);
    // The function sees the state itself.
    head.headers.remove(&carry::STATE);
    head.headers.remove(&transition::MODEL);
    head.headers.remove(&route::OFFLOADED);
    Ok(Request::from_parts(head, body))
}

pub(super) fn stored_request(
    head: &http::request::Parts,
    target: &Target<'_>,
    body: &Bytes,
) -> StoredRequest {
    let mut headers = head.headers.clone();
    respond::strip_hop_by_hop(&mut headers);
    headers.remove("prefer");
    StoredRequest {
        method: head.method.as_str().to_owned(),
        path: inner_path(head, target),
        headers: headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        body: body.to_vec(),
    }
}

pub(super) fn too_large(max: usize) -> Problem {
    Problem::new(
        Code::BodyTooLarge,
        format!("the body is larger than the function's limit of {max} bytes"),
    )
}

/// Reads a body of at most `max` bytes, from a client that keeps sending, once there is room for it.
pub(super) async fn read_body(
    core: &Arc<Core>,
    body: RequestBody,
    max: usize,
    admitted: &mut Admitted,
) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    // As long as the client says, if it does.
    let expected = body.size_hint().lower();
    if expected > max as u64 {
        return Err(too_large(max));
    }
    let timeout = core.options.body_timeout;
    admitted.room_for(expected as usize, timeout).await?;
    let started = Instant::now();
    let mut body = Reading { body, timeout };
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    let mut size = 0;
    while let Some(data) = body.next(admitted).await? {
        size += data.len();
        if size > max {
            return Err(too_large(max));
        }
        if size as u64 > expected {
            admitted.more_room(size)?;
        }
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
        let elapsed = started.elapsed();
        if elapsed > timeout && (size as u64) < MIN_BODY_RATE * elapsed.as_secs() {
            return Err(body.timed_out());
        }
        if elapsed > HURRY && admitted.others_wait() {
            return Err(others_wait());
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::from(first);
    whole.unsplit(rest);
    Ok(whole.freeze())
}

fn others_wait() -> Problem {
    let detail = format!("the body did not come within {HURRY:?} while others waited for its room");
    Problem::new(Code::QueueFull, detail)
}

/// A body that comes piece by piece.
struct Reading {
    body: RequestBody,
    /// Longest pause between two.
    timeout: Duration,
}

impl Reading {
    /// The next piece; none at the end.
    async fn next(&mut self, admitted: &Admitted) -> Result<Option<Bytes>, Problem> {
        let asked = Instant::now();
        while !self.body.is_end_stream() {
            let pause = self.timeout.saturating_sub(asked.elapsed()).min(HURRY);
            let Ok(frame) = tokio::time::timeout(pause, self.body.frame()).await else {
                match asked.elapsed() >= self.timeout {
                    true => return Err(self.timed_out()),
                    false if admitted.others_wait() => return Err(others_wait()),
                    false => continue,
                }
            };
            let broken =
                |error| Problem::new(Code::BadRequest, format!("the body broke off: {error}"));
            match frame.transpose().map_err(broken)?.map(Frame::into_data) {
                Some(Ok(data)) => return Ok(Some(data)),
                // Trailers.
                Some(Err(_)) => {}
                None => break,
            }
        }
        Ok(None)
    }

    fn timed_out(&self) -> Problem {
        let timeout = self.timeout;
        let detail = format!(
            "the body has to come without a pause of {timeout:?} and at {MIN_BODY_RATE} bytes a second"
        );
        Problem::new(Code::BodyTimeout, detail)
    }
}
