//! The pipeline on one machine: frames of all cameras are detected by instances that share CPUs (or
//! do not), then aggregated in order, one step after the other.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use fulmar_policy::admission::{self, Limiter, Window};
use fulmar_policy::estimate::Rate;
use fulmar_policy::scaling::{self, Workers};

use super::cpu::Cpu;
use super::{Scaler, Settings, Setup};
use crate::random::Random;

/// How often workers are started or stopped, and the concurrency limit moves, in seconds.
const DECIDE_SECONDS: f64 = 1.0;
/// Memory of the measured rate, in seconds.
const RATE_SECONDS: f64 = 10.0;
/// Classes of jobs: one thread, and as many as they like.
const ONE_THREAD: usize = 0;
const THREADS: usize = 1;

/// What a run gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// When each step was sent, and from then to its aggregation, in seconds; in order of sending.
    pub(super) steps: Vec<(f64, f64)>,
    /// Steps that were sent and not aggregated by the end.
    pub(super) unfinished: u64,
    /// Time in detection itself.
    pub(super) detect_seconds: Vec<f64>,
    pub(super) cold_starts: u32,
    pub(super) cold_cpu_seconds: f64,
    pub(super) cpu_share: f64,
    /// The concurrency limit over time, where there is one.
    pub(super) limits: Vec<(f64, u32)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// All cameras send.
    Frame,
    /// The CPUs' next job may be done; only if nothing changed since.
    Cpu(u64),
    /// A job that has its CPU to itself is done, or a wait for something else is over.
    Go(u32),
    Decide,
    /// The cameras' link is up again.
    LinkUp,
}

/// What a job is and how far it has come.
#[derive(Debug, Clone, Copy)]
enum Job {
    /// A frame, before or after it was detected.
    Detect {
        step: u32,
        submitted: f64,
        phase: Phase,
        began: f64,
    },
    /// A number of detections.
    Aggregate { phase: Phase },
    /// A worker that starts.
    Start { phase: Phase },
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Waiting for the network or the disk.
    Before,
    Computing,
    After,
}

pub(super) struct Plant<'a> {
    settings: &'a Settings,
    setup: &'a Setup,
    random: Random,
    now: f64,
    end: f64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_event: u64,
    cpu: Cpu,
    /// CPU seconds taken from those that instances have to themselves.
    own_cpu_seconds: f64,
    /// Changes of the CPUs' jobs.
    changes: u64,
    jobs: Vec<Job>,
    free_jobs: Vec<u32>,
    /// Frames that wait for the link: step.
    delayed: VecDeque<u32>,
    /// Held back by flow control: step.
    held: VecDeque<u32>,
    /// Waiting for a worker: a frame's step and when it was submitted, or the aggregator.
    queue: VecDeque<Option<(u32, f64)>>,
    ready: u32,
    busy: u32,
    starting: u32,
    /// Detections submitted and not done, and the most of them lately.
    in_flight: u32,
    most_in_flight: u32,
    limiter: Option<Limiter>,
    done_lately: (u32, f64),
    arrivals: Rate,
    /// Detections that wait for the aggregator, and those that it has.
    pending: Vec<u32>,
    aggregating: Vec<u32>,
    /// Detections of each step that were aggregated, and when it was sent.
    steps: Vec<(u32, f64, Option<f64>)>,
    outcome: Outcome,
}

impl<'a> Plant<'a> {
    pub(super) fn new(settings: &'a Settings, setup: &'a Setup, random: Random) -> Self {
        let provisioned = match setup.scaler {
            Scaler::Provisioned => setup.instances,
            Scaler::PerInvocation | Scaler::Policy => 0,
        };
        let fastest = super::speed_up(settings.parallel_share, f64::INFINITY);
        let limiter = setup.flow_control.then(|| {
            // One instance is left to the aggregator.
            let most = setup
                .instances
                .saturating_sub(u32::from(setup.shared))
                .max(1);
            let options = admission::Options {
                most,
                ..admission::Options::default()
            };
            Limiter::new(options, most)
        });
        Self {
            settings,
            setup,
            random,
            now: 0.0,
            end: setup.seconds,
            events: BinaryHeap::new(),
            next_event: 0,
            cpu: Cpu::new(settings.cpus, &[1.0, fastest]),
            own_cpu_seconds: 0.0,
            changes: 0,
            jobs: Vec::new(),
            free_jobs: Vec::new(),
            delayed: VecDeque::new(),
            held: VecDeque::new(),
            queue: VecDeque::new(),
            ready: provisioned,
            busy: 0,
            starting: 0,
            in_flight: 0,
            most_in_flight: 0,
            limiter,
            done_lately: (0, 0.0),
            arrivals: Rate::new(RATE_SECONDS, 0.0),
            pending: Vec::new(),
            aggregating: Vec::new(),
            steps: Vec::new(),
            outcome: Outcome::default(),
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        self.at(0.0, Event::Frame);
        self.at(DECIDE_SECONDS, Event::Decide);
        self.at(self.settings.outage_every_seconds, Event::LinkUp);
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            let then = f64::from_bits(time);
            if then > self.end {
                break;
            }
            if matches!(event, Event::Cpu(change) if change != self.changes) {
                continue;
            }
            self.now = then;
            self.cpu.pass(then);
            match event {
                Event::Frame => self.send(),
                Event::Cpu(_) => {
                    if let Some((_, class, job)) = self.cpu.next() {
                        self.cpu.end(class);
                        self.cpu_changed();
                        self.go(job);
                    }
                }
                Event::Go(job) => self.go(job),
                Event::LinkUp => {
                    self.held.append(&mut self.delayed);
                    self.submit();
                    let next = self.now + self.settings.outage_every_seconds;
                    self.at(next, Event::LinkUp);
                }
                Event::Decide => {
                    self.decide();
                    self.at(self.now + DECIDE_SECONDS, Event::Decide);
                }
            }
        }
        let used = self.cpu.used() + self.own_cpu_seconds;
        self.outcome.cpu_share = used / (self.settings.cpus * self.end);
        for (_, sent, done) in &self.steps {
            match done {
                Some(done) => self.outcome.steps.push((*sent, done - sent)),
                None => self.outcome.unfinished += 1,
            }
        }
        self.outcome
    }

