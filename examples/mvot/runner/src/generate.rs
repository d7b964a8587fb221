//! `mvot generate`: people who walk over a plaza, as seven cameras see them, with the truth.

mod crowd;
mod random;
mod render;
mod rig;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use mvot_core::camera::{Area, Calibration};

use crate::dataset::{CALIBRATION, FRAMES, GROUND_TRUTH, Person, TruthLine, write_lines};
use crate::progress;
use crowd::Crowd;
use render::Stage;

/// Where people are tracked, in metres.
const AREA: Area = Area {
    x_min: -8.0,
    y_min: -6.0,
    x_max: 8.0,
    y_max: 6.0,
};

/// Arguments of `mvot generate`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Folder to write to; made if it is not there.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Timesteps.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub(crate) steps: u64,
    /// The same seed gives the same files.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// People on the plaza at a time.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub(crate) people: u64,
    /// Timesteps per second of walking.
    #[arg(long, default_value_t = 5.0)]
    pub(crate) fps: f64,
}

/// Writes the folder.
pub(crate) fn run(args: &Args) -> Result<()> {
    anyhow::ensure!(
        (0.1..=60.0).contains(&args.fps),
        "--fps has to be 0.1 to 60, not {}",
        args.fps
    );
    let poses = rig::rig(AREA, args.seed);
    let step_seconds = 1.0 / args.fps;
    let calibration = Calibration {
        step_seconds,
        area: AREA,
        cameras: poses.iter().map(rig::Pose::calibration).collect(),
    };
    for camera in &calibration.cameras {
        let folder = args.out.join(FRAMES).join(&camera.name);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut crowd = Crowd::new(AREA, args.people as usize, args.seed);
    let mut moments = Vec::new();
    let mut truth = Vec::new();
    for step in 0..args.steps {
        let inside = crowd
            .walkers()
            .iter()
            .filter(|walker| AREA.contains(walker.position, 0.0));
        let people = inside
            .map(|walker| Person {
                id: walker.id,
                position: walker.position.map(millimetres),
            })
            .collect();
        truth.push(TruthLine {
            timestep: timestep(step),
            people,
        });
        moments.push(crowd.walkers().to_vec());
        crowd.walk(step_seconds);
    }
    let bar = progress::bar(args.steps * poses.len() as u64, "frames");
    // One thread per camera; what is drawn depends on the seed, the camera and the timestep only.
    std::thread::scope(|scope| {
        let threads: Vec<_> = poses
            .into_iter()
            .enumerate()
            .map(|(camera, pose)| {
                let (moments, bar) = (&moments, &bar);
                let folder = args.out.join(FRAMES).join(&pose.name);
                let stage = move || {
                    draw(
                        &folder,
                        Stage::new(pose, args.seed),
                        camera as u64,
                        moments,
                        step_seconds,
                        bar,
                    )
                };
                scope.spawn(stage)
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("drawing failed"))?
        })
    })?;
    bar.finish_and_clear();
    write_lines(&args.out.join(GROUND_TRUTH), &truth)?;
    // Last, so that a folder with a calibration is a whole one.
    let path = args.out.join(CALIBRATION);
    std::fs::write(&path, serde_json::to_string_pretty(&calibration)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}

fn draw(
    folder: &Path,
    stage: Stage,
    camera: u64,
    moments: &[Vec<crowd::Walker>],
    step_seconds: f64,
    bar: &ProgressBar,
) -> Result<()> {
    for (step, walkers) in moments.iter().enumerate() {
        let frame = stage.frame(walkers, camera, step as u64, step as f64 * step_seconds);
        let path = folder.join(format!("{}.png", timestep(step as u64)));
        std::fs::write(&path, frame.to_png()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        bar.inc(1);
    }
    Ok(())
}

/// Name of a timestep's files.
fn timestep(step: u64) -> String {
    format!("{step:06}")
}

fn millimetres(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
