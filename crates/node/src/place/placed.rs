//! Shared keys at home here that are placed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use fulmar_model::Group;
use parking_lot::Mutex;

/// It is told so often that a key stays.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Shared keys at home here that are placed.
#[derive(Default)]
pub(crate) struct Placed {
    /// When it was told last that one stays.
    told: Mutex<HashMap<Group, Instant>>,
}

impl Placed {
    /// Whether a key is placed here, so that nobody else moves it.
    pub(crate) fn has(&self, group: &Group) -> bool {
        self.told.lock().contains_key(group)
    }

    /// From now on these are; whether it is to be told of each that it stays.
    pub(super) fn set<'a>(&self, groups: impl Iterator<Item = &'a Group>) -> Vec<bool> {
        let (mut placed, now) = (HashMap::new(), Instant::now());
        let mut before = self.told.lock();
        let told = groups.map(|group| {
            let last = before.remove(group);
            let is_to_be_told = last.is_none_or(|last| now - last >= TOLD_EVERY);
            let told = last.filter(|_| !is_to_be_told).unwrap_or(now);
            placed.insert(group.clone(), told);
            is_to_be_told
        });
        let told = told.collect();
        *before = placed;
        told
    }
}
