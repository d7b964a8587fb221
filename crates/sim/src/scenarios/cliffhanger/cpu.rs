//! CPUs that jobs share: processor sharing, each job up to a speed of its own class.

use std::collections::BTreeSet;

/// Jobs of one class make progress at one speed, so that one clock serves them all.
#[derive(Debug, Clone)]
struct Class {
    /// Fastest progress of one job, in CPU seconds per second.
    most: f64,
    /// Progress that a job of this class would have made since the beginning.
    clock: f64,
    /// When each job is done by this clock, and which it is.
    jobs: BTreeSet<(u64, u32)>,
}

/// CPUs and what runs on them.
#[derive(Debug, Clone)]
pub(super) struct Cpu {
    cpus: f64,
    classes: Vec<Class>,
    now: f64,
    /// CPU seconds used so far.
    used: f64,
}

impl Cpu {
    /// So many CPUs, and the fastest progress of a job of each class, the slowest class first.
    pub(super) fn new(cpus: f64, classes: &[f64]) -> Self {
        let class = |most: &f64| Class {
            most: *most,
            clock: 0.0,
            jobs: BTreeSet::new(),
        };
        Self {
            cpus,
            classes: classes.iter().map(class).collect(),
            now: 0.0,
            used: 0.0,
        }
    }

    /// Speeds by class: equal shares, and what slow classes cannot use goes to the others.
    fn speeds(&self) -> Vec<f64> {
        let mut left = self.cpus;
        let mut jobs: usize = self.classes.iter().map(|class| class.jobs.len()).sum();
        self.classes
            .iter()
            .map(|class| {
                let speed = class.most.min(left / jobs.max(1) as f64);
                left -= speed * class.jobs.len() as f64;
                jobs -= class.jobs.len();
                speed
            })
            .collect()
    }

    /// Lets time pass; nothing may have become done in between.
    pub(super) fn pass(&mut self, now: f64) {
        let passed = now - self.now;
        let speeds = self.speeds();
        for (class, speed) in self.classes.iter_mut().zip(speeds) {
            class.clock += speed * passed;
            self.used += speed * passed * class.jobs.len() as f64;
        }
        self.now = now;
    }

    /// A job of so many CPU seconds begins now.
    pub(super) fn begin(&mut self, class: usize, job: u32, cpu_seconds: f64) {
        let class = &mut self.classes[class];
        // Clocks are never negative, so that their bits are in their order.
        class
            .jobs
            .insert(((class.clock + cpu_seconds).to_bits(), job));
    }

    /// The job that is done next, its class, and when.
    pub(super) fn next(&self) -> Option<(f64, usize, u32)> {
        let speeds = self.speeds();
        let mut next: Option<(f64, usize, u32)> = None;
        for (at, (class, speed)) in self.classes.iter().zip(speeds).enumerate() {
            if let Some((done, job)) = class.jobs.first() {
                let left = (f64::from_bits(*done) - class.clock).max(0.0);
                let then = self.now + left / speed;
                if next.is_none_or(|(soonest, ..)| then < soonest) {
                    next = Some((then, at, *job));
                }
            }
        }
        next
    }

    /// Takes the job that is done next away.
    pub(super) fn end(&mut self, class: usize) {
        self.classes[class].jobs.pop_first();
    }

    /// CPUs in use now.
    pub(super) fn busy(&self) -> f64 {
        let speeds = self.speeds();
        let used = |(class, speed): (&Class, f64)| speed * class.jobs.len() as f64;
        self.classes.iter().zip(speeds).map(used).sum()
    }

    /// CPU seconds used so far.
    pub(super) fn used(&self) -> f64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    /// Mean response and mean number of jobs of a queue with processor sharing.
    fn queue(cpus: f64, most: f64, load: f64, constant: bool) -> (f64, f64) {
        let mut random = Random::new(3, 0);
        let mut cpu = Cpu::new(cpus, &[most]);
        let (mut arrived, mut responses, mut area) = (Vec::new(), Vec::new(), 0.0);
        let (mut now, mut next_arrival, mut jobs) = (0.0, 0.0, 0_u32);
        while responses.len() < 200_000 {
            let done = cpu.next();
            let then = done.map_or(next_arrival, |(done, ..)| done.min(next_arrival));
            area += f64::from(jobs) * (then - now);
            now = then;
            cpu.pass(now);
            match done {
                Some((at, class, job)) if at <= next_arrival => {
                    cpu.end(class);
                    responses.push(now - arrived[job as usize]);
                    jobs -= 1;
                }
                _ => {
                    let work = if constant {
                        1.0
                    } else {
                        random.exponential(1.0)
                    };
                    cpu.begin(0, arrived.len() as u32, work);
                    arrived.push(now);
                    jobs += 1;
                    next_arrival = now + random.exponential(1.0 / (load * cpus));
                }
            }
        }
        let mean = responses.iter().sum::<f64>() / responses.len() as f64;
        (mean, area / now)
    }

    #[test]
    fn one_cpu_is_m_g_1_with_processor_sharing() {
        for constant in [false, true] {
            let (mean, jobs) = queue(1.0, 1.0, 0.7, constant);
            // Insensitive: 1 / (1 - 0.7), whatever the distribution; and Little's law.
            assert!((mean - 1.0 / 0.3).abs() < 0.1, "{mean}");
            assert!((jobs - 0.7 * mean).abs() < 0.05, "{jobs}");
        }
    }

    #[test]
    fn many_cpus_with_slow_jobs_are_m_m_c() {
        let (mean, _) = queue(4.0, 1.0, 0.8, false);
        let expected = fulmar_policy::local_state::erlang::pool_seconds(4, 3.2, 1.0).unwrap();
        assert!(
            (mean - expected).abs() < 0.03 * expected,
            "{mean} {expected}"
        );
    }

    #[test]
    fn what_slow_jobs_leave_goes_to_fast_ones() {
        let mut cpu = Cpu::new(8.0, &[1.0, 4.0]);
        cpu.begin(0, 0, 1.0);
        cpu.begin(1, 1, 1.0);
        cpu.begin(1, 2, 7.0);
        assert_eq!(cpu.speeds(), [1.0, 3.5]);
        assert_eq!(cpu.busy(), 8.0);
        let (then, class, job) = cpu.next().unwrap();
        assert!((then - 1.0 / 3.5).abs() < 1e-12);
        assert_eq!((class, job), (1, 1));
    }
}
