//! The layers of an image, one over the other, in a folder. Nothing is read or written outside of it, whatever they hold.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use fulmar_worker::Image;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::hex;

/// All files of an image together, in bytes, and how many there are.
const MAX_BYTES: u64 = 8 << 30;
const MAX_FILES: usize = 500_000;
/// What of a mode is kept: no changes of user or group.
const MODE: u32 = 0o1777;
/// Names that say what of the layers below goes.
const WHITEOUT: &str = ".wh.";
const OPAQUE: &str = ".wh..wh..opq";

/// A layer is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayersError {
    /// It cannot be read, or its files cannot be written.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It cannot be written where it has to go.
    #[error("{path:?}: {error}")]
    At {
        /// Its path there.
        path: PathBuf,
        /// What the system says.
        error: Errno,
    },
    /// It holds something that it may not.
    #[error("it holds {path:?}, {what}")]
    Refused {
        /// Its path there.
        path: PathBuf,
        /// Why not.
        what: &'static str,
    },
    /// It is not what the image says.
    #[error("unpacked, it has the digest {found}, not {expected}")]
    Digest {
        /// That of what it holds.
        found: String,
        /// That which it should have.
        expected: String,
    },
    /// How it is packed is not known.
    #[error("its kind {0:?} is not known; layers are tar, gzip or zstd")]
    Kind(String),
    /// It is too much.
    #[error("the image has more than {MAX_FILES} files or {MAX_BYTES} bytes")]
    TooMuch,
}

/// What has been unpacked so far.
pub(super) struct Layers {
    root: OwnedFd,
    bytes: u64,
    files: usize,
}

/// Reads through, counts, and computes a digest.
struct Checked<R> {
    from: R,
    digest: Sha256,
    left: u64,
}

impl<R: Read> Read for Checked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.digest.update(&buffer[..count]);
        let left = self.left.checked_sub(count as u64);
        self.left = left.ok_or_else(|| std::io::Error::other("it is too large"))?;
        Ok(count)
    }
}

/// Opens a file of an image; links lead where they would in a container.
pub(super) fn open_within(root: &Path, path: &str) -> rustix::io::Result<File> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(within(root.as_fd(), Path::new(path), flags)?.into())
}

