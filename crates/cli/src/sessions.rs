//! `fulmar sessions`: what has state.

use clap::Subcommand;
use serde_json::json;

use crate::client::{Target, segment};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List sessions.
    Ls {
        /// Only of this function.
        function: Option<String>,
        /// Only those whose names start so.
        #[arg(long, requires = "function")]
        prefix: Option<String>,
        /// At most so many.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// Show one.
    Show {
        /// The function.
        function: String,
        /// The session.
        session: String,
    },
    /// Move one to another node.
    Move {
        /// The function.
        function: String,
        /// The session.
        session: String,
        /// The node.
        #[arg(long, value_name = "NODE")]
        to: String,
    },
    /// Change where one's state is, for functions with execution_model = "auto".
    ///
    /// `in-function`, `in-edge` and `auto` bring it back from the external store, and let one that its client carries go on
    /// from the copy that its home has kept. Only a client can take it along (`in-client`).
    SetModel {
        /// The function.
        function: String,
        /// The session.
        session: String,
        /// `auto`, `in-function`, `in-edge` or `external`.
        model: String,
    },
    /// Remove one with all its state.
    Rm {
        /// The function.
        function: String,
        /// The session.
        session: String,
    },
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    let path = |function: &str, session: &str| {
        let function = target.function(function);
        format!(
            "/admin/sessions/{}/{}",
            segment(&function),
            segment(session)
        )
    };
    match verb {
        Verb::Ls {
            function,
            prefix,
            limit,
        } => {
            let function = function.as_deref().map(|name| target.function(name));
            let mut sessions = Vec::new();
            let mut after = String::new();
            let mut external = Vec::new();
            while sessions.len() < *limit {
                let mut query = format!("limit={}", (limit - sessions.len()).min(1000));
                for (name, value) in [
                    ("function", function.as_deref()),
                    ("prefix", prefix.as_deref()),
                    ("after", Some(after.as_str())),
                ] {
                    if let Some(value) = value.filter(|value| !value.is_empty()) {
                        query += &format!("&{name}={}", segment(value));
                    }
                }
                let page = client.json("GET", &format!("/admin/sessions?{query}"), None)?;
                sessions.extend(page["sessions"].as_array().cloned().unwrap_or_default());
                external = page["external"].as_array().cloned().unwrap_or_default();
                match page["next"].as_str() {
                    Some(next) => after = next.to_owned(),
                    None => break,
                }
            }
            output::rows(
                target.json,
                &sessions,
                &[
                    "function",
                    "session",
                    "execution_model",
                    "version",
                    "keys",
                    "bytes",
                    "hot",
                    "updated_at",
                ],
            );
            for function in external.iter().filter_map(|name| name.as_str()) {
                eprintln!(
                    "sessions of {function} are in the external store: fulmar sessions ls {function}"
                );
            }
        }
        Verb::Show { function, session } => {
            output::value(&client.json("GET", &path(function, session), None)?)
        }
        Verb::Move {
            function,
            session,
            to,
        } => {
            let function = target.function(function);
            let wanted = json!({ "function": function, "session": session, "to": to });
            let body = wanted.to_string();
            let outcome = client.json("POST", "/admin/migrations", Some(body.as_bytes()))?;
            let text = match outcome["moved"].as_bool() {
                Some(true) => format!(
                    "{function}/{session} is at {to} now; requests were held up for {} s",
                    outcome["held_seconds"]
                ),
                _ => format!("{function}/{session} is at {to} already"),
            };
            output::done(target.json, &text, &outcome);
        }
        Verb::SetModel {
            function,
            session,
            model,
        } => {
            let wanted = json!({ "execution_model": model }).to_string();
            let path = path(function, session);
            let outcome = client.json("PATCH", &path, Some(wanted.as_bytes()))?;
            let text = match outcome["changed"].as_bool() {
                Some(true) => format!("{function}/{session} is {model} now"),
                _ => format!("{function}/{session} is {model} already"),
            };
            output::done(target.json, &text, &outcome);
        }
        Verb::Rm { function, session } => {
            client.call("DELETE", &path(function, session), None)?;
            output::done(
                target.json,
                &format!("removed {function}/{session}"),
                &json!({ "removed": { "function": function, "session": session } }),
            );
        }
    }
    Ok(())
}
