//! `fulmar functions`: what is deployed.

use clap::Subcommand;
use serde_json::json;

use crate::client::{Target, segment};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List the deployed functions.
    Ls,
    /// Show one, with its manifest.
    Show {
        /// The function.
        function: String,
    },
    /// Remove one; the state of its sessions stays.
    Rm {
        /// The function.
        function: String,
    },
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    match verb {
        Verb::Ls => {
            let answer = client.json("GET", "/admin/functions", None)?;
            let functions = answer["functions"].as_array().cloned().unwrap_or_default();
            output::rows(
                target.json,
                &functions,
                &[
                    "name",
                    "version",
                    "world",
                    "durability",
                    "sessions_hot",
                    "queued",
                    "deployed_at",
                ],
            );
        }
        Verb::Show { function } => {
            output::value(&client.json(
                "GET",
                &format!("/admin/functions/{}", segment(&target.function(function))),
                None,
            )?);
        }
        Verb::Rm { function } => {
            client.call(
                "DELETE",
                &format!("/admin/functions/{}", segment(&target.function(function))),
                None,
            )?;
            output::done(
                target.json,
                &format!("removed {function}"),
                &json!({ "removed": { "function": function } }),
            );
        }
    }
    Ok(())
}
