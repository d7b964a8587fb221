//! A node as its clients see it: functions to invoke, state and deployments to set.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::de::DeserializeOwned;

/// Longest wait for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Times that a request is sent when the node refuses it for now or restarts: some 15 seconds.
const ATTEMPTS: u32 = 12;
/// Pause before a request is sent again, if the node does not name one; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A node's address and the connections to it.
#[derive(Clone)]
pub(crate) struct Node {
    client: Client<HttpConnector, Full<Bytes>>,
    base: String,
}

/// An answer that says yes.
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    /// Times that the request was sent before the node took it.
    pub(crate) refusals: u32,
}

/// One answer of whatever kind.
struct Raw {
    status: StatusCode,
    retry_after: Option<Duration>,
    body: Bytes,
}

impl Node {
    /// A node by its address, as in `http://127.0.0.1:7400`.
    pub(crate) fn new(base: &str) -> Result<Self> {
        let base = base.trim_end_matches('/');
        let uri: Uri = base
            .parse()
            .with_context(|| format!("--node {base:?} is not an address"))?;
        if uri.scheme_str() != Some("http") || uri.host().is_none() {
            bail!("--node {base:?} has to begin with http:// and name a host");
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(5)));
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            base: base.to_owned(),
        })
    }

    /// Whether the node takes invocations.
    pub(crate) async fn ready(&self) -> Result<()> {
        let raw = self.once(&Method::GET, "/readyz", Bytes::new(), None).await;
        let raw = raw.with_context(|| {
            format!(
                "no node answers on {}; start one with `fulmar dev`",
                self.base
            )
        })?;
        self.checked(raw, "/readyz").map(|_| ())
    }

    /// Invokes a function; again when the node refuses it for now or the connection breaks. What is invoked must
    /// allow that: a request that may be repeated, or an idempotency key.
    pub(crate) async fn invoke(
        &self,
        path: &str,
        body: Bytes,
        idempotency_key: Option<&str>,
    ) -> Result<Answer> {
        let mut pause = FIRST_PAUSE;
        let mut refusals = 0;
        loop {
            let last = refusals + 1 == ATTEMPTS;
            match self
                .once(&Method::POST, path, body.clone(), idempotency_key)
                .await
            {
                Ok(raw)
                    if !last
                        && matches!(
                            raw.status,
                            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE
                        ) =>
                {
                    tokio::time::sleep(raw.retry_after.unwrap_or(pause).min(LONGEST_PAUSE)).await;
                }
                Ok(raw) => {
                    return Ok(Answer {
                        body: self.checked(raw, path)?,
                        refusals,
                    });
                }
                Err(error) if last => return Err(error),
                Err(_) => tokio::time::sleep(pause).await,
            }
            refusals += 1;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Puts something to a path of the admin API.
    pub(crate) async fn put(&self, path: &str, body: impl Into<Bytes>) -> Result<Bytes> {
        let raw = self.once(&Method::PUT, path, body.into(), None).await?;
        self.checked(raw, path)
    }

    /// Whether there is something at a path of the admin API.
    pub(crate) async fn has(&self, path: &str) -> Result<bool> {
        Ok(self
            .once(&Method::HEAD, path, Bytes::new(), None)
            .await?
            .status
            .is_success())
    }

    async fn once(
        &self,
        method: &Method,
        path: &str,
        body: Bytes,
        idempotency_key: Option<&str>,
    ) -> Result<Raw> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        if let Some(key) = idempotency_key {
            request = request.header("idempotency-key", key);
        }
        let request = request.body(Full::new(body))?;
        let answer = async {
            let response = self.client.request(request).await?;
            let seconds = response
                .headers()
                .get("retry-after")
                .and_then(|value| value.to_str().ok()?.parse::<f64>().ok());
            let retry_after = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
            Ok::<_, anyhow::Error>(Raw {
                status: response.status(),
                retry_after,
                body: response.into_body().collect().await?.to_bytes(),
            })
        };
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        let answer = answer.with_context(|| {
            format!(
                "{method} {path}: no answer within {} s",
                ANSWER_TIMEOUT.as_secs()
            )
        })?;
        answer.with_context(|| format!("{method} {}{path}", self.base))
    }

    fn checked(&self, raw: Raw, path: &str) -> Result<Bytes> {
        if raw.status.is_success() {
            return Ok(raw.body);
        }
        // A problem (RFC 9457), if the node made the answer.
        let problem: serde_json::Value = serde_json::from_slice(&raw.body).unwrap_or_default();
        let said = ["detail", "fix"]
            .map(|key| problem[key].as_str().unwrap_or_default())
            .join(" ");
        bail!(
            "{path} answered {}: {}",
            raw.status,
            if said.trim().is_empty() {
                String::from_utf8_lossy(&raw.body)
            } else {
                said.into()
            }
        )
    }
}

/// Reads a JSON answer.
pub(crate) fn parsed<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).with_context(|| {
        format!(
            "unexpected answer: {}",
            String::from_utf8_lossy(&body[..body.len().min(200)])
        )
    })
}

/// A name as one segment of a path.
pub(crate) fn segment(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric()
            || b"-_~".contains(&byte)
            || (byte == b'.' && name.len() > 2)
        {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_segment() {
        assert_eq!(segment("plaza/c1 ü.png"), "plaza%2Fc1%20%C3%BC.png");
        assert_eq!(segment(".."), "%2E%2E");
    }

    #[test]
    fn addresses_are_checked() {
        assert!(Node::new("http://127.0.0.1:7400/").is_ok());
        for wrong in ["127.0.0.1:7400", "https://host", "http://", "ftp://host"] {
            assert!(Node::new(wrong).is_err(), "{wrong}");
        }
    }
}
