//! `fulmar dev`: one node with everything embedded.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use anyhow::bail;
use fulmar_node::NodeOptions;

use crate::process::Process;

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
    /// Folder that holds everything the node stores.
    #[arg(long, value_name = "DIR", default_value = "./.fulmar")]
    data: PathBuf,
    #[command(flatten)]
    process: Process,
    /// Memory for hot sessions in bytes; above it idle ones are let go.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    hot_memory: fulmar_model::ByteSize,
    /// Room on the disk below which invocations are refused.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    reserve_disk: fulmar_model::ByteSize,
    /// Live workers at once.
    #[arg(long, value_name = "COUNT", default_value_t = 2000)]
    max_workers: u32,
    /// Store that keeps the sessions of functions with `execution_model = "external"`: redis://HOST:PORT,
    /// postgres://USER@HOST/DATABASE, s3://BUCKET/PREFIX, or a folder.
    #[arg(
        long,
        value_name = "URL",
        env = "FULMAR_EXTERNAL",
        hide_env_values = true
    )]
    external: Option<String>,
    /// Time that a client has to send a request's head, and between two parts of its body.
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    client_timeout: fulmar_model::Duration,
}

/// Runs the node until Ctrl-C or SIGTERM.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let Args { process, .. } = &args;
    let process = process.clone();
    process.run(|threads| async move {
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
        let options = NodeOptions {
            tls,
            hot_bytes: args.hot_memory.as_usize(),
            reserve_disk_bytes: args.reserve_disk.0,
            max_workers: args.max_workers,
            header_timeout: args.client_timeout.get(),
            body_timeout: args.client_timeout.get(),
            threads,
            external: args.external.clone().map(|url| (url, BTreeMap::new())),
            ..NodeOptions::default()
        };
        let listen = SocketAddr::from((args.listen, args.port));
        Ok((args.data, listen, options))
    })
}