fn within(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

impl Layers {
    /// Begins with nothing in a folder that is not there yet.
    pub(super) fn begin(root: &Path) -> std::io::Result<Self> {
        std::fs::create_dir(root)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(root, flags, Mode::empty())?;
        rustix::fs::fchmod(&root, Mode::from_raw_mode(0o755))?;
        own(root.as_fd(), Path::new("."), 0, 0)?;
        Ok(Self {
            root,
            bytes: 0,
            files: 0,
        })
    }

    /// Puts a layer over those before.
    pub(super) fn apply(
        &mut self,
        layer: &[u8],
        kind: &str,
        expected: &str,
    ) -> Result<(), LayersError> {
        let unpacked: Box<dyn Read + '_> = match kind.rsplit(['.', '+']).next() {
            Some("tar") => Box::new(layer),
            Some("gzip") => Box::new(flate2::read::MultiGzDecoder::new(layer)),
            Some("zstd") => Box::new(zstd::stream::read::Decoder::with_buffer(layer)?),
            _ => return Err(LayersError::Kind(kind.to_owned())),
        };
        let mut checked = Checked {
            from: unpacked,
            digest: Sha256::new(),
            left: MAX_BYTES,
        };
        let mut archive = Archive::new(&mut checked);
        for entry in archive.entries()? {
            self.entry(entry?)?;
        }
        std::io::copy(&mut checked, &mut std::io::sink())?;
        let found = format!("sha256:{}", hex(&checked.digest.finalize()));
        match found == expected {
            true => Ok(()),
            false => Err(LayersError::Digest {
                found,
                expected: expected.to_owned(),
            }),
        }
    }

    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), LayersError> {
        let path = entry.path()?.into_owned();
        let refused = |what| LayersError::Refused {
            path: path.clone(),
            what,
        };
        let is_plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !path.components().all(is_plain) {
            return Err(refused("which is not below its root"));
        }
        self.files += 1;
        self.bytes += entry.size();
        if self.files > MAX_FILES || self.bytes > MAX_BYTES {
            return Err(LayersError::TooMuch);
        }
        let Some(name) = path.file_name().map(PathBuf::from) else {
            // The root itself.
            return Ok(());
        };
        let at = |error| LayersError::At {
            path: path.clone(),
            error,
        };
        let parent = self
            .make(path.parent().unwrap_or(Path::new("")))
            .map_err(at)?;
        let header = entry.header();
        // Not every packer says whose it is.
        let user = header.uid().unwrap_or_default() as u32;
        let group = header.gid().unwrap_or_default() as u32;
        let mode = Mode::from_raw_mode(header.mode()? & MODE);
        let text = name.to_string_lossy();
        if text == OPAQUE {
            return Ok(empty(&parent)?);
        }
        if let Some(gone) = text.strip_prefix(WHITEOUT) {
            if Path::new(gone).components().count() != 1 || gone == ".." || gone == "." {
                return Err(refused("which hides nothing"));
            }
            return Ok(remove(&parent, Path::new(gone))?);
        }
        match header.entry_type() {
            EntryType::Directory => {
                if kind(&parent, &name) != Some(FileType::Directory) {
                    remove(&parent, &name)?;
                    rustix::fs::mkdirat(&parent, &name, mode).map_err(at)?;
                }
                own(parent.as_fd(), &name, user, group).map_err(at)?;
                rustix::fs::chmodat(&parent, &name, mode, AtFlags::empty()).map_err(at)?;
            }
            EntryType::Regular | EntryType::Continuous => {
                remove(&parent, &name)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, &name, flags, mode).map_err(at)?;
                let mut file = File::from(file);
                let size = entry.size();
                if std::io::copy(&mut entry, &mut file)? < size {
                    return Err(refused("of which the end is missing"));
                }
                own(parent.as_fd(), &name, user, group).map_err(at)?;
                rustix::fs::fchmod(&file, mode).map_err(at)?;
            }
            EntryType::Symlink => {
                let to = entry.link_name()?;
                let to = to.ok_or_else(|| refused("a link to nothing"))?.into_owned();
                remove(&parent, &name)?;
                rustix::fs::symlinkat(&to, &parent, &name).map_err(at)?;
                own(parent.as_fd(), &name, user, group).map_err(at)?;
            }
            EntryType::Link => {
                let to = entry.link_name()?;
                let to = to.ok_or_else(|| refused("a link to nothing"))?.into_owned();
                let found = within(self.root.as_fd(), &to, OFlags::PATH | OFlags::NOFOLLOW);
                let is_file = |file: &OwnedFd| {
                    let stat = rustix::fs::fstat(file);
                    stat.is_ok_and(|stat| {
                        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                    })
                };
                let found = found.ok().filter(is_file);
                let found = found.ok_or_else(|| refused("a link to what is not there"))?;
                remove(&parent, &name)?;
                let from = path_of(found.as_fd());
                rustix::fs::linkat(CWD, from, &parent, &name, AtFlags::SYMLINK_FOLLOW)
                    .map_err(at)?;
            }
            EntryType::XGlobalHeader => {}
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                return Err(refused("a device or a pipe"));
            }
            _ => return Err(refused("of a kind that images do not have")),
        }
        Ok(())
    }

    /// Makes a folder with all that lead to it.
    pub(super) fn folder(&self, path: &str) -> std::io::Result<()> {
        self.make(Path::new(path))?;
        Ok(())
    }

    /// The folder of this path, made if need be; links lead where they would in a container.
    fn make(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| match path.as_os_str().is_empty() {
            true => within(self.root.as_fd(), Path::new("."), flags),
            false => within(self.root.as_fd(), path, flags),
        };
        match open(path) {
            Err(Errno::NOENT) => {
                let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
                    return Err(Errno::NOENT);
                };
                let above = self.make(above)?;
                rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
                own(above.as_fd(), Path::new(name), 0, 0)?;
                open(path)
            }
            opened => opened,
        }
    }

    /// Has all of it on the disk: whoever finds the folder takes its files for whole.
    pub(super) fn sync(&self) -> std::io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }
}

/// Gives a file to a user of the image.
fn own(parent: BorrowedFd<'_>, name: &Path, user: u32, group: u32) -> rustix::io::Result<()> {
    let (Some(user), Some(group)) = (Image::owner(user), Image::owner(group)) else {
        return Ok(());
    };
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    rustix::fs::chownat(
        parent,
        name,
        Some(user),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    )
}

/// What is there of this name, not what it leads to.
fn kind(parent: &OwnedFd, name: &Path) -> Option<FileType> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(FileType::from_raw_mode(stat.st_mode))
}

/// A path that leads to what is open, for calls that want one.
fn path_of(file: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Removes whatever has this name, with all that is in it.
fn remove(parent: &OwnedFd, name: &Path) -> std::io::Result<()> {
    match kind(parent, name) {
        None => Ok(()),
        // It does not follow links.
        Some(FileType::Directory) => std::fs::remove_dir_all(path_of(parent.as_fd()).join(name)),
        Some(_) => Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?),
    }
}

/// Removes all that is in a folder.
fn empty(folder: &OwnedFd) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path_of(folder.as_fd()))? {
        remove(folder, Path::new(&entry?.file_name()))?;
    }
    Ok(())
}
