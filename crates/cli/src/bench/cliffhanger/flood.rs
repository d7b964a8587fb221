//! As many events as a node takes, from several connections in a closed loop, with as many under way to the aggregator as it
//! keeps up with.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::kit::{Kit, Then};
use super::server::{SCENE, Server};
use crate::bench::connection::Connection;
use crate::bench::load::on_one_thread;

/// Connections that send events.
const CONNECTIONS: usize = 64;
/// The same for frames, of which each is work for a while.
const FRAMES_AT_ONCE: usize = 16;
/// Events that were answered and not brought together yet, at most.
const BEHIND: u64 = 4096;
/// Pause between two looks at how far the aggregator is.
const LOOK: Duration = Duration::from_millis(20);
/// Longest wait for the last events.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a flood was.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flood {
    /// Events that were sent and brought together.
    pub(super) events: u64,
    /// Until the last of them was.
    pub(super) seconds: f64,
}

impl Flood {
    pub(super) fn per_second(&self) -> f64 {
        self.events as f64 / self.seconds.max(1e-9)
    }
}

/// Frames a second that are detected and tracked, whatever waits.
pub(super) fn frames(kit: &Arc<Kit>, server: &Server, seconds: f64) -> anyhow::Result<f64> {
    let flood = flood(kit, server, seconds, Then::Aggregate, FRAMES_AT_ONCE)?;
    Ok(flood.per_second())
}

/// Events of one pixel through `collect`.
pub(super) fn pixels(kit: &Arc<Kit>, server: &Server, seconds: f64) -> anyhow::Result<Flood> {
    flood(kit, server, seconds, Then::Collect, CONNECTIONS)
}

fn flood(
    kit: &Arc<Kit>,
    server: &Server,
    seconds: f64,
    then: Then,
    connections: usize,
) -> anyhow::Result<Flood> {
    server.open_scene(kit, false)?;
    let started = Instant::now();
    let shared = Rc::new(Shared {
        kit: kit.clone(),
        address: server.address,
        then,
        until: started + Duration::from_secs_f64(seconds),
        next: Cell::new(0),
        answered: Cell::new(0),
        done: Cell::new(0),
    });
    let events = on_one_thread(shared.run(connections))??;
    Ok(Flood {
        events,
        seconds: started.elapsed().as_secs_f64(),
    })
}

struct Shared {
    kit: Arc<Kit>,
    address: SocketAddr,
    then: Then,
    until: Instant,
    next: Cell<u64>,
    answered: Cell<u64>,
    /// Events that were brought together.
    done: Cell<u64>,
}

impl Shared {
    /// Sends, and waits until all is brought together: how many.
    async fn run(self: Rc<Self>, connections: usize) -> anyhow::Result<u64> {
        let mut looking = JoinSet::new();
        looking.spawn_local(self.clone().look());
        let mut sending = JoinSet::new();
        for _ in 0..connections {
            let connection = Connection::open(self.address).await?;
            sending.spawn_local(self.clone().send(connection));
        }
        while let Some(sent) = sending.join_next().await {
            sent.context("a sender failed")??;
        }
        let sent = self.next.get();
        let deadline = Instant::now() + PATIENCE;
        while self.done.get() < sent {
            if let Some(looked) = looking.try_join_next() {
                looked.context("looking failed")??;
            }
            let done = self.done.get();
            ensure!(
                Instant::now() < deadline,
                "only {done} of {sent} events were brought together {PATIENCE:?} later"
            );
            tokio::time::sleep(LOOK / 4).await;
        }
        let done = self.done.get();
        ensure!(
            done == sent,
            "{done} events were brought together, and {sent} sent"
        );
        Ok(sent)
    }

    async fn send(self: Rc<Self>, mut connection: Connection) -> anyhow::Result<()> {
        let cameras = self.kit.cameras() as u64;
        // Whole timesteps only: what is incomplete would never come out.
        while Instant::now() < self.until || !self.next.get().is_multiple_of(cameras) {
            if self.answered.get() > self.done.get() + BEHIND {
                tokio::time::sleep(LOOK / 4).await;
                continue;
            }
            let n = self.next.replace(self.next.get() + 1);
            let camera = (n % cameras) as usize;
            let event = self.kit.event(SCENE, n / cameras, camera, self.then);
            post(&mut connection, "/fn/detect", &event).await?;
            self.answered.set(self.answered.get() + 1);
        }
        Ok(())
    }

    /// Looks again and again at how far the aggregator is, and takes its results.
    async fn look(self: Rc<Self>) -> anyhow::Result<()> {
        let function = match self.then {
            Then::Collect => "collect",
            Then::Aggregate | Then::Answer => "aggregate",
        };
        let path = format!("/fn/{function}/{SCENE}");
        let mut connection = Connection::open(self.address).await?;
        let mut from = 0;
        loop {
            let body = json!({ "request": "results", "from": from, "limit": 1024 }).to_string();
            post(&mut connection, &path, body.as_bytes()).await?;
            let answer: Value = serde_json::from_slice(connection.body())?;
            from += answer["results"].as_array().map_or(0, Vec::len) as u64;
            let counted = answer["events"].as_u64();
            let done = counted.unwrap_or(from * self.kit.cameras() as u64);
            self.done.set(done);
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Posts until it is taken; the answer is the connection's body then.
async fn post(connection: &mut Connection, path: &str, body: &[u8]) -> anyhow::Result<()> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: node\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = [head.as_bytes(), body].concat();
    loop {
        match connection.exchange(&request).await? {
            200 => return Ok(()),
            429 => tokio::time::sleep(LOOK / 4).await,
            status => {
                let said = String::from_utf8_lossy(connection.body());
                bail!("{path}: status {status}: {said}")
            }
        }
    }
}
