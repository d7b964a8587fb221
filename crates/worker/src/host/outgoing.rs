//! `wasi:http/outgoing-handler`: only to hosts that the manifest grants.

use std::sync::Arc;

use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::settings::FunctionSettings;

type Sent = Result<
    (
        http::Response<WasiBody>,
        Box<dyn Future<Output = Result<(), Error>> + Send>,
    ),
    Error,
>;

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
        _options: Option<RequestOptions>,
        _finished: Box<dyn Future<Output = Result<(), Error>> + Send>,
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
            send(request, &host, port).await
        })
    }
}

async fn send(mut request: http::Request<WasiBody>, host: &str, port: u16) -> Sent {
    let stream = TcpStream::connect((host, port))
        .await
        .map_err(|_| Error::ConnectionRefused)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Error::HttpProtocolError)?;
    // In the form that a server expects: the path in the request line, the host in its header.
    let path = request
        .uri()
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .to_owned();
    *request.uri_mut() = path.parse().map_err(|_| Error::HttpRequestUriInvalid)?;
    let driver = tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .map_err(|_| Error::HttpProtocolError)?;
    let body =
        |body: hyper::body::Incoming| body.map_err(|_| Error::HttpProtocolError).boxed_unsync();
    let finished = async move {
        match driver.await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Error::ConnectionTerminated),
        }
    };
    Ok((response.map(body), Box::new(finished)))
}