    fn at(&mut self, time: f64, event: Event) {
        self.next_event += 1;
        self.events
            .push(Reverse((time.to_bits(), self.next_event, event)));
    }

    fn cpu_changed(&mut self) {
        self.changes += 1;
        if let Some((then, ..)) = self.cpu.next() {
            self.at(then, Event::Cpu(self.changes));
        }
    }

    /// All cameras send a frame of the same step.
    fn send(&mut self) {
        let step = self.steps.len() as u32;
        self.steps.push((0, self.now, None));
        let arriving = match self.is_link_down() {
            true => &mut self.delayed,
            false => &mut self.held,
        };
        arriving.extend((0..self.settings.cameras).map(|_| step));
        self.arrivals
            .see(self.now, f64::from(self.settings.cameras));
        self.submit();
        self.at(self.now + 1.0 / self.setup.frames_per_second, Event::Frame);
    }

    /// Lets in what flow control allows.
    fn submit(&mut self) {
        let limit = self.limiter.as_ref().map_or(u32::MAX, Limiter::limit);
        while self.in_flight < limit
            && let Some(step) = self.held.pop_front()
        {
            self.in_flight += 1;
            self.most_in_flight = self.most_in_flight.max(self.in_flight);
            self.queue.push_back(Some((step, self.now)));
        }
        self.dispatch();
    }

    /// Whether the cameras' link is down: at the end of each period.
    fn is_link_down(&self) -> bool {
        let every = self.settings.outage_every_seconds;
        let into = self.now % every;
        // A hair before the end is the end: periods are summed up.
        into > every - self.setup.outage_seconds && into < every - 1e-6
    }

    fn dispatch(&mut self) {
        while self.busy < self.ready
            && let Some(request) = self.queue.pop_front()
        {
            self.busy += 1;
            let (job, wait_seconds) = match request {
                Some((step, submitted)) => {
                    let job = Job::Detect {
                        step,
                        submitted,
                        phase: Phase::Before,
                        began: self.now,
                    };
                    (job, self.settings.wait_seconds)
                }
                None => {
                    let job = Job::Aggregate {
                        phase: Phase::Before,
                    };
                    (job, self.settings.aggregate_wait_seconds)
                }
            };
            self.begin(job, wait_seconds / 2.0);
        }
    }

    /// A job begins with a wait.
    fn begin(&mut self, job: Job, wait_seconds: f64) {
        let at = match self.free_jobs.pop() {
            Some(at) => {
                self.jobs[at as usize] = job;
                at
            }
            None => {
                self.jobs.push(job);
                (self.jobs.len() - 1) as u32
            }
        };
        self.at(self.now + wait_seconds, Event::Go(at));
    }

    /// A job is through with its phase.
    fn go(&mut self, at: u32) {
        let settings = self.settings;
        match self.jobs[at as usize] {
            Job::Detect {
                step,
                submitted,
                phase,
                began,
            } => match phase {
                Phase::Before => {
                    self.jobs[at as usize] = Job::Detect {
                        step,
                        submitted,
                        phase: Phase::Computing,
                        began: self.now,
                    };
                    let spread = settings.detect_spread;
                    let factor = 1.0 - spread + self.random.exponential(spread);
                    self.compute(at, THREADS, factor * settings.detect_cpu_seconds);
                }
                Phase::Computing => {
                    self.outcome.detect_seconds.push(self.now - began);
                    self.jobs[at as usize] = Job::Detect {
                        step,
                        submitted,
                        phase: Phase::After,
                        began,
                    };
                    self.at(self.now + settings.wait_seconds / 2.0, Event::Go(at));
                }
                Phase::After => {
                    self.free_jobs.push(at);
                    self.busy -= 1;
                    self.in_flight -= 1;
                    self.done_lately.0 += 1;
                    self.done_lately.1 += self.now - submitted;
                    self.pending.push(step);
                    self.aggregate();
                    self.submit();
                }
            },
            Job::Aggregate { phase } => match phase {
                Phase::Before => {
                    self.jobs[at as usize] = Job::Aggregate {
                        phase: Phase::Computing,
                    };
                    let work = settings.aggregate_cpu_seconds * self.aggregating.len() as f64;
                    self.compute(at, ONE_THREAD, work);
                }
                Phase::Computing => {
                    self.jobs[at as usize] = Job::Aggregate {
                        phase: Phase::After,
                    };
                    self.at(
                        self.now + settings.aggregate_wait_seconds / 2.0,
                        Event::Go(at),
                    );
                }
                Phase::After => {
                    self.free_jobs.push(at);
                    self.aggregated();
                    self.aggregate();
                    if self.setup.shared {
                        self.busy -= 1;
                        self.dispatch();
                    }
                }
            },
            Job::Start { phase } => match phase {
                Phase::Before => {
                    self.jobs[at as usize] = Job::Start {
                        phase: Phase::Computing,
                    };
                    self.compute(at, ONE_THREAD, settings.start_cpu_seconds);
                }
                Phase::Computing | Phase::After => {
                    self.free_jobs.push(at);
                    self.outcome.cold_cpu_seconds += settings.start_cpu_seconds;
                    self.starting -= 1;
                    self.ready += 1;
                    self.dispatch();
                }
            },
        }
    }

