//! Where to execute an invocation: here, on another node, or not at all.
//!
//! "Function Offloading and Data Migration for Stateful Serverless Edge Computing", section 4.1. The
//! verdict keeps each candidate's estimate and why it was rejected, so that it can be explained.

use crate::view::{Function, Network, NodeIndex};

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Here if there is memory, else on the closest cloud node.
    GreedyLocal,
    /// Where the least data has to come over the network; of equals, where it is accessed soonest.
    GreedyData,
    /// Where the invocation completes soonest, among those that keep the SLO.
    SloAware,
}

/// What is known when an invocation arrives.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// Where it arrived.
    pub here: NodeIndex,
    /// Which function.
    pub function: &'a Function,
    /// Between the nodes.
    pub network: &'a Network,
    /// Speed-up of each node (`s_i`).
    pub speed_up: &'a [f64],
    /// Mean data access time of the function on each node, in seconds (eq. 3).
    pub data_seconds: &'a [f64],
    /// Bytes that an invocation fetches from other nodes on average, for each node.
    pub remote_bytes: &'a [f64],
    /// Nodes to which it may be offloaded: those with a key of it, and the closest cloud node.
    pub candidates: &'a [NodeIndex],
    /// The closest cloud node, if there is one besides this.
    pub closest_cloud: Option<NodeIndex>,
    /// Whether a worker fits into this node's memory (or a warm one waits).
    pub fits_here: bool,
    /// Fixed cost of handing an invocation on, in seconds.
    pub overhead_seconds: f64,
    /// Estimated wait for a worker on each node, in seconds; empty if nobody estimates it.
    pub wait_seconds: &'a [f64],
    /// Expected time of a cold start on each node, in seconds: none where a warm worker waits; empty if
    /// nobody estimates it.
    pub cold_start_seconds: &'a [f64],
    /// Whether it may be handed on once more.
    pub may_offload: bool,
}

/// Why a node cannot take the invocation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rejection {
    /// Its mean data access time is over the SLO by so many seconds.
    DataTooFar(f64),
    /// The response would be over the SLO by so many seconds.
    TooSlow(f64),
    /// No memory for another worker.
    NoMemory,
}

/// What a node would take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// The node.
    pub node: NodeIndex,
    /// Completion time in seconds (eqs. 1 and 5).
    pub response_seconds: f64,
    /// Data access time in seconds (eq. 3).
    pub data_seconds: f64,
    /// Why it is out of the question, if it is.
    pub rejected: Option<Rejection>,
}

/// Where to execute.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The node; none refuses the invocation.
    pub node: Option<NodeIndex>,
    /// This node first, then the candidates.
    pub estimates: Vec<Estimate>,
}

