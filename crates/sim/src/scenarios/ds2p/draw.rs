//! The random part of a run: latencies, keys, and who accesses them. Drawn, or read from a file.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;

use super::{Cell, Migration, Offloading, Popularity, Reading, Settings};
use crate::Error;
use crate::random::Random;

/// Nodes: those at the edge, then as many in the cloud, then the data store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Nodes at the edge.
    pub edge: usize,
}

impl Layout {
    /// Nodes that execute functions; the data store comes next.
    pub fn executing(self) -> usize {
        2 * self.edge
    }

    /// Nodes in all.
    pub fn nodes(self) -> usize {
        self.executing() + 1
    }

    /// Bytes a second from one node to another.
    pub fn bandwidth(self, from: usize, to: usize) -> f64 {
        match from >= self.edge && to >= self.edge {
            true => 1e9 / 8.0,
            false => 1e8 / 8.0,
        }
    }
}

/// As the paper has it.
const PAPER: Layout = Layout { edge: 5 };
/// Keys that there are to draw from.
const KEYS: usize = 100;
/// Accesses of a function; several may be to the same key.
const ACCESSES: usize = 5;

/// What a run is played on.
#[derive(Debug, Clone)]
pub struct Drawn {
    /// The nodes.
    pub layout: Layout,
    /// One way, in seconds, row by row.
    pub latency_seconds: Vec<f64>,
    /// Of each function: key and probability of each access.
    pub accesses: Vec<Vec<(usize, f64)>>,
    /// Of each key.
    pub size_bytes: Vec<u64>,
}

impl Drawn {
    pub(super) fn new(cell: &Cell, settings: &Settings, random: &mut Random) -> Self {
        let (reading, layout) = (settings.reading, settings.layout());
        let (edge_cloud, store) = match reading {
            Reading::Program | Reading::Fulmar => ((0.010, 0.100), (0.001, 0.015)),
            Reading::Paper => ((0.005, 0.100), (0.001, 0.020)),
        };
        let (edge, nodes) = (layout.edge, layout.nodes());
        let kind = |node: usize| (node >= edge) as u8 + (node == layout.executing()) as u8;
        let mut latency_seconds = vec![0.0; nodes * nodes];
        for from in 0..nodes {
            for to in 0..from {
                let (low, high) = match (kind(from), kind(to)) {
                    (0, 0) => (0.001, 0.020),
                    (_, 0) => edge_cloud,
                    (2, _) => store,
                    _ => (0.001, 0.010),
                };
                // Both ways are drawn within the edge and within the cloud, once between them.
                let there = random.uniform(low, high);
                let back = match kind(from) == kind(to) {
                    true => random.uniform(low, high),
                    false => there,
                };
                latency_seconds[from * nodes + to] = there;
                latency_seconds[to * nodes + from] = back;
            }
        }
        let probabilities: &[f64] = match reading {
            Reading::Program | Reading::Fulmar => &[0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1.0],
            Reading::Paper => &[0.1, 0.25, 0.5, 0.75, 0.9, 1.0],
        };
        let mut draw_access = || {
            let key = match cell.keys {
                Popularity::Zipf => zipf(random),
                Popularity::Uniform => random.below(KEYS),
            };
            (key, probabilities[random.below(probabilities.len())])
        };
        let accesses = (0..super::machine::FUNCTIONS.len())
            .map(|_| (0..ACCESSES).map(|_| draw_access()).collect())
            .map(|accesses| match reading {
                Reading::Fulmar => once(accesses),
                _ => accesses,
            })
            .collect();
        let large = match reading {
            Reading::Program | Reading::Fulmar => 1e6,
            Reading::Paper => 1e7,
        };
        let size_bytes = (0..=KEYS)
            .map(|_| {
                let mean = if random.chance(0.5) { 1e4 } else { large };
                // Shape is a whole number, so a sum of exponentials.
                let shape = (mean / 1e4) as u32;
                let bytes: f64 = (0..shape).map(|_| random.exponential(1e4)).sum();
                (bytes * settings.size_scale) as u64 + 1
            })
            .collect();
        Self {
            layout,
            latency_seconds,
            accesses,
            size_bytes,
        }
    }
}

/// Each key at most once: an invocation remembers what it has read.
fn once(accesses: Vec<(usize, f64)>) -> Vec<(usize, f64)> {
    let mut unused: BTreeMap<usize, f64> = BTreeMap::new();
    for (key, probability) in accesses {
        *unused.entry(key).or_insert(1.0) *= 1.0 - probability;
    }
    let used = unused.into_iter();
    used.map(|(key, unused)| (key, 1.0 - unused)).collect()
}

