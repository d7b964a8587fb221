//! Counters in PostgreSQL.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, ensure};
use axum::Router;
use axum::extract::{Path, State};
use axum::routing::post;
use tokio_postgres::{Client, NoTls, Statement};

use crate::{Failure, failed, number};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS counter (k text PRIMARY KEY, n bigint NOT NULL)";
const ADD: &str = "INSERT INTO counter VALUES ($1, $2) \
    ON CONFLICT (k) DO UPDATE SET n = counter.n + EXCLUDED.n RETURNING n";

/// Connections, taken in turn; statements of one are pipelined.
struct Pool {
    connections: Vec<(Client, Statement)>,
    next: AtomicUsize,
}

pub(crate) async fn router(config: &str, count: usize) -> anyhow::Result<Router> {
    ensure!(count > 0, "the number of connections has to be above 0");
    let mut connections = Vec::with_capacity(count);
    for at in 0..count {
        let (client, connection) = tokio_postgres::connect(config, NoTls)
            .await
            .context("cannot connect to PostgreSQL")?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("a connection to PostgreSQL ended: {error}");
            }
        });
        if at == 0 {
            client.batch_execute(TABLE).await?;
        }
        let statement = client.prepare(ADD).await?;
        connections.push((client, statement));
    }
    let pool = Pool {
        connections,
        next: AtomicUsize::new(0),
    };
    Ok(Router::new()
        .route("/counter/{key}/add", post(add))
        .with_state(Arc::new(pool)))
}

async fn add(
    State(pool): State<Arc<Pool>>,
    Path(key): Path<String>,
    body: String,
) -> Result<String, Failure> {
    let delta = number(&body)?;
    let at = pool.next.fetch_add(1, Ordering::Relaxed) % pool.connections.len();
    let (client, statement) = &pool.connections[at];
    let row = client
        .query_one(statement, &[&key, &delta])
        .await
        .map_err(failed)?;
    let sum: i64 = row.try_get(0).map_err(failed)?;
    Ok(sum.to_string())
}
