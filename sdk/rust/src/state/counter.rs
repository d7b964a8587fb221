//! A number.

use crate::Error;
use crate::state::cache::{self, Codec};
use crate::state::host::{Host, Node};

/// A signed number of the session, stored as decimal text; 0 until it is first changed.
#[derive(Debug, Clone, Copy)]
pub struct Counter {
    name: &'static str,
}

fn codec() -> Codec<i64> {
    Codec {
        decode: |bytes| {
            let text = std::str::from_utf8(bytes)?;
            Ok(text.trim().parse()?)
        },
        encode: |value| match value.downcast_ref::<i64>() {
            Some(number) => Ok(number.to_string().into_bytes()),
            None => Err(Error::failed("one key is used with two types")),
        },
    }
}

impl Counter {
    /// The counter of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name }
    }

    /// Its value.
    pub fn get(&self) -> Result<i64, Error> {
        self.get_on(&Node)
    }

    /// Adds to it and returns the sum; fails if that is outside 64 bits.
    pub fn add(&self, delta: i64) -> Result<i64, Error> {
        self.add_on(&Node, delta)
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        cache::put(self.name, &codec(), Some(value));
    }

    pub(crate) fn get_on(&self, host: &impl Host) -> Result<i64, Error> {
        cache::read(host, self.name, &codec(), |value| value.copied().unwrap_or(0))
    }

    pub(crate) fn add_on(&self, host: &impl Host, delta: i64) -> Result<i64, Error> {
        let sum = cache::update(host, self.name, &codec(), |value| {
            let sum = value.unwrap_or(0).checked_add(delta)?;
            *value = Some(sum);
            Some(sum)
        })?;
        sum.ok_or_else(|| Error::failed(format!("the counter {:?} would leave 64 bits", self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::host::fake::Fake;

    #[test]
    fn five_changes_are_one_write_and_a_warm_counter_reads_nothing() {
        cache::clear();
        let (host, counter) = (Fake::default(), Counter::new("count"));
        for _ in 0..5 {
            counter.add_on(&host, 2).unwrap();
        }
        cache::flush(&host).unwrap();
        assert_eq!((host.reads.get(), host.writes.get()), (1, 1));
        assert_eq!(counter.add_on(&host, 1).unwrap(), 11);
        cache::flush(&host).unwrap();
        assert_eq!((host.reads.get(), host.writes.get()), (1, 2));
        assert_eq!(host.keys.borrow()["count"], b"11");
        assert!(counter.add_on(&host, i64::MAX).is_err());
    }
}
