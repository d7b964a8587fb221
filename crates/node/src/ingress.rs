//! Connections: accepts them, speaks HTTP/1.1 and HTTP/2, hands requests to the broker or the
//! admin router, and lets running requests finish when the node stops.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

use crate::broker;
use crate::core::Core;
use crate::respond::{self, Body};
use crate::target;

/// Pause after a failed accept (too many open files), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves connections until the node stops; then waits for the running ones.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, admin: axum::Router) {
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
        .max_concurrent_streams(1024);
    loop {
        let permit = tokio::select! {
            () = core.stopping.cancelled() => break,
            permit = connections.clone().acquire_owned() => permit,
        };
        let stream = tokio::select! {
            () = core.stopping.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let connection = connection(&core, &builder, &graceful, stream, admin.clone());
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
    stream: TcpStream,
    admin: axum::Router,
) -> impl Future<Output = ()> + Send + use<> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let core = core.clone();
    let service = service_fn(move |request| {
        let (core, admin) = (core.clone(), admin.clone());
        async move { Ok::<_, Infallible>(route(&core, admin, request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection.into_owned());
    async move {
        if let Err(error) = connection.await {
            tracing::debug!(error, "a connection ended early");
        }
    }
}

async fn route(
    core: &Arc<Core>,
    admin: axum::Router,
    request: Request<Incoming>,
) -> Response<Body> {
    if request.uri().path().starts_with(target::PREFIX) {
        return broker::invoke(core, request).await;
    }
    match admin.oneshot(request.map(axum::body::Body::new)).await {
        Ok(response) => respond::routed(response),
        Err(never) => match never {},
    }
}
