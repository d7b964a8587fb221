//! `fulmar logs`: what a function wrote.

use std::io::{BufRead, BufReader};

use anyhow::Context;
use serde_json::Value;

use crate::client::{Target, segment};
use crate::output;

/// Arguments of `fulmar logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The function.
    function: String,
    /// Only lines of this session.
    #[arg(long)]
    session: Option<String>,
    /// Go on with what is still to come.
    #[arg(long, short)]
    follow: bool,
    /// Begin with the last so many lines.
    #[arg(long, default_value_t = 100)]
    tail: usize,
}

pub(crate) fn run(target: &Target, args: &Args) -> anyhow::Result<()> {
    let session = args.session.as_deref().map(segment);
    let session = session.map_or_else(String::new, |session| format!("&session={session}"));
    let path = format!(
        "/admin/logs/{}?tail={}&follow={}{session}",
        segment(&target.function(&args.function)),
        args.tail,
        args.follow
    );
    let response = target.client()?.call("GET", &path, None)?;
    for line in BufReader::new(response.into_body().into_reader()).lines() {
        let line = line.context("the log broke off")?;
        let entry: Value =
            serde_json::from_str(&line).context("the node sent a line that is not JSON")?;
        let text = |name: &str| entry[name].as_str().unwrap_or("-").to_owned();
        if target.json {
            output::line_out(&line);
        } else {
            output::line_out(&format!(
                "{} {:5} {} {}",
                text("time"),
                text("level"),
                text("session"),
                text("message")
            ));
        }
    }
    Ok(())
}
