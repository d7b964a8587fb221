//! How a program ends: by itself, or because the node wants it.

use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;
use tokio::sync::watch;

use crate::call::CallError;
use crate::cgroup::Cgroup;
use crate::programs::Folder;

/// How long a program may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How long it may take until it is known that a program that no longer answers has ended.
const SOON: Duration = Duration::from_millis(200);

/// What holds a program and all that it starts.
pub(super) struct Bounds {
    /// None where there are no cgroups.
    pub(super) cgroup: Option<Cgroup>,
    /// What its memory is bounded by.
    pub(super) memory_bytes: usize,
}

/// Whether a program has ended. Dropped, it is ended, with all that it has started.
pub(super) struct Ended {
    status: watch::Receiver<Option<CallError>>,
    group: Option<Pid>,
}

impl Ended {
    /// Watches over a program that leads a process group of its own; `folder` goes with it.
    pub(super) fn watch(mut child: Child, bounds: Bounds, folder: Folder) -> Self {
        let group = child.id().and_then(|id| Pid::from_raw(id as i32));
        let (tell, status) = watch::channel(None);
        tokio::spawn(async move {
            let why = match child.wait().await {
                Ok(status) => CallError::Exited(describe(status)),
                Err(error) => CallError::Exited(error.to_string()),
            };
            let cgroup = bounds.cgroup.as_ref();
            let limit = bounds.memory_bytes;
            let why = match cgroup.is_some_and(Cgroup::is_out_of_memory) {
                true => CallError::MemoryLimit { limit },
                false => why,
            };
            tell.send_replace(Some(why));
            // What it has started does not outlive it.
            end(group, Signal::KILL);
            match bounds.cgroup {
                Some(cgroup) => cgroup.end().await,
                None => folder.end_processes().await,
            }
            drop(folder);
        });
        Self { status, group }
    }

    /// Why it cannot answer, as soon as it has ended.
    pub(super) async fn ended(&mut self) -> CallError {
        let why = self.status.wait_for(Option::is_some).await;
        let why = why.ok().and_then(|why| why.clone());
        why.unwrap_or_else(|| CallError::Exited("nobody knows how".to_owned()))
    }

    /// Why a connection to it broke.
    pub(super) async fn explain(&mut self, error: &hyper::Error) -> CallError {
        match tokio::time::timeout(SOON, self.ended()).await {
            Ok(why) => why,
            Err(_) => CallError::Failed(format!("its answer is not HTTP/1.1: {error}")),
        }
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        if self.status.borrow().is_some() {
            return;
        }
        end(self.group, Signal::TERM);
        let (mut status, group) = (self.status.clone(), self.group);
        let wait = async move {
            let gone = status.wait_for(Option::is_some);
            if tokio::time::timeout(GRACE, gone).await.is_err() {
                end(group, Signal::KILL);
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => _ = runtime.spawn(wait),
            Err(_) => end(self.group, Signal::KILL),
        }
    }
}

fn end(group: Option<Pid>, signal: Signal) {
    if let Some(group) = group {
        // It may be gone.
        let _ = kill_process_group(group, signal);
    }
}

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it exited with status {code}"),
        (None, Some(signal)) => format!("signal {signal} ended it"),
        _ => status.to_string(),
    }
}