    /// On the CPUs of all, or on the instance's own.
    fn compute(&mut self, job: u32, class: usize, cpu_seconds: f64) {
        match self.setup.reserved_cpus {
            None => {
                let overhead = match class {
                    THREADS => self.settings.sharing_overhead,
                    _ => 0.0,
                };
                let cpu_seconds = cpu_seconds * (1.0 + overhead);
                self.cpu.begin(class, job, cpu_seconds);
                self.cpu_changed();
            }
            Some(cpus) => {
                let speed = match class {
                    ONE_THREAD => cpus.min(1.0),
                    _ => super::speed_up(self.settings.parallel_share, cpus),
                };
                let seconds = cpu_seconds / speed;
                self.own_cpu_seconds += seconds * cpus;
                self.at(self.now + seconds, Event::Go(job));
            }
        }
    }

    /// The aggregator takes all that waits for it, unless it is busy: one invocation at a time.
    fn aggregate(&mut self) {
        if self.pending.is_empty() || !self.aggregating.is_empty() {
            return;
        }
        std::mem::swap(&mut self.pending, &mut self.aggregating);
        match self.setup.shared {
            true => {
                self.queue.push_back(None);
                self.dispatch();
            }
            false => {
                let job = Job::Aggregate {
                    phase: Phase::Before,
                };
                self.begin(job, self.settings.aggregate_wait_seconds / 2.0);
            }
        }
    }

    fn aggregated(&mut self) {
        for step in self.aggregating.drain(..) {
            let (detections, _, done) = &mut self.steps[step as usize];
            *detections += 1;
            if *detections == self.settings.cameras {
                *done = Some(self.now);
            }
        }
    }

    fn decide(&mut self) {
        self.move_limit();
        let start = match self.setup.scaler {
            Scaler::Provisioned => 0,
            // One for each invocation in flight, as far as it may.
            Scaler::PerInvocation => {
                let wanted = self.busy + self.queue.len() as u32;
                let have = self.ready + self.starting;
                wanted.min(self.setup.instances).saturating_sub(have)
            }
            Scaler::Policy => self.policy(),
        };
        for _ in 0..start {
            self.starting += 1;
            self.outcome.cold_starts += 1;
            let job = Job::Start {
                phase: Phase::Before,
            };
            self.begin(job, self.settings.start_wait_seconds);
        }
    }

    fn policy(&self) -> u32 {
        let settings = self.settings;
        let cpu_seconds = settings.detect_cpu_seconds * (1.0 + settings.sharing_overhead);
        let workers = Workers {
            ready: self.ready,
            busy: self.busy,
            starting: self.starting,
            queued: self.queue.len() as u32,
            // Known from its queue, which it works off in order.
            waited_seconds: 0.0,
            arrivals_per_second: self.arrivals.per_second(self.now),
            seconds: settings.wait_seconds + cpu_seconds,
            cpu_seconds,
            // Instances are kept for the length of the experiment.
            idle_seconds: &[],
        };
        let cpu = scaling::Cpu {
            cpus: settings.cpus,
            busy: self.cpu.busy(),
        };
        let options = scaling::Options {
            most: self.setup.instances,
            start_seconds: settings.start_wait_seconds + settings.start_cpu_seconds,
            start_cpu_seconds: settings.start_cpu_seconds,
            ..scaling::Options::default()
        };
        scaling::decide(&workers, &cpu, &options).start
    }

    fn move_limit(&mut self) {
        let Some(limiter) = &mut self.limiter else {
            return;
        };
        let (completed, seconds) = std::mem::take(&mut self.done_lately);
        let limit = limiter.update(&Window {
            completed,
            mean_seconds: seconds / f64::from(completed.max(1)),
            most_in_flight: self.most_in_flight,
        });
        self.most_in_flight = self.in_flight;
        self.outcome.limits.push((self.now, limit));
        self.submit();
    }
}
