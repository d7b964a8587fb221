//! Workers that are containers: a program that serves HTTP on a Unix socket, in an OCI container that a runtime of the
//! machine starts. The socket is in a folder that the container is given; all else is as for programs.

mod runtime;
mod spec;

use std::ffi::OsString;
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fulmar_model::FunctionName;
use rustix::process::geteuid;

use crate::call::CallError;
use crate::cgroup;
use crate::launch::{OWN_SHOWN, ROOT_SHOWN, SHOWN, Stage, Then};
use crate::process::start::{Launch, Launches, cannot};
use crate::process::{PATH, Program};
use crate::programs::{Folder, Programs};
use crate::settings::FunctionSettings;
use runtime::Runtime;
use spec::{Identity, Spec};

/// Users of containers of a node that runs as root are those of the machine from here on: nobody.
const FIRST_ID: u32 = 0x1000_0000;
/// So many of them.
const IDS: u32 = 0x1_0000;

/// An image whose files are in place.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Image {
    /// What it runs, with its arguments; empty if it does not say.
    pub command: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Where it starts; empty for `/`.
    pub folder: String,
    /// Its user.
    pub user: u32,
    /// Its group.
    pub group: u32,
}

impl Image {
    /// Folders that are there in every container.
    pub const MOUNTED: [&str; 4] = ["proc", "dev", "tmp", "run/fulmar"];

    /// Whose files are on this machine which the image says are those of a user or group; none if they are those of whoever
    /// runs the node.
    pub fn owner(id: u32) -> Option<u32> {
        geteuid().is_root().then_some(FIRST_ID + id.min(IDS - 1))
    }
}

/// A container as it is deployed.
#[derive(Debug, Clone)]
pub struct Container {
    /// Where the files of its image are.
    pub root: PathBuf,
    /// What its image says.
    pub image: Image,
    /// What is run instead of what the image says, with its arguments, unless it is empty; and what this node runs programs
    /// with.
    pub program: Program,
}

impl Launches for Container {
    fn programs(&self) -> &Arc<Programs> {
        &self.program.programs
    }

    fn own(&self, folder: &Folder) -> std::io::Result<PathBuf> {
        let own = folder.path.join("own");
        std::fs::DirBuilder::new().mode(0o700).create(&own)?;
        self.give(&own)?;
        Ok(own)
    }

    fn give(&self, path: &Path) -> std::io::Result<()> {
        match (
            Image::owner(self.image.user),
            Image::owner(self.image.group),
        ) {
            (None, None) => Ok(()),
            (user, group) => chown(path, user, group),
        }
    }

    fn launch(
        &self,
        function: &FunctionName,
        settings: &FunctionSettings,
        folder: &Folder,
        is_bounded: bool,
    ) -> Result<Launch, CallError> {
        let runtime = Runtime::find().map_err(CallError::Start)?;
        let command = match self.program.command.is_empty() {
            true => &self.image.command,
            false => &self.program.command,
        };
        if command.is_empty() {
            let nothing = "neither its image nor the manifest says what to run";
            return Err(CallError::Start(nothing.to_owned()));
        }
        let own = folder.path.join("own");
        let is_root = geteuid().is_root();
        let mut stage = Stage::default();
        // Users of the container may not go through the node's folders.
        let mut shown = |from: &Path, to: String| match is_root {
            true => {
                stage.shown.push((from.to_owned(), to.clone().into()));
                PathBuf::from(to)
            }
            false => from.to_owned(),
        };
        let root = shown(&self.root, ROOT_SHOWN.to_owned());
        let own = shown(&own, OWN_SHOWN.to_owned());
        let files = settings.files.iter().enumerate();
        let files = files.map(|(at, file)| shown(&file.host, format!("{SHOWN}{at}")));
        let files: Vec<_> = files.zip(&settings.files).collect();
        if is_root {
            stage.hidden = cgroup::second_of_two();
        }
        let spec = Spec {
            function,
            command,
            image: &self.image,
            settings,
            root: &root,
            own: &own,
            files: &files,
            identity: Identity::of_node(is_root),
            is_bounded,
            bounds_itself: runtime.bounds_itself(),
        };
        let text = spec.to_json().to_string();
        let path = folder.path.join("config.json");
        std::fs::write(&path, text)
            .map_err(|error| cannot("its bundle cannot be written", error))?;
        Ok(Launch {
            then: Then::Stage(stage),
            command: runtime.command(&folder.path, &folder.name),
            folder: PathBuf::from("/"),
            env: vec![
                (OsString::from("PATH"), OsString::from(PATH)),
                // Where it keeps what it does not keep below its root.
                (
                    OsString::from("XDG_RUNTIME_DIR"),
                    folder.path.clone().into(),
                ),
            ],
        })
    }
}
