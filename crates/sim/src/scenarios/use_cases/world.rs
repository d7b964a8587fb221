//! Sessions that alternate between two ways of life and move between nodes; containers that all share
//! or one session has.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use fulmar_policy::estimate::Rate;
use fulmar_policy::local_state::promotion::{self, Options, Wish};

use super::Settings;
use crate::random::Random;

/// Memory of a session's measured rate, in seconds.
const RATE_SECONDS: f64 = 60.0;
/// Least improvement of the mean latency for a change that nobody asked for.
const MARGIN: f64 = 0.02;

/// Who has a container to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strategy {
    /// Nobody: stateless functions and a store far away.
    Remote,
    /// Whoever came first, for ever, where it was first: stateful services.
    Pinned,
    /// Whoever the policy says, moving along.
    Policy,
}

/// What one way of life gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    pub(super) calls: u64,
    pub(super) within_slo: u64,
    pub(super) latencies: Vec<f64>,
}

/// What a run gave.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) calm: Calls,
    pub(super) strict: Calls,
    /// Container-seconds that sessions had for themselves.
    pub(super) dedicated_seconds: f64,
    /// Bytes of state that went to and from the store, and between nodes.
    pub(super) store_bytes: f64,
    pub(super) migrated_bytes: f64,
    pub(super) transitions: u32,
    pub(super) migrations: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Call(u32),
    /// Of this session's way of life; only if it is still the same.
    Change(u32),
    Move(u32),
    LocalDone(u32),
    PoolDone(u32),
    Decide,
}

#[derive(Debug, Clone, Copy)]
struct Call {
    session: u32,
    at: f64,
    is_strict: bool,
    /// Seconds on the network besides the wait and the service.
    network_seconds: f64,
}

struct Session {
    random: Random,
    is_strict: bool,
    /// The node whose cell the client is in.
    node: u32,
    /// Where its own container is, if it has one; and until when that is being set up.
    container: Option<u32>,
    ready_at: f64,
    /// Calls in its own container.
    calls: VecDeque<Call>,
    /// When its calls can be expected: goes up with each change, so that old events are known.
    rate: Rate,
}

struct Node {
    queue: VecDeque<Call>,
    /// Containers that serve a call for anybody.
    serving: u32,
    /// Containers that sessions have, or still drain.
    dedicated: u32,
}

