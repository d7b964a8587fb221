//! What a worker uses of the CPUs, with all that it has started, and how long it waits for them.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Threads that are looked at: more are hardly all in the way of an invocation.
const THREADS: usize = 64;

/// Where the kernel counts it.
#[derive(Debug)]
pub(crate) struct Usage {
    group: PathBuf,
    is_v2: bool,
}

/// What it was so far.
#[derive(Debug, Clone, Default)]
pub struct Used {
    /// CPU.
    pub cpu: Duration,
    /// By thread, for how long it could have run and no CPU was free, in nanoseconds; empty where the kernel does not tell.
    waits: Vec<(u32, u64)>,
}

impl Used {
    /// What it was since an earlier look.
    #[must_use]
    pub fn since(&self, before: &Self) -> Spent {
        let waited = self.waits.iter().map(|(thread, waited)| {
            let earlier = before.waits.iter().find(|(other, _)| other == thread);
            waited.saturating_sub(earlier.map_or(0, |(_, waited)| *waited))
        });
        Spent {
            cpu: self.cpu.saturating_sub(before.cpu),
            // Threads wait at the same time.
            waited: waited.max().map(Duration::from_nanos),
        }
    }
}

/// What a worker has spent on something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// CPU.
    pub cpu: Duration,
    /// Time for which others had the CPUs: without them it would have taken so much less. None where the kernel does not tell.
    pub waited: Option<Duration>,
}

impl Usage {
    pub(super) fn of(group: &Path, is_v2: bool) -> Self {
        Self {
            group: group.to_owned(),
            is_v2,
        }
    }

    pub(crate) fn used(&self) -> Option<Used> {
        Some(Used {
            cpu: self.cpu()?,
            waits: self.waits(),
        })
    }

    fn cpu(&self) -> Option<Duration> {
        if self.is_v2 {
            let told = std::fs::read_to_string(self.group.join("cpu.stat")).ok()?;
            let mut lines = told.lines();
            let used = lines.find_map(|line| line.strip_prefix("usage_usec "))?;
            return Some(Duration::from_micros(used.parse().ok()?));
        }
        let told = std::fs::read_to_string(self.group.join("cpuacct.usage")).ok()?;
        Some(Duration::from_nanos(told.trim().parse().ok()?))
    }

    fn waits(&self) -> Vec<(u32, u64)> {
        let threads = match self.is_v2 {
            true => "cgroup.threads",
            false => "tasks",
        };
        let threads = std::fs::read_to_string(self.group.join(threads)).unwrap_or_default();
        let waited = |thread: &str| {
            let told = std::fs::read_to_string(format!("/proc/{thread}/schedstat")).ok()?;
            // On a CPU, waiting for one, how often.
            let waited = told.split_ascii_whitespace().nth(1)?;
            Some((thread.parse().ok()?, waited.parse().ok()?))
        };
        threads.lines().take(THREADS).filter_map(waited).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_that_waited_longest_counts() {
        let at = |cpu, waits: &[(u32, u64)]| Used {
            cpu: Duration::from_millis(cpu),
            waits: waits.to_vec(),
        };
        let before = at(10, &[(1, 1_000_000), (2, 0)]);
        let after = at(15, &[(1, 3_000_000), (2, 500_000), (3, 1_500_000)]);
        let spent = after.since(&before);
        assert_eq!(spent.cpu, Duration::from_millis(5));
        assert_eq!(spent.waited, Some(Duration::from_millis(2)));
        assert_eq!(before.since(&after).waited, Some(Duration::ZERO));
        assert_eq!(at(1, &[]).since(&before).waited, None);
    }
}
