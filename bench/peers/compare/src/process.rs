//! What processes cost, from /proc.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::Context;

/// The processes and all that descend from them.
pub(crate) fn tree(roots: &[u32]) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_string_lossy().parse().ok() else {
            continue;
        };
        if let Some(parent) = stat(&format!("{pid}"))
            .and_then(|fields| fields.get(1).and_then(|parent| parent.parse().ok()))
        {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut open = roots.to_vec();
    while let Some(pid) = open.pop() {
        found.push(pid);
        open.extend(children.get(&pid).into_iter().flatten());
    }
    found
}

/// The fields of /proc/PID/stat after the name, from the state on.
fn stat(pid: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// CPU time, user and system, that processes and their descendants have taken.
pub(crate) fn cpu(roots: &[u32]) -> Duration {
    let of = |pid: u32| -> Option<u64> {
        let fields = stat(&pid.to_string())?;
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    ticks(tree(roots).into_iter().filter_map(of).sum())
}

/// CPU time of this process and of its children that have ended.
pub(crate) fn own_cpu() -> Duration {
    let fields = stat("self").unwrap_or_default();
    let numbers = fields.iter().skip(11).take(4);
    ticks(numbers.filter_map(|text| text.parse::<u64>().ok()).sum())
}

/// CPU time that the machine has spent on anything.
pub(crate) fn machine_cpu() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let fields = first.split_whitespace().skip(1).take(8);
    // All but idle and waiting for I/O, which are the fourth and the fifth.
    let busy = fields
        .enumerate()
        .filter(|(at, _)| !(3..=4).contains(at))
        .filter_map(|(_, text)| text.parse::<u64>().ok());
    ticks(busy.sum())
}

/// Memory of processes and their descendants in bytes; what several share counts once.
pub(crate) fn memory_bytes(roots: &[u32]) -> anyhow::Result<u64> {
    let mut sum = 0;
    for pid in tree(roots) {
        let path = format!("/proc/{pid}/smaps_rollup");
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let kilobytes: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
            .with_context(|| format!("{path} does not say Pss"))?;
        sum += kilobytes * 1024;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_cost_something() {
        let own = std::process::id();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        assert!(tree(&[own]).contains(&child.id()));
        assert!(memory_bytes(&[own]).unwrap() > 100_000);
        assert!(machine_cpu() > cpu(&[own]));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
