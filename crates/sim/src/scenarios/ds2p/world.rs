//! One run: invocations arrive, are executed somewhere, access keys; every two minutes keys move.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fulmar_policy::estimate::Smoothed;
use fulmar_policy::offload::{Arrival, Rule};
use fulmar_policy::placement::exact::{self, Limits, Solver};
use fulmar_policy::placement::{
    Placement, Problem, greedy, random as random_placement, state_aware,
};
use fulmar_policy::{Access, Function, FunctionIndex, Key, KeyIndex, Network, NodeIndex, Slo};

use super::draw::{Drawn, EDGE, EXECUTING, NODES};
use super::{Cell, Migration, Offloading, Reading, Settings, Workload};
use crate::Error;
use crate::random::Random;

/// Name, execution time (s), memory (MB), load of Table 2 (requests/s), mean cold start (s).
pub(super) const FUNCTIONS: [(&str, f64, u64, f64, f64); 5] = [
    ("f1", 0.40, 512, 8.0, 0.5),
    ("f2", 0.20, 512, 16.0, 0.25),
    ("f3", 0.30, 128, 42.0, 0.6),
    ("f4", 0.25, 1024, 6.0, 0.25),
    ("f5", 0.45, 256, 14.0, 0.5),
];
const EDGE_MEMORY_MB: u64 = 4 << 10;
const CLOUD_MEMORY_MB: u64 = 64 << 10;
/// Memory x time that each function asks for in a second, over all edge nodes (MB s/s).
const DEMAND: f64 = 16_000.0;
/// How long an idle container keeps its memory.
const IDLE_SECONDS: f64 = 600.0;
/// Fixed cost of handing an invocation on, and the size of its input.
const OVERHEAD_SECONDS: f64 = 0.005;
const INPUT_BYTES: f64 = 1024.0;
/// Weight of the last interval in an access rate.
const NEWEST: f64 = 0.33;

/// The solver proves the optimum of problems of this size in much less.
const EXACT_LIMITS: Limits = Limits {
    seconds: 600.0,
    gap: 0.0,
};

/// What a run gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) completed: u64,
    pub(super) refused: u64,
    pub(super) violations: u64,
    pub(super) excess_seconds: f64,
    pub(super) moved_bytes: u64,
    pub(super) on_edge: u64,
    /// Sorted.
    pub(super) response_seconds: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// Function, edge node.
    Arrival(u8, u8),
    /// Function, node, hops so far, by the place in `offloaded`.
    Offloaded(u32),
    /// Function, node.
    Done(u8, u8),
    Migrate,
}

#[derive(Debug, Clone, Copy)]
struct Request {
    function: u8,
    hops: u8,
    arrived: f64,
    /// Time that the answers need on their way back.
    return_seconds: f64,
}

/// Containers of a node.
struct Machine {
    free_mb: u64,
    /// When each idle container of each function became idle, the latest last.
    idle: [Vec<f64>; FUNCTIONS.len()],
}

pub(super) struct World<'a> {
    settings: &'a Settings,
    cell: Cell,
    random: Random,
    drawn: Drawn,
    network: Network,
    functions: Vec<Function>,
    homes: Vec<NodeIndex>,
    /// Mean data access time of each function on each node.
    data_seconds: Vec<Vec<f64>>,
    /// Mean bytes that each function fetches over the network on each node.
    remote_bytes: Vec<Vec<f64>>,
    candidates: Vec<Vec<NodeIndex>>,
    closest_cloud: Vec<NodeIndex>,
    machines: Vec<Machine>,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_event: u64,
    now: f64,
    offloaded: Vec<(Request, usize)>,
    free_slots: Vec<u32>,
    /// Accesses since the last migration, by function, key and node; and their smoothed rates.
    counted: Vec<u32>,
    rates: Vec<Smoothed>,
    invocations: [u32; FUNCTIONS.len()],
    invocation_rates: [Smoothed; FUNCTIONS.len()],
    outcome: Outcome,
}

const KEYS: usize = 101;

/// Requests that arrive in a run, about.
pub(super) fn requests(settings: &Settings) -> f64 {
    let rates = FUNCTIONS.map(
        |(_, exec_seconds, memory, table_rate, _)| match settings.reading {
            Reading::Program => DEMAND / FUNCTIONS.len() as f64 / (exec_seconds * memory as f64),
            Reading::Paper => table_rate,
        },
    );
    settings.seconds * rates.iter().sum::<f64>()
}

fn slot(function: usize, key: usize, node: usize) -> usize {
    (key * FUNCTIONS.len() + function) * NODES + node
}

