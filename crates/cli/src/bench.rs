//! `fulmar bench`: load for a running node, or for another server, and what it answered.
//!
//! A run with any answer that is not 2xx or any socket error is void: an error path may be faster
//! than the work, and would look like a fast server.

mod cliffhanger;
mod connection;
mod counters;
mod load;
mod new_sessions;
mod pace;
mod request;

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::client::{Target, segment};
use crate::output;
use load::{Plan, Tally};
use request::Template;

/// What is measured.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Closed loop: each connection sends its next request when the last one is answered.
    Closed {
        #[command(flatten)]
        load: Load,
    },
    /// Open loop: requests at a rate, with latencies counted from when each should have been sent.
    Open {
        /// Requests a second, over all connections.
        #[arg(long)]
        rate: f64,
        #[command(flatten)]
        load: Load,
    },
    /// The five experiments of the Cliffhanger study, on nodes that are started for it, and a report.
    Cliffhanger(cliffhanger::Options),
    /// The first request of new sessions against the next one, in turn on one connection.
    LatencyNewSessions {
        /// Number of sessions to make.
        #[arg(long, value_name = "COUNT", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
        sessions: u64,
        #[command(flatten)]
        request: Request,
    },
}

/// What each request is.
#[derive(Debug, Args)]
pub(crate) struct Request {
    /// The function.
    #[arg(long, default_value = "counter")]
    function: String,
    /// The path, with {k} where the session's number goes [default: /fn/FUNCTION/k{k}].
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "function")]
    url_path: Option<String>,
    /// The body.
    #[arg(long, value_name = "TEXT", default_value = "1")]
    body: String,
    /// A header, NAME: VALUE; may be repeated.
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
}

/// How much is sent.
#[derive(Debug, Args)]
pub(crate) struct Load {
    /// Connections, each with one request at a time.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    connections: u32,
    /// How long to measure.
    #[arg(long, default_value = "5s")]
    duration: fulmar_model::Duration,
    /// How long to send before measuring.
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    warm_up: fulmar_model::Duration,
    /// Requests go to so many sessions in turn.
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    sessions: u64,
    /// Threads of the load generator.
    #[arg(long, value_name = "COUNT", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Send an Idempotency-Key of its own with each request.
    #[arg(long)]
    idempotency_keys: bool,
    /// Check that the counters grew by what was answered. The body has to be a whole number, and the
    /// answer the counter; a body of 0 reads it.
    #[arg(long)]
    verify: bool,
    /// It is more than the server can do: count answers of 429 apart, instead of taking them for errors.
    #[arg(long)]
    overload: bool,
    #[command(flatten)]
    request: Request,
}

/// Runs `fulmar bench`.
pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Closed { load } => run_load(target, load, None),
        Verb::Open { rate, load } => {
            ensure!(
                rate.is_finite() && *rate > 0.0,
                "--rate {rate} is no rate; it has to be above 0"
            );
            run_load(target, load, Some(*rate))
        }
        Verb::Cliffhanger(options) => cliffhanger::run(options),
        Verb::LatencyNewSessions { sessions, request } => new_sessions(target, *sessions, request),
    }
}

fn template(
    target: &Target,
    request: &Request,
) -> anyhow::Result<(std::net::SocketAddr, Template)> {
    let (host, address) = request::resolve(target.url())?;
    let path = match &request.url_path {
        Some(path) => path.clone(),
        None => format!("/fn/{}/k{{k}}", segment(&request.function)),
    };
    let template = Template::new(&host, &path, &request.header, request.body.as_bytes())?;
    Ok((address, template))
}

fn run_load(target: &Target, load: &Load, rate: Option<f64>) -> anyhow::Result<()> {
    let (address, template) = template(target, &load.request)?;
    let plan = Plan {
        address,
        template,
        sessions: load.sessions,
        connections: load.connections as usize,
        threads: load.threads as usize,
        duration: load.duration.get(),
        rate,
        keys: load.idempotency_keys.then(request::run_id),
        overload: load.overload,
    };
    let increment: Option<i64> = load
        .verify
        .then(|| load.request.body.trim().parse())
        .transpose()
        .with_context(|| format!("--verify with the body {:?}", load.request.body))?;
    let before = increment.map(|_| counters::sum(&plan)).transpose()?;

    let mut answered = 0;
    if !load.warm_up.get().is_zero() {
        eprintln!("warming up for {}", load.warm_up);
        let warm_up = Plan {
            duration: load.warm_up.get(),
            keys: plan.keys.map(|_| request::run_id()),
            ..plan.clone()
        };
        let tally = load::run(&warm_up)?;
        if tally.is_void() {
            bail!(void("the warm-up", &tally));
        }
        answered += tally.answered;
    }
    eprintln!("measuring for {}", load.duration);
    let tally = load::run(&plan)?;
    answered += tally.answered;

    let verified = match (increment, before) {
        (Some(increment), Some(before)) => Some(Verified {
            expected: i128::from(increment) * i128::from(answered),
            found: i128::from(counters::sum(&plan)?) - i128::from(before),
        }),
        _ => None,
    };
    if target.json {
        output::value(&report(&plan, &tally, verified.as_ref()));
    } else {
        print(&plan, &tally, verified.as_ref());
    }
    if tally.is_void() {
        bail!(void("the run", &tally));
    }
    match verified {
        Some(Verified { expected, found }) if expected != found => {
            bail!("the counters grew by {found}, but answers for {expected} came")
        }
        _ => Ok(()),
    }
}

