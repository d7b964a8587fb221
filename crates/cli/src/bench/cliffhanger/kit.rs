//! What the experiments run on: frames of seven cameras, and the functions of the application.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use fulmar_model::Manifest;
use fulmar_model::manifest::{FileGrant, FileMode, Runtime};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::image;
use crate::deploy::{self, Source};

/// First bytes of a frame event; its form is that of `examples/mvot`.
const MAGIC: &[u8] = b"MVF1";
/// A PNG of one gray pixel.
const ONE_PIXEL: &[u8] = &[
    0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0x0d, 0x49, 0x48, 0x44, 0x52, 0, 0, 0,
    1, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0x3a, 0x7e, 0x9b, 0x55, 0, 0, 0, 0x0a, 0x49, 0x44, 0x41, 0x54,
    0x78, 0x9c, 0x63, 0x68, 0, 0, 0, 0x82, 0, 0x81, 0x77, 0xcd, 0x72, 0xb6, 0, 0, 0, 0, 0x49, 0x45,
    0x4e, 0x44, 0xae, 0x42, 0x60, 0x82,
];

/// What `detect` does with what it sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It sends it to `aggregate`.
    Aggregate,
    /// It only answers.
    Answer,
    /// It looks at nothing, and sends that to `collect`.
    Collect,
}

impl Then {
    fn word(self) -> &'static str {
        match self {
            Self::Aggregate => "aggregate",
            Self::Answer => "answer",
            Self::Collect => "collect",
        }
    }
}

/// What `detect` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// A component, in Rust.
    Component,
    /// A program, in Python.
    Program,
    /// The same program, in a container.
    Container,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Component => "component",
            Self::Program => "Python program",
            Self::Container => "Python container",
        }
    }
}

/// The folder of frames, in memory.
pub(super) struct Kit {
    functions: PathBuf,
    /// Packages for functions in Python, if they are there.
    python: Option<PathBuf>,
    /// Where the image of `detect` is made.
    image: PathBuf,
    calibration: Value,
    /// Name and background of each camera.
    cameras: Vec<(String, Vec<u8>)>,
    /// By timestep and camera.
    frames: Vec<Vec<Vec<u8>>>,
}

fn read_only(path: &str) -> FileGrant {
    FileGrant {
        host: path.to_owned(),
        guest: path.to_owned(),
        mode: FileMode::ReadOnly,
    }
}

impl Kit {
    pub(super) fn open(
        frames: &Path,
        functions: &Path,
        python: &Path,
        image: &Path,
    ) -> anyhow::Result<Self> {
        let how = "\n  fix: `cargo xtask cliffhanger` makes the frames and builds the functions";
        let read = |path: PathBuf| {
            std::fs::read(&path).with_context(|| format!("cannot read {}{how}", path.display()))
        };
        let calibration: Value = serde_json::from_slice(&read(frames.join("calibration.json"))?)?;
        let names = calibration["cameras"].as_array().into_iter().flatten();
        let names: Vec<&str> = names.filter_map(|camera| camera["name"].as_str()).collect();
        ensure!(!names.is_empty(), "the calibration names no cameras");
        let mut cameras = Vec::new();
        let mut by_camera = Vec::new();
        for name in names {
            let background = read(frames.join("backgrounds").join(format!("{name}.png")))?;
            cameras.push((name.to_owned(), background));
            let folder = frames.join("frames").join(name);
            let files = std::fs::read_dir(&folder)
                .with_context(|| format!("cannot list {}{how}", folder.display()))?;
            let mut files = files
                .map(|file| file.map(|file| file.path()))
                .collect::<Result<Vec<_>, _>>()?;
            files.sort();
            let pngs: Vec<_> = files.into_iter().map(read).collect::<Result<_, _>>()?;
            by_camera.push(pngs);
        }
        let steps = by_camera.iter().map(Vec::len).min().unwrap_or_default();
        ensure!(steps > 0, "there are no frames in {}", frames.display());
        let step = |at: usize| by_camera.iter().map(|pngs| pngs[at].clone()).collect();
        Ok(Self {
            functions: functions.to_owned(),
            python: python.canonicalize().ok(),
            image: image.to_owned(),
            frames: (0..steps).map(step).collect(),
            calibration,
            cameras,
        })
    }

    /// The manifest of a function, and its component or files. `detect` is of this kind.
    pub(super) fn function(&self, name: &str, kind: Kind) -> anyhow::Result<(Manifest, Source)> {
        let folder = match (name, kind) {
            ("detect", Kind::Program | Kind::Container) => "detect-python",
            (name, _) => name,
        };
        let folder = self.functions.join(folder);
        let (mut manifest, mut files) = deploy::find(&folder)?;
        if manifest.is_program() && kind == Kind::Container {
            image::write(&folder, &self.image)?;
            files = Source::Local(self.image.clone());
            manifest.runtime = Runtime::Container;
            manifest.process.command.clear();
            manifest.grants.files.push(read_only("/usr"));
        }
        if let Some(python) = self.python.as_ref().filter(|_| manifest.is_program()) {
            let packages = python.display().to_string();
            manifest.grants.files.push(read_only(&packages));
            manifest.env.insert("PYTHONPATH".to_owned(), packages);
        }
        Ok((manifest, files))
    }

    /// The kinds of `detect` that can be run here.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let mut kinds = vec![Kind::Component];
        if self.python.is_some() {
            kinds.push(Kind::Program);
            kinds.extend(image::can_run().then_some(Kind::Container));
        }
        kinds
    }

    /// How many cameras there are: events of a timestep.
    pub(super) fn cameras(&self) -> usize {
        self.cameras.len()
    }

    /// What has to be in the shared bucket `mvot` before a scene's frames can be looked at, in this order.
    pub(super) fn records(&self, scene: &str) -> Vec<(String, Vec<u8>)> {
        let described = self.calibration["cameras"].as_array().into_iter().flatten();
        let records = self.cameras.iter().zip(described);
        let records = records.flat_map(|((name, background), calibration)| {
            let digest = Sha256::digest(background);
            let version: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            let record = json!({ "calibration": calibration, "background_version": version });
            [
                (format!("{scene}/{name}/background"), background.clone()),
                (format!("{scene}/{name}/camera"), record.to_string().into()),
            ]
        });
        records.collect()
    }

    /// What opens a scene of `aggregate`, which waits for every frame, and one of `collect`, which may keep everything.
    pub(super) fn open_scene(&self, keep: bool) -> [(&'static str, Value); 2] {
        let aggregate =
            json!({ "request": "open", "calibration": self.calibration, "timeout_ms": 600_000 });
        let collect = json!({ "request": "open", "cameras": self.cameras(), "keep": keep });
        [("aggregate", aggregate), ("collect", collect)]
    }

    /// The event of a camera at a timestep; frames repeat when there are no more.
    pub(super) fn event(&self, scene: &str, step: u64, camera: usize, then: Then) -> Vec<u8> {
        let png = match then {
            Then::Collect => ONE_PIXEL,
            Then::Aggregate | Then::Answer => {
                &self.frames[(step % self.frames.len() as u64) as usize][camera]
            }
        };
        let header = json!({
            "scene": scene,
            "camera": self.cameras[camera].0,
            "step": step,
            "sent_unix_ms": 0,
            "then": then.word(),
        });
        let header = header.to_string();
        let length = (header.len() as u32).to_le_bytes();
        [MAGIC, &length, header.as_bytes(), png].concat()
    }
}
