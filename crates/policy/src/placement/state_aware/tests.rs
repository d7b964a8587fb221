use super::*;
use crate::view::{Access, Function, FunctionIndex, Key, KeyIndex, Network, NodeIndex, Slo};
use proptest::prelude::*;

/// A small world from plain numbers: two functions, four nodes of which the last only stores.
struct World {
    network: Network,
    storage: Vec<u64>,
    functions: Vec<Function>,
    keys: Vec<Key>,
    accesses: Vec<Access>,
}

const NODES: usize = 4;

impl World {
    fn new(latencies: &[f64], sizes: &[u64], rates: &[f64], storage: u64) -> Self {
        let latency: Vec<f64> = (0..NODES * NODES)
            .map(|at| latencies[at % latencies.len()])
            .collect();
        let function = |name: &str| Function {
            name: name.into(),
            exec_seconds: 0.1,
            memory_bytes: 1,
            input_bytes: 0.0,
            output_bytes: 0.0,
            slo: Slo {
                max_data_access_seconds: 0.05,
                max_response_seconds: f64::INFINITY,
                penalty_per_second: 100.0,
            },
        };
        let keys: Vec<Key> = sizes
            .iter()
            .map(|size_bytes| Key {
                size_bytes: *size_bytes,
                home: NodeIndex(3),
            })
            .collect();
        let mut accesses = Vec::new();
        for key in 0..keys.len() {
            for function in 0..2 {
                for node in 0..3 {
                    accesses.push(Access {
                        function: FunctionIndex(function),
                        key: KeyIndex::from(key),
                        node: NodeIndex(node),
                        rate: rates
                            [(key * 6 + function as usize * 3 + node as usize) % rates.len()],
                    });
                }
            }
        }
        Self {
            network: Network::new(NODES, latency, vec![1e7; NODES * NODES]),
            storage: vec![storage; NODES],
            functions: vec![function("f"), function("g")],
            keys,
            accesses,
        }
    }

    fn problem(&self) -> Problem<'_> {
        Problem {
            network: &self.network,
            storage_bytes: &self.storage,
            may_host: &[true, true, true, false],
            functions: &self.functions,
            invocation_rates: &[10.0, 5.0],
            keys: &self.keys,
            accesses: &self.accesses,
            penalty_weight: 0.5,
            move_weight: 0.5,
            horizon_seconds: f64::INFINITY,
        }
    }
}

#[test]
fn a_key_goes_where_it_is_used() {
    let mut world = World::new(&[0.05], &[1000], &[0.0], 1 << 20);
    world.accesses[1].rate = 8.0;
    assert_eq!(
        place(&world.problem()).unwrap().placement.homes,
        [NodeIndex(1)]
    );
}

#[test]
fn too_little_room_is_said() {
    let world = World::new(&[0.01], &[1000, 2000], &[1.0], 1500);
    let error = place(&world.problem()).unwrap_err();
    assert_eq!(error.missing_bytes, 2000);
    assert!(
        error.to_string().contains("node 1 (1500 bytes left)"),
        "{error}"
    );
    let named = error.describe(|node| format!("n{}", node.0));
    assert!(named.contains("n0 (500 bytes left)"), "{named}");
}

#[test]
fn a_move_pays_within_the_horizon() {
    let mut world = World::new(&[0.05], &[1_000_000], &[0.0], 1 << 30);
    world.accesses[1].rate = 8.0;
    world.keys[0].home = NodeIndex(0);
    let at = |horizon_seconds| {
        let problem = Problem {
            horizon_seconds,
            ..world.problem()
        };
        place(&problem).unwrap().placement.homes[0]
    };
    // One access that is spared takes as long as the move: 8 a second pay within an eighth of one.
    assert_eq!(at(0.2), NodeIndex(1));
    assert_eq!(at(0.1), NodeIndex(0));
}

proptest! {
    #[test]
    fn placements_fit_and_are_stable(
        latencies in prop::collection::vec(0.001_f64..0.1, 7..16),
        sizes in prop::collection::vec(1_u64..1_000_000, 1..12),
        rates in prop::collection::vec(0.0_f64..10.0, 5..30),
        storage in 800_000_u64..4_000_000,
    ) {
        let mut world = World::new(&latencies, &sizes, &rates, storage);
        let Ok(Placed { mut placement, .. }) = place(&world.problem()) else { return Ok(()) };
        let mut used = [0; NODES];
        for (home, size) in placement.homes.iter().zip(&sizes) {
            used[home.at()] += size;
        }
        prop_assert!(used.iter().all(|used| *used <= storage));
        prop_assert_eq!(used[3], 0);
        // What was moved is paid for, so a further move may pay from there; but it comes to rest.
        let mut rounds = 0;
        loop {
            for (key, home) in world.keys.iter_mut().zip(&placement.homes) {
                key.home = *home;
            }
            let again = place(&world.problem()).unwrap().placement;
            if again == placement {
                break;
            }
            placement = again;
            rounds += 1;
            prop_assert!(rounds < 5, "it goes back and forth");
        }
        let mut used = [0; NODES];
        for (home, size) in placement.homes.iter().zip(&sizes) {
            used[home.at()] += size;
        }
        let cost = world.problem().objective(&placement);
        // Single keys elsewhere are not better.
        let problem = world.problem();
        for (key, size) in sizes.iter().enumerate() {
            for home in 0..3 {
                let mut other = placement.clone();
                other.homes[key] = NodeIndex(home);
                if used[home as usize] + size <= storage {
                    prop_assert!(problem.objective(&other) >= cost - 1e-3);
                }
            }
        }
    }
}
