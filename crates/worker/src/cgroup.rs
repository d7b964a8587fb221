//! What a worker that is a process may use of the machine, together with all that it starts: a cgroup for each, of either
//! version of the kernel's interface.
//!
//! A node has a group of its own in each hierarchy, with one for each worker in it. The worker's process enters it by
//! itself before it runs anything of the function.

mod hierarchies;
mod usage;

pub(crate) use usage::Usage;
pub use usage::{Spent, Used};

use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::settings::Cpu;
use hierarchies::{Controller, Hierarchy};

/// Where a node goes in a group of version 2 of which others are to be made.
const NODE: &str = "node";
/// Processes and threads of one worker.
const PROCESSES: u32 = 1024;
/// Over which time CPU is bounded, in microseconds.
const CPU_PERIOD_US: u64 = 100_000;
/// Weight of a worker that has CPU reserved, so that those without leave it that; the most that there is in version 2.
const RESERVED_WEIGHT: u64 = 10_000;
/// Pauses until a group is empty whose processes were killed. There is no event for that in version 1.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
const LAST_PAUSE: Duration = Duration::from_secs(1);

/// Where this node has the groups of its workers.
#[derive(Debug)]
pub(crate) struct Cgroups {
    parts: Vec<Part>,
}

/// A node's group in one hierarchy, or a worker's.
#[derive(Debug, Clone)]
struct Part {
    folder: PathBuf,
    is_v2: bool,
    controllers: Vec<Controller>,
}

/// A worker's groups. Whoever lets a process enter them has to [`end`](Self::end) them.
#[derive(Debug)]
pub(crate) struct Cgroup {
    parts: Vec<Part>,
}

fn context(path: &Path) -> impl FnOnce(Error) -> Error {
    move |error| Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn write(folder: &Path, file: &str, text: &str) -> std::io::Result<()> {
    let path = folder.join(file);
    std::fs::write(&path, text).map_err(context(&path))
}

fn make(folder: &Path) -> std::io::Result<()> {
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(context(folder)),
    }
}

impl Cgroups {
    /// Makes the groups of a node of this name.
    ///
    /// # Errors
    /// Why memory and CPU cannot be bounded here.
    pub(crate) fn make(name: &str) -> std::io::Result<Self> {
        let mut lacks = Controller::NEEDED.to_vec();
        let mut parts = Vec::new();
        let mut why = None;
        let mut hierarchies = hierarchies::find()?;
        hierarchies.sort_by_key(|hierarchy| hierarchy.is_v2);
        for hierarchy in hierarchies {
            let wanted = match hierarchy.is_v2 {
                // All that no other has.
                true => lacks.clone(),
                false => hierarchy.controllers(&hierarchy.own),
            };
            if wanted.is_empty() {
                continue;
            }
            match part(&hierarchy, name, &wanted) {
                Ok(part) => {
                    lacks.retain(|controller| !part.controllers.contains(controller));
                    parts.push(part);
                }
                Err(error) => why = Some(error),
            }
        }
        let made = Self { parts };
        if lacks.is_empty() {
            return Ok(made);
        }
        drop(made);
        let lacks: Vec<&str> = lacks.into_iter().map(Controller::name).collect();
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        let text = format!("there is no cgroup for {}{why}", lacks.join(", "));
        Err(Error::new(ErrorKind::Unsupported, text))
    }

    /// The folders, for whoever cleans up after this node.
    pub(crate) fn folders(&self) -> impl Iterator<Item = &Path> {
        self.parts.iter().map(|part| &*part.folder)
    }

    /// A group for a worker.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(crate) fn group(&self, name: &str, memory_bytes: u64, cpu: Cpu) -> std::io::Result<Cgroup> {
        let mut group = Cgroup { parts: Vec::new() };
        for part in &self.parts {
            let folder = part.folder.join(name);
            make(&folder)?;
            let part = Part {
                folder,
                ..part.clone()
            };
            // Before it is bounded, so that it is removed if it cannot be.
            group.parts.push(part.clone());
            for controller in &part.controllers {
                match controller {
                    Controller::Memory => part.bound_memory(memory_bytes)?,
                    Controller::Cpu => part.bound_cpu(cpu)?,
                    Controller::Usage => {}
                    Controller::Pids => write(&part.folder, "pids.max", &PROCESSES.to_string())?,
                }
            }
        }
        Ok(group)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // Whoever waited for workers to end may have been cut off.
        for part in &self.parts {
            end_left_over(&part.folder);
        }
    }
}

