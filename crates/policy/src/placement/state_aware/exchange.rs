//! Moves that pay only together: pairs where the penalty bends, and chains through full nodes.

use super::search::{LEAST_GAIN, Search};
use crate::view::NodeIndex;

/// Homes that the first key of a pair is tried on.
const PAIR_HOMES: usize = 4;
/// How far chains are followed, one way of looking after the other: by a key's place in the chain, how
/// many full nodes it is tried on, and how many keys are then tried to leave them. After the last move
/// there has to be room.
const CHAINS: [&[(usize, usize)]; 4] = [
    &[(usize::MAX, usize::MAX)],
    &[(8, 4), (4, 3)],
    &[(5, 3), (3, 2), (2, 2)],
    &[(4, 3), (2, 2), (2, 1), (1, 1), (1, 1)],
];
/// Keys looked at for the pairs that start with one key.
const PAIR_KEYS: usize = 200;
/// Numbers looked at for exchanges in all.
const WORK: usize = 20_000_000;

impl Search<'_> {
    /// Makes exchanges until none pays, or as long as there is time.
    pub(super) fn exchange(&mut self) {
        let work = &mut Work::new(self);
        let mut way = 0;
        while way < CHAINS.len() {
            let mut improved = false;
            for at in 0..work.keys.len() {
                let key = work.keys[at];
                while work.left > 0
                    && (self.improve_in_chain(key, CHAINS[way], work)
                        || (way == 0 && self.improve_in_pair(key, work)))
                {
                    self.improve();
                    improved = true;
                }
            }
            way = if improved { 0 } else { way + 1 };
        }
    }

    /// A chain of moves that starts with a key: to a node that has no room, from which another moves
    /// on, and so forth until all fit. What the chain has gained is above 0 after each move: any
    /// chain around a circle that pays has a start from where this holds (Lin and Kernighan).
    fn improve_in_chain(
        &mut self,
        key: usize,
        breadth: &[(usize, usize)],
        work: &mut Work,
    ) -> bool {
        for keys in &mut work.on_node {
            keys.clear();
        }
        for key in &work.keys {
            work.on_node[self.placement.homes[*key].at()].push(*key);
        }
        let mut chain = Chain {
            breadth,
            on_node: &work.on_node,
            moved: Vec::new(),
            full: Vec::new(),
            work: &mut work.left,
        };
        self.prolong(key, 0.0, &mut chain)
    }

    /// Moves one key on, then whatever that makes necessary; everything is as before if it does not pay.
    fn prolong(&mut self, key: usize, gained: f64, chain: &mut Chain<'_>) -> bool {
        let depth = chain.moved.len();
        let (breadth, _) = chain.breadth.get(depth).copied().unwrap_or_default();
        let Some(work) = chain.work.checked_sub(1) else {
            return false;
        };
        *chain.work = work;
        let now = self.placement.homes[key];
        self.weigh(key);
        let stays = self.cost[now.at()];
        let most = stays + gained - LEAST_GAIN;
        let mut homes: Vec<(f64, usize)> = self
            .cost
            .iter()
            .copied()
            .zip(0..)
            .filter(|(cost, home)| *cost < most && *home != now.at())
            .collect();
        homes.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        // Where there is room first: that may end the chain.
        let size = self.size(key);
        let (room, full): (Vec<_>, Vec<_>) = homes
            .into_iter()
            .partition(|(_, home)| self.spare[*home] >= size);
        let homes = room
            .into_iter()
            .take(1)
            .chain(full.into_iter().take(breadth));
        chain.moved.push(key);
        for (cost, home) in homes {
            let home = NodeIndex::from(home);
            self.relocate(key, home);
            if self.go_on(home, gained + stays - cost, chain) {
                return true;
            }
            self.relocate(key, now);
        }
        chain.moved.pop();
        false
    }

    /// After a move to `home`: done if everything fits, else something has to leave a full node.
    fn go_on(&mut self, home: NodeIndex, gained: f64, chain: &mut Chain<'_>) -> bool {
        let was_full = chain.full.len();
        // What is left of an earlier node comes first again after this one.
        if self.spare[home.at()] < 0 && !chain.full.contains(&home) {
            chain.full.push(home);
        }
        let relieved: Vec<NodeIndex> = chain.full.clone();
        chain.full.retain(|node| self.spare[node.at()] < 0);
        let Some(node) = chain.full.last().copied() else {
            return true;
        };
        let missing = -self.spare[node.at()];
        let mut leaving: Vec<(i64, usize)> = chain.on_node[node.at()]
            .iter()
            .filter(|key| self.placement.homes[**key] == node && !chain.moved.contains(key))
            .map(|key| ((self.size(*key) - missing), *key))
            .collect();
        // The smallest that suffices first; then the largest that do not.
        leaving.sort_unstable_by_key(|(left, key)| (*left < 0, left.abs(), *key));
        let last = chain.moved.len() - 1;
        let (_, keys) = chain.breadth.get(last).copied().unwrap_or_default();
        for (_, key) in leaving.into_iter().take(keys) {
            if self.prolong(key, gained, chain) {
                return true;
            }
        }
        chain.full = relieved;
        chain.full.truncate(was_full);
        false
    }

    /// A move of this key that does not pay for itself, made up for by another key of the same function.
    fn improve_in_pair(&mut self, key: usize, work: &mut Work) -> bool {
        let mut tries = PAIR_KEYS;
        let functions = self
            .costs
            .pairs_of(key)
            .map(|pair| self.costs.pair(pair).function);
        let tight = functions.filter(|function| self.is_near_its_limit(*function));
        let mut others: Vec<usize> = tight.flat_map(|at| work.of_function[at].clone()).collect();
        if others.is_empty() {
            return false;
        }
        others.sort_unstable();
        others.dedup();
        let now = self.placement.homes[key];
        self.weigh(key);
        let mut homes: Vec<(f64, usize)> = self
            .cost
            .iter()
            .copied()
            .zip(0..)
            .filter(|(cost, home)| {
                cost.is_finite() && *home != now.at() && self.spare[*home] >= self.size(key)
            })
            .collect();
        homes.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let stays = self.cost[now.at()];
        for (cost, home) in homes.into_iter().take(PAIR_HOMES) {
            self.relocate(key, NodeIndex::from(home));
            for other in others.iter().copied().filter(|other| *other != key) {
                (tries, work.left) = (tries.saturating_sub(1), work.left.saturating_sub(1));
                if tries == 0 || work.left == 0 {
                    break;
                }
                let at = self.placement.homes[other];
                if let Some((further, more)) = self.best_elsewhere(other, at)
                    && stays - cost + more > LEAST_GAIN
                {
                    self.relocate(other, further);
                    return true;
                }
            }
            self.relocate(key, now);
        }
        false
    }

    /// Whether a function's excess is neither far from 0 nor far above it: pairs of moves pay only
    /// where the penalty bends.
    fn is_near_its_limit(&self, function: usize) -> bool {
        let limit = self.costs.problem.functions[function]
            .slo
            .max_data_access_seconds;
        self.seconds[function] > 0.25 * limit && self.seconds[function] < 4.0 * limit
    }
}

/// What exchanges are looked for among, and for how long.
struct Work {
    /// Keys that may move.
    keys: Vec<usize>,
    of_function: Vec<Vec<usize>>,
    on_node: Vec<Vec<usize>>,
    /// Keys that may still be weighed.
    left: usize,
}

impl Work {
    fn new(search: &Search<'_>) -> Self {
        let keys: Vec<usize> = (0..search.placement.homes.len())
            .filter(|key| search.is_free(*key))
            .collect();
        let mut of_function = vec![Vec::new(); search.seconds.len()];
        for key in &keys {
            for pair in search.costs.pairs_of(*key) {
                of_function[search.costs.pair(pair).function].push(*key);
            }
        }
        Self {
            keys,
            of_function,
            on_node: vec![Vec::new(); search.spare.len()],
            left: WORK / search.costs.nodes,
        }
    }
}

/// A chain of moves while it is looked for.
struct Chain<'c> {
    breadth: &'c [(usize, usize)],
    /// Keys by home when it began.
    on_node: &'c [Vec<usize>],
    moved: Vec<usize>,
    /// Nodes that have more than they hold.
    full: Vec<NodeIndex>,
    work: &'c mut usize,
}
