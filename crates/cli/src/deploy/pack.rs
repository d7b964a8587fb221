//! The files of a program as one archive, the same for the same files: its digest is what tells versions apart.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tar::{Builder, EntryType, Header};

/// Folders that are left out: what tools leave behind, and what is not for others.
const LEFT_OUT: [&str; 3] = ["__pycache__", ".git", ".venv"];

/// An archive of a folder, of one file, or as it is.
pub(super) fn files(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "tar") {
        return Ok(std::fs::read(path)?);
    }
    let mut archive = Builder::new(Vec::new());
    match path.is_dir() {
        true => folder(&mut archive, path, Path::new(""))?,
        false => {
            let name = path.file_name().context("it has no name")?;
            entry(&mut archive, path, Path::new(name))?;
        }
    }
    Ok(archive.into_inner()?)
}

fn folder(archive: &mut Builder<Vec<u8>>, from: &Path, to: &Path) -> anyhow::Result<()> {
    let found = std::fs::read_dir(from)?.map(|entry| Ok(entry?.file_name()));
    let mut found: Vec<_> = found.collect::<std::io::Result<_>>()?;
    found.sort();
    for name in found {
        let (path, name) = (from.join(&name), to.join(&name));
        if LEFT_OUT.iter().any(|left_out| name.ends_with(left_out)) {
            continue;
        }
        entry(archive, &path, &name).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn entry(archive: &mut Builder<Vec<u8>>, path: &Path, name: &Path) -> anyhow::Result<()> {
    let metadata = std::fs::symlink_metadata(path)?;
    let mut header = Header::new_gnu();
    header.set_mtime(0);
    if metadata.is_dir() {
        header.set_entry_type(EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        archive.append_data(&mut header, slashed(name), std::io::empty())?;
        return folder(archive, path, name);
    }
    if metadata.is_symlink() {
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        return Ok(archive.append_link(&mut header, name, std::fs::read_link(path)?)?);
    }
    if !metadata.is_file() {
        bail!("it is neither a file, a folder nor a symbolic link");
    }
    let may_run = metadata.permissions().mode() & 0o111 != 0;
    header.set_mode(if may_run { 0o755 } else { 0o644 });
    header.set_size(metadata.len());
    Ok(archive.append_data(&mut header, name, File::open(path)?)?)
}

/// A folder's name as archives have it.
fn slashed(name: &Path) -> PathBuf {
    name.join("")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_are_the_same_archive_and_what_tools_leave_is_left_out() {
        let pack = |names: &[&str]| {
            let from = tempfile::tempdir().unwrap();
            for name in names {
                let path = from.path().join(name);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, name).unwrap();
            }
            files(from.path()).unwrap()
        };
        let one = pack(&["main.py", "lib/a.py", "lib/__pycache__/a.pyc", ".git/HEAD"]);
        assert_eq!(one, pack(&["lib/a.py", "main.py"]));
        assert_ne!(one, pack(&["main.py"]));
    }

    #[test]
    fn one_file_is_an_archive_of_it() {
        let from = tempfile::tempdir().unwrap();
        let path = from.path().join("run");
        std::fs::write(&path, "x").unwrap();
        let packed = files(&path).unwrap();
        assert_eq!(&packed[257..262], b"ustar");
        let tar = from.path().join("it.tar");
        std::fs::write(&tar, &packed).unwrap();
        assert_eq!(files(&tar).unwrap(), packed, "as it is");
    }
}
