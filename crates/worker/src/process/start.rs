//! A program starts: its folder, its sockets, its output.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::FunctionName;
use http_body_util::Full;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::task::JoinHandle;

use super::ending::{Bounds, Ended};
use super::{Process, asking};
use crate::call::CallError;
use crate::cgroup::Cgroup;
use crate::launch::{Orders, Then};
use crate::logs::{Level, LineStream, LogSink, Writer};
use crate::programs::{Folder, Programs, WORKER};
use crate::running::Running;
use crate::settings::{Cpu, FunctionSettings};

/// Names of a worker's sockets.
pub(crate) const SOCKET: &str = "function";
pub(crate) const STATE: &str = "state";
/// How long a program may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Pauses between two looks whether it listens.
const FIRST_LOOK: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// How long it may take to read what a program wrote that has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Bytes of output that are read at once.
const OUTPUT: usize = 4 << 10;

/// How a worker's process is started.
pub(crate) struct Launch {
    /// What the launcher does.
    pub(crate) then: Then,
    /// What it becomes then, with its arguments.
    pub(crate) command: Vec<OsString>,
    /// Where it starts.
    pub(crate) folder: PathBuf,
    /// All of its environment.
    pub(crate) env: Vec<(OsString, OsString)>,
}

/// What a worker's process is started from.
pub(crate) trait Launches: Send + Sync {
    /// What the node starts it with.
    fn programs(&self) -> &Arc<Programs>;

    /// The folder for its sockets in a worker's folder, made if need be.
    fn own(&self, folder: &Folder) -> std::io::Result<PathBuf>;

    /// Gives a socket there to whoever the worker is.
    fn give(&self, _socket: &Path) -> std::io::Result<()> {
        Ok(())
    }

    /// How a worker is started; `is_bounded` if its memory is bounded by a cgroup.
    fn launch(
        &self,
        function: &FunctionName,
        settings: &FunctionSettings,
        folder: &Folder,
        is_bounded: bool,
    ) -> Result<Launch, CallError>;
}

pub(crate) fn cannot(what: &str, error: impl std::fmt::Display) -> CallError {
    CallError::Start(format!("{what}: {error}"))
}

impl Process {
    /// Starts a program and waits until it listens.
    pub(crate) async fn start(
        from: &dyn Launches,
        function: &FunctionName,
        settings: &Arc<FunctionSettings>,
        logs: &Arc<dyn LogSink>,
    ) -> Result<Self, CallError> {
        let programs = from.programs();
        let no_folder = |error| cannot("its folder cannot be made", error);
        let folder = programs.folder().map_err(no_folder)?;
        let own = from.own(&folder).map_err(no_folder)?;
        let cgroup = cgroup(programs, &folder, settings)?;
        let (socket, state) = (own.join(SOCKET), own.join(STATE));
        let asked = asking::listen(&state).and_then(|asked| {
            from.give(&state)?;
            Ok(asked)
        });
        let asked = asked.map_err(|error| cannot("its socket cannot be made", error))?;
        let launch = from.launch(function, settings, &folder, cgroup.is_some())?;
        let orders = Orders {
            cgroups: cgroup.as_ref().map(Cgroup::entrances).unwrap_or_default(),
            then: launch.then,
        };
        let orders = serde_json::to_string(&orders)
            .map_err(|error| cannot("the launcher cannot be told what to do", error))?;
        let Some((launcher, by)) = programs.launcher.split_first() else {
            return Err(CallError::Start("this node runs no programs".to_owned()));
        };
        let mut child = Command::new(launcher)
            .args(by)
            .arg(orders)
            .args(&launch.command)
            .current_dir(&launch.folder)
            .env_clear()
            .envs(launch.env)
            .env(WORKER, &folder.name)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| cannot(&format!("{:?} cannot be run", launch.command), error))?;
        let writer = Writer::new(logs.clone(), function.clone());
        if let Some(out) = child.stdout.take() {
            tokio::spawn(write_down(
                out,
                LineStream::new(writer.clone(), Level::Info),
            ));
        }
        let errors = child.stderr.take();
        let errors = errors.map(|errors| {
            let lines = LineStream::new(writer.clone(), Level::Error);
            tokio::spawn(write_down(errors, lines))
        });
        let usage = cgroup.as_ref().and_then(Cgroup::usage);
        let bounds = Bounds {
            cgroup,
            memory_bytes: settings.memory_bytes,
        };
        let mut ended = Ended::watch(child, bounds, folder);
        let stream = tokio::select! {
            stream = connect(&socket) => stream?,
            why = ended.ended() => return Err(did_not_listen(&why, errors).await),
        };
        Ok(Self {
            sender: talk(stream).await?,
            socket,
            asked,
            ended,
            usage,
            running: Running::new(settings.execution_model),
            writer,
            memories: None,
            last: None,
            max_response_bytes: settings.max_response_bytes,
        })
    }
}

