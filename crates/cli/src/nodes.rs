//! `fulmar nodes`: the nodes of the cluster.

use anyhow::bail;
use clap::Subcommand;

use crate::client::{Target, segment};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List them, and how each is reached from this one.
    Ls,
    /// Move the sessions that are at home on a node to another.
    Drain {
        /// The node that they leave.
        name: String,
        /// The node that they go to.
        #[arg(long, value_name = "NODE")]
        to: String,
        /// Only those of this function.
        #[arg(long)]
        function: Option<String>,
    },
    /// Change the emulated link from this node to another, where links are emulated.
    Link {
        /// The other node.
        name: String,
        /// Time of a byte in one direction, in milliseconds.
        #[arg(long, value_name = "MS", default_value_t = 0.0)]
        latency_ms: f64,
        /// Bytes a second in each direction; 0: as many as come.
        #[arg(long, value_name = "BYTES", default_value_t = 0.0)]
        bytes_per_second: f64,
        /// Part of the segments that are lost and sent again, 0 to 1.
        #[arg(long, value_name = "PART", default_value_t = 0.0)]
        loss: f64,
        /// Nothing gets there.
        #[arg(long)]
        cut_out: bool,
        /// Nothing comes from there.
        #[arg(long)]
        cut_in: bool,
    },
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
                "behind_seconds",
                "http",
            ];
            output::rows(target.json, &nodes, &columns);
        }
        Verb::Drain { name, to, function } => {
            let mut wanted = serde_json::json!({ "to": to });
            if let Some(function) = function {
                wanted["function"] = function.as_str().into();
            }
            let path = format!("/admin/nodes/{}/drain", segment(name));
            let (mut moved, mut seconds) = (0, 0.0);
            loop {
                let body = wanted.to_string();
                let part = client.json("POST", &path, Some(body.as_bytes()))?;
                moved += part["moved"].as_u64().unwrap_or(0);
                seconds += part["seconds"].as_f64().unwrap_or(0.0);
                if part["failed"].as_u64() != Some(0) {
                    bail!(
                        "{moved} sessions moved, and {} did not; first: {}",
                        part["failed"],
                        part["failures"][0]
                    );
                }
                if part["more"] != true {
                    break;
                }
            }
            let outcome = serde_json::json!({ "moved": moved, "seconds": seconds });
            let text = format!("moved {moved} sessions from {name} to {to} in {seconds:.1} s");
            output::done(target.json, &text, &outcome);
        }
        Verb::Link {
            name,
            latency_ms,
            bytes_per_second,
            loss,
            cut_out,
            cut_in,
        } => {
            let link = serde_json::json!({
                "latency_ms": latency_ms,
                "bytes_per_second": bytes_per_second,
                "loss": loss,
                "cut_out": cut_out,
                "cut_in": cut_in,
            });
            let path = format!("/admin/links/{}", segment(name));
            let set = client.json("PUT", &path, Some(link.to_string().as_bytes()))?;
            output::done(target.json, &format!("changed the link to {name}"), &set);
        }
        Verb::Forget { name } => {
            client.json("DELETE", &format!("/admin/nodes/{}", segment(name)), None)?;
            let outcome = serde_json::json!({ "forgotten": name });
            output::done(target.json, &format!("forgot {name}"), &outcome);
        }
    }
    Ok(())
}
