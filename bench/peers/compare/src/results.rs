//! Results: kept for the report, and added to a file as JSON Lines as they come.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::load::{Difference, Run};
use crate::machine::Machine;
use crate::probe::Sync;
use crate::target::Target;

/// One result.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub(crate) enum Record {
    Machine(Machine),
    Start(Start),
    Run(Run),
    Counters(Counters),
    NewSessions(Difference),
    Sync(Sync),
}

/// How a server started, with the data of an earlier start.
#[derive(Debug, Serialize)]
pub(crate) struct Start {
    pub(crate) target: Target,
    pub(crate) round: u32,
    /// From starting the first process to the first answer with a status of 2xx.
    pub(crate) to_first_response_ms: f64,
    /// Memory of all its processes after that.
    pub(crate) idle_bytes: u64,
}

/// Whether the counters are what the answers say.
#[derive(Debug, Serialize)]
pub(crate) struct Counters {
    pub(crate) target: Target,
    pub(crate) round: u32,
    #[serde(flatten)]
    pub(crate) check: crate::counters::Check,
}

/// All results of a comparison.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) records: Vec<Record>,
    pub(crate) path: PathBuf,
    file: File,
}

impl Results {
    pub(crate) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = File::options().append(true).create(true).open(path);
        Ok(Self {
            records: Vec::new(),
            path: path.to_owned(),
            file: file.with_context(|| format!("cannot write {}", path.display()))?,
        })
    }

    pub(crate) fn add(&mut self, record: Record) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        match &record {
            Record::Run(run) if run.void => {
                eprintln!("  VOID: {} {}: {:?}", run.target, run.phase, run.outcome)
            }
            Record::Run(run) => eprintln!(
                "  {:<14}{:>9.0} requests/s  p50 {:>6} us  p99 {:>7} us  {:>6.1} us of CPU a request",
                run.phase.to_string(),
                run.outcome.requests_per_second,
                run.outcome.p50_us,
                run.outcome.p99_us,
                run.cpu_us_per_request
            ),
            Record::Counters(Counters { check, .. }) if !check.ok => {
                eprintln!("  WRONG COUNTERS: {check:?}");
            }
            _ => {}
        }
        self.records.push(record);
        Ok(())
    }

    /// Whether no run is void and all counters are right.
    pub(crate) fn are_sound(&self) -> bool {
        self.records.iter().all(|record| match record {
            Record::Run(run) => !run.void,
            Record::Counters(counters) => counters.check.ok,
            _ => true,
        })
    }
}
