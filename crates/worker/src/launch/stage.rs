//! Where an OCI runtime finds what it makes a container of.

use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind, mount_change, unmount,
};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use serde::{Deserialize, Serialize};

/// Where a runtime finds the files of an image, the folder of its sockets, and those that are granted, by number.
pub(crate) const ROOT_SHOWN: &str = "/run/fulmar-root";
pub(crate) const OWN_SHOWN: &str = "/run/fulmar-own";
pub(crate) const SHOWN: &str = "/run/fulmar-";

/// What has to be in place.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Stage {
    /// Folders, and where they are to be seen.
    pub(crate) shown: Vec<(PathBuf, PathBuf)>,
    /// What the runtime must not see: the second of two versions of cgroups.
    pub(crate) hidden: Vec<PathBuf>,
}

impl Stage {
    /// Puts it in place, for this process alone.
    pub(super) fn set(&self) -> rustix::io::Result<()> {
        if self.shown.is_empty() && self.hidden.is_empty() {
            return Ok(());
        }
        // SAFETY: the mount namespace has nothing to do with file descriptors or memory, and this process has one thread.
        #[allow(unsafe_code)]
        unsafe {
            unshare_unsafe(UnshareFlags::NEWNS)?;
        }
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private)?;
        for hidden in &self.hidden {
            unmount(hidden, UnmountFlags::DETACH)?;
        }
        // What is below it is still to be found by whoever has it open, and by nobody else.
        let sources: Vec<_> = self
            .shown
            .iter()
            .map(|(from, _)| open(from))
            .collect::<rustix::io::Result<_>>()?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("none", "/run", "tmpfs", flags, Some(c"mode=755"))?;
        for ((_, to), source) in self.shown.iter().zip(sources) {
            use std::os::fd::AsRawFd as _;
            let from = format!("/proc/self/fd/{}", source.as_raw_fd());
            rustix::fs::mkdir(to, rustix::fs::Mode::from_raw_mode(0o755))?;
            mount_bind(from, to)?;
        }
        Ok(())
    }
}

fn open(path: &Path) -> rustix::io::Result<rustix::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}
