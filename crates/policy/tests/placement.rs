//! The placement against the optimum, and its time.

#[path = "instances/mod.rs"]
mod instances;

use std::time::Instant;

use fulmar_policy::placement::state_aware;
use instances::{Instance, Random, Size};

/// `cargo test --release -p fulmar-policy --test placement -- --ignored --nocapture time_to_place`
#[test]
#[ignore = "long: prints times, for release builds"]
fn time_to_place() {
    for (nodes, keys, functions) in [(35, 100, 20), (100, 1_000, 100), (1_000, 100_000, 1_000)] {
        for storage in [None, Some(1.2)] {
            let size = Size {
                nodes,
                keys,
                functions,
                storage,
                from_store: false,
            };
            let mut times = Vec::new();
            let mut gap = 0.0;
            for seed in 0..if nodes < 1_000 { 20 } else { 3 } {
                let instance = Instance::draw(size, &mut Random::new(seed));
                let started = Instant::now();
                let placed = state_aware::place(&instance.problem()).unwrap();
                times.push(started.elapsed());
                gap += placed.gap();
            }
            gap /= times.len() as f64;
            times.sort();
            println!(
                "{nodes} nodes, {keys} keys, storage {storage:?}: median {:?}, longest {:?}, mean gap {:.2} %",
                times[times.len() / 2],
                times[times.len() - 1],
                100.0 * gap
            );
        }
    }
}

#[cfg(feature = "exact")]
mod against_the_optimum {
    use super::*;
    use fulmar_policy::placement::Placement;
    use fulmar_policy::placement::exact::{self, Limits, Solver};

    #[cfg(feature = "highs")]
    const SOLVER: Solver = Solver::Highs;
    #[cfg(not(feature = "highs"))]
    const SOLVER: Solver = Solver::Microlp;

    /// How far ours is from the optimum: `(objective - optimum) / optimum` of each instance, ascending.
    /// Instances for which there is no placement are not counted.
    fn compare(instances: usize, most: Size, seconds: f64) -> Vec<f64> {
        let limits = Limits { seconds, gap: 0.0 };
        let (mut off, mut unproved) = (Vec::new(), 0);
        for seed in 0.. {
            if off.len() == instances {
                break;
            }
            let mut random = Random::new(seed);
            let storage = [None, Some(1.05 + random.unit() * 0.3)][seed as usize % 2];
            let size = Size {
                nodes: 3 + random.below(most.nodes - 2),
                keys: 5 + random.below(most.keys - 4),
                functions: 1 + random.below(most.functions),
                storage,
                from_store: random.below(2) == 0,
            };
            let instance = Instance::draw(size, &mut random);
            let problem = instance.problem();
            let ours = state_aware::place(&problem);
            let optimum = match exact::place(&problem, SOLVER, &limits) {
                Err(exact::Error::Infeasible) => {
                    assert!(ours.is_err(), "{size:?}");
                    continue;
                }
                other => other.expect("the solver finds the optimum"),
            };
            let ours = ours.unwrap_or_else(|error| panic!("{seed} {size:?}: {error}"));
            assert_fits(&instance, &ours.placement);
            assert_fits(&instance, &optimum.placement);
            let slightly_more = optimum.objective * (1.0 + 1e-6) + 1e-9;
            assert!(ours.bound <= slightly_more, "{seed}: the bound is none");
            unproved += usize::from(optimum.objective - optimum.bound > 1e-3 * optimum.objective);
            let distance = match optimum.objective > 1e-9 {
                true => (ours.objective - optimum.objective) / optimum.objective,
                false => ours.objective,
            };
            // Solvers keep the storage up to a tolerance only, so that ours may be dearer by a hair.
            assert!(distance > -1e-3, "{seed} {size:?}: the optimum is none");
            off.push(distance);
        }
        off.sort_by(f64::total_cmp);
        let percent = |share: f64| 100.0 * quantile(&off, share);
        println!(
            "{} instances, {unproved} not proved optimal: median {:.3} %, 95 % {:.3} %, worst {:.3} %",
            off.len(),
            percent(0.5),
            percent(0.95),
            percent(1.0)
        );
        let beyond = off.iter().filter(|off| **off > 0.05).count();
        println!("{beyond} beyond 5 %");
        off
    }

    fn quantile(sorted: &[f64], share: f64) -> f64 {
        sorted[((sorted.len() - 1) as f64 * share).ceil() as usize]
    }

    fn assert_fits(instance: &Instance, placement: &Placement) {
        let mut left: Vec<i128> = instance
            .storage
            .iter()
            .map(|bytes| i128::from(*bytes))
            .collect();
        for (key, home) in instance.keys.iter().zip(&placement.homes) {
            assert!(instance.may_host[home.at()]);
            left[home.at()] -= i128::from(key.size_bytes);
        }
        // Solvers keep constraints up to a tolerance.
        let tolerance = |storage: u64| -1 - (storage as f64 * 1e-5).min(1e9) as i128;
        for (left, storage) in left.iter().zip(&instance.storage) {
            assert!(*left >= tolerance(*storage), "{left} of {storage}");
        }
    }

    #[test]
    fn small_instances_are_near_the_optimum() {
        let most = Size {
            nodes: 8,
            keys: 16,
            functions: 5,
            storage: None,
            from_store: false,
        };
        let off = compare(60, most, 20.0);
        assert!(quantile(&off, 0.95) <= 0.01, "{off:?}");
        assert!(quantile(&off, 1.0) <= 0.05, "{off:?}");
    }

    /// With HiGHS: `cargo test --release -p fulmar-policy --features highs --test placement -- --ignored --nocapture two_hundred`
    #[test]
    #[ignore = "long: minutes of a solver for integer programs"]
    fn two_hundred_instances_are_near_the_optimum() {
        let most = Size {
            nodes: 35,
            keys: 100,
            functions: 20,
            storage: None,
            from_store: false,
        };
        let off = compare(200, most, 60.0);
        assert!(quantile(&off, 0.95) <= 0.01, "{off:?}");
        // One of the 200, as tight as can be, is further off.
        assert!(quantile(&off, 0.99) <= 0.05, "{off:?}");
        assert!(quantile(&off, 1.0) <= 0.10, "{off:?}");
    }

    /// Room for more never makes the optimum dearer; ours follows it within what it may be off.
    #[test]
    fn cost_never_rises_when_capacity_is_added() {
        let limits = Limits {
            seconds: 20.0,
            gap: 0.0,
        };
        let mut cheaper = 0;
        for seed in 0..20 {
            let size = Size {
                nodes: 5,
                keys: 12,
                functions: 4,
                storage: Some(1.1),
                from_store: seed % 2 == 0,
            };
            let mut instance = Instance::draw(size, &mut Random::new(seed));
            let mut before = (f64::INFINITY, f64::INFINITY);
            for _ in 0..3 {
                let optimum = exact::place(&instance.problem(), SOLVER, &limits);
                let ours = state_aware::place(&instance.problem());
                assert_eq!(optimum.is_ok(), ours.is_ok(), "{seed}");
                if let (Ok(optimum), Ok(ours)) = (optimum, ours) {
                    assert!(optimum.objective <= before.0 + 1e-6, "{seed}");
                    assert!(ours.objective <= before.1 * 1.05 + 1e-6, "{seed}");
                    cheaper +=
                        usize::from(optimum.objective < before.0 - 1e-3 && before.0.is_finite());
                    before = (optimum.objective, ours.objective);
                }
                for bytes in &mut instance.storage {
                    *bytes = *bytes * 13 / 10;
                }
            }
        }
        assert!(cheaper > 5, "capacity mattered in {cheaper} only");
    }
}
