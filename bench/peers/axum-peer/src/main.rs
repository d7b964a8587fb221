//! Counters over HTTP without Fulmar, as one would write them by hand: `POST /counter/{key}/add` adds
//! the number in the body and answers the sum.
//!
//! ```text
//! axum-peer ADDRESS echo                 answers the body: what HTTP alone costs
//! axum-peer ADDRESS redis URL            one INCRBY, over one multiplexed connection
//! axum-peer ADDRESS postgres CONFIG N    one upsert, over N connections
//! ```
//!
//! With Redis there are also `POST /five/{key}/add` (five INCRBY, one after the other) and
//! `POST /five-get-set/{key}/add` (five GET and five SET), for invocations that read and write five
//! keys whose values depend on what was read.

mod postgres;
mod redis_counter;

use anyhow::{Context, bail};
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::ListenerExt;

/// The same allocator as Fulmar's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A handler's failure: 502 with the reason.
type Failure = (StatusCode, String);

fn failed(error: impl std::fmt::Display) -> Failure {
    (StatusCode::BAD_GATEWAY, error.to_string())
}

/// The number in a body.
fn number(body: &str) -> Result<i64, Failure> {
    body.trim().parse().map_err(|_| {
        (
            StatusCode::BAD_REQUEST,
            format!("{body:?} is no whole number"),
        )
    })
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (address, router) = match words[..] {
        [address, "echo"] => (address, echo()),
        [address, "redis", url] => (address, redis_counter::router(url).await?),
        [address, "postgres", config, connections] => {
            let connections = connections.parse().context("the number of connections")?;
            (address, postgres::router(config, connections).await?)
        }
        _ => bail!("usage: axum-peer ADDRESS echo | redis URL | postgres CONFIG CONNECTIONS"),
    };
    let listener = tokio::net::TcpListener::bind(address)
        .await?
        .tap_io(|stream| {
            // A connection that cannot be set up so is only slower.
            let _ = stream.set_nodelay(true);
        });
    axum::serve(listener, router).await?;
    Ok(())
}

fn echo() -> Router {
    Router::new().route("/counter/{key}/add", post(|body: Bytes| async { body }))
}
