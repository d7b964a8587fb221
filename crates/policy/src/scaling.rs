//! How many workers a function has: when to start some, when to stop some.
//!
//! "Cliffhanger", IV-A, IV-C and V: more workers than CPUs help as long as they wait for something
//! else in between; cold starts take time *and* CPU from running work, so that starting for every
//! invocation in the queue makes it longer. So: as many as Little's law asks for and the backlog needs,
//! no more than the CPUs can use, few starts at once, and only where a start pays.

/// A function's workers on a node, as measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Workers<'a> {
    /// Workers that take or could take invocations.
    pub ready: u32,
    /// Of these, the busy ones.
    pub busy: u32,
    /// Workers being started.
    pub starting: u32,
    /// Invocations that wait for a worker.
    pub queued: u32,
    /// For how long the first of them waits already, in seconds.
    pub waited_seconds: f64,
    /// Invocations that arrive per second.
    pub arrivals_per_second: f64,
    /// How long an invocation keeps a worker when there is no contention, in seconds.
    pub seconds: f64,
    /// Of that, what it computes: seconds of one CPU.
    pub cpu_seconds: f64,
    /// For how long idle workers have been idle, in seconds, the longest first.
    pub idle_seconds: &'a [f64],
}

/// The node's CPUs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cpu {
    /// How many there are for functions.
    pub cpus: f64,
    /// How many are in use.
    pub busy: f64,
}

/// What is asked for and what a start costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Workers there are always.
    pub least: u32,
    /// Workers at most.
    pub most: u32,
    /// How long a start takes when there is no contention, in seconds.
    pub start_seconds: f64,
    /// Of that, seconds of one CPU.
    pub start_cpu_seconds: f64,
    /// How long an idle worker is kept, in seconds.
    pub keep_seconds: f64,
    /// Part of the workers that is kept beyond what the mean load needs.
    pub headroom: f64,
    /// Within so many seconds a backlog should be worked off.
    pub drain_seconds: f64,
    /// Part of the CPUs that starts may take from running work.
    pub start_share: f64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            least: 0,
            most: 1_000,
            start_seconds: 1.0,
            start_cpu_seconds: 1.0,
            keep_seconds: 60.0,
            headroom: 0.2,
            drain_seconds: 30.0,
            start_share: 0.25,
        }
    }
}

/// What keeps the number from being another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// It is what the load asks for.
    Demand,
    /// [`Options::least`] or [`Options::most`].
    Configured,
    /// More workers than the CPUs can use.
    Cpu,
    /// Enough starts are under way.
    ColdStarts,
    /// What waits is done sooner than a start.
    NotWorthIt,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Decision {
    /// Workers to start now.
    pub start: u32,
    /// Idle workers to stop now, the longest idle first.
    pub stop: u32,
    /// Workers that the load asks for.
    pub wanted: u32,
    /// Why it is not more.
    pub bound: Bound,
}

/// Decides from what was measured.
pub fn decide(workers: &Workers<'_>, cpu: &Cpu, options: &Options) -> Decision {
    let (wanted, mut bound) = wanted(workers, cpu, options);
    let have = workers.ready + workers.starting;
    let mut start = wanted.saturating_sub(have);
    if start > 0 {
        let allowed = starts_allowed(workers, cpu, options);
        if allowed < start {
            (start, bound) = (allowed, Bound::ColdStarts);
        }
        let is_least = have < options.least;
        if start > 0 && !is_least && !pays(workers, options) {
            (start, bound) = (0, Bound::NotWorthIt);
        }
    }
    // Whoever was not needed for so long is not, whatever the mean says: the one that was used last is used next.
    let spare = workers.ready.saturating_sub(options.least);
    let expired = workers
        .idle_seconds
        .iter()
        .take_while(|seconds| **seconds >= options.keep_seconds);
    let stop = match start {
        0 => spare.min(expired.count() as u32),
        _ => 0,
    };
    Decision {
        start,
        stop,
        wanted,
        bound,
    }
}

