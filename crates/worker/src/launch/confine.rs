//! What keeps a program to itself: Landlock bounds the files that it opens, the processes that it may signal and, with
//! seccomp, the network; where services of the machine have their sockets is hidden, if the node may do that; capabilities
//! are given up; resource limits bound its files and what it writes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::process::{Resource, Rlimit, geteuid, setrlimit};
use rustix::thread::{CapabilitySet, UnshareFlags, unshare_unsafe};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use serde::{Deserialize, Serialize};

use super::{LaunchError, REFUSED, kernel};

/// Bytes of one file that a program writes.
pub(crate) const FILE_BYTES: u64 = 1 << 30;
/// Files and sockets that it has open at once.
pub(crate) const OPEN_FILES: u64 = 1024;
/// What every program may read and run.
const SYSTEM: [&str; 13] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc",
    "/opt",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/sys/kernel/mm/transparent_hugepage",
];
/// Devices that it may use.
const DEVICES: [&str; 5] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
];

/// Where services of the machine have their sockets: who may connect to those Landlock does not ask.
const HIDDEN: [&str; 3] = ["/run", "/var/run", "/tmp"];

/// What a program may use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Confinement {
    /// Folders that it may read and run.
    pub(crate) read: Vec<PathBuf>,
    /// Folders that it may write as well.
    pub(crate) write: Vec<PathBuf>,
    /// Whether it may use the network.
    pub(crate) network: bool,
    /// Bytes of memory that each of its processes may have for itself, if nothing else bounds them.
    pub(crate) memory_bytes: Option<u64>,
}

impl Confinement {
    /// Gives up what the program may not have.
    pub(super) fn apply(&self) -> Result<(), LaunchError> {
        self.limits().map_err(kernel)?;
        self.hide().map_err(kernel)?;
        self.files()?;
        rustix::thread::set_capabilities(
            None,
            rustix::thread::CapabilitySets {
                effective: CapabilitySet::empty(),
                permitted: CapabilitySet::empty(),
                inheritable: CapabilitySet::empty(),
            },
        )
        .map_err(kernel)?;
        self.calls()
    }

    fn limits(&self) -> rustix::io::Result<()> {
        for (resource, limit) in [
            (Resource::Core, Some(0)),
            (Resource::Nofile, Some(OPEN_FILES)),
            (Resource::Fsize, Some(FILE_BYTES)),
            (Resource::Data, self.memory_bytes),
        ] {
            if limit.is_none() {
                continue;
            }
            setrlimit(
                resource,
                Rlimit {
                    current: limit,
                    maximum: limit,
                },
            )?;
        }
        Ok(())
    }

    /// Hides what is in some folders, if none of its own is there; without the right to it, as nodes that do not run as root
    /// are, the sockets are those that the node's user may use.
    fn hide(&self) -> rustix::io::Result<()> {
        if !geteuid().is_root() {
            return Ok(());
        }
        // SAFETY: the mount namespace has nothing to do with file descriptors or memory, and this process has one thread.
        #[allow(unsafe_code)]
        match unsafe { unshare_unsafe(UnshareFlags::NEWNS) } {
            // Root, but not of this machine.
            Err(rustix::io::Errno::PERM) => return Ok(()),
            unshared => unshared?,
        }
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )?;
        for hidden in HIDDEN {
            let Ok(folder) = std::fs::canonicalize(hidden) else {
                continue;
            };
            let own = self.read.iter().chain(&self.write);
            let own = own.filter_map(|own| std::fs::canonicalize(own).ok());
            if !own.into_iter().any(|own| own.starts_with(&folder)) {
                let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
                mount("none", &folder, "tmpfs", flags, None)?;
            }
        }
        Ok(())
    }

    fn files(&self) -> Result<(), LaunchError> {
        // Without files there is no confinement; the first with signals is used as far as it is there.
        const LEAST: ABI = ABI::V1;
        const MOST: ABI = ABI::V6;
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_all(LEAST))
            .map(|rules| rules.set_compatibility(CompatLevel::BestEffort))
            .and_then(|rules| rules.handle_access(AccessFs::from_all(MOST)))
            .and_then(|rules| rules.scope(Scope::from_all(MOST)))
            .map_err(kernel)?;
        if !self.network {
            rules = rules
                .handle_access(AccessNet::from_all(MOST))
                .map_err(kernel)?;
        }
        let mut rules = rules.create().map_err(kernel)?;
        let read = AccessFs::from_read(MOST);
        let all = AccessFs::from_all(MOST);
        let system = SYSTEM.iter().map(|path| (Path::new(path), read));
        let devices = DEVICES.iter().map(|path| (Path::new(path), all));
        let granted = self.read.iter().map(|path| (path.as_path(), read));
        let written = self.write.iter().map(|path| (path.as_path(), all));
        for (path, access) in system.chain(devices).chain(granted).chain(written) {
            // Not every system has all of them.
            let Ok(opened) = PathFd::new(path) else {
                continue;
            };
            let access = match path.is_dir() {
                true => access,
                false => access & AccessFs::from_file(MOST),
            };
            rules = rules
                .add_rule(PathBeneath::new(opened, access))
                .map_err(kernel)?;
        }
        let status = rules.restrict_self().map_err(kernel)?;
        match status.ruleset {
            RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced => Ok(()),
            RulesetStatus::NotEnforced => Err(kernel("it is not enforced")),
        }
    }

    fn calls(&self) -> Result<(), LaunchError> {
        let refused = |errno: i32, rules| -> Result<(), LaunchError> {
            let arch = std::env::consts::ARCH.try_into().map_err(kernel)?;
            let (other, these) = (SeccompAction::Allow, SeccompAction::Errno(errno as u32));
            let filter = SeccompFilter::new(rules, other, these, arch).map_err(kernel)?;
            let filter: BpfProgram = filter.try_into().map_err(kernel)?;
            seccompiler::apply_filter(&filter).map_err(kernel)
        };
        let always = |calls: &[i64]| calls.iter().map(|call| (*call, Vec::new())).collect();
        // Its flags cannot be looked at; the C library then uses `clone`.
        refused(libc::ENOSYS, always(&[libc::SYS_clone3]))?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = always(&REFUSED.map(|(_, call)| call));
        rules.insert(libc::SYS_clone, vec![new_namespaces()?]);
        if !self.network {
            // All but sockets of this machine.
            let family = i64::from(libc::AF_UNIX) as u64;
            let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family);
            let rule = SeccompRule::new(vec![other.map_err(kernel)?]).map_err(kernel)?;
            rules.insert(libc::SYS_socket, vec![rule]);
        }
        refused(libc::EPERM, rules)
    }
}

/// `clone` with a new user namespace, in which a process has all capabilities again.
fn new_namespaces() -> Result<SeccompRule, LaunchError> {
    let flag = libc::CLONE_NEWUSER as u64;
    let masked = SeccompCmpOp::MaskedEq(flag);
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, masked, flag);
    SeccompRule::new(vec![condition.map_err(kernel)?]).map_err(kernel)
}
