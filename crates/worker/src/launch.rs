//! What a worker that is a process is started by: a launcher, a process of this binary that enters the worker's cgroups, gives
//! up what the function may not have, and then becomes the program. That cannot be done between `fork` and `exec` of a
//! process with threads.

mod calls;
mod confine;
mod stage;

use std::convert::Infallible;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use serde::{Deserialize, Serialize};

pub(crate) use calls::REFUSED;
pub(crate) use confine::{Confinement, FILE_BYTES, OPEN_FILES};
pub(crate) use stage::{OWN_SHOWN, ROOT_SHOWN, SHOWN, Stage};

/// What a launcher does, its first argument in JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// The worker's cgroups: files to which it writes that it enters.
    pub(crate) cgroups: Vec<PathBuf>,
    pub(crate) then: Then,
}

/// What is done before it becomes the program.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Then {
    /// It is confined.
    Confine(Confinement),
    /// It becomes an OCI runtime, which confines; what that needs is put in place.
    Stage(Stage),
}

/// A worker's process cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launcher was called in a way that the node does not call it.
    #[error("this is called by a node only: {0}")]
    Called(String),
    /// The kernel does not do it.
    #[error(
        "this kernel cannot confine programs: {0}. Landlock (Linux 5.13 or later) has to be enabled"
    )]
    Kernel(String),
    /// It cannot enter its cgroup.
    #[error("{} cannot be entered: {error}", path.display())]
    Cgroup {
        /// Where it would enter.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The files of a container cannot be put in place.
    #[error("the files of a container cannot be put in place: {0}")]
    Stage(rustix::io::Errno),
    /// It cannot be run.
    #[error("{program} cannot be run: {error}")]
    Run {
        /// What is run.
        program: String,
        /// Why not.
        error: std::io::Error,
    },
}

fn kernel(error: impl std::fmt::Display) -> LaunchError {
    LaunchError::Kernel(error.to_string())
}

/// Becomes the program that the arguments name, as the first of them says.
///
/// # Errors
/// If it comes back, why.
pub fn become_program(
    mut arguments: impl Iterator<Item = String>,
) -> Result<Infallible, LaunchError> {
    let called = |what: &str| LaunchError::Called(what.to_owned());
    let orders = arguments.next().ok_or_else(|| called("no orders"))?;
    let program = arguments.next().ok_or_else(|| called("no program"))?;
    let orders: Orders =
        serde_json::from_str(&orders).map_err(|error| called(&error.to_string()))?;
    for path in orders.cgroups {
        std::fs::write(&path, "0").map_err(|error| LaunchError::Cgroup { path, error })?;
    }
    let mut command = Command::new(&program);
    command.args(arguments);
    match &orders.then {
        Then::Confine(confinement) => confinement.apply()?,
        Then::Stage(stage) => stage.set().map_err(LaunchError::Stage)?,
    }
    let error = command.exec();
    Err(LaunchError::Run { program, error })
}
