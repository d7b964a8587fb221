//! `fulmar dev`: one node with everything embedded.

use std::io::IsTerminal;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use fulmar_node::{Node, NodeOptions, Submitters};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Arguments of `fulmar dev`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address to listen on; beyond this machine only with TLS, or with --insecure.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    listen: IpAddr,
    /// Listen beyond this machine although tokens and data go over the network in the clear, as behind
    /// a proxy that speaks TLS.
    #[arg(long)]
    insecure: bool,
    /// Certificate chain for HTTPS, PEM; see `fulmar ca`.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, PEM.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Port; 0 takes a free one.
    #[arg(long, default_value_t = 7400)]
    port: u16,
    /// Write the ports as JSON, {"http": PORT}, to this file once the node is ready.
    #[arg(long, value_name = "FILE")]
    ports_file: Option<PathBuf>,
    /// Folder that holds everything the node stores.
    #[arg(long, value_name = "DIR", default_value = "./.fulmar")]
    data: PathBuf,
    /// What to log, as in `info` or `fulmar_node=debug`.
    #[arg(long, env = "FULMAR_LOG", default_value = "info")]
    log: String,
    /// Log as JSON Lines.
    #[arg(long)]
    log_json: bool,
    /// Memory for hot sessions in bytes; above it idle ones are let go.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    hot_memory: fulmar_model::ByteSize,
    /// Room on the disk below which invocations are refused.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    reserve_disk: fulmar_model::ByteSize,
    /// Live workers at once.
    #[arg(long, value_name = "COUNT", default_value_t = 2000)]
    max_workers: u32,
    /// Time that a client has to send a request's head, and between two parts of its body.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    client_timeout: fulmar_model::Duration,
}

/// Runs the node until Ctrl-C or SIGTERM.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).with_context(|| format!("--log {}", args.log))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if args.log_json {
        log.json().init();
    } else {
        log.with_target(false)
            .with_ansi(std::io::stderr().is_terminal())
            .init();
    }
    let count = std::thread::available_parallelism()?.get();
    let threads = Arc::new(Submitters::new(count));
    let (parked, unparked) = (threads.clone(), threads.clone());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(count)
        .on_thread_park(move || parked.parked())
        .on_thread_unpark(move || unparked.unparked())
        .enable_all()
        .build()?;
    runtime.block_on(serve(args, threads))
}

async fn serve(args: Args, threads: Arc<Submitters>) -> anyhow::Result<()> {
    // Listened for from the start, so that an early signal also stops cleanly.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => Some(fulmar_node::tls::server(certificates, key)?),
        _ => None,
    };
    if !args.listen.is_loopback() && tls.is_none() && !args.insecure {
        bail!(
            "listening on {} would send tokens and data over the network in the clear\n  fix: give --tls-cert and --tls-key (`fulmar ca` makes them), or say --insecure behind a proxy that speaks TLS",
            args.listen
        );
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let options = NodeOptions {
        tls,
        hot_bytes: args.hot_memory.as_usize(),
        reserve_disk_bytes: args.reserve_disk.0,
        max_workers: args.max_workers,
        header_timeout: args.client_timeout.get(),
        body_timeout: args.client_timeout.get(),
        threads,
        ..NodeOptions::default()
    };
    let listen = SocketAddr::from((args.listen, args.port));
    let node = Node::start(&args.data, listen, options).await?;
    if let Some(file) = &args.ports_file {
        write_ports(file, node.address().port())?;
    }
    greet(&node, scheme, args.port);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!("stopping: finishing what runs");
    node.stop().await?;
    eprintln!("stopped; everything is on disk");
    Ok(())
}

fn write_ports(file: &Path, http: u16) -> anyhow::Result<()> {
    let ports = serde_json::json!({ "http": http }).to_string();
    fulmar_state::datadir::write_durably(file, ports.as_bytes())
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