impl<'a> World<'a> {
    pub(super) fn new(settings: &'a Settings, cell: Cell, drawn: Drawn, random: Random) -> Self {
        let bandwidth = (0..NODES * NODES)
            .map(|at| match at / NODES >= EDGE && at % NODES >= EDGE {
                true => 1e9 / 8.0,
                false => 1e8 / 8.0,
            })
            .collect();
        let network = Network::new(NODES, drawn.latency_seconds.clone(), bandwidth);
        let functions = FUNCTIONS
            .iter()
            .map(|(name, exec_seconds, memory, _, _)| Function {
                name: (*name).into(),
                exec_seconds: *exec_seconds,
                memory_bytes: memory << 20,
                input_bytes: INPUT_BYTES,
                output_bytes: 0.0,
                slo: Slo {
                    max_data_access_seconds: cell.t_max,
                    max_response_seconds: f64::INFINITY,
                    penalty_per_second: 1.0,
                },
            })
            .collect();
        let closest = |from: usize| {
            let clouds = (EDGE..EXECUTING)
                .filter(|node| *node != from)
                .map(NodeIndex::from);
            let from = NodeIndex::from(from);
            clouds
                .min_by(|a, b| {
                    network
                        .latency(from, *a)
                        .total_cmp(&network.latency(from, *b))
                })
                .unwrap_or(from)
        };
        let closest_cloud = (0..EXECUTING).map(closest).collect();
        let machines = (0..EXECUTING)
            .map(|node| Machine {
                free_mb: if node < EDGE {
                    EDGE_MEMORY_MB
                } else {
                    CLOUD_MEMORY_MB
                },
                idle: Default::default(),
            })
            .collect();
        let mut world = Self {
            settings,
            cell,
            random,
            network,
            functions,
            homes: vec![NodeIndex::from(EXECUTING); KEYS],
            data_seconds: Vec::new(),
            remote_bytes: Vec::new(),
            candidates: Vec::new(),
            closest_cloud,
            machines,
            events: BinaryHeap::new(),
            next_event: 0,
            now: 0.0,
            offloaded: Vec::new(),
            free_slots: Vec::new(),
            counted: vec![0; KEYS * FUNCTIONS.len() * NODES],
            rates: vec![Smoothed::new(NEWEST); KEYS * FUNCTIONS.len() * NODES],
            invocations: [0; FUNCTIONS.len()],
            invocation_rates: [Smoothed::new(NEWEST); FUNCTIONS.len()],
            outcome: Outcome::default(),
            drawn,
        };
        world.keys_moved();
        world
    }

