//! The OCI runtime of the machine.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Those that are known, the best first.
const KNOWN: [&str; 3] = ["crun", "runc", "youki"];

/// One that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runtime {
    path: PathBuf,
    is_crun: bool,
}

impl Runtime {
    /// The first of those that are known on the node's path.
    ///
    /// # Errors
    /// What to do if there is none.
    pub(super) fn find() -> Result<Self, String> {
        Self::among(std::env::var_os("PATH").unwrap_or_default())
    }

    fn among(path: OsString) -> Result<Self, String> {
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let found = KNOWN.iter().find_map(|name| {
            let mut paths = folders.iter().map(|folder| folder.join(name));
            Some((name, paths.find(|path| path.is_file())?))
        });
        let (name, path) = found.ok_or(
            "there is no crun, runc or youki on this node's PATH to start containers with; install one, for example with apt-get install crun",
        )?;
        Ok(Self {
            is_crun: *name == "crun",
            path,
        })
    }

    /// Whether it makes a cgroup of its own, in which it has to bound the container by itself.
    pub(super) fn bounds_itself(&self) -> bool {
        !self.is_crun
    }

    /// How it runs the container of a bundle, which has this name, until that ends.
    pub(super) fn command(&self, bundle: &Path, name: &str) -> Vec<OsString> {
        let mut command = vec![self.path.clone().into_os_string()];
        command.extend(["--root".into(), bundle.join("state").into_os_string()]);
        if self.is_crun {
            // It stays in that of the worker.
            command.push("--cgroup-manager=disabled".into());
        }
        command.extend(["run".into(), "--bundle".into(), bundle.into(), name.into()]);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_taken_and_none_is_explained() {
        let folders = tempfile::tempdir().unwrap();
        let (one, other) = (folders.path().join("one"), folders.path().join("other"));
        std::fs::create_dir(&one).unwrap();
        std::fs::create_dir(&other).unwrap();
        let path = std::env::join_paths([&one, &other]).unwrap();
        let error = Runtime::among(path.clone()).unwrap_err();
        assert!(error.contains("install one"), "{error}");
        std::fs::write(one.join("runc"), "").unwrap();
        assert!(Runtime::among(path.clone()).unwrap().bounds_itself());
        std::fs::write(other.join("crun"), "").unwrap();
        let found = Runtime::among(path).unwrap();
        assert_eq!(found.path, other.join("crun"));
        let command = found.command(Path::new("/bundle"), "name");
        assert_eq!(command.last().unwrap(), "name");
    }
}
