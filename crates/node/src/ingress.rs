//! Connections: accepts them, speaks HTTP/1.1 and HTTP/2, hands requests to the broker or the
//! admin router, and lets running requests finish when the node stops.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use fulmar_cluster::network::{Listener, Stream};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower::ServiceExt;

use crate::body::RequestBody;
use crate::core::Core;
use crate::respond::{self, Body};
use crate::target;
use crate::{access, audit, broker};

/// Pause after a failed accept (too many open files), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a client may send on a connection of HTTP/2 before any of it is read, in bytes.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Serves connections until the node stops; then waits for the running ones.
pub(crate) async fn serve(core: Arc<Core>, listener: Listener, admin: axum::Router) {
    let connections = Arc::new(Semaphore::new(core.options.max_connections));
    let graceful = GracefulShutdown::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(core.options.header_timeout)
        .pipeline_flush(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        // One body that waits for its turn does not keep the others of its connection.
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(1024);
    loop {
        let permit = tokio::select! {
            () = core.stopping.cancelled() => break,
            permit = connections.clone().acquire_owned() => permit,
        };
        let (stream, peer) = tokio::select! {
            () = core.stopping.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let peer = peer.ip();
        let connection = connection(&core, &builder, &graceful, (stream, peer), admin.clone());
        let core = core.clone();
        tokio::spawn(async move {
            core.metrics.connections.inc();
            connection.await;
            core.metrics.connections.dec();
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(core.options.drain_timeout, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("some connections did not finish in time and were closed");
    }
}

fn connection(
    core: &Arc<Core>,
    builder: &auto::Builder<TokioExecutor>,
    graceful: &GracefulShutdown,
    (stream, peer): (Stream, IpAddr),
    admin: axum::Router,
) -> impl Future<Output = ()> + Send + use<> {
    let watcher = graceful.watcher();
    let builder = builder.clone();
    let (tls, patience) = (core.options.tls.clone(), core.options.header_timeout);
    let core = core.clone();
    let service = service_fn(move |request| {
        let (core, admin) = (core.clone(), admin.clone());
        async move { Ok::<_, Infallible>(route(&core, admin, peer, request).await) }
    });
    async move {
        let served = match tls {
            None => {
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                watcher.watch(connection.into_owned()).await
            }
            Some(config) => {
                let Some(stream) = handshake(config, stream, patience).await else {
                    return;
                };
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                watcher.watch(connection.into_owned()).await
            }
        };
        if let Err(error) = served {
            tracing::debug!(error, "a connection ended early");
        }
    }
}

/// The encrypted stream; none if the client did not come to terms in time.
async fn handshake(
    config: Arc<rustls::ServerConfig>,
    stream: Stream,
    patience: Duration,
) -> Option<TlsStream<Stream>> {
    let accepting = TlsAcceptor::from(config).accept(stream);
    match tokio::time::timeout(patience, accepting).await {
        Ok(Ok(stream)) => Some(stream),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            None
        }
    }
}

async fn route(
    core: &Arc<Core>,
    admin: axum::Router,
    peer: IpAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    let mut request = request.map(RequestBody::new);
    let bearer = match access::admit(core, peer, &mut request) {
        Ok(bearer) => bearer,
        Err(problem) => return respond::problem(&problem),
    };
    if request.uri().path().starts_with(target::PREFIX) {
        return broker::invoke(core, request).await;
    }
    let action = audit::Action::of(&request, peer, bearer);
    match admin.oneshot(request.map(axum::body::Body::new)).await {
        Ok(response) => {
            if let Some(action) = action {
                core.audit.write(&action, response.status());
            }
            respond::routed(response)
        }
        Err(never) => match never {},
    }
}
