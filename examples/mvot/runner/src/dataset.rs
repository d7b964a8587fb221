//! A folder of frames: `calibration.json`, `frames/<camera>/<timestep>.png` and, if it is known,
//! `ground_truth.jsonl`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mvot_core::background;
use mvot_core::camera::{Calibration, CameraCalibration};
use mvot_core::detect::Detector;
use mvot_core::geometry::Point;
use mvot_core::image::Image;
use mvot_core::metrics::Placed;
use serde::{Deserialize, Serialize};

/// Name of the calibration file.
pub(crate) const CALIBRATION: &str = "calibration.json";
/// Name of the folder of frames.
pub(crate) const FRAMES: &str = "frames";
/// Name of the truth, if there is one.
pub(crate) const GROUND_TRUTH: &str = "ground_truth.jsonl";

/// Somebody in the truth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Person {
    /// Who.
    pub(crate) id: u64,
    /// Where, in metres.
    pub(crate) position: Point,
}

/// One line of `ground_truth.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct TruthLine {
    /// As in the names of the frames.
    pub(crate) timestep: String,
    /// Who is in the area.
    pub(crate) people: Vec<Person>,
}

/// A folder of frames that has been looked through.
#[derive(Debug)]
pub(crate) struct Dataset {
    folder: PathBuf,
    pub(crate) calibration: Calibration,
    /// Names of the timesteps in order; their places in this list are what nodes count.
    pub(crate) timesteps: Vec<String>,
    /// By camera, as in the calibration: which timesteps have a frame.
    present: Vec<Vec<bool>>,
}

