//! The data directory: one process at a time, of a format that this version reads.
//!
//! ```text
//! DIR/LOCK        held by the running node, names its process
//! DIR/FORMAT      format number of everything below
//! DIR/store/      the local data store
//! DIR/artifacts/  components by digest, and their compiled form
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// Format of the data directory that this version reads and writes.
pub const FORMAT: u32 = 1;

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// Another process has it.
    #[error(
        "the data directory {dir} is in use by another fulmar ({holder}); stop it, or give another directory with --data"
    )]
    InUse {
        /// The directory.
        dir: PathBuf,
        /// Who holds the lock, as far as it says.
        holder: String,
    },
    /// Written by a newer version.
    #[error(
        "the data directory {dir} has format {found}; this version of fulmar reads formats up to {FORMAT}: use a newer fulmar, or another directory with --data"
    )]
    Newer {
        /// The directory.
        dir: PathBuf,
        /// The format found.
        found: u32,
    },
    /// The format file says nothing sensible.
    #[error(
        "{file} should hold a format number but has {found:?}; if {dir} is not a data directory of fulmar, give another with --data"
    )]
    BadFormat {
        /// The directory.
        dir: PathBuf,
        /// The format file.
        file: PathBuf,
        /// What it holds.
        found: String,
    },
    /// The file system said no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A locked data directory; the lock goes when this is dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the directory if need be, locks it and checks its format.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let io = |doing: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::Io {
                doing,
                path,
                source,
            }
        };
        // Programs are started in folders of their own, where a relative path would mean something else.
        let path = &std::path::absolute(path).map_err(io("find", path))?;
        fs::create_dir_all(path).map_err(io("create the data directory", path))?;
        let lock_path = path.join("LOCK");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(io("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Whoever holds it may just be writing its name; an empty one is no obstacle.
                let _ = lock.read_to_string(&mut holder);
                return Err(DataDirError::InUse {
                    dir: path.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(io("lock", &lock_path)(source)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "process {}", std::process::id()))
            .map_err(io("write", &lock_path))?;
        check_format(path)?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Folder of the local data store.
    pub fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Folder of the components.
    pub fn artifacts(&self) -> PathBuf {
        self.path.join("artifacts")
    }
}

fn check_format(dir: &Path) -> Result<(), DataDirError> {
    let file = dir.join("FORMAT");
    match fs::read_to_string(&file) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(found) if found <= FORMAT => Ok(()),
            Ok(found) => Err(DataDirError::Newer {
                dir: dir.to_owned(),
                found,
            }),
            Err(_) => Err(DataDirError::BadFormat {
                dir: dir.to_owned(),
                file,
                found: text.chars().take(40).collect(),
            }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write_durably(&file, format!("{FORMAT}\n").as_bytes()).map_err(|source| {
                DataDirError::Io {
                    doing: "write",
                    path: file,
                    source,
                }
            })
        }
        Err(source) => Err(DataDirError::Io {
            doing: "read",
            path: file,
            source,
        }),
    }
}

/// Writes a file so that after a crash it is there whole or not at all.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}.tmp", std::process::id()));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert!(
            matches!(&error, DataDirError::InUse { holder, .. } if holder.contains(&std::process::id().to_string())),
            "{error}"
        );
        drop(held);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_format_and_a_foreign_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("FORMAT"), "2\n").unwrap();
        assert!(matches!(
            DataDir::open(dir.path()),
            Err(DataDirError::Newer { found: 2, .. })
        ));
        fs::write(dir.path().join("FORMAT"), "hello").unwrap();
        assert!(matches!(
            DataDir::open(dir.path()),
            Err(DataDirError::BadFormat { .. })
        ));
    }
}
