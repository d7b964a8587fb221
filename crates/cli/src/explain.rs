//! `fulmar explain`: why sessions are where they are.

use serde_json::Value;

use crate::client::{Target, segment};
use crate::output;

/// Arguments of `fulmar explain`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The function.
    function: String,
    /// Only this session.
    session: Option<String>,
}

/// Prints the last decisions, with what each was taken from.
pub(crate) fn run(target: &Target, args: &Args) -> anyhow::Result<()> {
    let mut path = format!(
        "/admin/decisions?function={}",
        segment(&target.function(&args.function))
    );
    if let Some(session) = &args.session {
        path += &format!("&session={}", segment(session));
    }
    let found = target.client()?.json("GET", &path, None)?;
    if target.json {
        output::value(&found);
        return Ok(());
    }
    let decisions = found["decisions"].as_array().map_or(&[][..], |all| all);
    if decisions.is_empty() {
        eprintln!(
            "no decisions are remembered: sessions of which other nodes take requests are looked at"
        );
    }
    for decision in decisions {
        for line in lines(decision) {
            output::line_out(&line);
        }
    }
    Ok(())
}

/// A decision in words.
fn lines(decision: &Value) -> Vec<String> {
    let text = |key: &str| decision[key].as_str().unwrap_or("?");
    let number = |value: &Value| value.as_f64().unwrap_or(0.0);
    let to = decision["to"].as_str().map(|to| format!(" to {to}"));
    if let Some(estimates) = decision["estimates"].as_array() {
        return invocation(decision, to.unwrap_or_default(), estimates);
    }
    let mut lines = vec![format!(
        "{} {}/{} at {}: {}{} ({:.1} requests/s are taken there, {} bytes of state)",
        text("at"),
        text("function"),
        text("session"),
        text("node"),
        text("verdict"),
        to.unwrap_or_default(),
        number(&decision["requests_per_second_here"]),
        decision["state_bytes"],
    )];
    if let Some(model) = decision["model"].as_str() {
        lines.truncate(0);
        lines.push(format!(
            "{} {}/{} at {}: {} to {model} ({:.1} requests/s)",
            text("at"),
            text("function"),
            text("session"),
            text("node"),
            text("verdict"),
            number(&decision["requests_per_second_here"]),
        ));
    }
    let latency = &decision["latency"];
    if latency.is_object() {
        let ms = |key: &str| match latency[key].as_f64() {
            Some(seconds) => format!("{:.2} ms", seconds * 1e3),
            None => "without end".to_owned(),
        };
        lines.push(format!(
            "    {} sessions share {} workers: a mean latency of {} is expected now, of {} when all is changed",
            latency["sessions"],
            latency["workers"],
            ms("now_seconds"),
            ms("then_seconds"),
        ));
    }
    let promise = &decision["promise"];
    if promise.is_object() {
        let ms = |key: &str| number(&promise[key]) * 1e3;
        lines.push(format!(
            "    accesses to the state are promised to take {:.1} ms in the mean, take {:.1} ms now, and {:.1} ms when all is moved",
            ms("max_data_access_seconds"),
            ms("now_seconds"),
            ms("then_seconds"),
        ));
    }
    for candidate in decision["candidates"].as_array().into_iter().flatten() {
        lines.push(format!(
            "    {}: {:.1} requests/s, round trip {:.1} ms, {:.1} MB/s; a move saves {:.1} ms of waiting each second and costs {:.1} ms",
            candidate["node"].as_str().unwrap_or("?"),
            number(&candidate["requests_per_second"]),
            number(&candidate["round_trip_seconds"]) * 1e3,
            number(&candidate["bytes_per_second"]) / 1e6,
            number(&candidate["saves_seconds_per_second"]) * 1e3,
            number(&candidate["costs_seconds"]) * 1e3,
        ));
    }
    if let Some(error) = decision["error"].as_str() {
        lines.push(format!("    {error}"));
    }
    lines
}

/// A decision about one invocation in words.
fn invocation(decision: &Value, to: String, estimates: &[Value]) -> Vec<String> {
    let text = |key: &str| decision[key].as_str().unwrap_or("?");
    let session = match text("session") {
        "" => String::new(),
        session => format!("/{session}"),
    };
    let mut lines = vec![format!(
        "{} {}{session} at {}: {}{to}",
        text("at"),
        text("function"),
        text("node"),
        text("verdict"),
    )];
    for estimate in estimates {
        let ms = |key: &str| estimate[key].as_f64().unwrap_or(f64::INFINITY) * 1e3;
        let rejected = estimate["rejected"].as_str();
        lines.push(format!(
            "    {}: an answer is expected after {:.1} ms, {:.1} ms of them for an access to the state{}",
            estimate["node"].as_str().unwrap_or("?"),
            ms("response_seconds"),
            ms("data_seconds"),
            rejected.map_or(String::new(), |why| format!("; {why}")),
        ));
    }
    lines
}
