//! One run: invocations arrive, are executed somewhere, access keys; every two minutes keys move.

mod keys;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fulmar_policy::estimate::Smoothed;
use fulmar_policy::offload::{Arrival, Rule, Verdict};
use fulmar_policy::{Function, Network, NodeIndex, Slo};

use super::draw::{Drawn, Layout};
use super::machine::{FUNCTIONS, Machine};
use super::{Cell, Migration, Offloading, Reading, Settings, Workload};
use crate::Error;
use crate::random::Random;

pub(super) const EDGE_MEMORY_MB: u64 = 4 << 10;
pub(super) const CLOUD_MEMORY_MB: u64 = 64 << 10;
/// Memory x time that all functions ask for in a second, over all edge nodes of the paper (MB s/s).
const DEMAND: f64 = 16_000.0;
const EDGE_NODES: f64 = 5.0;
/// Fixed cost of handing an invocation on, by the program and measured on the platform's own nodes, and the size of its
/// input.
const OVERHEAD_SECONDS: f64 = 0.005;
const OWN_OVERHEAD_SECONDS: f64 = 170e-6;
const INPUT_BYTES: f64 = 1024.0;
/// Another node has to be expected this much sooner than the usual one, in parts of its time, on the platform's own nodes.
const CLEARLY: f64 = 0.1;
/// Weight of the last interval in an access rate.
const NEWEST: f64 = 0.33;

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
    /// Where it arrived, and those that had no memory for it, a bit for each: on the platform's own nodes it comes back.
    origin: u8,
    full: u128,
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
    let rates = (0..FUNCTIONS.len()).map(|function| rate(settings, function));
    settings.seconds * rates.sum::<f64>() * settings.edge_nodes as f64
}

/// Requests a second of a function at each edge node, if it arrives at all of them.
pub(super) fn rate(settings: &Settings, function: usize) -> f64 {
    total_rate(settings, function) / EDGE_NODES
}

/// The same for all edge nodes of the paper.
fn total_rate(settings: &Settings, function: usize) -> f64 {
    let (_, exec_seconds, memory, table_rate, _) = FUNCTIONS[function];
    match settings.reading {
        // What the program makes of "equal expected memory utilization".
        Reading::Program | Reading::Fulmar => {
            DEMAND / FUNCTIONS.len() as f64 / (exec_seconds * memory as f64)
        }
        Reading::Paper => table_rate,
    }
}

/// Whether the invocation stays where it is although another node may be sooner.
fn stays(verdict: &Verdict, here: NodeIndex) -> bool {
    let of = |node| {
        let found = verdict.estimates.iter().find(|other| other.node == node);
        found.filter(|found| found.rejected.is_none())
    };
    match (of(here), verdict.node.and_then(of)) {
        (Some(here), Some(best)) => best.response_seconds > here.response_seconds * (1.0 - CLEARLY),
        _ => false,
    }
}

