//! What a program asks while an invocation runs, over HTTP on a socket of its own:
//!
//! ```text
//! GET, PUT, DELETE  /buckets/BUCKET/KEY               a value; `session` is the session's own bucket
//! POST              /buckets/BUCKET/KEY/increment?by=N    the sum
//! POST              /buckets/BUCKET/KEY/swap?expected=N   the body's first N bytes are expected, the rest is written;
//! POST              /buckets/BUCKET/KEY/swap?absent       nothing is expected: `true` or `false`
//! GET               /buckets/BUCKET?prefix=P&after=K&limit=N   keys, as a JSON array
//! POST              /messages/FUNCTION, /messages/FUNCTION/SESSION
//! ```
//!
//! Names and keys are percent-encoded. What is wrong is said in the body, as text. A question with the header
//! `Fulmar-Invocation` is answered only while that one runs.

use std::convert::Infallible;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::{Bucket, ExecutionModel};
use fulmar_state::StateError;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

use super::INVOCATION;
use crate::running::{ChoiceError, NOT_YET, Running};

/// Why a question is not answered that comes between two invocations.
const NOT_NOW: &str = "the invocation that this is asked for does not run";
/// Questions that wait while another is answered.
const WAITING: usize = 16;
/// Connections of one program at once.
const CONNECTIONS: usize = 64;
/// Keys of one list, if the program does not say.
const PAGE: usize = 1000;
/// Keys of one list at most.
const MAX_PAGE: usize = 10_000;
/// Pause before another connection is accepted when there is nothing left to accept it with.
const PAUSE: Duration = Duration::from_millis(50);

/// A question of a program.
pub(super) struct Asked {
    request: Request<Bytes>,
    reply: oneshot::Sender<Response<Full<Bytes>>>,
}

/// Listens for questions; until what comes back is dropped.
pub(super) fn listen(socket: &Path) -> std::io::Result<mpsc::Receiver<Asked>> {
    let listener = UnixListener::bind(socket)?;
    let (sender, asked) = mpsc::channel(WAITING);
    let connections = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    tokio::spawn(async move {
        loop {
            let Ok(room) = connections.clone().acquire_owned().await else {
                return;
            };
            let stream = tokio::select! {
                () = sender.closed() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = stream else {
                // No descriptors are left, most often.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let sender = sender.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| hand_in(request, sender.clone()));
                // Without a time limit, which would be for how long the program may have nothing to ask as well.
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    _ = serving => {}
                    () = sender.closed() => {}
                }
                drop(room);
            });
        }
    });
    Ok(asked)
}

async fn hand_in(
    request: Request<Incoming>,
    to: mpsc::Sender<Asked>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let most = fulmar_state::MAX_VALUE_BYTES * 2;
    let Ok(body) = Limited::new(body, most).collect().await else {
        return Ok(say(StatusCode::PAYLOAD_TOO_LARGE, "the body is too large"));
    };
    let request = Request::from_parts(head, body.to_bytes());
    let (reply, answer) = oneshot::channel();
    let _ = to.send(Asked { request, reply }).await;
    let answer = answer.await;
    Ok(answer.unwrap_or_else(|_| say(StatusCode::SERVICE_UNAVAILABLE, NOT_NOW)))
}

fn say(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

/// Why a question is not answered.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("nothing is called so here")]
    Nothing,
    #[error("{0}")]
    Nonsense(&'static str),
    #[error("{0}")]
    Name(#[from] fulmar_model::NameError),
    #[error("{0}")]
    State(#[from] StateError),
    #[error("{0}")]
    Fixed(ChoiceError),
}

impl From<ChoiceError> for Refused {
    fn from(error: ChoiceError) -> Self {
        match error {
            ChoiceError::State(error) => Self::State(error),
            fixed @ ChoiceError::Fixed(_) => Self::Fixed(fixed),
        }
    }
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Nothing => StatusCode::NOT_FOUND,
            Self::Fixed(_) => StatusCode::CONFLICT,
            Self::Nonsense(_) | Self::Name(_) => StatusCode::BAD_REQUEST,
            Self::State(error) => match error {
                StateError::NoSession | StateError::InvalidName(_) => StatusCode::BAD_REQUEST,
                StateError::ReadOnly => StatusCode::FORBIDDEN,
                StateError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
                StateError::WrongType(_) => StatusCode::UNPROCESSABLE_ENTITY,
                StateError::Unreachable(_) | StateError::Storage(_) => {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            },
        }
    }
}

impl Asked {
    /// Answers that nothing can be asked now: it was asked while another invocation ran, or none.
    pub(super) fn refuse(self) {
        let _ = self
            .reply
            .send(say(StatusCode::SERVICE_UNAVAILABLE, NOT_NOW));
    }

    /// Answers, on behalf of the invocation that runs; unless it says that it is of another one.
    pub(super) async fn answer(self, running: &mut Running) {
        let of = self.request.headers().get(INVOCATION);
        let runs = running
            .current
            .as_ref()
            .map(|current| current.id.as_bytes());
        if of.is_some_and(|of| Some(of.as_bytes()) != runs) {
            return self.refuse();
        }
        let answer = match answer(&self.request, running).await {
            Ok(answer) => answer,
            Err(refused) => say(refused.status(), refused.to_string()),
        };
        let _ = self.reply.send(answer);
    }
}

fn decode(text: &str) -> Result<String, Refused> {
    let decoded = percent_decode_str(text).decode_utf8();
    let decoded = decoded.map_err(|_| Refused::Nonsense("a name or key is not UTF-8"))?;
    Ok(decoded.into_owned())
}

/// A parameter of the query: none if it is not there.
fn parameter(query: &str, name: &str) -> Result<Option<String>, Refused> {
    let mut pairs = query.split('&');
    let found = pairs.find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    });
    found.map(decode).transpose()
}

