//! The counter as a virtual object of Restate: `POST /counter/{key}/add` at its ingress.
//!
//! ```text
//! restate-counter ADDRESS
//! ```

use anyhow::Context;
use restate_sdk::prelude::*;

struct Counter;

#[object(name = "counter")]
impl Counter {
    #[handler]
    async fn add(&self, context: ObjectContext<'_>, delta: i64) -> Result<i64, TerminalError> {
        let sum = context.get::<i64>("n").await?.unwrap_or(0) + delta;
        context.set("n", sum);
        Ok(sum)
    }
}

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args()
        .nth(1)
        .context("usage: restate-counter ADDRESS")?;
    HttpServer::new(Endpoint::builder().bind(Counter).build())
        .listen_and_serve(address.parse()?)
        .await;
    Ok(())
}
