//! The load: one generator for all servers.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::Arguments;
use crate::process;
use crate::server::Server;
use crate::setup::Setup;
use crate::target::{Phase, Target};

/// Seconds of one warm-up.
const WARM_UP_SECONDS: u32 = 2;
/// Warming up ends after so many times, even if not every session was used twice.
pub(crate) const MAX_WARM_UPS: u32 = 10;
/// Sessions made to compare first requests with next ones.
const NEW_SESSIONS: u32 = 1000;

/// What makes the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Generator {
    /// wrk with bench/counter.lua.
    Wrk,
    /// `fulmar bench closed`.
    Fulmar,
}

/// How much of what.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) path: &'static str,
    pub(crate) connections: u32,
    pub(crate) sessions: u32,
    pub(crate) seconds: u32,
}

/// What a generator counted. wrk counts answers with a status above 399 as `non_2xx`; the check of
/// the counters finds what else might be no success.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) requests_per_second: f64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p99_9_us: u64,
    pub(crate) max_us: u64,
    pub(crate) non_2xx: u64,
    pub(crate) socket_errors: u64,
    /// Requests that may have been done without being counted.
    #[serde(default)]
    pub(crate) in_flight: u64,
}

/// A measured load.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) target: Target,
    pub(crate) phase: Phase,
    pub(crate) round: u32,
    pub(crate) connections: u32,
    pub(crate) sessions: u32,
    #[serde(flatten)]
    pub(crate) outcome: Outcome,
    /// Whether there were errors: then it is no measurement.
    pub(crate) void: bool,
    /// CPU time of all the server's processes.
    pub(crate) cpu_us_per_request: f64,
    pub(crate) server_cores: f64,
    /// CPU time that neither the server nor the load took: of whatever else ran.
    pub(crate) other_cores: f64,
}

/// First requests of new sessions against the next ones.
#[derive(Debug, Serialize)]
pub(crate) struct Difference {
    pub(crate) target: Target,
    pub(crate) round: u32,
    pub(crate) first_p50_us: u64,
    pub(crate) next_p50_us: u64,
    pub(crate) ratio: f64,
}

impl Load {
    pub(crate) fn new(arguments: &Arguments, phase: Phase, path: &'static str) -> Self {
        Self {
            path,
            connections: match phase {
                Phase::Single => 1,
                _ => arguments.connections,
            },
            sessions: match phase {
                Phase::Hot => 1,
                _ => arguments.sessions,
            },
            seconds: arguments.seconds,
        }
    }

    /// The same, to warm up.
    pub(crate) fn warm_up(&self) -> Self {
        Self {
            seconds: WARM_UP_SECONDS,
            ..self.clone()
        }
    }
}

impl Generator {
    /// Runs a load to its end.
    pub(crate) fn run(
        self,
        setup: &Setup,
        server: &Server,
        load: &Load,
    ) -> anyhow::Result<Outcome> {
        match self {
            Self::Wrk => wrk(setup, server, load),
            Self::Fulmar => fulmar(setup, server, load),
        }
    }
}

fn wrk(setup: &Setup, server: &Server, load: &Load) -> anyhow::Result<Outcome> {
    let output = Command::new("wrk")
        .args(["--threads", if load.connections == 1 { "1" } else { "2" }])
        .args(["--connections", &load.connections.to_string()])
        .args(["--duration", &format!("{}s", load.seconds)])
        .args(["--timeout", "10s", "--script"])
        .arg(setup.bench.join("counter.lua"))
        .arg(server.url("/"))
        .env("SESSIONS", load.sessions.to_string())
        .env("URL_PATH", load.path)
        .output()
        .context("cannot start wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let result = text
        .lines()
        .find_map(|line| line.strip_prefix("RESULT "))
        .with_context(|| format!("wrk: {text} {}", String::from_utf8_lossy(&output.stderr)))?;
    let mut outcome: Outcome = serde_json::from_str(result)?;
    // wrk drops its connections at the end.
    outcome.in_flight = load.connections.into();
    Ok(outcome)
}

fn fulmar(setup: &Setup, server: &Server, load: &Load) -> anyhow::Result<Outcome> {
    let output = Command::new(&setup.fulmar)
        .args(["bench", "closed", "--json", "--warm-up", "0s"])
        .args(["--node", &server.url("")])
        .args(["--url-path", load.path])
        .args(["--header", "content-type: application/json"])
        .args(["--connections", &load.connections.to_string()])
        .args(["--sessions", &load.sessions.to_string()])
        .args(["--duration", &format!("{}s", load.seconds)])
        .output()
        .context("cannot start fulmar bench")?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let count = |name: &str| report[name].as_u64().unwrap_or(0);
    let latency = |name: &str| report["latency_us"][name].as_u64().unwrap_or(0);
    Ok(Outcome {
        requests: count("requests"),
        requests_per_second: report["requests_per_second"].as_f64().unwrap_or(0.0),
        p50_us: latency("p50"),
        p90_us: latency("p90"),
        p99_us: latency("p99"),
        p99_9_us: latency("p99_9"),
        max_us: latency("max"),
        non_2xx: count("non_2xx"),
        socket_errors: count("socket_errors") + count("timeouts"),
        in_flight: 0,
    })
}

/// Runs a load and takes the CPU time around it.
pub(crate) fn measured(
    generator: Generator,
    setup: &Setup,
    server: &Server,
    load: &Load,
    target: Target,
    phase: Phase,
    round: u32,
) -> anyhow::Result<Run> {
    let pids = server.pids();
    let before = (
        process::cpu(&pids),
        process::machine_cpu(),
        process::own_cpu(),
    );
    let start = Instant::now();
    let outcome = generator.run(setup, server, load)?;
    let seconds = start.elapsed().as_secs_f64();
    let server_seconds = process::cpu(&pids).saturating_sub(before.0).as_secs_f64();
    let machine_seconds = process::machine_cpu()
        .saturating_sub(before.1)
        .as_secs_f64();
    let own_seconds = process::own_cpu().saturating_sub(before.2).as_secs_f64();
    Ok(Run {
        target,
        phase,
        round,
        connections: load.connections,
        sessions: load.sessions,
        void: outcome.requests == 0 || outcome.non_2xx + outcome.socket_errors > 0,
        cpu_us_per_request: server_seconds * 1e6 / outcome.requests.max(1) as f64,
        server_cores: server_seconds / seconds,
        other_cores: (machine_seconds - server_seconds - own_seconds).max(0.0) / seconds,
        outcome,
    })
}

/// Compares first requests with next ones, by `fulmar bench`.
pub(crate) fn new_sessions(
    setup: &Setup,
    server: &Server,
    path: &'static str,
    target: Target,
    round: u32,
) -> anyhow::Result<Difference> {
    let output = Command::new(&setup.fulmar)
        .args(["bench", "latency-new-sessions", "--json"])
        .args(["--node", &server.url("")])
        .args(["--url-path", path])
        .args(["--header", "content-type: application/json"])
        .args(["--sessions", &NEW_SESSIONS.to_string()])
        .output()
        .context("cannot start fulmar bench")?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let p50 = |name: &str| report[name]["p50"].as_u64().unwrap_or(0);
    Ok(Difference {
        target,
        round,
        first_p50_us: p50("first_us"),
        next_p50_us: p50("next_us"),
        ratio: report["ratio_of_p50"].as_f64().unwrap_or(f64::NAN),
    })
}
