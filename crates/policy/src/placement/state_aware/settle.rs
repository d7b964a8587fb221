//! Room for keys that cannot stay where they are.

use super::Infeasible;
use super::search::Search;
use crate::view::NodeIndex;

/// Keys among which room is gathered, every two of them looked at.
const MOST_TO_GATHER: usize = 2_000;

impl Search<'_> {
    /// Gives each key that cannot stay the best home that has room, the largest first; before that,
    /// empties nodes that have more than they hold, of what is lost least by for each byte.
    pub(super) fn settle(&mut self) -> Result<(), Infeasible> {
        let may_host = self.costs.problem.may_host;
        let mut homeless = Vec::new();
        for node in (0..self.spare.len()).filter(|node| may_host[*node]) {
            while self.spare[node] < 0 {
                match self.least_missed(NodeIndex::from(node)) {
                    Some((key, home)) => self.relocate(key, home),
                    None => break,
                }
            }
        }
        let leaves = |search: &Self, key: usize| {
            let home = search.placement.homes[key];
            let is_too_much = search.spare[home.at()] < 0 && search.is_free(key);
            !may_host[home.at()] || is_too_much
        };
        let mut leaving: Vec<usize> = (0..self.placement.homes.len())
            .filter(|key| leaves(self, *key))
            .collect();
        leaving.sort_by_key(|key| std::cmp::Reverse(self.size(*key)));
        for key in leaving {
            let home = self.placement.homes[key];
            if !leaves(self, key) {
                continue;
            }
            match self.best_elsewhere(key, home) {
                Some((home, _)) => self.relocate(key, home),
                None => homeless.push(key),
            }
        }
        let mut missing_bytes = 0;
        for key in homeless {
            if let Some(key) = self.squeeze_in(key) {
                missing_bytes += self.costs.problem.keys[key].size_bytes;
            }
        }
        if missing_bytes == 0 {
            return Ok(());
        }
        let hosts = (0..self.spare.len()).filter(|node| may_host[*node]);
        let left = |node: usize| u64::try_from(self.spare[node].max(0)).unwrap_or(u64::MAX);
        Err(Infeasible {
            missing_bytes,
            nodes: hosts
                .map(|node| (NodeIndex::from(node), left(node)))
                .collect(),
        })
    }

    /// The key that a node with more than it holds should give away, and where to.
    fn least_missed(&mut self, node: NodeIndex) -> Option<(usize, NodeIndex)> {
        let missing = -self.spare[node.at()];
        let mut least: Option<(f64, usize, NodeIndex)> = None;
        for key in 0..self.placement.homes.len() {
            if self.placement.homes[key] != node || !self.is_free(key) {
                continue;
            }
            if let Some((home, gain)) = self.best_elsewhere(key, node) {
                let loss = -gain / self.size(key).clamp(1, missing) as f64;
                if least.is_none_or(|(least, ..)| loss < least) {
                    least = Some((loss, key, home));
                }
            }
        }
        least.map(|(_, key, home)| (key, home))
    }

    /// Finds room for a key where there is none in one piece: where another can move on for it; else
    /// in the place of the largest smaller one, which is then looked after in its turn. The key that
    /// is left over in the end.
    fn squeeze_in(&mut self, key: usize) -> Option<usize> {
        let mut key = key;
        let mut tries = self.placement.homes.len();
        loop {
            let now = self.placement.homes[key];
            if let Some((home, _)) = self.best_elsewhere(key, now) {
                self.relocate(key, home);
                return None;
            }
            if self.make_room(key) {
                return None;
            }
            if self.gather_room(self.size(key), now) {
                continue;
            }
            tries -= 1;
            let size = self.size(key);
            // It fills the node best: least is left over.
            let smaller = (0..self.placement.homes.len())
                .filter(|other| self.may_give_way(*other, now))
                .filter(|other| self.size(*other) < size)
                .map(|other| (self.spare_without(other) - size, other))
                .filter(|(left, _)| *left >= 0)
                .min();
            let Some((_, other)) = smaller.filter(|_| tries > 0) else {
                return Some(key);
            };
            // They change places; the smaller one is where it must not stay.
            let home = self.placement.homes[other];
            self.relocate(other, now);
            self.relocate(key, home);
            key = other;
        }
    }

    /// Whether a key on another node may be moved to make room.
    fn may_give_way(&self, key: usize, not_on: NodeIndex) -> bool {
        let problem = self.costs.problem;
        let home = self.placement.homes[key];
        let may_move =
            !self.costs.pairs_of(key).is_empty() || !problem.may_host[problem.keys[key].home.at()];
        home != not_on && problem.may_host[home.at()] && self.spare[home.at()] >= 0 && may_move
    }

    /// Bytes left on a key's node if it goes.
    fn spare_without(&self, key: usize) -> i64 {
        self.spare[self.placement.homes[key].at()] + self.size(key)
    }

    /// Moves a key to where another makes room for it by moving on.
    fn make_room(&mut self, key: usize) -> bool {
        let now = self.placement.homes[key];
        for other in 0..self.placement.homes.len() {
            if other == key
                || !self.may_give_way(other, now)
                || self.spare_without(other) < self.size(key)
            {
                continue;
            }
            let home = self.placement.homes[other];
            if let Some((further, _)) = self.best_elsewhere(other, home) {
                self.relocate(other, further);
                self.relocate(key, home);
                return true;
            }
        }
        false
    }

    /// Lets keys change places, each time so that the most room on any one node grows, until it is
    /// enough.
    fn gather_room(&mut self, enough: i64, not_on: NodeIndex) -> bool {
        let movable: Vec<usize> = (0..self.placement.homes.len())
            .filter(|key| self.may_give_way(*key, not_on))
            .collect();
        if movable.len() > MOST_TO_GATHER {
            return false;
        }
        loop {
            let hosts = (0..self.spare.len())
                .filter(|node| self.costs.problem.may_host[*node] && *node != not_on.at());
            let most = hosts.map(|node| self.spare[node]).max().unwrap_or(0);
            if most >= enough {
                return true;
            }
            let mut best: Option<(i64, usize, usize)> = None;
            for a in &movable {
                for b in &movable {
                    let more = self.size(*a) - self.size(*b);
                    let (at, other) = (self.placement.homes[*a], self.placement.homes[*b]);
                    let gathered = self.spare[at.at()] + more;
                    if more > 0
                        && at != other
                        && gathered > best.map_or(most, |(most, ..)| most)
                        && self.spare[other.at()] >= more
                    {
                        best = Some((gathered, *a, *b));
                    }
                }
            }
            let Some((_, a, b)) = best else { return false };
            let (at, other) = (self.placement.homes[a], self.placement.homes[b]);
            self.relocate(a, other);
            self.relocate(b, at);
        }
    }
}
