//! Counters in Redis.

use anyhow::Context;
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use redis::AsyncCommands;
use redis::aio::ConnectionManager;

use crate::{Failure, failed, number};

/// The keys of one invocation that uses five.
const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];

pub(crate) async fn router(url: &str) -> anyhow::Result<Router> {
    let client = redis::Client::open(url)?;
    let manager = ConnectionManager::new(client)
        .await
        .context("cannot connect to Redis")?;
    Ok(Router::new()
        .route("/counter/{key}/add", post(add))
        .route("/five/{key}/add", post(five))
        .route("/five-get-set/{key}/add", post(five_get_set))
        .with_state(manager))
}

async fn add(
    State(mut redis): State<ConnectionManager>,
    Path(key): Path<String>,
    body: String,
) -> Result<String, Failure> {
    let sum: i64 = redis.incr(key, number(&body)?).await.map_err(failed)?;
    Ok(sum.to_string())
}

async fn five(
    State(mut redis): State<ConnectionManager>,
    Path(key): Path<String>,
    body: String,
) -> Result<String, Failure> {
    let delta = number(&body)?;
    let mut sum = 0;
    for name in FIVE {
        let value: i64 = redis
            .incr(format!("five:{key}:{name}"), delta)
            .await
            .map_err(failed)?;
        sum += value;
    }
    Ok(sum.to_string())
}

/// Not atomic: concurrent requests for one key lose updates, as they do without a lock.
async fn five_get_set(
    State(mut redis): State<ConnectionManager>,
    Path(key): Path<String>,
    body: String,
) -> Result<String, Failure> {
    let delta = number(&body)?;
    let mut sum = 0;
    for name in FIVE {
        let key = format!("get-set:{key}:{name}");
        let before: Option<i64> = redis.get(&key).await.map_err(failed)?;
        let value = before.unwrap_or(0) + delta;
        let () = redis.set(&key, value).await.map_err(failed)?;
        sum += value;
    }
    Ok(sum.to_string())
}
