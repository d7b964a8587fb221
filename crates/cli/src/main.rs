//! The command line of Fulmar: one binary, noun then verb. Data goes to standard output, everything
//! else to standard error; `--json` everywhere.

mod bench;
mod ca;
mod client;
mod dead_letters;
mod demo;
mod deploy;
mod dev;
mod explain;
mod functions;
mod invoke;
mod logs;
mod namespaces;
mod new;
mod node;
mod nodes;
mod output;
mod plan;
mod process;
mod sessions;
mod sim;
mod state;
mod template;
mod token;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use client::{Refusal, Target};

/// Many small allocations for each request, on several threads: less time than with the system's
/// allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Stateful functions for the edge-cloud continuum.
#[derive(Debug, Parser)]
#[command(name = "fulmar", version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start one node with everything embedded.
    Dev(dev::Args),
    /// Start one of many nodes.
    Node(node::Args),
    /// See an edge-cloud continuum at work: seven nodes, a car, a factory, and a table at the end.
    Demo(demo::Args),
    /// The nodes of the cluster.
    Nodes {
        #[command(subcommand)]
        verb: nodes::Verb,
    },
    /// Make a function from a template.
    New {
        /// Its language.
        #[command(subcommand)]
        language: new::Language,
    },
    /// Deploy a function.
    Deploy(deploy::Args),
    /// Invoke a function.
    Invoke(invoke::Args),
    /// Deployed functions.
    Functions {
        #[command(subcommand)]
        verb: functions::Verb,
    },
    /// Sessions with state.
    Sessions {
        #[command(subcommand)]
        verb: sessions::Verb,
    },
    /// Keys and values.
    State {
        #[command(subcommand)]
        verb: state::Verb,
    },
    /// Asynchronous invocations.
    Invocations {
        #[command(subcommand)]
        verb: invoke::Verb,
    },
    /// Messages that were given up.
    DeadLetters {
        #[command(subcommand)]
        verb: dead_letters::Verb,
    },
    /// Certificates for a small deployment.
    Ca {
        #[command(subcommand)]
        verb: ca::Verb,
    },
    /// Namespaces, and what their functions may have in all.
    Namespaces {
        #[command(subcommand)]
        verb: namespaces::Verb,
    },
    /// Tokens that let their bearers in.
    Token {
        #[command(subcommand)]
        verb: token::Verb,
    },
    /// Why a function's sessions are where they are.
    Explain(explain::Args),
    /// What a function wrote.
    Logs(logs::Args),
    /// How the node is.
    Status,
    /// Measure a running node, or another server.
    Bench {
        #[command(subcommand)]
        verb: bench::Verb,
    },
    /// Simulate the edge-cloud continuum.
    Sim {
        #[command(subcommand)]
        verb: sim::Verb,
    },
    /// Plan a deployment with the papers' models.
    Plan {
        #[command(subcommand)]
        verb: plan::Verb,
    },
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments
        .next_if(|first| first == process::CONFINE)
        .is_some()
    {
        // Alone in its process, before anything else runs.
        let Err(error) = fulmar_node::become_program(arguments);
        eprintln!("{error}");
        return ExitCode::from(126);
    }
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<Refusal>() {
                Some(refusal) => eprintln!("error[{}]: {error:#}", refusal.code()),
                None => eprintln!("error: {error:#}"),
            }
            // What the user asked for makes no sense, as clap has it.
            match error.is::<fulmar_sim::Error>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let target = &cli.target;
    match cli.command {
        Command::Dev(args) => dev::run(args),
        Command::Node(args) => node::run(args),
        Command::Nodes { verb } => nodes::run(target, &verb),
        Command::New { language } => new::run(target, &language),
        Command::Deploy(args) => deploy::run(target, &args),
        Command::Invoke(args) => invoke::run(target, &args),
        Command::Demo(args) => demo::run(target.json, &args),
        Command::Functions { verb } => functions::run(target, &verb),
        Command::Sessions { verb } => sessions::run(target, &verb),
        Command::State { verb } => state::run(target, &verb),
        Command::Invocations { verb } => invoke::invocations(target, &verb),
        Command::DeadLetters { verb } => dead_letters::run(target, &verb),
        Command::Ca { verb } => ca::run(target, &verb),
        Command::Namespaces { verb } => namespaces::run(target, &verb),
        Command::Token { verb } => token::run(target, &verb),
        Command::Explain(args) => explain::run(target, &args),
        Command::Logs(args) => logs::run(target, &args),
        Command::Status => {
            output::value(&target.client()?.json("GET", "/admin/node", None)?);
            Ok(())
        }
        Command::Bench { verb } => bench::run(target, &verb),
        Command::Sim { verb } => sim::run(target, &verb),
        Command::Plan { verb } => plan::run(target, &verb),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "fulmar", &mut script);
            output::bytes_out(&script);
            Ok(())
        }
    }
}