/// How far counters should have grown, and have.
struct Verified {
    expected: i128,
    found: i128,
}

fn void(what: &str, tally: &Tally) -> String {
    format!(
        "{what} is void: {} answers, {} of other statuses than 2xx, {} socket errors, {} without an answer; first: {}",
        tally.answered,
        tally.refused,
        tally.socket_errors,
        tally.timeouts,
        tally
            .first_error
            .as_deref()
            .unwrap_or("nothing was answered")
    )
}

fn latencies(histogram: &Histogram<u64>) -> Value {
    json!({
        "p50": histogram.value_at_quantile(0.5),
        "p90": histogram.value_at_quantile(0.9),
        "p99": histogram.value_at_quantile(0.99),
        "p99_9": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
    })
}

fn report(plan: &Plan, tally: &Tally, verified: Option<&Verified>) -> Value {
    let mut report = json!({
        "loop": if plan.rate.is_some() { "open" } else { "closed" },
        "connections": plan.connections,
        "sessions": plan.sessions,
        "idempotency_keys": plan.keys.is_some(),
        "elapsed_seconds": tally.elapsed.as_secs_f64(),
        "requests": tally.answered,
        "requests_per_second": tally.rate(),
        "latency_us": latencies(&tally.latency),
        "turned_away": tally.turned_away,
        "non_2xx": tally.refused,
        "socket_errors": tally.socket_errors,
        "timeouts": tally.timeouts,
        "first_error": tally.first_error,
        "void": tally.is_void(),
    });
    if let Some(rate) = plan.rate {
        report["rate"] = json!(rate);
        report["unsent"] = json!(tally.unsent);
    }
    if let Some(Verified { expected, found }) = verified {
        report["verified"] = json!({
            "expected": expected.to_string(),
            "found": found.to_string(),
            "ok": expected == found,
        });
    }
    report
}

fn print(plan: &Plan, tally: &Tally, verified: Option<&Verified>) {
    let line = |name: &str, text: String| output::line_out(&format!("{name:<15}{text}"));
    line("requests", tally.answered.to_string());
    line("requests/s", format!("{:.0}", tally.rate()));
    print_latencies("latency", &tally.latency);
    line(
        "errors",
        format!(
            "{} not 2xx, {} socket errors, {} without an answer",
            tally.refused, tally.socket_errors, tally.timeouts
        ),
    );
    if plan.overload {
        line("turned away", format!("{} by 429", tally.turned_away));
    }
    if let Some(rate) = plan.rate {
        let seconds = plan.duration.as_secs_f64();
        let planned = rate * seconds;
        line(
            "rate",
            format!(
                "{rate:.0} requests/s intended, {} of {planned:.0} requests not sent in time",
                tally.unsent
            ),
        );
    }
    if let Some(Verified { expected, found }) = verified {
        line("counters", format!("grew by {found} of {expected}"));
    }
}

fn print_latencies(name: &str, histogram: &Histogram<u64>) {
    let at = |quantile| show(Duration::from_micros(histogram.value_at_quantile(quantile)));
    output::line_out(&format!(
        "{name:<15}p50 {}  p90 {}  p99 {}  p99.9 {}  max {}",
        at(0.5),
        at(0.9),
        at(0.99),
        at(0.999),
        show(Duration::from_micros(histogram.max()))
    ));
}

/// A duration with three digits or so.
fn show(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros < 10_000 {
        format!("{micros} us")
    } else if micros < 10_000_000 {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

fn new_sessions(target: &Target, sessions: u64, request: &Request) -> anyhow::Result<()> {
    let (address, template) = template(target, request)?;
    let latencies_of = new_sessions::measure(address, &template, sessions)?;
    let (first, next) = (&latencies_of.first, &latencies_of.next);
    let ratio = first.value_at_quantile(0.5) as f64 / next.value_at_quantile(0.5).max(1) as f64;
    if target.json {
        output::value(&json!({
            "sessions": sessions,
            "first_us": latencies(first),
            "next_us": latencies(next),
            "ratio_of_p50": ratio,
        }));
    } else {
        print_latencies("first request", first);
        print_latencies("next request", next);
        output::line_out(&format!("ratio of p50   {ratio:.2}"));
    }
    Ok(())
}