/// HTTP over a connection to a program.
pub(super) async fn talk(stream: UnixStream) -> Result<SendRequest<Full<Bytes>>, CallError> {
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) =
        shaken.map_err(|error| cannot("its socket cannot be used", error))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The cgroup of a worker; none where there are none, unless what is asked for needs one.
fn cgroup(
    programs: &Programs,
    folder: &Folder,
    settings: &FunctionSettings,
) -> Result<Option<Cgroup>, CallError> {
    let cgroups = match (programs.cgroups(), settings.cpu) {
        (Ok(cgroups), _) => cgroups,
        (Err(_), Cpu::Weight(_)) => return Ok(None),
        (Err(why), Cpu::Reserved { .. }) => {
            return Err(cannot("no CPU can be reserved for it", why));
        }
    };
    let group = cgroups.group(&folder.name, settings.memory_bytes as u64, settings.cpu);
    group
        .map(Some)
        .map_err(|error| cannot("its cgroup cannot be made", error))
}

/// Connects as soon as somebody listens. There is no event for that: a socket can be seen before it listens.
pub(super) async fn connect(socket: &Path) -> Result<UnixStream, CallError> {
    let connecting = async {
        let mut pause = FIRST_LOOK;
        loop {
            match UnixStream::connect(socket).await {
                Ok(stream) => return stream,
                Err(_) => tokio::time::sleep(pause).await,
            }
            pause = (pause * 3 / 2).min(LONGEST_PAUSE);
        }
    };
    let connected = tokio::time::timeout(START_TIMEOUT, connecting).await;
    connected.map_err(|_| {
        let limit = START_TIMEOUT.as_secs();
        CallError::Start(format!(
            "it did not listen on FULMAR_SOCKET within {limit} s"
        ))
    })
}

/// Puts what a program writes into the function's log; what it wrote last.
async fn write_down(mut from: impl AsyncRead + Unpin, to: LineStream) -> Vec<u8> {
    let (mut buffer, mut last) = (vec![0; OUTPUT], Vec::new());
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        to.take(&buffer[..count]);
        last.extend_from_slice(&buffer[..count]);
        last.drain(..last.len().saturating_sub(OUTPUT));
    }
    to.end_line();
    last
}

/// Why a program ended before it listened, with its last words.
async fn did_not_listen(why: &CallError, errors: Option<JoinHandle<Vec<u8>>>) -> CallError {
    let last = match errors {
        Some(errors) => tokio::time::timeout(LAST_WORDS, errors).await,
        None => return cannot("it did not listen on FULMAR_SOCKET", why),
    };
    let last = last.ok().and_then(Result::ok).unwrap_or_default();
    let last = String::from_utf8_lossy(&last);
    let last = last.trim_end().lines().next_back().unwrap_or_default();
    cannot(
        "it did not listen on FULMAR_SOCKET",
        format!("{why}; the last that it wrote is {last:?}"),
    )
}
