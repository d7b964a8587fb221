//! The session's values in use, deserialized, under their keys.
//!
//! Bounded: two generations, each of at most [`MAX_ENTRIES`] and about [`MAX_BYTES`]. Values that are
//! used move to the young one; when it is full it becomes the old one, and what the old one still
//! held is let go. Values with changes that are not written yet stay.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use crate::Error;
use crate::host::{HOST, Host};
use crate::state::stored::Stored;

/// The bucket of everything cached here.
pub(crate) const SESSION: &str = "session";

/// Values of a generation. A node has a worker for each session in use, and reading a value again
/// costs microseconds: so this is not large.
const MAX_ENTRIES: usize = 512;
/// Stored bytes of the values of a generation, keys included; in memory they may take a few times as
/// much. (A single value that is larger is held while it is used in every invocation.)
const MAX_BYTES: usize = 512 << 10;
/// Changes held back; more are written before the invocation ends.
const MAX_UNWRITTEN: usize = 256;
/// What an entry takes besides key and value, in bytes, roughly.
const ENTRY_BYTES: usize = 64;

/// Does [`Stored::to_stored`] for a slot whose type is not known.
type Encode = fn(&dyn Any) -> Result<Encoded, Error>;

enum Encoded {
    Present(Vec<u8>),
    Absent,
    /// A closure is changing it.
    InUse,
}

/// A value in use; `None` when the key is known to be absent.
type Slot<T> = RefCell<Option<T>>;

#[derive(Clone)]
struct Entry {
    /// A `Slot<T>`.
    slot: Rc<dyn Any>,
    encode: Encode,
    changed: bool,
    /// Roughly, in bytes.
    weight: usize,
}

#[derive(Default)]
struct Generation {
    entries: HashMap<Rc<str>, Entry, BuildHasherDefault<KeyHasher>>,
    weight: usize,
}

#[derive(Default)]
struct Cache {
    young: Generation,
    old: Generation,
    /// Changed keys in the order of their first change.
    changed: Vec<Rc<str>>,
    /// Why changes could not be written before the end.
    failed: Option<Error>,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
    static LIMITS: Cell<(usize, usize, usize)> =
        const { Cell::new((MAX_ENTRIES, MAX_BYTES, MAX_UNWRITTEN)) };
}

/// Looks at a value: the one in the cache, or it is loaded.
pub(crate) fn read<T: Stored, R>(
    key: &str,
    look: impl FnOnce(Option<&T>) -> R,
) -> Result<R, Error> {
    let slot = slot::<T>(key)?;
    let slot = slot
        .downcast_ref::<Slot<T>>()
        .ok_or_else(|| mixed_types(key))?;
    let value = slot.try_borrow().map_err(|_| in_use(key))?;
    Ok(look(value.as_ref()))
}

/// Changes a value in place. `change` may use other state.
pub(crate) fn update<T: Stored, R>(
    key: &str,
    change: impl FnOnce(&mut Option<T>) -> R,
) -> Result<R, Error> {
    let slot = slot::<T>(key)?;
    let slot = slot
        .downcast_ref::<Slot<T>>()
        .ok_or_else(|| mixed_types(key))?;
    let mut value = slot.try_borrow_mut().map_err(|_| in_use(key))?;
    // Before it changes, so that it is not let go if `change` loads much.
    CACHE.with_borrow_mut(|cache| cache.mark(key));
    let result = change(&mut value);
    drop(value);
    bound();
    Ok(result)
}

/// Writes a value (none deletes) whatever was there: nothing is loaded. If that cannot be done, the
/// invocation fails at its end.
pub(crate) fn put<T: Stored>(key: &str, value: Option<T>) {
    CACHE.with_borrow_mut(|cache| {
        match cache.find(key) {
            None => cache.insert(key.into(), Entry::new(value, 0)),
            Some(slot) => {
                let slot = slot
                    .downcast_ref::<Slot<T>>()
                    .ok_or_else(|| mixed_types(key));
                let free = slot.and_then(|slot| slot.try_borrow_mut().map_err(|_| in_use(key)));
                match free {
                    Ok(mut slot) => *slot = value,
                    Err(error) => {
                        cache.failed.get_or_insert(error);
                    }
                }
            }
        }
        cache.mark(key);
    });
    bound();
}