    pub(super) fn run(mut self) -> Result<Outcome, Error> {
        for function in 0..FUNCTIONS.len() {
            for edge in 0..EDGE {
                if self.gap(function, edge).is_some() {
                    self.next_arrival(function as u8, edge as u8);
                }
            }
        }
        if self.cell.migration != Migration::None {
            self.at(self.settings.migrate_seconds, Event::Migrate);
        }
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            self.now = f64::from_bits(time);
            match event {
                Event::Arrival(function, edge) => {
                    self.next_arrival(function, edge);
                    self.invocations[usize::from(function)] += 1;
                    let request = Request {
                        function,
                        hops: 0,
                        arrived: self.now,
                        return_seconds: 0.0,
                    };
                    self.schedule(request, usize::from(edge));
                }
                Event::Offloaded(at) => {
                    let (request, node) = self.offloaded[at as usize];
                    self.free_slots.push(at);
                    self.schedule(request, node);
                }
                Event::Done(function, node) => {
                    self.machines[usize::from(node)].idle[usize::from(function)].push(self.now);
                }
                Event::Migrate => {
                    self.migrate()?;
                    let next = self.now + self.settings.migrate_seconds;
                    if next < self.settings.seconds {
                        self.at(next, Event::Migrate);
                    }
                }
            }
        }
        self.outcome.response_seconds.sort_by(f64::total_cmp);
        Ok(self.outcome)
    }

    fn at(&mut self, time: f64, event: Event) {
        self.next_event += 1;
        self.events
            .push(Reverse((time.to_bits(), self.next_event, event)));
    }

    /// Mean seconds between invocations of a function at an edge node.
    fn gap(&self, function: usize, edge: usize) -> Option<f64> {
        let (_, exec_seconds, memory, table_rate, _) = FUNCTIONS[function];
        let total = match self.settings.reading {
            // What the program makes of "equal expected memory utilization".
            Reading::Program => DEMAND / FUNCTIONS.len() as f64 / (exec_seconds * memory as f64),
            Reading::Paper => table_rate,
        };
        match self.cell.workload {
            Workload::W1 => Some(EDGE as f64 / total),
            Workload::W2 => (function % EDGE == edge).then(|| 1.0 / total),
        }
    }

    fn next_arrival(&mut self, function: u8, edge: u8) {
        let Some(gap) = self.gap(usize::from(function), usize::from(edge)) else {
            return;
        };
        let then = self.now + self.random.exponential(gap);
        if then < self.settings.seconds {
            self.at(then, Event::Arrival(function, edge));
        }
    }

    fn schedule(&mut self, request: Request, node: usize) {
        let function = usize::from(request.function);
        let most_hops = match self.settings.reading {
            Reading::Program => 3,
            Reading::Paper => 1,
        };
        let here = NodeIndex::from(node);
        let fits_here = self.has_room(function, node);
        let closest = self.closest_cloud[node];
        let mut candidates = self.candidates[function].clone();
        // From the edge to the cloud; cloud nodes look no further.
        if node < EDGE && !candidates.contains(&closest) {
            candidates.push(closest);
        }
        let verdict = Arrival {
            here,
            function: &self.functions[function],
            network: &self.network,
            speed_up: &[1.0; NODES],
            data_seconds: &self.data_seconds[function],
            remote_bytes: &self.remote_bytes[function],
            candidates: &candidates,
            closest_cloud: Some(closest),
            fits_here,
            overhead_seconds: OVERHEAD_SECONDS,
            wait_seconds: &[],
            cold_start_seconds: &[],
            may_offload: request.hops < most_hops,
        }
        .decide(match self.cell.offloading {
            Offloading::GreedyLocal => Rule::GreedyLocal,
            Offloading::GreedyData => Rule::GreedyData,
            Offloading::SloAware => Rule::SloAware,
        });
        match verdict.node {
            None => self.outcome.refused += 1,
            Some(to) if to == here => self.execute(request, node),
            Some(to) => {
                let there = OVERHEAD_SECONDS + self.network.transfer(here, to, INPUT_BYTES);
                let handed_on = Request {
                    hops: request.hops + 1,
                    return_seconds: request.return_seconds + self.network.latency(to, here),
                    ..request
                };
                let at = match self.free_slots.pop() {
                    Some(at) => {
                        self.offloaded[at as usize] = (handed_on, to.at());
                        at
                    }
                    None => {
                        self.offloaded.push((handed_on, to.at()));
                        (self.offloaded.len() - 1) as u32
                    }
                };
                self.at(self.now + there, Event::Offloaded(at));
            }
        }
    }

    /// Whether a container for the function is idle, or fits when idle ones go.
    fn has_room(&mut self, function: usize, node: usize) -> bool {
        let now = self.now;
        let machine = &mut self.machines[node];
        for (other, (_, _, memory, _, _)) in machine.idle.iter_mut().zip(FUNCTIONS) {
            let expired = other.partition_point(|since| *since + IDLE_SECONDS <= now);
            other.drain(..expired);
            machine.free_mb += expired as u64 * memory;
        }
        let idle = |(idle, (_, _, memory, _, _)): (&Vec<f64>, (_, _, u64, _, _))| {
            idle.len() as u64 * memory
        };
        !machine.idle[function].is_empty()
            || machine.free_mb + machine.idle.iter().zip(FUNCTIONS).map(idle).sum::<u64>()
                >= FUNCTIONS[function].2
    }

    /// Takes a container; its cold start, if it was not warm.
    fn container(&mut self, function: usize, node: usize) -> f64 {
        let machine = &mut self.machines[node];
        if machine.idle[function].pop().is_some() {
            return 0.0;
        }
        let needed = FUNCTIONS[function].2;
        while machine.free_mb < needed {
            // The largest idle ones go first.
            let largest = (0..FUNCTIONS.len())
                .filter(|other| !machine.idle[*other].is_empty())
                .max_by_key(|other| FUNCTIONS[*other].2);
            let Some(largest) = largest else { break };
            machine.idle[largest].remove(0);
            machine.free_mb += FUNCTIONS[largest].2;
        }
        machine.free_mb = machine.free_mb.saturating_sub(needed);
        match self.settings.reading {
            Reading::Program => FUNCTIONS[function].4,
            Reading::Paper => 0.0,
        }
    }

    fn execute(&mut self, request: Request, node: usize) {
        let function = usize::from(request.function);
        if !self.has_room(function, node) {
            self.outcome.refused += 1;
            return;
        }
        let cold = self.container(function, node);
        let here = NodeIndex::from(node);
        let mut data = 0.0;
        for (key, probability) in &self.drawn.accesses[function] {
            if self.random.chance(*probability) {
                data +=
                    self.network
                        .access(here, self.homes[*key], self.drawn.size_bytes[*key] as f64);
                self.counted[slot(function, *key, node)] += 1;
            }
        }
        let running = cold + self.random.exponential(FUNCTIONS[function].1) + data;
        let done = self.now + running;
        self.at(done, Event::Done(request.function, node as u8));
        let outcome = &mut self.outcome;
        outcome.completed += 1;
        outcome.on_edge += u64::from(node < EDGE);
        let excess = data - self.cell.t_max;
        if excess > 0.0 {
            outcome.violations += 1;
            outcome.excess_seconds += excess;
        }
        outcome
            .response_seconds
            .push(done + request.return_seconds - request.arrived);
    }

    /// What follows from where keys are.
    fn keys_moved(&mut self) {
        let mean = |accesses: &[(usize, f64)], node: NodeIndex| -> f64 {
            accesses
                .iter()
                .map(|(key, probability)| {
                    let bytes = self.drawn.size_bytes[*key] as f64;
                    probability * self.network.access(node, self.homes[*key], bytes)
                })
                .sum()
        };
        self.data_seconds = self
            .drawn
            .accesses
            .iter()
            .map(|accesses| {
                (0..NODES)
                    .map(|node| mean(accesses, NodeIndex::from(node)))
                    .collect()
            })
            .collect();
        let bytes = |accesses: &[(usize, f64)], node: NodeIndex| -> f64 {
            let remote = accesses.iter().filter(|(key, _)| self.homes[*key] != node);
            remote
                .map(|(key, p)| p * self.drawn.size_bytes[*key] as f64)
                .sum()
        };
        self.remote_bytes = self
            .drawn
            .accesses
            .iter()
            .map(|accesses| {
                (0..NODES)
                    .map(|node| bytes(accesses, NodeIndex::from(node)))
                    .collect()
            })
            .collect();
        self.candidates = self
            .drawn
            .accesses
            .iter()
            .map(|accesses| {
                let mut nodes: Vec<NodeIndex> =
                    accesses.iter().map(|(key, _)| self.homes[*key]).collect();
                nodes.retain(|node| node.at() < EXECUTING);
                nodes.sort_unstable();
                nodes.dedup();
                nodes
            })
            .collect();
    }

    fn migrate(&mut self) -> Result<(), Error> {
        let every = self.settings.migrate_seconds;
        for (rate, count) in self.rates.iter_mut().zip(&mut self.counted) {
            rate.see(f64::from(std::mem::take(count)) / every);
        }
        let counted = self.invocation_rates.iter_mut().zip(&mut self.invocations);
        let invocation_rates: Vec<f64> = counted
            .map(|(rate, count)| rate.see(f64::from(std::mem::take(count)) / every))
            .collect();
        let mut accesses = Vec::new();
        for key in 0..KEYS {
            for function in 0..FUNCTIONS.len() {
                for node in 0..NODES {
                    let rate = self.rates[slot(function, key, node)].value();
                    if rate > 0.0 {
                        accesses.push(Access {
                            function: FunctionIndex::from(function),
                            key: KeyIndex::from(key),
                            node: NodeIndex::from(node),
                            rate,
                        });
                    }
                }
            }
        }
        // Only keys that anybody has: the others have no size in a file.
        let used = |key: usize| {
            self.drawn
                .accesses
                .iter()
                .flatten()
                .any(|(other, _)| *other == key)
        };
        let keys: Vec<Key> = (0..KEYS)
            .map(|key| Key {
                size_bytes: if used(key) {
                    self.drawn.size_bytes[key]
                } else {
                    0
                },
                home: self.homes[key],
            })
            .collect();
        let mut may_host = [true; NODES];
        may_host[EXECUTING] = false;
        let problem = Problem {
            network: &self.network,
            storage_bytes: &[u64::MAX; NODES],
            may_host: &may_host,
            functions: &self.functions,
            invocation_rates: &invocation_rates,
            keys: &keys,
            accesses: &accesses,
            penalty_weight: self.settings.penalty_weight,
            move_weight: self.settings.move_weight,
            horizon_seconds: f64::INFINITY,
        };
        let (placement, moved) = match self.cell.migration {
            Migration::None => (Placement::unchanged(&keys), None),
            Migration::Random => {
                let (placement, moved) =
                    random_placement::place(&problem, &mut || self.random.unit());
                (placement, Some(moved))
            }
            Migration::Greedy => (greedy::place(&problem), None),
            Migration::StateAware => (
                state_aware::place(&problem)
                    .map_err(|error| Error::invalid(error.to_string()))?
                    .placement,
                None,
            ),
            Migration::Exact => (
                exact::place(&problem, Solver::Microlp, &EXACT_LIMITS)
                    .map_err(|error| Error::invalid(error.to_string()))?
                    .placement,
                None,
            ),
        };
        let moves = || {
            placement
                .moves(&keys)
                .map(|(key, _)| keys[key.at()].size_bytes)
                .sum()
        };
        self.outcome.moved_bytes += moved.unwrap_or_else(moves);
        self.homes = placement.homes;
        self.keys_moved();
        Ok(())
    }
}
