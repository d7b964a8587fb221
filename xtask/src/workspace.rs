//! Where things are, and how to call cargo.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The checkout that this program belongs to.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace around this crate.
    pub(crate) fn find() -> Result<Self> {
        // Cargo sets it at run time too; a copied binary falls back on where it was built.
        let here = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = here
            .parent()
            .context("this crate has no directory above it")?;
        if !root.join("Cargo.toml").is_file() {
            bail!(
                "there is no Cargo.toml in {}; run `cargo xtask` inside the checkout",
                root.display()
            );
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    /// The top directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// `cargo`, run at the top.
    pub(crate) fn cargo(&self) -> Command {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = self.command(cargo);
        // Set for this program by the outer cargo; they would make the inner one rebuild.
        for name in [
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "CARGO_PKG_NAME",
        ] {
            command.env_remove(name);
        }
        command
    }

    /// Any program, run at the top.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// Where cargo puts what it builds for the workspace whose manifest is `manifest`.
    pub(crate) fn target_directory(&self, manifest: &Path) -> Result<PathBuf> {
        let output = self
            .cargo()
            .args([
                "metadata",
                "--no-deps",
                "--format-version=1",
                "--manifest-path",
            ])
            .arg(manifest)
            .output()
            .context("cannot run cargo metadata")?;
        if !output.status.success() {
            bail!(
                "cargo metadata failed for {}: {}",
                manifest.display(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let directory = metadata["target_directory"].as_str();
        Ok(PathBuf::from(
            directory.context("cargo metadata names no target_directory")?,
        ))
    }

    /// A program of this workspace that has been built with `profile` (`debug` or `release`).
    pub(crate) fn program(&self, profile: &str, name: &str) -> Result<PathBuf> {
        let target = self.target_directory(&self.root.join("Cargo.toml"))?;
        let file = format!("{name}{}", std::env::consts::EXE_SUFFIX);
        Ok(target.join(profile).join(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_is_found_and_knows_its_target_directory() {
        let workspace = Workspace::find().unwrap();
        assert!(workspace.root().join("xtask/Cargo.toml").is_file());
        let program = workspace.program("debug", "fulmar").unwrap();
        assert!(program.is_absolute() && program.parent().unwrap().ends_with("debug"));
    }
}
