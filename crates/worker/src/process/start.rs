//! A program starts: its folder, its sockets, its output.

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

use super::confine::Confinement;
use super::ending::Ended;
use super::{Process, Program, asking};
use crate::call::CallError;
use crate::logs::{Level, LineStream, LogSink, Writer};
use crate::running::Running;
use crate::settings::{FileGrant, FunctionSettings};

/// How long a program may take until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Pauses between two looks whether it listens.
const FIRST_LOOK: Duration = Duration::from_micros(500);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// How long it may take to read what a program wrote that has ended.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// Bytes of output that are read at once.
const OUTPUT: usize = 4 << 10;

/// A worker's folder, removed when it is gone.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Folder {
    fn create(run: &Path) -> std::io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = run.join(format!("{:016x}", fastrand::u64(..)));
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&path)?;
        Ok(Self(path))
    }
}

fn cannot(what: &str, error: impl std::fmt::Display) -> CallError {
    CallError::Start(format!("{what}: {error}"))
}

impl Process {
    /// Starts a program and waits until it listens.
    pub(crate) async fn start(
        program: &Program,
        function: &FunctionName,
        settings: &Arc<FunctionSettings>,
        logs: &Arc<dyn LogSink>,
    ) -> Result<Self, CallError> {
        let folder = Folder::create(&program.run);
        let folder = folder.map_err(|error| cannot("its folder cannot be made", error))?;
        let (socket, state) = (folder.0.join("function"), folder.0.join("state"));
        let asked = asking::listen(&state);
        let asked = asked.map_err(|error| cannot("its socket cannot be made", error))?;
        let mut command = command(program, settings, &folder.0)?;
        command
            .current_dir(&program.folder)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .envs(settings.env.iter().map(|(name, value)| (name, value)))
            .env("HOME", &folder.0)
            .env("TMPDIR", &folder.0)
            .env("FULMAR_SOCKET", &socket)
            .env("FULMAR_STATE_SOCKET", &state)
            .env("FULMAR_FUNCTION", function.as_str())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|error| cannot(&format!("{:?} cannot be run", program.command), error))?;
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
        let mut ended = Ended::watch(child, folder);
        let stream = tokio::select! {
            stream = connect(&socket) => stream?,
            why = ended.ended() => return Err(did_not_listen(&why, errors).await),
        };
        Ok(Self {
            sender: talk(stream).await?,
            socket,
            asked,
            ended,
            running: Running::default(),
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

/// What is run: a name is looked for on the path, what has a `/` in the program's folder.
fn command(
    program: &Program,
    settings: &FunctionSettings,
    folder: &Path,
) -> Result<Command, CallError> {
    let Some((launcher, by)) = program.launcher.split_first() else {
        return Err(CallError::Start("this node runs no programs".to_owned()));
    };
    let Some((first, arguments)) = program.command.split_first() else {
        return Err(CallError::Start(
            "it says nothing of what to run".to_owned(),
        ));
    };
    let (written, read): (Vec<_>, Vec<_>) = settings.files.iter().partition(|file| file.writable);
    let folders = |files: Vec<&FileGrant>, own: &Path| {
        let granted = files.into_iter().map(|file| file.host.clone());
        granted.chain([own.to_owned()]).collect()
    };
    let confinement = Confinement {
        read: folders(read, &program.folder),
        write: folders(written, folder),
        network: settings.network,
        memory_bytes: settings.memory_bytes as u64,
    };
    let confinement = serde_json::to_string(&confinement)
        .map_err(|error| cannot("its confinement cannot be said", error))?;
    let mut command = Command::new(launcher);
    command.args(by).arg(confinement);
    match first.contains('/') {
        true => command.arg(program.folder.join(first)),
        false => command.arg(first),
    };
    command.args(arguments);
    Ok(command)
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
