//! Values by key, each stored under a key of its own.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::fmt::Display;
use std::marker::PhantomData;
use std::str::FromStr;

use crate::Error;
use crate::host::{HOST, Host};
use crate::state::stored::Stored;
use crate::state::{cache, name};

/// Keys of one page when listing.
const PAGE: u32 = 256;

/// A map of the session: the value of `key` is stored under `name:key`, so an event costs what it
/// touches, however large the map is. Keys are stored as their text, and listed in its byte order
/// (`10` before `9`).
///
/// ```
/// static STOCK: fulmar::Map<String, u32> = fulmar::Map::new("stock");
/// # fn main() -> Result<(), fulmar::Error> {
/// STOCK.insert("apples", 3);
/// STOCK.modify("pears", |count| *count += 1)?;
/// assert_eq!(STOCK.get("apples")?, Some(3));
/// assert_eq!(STOCK.keys()?, ["apples", "pears"]);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Map<K, V> {
    name: &'static str,
    _type: PhantomData<fn() -> (K, V)>,
}

impl<K: Display + FromStr, V: Stored> Map<K, V> {
    /// The map of this name: 1 to 200 bytes without `:`, `/` and control characters.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name: name::checked(name),
            _type: PhantomData,
        }
    }

    /// A copy of a value.
    pub fn get<Q: Display + ?Sized>(&self, key: &Q) -> Result<Option<V>, Error>
    where
        K: Borrow<Q>,
        V: Clone,
    {
        self.with(key, |value| value.cloned())
    }

    /// Looks at a value in place.
    pub fn with<Q: Display + ?Sized, R>(
        &self,
        key: &Q,
        look: impl FnOnce(Option<&V>) -> R,
    ) -> Result<R, Error>
    where
        K: Borrow<Q>,
    {
        cache::read(&self.path(key), look)
    }

    /// Whether the key is there.
    pub fn contains<Q: Display + ?Sized>(&self, key: &Q) -> Result<bool, Error>
    where
        K: Borrow<Q>,
    {
        self.with(key, |value| value.is_some())
    }

    /// Changes a value in place; `None` is absent.
    pub fn update<Q: Display + ?Sized, R>(
        &self,
        key: &Q,
        change: impl FnOnce(&mut Option<V>) -> R,
    ) -> Result<R, Error>
    where
        K: Borrow<Q>,
    {
        cache::update(&self.path(key), change)
    }

    /// Changes a value in place, from its type's default if it is absent.
    pub fn modify<Q: Display + ?Sized, R>(
        &self,
        key: &Q,
        change: impl FnOnce(&mut V) -> R,
    ) -> Result<R, Error>
    where
        K: Borrow<Q>,
        V: Default,
    {
        self.update(key, |value| change(value.get_or_insert_default()))
    }

    /// Writes a value.
    pub fn insert<Q: Display + ?Sized>(&self, key: &Q, value: V)
    where
        K: Borrow<Q>,
    {
        cache::put(&self.path(key), Some(value));
    }

    /// Removes a key.
    pub fn remove<Q: Display + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        cache::put::<V>(&self.path(key), None);
    }

    /// Removes and returns a value.
    pub fn take<Q: Display + ?Sized>(&self, key: &Q) -> Result<Option<V>, Error>
    where
        K: Borrow<Q>,
    {
        self.update(key, Option::take)
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> Result<bool, Error> {
        Ok(self.keys_after(None, 1)?.is_empty())
    }

    /// All keys. For a large map see [`Map::keys_after`] and [`Map::iter`].
    pub fn keys(&self) -> Result<Vec<K>, Error> {
        let mut pages = Pages::new(self);
        let mut keys = Vec::new();
        while let Some(path) = pages.next()? {
            keys.push(self.key(&path)?);
        }
        Ok(keys)
    }

    /// Up to `limit` keys, those after a key if one is given.
    pub fn keys_after(&self, after: Option<&K>, limit: u32) -> Result<Vec<K>, Error> {
        let after = after.map(|key| self.path(key));
        let paths = self.page(after.as_deref(), limit)?;
        paths.iter().map(|path| self.key(path)).collect()
    }

    /// Keys with copies of their values. Keys that are removed or added meanwhile may be seen or not.
    pub fn iter(&self) -> Iter<'_, K, V>
    where
        V: Clone,
    {
        Iter {
            pages: Pages::new(self),
        }
    }

    /// Removes all keys, without loading their values.
    pub fn clear(&self) -> Result<(), Error> {
        let mut pages = Pages::new(self);
        while let Some(path) = pages.next()? {
            cache::put::<V>(&path, None);
        }
        Ok(())
    }

    fn path<Q: Display + ?Sized>(&self, key: &Q) -> String {
        format!("{}:{key}", self.name)
    }

    fn key(&self, path: &str) -> Result<K, Error> {
        let key = path.get(self.name.len() + 1..).unwrap_or_default();
        key.parse().map_err(|_| {
            let (map, expected) = (self.name, std::any::type_name::<K>());
            Error::failed(format!(
                "the key {key:?} of map {map:?} is not a {expected}"
            ))
        })
    }

    fn page(&self, after: Option<&str>, limit: u32) -> Result<Vec<String>, Error> {
        cache::flush()?;
        HOST.list_keys(cache::SESSION, &format!("{}:", self.name), after, limit)
    }
}

/// Stored keys, page by page.
#[derive(Debug)]
struct Pages<'a, K, V> {
    map: &'a Map<K, V>,
    page: VecDeque<String>,
    after: Option<String>,
    finished: bool,
}

impl<'a, K: Display + FromStr, V: Stored> Pages<'a, K, V> {
    fn new(map: &'a Map<K, V>) -> Self {
        Self {
            map,
            page: VecDeque::new(),
            after: None,
            finished: false,
        }
    }