impl Dataset {
    /// Looks through a folder. Cameras may lack frames, even all of them.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CALIBRATION);
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; see the README for the form of the folder",
                path.display()
            )
        })?;
        let calibration: Calibration = serde_json::from_str(&text)
            .with_context(|| format!("{} is not as expected", path.display()))?;
        if calibration.cameras.is_empty() {
            bail!("{} names no cameras", path.display());
        }
        let mut found: Vec<BTreeSet<String>> = Vec::new();
        for camera in &calibration.cameras {
            if camera.name.is_empty()
                || camera.name.contains(['/', '\\'])
                || camera.name.starts_with('.')
            {
                bail!(
                    "{}: {:?} cannot be the name of a camera's folder",
                    path.display(),
                    camera.name
                );
            }
            found.push(timesteps_in(&folder.join(FRAMES).join(&camera.name))?);
        }
        let timesteps: BTreeSet<String> = found.iter().flatten().cloned().collect();
        let mut timesteps: Vec<String> = timesteps.into_iter().collect();
        // 9 before 10 even when the names have no leading zeros.
        timesteps.sort_by_key(|name| (name.parse::<u64>().unwrap_or(u64::MAX), name.clone()));
        if timesteps.is_empty() {
            bail!("there are no frames in {}", folder.join(FRAMES).display());
        }
        let present = found
            .iter()
            .map(|names| timesteps.iter().map(|name| names.contains(name)).collect())
            .collect();
        Ok(Self {
            folder: folder.to_owned(),
            calibration,
            timesteps,
            present,
        })
    }

    /// Leaves out timesteps beyond the first `count`.
    pub(crate) fn truncate(&mut self, count: usize) {
        self.timesteps.truncate(count);
        self.present
            .iter_mut()
            .for_each(|present| present.truncate(count));
    }

    /// Leaves out all frames of a camera, as if it were broken.
    pub(crate) fn drop_camera(&mut self, name: &str) -> Result<()> {
        let camera = self
            .calibration
            .cameras
            .iter()
            .position(|camera| camera.name == name);
        let camera = camera.with_context(|| format!("there is no camera {name:?} to drop"))?;
        self.present[camera].fill(false);
        Ok(())
    }

    /// The camera at a place of the calibration.
    pub(crate) fn camera(&self, camera: usize) -> &CameraCalibration {
        &self.calibration.cameras[camera]
    }

    /// Whether there is a frame.
    pub(crate) fn has(&self, camera: usize, step: usize) -> bool {
        self.present[camera][step]
    }

    /// Frames in all.
    pub(crate) fn frames(&self) -> usize {
        self.present
            .iter()
            .flatten()
            .filter(|present| **present)
            .count()
    }

    /// Path of a frame.
    pub(crate) fn path(&self, camera: usize, step: usize) -> PathBuf {
        let file = format!("{}.png", self.timesteps[step]);
        self.folder
            .join(FRAMES)
            .join(&self.camera(camera).name)
            .join(file)
    }

    /// The empty scene of a camera at working size, from up to `samples` frames; `None` without any frame.
    pub(crate) fn background(&self, camera: usize, samples: usize) -> Result<Option<Image>> {
        let steps: Vec<usize> = (0..self.timesteps.len())
            .filter(|step| self.has(camera, *step))
            .collect();
        let count = samples.min(steps.len());
        // The middles of as many equal parts.
        let chosen = (0..count).map(|i| steps[(2 * i + 1) * steps.len() / (2 * count)]);
        let frames = chosen.map(|step| {
            let path = self.path(camera, step);
            let bytes =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let frame = Image::from_png(&bytes)
                .with_context(|| format!("{} cannot be used", path.display()))?;
            let expected = (
                self.camera(camera).width as usize,
                self.camera(camera).height as usize,
            );
            if frame.size() != expected {
                bail!(
                    "{} has {:?} pixels, {CALIBRATION} says {expected:?}",
                    path.display(),
                    frame.size()
                );
            }
            Ok(Detector::prepare(frame))
        });
        let frames: Vec<Image> = frames.collect::<Result<_>>()?;
        if frames.is_empty() {
            return Ok(None);
        }
        Ok(Some(background::median(&frames)?))
    }

    /// Backgrounds of all cameras, made side by side.
    pub(crate) fn backgrounds(&self, samples: usize) -> Result<Vec<Option<Image>>> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.calibration.cameras.len())
                .map(|camera| scope.spawn(move || self.background(camera, samples)))
                .collect();
            threads
                .into_iter()
                .map(|thread| {
                    thread
                        .join()
                        .map_err(|_| anyhow::anyhow!("a background failed"))?
                })
                .collect()
        })
    }

    /// Who is where at each timestep, if the folder says so.
    pub(crate) fn truth(&self) -> Result<Option<Vec<Vec<Placed>>>> {
        let path = self.folder.join(GROUND_TRUTH);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        let mut lines = BTreeMap::new();
        for (number, line) in BufReader::new(file).lines().enumerate() {
            let line = line?;
            if line.trim().is_empty() {
                continue;
            }
            let line: TruthLine = serde_json::from_str(&line)
                .with_context(|| format!("{}, line {}", path.display(), number + 1))?;
            lines.insert(line.timestep, line.people);
        }
        let placed = |person: Person| Placed {
            id: person.id,
            position: person.position,
        };
        let steps = self.timesteps.iter().map(|name| {
            lines
                .remove(name)
                .unwrap_or_default()
                .into_iter()
                .map(placed)
                .collect()
        });
        Ok(Some(steps.collect()))
    }
}

fn timesteps_in(folder: &Path) -> Result<BTreeSet<String>> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot list {}", folder.display()));
        }
    };
    let mut names = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "png") {
            let name = path.file_stem().and_then(|name| name.to_str());
            names.insert(
                name.with_context(|| format!("{} has an odd name", path.display()))?
                    .to_owned(),
            );
        }
    }
    Ok(names)
}

/// Writes values as JSON Lines.
pub(crate) fn write_lines<T: Serialize>(
    path: &Path,
    values: impl IntoIterator<Item = T>,
) -> Result<()> {
    let write = || -> Result<()> {
        let mut file = BufWriter::new(std::fs::File::create(path)?);
        for value in values {
            serde_json::to_writer(&mut file, &value)?;
            file.write_all(b"\n")?;
        }
        Ok(file.flush()?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
