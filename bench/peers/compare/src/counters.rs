//! Whether the counters are what the answers say.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, anyhow};
use serde::Serialize;

use crate::load::Outcome;
use crate::server::Server;
use crate::target::increment;

/// Connections that read counters.
const READERS: usize = 16;

/// Answers by path.
#[derive(Debug, Default)]
pub(crate) struct Answered(BTreeMap<&'static str, Sum>);

#[derive(Debug, Default, Clone, Copy)]
struct Sum {
    answers: u64,
    /// Requests that may have been under way when a load ended: done, but not counted as answered.
    in_flight: u64,
}

/// Sum of the counters under a path, and what it has to be.
#[derive(Debug, Serialize)]
pub(crate) struct Check {
    path: &'static str,
    sum: i64,
    at_least: i64,
    at_most: i64,
    pub(crate) ok: bool,
}

impl Answered {
    pub(crate) fn add(&mut self, path: &'static str, outcome: &Outcome) {
        let sum = self.0.entry(path).or_default();
        sum.answers += outcome.requests;
        sum.in_flight += outcome.in_flight;
    }

    pub(crate) fn of(&self, path: &str) -> u64 {
        self.0.get(path).map_or(0, |sum| sum.answers)
    }

    /// Reads all counters back.
    pub(crate) fn check(&self, server: &Server, sessions: u32) -> anyhow::Result<Vec<Check>> {
        let mut checks = Vec::new();
        for (&path, expected) in &self.0 {
            let Some(step) = increment(path).filter(|_| server.counts()) else {
                continue;
            };
            let sum = read(server, path, sessions)?;
            let at_least = step * i64::try_from(expected.answers)?;
            let at_most = at_least + step * i64::try_from(expected.in_flight)?;
            checks.push(Check {
                path,
                sum,
                at_least,
                at_most,
                ok: (at_least..=at_most).contains(&sum),
            });
        }
        Ok(checks)
    }
}

/// The sum of the counters of all sessions, read by adding 0.
fn read(server: &Server, path: &str, sessions: u32) -> anyhow::Result<i64> {
    let next = AtomicU32::new(1);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                scope.spawn(|| {
                    let agent = crate::server::agent();
                    let mut sum = 0;
                    loop {
                        let session = next.fetch_add(1, Ordering::Relaxed);
                        if session > sessions {
                            return anyhow::Ok(sum);
                        }
                        let path = path.replace("{k}", &session.to_string());
                        let text = crate::server::post(&agent, &server.url(&path), "0")?;
                        let value: i64 = text
                            .trim()
                            .parse()
                            .with_context(|| format!("{path} answered {text:?}"))?;
                        sum += value;
                    }
                })
            })
            .collect();
        let mut sum = 0;
        for reader in readers {
            sum += reader.join().map_err(|_| anyhow!("a reader panicked"))??;
        }
        Ok(sum)
    })
}
