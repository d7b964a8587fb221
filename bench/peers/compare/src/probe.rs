//! What the disk needs for one fdatasync, for comparison with a request over one connection.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

/// How long each kind is measured.
const TIME: Duration = Duration::from_secs(1);
/// Bytes of one write: a small record.
const RECORD: [u8; 128] = [7; 128];
/// Bytes that are there before, for writes that do not make the file longer.
const PREPARED: usize = 8 << 20;

/// Medians of write and fdatasync together, in microseconds.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sync {
    pub(crate) round: u32,
    /// At the end of a file that grows.
    pub(crate) append_us: f64,
    /// Over what is in the file.
    pub(crate) overwrite_us: f64,
}

/// Measures in a folder.
pub(crate) fn measure(folder: &Path, round: u32) -> anyhow::Result<Sync> {
    let path = folder.join("fdatasync-probe");
    let mut file = File::create(&path)?;
    let append_us = median(&mut file)?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&vec![1; PREPARED])?;
    file.sync_all()?;
    file.seek(SeekFrom::Start(0))?;
    let overwrite_us = median(&mut file)?;
    std::fs::remove_file(path)?;
    Ok(Sync {
        round,
        append_us,
        overwrite_us,
    })
}

fn median(file: &mut File) -> anyhow::Result<f64> {
    let mut times = Vec::new();
    let end = Instant::now() + TIME;
    let most = PREPARED / RECORD.len();
    while Instant::now() < end && times.len() < most {
        let start = Instant::now();
        file.write_all(&RECORD)?;
        file.sync_data()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6)
}