/// Workers for the mean load (Little's law) with headroom, and for the backlog.
fn wanted(workers: &Workers<'_>, cpu: &Cpu, options: &Options) -> (u32, Bound) {
    let load = workers.arrivals_per_second * workers.seconds;
    let backlog = f64::from(workers.queued) * workers.seconds / options.drain_seconds;
    let mut asked = (load * (1.0 + options.headroom) + backlog).ceil();
    // Whoever waits for longer than a start takes shows that workers are busy for longer than those before were.
    let ready = workers.ready + workers.starting;
    if workers.queued > 0 && workers.waited_seconds > options.start_seconds {
        asked = asked.max(f64::from(ready + u32::from(workers.starting == 0)));
    }
    if workers.queued > 0 {
        asked = asked.max(1.0);
    }
    // Workers that wait for something else half of their time use half a CPU.
    let useful = match workers.cpu_seconds > 0.0 {
        true => (cpu.cpus * workers.seconds / workers.cpu_seconds).ceil(),
        false => f64::INFINITY,
    };
    let most = f64::from(options.most);
    let (least, asked_for) = (f64::from(options.least), asked.min(useful).min(most));
    let bound = match () {
        () if asked_for < least || (asked > most && most <= useful) => Bound::Configured,
        () if asked > useful => Bound::Cpu,
        () => Bound::Demand,
    };
    (asked_for.max(least) as u32, bound)
}

/// Starts that may begin now: what CPUs are free, at least a share of all, less what is under way.
fn starts_allowed(workers: &Workers<'_>, cpu: &Cpu, options: &Options) -> u32 {
    let each = match options.start_seconds > 0.0 {
        true => options.start_cpu_seconds / options.start_seconds,
        false => 0.0,
    };
    if each <= 0.0 {
        return u32::MAX;
    }
    // Those under way are among the busy CPUs.
    let under_way = f64::from(workers.starting) * each;
    let free = (cpu.cpus - (cpu.busy - under_way).max(0.0)).max(options.start_share * cpu.cpus);
    let at_once = (free / each).floor().max(1.0) as u32;
    at_once.saturating_sub(workers.starting)
}

