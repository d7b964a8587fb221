//! `fulmar plan`: the papers' models on the user's own numbers.

use std::path::{Path, PathBuf};

use fulmar_sim::plan::{Latency, PlacementPlan, Provision};
use fulmar_sim::report::Title;
use fulmar_sim::settings::{self, Sources};
use fulmar_sim::{Run, Scenario};
use serde_json::json;

use crate::{Target, output, sim};

/// Characters of a plot in the terminal.
const PLOT: (usize, usize) = (60, 14);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// How many containers to dedicate to single sessions, and the mean latency then.
    Latency {
        /// Clients that call.
        #[arg(long)]
        clients: Option<u32>,
        /// Containers in all.
        #[arg(long)]
        containers: Option<u32>,
        /// Calls per second of each client.
        #[arg(long)]
        rate: Option<f64>,
        /// Mean service time of a call with local state, in seconds.
        #[arg(long)]
        local_seconds: Option<f64>,
        /// The same with remote state, access to it included.
        #[arg(long)]
        remote_seconds: Option<f64>,
        #[command(flatten)]
        common: Common,
    },
    /// How many containers are needed so that hardly anybody who wants local state is refused.
    Provision {
        /// Clients that call.
        #[arg(long)]
        clients: Option<u32>,
        /// Share of the time in which a client wants local state.
        #[arg(long)]
        local_share: Option<f64>,
        /// Calls per second of each client.
        #[arg(long)]
        rate: Option<f64>,
        /// Mean service time of a call with remote state, in seconds.
        #[arg(long)]
        remote_seconds: Option<f64>,
        /// Largest probability of a refusal.
        #[arg(long)]
        max_refused: Option<f64>,
        #[command(flatten)]
        common: Common,
    },
    /// Where keys should live. Without a file: an example.
    Placement {
        /// Also look for the optimum with a solver, for so many seconds at most.
        #[arg(long)]
        exact_seconds: Option<f64>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Common {
    /// A file with the settings (.toml); flags win over it.
    #[arg(long)]
    file: Option<PathBuf>,
    /// Print the file with every setting at its default, and do nothing else.
    #[arg(long)]
    show: bool,
    /// Folder for results.csv, quantiles.csv, report.json and report.html.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let flag = |name: &str, value: Option<f64>| value.map(|value| format!("{name}={value}"));
    let count = |name: &str, value: Option<u32>| value.map(|value| format!("{name}={value}"));
    match verb {
        Verb::Latency {
            clients,
            containers,
            rate,
            local_seconds,
            remote_seconds,
            common,
        } => {
            let set = [
                count("clients", *clients),
                count("containers", *containers),
                flag("rate", *rate),
                flag("local_seconds", *local_seconds),
                flag("remote_seconds", *remote_seconds),
            ];
            plan::<Latency>(target, common, set.into_iter().flatten().collect())
        }
        Verb::Provision {
            clients,
            local_share,
            rate,
            remote_seconds,
            max_refused,
            common,
        } => {
            let set = [
                count("clients", *clients),
                flag("local_share", *local_share),
                flag("rate", *rate),
                flag("remote_seconds", *remote_seconds),
                flag("max_refused", *max_refused),
            ];
            plan::<Provision>(target, common, set.into_iter().flatten().collect())
        }
        Verb::Placement {
            exact_seconds,
            common,
        } => {
            let set = flag("exact_seconds", *exact_seconds);
            plan::<PlacementPlan>(target, common, set.into_iter().collect())
        }
    }
}

fn plan<S: Scenario>(target: &Target, common: &Common, set: Vec<String>) -> anyhow::Result<()> {
    if common.show {
        output::bytes_out(S::FILE.as_bytes());
        return Ok(());
    }
    let sources = match &common.file {
        Some(path) => Sources::read(Path::new(path), set)?,
        None => Sources { file: None, set },
    };
    let report = S::run(&settings::resolve::<S>(&sources)?, &Run::quiet(0))?;
    report.check()?;
    let title = Title {
        scenario: S::NAME,
        summary: S::SUMMARY,
        seed: 0,
        set: &sources.set,
    };
    if let Some(out) = &common.out {
        report.write(&title, out)?;
        eprintln!("wrote {}", out.join("report.html").display());
    }
    if target.json {
        output::value(&json!({ "run": title, "report": report }));
        return Ok(());
    }
    sim::show(&report);
    for plot in &report.plots {
        println!("\n{}", plot.text(PLOT.0, PLOT.1).trim_end());
    }
    Ok(())
}
