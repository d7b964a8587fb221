//! `mvot offline`: the same computation without a node.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use mvot_core::detect::Detector;
use mvot_core::image::Image;
use mvot_core::message::{Request, Settings, StepResult, View};
use mvot_core::scene::{InMemory, handle};

use crate::dataset::Dataset;
use crate::outcome::{Metrics, Outcome, times};
use crate::progress;

/// Which frames, and where the results go; the same with and without a node.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Input {
    /// Folder of frames, as `mvot generate` writes it.
    #[arg(long, value_name = "DIR")]
    pub(crate) frames: PathBuf,
    /// Folder for detections, tracks, summary and the picture.
    #[arg(long, value_name = "DIR", default_value = "mvot-out")]
    pub(crate) out: PathBuf,
    /// Timesteps at most.
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Cameras whose frames are left out, as if they were broken.
    #[arg(long, value_name = "CAMERA")]
    pub(crate) without: Vec<String>,
    /// Frames of each camera that its background is made of.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u16).range(1..=255))]
    pub(crate) background_samples: u16,
    /// Farthest that a track may be from a person to count as right, in metres.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) match_distance: f64,
}

impl Input {
    /// The folder, without what is left out.
    pub(crate) fn open(&self) -> Result<Dataset> {
        let mut dataset = Dataset::open(&self.frames)?;
        dataset.truncate(self.steps.unwrap_or(usize::MAX));
        self.without
            .iter()
            .try_for_each(|camera| dataset.drop_camera(camera))?;
        Ok(dataset)
    }
}

/// Runs it on this machine's cores.
pub(crate) fn run(input: &Input) -> Result<Metrics> {
    let dataset = input.open()?;
    let backgrounds = dataset.backgrounds(usize::from(input.background_samples))?;
    let detectors = (0..backgrounds.len())
        .zip(backgrounds)
        .map(|(camera, background)| {
            background
                .map(|background| Detector::new(dataset.camera(camera), background))
                .transpose()
        });
    let detectors: Vec<Option<Detector>> = detectors.collect::<Result<_, _>>()?;
    let mut scene = InMemory::default();
    let settings = Settings {
        calibration: dataset.calibration.clone(),
        timeout_ms: u64::MAX,
    };
    handle(&mut scene, Request::Open(settings), 0)?;
    let mut outcome = Outcome {
        views: Vec::new(),
        results: Vec::new(),
        detect: times(),
        live: None,
    };
    let bar = progress::bar(dataset.timesteps.len() as u64, "timesteps");
    for step in 0..dataset.timesteps.len() {
        for (camera, detector) in detectors.iter().enumerate() {
            let Some(detector) = detector.as_ref().filter(|_| dataset.has(camera, step)) else {
                continue;
            };
            let view = look(&dataset, detector, camera, step)?;
            outcome.detect.saturating_record(view.detect_micros);
            handle(&mut scene, Request::View(view.clone()), step as u64)?;
            outcome.views.push(view);
        }
        handle(
            &mut scene,
            Request::Flush {
                through: step as u64,
            },
            step as u64,
        )?;
        let results = handle(
            &mut scene,
            Request::Results {
                from: step as u64,
                limit: 1,
            },
            step as u64,
        )?
        .results;
        outcome.results.extend::<Vec<StepResult>>(results);
        bar.inc(1);
    }
    bar.finish_and_clear();
    outcome.write(&dataset, &input.out, input.match_distance)
}

fn look(dataset: &Dataset, detector: &Detector, camera: usize, step: usize) -> Result<View> {
    let path = dataset.path(camera, step);
    let png = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let start = Instant::now();
    let frame =
        Image::from_png(&png).with_context(|| format!("{} cannot be used", path.display()))?;
    let detections = detector
        .detect(frame)
        .with_context(|| format!("{} cannot be used", path.display()))?;
    Ok(View {
        camera: dataset.camera(camera).name.clone(),
        step: step as u64,
        sent_unix_ms: step as u64,
        detect_micros: start.elapsed().as_micros() as u64,
        detections,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate;
    use std::collections::BTreeMap;
    use std::path::Path;

    fn generate(folder: &Path, steps: u64, seed: u64) {
        let out = folder.to_owned();
        generate::run(&generate::Args {
            out,
            steps,
            seed,
            people: 10,
            fps: 5.0,
        })
        .unwrap();
    }

    fn track(folder: &Path, without: &[&str]) -> Metrics {
        let input = Input {
            frames: folder.to_owned(),
            out: folder.join("out"),
            steps: None,
            without: without.iter().map(|camera| (*camera).to_owned()).collect(),
            background_samples: 31,
            match_distance: 0.5,
        };
        run(&input).unwrap()
    }

    fn files(folder: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
        let mut found = BTreeMap::new();
        let mut open = vec![folder.to_owned()];
        while let Some(path) = open.pop() {
            for entry in std::fs::read_dir(path).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else {
                    let name = path.strip_prefix(folder).unwrap().to_owned();
                    found.insert(name, std::fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn tracks_are_accurate_with_all_cameras_and_with_one_or_two_missing() {
        let folder = tempfile::tempdir().unwrap();
        generate(folder.path(), 60, 11);
        for without in [&[][..], &["c4"], &["c1", "c5"]] {
            let accuracy = track(folder.path(), without).accuracy.unwrap();
            assert!(
                accuracy.mota > 0.9 && accuracy.idf1 > 0.9,
                "without {without:?}: {accuracy:?}"
            );
        }
        let out = files(&folder.path().join("out"));
        let names: Vec<&str> = out.keys().filter_map(|name| name.to_str()).collect();
        assert_eq!(
            names,
            [
                "detections.jsonl",
                "summary.json",
                "tracks.jsonl",
                "tracks.svg"
            ]
        );
        let tracks = std::str::from_utf8(&out[Path::new("tracks.jsonl")]).unwrap();
        assert_eq!(tracks.lines().count(), 60);
    }

    #[test]
    fn the_same_seed_gives_the_same_files_and_another_seed_others() {
        let folders = [1, 1, 2].map(|seed| {
            let folder = tempfile::tempdir().unwrap();
            generate(folder.path(), 3, seed);
            files(folder.path())
        });
        assert_eq!(folders[0].len(), 7 * 3 + 2);
        assert!(folders[0] == folders[1], "the same seed gave other files");
        assert!(
            folders[0]
                .iter()
                .all(|(name, bytes)| folders[2][name] != *bytes)
        );
    }

    #[test]
    fn a_folder_that_is_none_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let input = Input {
            frames: folder.path().to_owned(),
            out: folder.path().join("out"),
            steps: None,
            without: vec![],
            background_samples: 31,
            match_distance: 0.5,
        };
        assert!(
            run(&input)
                .unwrap_err()
                .to_string()
                .contains("calibration.json")
        );
    }
}
