//! `mvot`: multi-view object tracking on a Fulmar node, and the frames to try it with.

mod backgrounds;
mod dataset;
mod demo;
mod deploy;
mod generate;
mod live;
mod node;
mod offline;
mod outcome;
mod plot;
mod progress;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

/// Multi-view object tracking: seven cameras, one set of tracks.
#[derive(Debug, Parser)]
#[command(name = "mvot", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a folder of frames: people on a plaza, seven cameras, the truth.
    Generate(generate::Args),
    /// Add to a folder of frames what each camera sees without people.
    Backgrounds(backgrounds::Args),
    /// Send a folder of frames to a node and collect the tracks.
    Run(live::Args),
    /// Generate frames, start a node, run, stop it.
    Demo(demo::Args),
    /// Track without a node, on this machine's cores.
    Offline(offline::Input),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    let runtime = || {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
    };
    match command {
        Command::Generate(args) => {
            generate::run(&args)?;
            eprintln!(
                "frames of {} timesteps are in {}",
                args.steps,
                args.out.display()
            );
        }
        Command::Backgrounds(args) => backgrounds::run(&args)?,
        Command::Run(args) => {
            let (metrics, failed) = runtime()?.block_on(live::run(&args))?;
            print!("{metrics}");
            eprintln!(
                "detections, tracks, summary and picture are in {}",
                args.input.out.display()
            );
            if failed > 0 {
                bail!("{failed} frames failed");
            }
        }
        Command::Demo(args) => {
            runtime()?.block_on(demo::run(&args))?;
        }
        Command::Offline(input) => {
            print!("{}", offline::run(&input)?);
            eprintln!(
                "detections, tracks, summary and picture are in {}",
                input.out.display()
            );
        }
    }
    Ok(())
}
