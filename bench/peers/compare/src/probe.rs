//! What the disk needs for one fdatasync, for comparison with a request over one connection.
//!
//! On a busy machine this measures the scheduler: a process that wakes up from the disk may wait for a
//! tick (4 ms) behind work of other sessions, while the disk took 0.15 ms. So what else ran is
//! measured with it, and [`excess`] gives no figure that such a sync would flatter.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::process;

/// CPU time of others, in cores, above which times of single syncs are not the disk's.
const MAX_OTHER_CORES: f64 = 0.2;

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
    /// CPU time that others took meanwhile.
    pub(crate) other_cores: f64,
}

/// Why a durable request cannot be compared with a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// Others took CPU time while one or the other was measured.
    Busy,
    /// The request, which waits for a sync, took less than a sync.
    FasterThanTheDisk,
}

/// How much longer a durable request takes than a sync, in microseconds. The cores are those that
/// others took while the two were measured.
pub(crate) fn excess(request_us: f64, sync_us: f64, other_cores: f64) -> Result<f64, Unusable> {
    if other_cores > MAX_OTHER_CORES {
        Err(Unusable::Busy)
    } else if request_us < sync_us {
        Err(Unusable::FasterThanTheDisk)
    } else {
        Ok(request_us - sync_us)
    }
}

/// Measures in a folder.
pub(crate) fn measure(folder: &Path, round: u32) -> anyhow::Result<Sync> {
    let before = (process::machine_cpu(), process::own_cpu());
    let start = Instant::now();
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
    let machine = process::machine_cpu().saturating_sub(before.0);
    let others = machine.saturating_sub(process::own_cpu().saturating_sub(before.1));
    Ok(Sync {
        round,
        append_us,
        overwrite_us,
        other_cores: others.as_secs_f64() / start.elapsed().as_secs_f64(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sync_that_was_not_the_disks_flatters_nobody() {
        assert_eq!(excess(250.0, 150.0, 0.05), Ok(100.0));
        assert_eq!(excess(1113.0, 3982.0, 1.7), Err(Unusable::Busy));
        assert_eq!(
            excess(1113.0, 3982.0, 0.05),
            Err(Unusable::FasterThanTheDisk)
        );
    }
}
