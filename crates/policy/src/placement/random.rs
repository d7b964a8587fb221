//! Keys on random nodes: the baseline that shows what not thinking costs.

use super::{Placement, Problem};
use crate::view::NodeIndex;

/// Node after node, each key that is there goes to a random node; so a key may move twice, which is
/// counted. Returns the placement and the bytes moved. `uniform` draws from `[0, 1)`.
pub fn place(problem: &Problem<'_>, uniform: &mut dyn FnMut() -> f64) -> (Placement, u64) {
    let mut placement = Placement::unchanged(problem.keys);
    let nodes = problem.network.nodes();
    let mut moved = 0;
    for node in (0..nodes).map(NodeIndex::from) {
        for (home, key) in placement.homes.iter_mut().zip(problem.keys) {
            if *home == node {
                let to = NodeIndex::from((uniform() * nodes as f64) as usize % nodes);
                if to != node {
                    moved += key.size_bytes;
                    *home = to;
                }
            }
        }
    }
    (placement, moved)
}
