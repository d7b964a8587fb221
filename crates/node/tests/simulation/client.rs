//! Clients of simulated nodes.

use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use turmoil::net::TcpStream;

use crate::cluster::{HTTP, NODES, name};
use crate::counter::{Answered, Choices};

pub(crate) const SESSIONS: usize = 4;
/// Longest wait for one answer.
const ANSWER: Duration = Duration::from_secs(3);
/// Longest that anything may take when nothing is in its way any more.
const PATIENCE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(50);

type Reply = (StatusCode, String);
type Failed = Box<dyn Error>;

/// Asks a node; fails if it does not answer.
pub(crate) async fn ask(
    node: usize,
    method: Method,
    path: &str,
    key: Option<&str>,
    body: &str,
) -> Result<Reply, Failed> {
    let asking = async {
        let stream = TcpStream::connect((name(node), HTTP)).await?;
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", name(node));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let body = Full::new(Bytes::copy_from_slice(body.as_bytes()));
        let reply = client.send_request(request.body(body)?).await?;
        let status = reply.status();
        let body = reply.into_body().collect().await?.to_bytes();
        Ok((status, String::from_utf8(body.into())?))
    };
    tokio::time::timeout(ANSWER, asking).await?
}

/// Asks again and again until a node answers as it should.
async fn until_it_is(path: &str, body: &str, wanted: &str) -> Result<(), Failed> {
    let since = Instant::now();
    loop {
        let said = ask(0, Method::POST, path, None, body).await;
        let said = match said {
            Ok((StatusCode::OK, said)) if said == wanted => return Ok(()),
            Ok((StatusCode::OK, said)) if said.parse::<u64>()? > wanted.parse()? => {
                return Err(format!("{path}: {said} instead of {wanted}").into());
            }
            Ok((_, said)) => said,
            Err(error) => error.to_string(),
        };
        if since.elapsed() > PATIENCE {
            return Err(format!("{path}: {said} instead of {wanted}").into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Deploys a component under a name.
pub(crate) async fn deploy(function: &str, digest: &str, manifest: &str) -> Result<(), Failed> {
    let manifest = format!("name = {function:?}\nartifact = \"x.wasm\"\n{manifest}");
    let body = serde_json::json!({ "manifest": manifest, "artifact": digest }).to_string();
    let path = format!("/admin/functions/{function}");
    let since = Instant::now();
    loop {
        let said = match ask(0, Method::PUT, &path, None, &body).await {
            Ok((StatusCode::OK, _)) => return Ok(()),
            Ok((_, said)) => said,
            Err(error) => error.to_string(),
        };
        if since.elapsed() > PATIENCE {
            return Err(said.into());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Increments until told to stop, each under a key of its own, until it is answered; and looks now and then.
pub(crate) async fn increment(
    at: usize,
    seed: u64,
    done: Rc<Cell<bool>>,
) -> Result<Vec<Answered>, Failed> {
    let mut choices = Choices(seed ^ (at as u64) << 32);
    let mut answered: Vec<Answered> = Vec::new();
    while !done.get() {
        let session = choices.below(SESSIONS);
        let path = format!("/fn/counter/s{session}");
        if choices.below(4) == 0 {
            let (node, asked) = (choices.below(NODES), Instant::now());
            if let Ok((StatusCode::OK, said)) = ask(node, Method::GET, &path, None, "counted").await
            {
                answered.push(Answered {
                    session,
                    is_look: true,
                    asked,
                    answered: Instant::now(),
                    value: said.parse()?,
                });
            }
        }
        let key = format!("{at}-{}", answered.len());
        let body = format!("count-and-pass receiver r{session}");
        let asked = Instant::now();
        let value = loop {
            let node = choices.below(NODES);
            let said = match ask(node, Method::POST, &path, Some(&key), &body).await {
                Ok((StatusCode::OK, said)) => {
                    tracing::info!(node, path, key, said, "counted");
                    break said.parse()?;
                }
                // Not now, or nobody knows: the key makes it safe to ask again.
                Ok((status, said)) if status.is_server_error() => said,
                Ok((_, said)) => return Err(format!("{}: {said}", name(node)).into()),
                Err(error) => error.to_string(),
            };
            tracing::debug!(node, path, key, said, "not counted");
            if asked.elapsed() > PATIENCE {
                return Err(format!("no answer for {path} {key}: {said}").into());
            }
            tokio::time::sleep(PAUSE).await;
        };
        answered.push(Answered {
            session,
            is_look: false,
            asked,
            answered: Instant::now(),
            value,
        });
        tokio::time::sleep(Duration::from_millis(choices.below(200) as u64)).await;
    }
    Ok(answered)
}

/// Asks a node to move a session.
pub(crate) async fn relocate(node: usize, function: &str, session: &str, to: usize) -> bool {
    let wanted = serde_json::json!({ "function": function, "session": session, "to": name(to) });
    let body = wanted.to_string();
    let asked = ask(node, Method::POST, "/admin/migrations", None, &body).await;
    asked.is_ok_and(|(status, _)| status == StatusCode::OK)
}

/// Waits until all that was counted is seen, and each message has arrived once.
pub(crate) async fn settle(answers: &[Answered]) -> Result<(), Failed> {
    for session in 0..SESSIONS {
        let counted = answers.iter();
        let counted = counted.filter(|answer| answer.session == session && !answer.is_look);
        let counted = counted.count().to_string();
        until_it_is(&format!("/fn/counter/s{session}"), "count 0", &counted).await?;
        until_it_is(&format!("/fn/receiver/r{session}"), "count 0", &counted).await?;
    }
    Ok(())
}
