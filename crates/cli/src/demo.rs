//! `fulmar demo`: an edge-cloud continuum on this machine, and what the platform makes of it.
//!
//! A cloud node and six edge nodes on two sites run as processes of their own, with the ways between them emulated. A car
//! drives past the nodes of one site and parks; the arms of a factory report at the other, until one of them begins to
//! fail. The same is played five times: with `execution_model = "auto"`, and with each of the four models fixed.

mod board;
mod continuum;
mod play;
mod screen;
mod script;
mod table;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use fulmar_model::ExecutionModel;

use board::{Board, Recorder};
use continuum::Continuum;
use screen::Screen;

/// What is compared, in this order.
const MODELS: [ExecutionModel; 5] = [
    ExecutionModel::Auto,
    ExecutionModel::InFunction,
    ExecutionModel::InEdge,
    ExecutionModel::External,
    ExecutionModel::InClient,
];

/// Arguments of `fulmar demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Seconds of each of the two phases; there are five times two.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=3600))]
    seconds: u64,
    /// Write everything that is seen to this file, as JSON Lines.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Print lines, also on a terminal.
    #[arg(long)]
    plain: bool,
}

/// Plays it, and ends with the table.
pub(crate) fn run(json: bool, args: &Args) -> anyhow::Result<()> {
    let stop = stop_on_signals()?;
    let recorder = Arc::new(Recorder::open(args.record.as_deref())?);
    eprintln!("starting a cloud node and six edge nodes ...");
    let continuum = Continuum::start()?;
    for model in MODELS {
        continuum.deploy(model)?;
        continuum.warm_up(model)?;
    }
    continuum.shape()?;
    continuum.settle()?;
    let script = script::script(args.seconds as f64);
    let mut outcomes = Vec::new();
    eprintln!("rehearsing ...");
    let unseen = Arc::new(Recorder::open(None)?);
    for model in MODELS {
        let board = Arc::new(Board::new(model, unseen.clone()));
        play::play(
            &continuum,
            &script::rehearsal(),
            &board,
            &mut Screen::Dark,
            &stop,
        )?;
    }
    continuum.settle()?;
    let mut screen = Screen::open(args.plain || json)?;
    for model in MODELS {
        let board = Arc::new(Board::new(model, recorder.clone()));
        let outcome = play::play(&continuum, &script, &board, &mut screen, &stop)
            .with_context(|| format!("playing it with {model}"))?;
        if stop.load(Ordering::Relaxed) {
            drop(screen);
            bail!("stopped before the end");
        }
        recorder.outcome(&outcome);
        outcomes.push(outcome);
    }
    drop(screen);
    recorder.finish()?;
    table::print(json, &outcomes);
    match outcomes.iter().find(|outcome| outcome.wrong > 0) {
        Some(outcome) => bail!(
            "{} answers of {} were not the count that was to come: something was lost or counted twice",
            outcome.wrong,
            outcome.model
        ),
        None => Ok(()),
    }
}

/// Set when the demonstration is to end.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let stop = Arc::new(AtomicBool::new(false));
    let set = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            runtime.block_on(async {
                let (Ok(mut interrupt), Ok(mut terminate)) = (
                    signal(SignalKind::interrupt()),
                    signal(SignalKind::terminate()),
                ) else {
                    return;
                };
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                set.store(true, Ordering::Relaxed);
            });
        })?;
    Ok(stop)
}
