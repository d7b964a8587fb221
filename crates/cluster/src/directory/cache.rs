//! Homes as they were last heard of, in bounded memory.

use fulmar_model::Group;
use rustc_hash::FxHashMap;

use super::Home;

/// Sessions that are remembered, in each of two generations.
const CACHED: usize = 100_000;

/// Two generations: when the young one is full it becomes the old one, which is forgotten.
#[derive(Default)]
pub(super) struct Cache {
    young: FxHashMap<Group, Home>,
    old: FxHashMap<Group, Home>,
}

impl Cache {
    pub(super) fn get(&mut self, group: &Group) -> Option<Home> {
        if let Some(home) = self.young.get(group) {
            return Some(home.clone());
        }
        let (group, home) = self.old.remove_entry(group)?;
        self.put(group, home.clone());
        Some(home)
    }

    pub(super) fn put(&mut self, group: Group, home: Home) {
        if self.young.len() >= CACHED {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(group, home);
    }

    pub(super) fn remove(&mut self, group: &Group) {
        self.young.remove(group);
        self.old.remove(group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fulmar_model::{Epoch, FunctionName, NodeName, SessionName};

    fn group(session: &str) -> Group {
        Group {
            function: FunctionName::new("tracker").unwrap(),
            session: SessionName::new(session).unwrap(),
        }
    }

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        let home = Home {
            node: NodeName::new("n1").unwrap(),
            epoch: Epoch(1),
        };
        cache.put(group("used"), home.clone());
        for n in 0..CACHED {
            cache.put(group(&n.to_string()), home.clone());
        }
        assert_eq!(cache.get(&group("used")), Some(home.clone()));
        for n in 0..CACHED {
            cache.put(group(&format!("more-{n}")), home.clone());
        }
        assert!(cache.young.len() + cache.old.len() <= 2 * CACHED + 2);
        assert_eq!(cache.get(&group("used")), Some(home));
        assert_eq!(cache.get(&group("0")), None);
    }
}
