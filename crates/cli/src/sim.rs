//! `fulmar sim`: runs the scenarios of the simulator.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use fulmar_sim::report::{Table, Title};
use fulmar_sim::scenarios::{self, Entry};
use fulmar_sim::settings::Sources;
use fulmar_sim::{Report, Run};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use crate::Target;
use crate::output;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// List the built-in scenarios.
    List,
    /// Print a scenario's file, with every setting at its default.
    Show {
        /// Its name.
        scenario: String,
    },
    /// Run a scenario and write its report.
    Run(RunArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// A built-in scenario, or a scenario file (.toml).
    scenario: String,
    /// Change a setting; lists take values with commas.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// How ds2p reads what its paper leaves open: as the authors' program does, as the text says, or as
    /// the nodes of this platform do.
    #[arg(long, value_parser = ["program", "paper", "fulmar"])]
    reading: Option<String>,
    /// Everything random follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Independent repetitions, instead of the scenario's own number.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    replications: Option<u32>,
    /// Threads that share the work; all cores if not given. The result does not depend on it.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    threads: Option<u32>,
    /// Folder for results.csv, quantiles.csv, report.json and report.html.
    #[arg(long)]
    out: PathBuf,
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    match verb {
        Verb::List => {
            list(target);
            Ok(())
        }
        Verb::Show { scenario } => {
            output::bytes_out(scenarios::find(scenario)?.file.as_bytes());
            Ok(())
        }
        Verb::Run(args) => run_scenario(target, args),
    }
}

fn list(target: &Target) {
    if target.json {
        let entry = |entry: &Entry| json!({ "name": entry.name, "summary": entry.summary });
        output::value(&scenarios::ALL.iter().map(entry).collect());
        return;
    }
    for entry in scenarios::ALL {
        println!("{:<16}{}", entry.name, entry.summary);
    }
}

fn run_scenario(target: &Target, args: &RunArgs) -> anyhow::Result<()> {
    let reading = args
        .reading
        .iter()
        .map(|reading| format!("reading={reading}"));
    let set: Vec<String> = args.set.iter().cloned().chain(reading).collect();
    let sources = match args.scenario.strip_suffix(".toml") {
        Some(_) => Sources::read(Path::new(&args.scenario), set)?,
        None => Sources { file: None, set },
    };
    let name = sources.scenario()?.unwrap_or_else(|| args.scenario.clone());
    let scenario = scenarios::find(&name)?;
    let mut run = Run::quiet(args.seed);
    run.replications = args.replications;
    if let Some(threads) = args.threads {
        run.threads = threads as usize;
    }
    if std::io::stderr().is_terminal() {
        let style =
            ProgressStyle::with_template("{bar:40} {percent:>3} %  {elapsed} of {duration}")?;
        run.progress = ProgressBar::no_length().with_style(style);
    }
    let report = scenario.run(&sources, &run)?;
    run.progress.finish_and_clear();
    let title = Title {
        scenario: scenario.name,
        summary: scenario.summary,
        seed: args.seed,
        set: &sources.set,
    };
    report.write(&title, &args.out)?;
    if target.json {
        output::value(&json!({ "run": title, "report": report }));
    } else {
        show(&report);
        eprintln!("wrote {}", args.out.join("report.html").display());
    }
    Ok(())
}

/// Tables, findings and notes as text.
pub(crate) fn show(report: &Report) {
    for shown in &report.tables {
        println!("{}", shown.title);
        print!("{}", columns(shown));
        println!();
    }
    for finding in &report.findings {
        let mark = if finding.holds { "yes" } else { " NO" };
        println!("{mark}  {} ({})", finding.claim, finding.evidence);
    }
    for note in &report.notes {
        println!("note: {note}");
    }
}

/// Cells under each other; the first column to the left, numbers to the right.
fn columns(table: &Table) -> String {
    let lines = || std::iter::once(&table.columns).chain(&table.rows);
    let width = |at: usize| {
        let cells = lines().filter_map(|line| line.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..table.columns.len()).map(width).collect();
    let mut text = String::new();
    for line in lines() {
        let cells = line.iter().zip(&widths).enumerate();
        let cells: Vec<String> = cells
            .map(|(at, (cell, width))| match at {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
