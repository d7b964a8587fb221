//! `fulmar node`: one of many nodes.

use std::path::PathBuf;

use fulmar_node::{NodeConfig, NodeOptions};

use crate::process::Process;

/// Arguments of `fulmar node`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The node's configuration.
    #[arg(long, value_name = "FILE", default_value = "node.toml")]
    config: PathBuf,
    #[command(flatten)]
    process: Process,
}

/// Runs the node until Ctrl-C or SIGTERM.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let config = NodeConfig::read(&args.config)?;
    args.process.run(|threads| async move {
        let tls = match &config.tls {
            Some(tls) => Some(fulmar_node::tls::server(&tls.cert, &tls.key)?),
            None => None,
        };
        let options = NodeOptions {
            tls,
            hot_bytes: config.limits.hot_memory.as_usize(),
            reserve_disk_bytes: config.limits.reserve_disk.0,
            max_workers: config.limits.max_workers,
            worker_bytes: config.limits.worker_memory.map(|bytes| bytes.0),
            worker_cpu_millis: match config.limits.worker_cpu {
                Some(cpu) => Some(cpu.millis()),
                None => NodeOptions::default().worker_cpu_millis,
            },
            header_timeout: config.limits.client_timeout.get(),
            body_timeout: config.limits.client_timeout.get(),
            threads,
            external: config
                .external
                .as_ref()
                .map(|external| (external.url.clone(), external.options.clone())),
            cluster: Some(config.clone()),
            ..NodeOptions::default()
        };
        Ok((config.data, config.listen.http, options))
    })
}
