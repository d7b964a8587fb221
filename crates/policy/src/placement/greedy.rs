//! Each key goes where it is missed most: rate of accesses times latency to the key.

use super::{Placement, Problem};
use crate::view::NodeIndex;

/// The node with the greatest access rate x latency to the key's home, by a single function; a key
/// that nobody accesses from elsewhere stays. Since staying counts nothing, keys that are accessed from
/// several nodes go back and forth.
pub fn place(problem: &Problem<'_>) -> Placement {
    let mut placement = Placement::unchanged(problem.keys);
    let keys = placement.homes.iter_mut().zip(problem.keys).enumerate();
    for (at, (home, key)) in keys {
        let mut most: Option<(NodeIndex, f64)> = None;
        for access in problem.accesses_of(at) {
            let score = access.rate * problem.network.latency(access.node, key.home);
            let may = problem.may_host[access.node.at()];
            if may && score > most.map_or(0.0, |(_, score)| score) {
                most = Some((access.node, score));
            }
        }
        if let Some((node, _)) = most {
            *home = node;
        }
    }
    placement
}
