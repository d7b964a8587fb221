//! The session's values in use, deserialized, under their keys.

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;

use crate::Error;
use crate::state::host::Host;

/// The bucket of everything cached here.
pub(crate) const SESSION: &str = "session";
/// Values held between invocations; beyond it those that are written are let go.
const MAX_HELD: usize = 1024;

type Encode = fn(&dyn Any) -> Result<Vec<u8>, Error>;

struct Held {
    /// None: absent, or deleted.
    value: Option<Box<dyn Any>>,
    encode: Encode,
    changed: bool,
}

#[derive(Default)]
struct Cache {
    held: HashMap<String, Held>,
    /// Changed keys in the order of their first change.
    changed: Vec<String>,
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
}

/// How a type is stored.
pub(crate) struct Codec<T> {
    pub(crate) decode: fn(&[u8]) -> Result<T, Error>,
    pub(crate) encode: Encode,
}

/// Stored as JSON.
pub(crate) fn json<T: serde::Serialize + serde::de::DeserializeOwned + 'static>() -> Codec<T> {
    Codec {
        decode: |bytes| Ok(serde_json::from_slice(bytes)?),
        encode: |value| match value.downcast_ref::<T>() {
            Some(value) => Ok(serde_json::to_vec(value)?),
            None => Err(mixed_types()),
        },
    }
}

fn mixed_types() -> Error {
    Error::failed("one key is used with two types")
}

/// Reads a value: from the cache, or loaded.
pub(crate) fn read<T: 'static, R>(
    host: &impl Host,
    key: &str,
    codec: &Codec<T>,
    use_value: impl FnOnce(Option<&T>) -> R,
) -> Result<R, Error> {
    load(host, key, codec)?;
    CACHE.with_borrow(|cache| match cache.held.get(key).and_then(|held| held.value.as_ref()) {
        None => Ok(use_value(None)),
        Some(value) => Ok(use_value(Some(value.downcast_ref::<T>().ok_or_else(mixed_types)?))),
    })
}

/// Changes a value in place.
pub(crate) fn update<T: 'static, R>(
    host: &impl Host,
    key: &str,
    codec: &Codec<T>,
    change: impl FnOnce(&mut Option<T>) -> R,
) -> Result<R, Error> {
    load(host, key, codec)?;
    CACHE.with_borrow_mut(|cache| {
        let held = cache.held.get_mut(key).ok_or_else(|| Error::failed("the value was loaded and is gone"))?;
        let mut value = match held.value.take() {
            None => None,
            Some(value) => Some(*value.downcast::<T>().map_err(|_| mixed_types())?),
        };
        let result = change(&mut value);
        held.value = value.map(|value| Box::new(value) as Box<dyn Any>);
        if !std::mem::replace(&mut held.changed, true) {
            cache.changed.push(key.to_owned());
        }
        Ok(result)
    })
}

/// Writes a value (none deletes) whatever was there: nothing is loaded.
pub(crate) fn put<T: 'static>(key: &str, codec: &Codec<T>, value: Option<T>) {
    CACHE.with_borrow_mut(|cache| {
        let value = value.map(|value| Box::new(value) as Box<dyn Any>);
        let held = Held { value, encode: codec.encode, changed: true };
        let before = cache.held.insert(key.to_owned(), held);
        if !before.is_some_and(|before| before.changed) {
            cache.changed.push(key.to_owned());
        }
    });
}

fn load<T: 'static>(host: &impl Host, key: &str, codec: &Codec<T>) -> Result<(), Error> {
    if CACHE.with_borrow(|cache| cache.held.contains_key(key)) {
        return Ok(());
    }
    let value = host.get(SESSION, key)?.map(|bytes| (codec.decode)(&bytes)).transpose()?;
    let value = value.map(|value| Box::new(value) as Box<dyn Any>);
    CACHE.with_borrow_mut(|cache| {
        if cache.held.len() >= MAX_HELD {
            cache.held.retain(|_, held| held.changed);
        }
        cache.held.insert(key.to_owned(), Held { value, encode: codec.encode, changed: false });
    });
    Ok(())
}

/// Keys changed and not written yet, with whether they are present.
pub(crate) fn unwritten(prefix: &str) -> Vec<(String, bool)> {
    CACHE.with_borrow(|cache| {
        let of_prefix = cache.changed.iter().filter(|key| key.starts_with(prefix));
        of_prefix.map(|key| (key.clone(), cache.held.get(key).is_some_and(|held| held.value.is_some()))).collect()
    })
}

/// Writes what changed, each key once.
pub(crate) fn flush(host: &impl Host) -> Result<(), Error> {
    CACHE.with_borrow_mut(|cache| {
        for key in std::mem::take(&mut cache.changed) {
            let Some(held) = cache.held.get_mut(&key) else { continue };
            held.changed = false;
            match &held.value {
                Some(value) => host.set(SESSION, &key, &(held.encode)(&**value)?)?,
                None => host.delete(SESSION, &key)?,
            }
        }
        if cache.held.len() > MAX_HELD {
            cache.held.clear();
        }
        Ok(())
    })
}

/// Forgets everything, as a fresh worker does.
pub(crate) fn clear() {
    CACHE.with_borrow_mut(|cache| *cache = Cache::default());
}