/// Writes what changed, each key once, so that the node knows what the cache knows.
pub(crate) fn flush() -> Result<(), Error> {
    let changed = CACHE.with_borrow_mut(|cache| std::mem::take(&mut cache.changed));
    if changed.is_empty() {
        return Ok(());
    }
    let mut left = Vec::new();
    let mut result = Ok(());
    for key in changed {
        match result.is_ok().then(|| write(&key)) {
            Some(Ok(true)) => {}
            Some(Err(error)) => {
                result = Err(error);
                left.push(key);
            }
            Some(Ok(false)) | None => left.push(key),
        }
    }
    CACHE.with_borrow_mut(|cache| {
        cache.changed.splice(0..0, left);
        cache.grow_old();
    });
    result
}

/// Ends a successful invocation: writes what changed.
pub(crate) fn finish() -> Result<(), Error> {
    match CACHE.with_borrow_mut(|cache| cache.failed.take()) {
        Some(error) => Err(error),
        None => flush(),
    }
}

/// Forgets everything, as a fresh worker does.
pub(crate) fn clear() {
    CACHE.set(Cache::default());
}

/// Forgets one key, which somebody writes past the cache.
pub(crate) fn forget(key: &str) {
    CACHE.with_borrow_mut(|cache| {
        cache.young.remove(key);
        cache.old.remove(key);
    });
}

/// The slot of a key, loaded if need be.
fn slot<T: Stored>(key: &str) -> Result<Rc<dyn Any>, Error> {
    if let Some(slot) = CACHE.with_borrow_mut(|cache| cache.find(key)) {
        return Ok(slot);
    }
    let bytes = HOST.get(SESSION, key)?;
    let weight = bytes.as_ref().map_or(0, Vec::len);
    let value = bytes.map(|bytes| T::from_stored(&bytes)).transpose();
    let value = value.map_err(|error| {
        let expected = std::any::type_name::<T>();
        error.while_doing(format!("the state under {key:?} is not a {expected}"))
    })?;
    let entry = Entry::new(value, weight);
    let slot = entry.slot.clone();
    CACHE.with_borrow_mut(|cache| {
        // First, so that what is used now stays.
        cache.grow_old();
        cache.insert(key.into(), entry);
    });
    Ok(slot)
}

/// Writes one changed key; false: it is in use, so its time is later.
fn write(key: &Rc<str>) -> Result<bool, Error> {
    let entry = CACHE.with_borrow(|cache| cache.peek(key).cloned());
    let Some(entry) = entry.filter(|entry| entry.changed) else {
        return Ok(true);
    };
    let encoded = (entry.encode)(&*entry.slot)
        .map_err(|error| error.while_doing(format!("the state under {key:?}")))?;
    let weight = match encoded {
        Encoded::Present(bytes) => {
            HOST.set(SESSION, key, &bytes)?;
            bytes.len()
        }
        Encoded::Absent => {
            HOST.delete(SESSION, key)?;
            0
        }
        Encoded::InUse => return Ok(false),
    };
    CACHE.with_borrow_mut(|cache| cache.written(key, weight));
    Ok(true)
}

/// Writes early when many changes wait. Who changes a value learns at the end if that failed.
fn bound() {
    let (_, _, max_unwritten) = LIMITS.get();
    if CACHE.with_borrow(|cache| cache.changed.len()) < max_unwritten {
        return;
    }
    if let Err(error) = flush() {
        CACHE.with_borrow_mut(|cache| {
            cache.failed.get_or_insert(error);
        });
    }
}

#[cold]
fn mixed_types(key: &str) -> Error {
    Error::failed(format!("the state under {key:?} is used with two types"))
}

#[cold]
fn in_use(key: &str) -> Error {
    Error::failed(format!(
        "the state under {key:?} is used inside a closure that changes it; use what the closure is given"
    ))
}

