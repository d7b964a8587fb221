//! `mvot`: multi-view object tracking on a Fulmar node, and the frames to try it with.

mod dataset;
mod generate;
mod offline;
mod outcome;
mod plot;
mod progress;

use std::process::ExitCode;

use anyhow::Result;
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
    match command {
        Command::Generate(args) => {
            generate::run(&args)?;
            eprintln!("frames of {} timesteps are in {}", args.steps, args.out.display());
        }
        Command::Offline(input) => {
            print!("{}", offline::run(&input)?);
            eprintln!("detections, tracks, metrics and picture are in {}", input.out.display());
        }
    }
    Ok(())
}
