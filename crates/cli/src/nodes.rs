//! `fulmar nodes`: the nodes of the cluster.

use clap::Subcommand;

use crate::client::{Target, segment};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List them, and how each is reached from this one.
    Ls,
    /// Remove a node that is gone for good, so that another may take its name.
    Forget {
        /// The node.
        name: String,
    },
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    match verb {
        Verb::Ls => {
            let found = client.json("GET", "/admin/nodes", None)?;
            let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
            let columns = [
                "name",
                "site",
                "zone",
                "live",
                "reached",
                "round_trip_seconds",
                "directory_shards",
                "http",
            ];
            output::rows(target.json, &nodes, &columns);
        }
        Verb::Forget { name } => {
            client.json("DELETE", &format!("/admin/nodes/{}", segment(name)), None)?;
            let outcome = serde_json::json!({ "forgotten": name });
            output::done(target.json, &format!("forgot {name}"), &outcome);
        }
    }
    Ok(())
}