impl<'a> World<'a> {
    pub(super) fn new(settings: &'a Settings, cell: Cell, drawn: Drawn, random: Random) -> Self {
        let (layout, nodes) = (drawn.layout, drawn.layout.nodes());
        let (edge, executing) = (layout.edge, layout.executing());
        let bandwidth = (0..nodes * nodes).map(|at| layout.bandwidth(at / nodes, at % nodes));
        let network = Network::new(nodes, drawn.latency_seconds.clone(), bandwidth.collect());
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
            let clouds = (edge..executing)
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
        let closest_cloud = (0..executing).map(closest).collect();
        let memory = |node| match node < edge {
            true => EDGE_MEMORY_MB,
            false => CLOUD_MEMORY_MB,
        };
        let machines = (0..executing).map(|node| Machine::new(memory(node)));
        let machines = machines.collect();
        let mut world = Self {
            settings,
            cell,
            random,
            network,
            functions,
            homes: vec![NodeIndex::from(executing); KEYS],
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
            counted: vec![0; KEYS * FUNCTIONS.len() * nodes],
            rates: vec![Smoothed::new(NEWEST); KEYS * FUNCTIONS.len() * nodes],
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
            for edge in 0..self.layout().edge {
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
                        origin: edge,
                        full: 0,
                    };
                    self.schedule(request, usize::from(edge));
                }
                Event::Offloaded(at) => {
                    let (request, node) = self.offloaded[at as usize];
                    self.free_slots.push(at);
                    match self.is_own() && node != usize::from(request.origin) {
                        true => self.run_or_send_back(request, node),
                        false => self.schedule(request, node),
                    }
                }
                Event::Done(function, node) => {
                    self.machines[usize::from(node)].done(usize::from(function), self.now);
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

    fn layout(&self) -> Layout {
        self.drawn.layout
    }

    fn slot(&self, function: usize, key: usize, node: usize) -> usize {
        (key * FUNCTIONS.len() + function) * self.layout().nodes() + node
    }

    fn is_own(&self) -> bool {
        self.settings.reading == Reading::Fulmar
    }

    fn at(&mut self, time: f64, event: Event) {
        self.next_event += 1;
        self.events
            .push(Reverse((time.to_bits(), self.next_event, event)));
    }

    /// Mean seconds between invocations of a function at an edge node.
    fn gap(&self, function: usize, edge: usize) -> Option<f64> {
        let (total, edges) = (total_rate(self.settings, function), self.layout().edge);
        match self.cell.workload {
            Workload::W1 => Some(EDGE_NODES / total),
            Workload::W2 => {
                let times = edges as f64 / EDGE_NODES;
                (function % edges == edge).then(|| 1.0 / (total * times))
            }
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
            Reading::Fulmar => u8::MAX,
        };
        let here = NodeIndex::from(node);
        let fits_here = self.machines[node].has_room(function, self.now);
        let closest = self.closest_cloud[node];
        let candidates = match self.is_own() {
            true => {
                let all = (0..self.layout().executing()).map(NodeIndex::from);
                all.filter(|node| request.full & (1 << node.at()) == 0)
                    .collect()
            }
            false => {
                let mut candidates = self.candidates[function].clone();
                // From the edge to the cloud; cloud nodes look no further.
                if node < self.layout().edge && !candidates.contains(&closest) {
                    candidates.push(closest);
                }
                candidates
            }
        };
        let overhead_seconds = match self.is_own() {
            true => OWN_OVERHEAD_SECONDS,
            false => OVERHEAD_SECONDS,
        };
        let verdict = Arrival {
            here,
            function: &self.functions[function],
            network: &self.network,
            speed_up: &vec![1.0; self.layout().nodes()],
            data_seconds: &self.data_seconds[function],
            remote_bytes: &self.remote_bytes[function],
            candidates: &candidates,
            closest_cloud: Some(closest),
            fits_here,
            overhead_seconds,
            wait_seconds: &[],
            cold_start_seconds: &[],
            may_offload: request.hops < most_hops,
        }
        .decide(match self.cell.offloading {
            Offloading::GreedyLocal => Rule::GreedyLocal,
            Offloading::GreedyData => Rule::GreedyData,
            Offloading::SloAware => Rule::SloAware,
        });
        let stays = self.is_own() && stays(&verdict, here);
        match verdict.node {
            Some(_) if stays => self.execute(request, node),
            None => self.outcome.refused += 1,
            Some(to) if to == here => self.execute(request, node),
            Some(to) => {
                let there = overhead_seconds + self.network.transfer(here, to, INPUT_BYTES);
                let handed_on = Request {
                    hops: request.hops + 1,
                    return_seconds: request.return_seconds + self.network.latency(to, here),
                    ..request
                };
                self.arrives(handed_on, to.at(), self.now + there);
            }
        }
    }

    fn arrives(&mut self, request: Request, node: usize, then: f64) {
        let at = match self.free_slots.pop() {
            Some(at) => {
                self.offloaded[at as usize] = (request, node);
                at
            }
            None => {
                self.offloaded.push((request, node));
                (self.offloaded.len() - 1) as u32
            }
        };
        self.at(then, Event::Offloaded(at));
    }

    /// On one of the platform's own nodes, to which another one has handed it on.
    fn run_or_send_back(&mut self, request: Request, node: usize) {
        let function = usize::from(request.function);
        if self.machines[node].has_room(function, self.now) {
            return self.execute(request, node);
        }
        let (here, origin) = (
            NodeIndex::from(node),
            NodeIndex::from(usize::from(request.origin)),
        );
        let back = self.network.latency(here, origin);
        let refused = Request {
            return_seconds: 0.0,
            full: request.full | 1 << node,
            ..request
        };
        self.arrives(refused, origin.at(), self.now + back);
    }

    fn execute(&mut self, request: Request, node: usize) {
        let function = usize::from(request.function);
        if !self.machines[node].has_room(function, self.now) {
            self.outcome.refused += 1;
            return;
        }
        let is_warm = self.machines[node].take(function);
        let cold = match self.settings.reading {
            Reading::Program if !is_warm => FUNCTIONS[function].4,
            _ => 0.0,
        };
        let here = NodeIndex::from(node);
        let mut data = 0.0;
        for (key, probability) in &self.drawn.accesses[function] {
            if self.random.chance(*probability) {
                data +=
                    self.network
                        .access(here, self.homes[*key], self.drawn.size_bytes[*key] as f64);
                let slot = self.slot(function, *key, node);
                self.counted[slot] += 1;
            }
        }
        let running = cold + self.random.exponential(FUNCTIONS[function].1) + data;
        let done = self.now + running;
        self.at(done, Event::Done(request.function, node as u8));
        let outcome = &mut self.outcome;
        outcome.completed += 1;
        outcome.on_edge += u64::from(node < self.drawn.layout.edge);
        let excess = data - self.cell.t_max;
        if excess > 0.0 {
            outcome.violations += 1;
            outcome.excess_seconds += excess;
        }
        outcome
            .response_seconds
            .push(done + request.return_seconds - request.arrived);
    }
}
