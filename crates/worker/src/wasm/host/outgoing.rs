//! `wasi:http/outgoing-handler`: only to hosts that the manifest grants.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, timeout};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::settings::FunctionSettings;

/// Longest wait for each step of a request whose function sets none. The invocation's deadline cuts
/// it off earlier.
const PATIENCE: Duration = Duration::from_secs(600);

type Finished = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(http::Response<WasiBody>, Finished), Error>;

/// Sends what is granted.
pub(crate) struct Outgoing {
    settings: Arc<FunctionSettings>,
}

impl Outgoing {
    pub(crate) fn new(settings: Arc<FunctionSettings>) -> Self {
        Self { settings }
    }
}

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _finished: Finished,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let host = request.uri().host().unwrap_or_default().to_owned();
        let tls = request.uri().scheme_str() == Some("https");
        let port = request
            .uri()
            .port_u16()
            .unwrap_or(if tls { 443 } else { 80 });
        let granted = self
            .settings
            .http
            .iter()
            .any(|grant| grant.allows(&host, port));
        Box::new(async move {
            if !granted {
                tracing::debug!(host, port, "an outgoing request was not granted");
                return Err(Error::HttpRequestDenied);
            }
            if tls {
                tracing::warn!(
                    host,
                    "an outgoing request over TLS was refused: only plain HTTP is supported"
                );
                return Err(Error::TlsProtocolError);
            }
            send(request, options, &host, port).await
        })
    }
}

async fn send(
    mut request: http::Request<WasiBody>,
    options: Option<RequestOptions>,
    host: &str,
    port: u16,
) -> Sent {
    let limit = |chosen: fn(&RequestOptions) -> Option<Duration>| {
        options.as_ref().and_then(chosen).unwrap_or(PATIENCE)
    };
    let connect = limit(|options| options.connect_timeout);
    let first_byte = limit(|options| options.first_byte_timeout);
    let between_bytes = limit(|options| options.between_bytes_timeout);
    // An IPv6 address is in brackets in a URI, and without in an address.
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = timeout(connect, TcpStream::connect((address, port)))
        .await
        .map_err(|_| Error::ConnectionTimeout)?
        .map_err(Error::Connect)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(Error::Hyper)?;
    // In the form that a server expects: the path in the request line, the host in its header.
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    // Ends when the sender and the response's body are gone, at the latest with the worker.
    let driver = tokio::spawn(connection);
    let response = timeout(first_byte, sender.send_request(request))
        .await
        .map_err(|_| Error::ConnectionReadTimeout)?
        .map_err(Error::Hyper)?;
    let body = |incoming: Incoming| {
        Timed {
            incoming,
            limit: between_bytes,
            silence: Box::pin(tokio::time::sleep(between_bytes)),
        }
        .boxed_unsync()
    };
    let finished = async move {
        match driver.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Error::ConnectionTerminated),
        }
    };
    Ok((response.map(body), Box::new(finished)))
}

/// A response's body that fails when nothing comes for too long.
struct Timed {
    incoming: Incoming,
    limit: Duration,
    silence: Pin<Box<Sleep>>,
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.incoming).poll_frame(context) {
            Poll::Ready(frame) => {
                let until = Instant::now() + self.limit;
                self.silence.as_mut().reset(until);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::Hyper)))
            }
            Poll::Pending => {
                ready!(self.silence.as_mut().poll(context));
                Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fulmar_model::manifest::HostGrant;
    use http_body_util::{BodyExt, Empty};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// A server that takes one request and gives `answer`; after that it is silent.
    async fn server(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            // Until the other side is gone.
            let _ = stream.read_u8().await;
            String::from_utf8(request).unwrap()
        });
        (port, serving)
    }

    async fn ask(uri: String, grants: &[&str], options: RequestOptions) -> Sent {
        let settings = FunctionSettings {
            http: grants
                .iter()
                .map(|grant| HostGrant::new(grant).unwrap())
                .collect(),
            ..FunctionSettings::default()
        };
        let authority = uri
            .parse::<http::Uri>()
            .unwrap()
            .authority()
            .unwrap()
            .to_string();
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::builder()
            .uri(uri)
            .header("host", authority)
            .body(body)
            .unwrap();
        let mut outgoing = Outgoing::new(Arc::new(settings));
        Pin::from(outgoing.send_request(request, Some(options), Box::new(async { Ok(()) }))).await
    }

    fn refusal(sent: Sent) -> Error {
        match sent {
            Ok(_) => panic!("it was answered"),
            Err(error) => error,
        }
    }

    #[tokio::test]
    async fn a_granted_host_is_asked_in_the_form_that_servers_expect() {
        let (port, serving) = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
        let uri = format!("http://127.0.0.1:{port}/a?b=c");
        let (response, _) = ask(uri, &["127.0.0.1"], RequestOptions::default())
            .await
            .unwrap();
        assert_eq!(
            response.into_body().collect().await.unwrap().to_bytes(),
            "hi"
        );
        let request = serving.await.unwrap();
        assert!(request.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{request}");
        assert!(
            request.contains(&format!("host: 127.0.0.1:{port}\r\n")),
            "{request}"
        );
    }

    #[tokio::test]
    async fn what_is_not_granted_or_not_possible_is_refused_before_anything_is_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for (uri, grants) in [
            (format!("http://127.0.0.1:{port}/"), vec![]),
            (format!("http://127.0.0.1:{port}/"), vec!["example.com"]),
            (format!("http://127.0.0.1:{port}/"), vec!["127.0.0.1:1"]),
            (format!("http://user@127.0.0.1:{port}/"), vec!["user"]),
        ] {
            let refused = refusal(ask(uri, &grants, RequestOptions::default()).await);
            assert!(matches!(refused, Error::HttpRequestDenied), "{refused:?}");
        }
        let uri = format!("https://127.0.0.1:{port}/");
        let refused = refusal(ask(uri, &["127.0.0.1"], RequestOptions::default()).await);
        assert!(matches!(refused, Error::TlsProtocolError), "{refused:?}");
        let nobody = tokio::time::timeout(Duration::from_millis(20), listener.accept()).await;
        assert!(nobody.is_err(), "nobody connected");
    }

    #[tokio::test]
    async fn the_functions_own_time_outs_hold() {
        let short = Some(Duration::from_millis(30));
        let (port, _serving) = server("").await;
        let options = RequestOptions {
            first_byte_timeout: short,
            ..RequestOptions::default()
        };
        let uri = format!("http://127.0.0.1:{port}/");
        let refused = refusal(ask(uri, &["127.0.0.1"], options).await);
        assert!(
            matches!(refused, Error::ConnectionReadTimeout),
            "{refused:?}"
        );

        let (port, _serving) = server("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await;
        let options = RequestOptions {
            between_bytes_timeout: short,
            ..RequestOptions::default()
        };
        let uri = format!("http://127.0.0.1:{port}/");
        let (response, _) = ask(uri, &["127.0.0.1"], options).await.unwrap();
        let broken = response.into_body().collect().await.unwrap_err();
        assert!(matches!(broken, Error::ConnectionReadTimeout), "{broken:?}");
    }
}