impl Entry {
    fn new<T: Stored>(value: Option<T>, weight: usize) -> Self {
        Self {
            slot: Rc::new(RefCell::new(value)),
            encode: |slot| {
                let slot = slot.downcast_ref::<Slot<T>>();
                let Some(Ok(value)) = slot.map(RefCell::try_borrow) else {
                    return Ok(Encoded::InUse);
                };
                match &*value {
                    Some(value) => value.to_stored().map(Encoded::Present),
                    None => Ok(Encoded::Absent),
                }
            },
            changed: false,
            weight,
        }
    }
}

impl Generation {
    fn insert(&mut self, key: Rc<str>, entry: Entry) {
        self.weight += entry.weight + key.len() + ENTRY_BYTES;
        if let Some(before) = self.entries.insert(key.clone(), entry) {
            self.weight -= before.weight + key.len() + ENTRY_BYTES;
        }
    }

    fn remove(&mut self, key: &str) -> Option<(Rc<str>, Entry)> {
        let (key, entry) = self.entries.remove_entry(key)?;
        self.weight -= entry.weight + key.len() + ENTRY_BYTES;
        Some((key, entry))
    }
}

impl Cache {
    fn find(&mut self, key: &str) -> Option<Rc<dyn Any>> {
        if let Some(entry) = self.young.entries.get(key) {
            return Some(entry.slot.clone());
        }
        let (key, entry) = self.old.remove(key)?;
        let slot = entry.slot.clone();
        self.young.insert(key, entry);
        Some(slot)
    }

    fn peek(&self, key: &str) -> Option<&Entry> {
        self.young
            .entries
            .get(key)
            .or_else(|| self.old.entries.get(key))
    }

    /// Takes in a key that is not held.
    fn insert(&mut self, key: Rc<str>, entry: Entry) {
        debug_assert!(self.peek(&key).is_none(), "{key} is held already");
        self.young.insert(key, entry);
    }

    /// Marks a key as changed, which was found or inserted just before.
    fn mark(&mut self, key: &str) {
        let Some((key, _)) = self.young.entries.get_key_value(key) else {
            return;
        };
        let key = key.clone();
        if let Some(entry) = self.young.entries.get_mut(&key)
            && !std::mem::replace(&mut entry.changed, true)
        {
            self.changed.push(key);
        }
    }

    fn written(&mut self, key: &str, weight: usize) {
        for generation in [&mut self.young, &mut self.old] {
            if let Some(entry) = generation.entries.get_mut(key) {
                generation.weight = generation.weight - entry.weight + weight;
                entry.weight = weight;
                entry.changed = false;
            }
        }
    }

    fn grow_old(&mut self) {
        let (max_entries, max_bytes, _) = LIMITS.get();
        if self.young.entries.len() <= max_entries && self.young.weight <= max_bytes {
            return;
        }
        let gone = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        for (key, entry) in gone.entries {
            if entry.changed {
                self.young.insert(key, entry);
            }
        }
    }
}

/// FNV-1a, eight bytes at a time. There are few keys at a time, so nobody gains by colliding; and a
/// random seed would cost a fresh worker a call.
struct KeyHasher(u64);

impl Default for KeyHasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl KeyHasher {
    fn add(&mut self, word: u64) {
        self.0 = (self.0 ^ word)
            .wrapping_mul(0x0000_0100_0000_01b3)
            .rotate_left(23);
    }
}

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in words.by_ref() {
            self.add(word.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)));
        }
        let rest = words.remainder();
        self.add(rest.iter().fold(1, |sum, byte| sum << 8 | u64::from(*byte)));
    }

    fn write_u8(&mut self, byte: u8) {
        self.add(u64::from(byte));
    }

    fn finish(&self) -> u64 {
        // The table uses the top seven bits and the lowest ones.
        self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (self.0 >> 29)
    }
}

#[cfg(test)]
pub(crate) fn with_limits<R>(limits: (usize, usize, usize), test: impl FnOnce() -> R) -> R {
    let before = LIMITS.replace(limits);
    let result = test();
    LIMITS.set(before);
    result
}

/// How many values are held.
#[cfg(test)]
pub(crate) fn held() -> usize {
    CACHE.with_borrow(|cache| cache.young.entries.len() + cache.old.entries.len())
}
