//! Deploying `detect` and `aggregate` through the admin API.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::node::Node;

/// The functions of the example, each in a folder with its manifest.
const FUNCTIONS: [&str; 2] = ["detect", "aggregate"];

/// Where the functions are.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Functions {
    /// Folder with detect/fulmar.toml and aggregate/fulmar.toml.
    #[arg(long, value_name = "DIR", default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/.."))]
    functions: PathBuf,
    /// Folder with detect.wasm and aggregate.wasm, if not where the manifests say.
    #[arg(long, value_name = "DIR")]
    wasm: Option<PathBuf>,
}

impl Functions {
    /// Deploys both.
    pub(crate) async fn deploy(&self, node: &Node) -> Result<()> {
        for name in FUNCTIONS {
            self.deploy_one(node, name)
                .await
                .with_context(|| format!("cannot deploy {name}"))?;
        }
        Ok(())
    }

    async fn deploy_one(&self, node: &Node, name: &str) -> Result<()> {
        let path = self.functions.join(name).join("fulmar.toml");
        let manifest = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let wasm = self.artifact(&path, &manifest, name)?;
        let bytes = std::fs::read(&wasm).with_context(|| {
            format!(
                "cannot read {}; build the functions with `cargo xtask guests`",
                wasm.display()
            )
        })?;
        let digest: String = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let artifact = format!("/admin/artifacts/{digest}");
        if !node.has(&artifact).await? {
            node.put(&artifact, bytes).await?;
        }
        let deployment = json!({ "manifest": manifest, "artifact": digest });
        node.put(
            &format!("/admin/functions/{name}"),
            Bytes::from(deployment.to_string()),
        )
        .await?;
        Ok(())
    }

    fn artifact(&self, path: &Path, manifest: &str, name: &str) -> Result<PathBuf> {
        if let Some(folder) = &self.wasm {
            return Ok(folder.join(format!("{name}.wasm")));
        }
        let table: toml::Table = manifest
            .parse()
            .with_context(|| format!("{} is not TOML", path.display()))?;
        let artifact = table.get("artifact").and_then(toml::Value::as_str);
        let artifact = artifact.with_context(|| format!("{} names no artifact", path.display()))?;
        Ok(path.parent().unwrap_or(Path::new(".")).join(artifact))
    }
}