fn number<T: std::str::FromStr>(query: &str, name: &str) -> Result<Option<T>, Refused> {
    let text = parameter(query, name)?;
    let number = text.map(|text| text.parse());
    number
        .transpose()
        .map_err(|_| Refused::Nonsense("a parameter is no number"))
}

async fn answer(
    request: &Request<Bytes>,
    running: &mut Running,
) -> Result<Response<Full<Bytes>>, Refused> {
    let path: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
    let query = request.uri().query().unwrap_or_default();
    match (request.method(), &path[..]) {
        (&Method::GET, ["buckets", bucket]) => list(&decode(bucket)?, query, running).await,
        (method, ["buckets", bucket, key, action @ ..]) if action.len() <= 1 => {
            let (bucket, key) = (decode(bucket)?, decode(key)?);
            let bucket = Bucket::new(&bucket)?;
            running.fetch(bucket, &key).await?;
            let action = action.first().copied();
            with_key(
                method,
                action,
                (bucket, &key),
                query,
                request.body(),
                running,
            )
        }
        (&Method::POST, ["messages", function, session @ ..]) if session.len() <= 1 => {
            let session = session.first().map(|session| decode(session)).transpose()?;
            let body = request.body().clone();
            running.send(&decode(function)?, session.as_deref(), body)?;
            Ok(say(StatusCode::NO_CONTENT, ""))
        }
        (&Method::PUT, ["model"]) => {
            let model = std::str::from_utf8(request.body()).ok();
            let model = model.and_then(ExecutionModel::parse);
            let model = model.filter(|model| *model != ExecutionModel::InClient);
            let unknown = "the body is \"auto\", \"in-function\", \"in-edge\" or \"external\"";
            running.choose(model.ok_or(Refused::Nonsense(unknown))?)?;
            Ok(say(StatusCode::NO_CONTENT, ""))
        }
        _ => Err(Refused::Nothing),
    }
}

async fn list(
    bucket: &str,
    query: &str,
    running: &mut Running,
) -> Result<Response<Full<Bytes>>, Refused> {
    let prefix = parameter(query, "prefix")?.unwrap_or_default();
    let after = parameter(query, "after")?;
    let limit = number(query, "limit")?.unwrap_or(PAGE).min(MAX_PAGE);
    let bucket = Bucket::new(bucket)?;
    let keys = running.list(bucket, &prefix, after.as_deref(), limit).await;
    let keys = keys.ok_or(Refused::Nonsense(NOT_YET))??;
    let mut answer = say(StatusCode::OK, serde_json::Value::from(keys).to_string());
    let json = http::HeaderValue::from_static("application/json");
    answer
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, json);
    Ok(answer)
}

fn with_key(
    method: &Method,
    action: Option<&str>,
    (bucket, key): (Bucket<'_>, &str),
    query: &str,
    body: &Bytes,
    running: &mut Running,
) -> Result<Response<Full<Bytes>>, Refused> {
    let done = |()| say(StatusCode::NO_CONTENT, "");
    let by = number(query, "by")?.unwrap_or(1);
    let expected = match (parameter(query, "absent")?, number(query, "expected")?) {
        (Some(_), None) => None,
        (None, count) => Some(count.unwrap_or(0).min(body.len())),
        (Some(_), Some(_)) => return Err(Refused::Nonsense("either `absent` or `expected`")),
    };
    let answered = running.in_bucket(bucket, |tx, bucket| {
        Ok(match (method, action) {
            (&Method::GET, None) => match tx.get(bucket, key)? {
                Some(value) => say(StatusCode::OK, value),
                None => say(StatusCode::NOT_FOUND, ""),
            },
            (&Method::PUT, None) => tx.set(bucket, key, body.clone()).map(done)?,
            (&Method::DELETE, None) => tx.delete(bucket, key).map(done)?,
            (&Method::POST, Some("increment")) => {
                say(StatusCode::OK, tx.increment(bucket, key, by)?.to_string())
            }
            (&Method::POST, Some("swap")) => {
                let value = body.slice(expected.unwrap_or(0)..);
                let expected = expected.map(|count| &body[..count]);
                let swapped = tx.compare_and_swap(bucket, key, expected, Some(value))?;
                say(StatusCode::OK, swapped.to_string())
            }
            _ => say(StatusCode::METHOD_NOT_ALLOWED, ""),
        })
    });
    let answered: Result<_, StateError> = answered.ok_or(Refused::Nonsense(NOT_YET))?;
    Ok(answered?)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_program_may_have_nothing_to_ask_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("state");
        let mut asked = listen(&socket).unwrap();
        let mut connection = UnixStream::connect(&socket).await.unwrap();
        for _ in 0..3 {
            let question = b"GET /buckets/b/k HTTP/1.1\r\nhost: fulmar\r\n\r\n";
            connection.write_all(question).await.unwrap();
            asked.recv().await.unwrap().refuse();
            let mut answer = [0; 12];
            connection.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 503");
            let mut rest = vec![0; 4096];
            let _ = connection.read(&mut rest).await.unwrap();
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
    }
}
