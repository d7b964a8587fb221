//! Random placement problems in the manner of the paper's: edge and cloud nodes, a store whose keys
//! have to leave it or homes drawn at random, keys small and large, functions with an SLO.

use fulmar_policy::placement::Problem;
use fulmar_policy::{Access, Function, FunctionIndex, Key, KeyIndex, Network, NodeIndex, Slo};
use rand_pcg::Pcg64Mcg;
use rand_pcg::rand_core::Rng as _;

pub(crate) struct Random(Pcg64Mcg);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Pcg64Mcg::new(u128::from(seed) << 64 | 0xcafe_f00d))
    }

    pub(crate) fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.0.next_u64()) * n as u128) >> 64) as usize
    }
}

/// How large, and how much room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) keys: usize,
    pub(crate) functions: usize,
    /// Storage of all nodes over the bytes of all keys; none is no limit.
    pub(crate) storage: Option<f64>,
    /// Keys start on a node that may not have any.
    pub(crate) from_store: bool,
}

pub(crate) struct Instance {
    pub(crate) network: Network,
    pub(crate) storage: Vec<u64>,
    pub(crate) may_host: Vec<bool>,
    pub(crate) functions: Vec<Function>,
    pub(crate) invocation_rates: Vec<f64>,
    pub(crate) keys: Vec<Key>,
    pub(crate) accesses: Vec<Access>,
}

impl Instance {
    pub(crate) fn draw(size: Size, random: &mut Random) -> Self {
        let nodes = size.nodes + usize::from(size.from_store);
        let edge = size.nodes / 2;
        let mut latency = vec![0.0; nodes * nodes];
        let mut bandwidth = vec![1e9 / 8.0; nodes * nodes];
        for from in 0..nodes {
            for to in 0..nodes {
                let (low, high, rate) = match (from < edge, to < edge) {
                    (true, true) => (0.001, 0.020, 1e8 / 8.0),
                    (false, false) => (0.001, 0.010, 1e9 / 8.0),
                    _ => (0.010, 0.100, 1e8 / 8.0),
                };
                latency[from * nodes + to] = random.uniform(low, high);
                bandwidth[from * nodes + to] = rate;
            }
        }
        let functions: Vec<Function> = (0..size.functions)
            .map(|at| Function {
                name: format!("f{at}").into(),
                exec_seconds: 0.1,
                memory_bytes: 1 << 20,
                input_bytes: 0.0,
                output_bytes: 0.0,
                slo: Slo {
                    max_data_access_seconds: [0.05, 0.1, 0.2][random.below(3)],
                    max_response_seconds: f64::INFINITY,
                    penalty_per_second: [1.0, 10.0, 100.0][random.below(3)],
                },
            })
            .collect();
        let keys: Vec<Key> = (0..size.keys)
            .map(|_| {
                let mean = if random.below(2) == 0 { 1e4 } else { 1e6 };
                Key {
                    size_bytes: (mean * random.uniform(0.5, 1.5)) as u64,
                    home: NodeIndex::from(match size.from_store {
                        true => size.nodes,
                        false => random.below(size.nodes),
                    }),
                }
            })
            .collect();
        // Some nodes run a function; there it accesses each of its keys with one probability.
        let mut accesses = Vec::new();
        let mut invocation_rates = Vec::new();
        let per_function = (2 * size.keys / size.functions).max(12).min(size.keys);
        for function in 0..size.functions {
            let running: Vec<(usize, f64)> = (0..1 + random.below(edge.clamp(1, 6)))
                .map(|_| (random.below(size.nodes), random.uniform(0.5, 20.0)))
                .collect();
            invocation_rates.push(running.iter().map(|(_, rate)| rate).sum());
            for _ in 0..1 + random.below(per_function) {
                let key = random.below(size.keys);
                let probability = [0.1, 0.25, 0.5, 0.75, 1.0][random.below(5)];
                accesses.extend(running.iter().map(|(node, rate)| Access {
                    function: FunctionIndex::from(function),
                    key: KeyIndex::from(key),
                    node: NodeIndex::from(*node),
                    rate: rate * probability,
                }));
            }
        }
        accesses.sort_by_key(|access| (access.key, access.function, access.node));
        let mut may_host = vec![true; nodes];
        if size.from_store {
            may_host[size.nodes] = false;
        }
        let storage = Self::storage(&size, nodes, &keys, random);
        Self {
            network: Network::new(nodes, latency, bandwidth),
            storage,
            may_host,
            functions,
            invocation_rates,
            keys,
            accesses,
        }
    }

    /// Room for what is there, and the rest of it shared out at random.
    fn storage(size: &Size, nodes: usize, keys: &[Key], random: &mut Random) -> Vec<u64> {
        let Some(times) = size.storage else {
            return vec![u64::MAX; nodes];
        };
        let bytes: u64 = keys.iter().map(|key| key.size_bytes).sum();
        let shares: Vec<f64> = (0..size.nodes).map(|_| random.uniform(0.2, 1.0)).collect();
        let all: f64 = shares.iter().sum();
        let spread = if size.from_store { times } else { times - 1.0 };
        let mut storage: Vec<u64> = shares
            .iter()
            .map(|share| (bytes as f64 * spread * share / all) as u64)
            .collect();
        storage.resize(nodes, bytes);
        if !size.from_store {
            for key in keys {
                storage[key.home.at()] += key.size_bytes;
            }
        }
        storage
    }

    pub(crate) fn problem(&self) -> Problem<'_> {
        Problem {
            network: &self.network,
            storage_bytes: &self.storage,
            may_host: &self.may_host,
            functions: &self.functions,
            invocation_rates: &self.invocation_rates,
            keys: &self.keys,
            accesses: &self.accesses,
            penalty_weight: 0.5,
            move_weight: 0.5,
            horizon_seconds: f64::INFINITY,
        }
    }
}
