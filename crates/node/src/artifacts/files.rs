//! The files of a program: a tar archive, unpacked with care, since whoever deploys may not be who runs the node.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use tar::{Archive, EntryType};

/// All files of a program together, in bytes, and how many there are.
const MAX_BYTES: u64 = 2 << 30;
const MAX_FILES: usize = 100_000;
/// Where an archive says what it is.
const MAGIC: (usize, &[u8]) = (257, b"ustar");

/// An archive is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// It cannot be read, or its files cannot be written.
    #[error("the archive of the program's files: {0}")]
    Io(#[from] std::io::Error),
    /// It holds something that it may not.
    #[error("the archive of the program's files holds {path:?}, {what}")]
    Refused {
        /// Its path there.
        path: PathBuf,
        /// Why not.
        what: &'static str,
    },
    /// It is too much.
    #[error(
        "the archive of the program's files holds more than {MAX_FILES} files or {MAX_BYTES} bytes"
    )]
    TooMuch,
}

/// Whether some bytes are an archive.
pub(super) fn is_tar(bytes: &[u8]) -> bool {
    let (at, magic) = MAGIC;
    bytes.get(at..at + magic.len()) == Some(magic)
}

/// Whether a path stays below where it begins, also on its way.
fn stays(path: &Path) -> bool {
    let mut depth = 0_usize;
    path.components().all(|part| match part {
        Component::Normal(_) => {
            depth += 1;
            true
        }
        Component::CurDir => true,
        Component::ParentDir => {
            let is_below = depth > 0;
            depth = depth.saturating_sub(1);
            is_below
        }
        Component::RootDir | Component::Prefix(_) => false,
    })
}

/// Unpacks an archive into a folder that is not there yet.
pub(super) fn unpack(tar: &[u8], folder: &Path) -> Result<(), FilesError> {
    let directory = |path: &Path| DirBuilder::new().recursive(true).mode(0o755).create(path);
    directory(folder)?;
    // Made last, so that nothing is written through them.
    let mut links: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let (mut bytes, mut files) = (0, 0);
    let mut archive = Archive::new(tar);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let refused = |what| FilesError::Refused {
            path: path.clone(),
            what,
        };
        let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !path.components().all(is_plain) {
            return Err(refused("which is not below it"));
        }
        files += 1;
        bytes += entry.size();
        if files > MAX_FILES || bytes > MAX_BYTES {
            return Err(FilesError::TooMuch);
        }
        let target = folder.join(&path);
        match entry.header().entry_type() {
            EntryType::Directory => directory(&target)?,
            EntryType::Regular | EntryType::Continuous => {
                if let Some(parent) = target.parent() {
                    directory(parent)?;
                }
                let may_run = entry.header().mode()? & 0o111 != 0;
                let mode = if may_run { 0o755 } else { 0o644 };
                let mut options = OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(&target)?;
                let size = entry.size();
                let copied = std::io::copy(&mut entry.by_ref().take(size), &mut file)?;
                if copied < size {
                    return Err(refused("of which the end is missing"));
                }
                // Whoever finds the folder takes its files for whole, also after a loss of power.
                file.sync_all()?;
            }
            EntryType::Symlink => {
                let to = entry.link_name()?;
                let to = to.ok_or_else(|| refused("a link to nothing"))?.into_owned();
                let from = path.parent().unwrap_or(Path::new(""));
                if !stays(&from.join(&to)) || to.is_absolute() {
                    return Err(refused("a link out of it"));
                }
                links.insert(path, to);
            }
            EntryType::XGlobalHeader => {}
            _ => {
                return Err(refused(
                    "which is neither a file, a folder nor a symbolic link",
                ));
            }
        }
    }
    for (path, to) in links {
        let path = folder.join(path);
        if let Some(parent) = path.parent() {
            directory(parent)?;
        }
        std::os::unix::fs::symlink(to, path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tar::{Builder, Header};

    use super::*;

    fn header(kind: EntryType, path: &str, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o755);
        // Not by `set_path`, which refuses what a malicious archive has.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        header
    }

    fn archive(fill: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().unwrap()
    }

    fn refused(tar: &[u8]) -> String {
        let outside = tempfile::tempdir().unwrap();
        let error = unpack(tar, &outside.path().join("in")).unwrap_err();
        let beside: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
        assert_eq!(beside.len(), 1, "nothing is written elsewhere");
        error.to_string()
    }

    #[test]
    fn files_folders_and_links_come_out_as_they_went_in() {
        let tar = archive(|builder| {
            builder
                .append(&header(EntryType::Regular, "bin/run", 3), &b"run"[..])
                .unwrap();
            builder
                .append(&header(EntryType::Directory, "empty", 0), &b""[..])
                .unwrap();
            let mut link = header(EntryType::Symlink, "lib/latest", 0);
            link.set_link_name("../bin/run").unwrap();
            link.set_cksum();
            builder.append(&link, &b""[..]).unwrap();
        });
        assert!(is_tar(&tar) && !is_tar(b"\0asm"));
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("in");
        unpack(&tar, &folder).unwrap();
        assert_eq!(std::fs::read(folder.join("lib/latest")).unwrap(), b"run");
        assert!(folder.join("empty").is_dir());
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(folder.join("bin/run"))
                .unwrap()
                .permissions(),
        );
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn what_leads_out_is_refused() {
        for path in ["../out", "/out", "a/../../out"] {
            let tar = archive(|builder| {
                builder
                    .append(&header(EntryType::Regular, path, 1), &b"x"[..])
                    .unwrap();
            });
            assert!(refused(&tar).contains("not below it"), "{path}");
        }
        for to in ["/etc/passwd", "../../out", "a/../../../out"] {
            let tar = archive(|builder| {
                let mut link = header(EntryType::Symlink, "d/link", 0);
                link.set_link_name(to).unwrap();
                link.set_cksum();
                builder.append(&link, &b""[..]).unwrap();
            });
            assert!(refused(&tar).contains("a link out of it"), "{to}");
        }
        // A link that stays, and a file through it.
        let tar = archive(|builder| {
            let mut link = header(EntryType::Symlink, "a", 0);
            link.set_link_name(".").unwrap();
            link.set_cksum();
            builder.append(&link, &b""[..]).unwrap();
            builder
                .append(&header(EntryType::Regular, "a/x", 1), &b"x"[..])
                .unwrap();
        });
        assert!(refused(&tar).contains("exists"), "{}", refused(&tar));
    }

    #[test]
    fn devices_and_what_is_too_much_are_refused() {
        for kind in [
            EntryType::Char,
            EntryType::Block,
            EntryType::Fifo,
            EntryType::Link,
        ] {
            let tar = archive(|builder| {
                builder.append(&header(kind, "dev", 0), &b""[..]).unwrap();
            });
            assert!(refused(&tar).contains("neither a file"), "{kind:?}");
        }
        let huge = header(EntryType::Regular, "huge", 3 << 30);
        assert!(refused(huge.as_bytes()).contains("more than"));
        let cut = header(EntryType::Regular, "cut", 1000);
        assert!(
            refused(cut.as_bytes()).contains("cut"),
            "{}",
            refused(cut.as_bytes())
        );
    }
}
