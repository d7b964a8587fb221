//! What keeps a program to itself: it is started by way of a launcher, a process of this binary that gives up what the
//! program may not have and then becomes the program. That cannot be done between `fork` and `exec` of a process with
//! threads.
//!
//! Landlock bounds the files that it opens, the processes that it may signal and, with seccomp, the network; where services
//! of the machine have their sockets is hidden, if the node may do that; capabilities are given up; resource limits bound
//! its memory, its files and what it writes.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

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

/// Bytes of one file that a program writes.
const FILE_BYTES: u64 = 1 << 30;
/// Files and sockets that it has open at once.
const OPEN_FILES: u64 = 1024;
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
pub(super) struct Confinement {
    /// Folders that it may read and run.
    pub(super) read: Vec<PathBuf>,
    /// Folders that it may write as well.
    pub(super) write: Vec<PathBuf>,
    /// Whether it may use the network.
    pub(super) network: bool,
    /// Bytes of memory that it may have for itself.
    pub(super) memory_bytes: u64,
}

/// A program cannot be confined, or run.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The launcher was called in a way that the node does not call it.
    #[error("this is called by a node only: {0}")]
    Called(String),
    /// The kernel does not do it.
    #[error(
        "this kernel cannot confine programs: {0}. Landlock (Linux 5.13 or later) has to be enabled"
    )]
    Kernel(String),
    /// It cannot be run.
    #[error("{program} cannot be run: {error}")]
    Run {
        /// What is run.
        program: String,
        /// Why not.
        error: std::io::Error,
    },
}

fn kernel(error: impl std::fmt::Display) -> ConfineError {
    ConfineError::Kernel(error.to_string())
}

/// Becomes the program that the arguments name, confined as the first of them says.
///
/// # Errors
/// If it comes back, why.
pub fn become_program(
    mut arguments: impl Iterator<Item = String>,
) -> Result<Infallible, ConfineError> {
    let called = |what: &str| ConfineError::Called(what.to_owned());
    let confinement = arguments.next().ok_or_else(|| called("no confinement"))?;
    let program = arguments.next().ok_or_else(|| called("no program"))?;
    let confinement: Confinement =
        serde_json::from_str(&confinement).map_err(|error| called(&error.to_string()))?;
    let mut command = Command::new(&program);
    command.args(arguments);
    confinement.limits().map_err(kernel)?;
    confinement.hide().map_err(kernel)?;
    confinement.files()?;
    rustix::thread::set_capabilities(
        None,
        rustix::thread::CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(kernel)?;
    confinement.calls()?;
    let error = command.exec();
    Err(ConfineError::Run { program, error })
}

impl Confinement {
    fn limits(&self) -> rustix::io::Result<()> {
        for (resource, limit) in [
            (Resource::Core, 0),
            (Resource::Nofile, OPEN_FILES),
            (Resource::Fsize, FILE_BYTES),
            (Resource::Data, self.memory_bytes),
        ] {
            let limit = Some(limit);
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

    fn files(&self) -> Result<(), ConfineError> {
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

    fn calls(&self) -> Result<(), ConfineError> {
        let refused = |errno: i32, rules| -> Result<(), ConfineError> {
            let arch = std::env::consts::ARCH.try_into().map_err(kernel)?;
            let (other, these) = (SeccompAction::Allow, SeccompAction::Errno(errno as u32));
            let filter = SeccompFilter::new(rules, other, these, arch).map_err(kernel)?;
            let filter: BpfProgram = filter.try_into().map_err(kernel)?;
            seccompiler::apply_filter(&filter).map_err(kernel)
        };
        let always = |calls: &[i64]| calls.iter().map(|call| (*call, Vec::new())).collect();
        // Its flags cannot be looked at; the C library then uses `clone`.
        refused(libc::ENOSYS, always(&[libc::SYS_clone3]))?;
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> = always(&REFUSED);
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

/// Calls that no function needs, and that look into other processes, change the system, or get around these rules.
const REFUSED: [i64; 26] = [
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_by_handle_at,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_keyctl,
    libc::SYS_add_key,
];

/// `clone` with a new user namespace, in which a process has all capabilities again.
fn new_namespaces() -> Result<SeccompRule, ConfineError> {
    let flag = libc::CLONE_NEWUSER as u64;
    let masked = SeccompCmpOp::MaskedEq(flag);
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Qword, masked, flag);
    SeccompRule::new(vec![condition.map_err(kernel)?]).map_err(kernel)
}
