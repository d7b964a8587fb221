//! What a node starts programs with: the launcher, the folder of their sockets, their cgroups. What one run of a node
//! leaves behind the next one ends.

use std::hash::BuildHasher as _;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustc_hash::FxBuildHasher;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::cgroup::{self, Cgroups};

/// Longest path of the folder: those of sockets have at most 108 bytes, of which their names take some.
const LONGEST: usize = 70;
/// The file in the folder that lists the node's cgroups.
const CGROUPS: &str = "cgroups";

/// How a node runs programs.
#[derive(Debug)]
pub struct Programs {
    /// What becomes a program: a binary, with the arguments that make it call [`become_program`](crate::become_program).
    /// Empty if this node runs none.
    pub(crate) launcher: Vec<String>,
    /// Where their workers have their sockets.
    pub(crate) run: PathBuf,
    /// The node's name among those of the machine.
    name: String,
    /// Made with the first worker; why there are none.
    cgroups: OnceLock<Result<Cgroups, String>>,
    /// How many workers there are, those included that are being ended.
    workers: watch::Sender<usize>,
}

/// Tells the processes of a node's workers from all others: in their environment, its name and that of the worker.
pub(crate) const WORKER: &str = "FULMAR_WORKER";

/// A worker's folder, removed when it is gone.
pub(crate) struct Folder {
    pub(crate) path: PathBuf,
    /// The worker's name among those of the machine.
    pub(crate) name: String,
    programs: Arc<Programs>,
}

impl Folder {
    /// Kills what is left of the worker: it has its name in its environment.
    pub(crate) async fn end_processes(&self) {
        let entry = format!("{WORKER}={}", self.name);
        // It fails if the node is stopping; the next start does the same.
        let _ = tokio::task::spawn_blocking(move || end_with(entry.as_bytes())).await;
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
        self.programs.workers.send_modify(|count| *count -= 1);
    }
}

impl Programs {
    /// Those of a node with this data directory and identifier; ends what an earlier run has left.
    ///
    /// # Errors
    /// When the folder of an earlier run cannot be removed, or a new one cannot be made.
    pub fn open(launcher: Vec<String>, data: &Path, instance: &str) -> std::io::Result<Self> {
        let mut run = data.join("run");
        // A copy of a data directory has the same identifier.
        let place = FxBuildHasher.hash_one(&run) as u32;
        let name = format!("fulmar-{}-{place:08x}", &instance[..instance.len().min(16)]);
        if run.as_os_str().len() > LONGEST {
            run = std::env::temp_dir().join(&name);
        }
        end_left_over(&run, &name)?;
        // Not one that somebody else has made.
        std::fs::DirBuilder::new().mode(0o700).create(&run)?;
        Ok(Self {
            launcher,
            run,
            name,
            cgroups: OnceLock::new(),
            workers: watch::Sender::new(0),
        })
    }

    /// A folder for a worker.
    pub(crate) fn folder(self: &Arc<Self>) -> std::io::Result<Folder> {
        let id = format!("{:016x}", fastrand::u64(..));
        let path = self.run.join(&id);
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700).create(&path)?;
        self.workers.send_modify(|count| *count += 1);
        Ok(Folder {
            path,
            name: format!("{}-{id}", self.name),
            programs: self.clone(),
        })
    }

    /// Waits until all workers have ended that were dropped.
    pub async fn ended(&self) {
        // The sender is here.
        let _ = self.workers.subscribe().wait_for(|count| *count == 0).await;
    }

    /// The cgroups of the node's workers.
    ///
    /// # Errors
    /// Why there are none.
    pub(crate) fn cgroups(&self) -> Result<&Cgroups, &str> {
        let made = self.cgroups.get_or_init(|| {
            let made = Cgroups::make(&self.name).and_then(|made| {
                self.note(&made)?;
                Ok(made)
            });
            made.map_err(|error| {
                tracing::warn!(%error, "memory of programs is bounded for each process, not for a whole worker, and their CPU is not");
                error.to_string()
            })
        });
        made.as_ref().map_err(String::as_str)
    }

    /// Why the memory of a whole worker and its CPU cannot be bounded here, if so.
    pub fn why_no_cgroups(&self) -> Option<&str> {
        self.cgroups().err()
    }

    /// Writes down which cgroups there are.
    fn note(&self, cgroups: &Cgroups) -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(self.run.join(CGROUPS))?;
        for folder in cgroups.folders() {
            writeln!(file, "{}", folder.display())?;
        }
        Ok(())
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        drop(self.cgroups.take());
        let _ = std::fs::remove_dir_all(&self.run);
    }
}

/// Ends the programs that a node of this name has left behind which did not end itself, and removes their folders, all of
/// which are in `run`: what is in its cgroups, and what has the node's name in its environment.
fn end_left_over(run: &Path, name: &str) -> std::io::Result<()> {
    if !run.exists() {
        return Ok(());
    }
    let cgroups = std::fs::read_to_string(run.join(CGROUPS)).unwrap_or_default();
    for folder in cgroups.lines() {
        cgroup::end_left_over(Path::new(folder));
    }
    end_with(format!("{WORKER}={name}-").as_bytes());
    std::fs::remove_dir_all(run)
}

/// Kills every process with an environment of which an entry starts like this.
fn end_with(start: &[u8]) {
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let id = process.file_name();
        let id = id
            .to_str()
            .and_then(|id| id.parse().ok())
            .and_then(Pid::from_raw);
        // Those of others cannot be read, and are none of ours.
        let environment = std::fs::read(process.path().join("environ"));
        let (Some(id), Ok(environment)) = (id, environment) else {
            continue;
        };
        if environment
            .split(|byte| *byte == 0)
            .any(|entry| entry.starts_with(start))
        {
            let _ = kill_process(id, Signal::KILL);
        }
    }
}
