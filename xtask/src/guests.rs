//! Functions in the tree: every package that makes a `cdylib` is one, wherever it is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::steps::{self, Steps};
use crate::toolchain::{WASM_TARGET, ensure_wasm_target};
use crate::workspace::Workspace;

/// Directories that hold no packages of the project, or packages that are not complete (`{{name}}`).
const SKIPPED: &[&str] = &[
    "target",
    ".git",
    "node_modules",
    "templates",
    "template",
    "fuzz",
    "bench",
];
/// Packages are never nested deeper.
const MAX_DEPTH: usize = 6;

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    crate::no_arguments(arguments)?;
    let mut steps = Steps::new("guests", 2);
    steps.run("target for functions", || ensure_wasm_target(workspace))?;
    steps.run("functions", || build(workspace, Path::new("")))?;
    steps.finish();
    Ok(())
}

/// Builds the functions below `under` (relative to the top) for release, workspace by workspace.
pub(crate) fn build(workspace: &Workspace, under: &Path) -> Result<String> {
    let found = find(workspace.root(), &workspace.root().join(under))?;
    let count: usize = found.values().map(Vec::len).sum();
    for (manifest, packages) in &found {
        let mut command = workspace.cargo();
        command.args([
            "build",
            "--release",
            "--target",
            WASM_TARGET,
            "--manifest-path",
        ]);
        command.arg(manifest.strip_prefix(workspace.root()).unwrap_or(manifest));
        for package in packages {
            command.args(["--package", package]);
        }
        steps::run(&mut command)?;
    }
    Ok(format!("{count} functions"))
}

/// Functions below `start`: the manifest of their cargo workspace (at most `root`'s) and their names.
fn find(root: &Path, start: &Path) -> Result<BTreeMap<PathBuf, Vec<String>>> {
    let mut found: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
    let mut open = vec![(start.to_owned(), 0)];
    while let Some((directory, depth)) = open.pop() {
        let manifest = directory.join("Cargo.toml");
        if manifest.is_file()
            && let Some(name) = function_in(&manifest)?
        {
            found
                .entry(workspace_of(root, &directory)?)
                .or_default()
                .push(name);
        }
        if depth == MAX_DEPTH {
            continue;
        }
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot list {}", directory.display()));
            }
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let skipped = SKIPPED.iter().any(|skipped| name == *skipped);
            if entry.file_type()?.is_dir() && !skipped {
                open.push((entry.path(), depth + 1));
            }
        }
    }
    for packages in found.values_mut() {
        packages.sort();
    }
    Ok(found)
}

fn read(manifest: &Path) -> Result<toml::Table> {
    let text = std::fs::read_to_string(manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    text.parse()
        .with_context(|| format!("{} is not TOML", manifest.display()))
}

/// The package's name when it is a function.
fn function_in(manifest: &Path) -> Result<Option<String>> {
    let manifest = read(manifest)?;
    let kinds = manifest.get("lib").and_then(|lib| lib.get("crate-type"));
    let kinds = kinds.and_then(toml::Value::as_array);
    let is_function =
        kinds.is_some_and(|kinds| kinds.iter().any(|kind| kind.as_str() == Some("cdylib")));
    let name = manifest
        .get("package")
        .and_then(|package| package.get("name"));
    let name = name.and_then(toml::Value::as_str);
    Ok(name.filter(|_| is_function).map(str::to_owned))
}

/// The manifest of the nearest directory upwards, up to `root`, that is a cargo workspace.
fn workspace_of(root: &Path, package: &Path) -> Result<PathBuf> {
    for directory in package.ancestors() {
        let manifest = directory.join("Cargo.toml");
        if manifest.is_file() && read(&manifest)?.contains_key("workspace") {
            return Ok(manifest);
        }
        if directory == root {
            break;
        }
    }
    Ok(package.join("Cargo.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    const FUNCTION: &str = "[package]\nname = \"NAME\"\n[lib]\ncrate-type = [\"cdylib\"]\n";

    #[test]
    fn functions_are_found_by_their_kind_and_grouped_by_workspace() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "Cargo.toml", "[workspace]\n");
        write(root, "crates/lib/Cargo.toml", "[package]\nname = \"lib\"\n");
        write(
            root,
            "examples/a/Cargo.toml",
            &FUNCTION.replace("NAME", "a"),
        );
        write(root, "guests/Cargo.toml", "[workspace]\n");
        write(root, "guests/c/Cargo.toml", &FUNCTION.replace("NAME", "c"));
        write(root, "guests/b/Cargo.toml", &FUNCTION.replace("NAME", "b"));
        write(root, "cli/templates/d/Cargo.toml", "name = {{name}}");
        write(root, "target/e/Cargo.toml", &FUNCTION.replace("NAME", "e"));

        let found = find(root, root).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[&root.join("Cargo.toml")], ["a"]);
        assert_eq!(found[&root.join("guests/Cargo.toml")], ["b", "c"]);
        assert!(find(root, &root.join("nowhere")).unwrap().is_empty());
        assert_eq!(find(root, &root.join("guests")).unwrap().len(), 1);
    }
}
