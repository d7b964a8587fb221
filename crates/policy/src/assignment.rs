//! Which node runs each step of a chain or DAG of functions.
//!
//! From "In-Network Computing with Function as a Service at the Edge": every step goes from the
//! client to a node and back, and a node shares its speed among all steps assigned to it. [`load`]
//! looks at the nodes' load only, [`load_net`] also at what has to be moved; both take one step after
//! the other, as in the paper. [`look_ahead`] is ours: it places all steps of a job together, counts
//! what really moves under the job's execution model, and counts what a step costs those that are
//! already there.

/// A node as an assignment sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Processor {
    /// Operations per second.
    pub speed: f64,
    /// Kind of processor; steps run on their own kind only.
    pub affinity: u8,
    /// Steps assigned so far (`L`).
    pub steps: u32,
    /// Their operations in all.
    pub ops: f64,
}

/// A step to assign.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// Operations.
    pub ops: f64,
    /// Kind of processor that it needs.
    pub affinity: u8,
    /// Bytes that go from the client to the node, as the policy should count them.
    pub up_bytes: f64,
    /// Bytes that come back.
    pub down_bytes: f64,
}

/// What the network needs for a byte between one client and each node, in seconds.
#[derive(Debug, Clone, Copy)]
pub struct Paths<'a> {
    /// From the client to each node.
    pub up: &'a [f64],
    /// Back.
    pub down: &'a [f64],
}

impl Paths<'_> {
    /// Seconds to move what the step needs to a node and back.
    pub fn seconds(&self, node: usize, step: &Step) -> f64 {
        step.up_bytes * self.up[node] + step.down_bytes * self.down[node]
    }
}

/// The node with the least estimate among those that can run the step; the first of equals.
fn least(
    step: &Step,
    nodes: &[Processor],
    mut estimate: impl FnMut(usize, &Processor) -> f64,
) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (at, node) in nodes.iter().enumerate() {
        if node.affinity == step.affinity {
            let seconds = estimate(at, node);
            if best.is_none_or(|(_, least)| seconds < least) {
                best = Some((at, seconds));
            }
        }
    }
    best.map(|(at, _)| at)
}

/// Seconds that the step takes on a node that it joins.
fn processing(step: &Step, node: &Processor) -> f64 {
    step.ops * f64::from(node.steps + 1) / node.speed
}

/// The node where the step is processed soonest; none if no node is of its kind.
pub fn load(step: &Step, nodes: &[Processor]) -> Option<usize> {
    least(step, nodes, |_, node| processing(step, node))
}

/// The node with the least processing and transfer time.
pub fn load_net(step: &Step, nodes: &[Processor], paths: &Paths<'_>) -> Option<usize> {
    least(step, nodes, |at, node| {
        processing(step, node) + paths.seconds(at, step)
    })
}

/// Passes over a job's steps after the first placement; each makes the job's total smaller, and few
/// change anything.
const PASSES: usize = 3;

/// Nodes for all steps of a job, so that what all jobs take together grows least: each step's own
/// transfer and processing, and what it adds to the steps already on its node. Placed one after the
/// other, then each once more with the others in place, until nothing changes. None if no node is of
/// a step's kind.
pub fn look_ahead(
    steps: &[Step],
    nodes: &mut [Processor],
    paths: &Paths<'_>,
) -> Option<Vec<usize>> {
    let choose = |step: &Step, nodes: &[Processor]| {
        least(step, nodes, |at, node| {
            processing(step, node) + node.ops / node.speed + paths.seconds(at, step)
        })
    };
    let mut chosen: Vec<usize> = Vec::with_capacity(steps.len());
    for step in steps {
        match choose(step, nodes) {
            Some(at) => {
                take(step, &mut nodes[at]);
                chosen.push(at);
            }
            None => {
                for (step, at) in steps.iter().zip(&chosen) {
                    give_back(step, &mut nodes[*at]);
                }
                return None;
            }
        }
    }
    for _ in 0..PASSES {
        let mut changed = false;
        for (step, at) in steps.iter().zip(&mut chosen) {
            give_back(step, &mut nodes[*at]);
            // There was one, so there is one.
            let better = choose(step, nodes).unwrap_or(*at);
            changed |= better != *at;
            *at = better;
            take(step, &mut nodes[*at]);
        }
        if !changed {
            break;
        }
    }
    Some(chosen)
}

/// Puts the step on the node.
pub fn take(step: &Step, node: &mut Processor) {
    node.steps += 1;
    node.ops += step.ops;
}

fn give_back(step: &Step, node: &mut Processor) {
    node.steps -= 1;
    node.ops -= step.ops;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(speed: f64, affinity: u8) -> Processor {
        Processor {
            speed,
            affinity,
            steps: 0,
            ops: 0.0,
        }
    }

    fn step(ops: f64) -> Step {
        Step {
            ops,
            affinity: 0,
            up_bytes: 100.0,
            down_bytes: 100.0,
        }
    }

    #[test]
    fn load_goes_where_it_is_fastest_and_net_where_it_is_near() {
        let nodes = [node(1.0, 0), node(2.0, 0), node(9.0, 1)];
        assert_eq!(
            load(&step(1.0), &nodes),
            Some(1),
            "the third is of another kind"
        );
        let paths = Paths {
            up: &[0.0, 1.0, 0.0],
            down: &[0.0, 0.0, 0.0],
        };
        assert_eq!(load_net(&step(1.0), &nodes, &paths), Some(0));
        let other = Step {
            affinity: 7,
            ..step(1.0)
        };
        assert_eq!(load(&other, &nodes), None);
        assert_eq!(
            look_ahead(&[step(1.0), other], &mut nodes.to_vec(), &paths),
            None
        );
    }

    #[test]
    fn equals_go_to_the_first() {
        let nodes = [node(1.0, 0), node(1.0, 0)];
        assert_eq!(load(&step(1.0), &nodes), Some(0));
    }

    #[test]
    fn looking_ahead_spares_those_that_are_already_there() {
        let mut nodes = [node(2.0, 0), node(1.0, 0)];
        take(&step(100.0), &mut nodes[0]);
        let paths = Paths {
            up: &[0.0; 2],
            down: &[0.0; 2],
        };
        assert_eq!(load(&step(1.0), &nodes), Some(0));
        assert_eq!(look_ahead(&[step(1.0)], &mut nodes, &paths), Some(vec![1]));
    }

    proptest! {
        #[test]
        fn every_step_is_counted_once_and_runs_on_its_kind(
            steps in prop::collection::vec((1.0_f64..100.0, 0_u8..2), 1..12),
            speeds in prop::collection::vec(1.0_f64..10.0, 2..6),
        ) {
            let mut nodes: Vec<Processor> = speeds
                .iter()
                .enumerate()
                .map(|(at, speed)| node(*speed, at as u8 % 2))
                .collect();
            let steps: Vec<Step> = steps
                .into_iter()
                .map(|(ops, affinity)| Step { affinity, ..step(ops) })
                .collect();
            let none = vec![0.0; nodes.len()];
            let paths = Paths { up: &none, down: &none };
            let chosen = look_ahead(&steps, &mut nodes, &paths).unwrap();
            for (step, at) in steps.iter().zip(&chosen) {
                prop_assert_eq!(nodes[*at].affinity, step.affinity);
            }
            let counted: u32 = nodes.iter().map(|node| node.steps).sum();
            prop_assert_eq!(counted as usize, steps.len());
        }
    }
}
