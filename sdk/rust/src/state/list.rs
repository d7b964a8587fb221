//! A sequence, each element stored under a key of its own.

use std::marker::PhantomData;

use serde::{Deserialize, Serialize};
use serde::de::DeserializeOwned;

use crate::Error;
use crate::state::cache;
use crate::state::host::{Host, Node};

/// A list of the session: element `i` is stored as JSON under `name/<20 digits>`, and where the list
/// begins and ends under `name/len`. Appending writes these two keys, however long the list is.
#[derive(Debug, Clone, Copy)]
pub struct List<T> {
    name: &'static str,
    _type: PhantomData<fn() -> T>,
}

/// Positions of the first element and of the one after the last; both only grow.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Span {
    start: u64,
    end: u64,
}

impl<T: Serialize + DeserializeOwned + Clone + 'static> List<T> {
    /// The list of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, _type: PhantomData }
    }

    /// Appends an element; returns the list's length.
    pub fn push(&self, element: T) -> Result<u64, Error> {
        self.push_on(&Node, element)
    }

    /// Number of elements.
    pub fn len(&self) -> Result<u64, Error> {
        self.len_on(&Node)
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.len()? == 0)
    }

    /// The element at a place, counted from the present start.
    pub fn get(&self, index: u64) -> Result<Option<T>, Error> {
        self.get_on(&Node, index)
    }

    /// Replaces the element at a place; false if there is none.
    pub fn set(&self, index: u64, element: T) -> Result<bool, Error> {
        let span = self.span(&Node)?;
        let inside = index < span.end - span.start;
        if inside {
            cache::put(&self.path(span.start + index), &cache::json(), Some(element));
        }
        Ok(inside)
    }

    /// Removes and returns the first element.
    pub fn pop_front(&self) -> Result<Option<T>, Error> {
        self.pop_front_on(&Node)
    }

    /// Elements from `index` on, at most `limit`.
    pub fn range(&self, index: u64, limit: u64) -> Result<Vec<T>, Error> {
        let len = self.len()?;
        let wanted = index.min(len)..len.min(index.saturating_add(limit));
        let found: Result<Vec<Option<T>>, Error> = wanted.map(|index| self.get(index)).collect();
        Ok(found?.into_iter().flatten().collect())
    }

    fn path(&self, position: u64) -> String {
        format!("{}/{position:020}", self.name)
    }

    fn span_path(&self) -> String {
        format!("{}/len", self.name)
    }

    fn span(&self, host: &impl Host) -> Result<Span, Error> {
        cache::read(host, &self.span_path(), &cache::json(), |span: Option<&Span>| span.copied().unwrap_or_default())
    }

    pub(crate) fn len_on(&self, host: &impl Host) -> Result<u64, Error> {
        let span = self.span(host)?;
        Ok(span.end - span.start)
    }

    pub(crate) fn push_on(&self, host: &impl Host, element: T) -> Result<u64, Error> {
        let mut span = self.span(host)?;
        cache::put(&self.path(span.end), &cache::json(), Some(element));
        span.end += 1;
        cache::put(&self.span_path(), &cache::json(), Some(span));
        Ok(span.end - span.start)
    }

    pub(crate) fn get_on(&self, host: &impl Host, index: u64) -> Result<Option<T>, Error> {
        let span = self.span(host)?;
        if index >= span.end - span.start {
            return Ok(None);
        }
        cache::read(host, &self.path(span.start + index), &cache::json(), |element: Option<&T>| element.cloned())
    }

    pub(crate) fn pop_front_on(&self, host: &impl Host) -> Result<Option<T>, Error> {
        let first = self.get_on(host, 0)?;
        if first.is_some() {
            let mut span = self.span(host)?;
            cache::put::<T>(&self.path(span.start), &cache::json(), None);
            span.start += 1;
            cache::put(&self.span_path(), &cache::json(), Some(span));
        }
        Ok(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::host::fake::Fake;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        #[test]
        fn a_list_is_a_queue(operations in proptest::collection::vec((0_u8..5, any::<i32>()), 0..80)) {
            cache::clear();
            let (host, list, mut plain) = (Fake::default(), List::<i32>::new("l"), VecDeque::new());
            for (operation, value) in operations {
                match operation {
                    0 | 1 => { list.push_on(&host, value).unwrap(); plain.push_back(value); }
                    2 => prop_assert_eq!(list.pop_front_on(&host).unwrap(), plain.pop_front()),
                    3 => cache::flush(&host).unwrap(),
                    _ => { cache::flush(&host).unwrap(); cache::clear(); }
                }
                prop_assert_eq!(list.len_on(&host).unwrap(), plain.len() as u64);
                prop_assert_eq!(list.get_on(&host, 0).unwrap(), plain.front().copied());
            }
        }
    }

    #[test]
    fn appending_costs_the_same_however_long_the_list_is() {
        cache::clear();
        let (host, list) = (Fake::default(), List::<u32>::new("l"));
        for round in 0..5000 {
            let before = (host.reads.get(), host.writes.get());
            list.push_on(&host, round).unwrap();
            cache::flush(&host).unwrap();
            let (reads, writes) = (host.reads.get() - before.0, host.writes.get() - before.1);
            assert!(reads <= 1 && writes == 2, "push {round}: {reads} reads, {writes} writes");
        }
    }
}
