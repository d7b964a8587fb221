//! Fulmar and its peers on one machine, in turn: the same load on each, round by round, so that a
//! machine that gets slower or busier is so for all of them.
//!
//! In each round each server starts with an empty folder, is loaded, read back and stopped. A run
//! with errors is void: it is shown, left out of the medians and fails the comparison. So do counters
//! that are not what the answers say.

mod counters;
mod load;
mod machine;
mod probe;
mod process;
mod report;
mod results;
mod server;
mod setup;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Parser;

use load::Generator;
use results::{Record, Results};
use server::Server;
use setup::Setup;
use target::{Phase, Target};

/// Compares Fulmar with its peers.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which servers, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = Target::ALL)]
    targets: Vec<Target>,
    /// Which loads, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = Phase::ALL)]
    phases: Vec<Phase>,
    /// How often each server has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each load.
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Connections.
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Sessions.
    #[arg(long, default_value_t = 1000)]
    sessions: u32,
    /// What makes the load.
    #[arg(long, default_value_t = Generator::Wrk)]
    generator: Generator,
    /// Ports of 127.0.0.1 from here on are used.
    #[arg(long, default_value_t = 17400)]
    port: u16,
    /// The binary of Fulmar.
    #[arg(long)]
    fulmar: PathBuf,
    /// Folder with counter.wasm and five.wasm.
    #[arg(long)]
    functions: PathBuf,
    /// Folder with this program's Lua script and the peers' configuration: bench/ of the repository.
    #[arg(long)]
    bench: PathBuf,
    /// Folder for data, logs and what npm installed. It has to be on the disk that is to be measured.
    #[arg(long)]
    work: PathBuf,
    /// File to which each result is added as a line of JSON [default: WORK/results.jsonl].
    #[arg(long)]
    results: Option<PathBuf>,
}

fn main() -> ExitCode {
    match compare(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("error: some runs are void or some counters wrong, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn compare(arguments: &Arguments) -> anyhow::Result<bool> {
    ensure!(
        arguments.rounds > 0 && arguments.seconds > 0,
        "nothing to do"
    );
    let setup = Setup::new(arguments)?;
    let file = arguments.results.clone();
    let mut results = Results::create(&file.unwrap_or_else(|| setup.work.join("results.jsonl")))?;
    results.add(Record::Machine(machine::describe(&setup, arguments)?))?;
    let targets = &arguments.targets;
    for round in 0..arguments.rounds {
        for at in 0..targets.len() {
            // Each round begins with another one.
            let target = targets[(at + round as usize) % targets.len()];
            eprintln!("round {} of {}: {target}", round + 1, arguments.rounds);
            turn(arguments, &setup, target, round, &mut results).with_context(|| {
                format!("{target} (its logs are in {})", setup.logs().display())
            })?;
        }
    }
    report::print(arguments, &results);
    Ok(results.are_sound())
}

/// One server's turn.
fn turn(
    arguments: &Arguments,
    setup: &Setup,
    target: Target,
    round: u32,
    results: &mut Results,
) -> anyhow::Result<()> {
    setup.clear(target)?;
    // What is done once (creating a database, deploying) is no part of the start that is timed.
    Server::start(setup, target, true)?.stop()?;
    let server = Server::start(setup, target, false)?;
    results.add(Record::Start(results::Start {
        target,
        round,
        to_first_response_ms: server.to_first_response.as_secs_f64() * 1e3,
        idle_bytes: server.idle_bytes()?,
    }))?;

    let mut answered = counters::Answered::default();
    for &phase in &arguments.phases {
        let Some(path) = target.path(phase) else {
            continue;
        };
        let load = load::Load::new(arguments, phase, path);
        let generator = arguments.generator;
        for _ in 0..load::MAX_WARM_UPS {
            let warm_up = generator.run(setup, &server, &load.warm_up())?;
            answered.add(path, &warm_up);
            if answered.of(path) >= 2 * u64::from(arguments.sessions) {
                break;
            }
        }
        let run = load::measured(generator, setup, &server, &load, target, phase, round)?;
        answered.add(path, &run.outcome);
        results.add(Record::Run(run))?;
        if (target, phase) == (Target::Fulmar, Phase::Single) {
            // Right after what it is compared with, so that the disk is in the same mood.
            results.add(Record::Sync(probe::measure(&setup.work, round)?))?;
        }
    }
    for check in answered.check(&server, arguments.sessions)? {
        results.add(Record::Counters(results::Counters {
            target,
            round,
            check,
        }))?;
    }
    if target != Target::Axum {
        let path = target.counter_path();
        results.add(Record::NewSessions(load::new_sessions(
            setup, &server, path, target, round,
        )?))?;
    }
    server.stop()
}
