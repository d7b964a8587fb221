//! How a scenario is run: seed, replications, threads, progress.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::Error;

/// How often, from which seed and on how many threads a scenario is run.
#[derive(Debug, Clone)]
pub struct Run {
    /// Everything random follows from it.
    pub seed: u64,
    /// Independent repetitions; without it the scenario's own number.
    pub replications: Option<u32>,
    /// Threads that share the replications.
    pub threads: usize,
    /// Told of each finished piece of work.
    pub progress: indicatif::ProgressBar,
}

impl Run {
    /// A run without a progress bar.
    pub fn quiet(seed: u64) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            seed,
            replications: None,
            threads,
            progress: indicatif::ProgressBar::hidden(),
        }
    }

    /// Does `jobs` pieces of work on the run's threads; results are in the order of the pieces,
    /// whoever did them. The first error, in that order, ends the run.
    pub fn replicate<T: Send>(
        &self,
        jobs: usize,
        work: impl Fn(usize) -> Result<T, Error> + Sync,
    ) -> Result<Vec<T>, Error> {
        self.progress.inc_length(jobs as u64);
        let next = AtomicUsize::new(0);
        let mut done: Vec<(usize, Result<T, Error>)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..self.threads.clamp(1, jobs.max(1)))
                .map(|_| {
                    scope.spawn(|| {
                        let mut done = Vec::new();
                        loop {
                            let job = next.fetch_add(1, Ordering::Relaxed);
                            if job >= jobs {
                                return done;
                            }
                            let result = work(job);
                            let failed = result.is_err();
                            done.push((job, result));
                            self.progress.inc(1);
                            if failed {
                                next.store(jobs, Ordering::Relaxed);
                            }
                        }
                    })
                })
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| match worker.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        done.sort_by_key(|(job, _)| *job);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_whatever_the_number_of_threads() {
        for threads in [1, 2, 7] {
            let mut run = Run::quiet(1);
            run.threads = threads;
            let squares = run.replicate(100, |job| Ok(job * job)).unwrap();
            assert_eq!(squares, (0..100).map(|job| job * job).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_error_ends_the_run() {
        let run = Run::quiet(1);
        let failed = run.replicate(10, |job| match job {
            3 => Err(Error::invalid("three")),
            _ => Ok(job),
        });
        assert_eq!(failed.unwrap_err().to_string(), "three");
    }
}
