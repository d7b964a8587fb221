//! `mvot backgrounds`: what each camera sees without people, beside its frames, for whoever sends them without knowing how to
//! look at them.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::dataset::Dataset;

/// Name of the folder of backgrounds, a PNG for each camera.
const BACKGROUNDS: &str = "backgrounds";

/// Arguments of `mvot backgrounds`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The folder of frames.
    #[arg(long, value_name = "DIR")]
    frames: PathBuf,
    /// Frames that each is made from at most.
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u16).range(1..=255))]
    samples: u16,
}

/// Writes the backgrounds.
pub(crate) fn run(args: &Args) -> Result<()> {
    let dataset = Dataset::open(&args.frames)?;
    let folder = args.frames.join(BACKGROUNDS);
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let backgrounds = dataset.backgrounds(usize::from(args.samples))?;
    for (camera, background) in dataset.calibration.cameras.iter().zip(backgrounds) {
        let Some(background) = background else {
            continue;
        };
        let path = folder.join(format!("{}.png", camera.name));
        std::fs::write(&path, background.to_png()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