/// Whether what waits, and what arrives meanwhile, would still wait when a start is through.
fn pays(workers: &Workers<'_>, options: &Options) -> bool {
    if workers.ready == 0 || workers.waited_seconds > options.start_seconds {
        return true;
    }
    let served = f64::from(workers.ready) / workers.seconds.max(f64::MIN_POSITIVE);
    let growing = workers.arrivals_per_second - served;
    f64::from(workers.queued) + growing * options.start_seconds > 0.0
        || workers.arrivals_per_second * (1.0 + options.headroom) > served
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CPU: Cpu = Cpu {
        cpus: 8.0,
        busy: 0.0,
    };

    fn workers() -> Workers<'static> {
        Workers {
            ready: 0,
            busy: 0,
            starting: 0,
            queued: 0,
            waited_seconds: 0.0,
            arrivals_per_second: 0.0,
            seconds: 1.0,
            cpu_seconds: 0.5,
            idle_seconds: &[],
        }
    }

    #[test]
    fn as_many_as_the_load_asks_for() {
        let load = Workers {
            arrivals_per_second: 5.0,
            ..workers()
        };
        let decision = decide(&load, &CPU, &Options::default());
        assert_eq!((decision.wanted, decision.start), (6, 6));
        assert_eq!(decision.bound, Bound::Demand);
    }

    #[test]
    fn the_first_invocation_gets_a_worker_of_which_nothing_is_known_yet() {
        let first = Workers {
            queued: 1,
            seconds: 0.0,
            cpu_seconds: 0.0,
            ..workers()
        };
        let decision = decide(&first, &CPU, &Options::default());
        assert_eq!((decision.wanted, decision.start), (1, 1));
        let starting = Workers {
            starting: 1,
            ..first
        };
        assert_eq!(decide(&starting, &CPU, &Options::default()).start, 0);
    }

    #[test]
    fn whoever_waits_longer_than_a_start_takes_gets_one_more() {
        // Both workers are busy for longer than any was before.
        let stuck = Workers {
            ready: 2,
            busy: 2,
            queued: 1,
            waited_seconds: 1.5,
            arrivals_per_second: 0.1,
            ..workers()
        };
        let decision = decide(&stuck, &CPU, &Options::default());
        assert_eq!((decision.wanted, decision.start), (3, 1));
        let starting = Workers {
            starting: 1,
            ..stuck
        };
        assert_eq!(decide(&starting, &CPU, &Options::default()).start, 0);
        let most = Options {
            most: 2,
            ..Options::default()
        };
        assert_eq!(decide(&stuck, &CPU, &most).start, 0);
    }

    #[test]
    fn no_more_than_the_cpus_can_use() {
        let load = Workers {
            arrivals_per_second: 500.0,
            queued: 1_000,
            ..workers()
        };
        let decision = decide(&load, &CPU, &Options::default());
        // Each computes half of the time: 16 workers keep 8 CPUs busy; 8 starts at once.
        assert_eq!((decision.wanted, decision.start), (16, 8));
        assert_eq!(decision.bound, Bound::ColdStarts);
    }

    #[test]
    fn starts_take_a_share_from_running_work_only() {
        let busy = Cpu {
            cpus: 8.0,
            busy: 8.0,
        };
        let load = Workers {
            ready: 4,
            busy: 4,
            arrivals_per_second: 12.0,
            queued: 10,
            ..workers()
        };
        let decision = decide(&load, &busy, &Options::default());
        assert_eq!((decision.start, decision.bound), (2, Bound::ColdStarts));
        let under_way = Workers {
            starting: 2,
            ..load
        };
        assert_eq!(decide(&under_way, &busy, &Options::default()).start, 0);
    }

    #[test]
    fn a_start_that_comes_too_late_is_not_made() {
        let options = Options {
            drain_seconds: 1.0,
            start_seconds: 20.0,
            ..Options::default()
        };
        // Four waiting, six workers, little arriving: done in a second.
        let load = Workers {
            ready: 6,
            busy: 6,
            queued: 4,
            arrivals_per_second: 4.0,
            ..workers()
        };
        let decision = decide(&load, &CPU, &options);
        assert_eq!((decision.start, decision.bound), (0, Bound::NotWorthIt));
    }

    #[test]
    fn idle_workers_are_kept_for_a_while() {
        let idle = Workers {
            ready: 4,
            idle_seconds: &[90.0, 70.0, 10.0, 1.0],
            ..workers()
        };
        assert_eq!(decide(&idle, &CPU, &Options::default()).stop, 2);
        let options = Options {
            least: 3,
            ..Options::default()
        };
        assert_eq!(decide(&idle, &CPU, &options).stop, 1);
    }

    proptest! {
        #[test]
        fn decisions_keep_within_what_is_configured(
            ready in 0_u32..50, busy_share in 0.0_f64..1.0, starting in 0_u32..50, queued in 0_u32..500,
            rate in 0.0_f64..200.0, seconds in 0.01_f64..20.0, cpu_share in 0.0_f64..1.0,
            idle in prop::collection::vec(0.0_f64..200.0, 0..50), cpu_busy in 0.0_f64..8.0,
            least in 0_u32..10, more in 0_u32..60,
        ) {
            let busy = (f64::from(ready) * busy_share) as u32;
            let mut idle: Vec<f64> = idle.into_iter().take((ready - busy) as usize).collect();
            idle.sort_by(|a, b| b.total_cmp(a));
            let workers = Workers {
                ready, busy, starting, queued, waited_seconds: 0.0,
                arrivals_per_second: rate, seconds, cpu_seconds: seconds * cpu_share,
                idle_seconds: &idle,
            };
            let cpu = Cpu { cpus: 8.0, busy: cpu_busy };
            let options = Options { least, most: least + more, ..Options::default() };
            let decision = decide(&workers, &cpu, &options);
            prop_assert!(decision.start == 0 || decision.stop == 0);
            prop_assert!(decision.start == 0 || ready + starting + decision.start <= options.most);
            prop_assert!(decision.stop <= ready - busy, "busy workers go on");
            prop_assert!(decision.stop == 0 || ready - decision.stop >= least);
            prop_assert!((least..=least + more).contains(&decision.wanted));
        }
    }
}
