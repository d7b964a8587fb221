//! A node as a process: logs, threads, signals, and the words that it starts and stops with.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use fulmar_node::{Node, NodeOptions, Submitters};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// First argument of this binary that makes it a launcher of programs. Not for people.
pub(crate) const CONFINE: &str = "confine-program";

/// How this binary becomes a program of a function.
fn launcher() -> anyhow::Result<Vec<String>> {
    let own = std::env::current_exe().context("where this binary is")?;
    let own = own
        .to_str()
        .context("the path of this binary is not UTF-8")?;
    Ok(vec![own.to_owned(), CONFINE.to_owned()])
}

/// Flags of every command that runs a node.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Process {
    /// Write the ports as JSON, {"http": PORT, "peer": PORT}, to this file once the node is ready.
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
    /// What to log, as in `info` or `fulmar_node=debug`.
    #[arg(long, env = "FULMAR_LOG", default_value = "info")]
    log: String,
    /// Log as JSON Lines.
    #[arg(long)]
    log_json: bool,
}

impl Process {
    /// Runs a node until Ctrl-C or SIGTERM. `prepare` says where its data is, where it listens, and what
    /// else there is to say.
    pub(crate) fn run<F>(
        self,
        prepare: impl FnOnce(Arc<Submitters>) -> F + Send,
    ) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<(PathBuf, SocketAddr, NodeOptions)>>,
    {
        let filter =
            EnvFilter::try_new(&self.log).with_context(|| format!("--log {}", self.log))?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr);
        if self.log_json {
            log.json().init();
        } else {
            log.with_target(false)
                .with_ansi(std::io::stderr().is_terminal())
                .init();
        }
        fulmar_node::clock::keep();
        let count = std::thread::available_parallelism()?.get();
        let threads = Arc::new(Submitters::new(count));
        let (parked, unparked) = (threads.clone(), threads.clone());
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(count)
            .on_thread_park(move || parked.parked())
            .on_thread_unpark(move || unparked.unparked())
            .enable_all()
            .build()?;
        runtime.block_on(async {
            // Listened for from the start, so that an early signal also stops cleanly.
            let mut interrupt = signal(SignalKind::interrupt())?;
            let mut terminate = signal(SignalKind::terminate())?;
            let (data, listen, mut options) = prepare(threads).await?;
            options.launcher = launcher()?;
            let scheme = if options.tls.is_some() {
                "https"
            } else {
                "http"
            };
            let starting = Node::start(&data, listen, options);
            let node = tokio::select! {
                node = starting => node?,
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
            };
            if let Some(file) = &self.ports_file {
                write_ports(file, &node)?;
            }
            greet(&node, scheme, listen.port());
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            eprintln!("stopping: finishing what runs");
            node.stop().await?;
            eprintln!("stopped; everything is on disk");
            Ok(())
        })
    }
}

fn write_ports(file: &Path, node: &Node) -> anyhow::Result<()> {
    let mut ports = json!({ "http": node.address().port() });
    if let Some(peer) = node.peer_address() {
        ports["peer"] = peer.port().into();
    }
    fulmar_state::datadir::write_durably(file, ports.to_string().as_bytes())
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The address and what to try next.
fn greet(node: &Node, scheme: &str, asked_port: u16) {
    let address = node.address();
    println!(
        "fulmar is ready on {scheme}://{address} (data in {})",
        node.data().display()
    );
    let node_flag = if asked_port == 7400 && scheme == "http" {
        String::new()
    } else {
        format!(" --node {scheme}://{address}")
    };
    println!("\nTry, in another terminal:");
    if node.peer_address().is_some() {
        println!("  fulmar nodes ls{node_flag}              # this node and the others");
    }
    match node.functions().first() {
        None => {
            println!("  fulmar new rust hello              # a function from a template");
            println!(
                "  fulmar deploy{node_flag} hello             # after building it as its README says"
            );
            println!(
                "  fulmar invoke{node_flag} hello world       # session `world` of function `hello`"
            );
        }
        Some(function) => {
            println!("  fulmar functions ls{node_flag}");
            println!("  fulmar invoke{node_flag} {function} my-session --data 1");
            println!("  fulmar sessions ls{node_flag}");
        }
    }
}
