//! Which shared keys a function's invocations use on this node, how often, and how large they are: the statistics of the
//! Data Proxy ("Function Offloading and Data Migration for Stateful Serverless Edge Computing", section 3).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use fulmar_model::Group;
use fulmar_policy::estimate::{Rate, Smoothed};
use parking_lot::Mutex;

/// Invocations after which an access weighs no less than this part: what is longer ago is forgotten.
const MEMORY: u64 = 100;
/// Keys that are remembered of a function; above it those that are used least go.
const MAX_KEYS: usize = 256;
/// What is used less often is not remembered.
const RARELY: f64 = 0.001;
/// Memory of the rate of invocations, in seconds.
const RATE_SECONDS: f64 = 20.0;
/// Weight of the newest size.
const NEWEST: f64 = 0.3;

/// What was seen of a function on this node.
#[derive(Debug, Default)]
pub(crate) struct Accesses {
    /// Whether any key was ever used; read by every invocation.
    is_any: AtomicBool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    invocations: u64,
    rate: Option<Rate>,
    keys: HashMap<Group, Use>,
}

#[derive(Debug)]
struct Use {
    /// As of this invocation.
    probability: f64,
    at: u64,
    bytes: Smoothed,
}

/// How a function uses a key.
#[derive(Debug, Clone)]
pub(crate) struct Access {
    /// The key, as a placement group.
    pub(crate) key: Group,
    /// That an invocation uses it (`p_{f,k}`).
    pub(crate) probability: f64,
    /// Mean size of its value in bytes (`l_k`).
    pub(crate) bytes: f64,
}

/// What is left of a mean over invocations after some in which nothing was seen: the mean of all until there are
/// [`MEMORY`] of them, the newest weighing as much as then from there on.
fn left(from: u64, to: u64) -> f64 {
    let (memory, early) = (MEMORY as f64, to.min(MEMORY));
    let mean_of_all = match from < early {
        true => from as f64 / early as f64,
        false => 1.0,
    };
    let later = to.saturating_sub(from.max(MEMORY));
    mean_of_all * (1.0 - 1.0 / memory).powf(later as f64)
}

impl Accesses {
    /// An invocation has used these keys, of so many bytes, so many seconds after the node's start.
    pub(crate) fn note(&self, used: Vec<(Group, usize)>, now_seconds: f64) {
        if used.is_empty() && !self.is_any.load(Ordering::Relaxed) {
            return;
        }
        self.is_any.store(true, Ordering::Relaxed);
        let mut seen = self.seen.lock();
        seen.invocations += 1;
        let rate = seen
            .rate
            .get_or_insert(Rate::new(RATE_SECONDS, now_seconds));
        rate.see(now_seconds, 1.0);
        let now = seen.invocations;
        let weight = 1.0 / now.min(MEMORY) as f64;
        for (key, bytes) in used {
            let known = seen.keys.entry(key).or_insert_with(|| Use {
                probability: 0.0,
                at: now,
                bytes: Smoothed::new(NEWEST),
            });
            known.probability = known.probability * left(known.at, now) + weight;
            known.at = now;
            known.bytes.see(bytes as f64);
        }
        if seen.keys.len() > MAX_KEYS {
            let mut rates: Vec<f64> = seen.keys.values().map(|known| known.now(now)).collect();
            rates.sort_unstable_by(|one, other| other.total_cmp(one));
            let least = rates[MAX_KEYS / 2].max(RARELY);
            seen.keys.retain(|_, known| known.now(now) > least);
        }
    }

    /// Invocations a second, so many seconds after the node's start.
    pub(crate) fn per_second(&self, now_seconds: f64) -> f64 {
        let rate = self.seen.lock().rate;
        rate.map_or(0.0, |rate| rate.per_second(now_seconds))
    }

    /// The keys that are used, as of now; the function's invocations that were seen.
    pub(crate) fn all(&self) -> Vec<Access> {
        let seen = self.seen.lock();
        let keys = seen.keys.iter().map(|(key, known)| Access {
            key: key.clone(),
            probability: known.now(seen.invocations),
            bytes: known.bytes.value(),
        });
        keys.filter(|access| access.probability >= RARELY).collect()
    }
}

impl Use {
    fn now(&self, invocations: u64) -> f64 {
        self.probability * left(self.at, invocations)
    }
}

#[cfg(test)]
mod tests {
    use fulmar_model::{FunctionName, SessionName};

    use super::*;

    fn key(name: &str) -> Group {
        Group {
            function: FunctionName::of_shared_keys("default"),
            session: SessionName::new(name).unwrap(),
        }
    }

    fn probability(accesses: &Accesses, name: &str) -> f64 {
        let all = accesses.all();
        let found = all.iter().find(|access| access.key == key(name));
        found.map_or(0.0, |access| access.probability)
    }

    #[test]
    fn what_is_used_now_and_then_has_its_probability() {
        let accesses = Accesses::default();
        accesses.note(vec![(key("b/always"), 100)], 0.0);
        assert_eq!(probability(&accesses, "b/always"), 1.0);
        for at in 1..400 {
            let every_fourth = (at % 4 == 0).then(|| (key("b/fourth"), 10));
            let always = [(key("b/always"), 100)].into_iter();
            accesses.note(always.chain(every_fourth).collect(), 0.0);
        }
        assert!((probability(&accesses, "b/always") - 1.0).abs() < 1e-9);
        let fourth = probability(&accesses, "b/fourth");
        assert!((0.2..0.3).contains(&fourth), "{fourth}");
        assert_eq!(
            accesses
                .all()
                .iter()
                .map(|access| access.bytes)
                .sum::<f64>(),
            110.0
        );
        for _ in 0..1000 {
            accesses.note(Vec::new(), 0.0);
        }
        assert_eq!(probability(&accesses, "b/always"), 0.0, "forgotten");
    }

    #[test]
    fn the_first_invocations_weigh_the_same() {
        let accesses = Accesses::default();
        for at in 0..MEMORY {
            let second = (at % 2 == 0).then(|| (key("b/k"), 1));
            accesses.note(second.into_iter().collect(), 0.0);
        }
        assert!((probability(&accesses, "b/k") - 0.5).abs() < 1e-9);
    }

    #[test]
    fn only_so_many_keys_are_remembered() {
        let accesses = Accesses::default();
        for at in 0..10 * MAX_KEYS {
            let often = (key("b/often"), 1);
            accesses.note(vec![often, (key(&format!("b/{at}")), 1)], 0.0);
        }
        assert!(accesses.seen.lock().keys.len() <= MAX_KEYS);
        assert!(probability(&accesses, "b/often") > 0.99);
    }
}