/// Zipf's law with exponent 1 over one key more than there are (as the published program has it).
fn zipf(random: &mut Random) -> usize {
    let total: f64 = (1..=KEYS + 1).map(|rank| 1.0 / rank as f64).sum();
    let mut left = random.unit() * total;
    for rank in 1..=KEYS {
        left -= 1.0 / rank as f64;
        if left < 0.0 {
            return rank - 1;
        }
    }
    KEYS
}

#[derive(Deserialize)]
struct File {
    nodes: Vec<String>,
    cells: Vec<FileCell>,
}

#[derive(Deserialize)]
struct FileCell {
    seed: u64,
    tmax: f64,
    migration: String,
    offloading: String,
    latency_s: Vec<Vec<f64>>,
    accesses: Vec<Vec<(usize, f64)>>,
    size_bytes: BTreeMap<String, u64>,
}

/// Scenarios of a file, by row of the table.
pub(super) struct Replay {
    name: String,
    cells: Vec<FileCell>,
}

impl Replay {
    pub(super) fn read(path: &str) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::File {
            path: path.into(),
            source,
        })?;
        let invalid = |error: &dyn std::fmt::Display| Error::invalid(format!("{path}: {error}"));
        let mut text = Vec::new();
        if bytes.starts_with(&[0x1f, 0x8b]) {
            flate2::read::GzDecoder::new(&bytes[..])
                .read_to_end(&mut text)
                .map_err(|error| invalid(&error))?;
        } else {
            text = bytes;
        }
        let file: File = serde_json::from_slice(&text).map_err(|error| invalid(&error))?;
        let nodes = PAPER.nodes();
        if file.nodes.len() != nodes {
            return Err(invalid(&format!(
                "{} nodes, expected {nodes}",
                file.nodes.len()
            )));
        }
        for cell in &file.cells {
            let square = cell.latency_s.len() == nodes
                && cell.latency_s.iter().all(|row| row.len() == nodes);
            let finite = cell
                .latency_s
                .iter()
                .flatten()
                .all(|value| value.is_finite() && *value >= 0.0);
            if !square || !finite || cell.accesses.len() != super::machine::FUNCTIONS.len() {
                let text = format!(
                    "the scenario of seed {} does not have {nodes} x {nodes} latencies and {} functions",
                    cell.seed,
                    super::machine::FUNCTIONS.len()
                );
                return Err(invalid(&text));
            }
        }
        Ok(Self {
            name: path.to_owned(),
            cells: file.cells,
        })
    }

    /// The scenario of a row for a replication: its seeds in ascending order.
    pub(super) fn find(&self, cell: &Cell, replication: usize) -> Result<Drawn, Error> {
        let mut seeds: Vec<u64> = self.cells.iter().map(|cell| cell.seed).collect();
        seeds.sort_unstable();
        seeds.dedup();
        let seed = *seeds.get(replication).ok_or_else(|| {
            let text = format!(
                "{}: it has {} seeds, too few for {} replications",
                self.name,
                seeds.len(),
                replication + 1
            );
            Error::invalid(text)
        })?;
        let migration = match cell.migration {
            Migration::None => "none",
            Migration::Random => "random",
            Migration::Greedy => "greedy",
            Migration::StateAware | Migration::Exact => "ilp",
        };
        let offloading = match cell.offloading {
            Offloading::GreedyLocal => "GrL",
            Offloading::GreedyData => "GrD",
            Offloading::SloAware => "SLO",
        };
        let found = self.cells.iter().find(|other| {
            other.seed == seed
                && (other.tmax - cell.t_max).abs() < 1e-9
                && other.migration == migration
                && other.offloading == offloading
        });
        let found = found.ok_or_else(|| {
            Error::invalid(format!(
                "{}: there is no scenario for seed {seed}, t_max {}, {migration}, {offloading}",
                self.name, cell.t_max
            ))
        })?;
        let mut size_bytes = vec![0; KEYS + 1];
        for (key, size) in &found.size_bytes {
            let slot = key
                .parse()
                .ok()
                .and_then(|key: usize| size_bytes.get_mut(key));
            *slot.ok_or_else(|| Error::invalid(format!("{}: {key:?} is no key", self.name)))? =
                *size;
        }
        if let Some((key, _)) = found.accesses.iter().flatten().find(|(key, _)| *key > KEYS) {
            return Err(Error::invalid(format!("{}: {key} is no key", self.name)));
        }
        Ok(Drawn {
            layout: PAPER,
            latency_seconds: found.latency_s.concat(),
            accesses: found.accesses.clone(),
            size_bytes,
        })
    }
}
