//! `fulmar namespaces`: what the functions of a namespace may have in all, and what they have.

use clap::Subcommand;
use fulmar_model::ByteSize;
use serde_json::json;

use crate::client::{Target, segment};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List those that have functions or quotas.
    Ls,
    /// Show one.
    Show {
        /// The namespace.
        name: String,
    },
    /// Give one quotas, in place of those that it has; what is left out is not limited.
    Set {
        /// The namespace.
        name: String,
        /// Deployed functions.
        #[arg(long, value_name = "COUNT")]
        max_functions: Option<u32>,
        /// Invocations at once that clients have handed to one node.
        #[arg(long, value_name = "COUNT")]
        max_concurrency: Option<u32>,
        /// Invocations a second that clients hand to one node.
        #[arg(long, value_name = "COUNT")]
        max_rate: Option<u32>,
        /// State on one node, such as 512MiB; measured every few seconds.
        #[arg(long, value_name = "SIZE")]
        max_state: Option<ByteSize>,
    },
    /// Take the quotas of one away.
    Rm {
        /// The namespace.
        name: String,
    },
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    let path = |name: &str| format!("/admin/namespaces/{}", segment(name));
    match verb {
        Verb::Ls => {
            let answer = client.json("GET", "/admin/namespaces", None)?;
            let namespaces = answer["namespaces"].as_array().cloned().unwrap_or_default();
            let columns = [
                "name",
                "functions",
                "quota.max_functions",
                "running",
                "quota.max_concurrency",
                "quota.max_rate",
                "state_bytes",
                "quota.max_state_bytes",
            ];
            output::rows(target.json, &namespaces, &columns);
        }
        Verb::Show { name } => output::value(&client.json("GET", &path(name), None)?),
        Verb::Set {
            name,
            max_functions,
            max_concurrency,
            max_rate,
            max_state,
        } => {
            let wanted = json!({
                "max_functions": max_functions,
                "max_concurrency": max_concurrency,
                "max_rate": max_rate,
                "max_state": max_state,
            });
            let body = wanted.to_string();
            let outcome = client.json("PUT", &path(name), Some(body.as_bytes()))?;
            output::done(
                target.json,
                &format!("{name} has these quotas now"),
                &outcome,
            );
        }
        Verb::Rm { name } => {
            client.call("DELETE", &path(name), None)?;
            let outcome = json!({ "removed": { "quotas_of": name } });
            output::done(target.json, &format!("{name} has no quotas now"), &outcome);
        }
    }
    Ok(())
}
