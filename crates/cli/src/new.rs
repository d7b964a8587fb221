//! `fulmar new`: a folder with a function that builds.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fulmar_model::FunctionName;
use fulmar_model::id::DEFAULT_NAMESPACE;
use serde_json::json;

use crate::client::Target;
use crate::{output, template};

/// Arguments of `fulmar new`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Language {
    /// A function in Rust, with the SDK beside it.
    Rust {
        /// Name of the function, and of the folder.
        name: FunctionName,
        /// The folder [default: the name].
        #[arg(long)]
        path: Option<PathBuf>,
    },
}

pub(crate) fn run(target: &Target, language: &Language) -> anyhow::Result<()> {
    let Language::Rust { name, path } = language;
    if name.namespace() != DEFAULT_NAMESPACE {
        bail!(
            "{name} names a namespace, and a project has none\n  fix: make it without, and give --namespace {} to `fulmar deploy`",
            name.namespace()
        );
    }
    let folder = path.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    write(&folder, &template::rust(name.as_str()))?;
    if target.json {
        output::value(&json!({ "name": name.as_str(), "path": folder }));
        return Ok(());
    }
    let shown = folder.display();
    output::line_out(&format!("made {shown}; next:"));
    output::line_out(&format!("  cd {shown}"));
    output::line_out("  cargo build --release --target wasm32-wasip2");
    output::line_out("  fulmar deploy .");
    output::line_out(&format!(
        "  fulmar invoke {name} world --data \"good morning\""
    ));
    Ok(())
}

/// Writes files into a folder that is not there yet, or empty.
fn write(folder: &Path, files: &[(String, String)]) -> anyhow::Result<()> {
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} is not empty\n  fix: choose another folder with --path, or another name",
            folder.display()
        );
    }
    for (path, text) in files {
        let path = folder.join(path);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