    fn next(&mut self) -> Result<Option<String>, Error> {
        if self.page.is_empty() && !self.finished {
            self.page = self.map.page(self.after.as_deref(), PAGE)?.into();
            self.finished = self.page.len() < PAGE as usize;
            self.after = self.page.back().cloned();
        }
        Ok(self.page.pop_front())
    }

    /// There was an error, and it was told: nothing comes after it.
    fn stop(&mut self) {
        self.finished = true;
        self.page.clear();
    }
}

/// A map's keys with copies of their values.
#[derive(Debug)]
pub struct Iter<'a, K, V> {
    pages: Pages<'a, K, V>,
}

impl<K: Display + FromStr, V: Stored + Clone> Iterator for Iter<'_, K, V> {
    type Item = Result<(K, V), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let path = match self.pages.next() {
                Ok(path) => path?,
                Err(error) => {
                    self.pages.stop();
                    return Some(Err(error));
                }
            };
            let value = cache::read(&path, |value: Option<&V>| value.cloned());
            match value.and_then(|value| Ok((self.pages.map.key(&path)?, value))) {
                Ok((key, Some(value))) => return Some(Ok((key, value))),
                // Removed since the page was listed.
                Ok((_, None)) => {}
                Err(error) => {
                    self.pages.stop();
                    return Some(Err(error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{calls, drop_worker, invoke, reset, stored_in_session};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    static MAP: Map<String, i32> = Map::new("m");

    #[derive(Debug, Clone)]
    enum Step {
        Insert(String, i32),
        Remove(String),
        Modify(String),
        Clear,
        Commit,
        Fail,
        DropWorker,
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || "[a-c:/ü]{0,2}";
        prop_oneof![
            4 => (key(), any::<i32>()).prop_map(|(key, value)| Step::Insert(key, value)),
            2 => key().prop_map(Step::Remove),
            2 => key().prop_map(Step::Modify),
            1 => Just(Step::Clear),
            3 => Just(Step::Commit),
            1 => Just(Step::Fail),
            1 => Just(Step::DropWorker),
        ]
    }

    fn agrees(plain: &BTreeMap<String, i32>) -> Result<(), Error> {
        assert_eq!(&MAP.iter().collect::<Result<BTreeMap<_, _>, _>>()?, plain);
        assert!(MAP.keys()?.iter().eq(plain.keys()));
        assert_eq!(MAP.is_empty()?, plain.is_empty());
        Ok(())
    }

    fn run(steps: &[Step]) {
        reset();
        let (mut plain, mut inside) = (BTreeMap::new(), BTreeMap::new());
        for steps in steps.chunk_by(|step, _| !matches!(step, Step::Commit | Step::Fail)) {
            let result = invoke("s", || {
                for step in steps {
                    match step {
                        Step::Insert(key, value) => {
                            MAP.insert(key, *value);
                            inside.insert(key.clone(), *value);
                        }
                        Step::Remove(key) => {
                            MAP.remove(key);
                            inside.remove(key);
                        }
                        Step::Modify(key) => {
                            let add = |value: &mut i32| *value = value.wrapping_add(1);
                            MAP.modify(key, add)?;
                            add(inside.entry(key.clone()).or_default());
                            assert_eq!(MAP.get(key)?, inside.get(key).copied());
                        }
                        Step::Clear => {
                            MAP.clear()?;
                            inside.clear();
                        }
                        Step::Fail => return Err(Error::failed("on purpose")),
                        Step::Commit | Step::DropWorker => {}
                    }
                }
                agrees(&inside)
            });
            match result {
                Ok(()) => plain = inside.clone(),
                Err(error) => {
                    assert_eq!(error, Error::failed("on purpose"));
                    inside = plain.clone();
                }
            }
            if steps.iter().any(|step| matches!(step, Step::DropWorker)) {
                drop_worker();
            }
            invoke("s", || agrees(&plain)).unwrap();
        }
    }

    proptest! {
        #[test]
        fn a_map_is_a_map(steps in proptest::collection::vec(step(), 0..60)) {
            run(&steps);
        }

        #[test]
        fn a_map_is_a_map_when_little_is_held(steps in proptest::collection::vec(step(), 0..60)) {
            cache::with_limits((2, 100, 3), || run(&steps));
        }
    }

    #[test]
    fn an_event_costs_what_it_touches_however_large_the_map_is() {
        reset();
        static COUNTS: Map<u32, u64> = Map::new("counts");
        for key in 0..3000 {
            let before = calls();
            invoke("s", || COUNTS.modify(&key, |count| *count += 1)).unwrap();
            let (reads, writes) = (calls().reads - before.reads, calls().writes - before.writes);
            assert_eq!((reads, writes), (1, 1), "{key}");
        }
        assert_eq!(calls().lists, 0);
        assert_eq!(COUNTS.keys().unwrap().len(), 3000);
        assert_eq!(calls().lists, u64::from(3000 / PAGE + 1));
        assert_eq!(COUNTS.keys_after(Some(&2998), 10).unwrap()[..2], [2999, 3]);
    }

    #[test]
    fn a_key_of_another_type_is_an_error() {
        reset();
        static NUMBERS: Map<u32, u32> = Map::new("m");
        MAP.insert("one", 1);
        let wrong = NUMBERS.keys().unwrap_err().to_string();
        assert!(
            wrong.contains(r#""one" of map "m" is not a u32"#),
            "{wrong}"
        );
    }

    #[test]
    fn the_keys_are_readable() {
        reset();
        invoke("s", || {
            MAP.insert("red/7:1", 5);
            Ok(())
        })
        .unwrap();
        assert_eq!(stored_in_session("s", "m:red/7:1").unwrap(), b"5");
    }
}
