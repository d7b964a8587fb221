//! The same workload for nodes that really run: what is drawn, and what the simulator makes of it.

use super::draw::Drawn;
use super::machine::FUNCTIONS;
use super::world::{self, CLOUD_MEMORY_MB, EDGE_MEMORY_MB, Outcome, World};
use super::{Cell, Settings};
use crate::Error;
use crate::random::Random;
use crate::stats::quantile;

/// A function of the workload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Function {
    /// Its name.
    pub name: &'static str,
    /// Mean of its execution time, which varies exponentially, in seconds.
    pub exec_seconds: f64,
    /// Memory of a worker, in MB.
    pub memory_mb: u64,
    /// Requests a second at each edge node.
    pub rate: f64,
}

/// What came of playing a workload.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Played {
    /// Invocations that were answered.
    pub completed: u64,
    /// Invocations that no node took.
    pub refused: u64,
    /// Of those that were answered, how many reached their keys too late.
    pub violations: u64,
    /// Of those that were answered, how many ran at the edge.
    pub on_edge: u64,
    /// Half of the responses took less, in seconds.
    pub p50: f64,
    /// 95 of 100 took less, in seconds.
    pub p95: f64,
}

/// The functions of the workload.
pub fn functions(settings: &Settings) -> Vec<Function> {
    let functions = FUNCTIONS.iter().enumerate();
    functions
        .map(|(at, (name, exec_seconds, memory_mb, _, _))| Function {
            name,
            exec_seconds: *exec_seconds,
            memory_mb: *memory_mb,
            rate: world::rate(settings, at),
        })
        .collect()
}

/// Memory for the workers of a node, in MB: none where data is only kept.
pub fn memory_mb(drawn: &Drawn, node: usize) -> u64 {
    match node {
        node if node < drawn.layout.edge => EDGE_MEMORY_MB,
        node if node < drawn.layout.executing() => CLOUD_MEMORY_MB,
        _ => 0,
    }
}

/// The random part of a workload.
///
/// # Errors
/// When the settings make no sense, or name more than one workload.
pub fn draw(settings: &Settings, seed: u64) -> Result<Drawn, Error> {
    let cell = cell(settings)?;
    Ok(Drawn::new(&cell, settings, &mut Random::new(seed, 0)))
}

/// What the simulator makes of it.
///
/// # Errors
/// As [`draw`]; when the placement cannot be solved.
pub fn simulate(settings: &Settings, drawn: Drawn, seed: u64) -> Result<Played, Error> {
    let random = Random::new(seed, 1 << 32);
    let outcome: Outcome = World::new(settings, cell(settings)?, drawn, random).run()?;
    let share = |share| match outcome.response_seconds.is_empty() {
        true => 0.0,
        false => quantile(&outcome.response_seconds, share),
    };
    Ok(Played {
        completed: outcome.completed,
        refused: outcome.refused,
        violations: outcome.violations,
        on_edge: outcome.on_edge,
        p50: share(0.5),
        p95: share(0.95),
    })
}

/// The only combination that the settings name.
fn cell(settings: &Settings) -> Result<Cell, Error> {
    settings.check()?;
    let Settings {
        workload,
        keys,
        t_max,
        migration,
        offloading,
        ..
    } = settings;
    match (&**workload, &**keys, &**t_max, &**migration, &**offloading) {
        ([workload], [keys], [t_max], [migration], [offloading]) => Ok(Cell {
            workload: *workload,
            keys: *keys,
            t_max: *t_max,
            migration: *migration,
            offloading: *offloading,
        }),
        _ => Err(Error::invalid(
            "workload, keys, t_max, migration and offloading have to be one each",
        )),
    }
}
