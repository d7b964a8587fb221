//! `fulmar deploy`: a component or a manifest, to a node.

mod pack;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use fulmar_model::manifest::function_name_of;
use fulmar_model::{FunctionName, Manifest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::{Client, Target, segment};
use crate::output;

/// Arguments of `fulmar deploy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A component (.wasm), a manifest (fulmar.toml), or a folder with one.
    path: PathBuf,
}

pub(crate) fn run(target: &Target, args: &Args) -> anyhow::Result<()> {
    let (mut manifest, component) = find(&args.path)?;
    if let Some(namespace) = target.namespace() {
        manifest.name = FunctionName::within(namespace, manifest.name.as_str())?;
    }
    let deployed = to_node(&target.client()?, &manifest, &component)?;
    if target.json {
        output::value(&deployed);
        return Ok(());
    }
    let (name, version) = (&manifest.name, &deployed["version"]);
    if deployed["changed"] == json!(false) {
        output::line_out(&format!(
            "{name} is deployed as version {version} already: nothing changed"
        ));
    } else {
        output::line_out(&format!("{name} is deployed as version {version}"));
    }
    eprintln!(
        "try: fulmar invoke{} {name} my-session --data 1",
        target.flag()
    );
    Ok(())
}

/// Deploys a component or a program's files; what the node says.
pub(crate) fn to_node(
    client: &Client,
    manifest: &Manifest,
    component: &Path,
) -> anyhow::Result<Value> {
    let artifact = match manifest.is_program() {
        true => pack::files(component).with_context(|| {
            format!(
                "cannot pack the program {}\n  fix: correct `artifact` in the manifest: a folder, a file or a .tar",
                component.display()
            )
        })?,
        false => std::fs::read(component).with_context(|| {
            format!(
                "cannot read the component {}\n  fix: build it first (cargo build --release --target wasm32-wasip2), or correct `artifact` in the manifest",
                component.display()
            )
        })?,
    };
    let digest: String = Sha256::digest(&artifact)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let place = format!("/admin/artifacts/{digest}");
    if client.send("HEAD", &place, &[], None)?.status() != 200 {
        let doing = match manifest.is_program() {
            true => "uploading",
            false => "uploading and compiling",
        };
        let (shown, size) = (component.display(), artifact.len() / 1024);
        eprintln!("{doing} {shown} ({size} KiB)");
        client
            .call("PUT", &place, Some(&artifact))
            .with_context(|| component.display().to_string())?;
    }
    let body = json!({ "manifest": manifest.to_toml(), "artifact": digest }).to_string();
    client.json(
        "PUT",
        &format!("/admin/functions/{}", segment(manifest.name.as_str())),
        Some(body.as_bytes()),
    )
}

/// The manifest and the component that a path means.
pub(crate) fn find(path: &Path) -> anyhow::Result<(Manifest, PathBuf)> {
    if path
        .extension()
        .is_some_and(|extension| extension == "wasm")
    {
        let name = function_name_of(path).with_context(|| {
            format!("{} does not make a function name\n  fix: rename the file, or write a fulmar.toml with a name", path.display())
        })?;
        return Ok((Manifest::for_artifact(name), path.to_owned()));
    }
    let file = if path.is_dir() {
        path.join("fulmar.toml")
    } else {
        path.to_owned()
    };
    if file.extension().is_none_or(|extension| extension != "toml") {
        bail!(
            "{} is neither a .wasm component nor a fulmar.toml",
            file.display()
        );
    }
    let text = std::fs::read_to_string(&file)
        .with_context(|| format!("cannot read the manifest {}", file.display()))?;
    let manifest = Manifest::parse(&text, &file.display().to_string())?;
    let component = file
        .parent()
        .unwrap_or(Path::new("."))
        .join(&manifest.artifact);
    Ok((manifest, component))
}
