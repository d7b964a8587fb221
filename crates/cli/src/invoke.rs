//! `fulmar invoke`: one invocation, and `fulmar invocations`: asynchronous ones.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;
use ureq::SendBody;

use crate::client::{Client, Target, read, segment, succeed};
use crate::output;
use crate::state::argument_bytes;

/// Pause between two looks at an invocation that is not finished.
const LOOK: Duration = Duration::from_millis(50);

/// Arguments of `fulmar invoke`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The function.
    function: String,
    /// The session; without it the function runs without state of its own.
    session: Option<String>,
    /// The body; @FILE reads a file, - standard input.
    #[arg(long, short, default_value = "")]
    data: String,
    /// Makes a repetition get the first answer.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// Do not wait for the answer: print where it will be.
    #[arg(long = "async")]
    asynchronous: bool,
    /// With --async: wait until it is finished and print the answer.
    #[arg(long, requires = "asynchronous")]
    wait: bool,
    /// HTTP method, for functions that speak HTTP.
    #[arg(long, default_value = "POST")]
    method: String,
    /// Path below the session, for functions that speak HTTP.
    #[arg(long, default_value = "")]
    path: String,
    /// A header, NAME: VALUE; may be repeated.
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
}

pub(crate) fn run(target: &Target, args: &Args) -> anyhow::Result<()> {
    let client = target.client()?;
    let mut path = format!("/fn/{}", segment(&target.function(&args.function)));
    match (&args.session, args.path.is_empty()) {
        (Some(session), _) => path += &format!("/{}", segment(session)),
        (None, false) => path += "/-",
        (None, true) => {}
    }
    if !args.path.is_empty() {
        path += &format!("/{}", args.path.trim_start_matches('/'));
    }
    let mut headers = Vec::new();
    for header in &args.header {
        let (name, value) = header
            .split_once(':')
            .with_context(|| format!("{header:?} is not NAME: VALUE"))?;
        headers.push((name.trim(), value.trim()));
    }
    if let Some(key) = &args.idempotency_key {
        headers.push(("idempotency-key", key));
    }
    if args.asynchronous {
        headers.push(("prefer", "respond-async"));
    }
    let body = argument_bytes(&args.data)?;
    // GET and its like have no body unless one is given.
    let has_body = !body.is_empty() || ["POST", "PUT", "PATCH"].contains(&args.method.as_str());
    let body = has_body.then(|| SendBody::from_owned_reader(std::io::Cursor::new(body)));
    let response = succeed(client.send(&args.method, &path, &headers, body)?)?;
    let location = response
        .headers()
        .get("location")
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    match location.filter(|_| args.asynchronous) {
        Some(location) if args.wait => {
            await_end(&client, &location)?;
            print(
                target,
                succeed(client.send("GET", &format!("{location}/result"), &[], None)?)?,
            )
        }
        _ => print(target, response),
    }
}

fn await_end(client: &Client, location: &str) -> anyhow::Result<()> {
    loop {
        match client.json("GET", location, None)?["status"].as_str() {
            Some("pending") => std::thread::sleep(LOOK),
            Some(_) => return Ok(()),
            None => bail!("the node does not say how far {location} is"),
        }
    }
}

fn print(target: &Target, response: ureq::http::Response<ureq::Body>) -> anyhow::Result<()> {
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned)
    };
    let (status, invocation, replayed) = (
        response.status().as_u16(),
        header("fulmar-invocation"),
        header("idempotency-replayed"),
    );
    let body = read(response)?;
    if target.json {
        let mut shown = output::content(&body);
        shown["status"] = json!(status);
        shown["invocation"] = json!(invocation);
        shown["replayed"] = json!(replayed.is_some());
        output::value(&shown);
        return Ok(());
    }
    output::bytes_out(&body);
    if !body.is_empty()
        && !body.ends_with(b"\n")
        && std::io::IsTerminal::is_terminal(&std::io::stdout())
    {
        output::line_out("");
    }
    Ok(())
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Show how far an asynchronous invocation is.
    Show {
        /// Its identifier.
        id: String,
    },
    /// Print its result.
    Result {
        /// Its identifier.
        id: String,
    },
}

pub(crate) fn invocations(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    match verb {
        Verb::Show { id } => {
            output::value(&client.json("GET", &format!("/invocations/{}", segment(id)), None)?)
        }
        Verb::Result { id } => print(
            target,
            client.call("GET", &format!("/invocations/{}/result", segment(id)), None)?,
        )?,
    }
    Ok(())
}
