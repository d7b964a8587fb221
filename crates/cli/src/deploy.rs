//! `fulmar deploy`: a component or a manifest, to a node.

mod pack;
pub(crate) mod registry;

use std::fmt;
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
    #[command(flatten)]
    registries: registry::Options,
}

/// Where what a function runs is taken from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A component, a program's files or an image, on this machine.
    Local(PathBuf),
    /// An image in a registry.
    Registry(String),
}

impl fmt::Display for Source {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.display().fmt(to),
            Self::Registry(name) => name.fmt(to),
        }
    }
}

impl Source {
    /// What a node is sent of it.
    fn read(&self, manifest: &Manifest, registries: &registry::Options) -> anyhow::Result<Vec<u8>> {
        let path = match self {
            Self::Registry(name) => return registry::pull(name, registries),
            Self::Local(path) => path,
        };
        match manifest.is_program() {
            true => pack::files(path).with_context(|| {
                format!(
                    "cannot pack the program {self}\n  fix: correct `artifact` in the manifest: a folder, a file or a .tar"
                )
            }),
            false => std::fs::read(path).with_context(|| {
                format!(
                    "cannot read the component {self}\n  fix: build it first (cargo build --release --target wasm32-wasip2), or correct `artifact` in the manifest"
                )
            }),
        }
    }
}

pub(crate) fn run(target: &Target, args: &Args) -> anyhow::Result<()> {
    let (mut manifest, source) = find(&args.path)?;
    if let Some(namespace) = target.namespace() {
        manifest.name = FunctionName::within(namespace, manifest.name.as_str())?;
    }
    let deployed = to_node(&target.client()?, &manifest, &source, &args.registries)?;
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

/// Deploys what a function runs; what the node says.
pub(crate) fn to_node(
    client: &Client,
    manifest: &Manifest,
    source: &Source,
    registries: &registry::Options,
) -> anyhow::Result<Value> {
    let artifact = source.read(manifest, registries)?;
    let digest = output::hex(&Sha256::digest(&artifact));
    let place = format!("/admin/artifacts/{digest}");
    if client.send("HEAD", &place, &[], None)?.status() != 200 {
        let doing = match manifest.is_program() {
            true => "uploading",
            false => "uploading and compiling",
        };
        eprintln!("{doing} {source} ({} KiB)", artifact.len() / 1024);
        client
            .call("PUT", &place, Some(&artifact))
            .with_context(|| source.to_string())?;
    }
    let body = json!({ "manifest": manifest.to_toml(), "artifact": digest }).to_string();
    client.json(
        "PUT",
        &format!("/admin/functions/{}", segment(manifest.name.as_str())),
        Some(body.as_bytes()),
    )
}

/// The manifest that a path means, and where what it runs is.
pub(crate) fn find(path: &Path) -> anyhow::Result<(Manifest, Source)> {
    if path
        .extension()
        .is_some_and(|extension| extension == "wasm")
    {
        let name = function_name_of(path).with_context(|| {
            format!("{} does not make a function name\n  fix: rename the file, or write a fulmar.toml with a name", path.display())
        })?;
        return Ok((Manifest::for_artifact(name), Source::Local(path.to_owned())));
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
    if manifest.artifact.starts_with(registry::SCHEME) {
        let name = manifest.artifact.clone();
        return Ok((manifest, Source::Registry(name)));
    }
    let folder = file.parent().unwrap_or(Path::new("."));
    let path = folder.join(&manifest.artifact);
    Ok((manifest, Source::Local(path)))
}