impl Arrival<'_> {
    /// Decides, and says what was considered.
    pub fn decide(&self, rule: Rule) -> Verdict {
        let mut estimates = Vec::with_capacity(1 + self.candidates.len());
        estimates.push(self.estimate(self.here, rule));
        if self.may_offload {
            let others = self.candidates.iter().filter(|node| **node != self.here);
            estimates.extend(others.map(|node| self.estimate(*node, rule)));
        }
        let node = self.choose(rule, &estimates);
        Verdict { node, estimates }
    }

    fn choose(&self, rule: Rule, estimates: &[Estimate]) -> Option<NodeIndex> {
        let admissible = estimates.iter().filter(|other| other.rejected.is_none());
        match rule {
            Rule::GreedyLocal if self.fits_here => Some(self.here),
            Rule::GreedyLocal => self
                .closest_cloud
                .filter(|node| self.may_offload && *node != self.here),
            // The first of equals: here, if here is one of them.
            Rule::GreedyData => admissible
                .min_by(|a, b| {
                    let bytes = |other: &Estimate| self.remote_bytes[other.node.at()];
                    let soonest = a.data_seconds.total_cmp(&b.data_seconds);
                    bytes(a).total_cmp(&bytes(b)).then(soonest)
                })
                .map(|best| best.node),
            Rule::SloAware => admissible
                .min_by(|a, b| a.response_seconds.total_cmp(&b.response_seconds))
                .map(|best| best.node),
        }
    }

    fn estimate(&self, node: NodeIndex, rule: Rule) -> Estimate {
        let data_seconds = self.data_seconds[node.at()];
        let function = self.function;
        let estimated = |seconds: &[f64]| seconds.get(node.at()).copied().unwrap_or(0.0);
        let starting = estimated(self.wait_seconds) + estimated(self.cold_start_seconds);
        let executing = starting + function.exec_seconds / self.speed_up[node.at()] + data_seconds;
        let is_here = node == self.here;
        let response_seconds = if is_here {
            executing
        } else {
            let there = self.network.transfer(self.here, node, function.input_bytes);
            let back = self
                .network
                .transfer(node, self.here, function.output_bytes);
            executing + self.overhead_seconds + there + back
        };
        let late = data_seconds - function.slo.max_data_access_seconds;
        let slow = response_seconds - function.slo.max_response_seconds;
        let rejected = match rule {
            // Another node's memory is its own business: it decides again.
            _ if is_here && !self.fits_here => Some(Rejection::NoMemory),
            Rule::SloAware if late > 0.0 => Some(Rejection::DataTooFar(late)),
            Rule::SloAware if slow > 0.0 => Some(Rejection::TooSlow(slow)),
            _ => None,
        };
        Estimate {
            node,
            response_seconds,
            data_seconds,
            rejected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::Slo;
    use proptest::prelude::*;

    const HERE: NodeIndex = NodeIndex(0);
    const THERE: NodeIndex = NodeIndex(1);

    fn function() -> Function {
        Function {
            name: "f".into(),
            exec_seconds: 0.4,
            memory_bytes: 1,
            input_bytes: 1000.0,
            output_bytes: 0.0,
            slo: Slo {
                max_data_access_seconds: 0.1,
                max_response_seconds: f64::INFINITY,
                penalty_per_second: 1.0,
            },
        }
    }

    fn network() -> Network {
        Network::new(2, vec![0.0, 0.01, 0.01, 0.0], vec![1e6; 4])
    }

    fn decide(rule: Rule, data: [f64; 2], fits_here: bool, may_offload: bool) -> Verdict {
        let (function, network) = (function(), network());
        Arrival {
            here: HERE,
            function: &function,
            network: &network,
            speed_up: &[1.0, 1.0],
            data_seconds: &data,
            remote_bytes: &data,
            candidates: &[THERE],
            closest_cloud: Some(THERE),
            fits_here,
            overhead_seconds: 0.005,
            wait_seconds: &[],
            cold_start_seconds: &[],
            may_offload,
        }
        .decide(rule)
    }

    #[test]
    fn the_slo_decides_and_the_verdict_says_why() {
        let verdict = decide(Rule::SloAware, [0.15, 0.02], true, true);
        assert_eq!(verdict.node, Some(THERE));
        let Some(Rejection::DataTooFar(late)) = verdict.estimates[0].rejected else {
            panic!("{verdict:?}");
        };
        assert!((late - 0.05).abs() < 1e-12);
        // 0.4 + 0.02 there, 5 ms to hand it on, 10 ms and 1 ms there, 10 ms back.
        assert!((verdict.estimates[1].response_seconds - 0.446).abs() < 1e-12);
        assert_eq!(
            decide(Rule::SloAware, [0.03, 0.02], true, true).node,
            Some(HERE)
        );
        assert_eq!(decide(Rule::SloAware, [0.15, 0.15], true, true).node, None);
        assert_eq!(decide(Rule::SloAware, [0.15, 0.02], true, false).node, None);
    }

    #[test]
    fn waiting_and_cold_starts_count_where_they_are_known() {
        let (function, network) = (function(), network());
        let arrival = Arrival {
            here: HERE,
            function: &function,
            network: &network,
            speed_up: &[1.0, 1.0],
            data_seconds: &[0.02, 0.02],
            remote_bytes: &[0.0, 0.0],
            candidates: &[THERE],
            closest_cloud: Some(THERE),
            fits_here: true,
            overhead_seconds: 0.005,
            wait_seconds: &[],
            cold_start_seconds: &[],
            may_offload: true,
        };
        assert_eq!(arrival.decide(Rule::SloAware).node, Some(HERE));
        let queue = Arrival {
            wait_seconds: &[0.5, 0.0],
            ..arrival
        };
        assert_eq!(queue.decide(Rule::SloAware).node, Some(THERE));
        let cold = Arrival {
            cold_start_seconds: &[0.0, 0.6],
            ..queue
        };
        let verdict = cold.decide(Rule::SloAware);
        assert_eq!(verdict.node, Some(HERE));
        assert!((verdict.estimates[0].response_seconds - 0.92).abs() < 1e-12);
    }

    #[test]
    fn the_baselines_look_at_one_thing() {
        assert_eq!(
            decide(Rule::GreedyLocal, [9.0, 0.0], true, true).node,
            Some(HERE)
        );
        assert_eq!(
            decide(Rule::GreedyLocal, [9.0, 0.0], false, true).node,
            Some(THERE)
        );
        assert_eq!(
            decide(Rule::GreedyLocal, [9.0, 0.0], false, false).node,
            None
        );
        assert_eq!(
            decide(Rule::GreedyData, [0.2, 0.1], true, true).node,
            Some(THERE)
        );
        assert_eq!(
            decide(Rule::GreedyData, [0.1, 0.1], true, true).node,
            Some(HERE)
        );
    }

    proptest! {
        #[test]
        fn an_slo_aware_verdict_is_admissible(
            data in prop::array::uniform2(0.0_f64..0.3), fits in any::<bool>(), may in any::<bool>(),
        ) {
            match decide(Rule::SloAware, data, fits, may).node {
                Some(node) => {
                    prop_assert!(data[node.at()] <= 0.1);
                    prop_assert!(node != HERE || fits);
                    prop_assert!(node == HERE || may);
                }
                None => prop_assert!((data[0] > 0.1 || !fits) && (data[1] > 0.1 || !may)),
            }
        }
    }

    /// `cargo test --release -p fulmar-policy -- --ignored --nocapture time_to_decide`
    #[test]
    #[ignore = "long: prints times, for release builds"]
    fn time_to_decide() {
        const NODES: usize = 100;
        const KEYS: usize = 10_000;
        let latency = (0..NODES * NODES)
            .map(|at| 0.001 + (at % 37) as f64 * 1e-3)
            .collect();
        let network = Network::new(NODES, latency, vec![1e7; NODES * NODES]);
        let function = function();
        let candidates: Vec<NodeIndex> = (0..NODES).map(NodeIndex::from).collect();
        // The distance table of a function is kept up to date when a key moves: its 10,000 keys are
        // gone through here once, and not for each decision.
        let mut data_seconds = vec![0.0; NODES];
        for (at, seconds) in data_seconds.iter_mut().enumerate() {
            for key in 0..KEYS {
                let home = NodeIndex::from(key % NODES);
                *seconds += 1e-5 * network.access(NodeIndex::from(at), home, 1000.0);
            }
        }
        let arrival = Arrival {
            here: HERE,
            function: &function,
            network: &network,
            speed_up: &[1.0; NODES],
            data_seconds: &data_seconds,
            remote_bytes: &data_seconds,
            candidates: &candidates,
            closest_cloud: Some(THERE),
            fits_here: true,
            overhead_seconds: 0.005,
            wait_seconds: &[],
            cold_start_seconds: &[],
            may_offload: true,
        };
        const ROUNDS: u32 = 20_000;
        for rule in [Rule::GreedyLocal, Rule::GreedyData, Rule::SloAware] {
            let started = std::time::Instant::now();
            for _ in 0..ROUNDS {
                assert!(std::hint::black_box(&arrival).decide(rule).node.is_some());
            }
            println!(
                "{rule:?}: {:?} for {NODES} candidates",
                started.elapsed() / ROUNDS
            );
        }
    }
}
