//! `fulmar state`: keys and values, of shared buckets and of sessions.

use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use clap::Subcommand;
use serde_json::Value;
use ureq::SendBody;

use crate::client::{Target, read, segment, succeed};
use crate::output;

/// Where keys are.
const SCOPE_HELP: &str = "shared/BUCKET or session/FUNCTION/SESSION";

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Print a value as it is.
    Get {
        #[arg(help = SCOPE_HELP)]
        scope: Scope,
        /// The key.
        key: String,
    },
    /// Write a value.
    Set {
        #[arg(help = SCOPE_HELP)]
        scope: Scope,
        /// The key.
        key: String,
        /// The value; @FILE reads a file, - standard input.
        value: String,
    },
    /// Delete a key.
    Delete {
        #[arg(help = SCOPE_HELP)]
        scope: Scope,
        /// The key.
        key: String,
    },
    /// List keys; without a scope, the shared buckets.
    Ls {
        #[arg(help = SCOPE_HELP)]
        scope: Option<Scope>,
        /// Only keys that start so.
        #[arg(long, default_value = "")]
        prefix: String,
    },
    /// Print keys and values as JSON Lines; without a scope, all there are.
    Export {
        #[arg(help = SCOPE_HELP)]
        scope: Option<Scope>,
    },
    /// Seal the state that clients carry (execution_model = "in-client") with a new key from now on;
    /// the last four keys still open it.
    RotateKeys,
    /// Write what `export` printed.
    Import {
        /// The file; - or nothing is standard input.
        file: Option<PathBuf>,
    },
}

/// Where keys are.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    Shared(String),
    Session(String, String),
}

impl Scope {
    /// Percent-encoded for a path.
    fn path(&self, target: &Target) -> String {
        match (self, target.namespace()) {
            (Self::Shared(bucket), None) => format!("shared/{}", segment(bucket)),
            (Self::Shared(bucket), Some(namespace)) => {
                format!("namespace/{}/{}", segment(namespace), segment(bucket))
            }
            (Self::Session(function, session), _) => {
                let function = target.function(function);
                format!("session/{}/{}", segment(&function), segment(session))
            }
        }
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some(("shared", bucket)) if !bucket.is_empty() => {
                return Ok(Self::Shared(bucket.to_owned()));
            }
            Some(("session", rest)) => {
                if let Some((function, session)) = rest.split_once('/')
                    && !function.is_empty()
                    && !session.is_empty()
                {
                    return Ok(Self::Session(function.to_owned(), session.to_owned()));
                }
            }
            _ => {}
        }
        Err(format!("a scope is {SCOPE_HELP}"))
    }
}

/// A value from the command line: itself, a file or standard input.
pub(crate) fn argument_bytes(text: &str) -> anyhow::Result<Vec<u8>> {
    if text == "-" {
        let mut bytes = Vec::new();
        std::io::stdin().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    match text.strip_prefix('@') {
        Some(file) => std::fs::read(file).with_context(|| format!("cannot read {file}")),
        None => Ok(text.as_bytes().to_vec()),
    }
}

pub(crate) fn run(target: &Target, verb: &Verb) -> anyhow::Result<()> {
    let client = target.client()?;
    let key_path = |scope: &Scope, key: &str| {
        format!("/admin/state/{}/key/{}", scope.path(target), segment(key))
    };
    match verb {
        Verb::Get { scope, key } => {
            let value = read(client.call("GET", &key_path(scope, key), None)?)?;
            if target.json {
                let mut shown = output::content(&value);
                shown["key"] = key.as_str().into();
                output::value(&shown);
            } else {
                output::bytes_out(&value);
            }
        }
        Verb::Set { scope, key, value } => {
            client.call("PUT", &key_path(scope, key), Some(&argument_bytes(value)?))?;
        }
        Verb::Delete { scope, key } => {
            client.call("DELETE", &key_path(scope, key), None)?;
        }
        Verb::Ls { scope: None, .. } => {
            let found = client.json("GET", "/admin/state/shared", None)?;
            match target.namespace() {
                None => print_names(target, &found["buckets"], "shared/"),
                Some(namespace) => print_names(target, &found["namespaces"][namespace], "shared/"),
            }
        }
        Verb::Ls {
            scope: Some(scope),
            prefix,
        } => {
            let mut after = String::new();
            loop {
                let path = format!(
                    "/admin/state/{}/keys?limit=1000&prefix={}&after={}",
                    scope.path(target),
                    segment(prefix),
                    segment(&after)
                );
                let page = client.json("GET", &path, None)?;
                print_names(target, &page["keys"], "");
                match page["next"].as_str() {
                    Some(next) => after = next.to_owned(),
                    None => break,
                }
            }
        }
        Verb::RotateKeys => {
            let made = client.json("POST", "/admin/state-keys/rotate", None)?;
            output::done(
                target.json,
                &format!("sealing with key {}", made["key"]),
                &made,
            );
        }
        Verb::Export { scope } => {
            let query = match scope {
                Some(scope) => format!("?scope={}", segment(&scope.path(target))),
                None => String::new(),
            };
            let response = client.call("GET", &format!("/admin/state-export{query}"), None)?;
            output::copy_out(response.into_body().into_reader()).context("the export broke off")?;
        }
        Verb::Import { file } => {
            let mut source: Box<dyn Read + Send + Sync> = match file {
                Some(file) if file.as_os_str() != "-" => {
                    let opened = std::fs::File::open(file)
                        .with_context(|| format!("cannot read {}", file.display()))?;
                    Box::new(BufReader::new(opened))
                }
                _ => Box::new(std::io::stdin()),
            };
            let body = SendBody::from_reader(&mut source);
            let answer = read(succeed(client.send(
                "POST",
                "/admin/state-import",
                &[],
                Some(body),
            )?)?)?;
            let answer: Value = serde_json::from_slice(&answer)?;
            if target.json {
                output::value(&answer);
            } else {
                output::line_out(&format!("imported {}", answer["imported"]));
            }
        }
    }
    Ok(())
}

fn print_names(target: &Target, names: &Value, prefix: &str) {
    for name in names
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if target.json {
            output::line_out(&serde_json::json!({ "name": format!("{prefix}{name}") }).to_string());
        } else {
            output::line_out(&format!("{prefix}{name}"));
        }
    }
}
