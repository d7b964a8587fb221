//! What a node tells of itself, as keys and values of the gossip. A number that has hardly changed is not told again.

use std::collections::{BTreeMap, HashMap};

use chitchat::NodeState;
use fulmar_model::NodeName;

use crate::handler::Measured;
use crate::hints::{Told, Way};

/// Bytes of state that there is room for.
const ROOM: &str = "room";
/// Bytes of memory that workers may have.
const WORKERS: &str = "workers";
/// How long a function takes: mean and standard error, in seconds.
const TIME: &str = "time/";
/// The way to a node: round trip in seconds, bandwidth in bytes per second.
const WAY: &str = "way/";

/// Smallest change that is told, as a share of what was told before. Ways vary with every probe.
const TOLD: f64 = 0.01;
const TOLD_OF_WAYS: f64 = 0.1;

/// What there is to be told: keys, their numbers, and which change of them is told.
fn words(told: &Told) -> BTreeMap<String, (Vec<f64>, f64)> {
    let bytes = [(ROOM, told.room_bytes), (WORKERS, told.worker_bytes)];
    let bytes = bytes
        .into_iter()
        .filter_map(|(key, bytes)| Some((key.to_owned(), (vec![bytes? as f64], TOLD))));
    let times = told.execution_times.iter().map(|(function, time)| {
        let numbers = vec![time.mean, time.error];
        (format!("{TIME}{function}"), (numbers, TOLD))
    });
    let ways = told.ways.iter().map(|(node, way)| {
        let numbers = vec![way.round_trip, way.bandwidth];
        (format!("{WAY}{node}"), (numbers, TOLD_OF_WAYS))
    });
    bytes.chain(times).chain(ways).collect()
}

/// The numbers that a value says, if there are so many.
fn numbers<const N: usize>(said: &str) -> Option<[f64; N]> {
    let numbers: Result<Vec<f64>, _> = said.split(' ').map(str::parse).collect();
    let numbers: [f64; N] = numbers.ok()?.try_into().ok()?;
    let are_good = |number: &f64| number.is_finite() && *number >= 0.0;
    numbers.iter().all(are_good).then_some(numbers)
}

/// Whether some numbers are near enough to what was said of them.
fn is_said(said: &str, numbers: &[f64], change: f64) -> bool {
    let said: Result<Vec<f64>, _> = said.split(' ').map(str::parse).collect();
    let is_near = |(said, now): (&f64, &f64)| (said - now).abs() <= change * said;
    said.is_ok_and(|said| said.len() == numbers.len() && said.iter().zip(numbers).all(is_near))
}

/// Puts what a node tells of itself into its state.
pub(super) fn tell(state: &mut NodeState, told: &Told) {
    let words = words(told);
    let said: Vec<String> = state.key_values().map(|(key, _)| key.to_owned()).collect();
    for key in said.iter().filter(|key| !words.contains_key(*key)) {
        state.delete(key);
    }
    for (key, (numbers, change)) in words {
        if !state
            .get(&key)
            .is_some_and(|said| is_said(said, &numbers, change))
        {
            let numbers: Vec<String> = numbers.iter().map(f64::to_string).collect();
            state.set(key, numbers.join(" "));
        }
    }
}

/// What a node has told of itself; what is not as expected is left out.
pub(super) fn read(state: &NodeState) -> Told {
    let bytes = |key| Some(numbers::<1>(state.get(key)?)?[0] as u64);
    let of = |prefix: &'static str| {
        state.key_values().filter_map(move |(key, said)| {
            let [one, other] = numbers(said)?;
            Some((key.strip_prefix(prefix)?, one, other))
        })
    };
    let times: HashMap<String, Measured> = of(TIME)
        .map(|(function, mean, error)| (function.to_owned(), Measured { mean, error }))
        .collect();
    let way = |(node, round_trip, bandwidth)| {
        let way = Way {
            round_trip,
            bandwidth,
        };
        Some((NodeName::new(node).ok()?, way))
    };
    Told {
        room_bytes: bytes(ROOM),
        worker_bytes: bytes(WORKERS),
        execution_times: times,
        ways: of(WAY).filter_map(way).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Told {
        let time = Measured {
            mean: 0.0123,
            error: 0.0,
        };
        let way = Way {
            round_trip: 0.005,
            bandwidth: 12.5e6,
        };
        Told {
            room_bytes: Some(1 << 30),
            worker_bytes: None,
            execution_times: HashMap::from([("shop/detect".to_owned(), time)]),
            ways: HashMap::from([(NodeName::new("edge-1").unwrap(), way)]),
        }
    }

    #[test]
    fn what_is_told_is_what_is_read() {
        let (mut state, mut told) = (NodeState::for_test(), told());
        tell(&mut state, &told);
        assert_eq!(read(&state), told);
        // What is no longer so is taken back.
        told.worker_bytes = told.room_bytes.take();
        told.execution_times.clear();
        tell(&mut state, &told);
        assert_eq!(read(&state), told);
    }

    #[test]
    fn what_hardly_changes_is_not_told_again() {
        let (mut state, mut told) = (NodeState::for_test(), told());
        tell(&mut state, &told);
        let before = state.max_version();
        for way in told.ways.values_mut() {
            way.round_trip *= 1.05;
        }
        told.room_bytes = told.room_bytes.map(|bytes| bytes - 4096);
        tell(&mut state, &told);
        assert_eq!(state.max_version(), before);
        for way in told.ways.values_mut() {
            way.round_trip *= 1.1;
        }
        tell(&mut state, &told);
        assert_eq!(read(&state).ways, told.ways);
    }

    #[test]
    fn nonsense_is_left_out() {
        let mut state = NodeState::for_test();
        for (key, said) in [
            ("room", "-1"),
            ("workers", "many"),
            ("time/a", "1"),
            ("time/b", "NaN 0"),
            ("time/c", "1 2 3"),
            ("way/No Node", "1 1"),
            ("way/a", "inf 1"),
            ("weather", "1"),
        ] {
            state.set(key, said);
        }
        assert_eq!(read(&state), Told::default());
    }
}
