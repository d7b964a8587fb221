//! How a program is started: with what it is granted, and nothing else of the node's.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fulmar_model::FunctionName;

use super::start::{Launch, Launches, SOCKET, STATE};
use crate::call::CallError;
use crate::launch::{Confinement, Then};
use crate::programs::{Folder, Programs};
use crate::settings::{FileGrant, FunctionSettings};

/// Where names of commands are looked for.
pub(crate) const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program as it is deployed.
#[derive(Debug, Clone)]
pub struct Program {
    /// Where its files are; it starts in this folder.
    pub folder: PathBuf,
    /// What is run, with its arguments; a path with a `/` is one in the folder.
    pub command: Vec<String>,
    /// What this node runs programs with.
    pub programs: Arc<Programs>,
}

impl Launches for Program {
    fn programs(&self) -> &Arc<Programs> {
        &self.programs
    }

    fn own(&self, folder: &Folder) -> std::io::Result<PathBuf> {
        Ok(folder.path.clone())
    }

    fn launch(
        &self,
        function: &FunctionName,
        settings: &FunctionSettings,
        folder: &Folder,
        is_bounded: bool,
    ) -> Result<Launch, CallError> {
        let Some((first, arguments)) = self.command.split_first() else {
            let nothing = "it says nothing of what to run";
            return Err(CallError::Start(nothing.to_owned()));
        };
        let first = match first.contains('/') {
            true => self.folder.join(first).into(),
            false => OsString::from(first),
        };
        let own = &folder.path;
        let (written, read): (Vec<_>, Vec<_>) =
            settings.files.iter().partition(|file| file.writable);
        let folders = |files: Vec<&FileGrant>, own: &Path| {
            let granted = files.into_iter().map(|file| file.host.clone());
            granted.chain([own.to_owned()]).collect()
        };
        let confinement = Confinement {
            read: folders(read, &self.folder),
            write: folders(written, own),
            network: settings.network,
            memory_bytes: (!is_bounded).then_some(settings.memory_bytes as u64),
        };
        let given = [
            ("HOME", own.clone()),
            ("TMPDIR", own.clone()),
            ("FULMAR_SOCKET", own.join(SOCKET)),
            ("FULMAR_STATE_SOCKET", own.join(STATE)),
            ("FULMAR_FUNCTION", function.as_str().into()),
        ];
        let asked = settings.env.iter();
        let asked = asked.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let given = given.map(|(name, value)| (OsString::from(name), value.into_os_string()));
        Ok(Launch {
            then: Then::Confine(confinement),
            command: std::iter::once(first)
                .chain(arguments.iter().map(OsString::from))
                .collect(),
            folder: self.folder.clone(),
            env: std::iter::once(("PATH".into(), PATH.into()))
                .chain(asked)
                .chain(given)
                .collect(),
        })
    }
}
