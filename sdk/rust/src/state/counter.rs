//! A number.

use crate::Error;
use crate::state::stored::Stored;
use crate::state::{cache, name};

/// A signed number of the session, stored as decimal text; 0 until it is first changed.
///
/// ```
/// static SEEN: fulmar::Counter = fulmar::Counter::new("seen");
/// # fn main() -> Result<(), fulmar::Error> {
/// assert_eq!(SEEN.add(2)?, 2);
/// assert_eq!(SEEN.get()?, 2);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Counter {
    name: &'static str,
}

/// As the node's own `increment` stores it.
#[derive(Clone, Copy)]
struct Decimal(i64);

impl Stored for Decimal {
    fn to_stored(&self) -> Result<Vec<u8>, Error> {
        Ok(self.0.to_string().into_bytes())
    }

    fn from_stored(bytes: &[u8]) -> Result<Self, Error> {
        Ok(Self(std::str::from_utf8(bytes)?.trim().parse()?))
    }
}

impl Counter {
    /// The counter of this name: 1 to 200 bytes without `:`, `/` and control characters.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name: name::checked(name),
        }
    }

    /// Its value.
    pub fn get(&self) -> Result<i64, Error> {
        cache::read(self.name, |value: Option<&Decimal>| {
            value.map_or(0, |value| value.0)
        })
    }

    /// Adds to it and returns the sum; fails if that is outside 64 bits.
    pub fn add(&self, delta: i64) -> Result<i64, Error> {
        if delta == 0 {
            return self.get();
        }
        let sum = cache::update(self.name, |value: &mut Option<Decimal>| {
            let sum = value.map_or(0, |value| value.0).checked_add(delta)?;
            *value = Some(Decimal(sum));
            Some(sum)
        })?;
        sum.ok_or_else(|| Error::failed(format!("the counter {:?} would leave 64 bits", self.name)))
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        cache::put(self.name, Some(Decimal(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{calls, invoke, reset, stored_in_session};

    #[test]
    fn five_changes_are_one_write_and_a_warm_counter_reads_nothing() {
        reset();
        let counter = Counter::new("count");
        let five = || (0..5).try_fold(0, |_, _| counter.add(2));
        assert_eq!(invoke("s", five), Ok(10));
        assert_eq!((calls().reads, calls().writes), (1, 1));
        assert_eq!(invoke("s", || counter.add(1)), Ok(11));
        let calls = calls();
        assert_eq!(
            (calls.reads, calls.writes, calls.lists, calls.contexts),
            (1, 2, 0, 0)
        );
        assert_eq!(stored_in_session("s", "count").unwrap(), b"11");
    }

    #[test]
    fn a_sum_outside_64_bits_fails_and_changes_nothing() {
        reset();
        let counter = Counter::new("count");
        invoke("s", || counter.add(11)).unwrap();
        assert!(invoke("s", || counter.add(i64::MAX)).is_err());
        assert_eq!(invoke("s", || counter.get()), Ok(11));
    }

    #[test]
    fn setting_reads_nothing_and_adding_nothing_writes_nothing() {
        reset();
        let counter = Counter::new("count");
        invoke("s", || {
            counter.set(-3);
            Ok(())
        })
        .unwrap();
        assert_eq!((calls().reads, calls().writes), (0, 1));
        assert_eq!(invoke("s", || counter.add(0)), Ok(-3));
        assert_eq!((calls().reads, calls().writes), (0, 1));
    }
}
