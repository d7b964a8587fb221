//! How a program ends: by itself, or because the node wants it.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::Child;
use tokio::sync::watch;

use crate::call::CallError;

/// How long a program may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(2);
/// How long it may take until it is known that a program that no longer answers has ended.
const SOON: Duration = Duration::from_millis(200);

/// Ends the programs that a node has left behind which did not end itself, and removes their folders, all of which are in
/// `run`. A program names its socket in its environment, and so does what it has started.
///
/// # Errors
/// When the folder cannot be removed.
pub fn end_left_over(run: &Path) -> std::io::Result<()> {
    if !run.exists() {
        return Ok(());
    }
    let name = [b"FULMAR_SOCKET=", run.as_os_str().as_encoded_bytes(), b"/"].concat();
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
            .any(|entry| entry.starts_with(&name))
        {
            let _ = kill_process(id, Signal::KILL);
        }
    }
    std::fs::remove_dir_all(run)
}

/// Whether a program has ended. Dropped, it is ended, with all that it has started.
pub(super) struct Ended {
    status: watch::Receiver<Option<String>>,
    group: Option<Pid>,
}

impl Ended {
    /// Watches over a program that leads a process group of its own; `after` is dropped when it is gone.
    pub(super) fn watch(mut child: Child, after: impl Send + 'static) -> Self {
        let group = child.id().and_then(|id| Pid::from_raw(id as i32));
        let (tell, status) = watch::channel(None);
        tokio::spawn(async move {
            let text = match child.wait().await {
                Ok(status) => describe(status),
                Err(error) => error.to_string(),
            };
            // What it has started does not outlive it.
            end(group, Signal::KILL);
            drop(after);
            tell.send_replace(Some(text));
        });
        Self { status, group }
    }

    /// Why it cannot answer, as soon as it has ended.
    pub(super) async fn ended(&mut self) -> CallError {
        let status = self.status.wait_for(Option::is_some).await;
        let status = status.ok().and_then(|status| status.clone());
        CallError::Exited(status.unwrap_or_else(|| "nobody knows how".to_owned()))
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
