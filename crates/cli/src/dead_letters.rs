//! `fulmar dead-letters`: messages that were given up.

use clap::Subcommand;
use serde_json::json;

use crate::client::{Target, segment};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List them.
    Ls,
    /// Show one.
    Show {
        /// Its identifier.
        id: String,
    },
    /// Deliver one again, or all.
    Retry {
        /// Its identifier.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All of them.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Drop one, or all.
    Drop {
        /// Its identifier.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// All of them.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    match verb {
        Verb::Ls | Verb::Show { .. } => {
            let mut letters = Vec::new();
            let mut query = "limit=1000".to_owned();
            loop {
                let page = client.json("GET", &format!("/admin/dead-letters?{query}"), None)?;
                letters.extend(page["dead_letters"].as_array().cloned().unwrap_or_default());
                let Some(next) = page["next"].as_str() else {
                    break;
                };
                query = format!("limit=1000&after={next}");
            }
            match verb {
                Verb::Show { id } => {
                    match letters.iter().find(|letter| letter["id"] == id.as_str()) {
                        Some(letter) => output::value(letter),
                        None => anyhow::bail!(
                            "no dead letter {id} is parked\n  fix: list them with `fulmar dead-letters ls`"
                        ),
                    }
                }
                _ => output::rows(
                    target.json,
                    &letters,
                    &[
                        "id",
                        "from.function",
                        "from.session",
                        "to.function",
                        "to.session",
                        "attempts",
                        "parked_at",
                        "error",
                    ],
                ),
            }
        }
        Verb::Retry { id: Some(id), .. } => {
            client.call(
                "POST",
                &format!("/admin/dead-letters/{}/retry", segment(id)),
                None,
            )?;
            output::done(
                target.json,
                &format!("delivering {id} again"),
                &json!({ "retried": 1 }),
            );
        }
        Verb::Retry { id: None, .. } => {
            let done = client.json("POST", "/admin/dead-letters/retry", None)?;
            output::done(
                target.json,
                &format!("delivering {} again", done["retried"]),
                &done,
            );
        }
        Verb::Drop { id: Some(id), .. } => {
            client.call(
                "DELETE",
                &format!("/admin/dead-letters/{}", segment(id)),
                None,
            )?;
            output::done(
                target.json,
                &format!("dropped {id}"),
                &json!({ "dropped": 1 }),
            );
        }
        Verb::Drop { id: None, .. } => {
            let done = client.json("DELETE", "/admin/dead-letters", None)?;
            output::done(target.json, &format!("dropped {}", done["dropped"]), &done);
        }
    }
    Ok(())
}
