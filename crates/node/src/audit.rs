//! Who changed what through the admin API: one line of JSON each, in a file of its own.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use http::{Method, Request, StatusCode};
use parking_lot::Mutex;
use serde_json::json;

use crate::clock;

/// The file's name in the data directory.
pub(crate) const FILE: &str = "audit.jsonl";
/// The one before it.
const OLDER_FILE: &str = "audit.1.jsonl";
/// Bytes after which a new file is begun; the one before it is kept, older ones go.
const MAX_BYTES: u64 = 16 << 20;

/// The file.
pub(crate) struct Audit {
    folder: PathBuf,
    file: Mutex<File>,
}

/// Something that changes the node.
pub(crate) struct Action {
    method: Method,
    path: String,
    peer: IpAddr,
    token: Option<String>,
}

impl Action {
    /// None for what only reads.
    pub(crate) fn of<B>(request: &Request<B>, peer: IpAddr, token: Option<String>) -> Option<Self> {
        let is_read = matches!(
            *request.method(),
            Method::GET | Method::HEAD | Method::OPTIONS
        );
        (!is_read).then(|| Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            peer,
            token,
        })
    }
}

impl Audit {
    pub(crate) fn open(folder: &Path) -> std::io::Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            file: Mutex::new(append(folder)?),
        })
    }

    /// Writes a line. An action that was carried out is not undone because its line cannot be
    /// written, which is logged instead.
    pub(crate) fn write(&self, action: &Action, status: StatusCode) {
        let line = json!({
            "time": clock::rfc3339(clock::unix_ms()),
            "token": action.token,
            "peer": action.peer,
            "method": action.method.as_str(),
            "path": action.path,
            "status": status.as_u16(),
        });
        let mut file = self.file.lock();
        if let Err(error) = self.append(&mut file, &format!("{line}\n")) {
            tracing::error!(%error, %line, "an admin action could not be written to the audit log");
        }
    }

    fn append(&self, file: &mut File, line: &str) -> std::io::Result<()> {
        if file.metadata()?.len() + line.len() as u64 > MAX_BYTES {
            std::fs::rename(self.folder.join(FILE), self.folder.join(OLDER_FILE))?;
            *file = append(&self.folder)?;
        }
        file.write_all(line.as_bytes())
    }
}

fn append(folder: &Path) -> std::io::Result<File> {
    let path = folder.join(FILE);
    OpenOptions::new().create(true).append(true).open(path)
}