/// The group of this name: below the group of this process, or below the root where that cannot be.
fn part(hierarchy: &Hierarchy, name: &str, wanted: &[Controller]) -> std::io::Result<Part> {
    let below = |parent: &Path| -> std::io::Result<Part> {
        let offered = hierarchy.controllers(parent);
        let missing = wanted
            .iter()
            .find(|controller| !offered.contains(controller));
        if let Some(missing) = missing {
            let text = format!(
                "{} has no controller for {}",
                parent.display(),
                missing.name()
            );
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let folder = parent.join(name);
        if hierarchy.is_v2 {
            enable(parent, wanted)?;
        }
        make(&folder)?;
        if hierarchy.is_v2 {
            enable(&folder, wanted)?;
        }
        Ok(Part {
            folder,
            is_v2: hierarchy.is_v2,
            controllers: wanted.to_vec(),
        })
    };
    let own = &*hierarchy.own;
    // Where it was before it made room.
    let above = own.parent().filter(|_| own.ends_with(NODE));
    let mut found = Err(Error::from(ErrorKind::NotFound));
    for parent in above.into_iter().chain([own, &*hierarchy.root]) {
        found = below(parent);
        if found.is_ok() {
            break;
        }
    }
    found
}

/// Lets groups below `parent` (of version 2) have controllers. Such a parent must have no processes: if this one is alone
/// in it, it goes one further down.
fn enable(parent: &Path, controllers: &[Controller]) -> std::io::Result<()> {
    let wanted: Vec<String> = controllers
        .iter()
        .map(|controller| format!("+{}", controller.name()))
        .collect();
    let enable = || write(parent, "cgroup.subtree_control", &wanted.join(" "));
    match enable() {
        Err(error) if error.kind() == ErrorKind::ResourceBusy => {
            let procs = std::fs::read_to_string(parent.join("cgroup.procs"))?;
            let own = std::process::id().to_string();
            if procs.lines().any(|id| id != own) {
                return Err(error);
            }
            let node = parent.join(NODE);
            make(&node)?;
            write(&node, "cgroup.procs", &own)?;
            enable()
        }
        enabled => enabled,
    }
}

impl Part {
    fn bound_memory(&self, bytes: u64) -> std::io::Result<()> {
        let bytes = bytes.to_string();
        if self.is_v2 {
            write(&self.folder, "memory.max", &bytes)?;
            // All of it ends, not one process of it.
            write(&self.folder, "memory.oom.group", "1")?;
            return optional(write(&self.folder, "memory.swap.max", "0"));
        }
        write(&self.folder, "memory.limit_in_bytes", &bytes)?;
        optional(write(&self.folder, "memory.memsw.limit_in_bytes", &bytes))
    }

    fn bound_cpu(&self, cpu: Cpu) -> std::io::Result<()> {
        let (weight, quota) = match cpu {
            Cpu::Weight(weight) => (u64::from(weight), None),
            Cpu::Reserved { millis } => {
                let quota = u64::from(millis) * CPU_PERIOD_US / 1000;
                (RESERVED_WEIGHT, Some(quota))
            }
        };
        if self.is_v2 {
            write(&self.folder, "cpu.weight", &weight.to_string())?;
            let max = quota.map(|quota| format!("{quota} {CPU_PERIOD_US}"));
            return max.map_or(Ok(()), |max| write(&self.folder, "cpu.max", &max));
        }
        // 1024 is what 100 is in version 2.
        let shares = weight * 1024 / 100;
        write(&self.folder, "cpu.shares", &shares.to_string())?;
        if let Some(quota) = quota {
            write(
                &self.folder,
                "cpu.cfs_period_us",
                &CPU_PERIOD_US.to_string(),
            )?;
            write(&self.folder, "cpu.cfs_quota_us", &quota.to_string())?;
        }
        Ok(())
    }

    /// How often a process of it was killed since there was no memory for it.
    fn killed(&self) -> u64 {
        let file = match self.is_v2 {
            true => "memory.events",
            false => "memory.oom_control",
        };
        let told = std::fs::read_to_string(self.folder.join(file)).unwrap_or_default();
        let count = told
            .lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
        count.unwrap_or_default()
    }
}

/// Accepts that a kernel does not have this.
fn optional(written: std::io::Result<()>) -> std::io::Result<()> {
    match written {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        written => written,
    }
}

impl Cgroup {
    /// Where a process writes `0` to enter.
    pub(crate) fn entrances(&self) -> Vec<PathBuf> {
        let folders = self.parts.iter();
        folders
            .map(|part| part.folder.join("cgroup.procs"))
            .collect()
    }

    /// Where it is counted what it uses, if anywhere.
    pub(crate) fn usage(&self) -> Option<Usage> {
        let counts = |part: &&Part| match part.is_v2 {
            true => part.controllers.contains(&Controller::Cpu),
            false => part.controllers.contains(&Controller::Usage),
        };
        let part = self.parts.iter().find(counts)?;
        Some(Usage::of(&part.folder, part.is_v2))
    }

    /// Whether the kernel has killed any of its processes since there was no memory for them.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let memory = |part: &&Part| part.controllers.contains(&Controller::Memory);
        self.parts
            .iter()
            .find(memory)
            .is_some_and(|part| part.killed() > 0)
    }

    /// Kills whatever is left in it, and removes it.
    pub(crate) async fn end(self) {
        let mut pause = FIRST_PAUSE;
        while !self.parts.iter().all(|part| is_removed(&part.folder)) {
            if pause > LAST_PAUSE {
                tracing::warn!(group = ?self, "processes of a worker do not end; the next start of the node tries again");
                return;
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for part in &self.parts {
            // Nobody has entered it, or it has ended.
            let _ = std::fs::remove_dir(&part.folder);
        }
    }
}

/// Where the second version is on a machine that has both: not every OCI runtime can live with that.
pub(crate) fn second_of_two() -> Vec<PathBuf> {
    let found = hierarchies::find().unwrap_or_default();
    let has_first = found.iter().any(|hierarchy| !hierarchy.is_v2);
    let second = found
        .into_iter()
        .filter(|hierarchy| hierarchy.is_v2 && has_first);
    second.map(|hierarchy| hierarchy.root).collect()
}

/// Kills what is in a group, and removes it if nothing is left.
fn is_removed(folder: &Path) -> bool {
    let ids = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    for id in ids.lines().filter_map(|id| Pid::from_raw(id.parse().ok()?)) {
        // It may be gone.
        let _ = kill_process(id, Signal::KILL);
    }
    match std::fs::remove_dir(folder) {
        Ok(()) => true,
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

/// Removes the groups that a node has left behind, with all that is in them.
pub(crate) fn end_left_over(folder: &Path) {
    let workers = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut groups: Vec<PathBuf> = workers
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    groups.push(folder.to_owned());
    let mut pause = FIRST_PAUSE;
    while !groups.iter().all(|group| is_removed(group)) && pause <= LAST_PAUSE {
        std::thread::sleep(pause);
        pause *= 2;
    }
}
