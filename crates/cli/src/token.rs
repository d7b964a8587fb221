//! `fulmar token`: who may do what.

use clap::{Subcommand, ValueEnum};
use serde_json::{Value, json};

use crate::client::{Target, segment};
use crate::output;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Make a token; it is printed once. From the first one on every request needs one.
    Create {
        /// What its bearer may do; may be given several times.
        #[arg(long, required = true)]
        scope: Vec<Scope>,
        /// A function that it is for, or the beginning of names and a *; without it, all, or with --namespace all of that.
        #[arg(long, value_name = "PATTERN")]
        function: Vec<String>,
        /// What it is for, in your own words.
        #[arg(long, default_value = "")]
        label: String,
    },
    /// List them; never their secrets.
    Ls,
    /// Revoke one.
    Revoke {
        /// Its identifier.
        id: String,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Scope {
    /// Invoke functions.
    Invoke,
    /// Deploy and remove functions.
    Deploy,
    /// Everything else.
    Admin,
}

impl Scope {
    fn name(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    match verb {
        Verb::Create {
            scope,
            function,
            label,
        } => {
            let scopes: Vec<&str> = scope.iter().map(|scope| scope.name()).collect();
            let mut functions: Vec<String> =
                function.iter().map(|name| target.function(name)).collect();
            if let (Some(namespace), true) = (target.namespace(), functions.is_empty()) {
                functions.push(format!("{namespace}.*"));
            }
            let wanted = json!({ "scopes": scopes, "functions": functions, "label": label });
            let made = client.json("POST", "/admin/tokens", Some(wanted.to_string().as_bytes()))?;
            if target.json {
                output::value(&made);
                return Ok(());
            }
            println!("{}", made["token"].as_str().unwrap_or_default());
            eprintln!(
                "this is the only time that it is shown; use it with --token or FULMAR_TOKEN"
            );
        }
        Verb::Ls => {
            let listed = client.json("GET", "/admin/tokens", None)?;
            let tokens: Vec<Value> = listed["tokens"].as_array().cloned().unwrap_or_default();
            let columns = ["id", "scopes", "functions", "label", "created_at"];
            output::rows(target.json, &tokens, &columns);
        }
        Verb::Revoke { id } => {
            client.call("DELETE", &format!("/admin/tokens/{}", segment(id)), None)?;
            let outcome = json!({ "revoked": id });
            output::done(target.json, &format!("revoked {id}"), &outcome);
        }
    }
    Ok(())
}
