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