pub(super) struct World<'a> {
    settings: &'a Settings,
    strategy: Strategy,
    now: f64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    next_event: u64,
    sessions: Vec<Session>,
    nodes: Vec<Node>,
    dedicated_since: f64,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        strategy: Strategy,
        seed: u64,
        replication: u64,
    ) -> Self {
        let nodes = || Node {
            queue: VecDeque::new(),
            serving: 0,
            dedicated: 0,
        };
        let session = |at: u32| Session {
            // The same life under every strategy.
            random: Random::new(seed, (replication << 20) + u64::from(at)),
            is_strict: false,
            node: at % settings.nodes,
            container: None,
            ready_at: 0.0,
            calls: VecDeque::new(),
            rate: Rate::new(RATE_SECONDS, 0.0),
        };
        Self {
            settings,
            strategy,
            now: 0.0,
            events: BinaryHeap::new(),
            next_event: 0,
            sessions: (0..settings.sessions).map(session).collect(),
            nodes: (0..settings.nodes).map(|_| nodes()).collect(),
            dedicated_since: 0.0,
            outcome: Outcome::default(),
        }
    }

    pub(super) fn run(mut self) -> Outcome {
        let settings = self.settings;
        for session in 0..settings.sessions {
            if self.strategy == Strategy::Pinned {
                let node = self.sessions[session as usize].node;
                // One container is left to those who have none.
                if self.nodes[node as usize].dedicated + 1 < settings.containers {
                    self.dedicate(session, node);
                }
            }
            self.next_call(session);
            self.next_change(session);
            self.next_move(session);
        }
        if self.strategy == Strategy::Policy {
            self.at(settings.decide_seconds, Event::Decide);
        }
        while let Some(Reverse((time, _, event))) = self.events.pop() {
            let then = f64::from_bits(time);
            // Calls that are under way at the end are waited for.
            if then > settings.seconds && !matches!(event, Event::LocalDone(_) | Event::PoolDone(_))
            {
                continue;
            }
            self.pass(then);
            match event {
                Event::Call(session) => {
                    self.next_call(session);
                    self.call(session);
                }
                Event::Change(session) => self.change(session),
                Event::Move(session) => self.move_on(session),
                Event::LocalDone(session) => self.local_done(session),
                Event::PoolDone(node) => {
                    self.nodes[node as usize].serving -= 1;
                    self.serve(node);
                }
                Event::Decide => {
                    for node in 0..settings.nodes {
                        self.decide(node);
                    }
                    self.at(self.now + settings.decide_seconds, Event::Decide);
                }
            }
        }
        self.outcome.calm.latencies.sort_by(f64::total_cmp);
        self.outcome.strict.latencies.sort_by(f64::total_cmp);
        self.outcome
    }

    fn at(&mut self, time: f64, event: Event) {
        self.next_event += 1;
        self.events
            .push(Reverse((time.to_bits(), self.next_event, event)));
    }

    fn pass(&mut self, now: f64) {
        let dedicated: u32 = self.nodes.iter().map(|node| node.dedicated).sum();
        let until = now.min(self.settings.seconds);
        self.outcome.dedicated_seconds +=
            f64::from(dedicated) * (until - self.dedicated_since).max(0.0);
        self.dedicated_since = until;
        self.now = now;
    }

    fn next_call(&mut self, at: u32) {
        let settings = self.settings;
        let session = &mut self.sessions[at as usize];
        let rate = match session.is_strict {
            true => settings.strict_rate,
            false => settings.calm_rate,
        };
        let then = self.now + session.random.exponential(1.0 / rate);
        self.at(then, Event::Call(at));
    }

    fn next_change(&mut self, at: u32) {
        let settings = self.settings;
        let session = &mut self.sessions[at as usize];
        let mean = match session.is_strict {
            true => settings.strict_seconds,
            false => settings.calm_seconds,
        };
        let then = self.now + session.random.exponential(mean);
        self.at(then, Event::Change(at));
    }

    fn next_move(&mut self, at: u32) {
        if self.settings.move_seconds > 0.0 && self.settings.nodes > 1 {
            let session = &mut self.sessions[at as usize];
            let then = self.now + session.random.exponential(self.settings.move_seconds);
            self.at(then, Event::Move(at));
        }
    }

    /// The application has other needs from now on, and says so.
    fn change(&mut self, at: u32) {
        let session = &mut self.sessions[at as usize];
        session.is_strict = !session.is_strict;
        let node = session.node;
        self.next_change(at);
        if self.strategy == Strategy::Policy {
            self.decide(node);
        }
    }

    /// The client gets into the next cell, there or back; its container follows if the policy may.
    fn move_on(&mut self, at: u32) {
        let settings = self.settings;
        self.next_move(at);
        let session = &mut self.sessions[at as usize];
        if session.is_strict && !settings.moves_when_strict {
            return;
        }
        let ahead = session.random.chance(0.5);
        let last = settings.nodes - 1;
        session.node = match session.node {
            0 => 1,
            node if node == last => last - 1,
            node if ahead => node + 1,
            node => node - 1,
        };
        let to = session.node;
        if self.strategy == Strategy::Policy
            && let Some(from) = session.container
        {
            self.release(at);
            if self.nodes[to as usize].dedicated < settings.containers - 1 {
                let transfer = self.hops(from, to) * settings.hop_seconds
                    + 8e-6 * settings.state_bytes / settings.edge_mbps;
                self.outcome.migrations += 1;
                self.outcome.migrated_bytes += settings.state_bytes;
                self.occupy(at, to, settings.start_seconds + transfer);
            } else {
                // No room: the state goes to the store, and the session shares.
                self.outcome.transitions += 1;
                self.outcome.store_bytes += settings.state_bytes;
            }
        }
    }

    fn hops(&self, a: u32, b: u32) -> f64 {
        f64::from(a.abs_diff(b))
    }

    /// Gives a session a container, with its state from the store.
    fn dedicate(&mut self, at: u32, node: u32) {
        self.outcome.transitions += 1;
        self.outcome.store_bytes += self.settings.state_bytes;
        let seconds = self.settings.start_seconds + self.settings.store_access_seconds();
        self.occupy(at, node, seconds);
    }

    fn occupy(&mut self, at: u32, node: u32, seconds: f64) {
        self.nodes[node as usize].dedicated += 1;
        let session = &mut self.sessions[at as usize];
        session.container = Some(node);
        session.ready_at = self.now + seconds;
    }

    /// Takes its container away; calls that are in it are served to the end.
    fn release(&mut self, at: u32) {
        if let Some(node) = self.sessions[at as usize].container.take() {
            self.nodes[node as usize].dedicated -= 1;
            self.serve(node);
        }
    }

    fn call(&mut self, at: u32) {
        let settings = self.settings;
        let now = self.now;
        let session = &mut self.sessions[at as usize];
        session.rate.see(now, 1.0);
        let is_strict = session.is_strict;
        let (node, container) = (session.node, session.container);
        let hops = container.map_or(0.0, |home| f64::from(home.abs_diff(node)));
        let call = Call {
            session: at,
            at: now,
            is_strict,
            network_seconds: settings.client_seconds() + 2.0 * hops * settings.hop_seconds,
        };
        if container.is_some() && now >= session.ready_at {
            session.calls.push_back(call);
            if session.calls.len() == 1 {
                self.start_local(at);
            }
        } else {
            // Also while its own container is being set up: the state is in the store until then.
            self.nodes[node as usize].queue.push_back(call);
            self.serve(node);
        }
    }

    fn start_local(&mut self, at: u32) {
        let exec_seconds = self.settings.exec_seconds;
        let session = &mut self.sessions[at as usize];
        if !session.calls.is_empty() {
            let seconds = session.random.exponential(exec_seconds);
            let done = self.now + seconds;
            self.at(done, Event::LocalDone(at));
        }
    }

    fn local_done(&mut self, at: u32) {
        if let Some(call) = self.sessions[at as usize].calls.pop_front() {
            self.finished(&call, self.now);
        }
        self.start_local(at);
    }

    /// Shared containers take what waits.
    fn serve(&mut self, node: u32) {
        let settings = self.settings;
        loop {
            let here = &mut self.nodes[node as usize];
            let shared = settings.containers.saturating_sub(here.dedicated);
            if here.serving >= shared {
                return;
            }
            let Some(call) = here.queue.pop_front() else {
                return;
            };
            here.serving += 1;
            let random = &mut self.sessions[call.session as usize].random;
            let executing = random.exponential(settings.exec_seconds);
            let done = self.now + executing + 2.0 * settings.store_access_seconds();
            self.outcome.store_bytes += 2.0 * settings.state_bytes;
            self.finished(&call, done);
            self.at(done, Event::PoolDone(node));
        }
    }

    fn finished(&mut self, call: &Call, done: f64) {
        let latency = done - call.at + call.network_seconds;
        let (calls, slo) = match call.is_strict {
            true => (&mut self.outcome.strict, self.settings.strict_slo_seconds),
            false => (&mut self.outcome.calm, self.settings.calm_slo_seconds),
        };
        calls.calls += 1;
        calls.within_slo += u64::from(latency <= slo);
        calls.latencies.push(latency);
    }

    /// Asks the policy for the sessions of one node.
    fn decide(&mut self, node: u32) {
        let settings = self.settings;
        let here: Vec<u32> = (0..settings.sessions)
            .filter(|at| self.sessions[*at as usize].node == node)
            .collect();
        let measured: Vec<promotion::Session> = here
            .iter()
            .map(|at| {
                let session = &self.sessions[*at as usize];
                promotion::Session {
                    rate: session.rate.per_second(self.now),
                    local_seconds: settings.exec_seconds,
                    remote_seconds: settings.remote_seconds(),
                    is_local: session.container.is_some(),
                    wish: match session.is_strict {
                        true => Wish::Local,
                        // With loose requirements a container is not worth its cost.
                        false => Wish::Remote,
                    },
                }
            })
            .collect();
        let options = Options {
            containers: settings.containers,
            transition_seconds: settings.start_seconds + settings.store_access_seconds(),
            horizon_seconds: settings.horizon_seconds,
            margin: MARGIN,
        };
        let plan = promotion::plan(&measured, &options);
        for at in plan.demote {
            self.outcome.transitions += 1;
            self.outcome.store_bytes += settings.state_bytes;
            self.release(here[at]);
        }
        for at in plan.promote {
            self.dedicate(here[at], node);
        }
    }
}
