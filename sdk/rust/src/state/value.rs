//! One value.

use std::marker::PhantomData;

use crate::Error;
use crate::state::stored::Stored;
use crate::state::{cache, name};

/// A value of the session, stored under its name, as JSON unless its type says otherwise ([`Stored`]).
///
/// ```
/// static LIMIT: fulmar::Value<f64> = fulmar::Value::new("limit");
/// # fn main() -> Result<(), fulmar::Error> {
/// LIMIT.set(2.5);
/// assert_eq!(LIMIT.get()?, Some(2.5));
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Value<T> {
    name: &'static str,
    _type: PhantomData<fn() -> T>,
}

impl<T: Stored> Value<T> {
    /// The value of this name: 1 to 200 bytes without `:`, `/` and control characters.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name: name::checked(name),
            _type: PhantomData,
        }
    }

    /// A copy of it, if it is there.
    pub fn get(&self) -> Result<Option<T>, Error>
    where
        T: Clone,
    {
        self.with(|value| value.cloned())
    }

    /// Looks at it in place.
    pub fn with<R>(&self, look: impl FnOnce(Option<&T>) -> R) -> Result<R, Error> {
        cache::read(self.name, look)
    }

    /// Changes it in place; `None` is absent. Written once, when the invocation succeeds.
    pub fn update<R>(&self, change: impl FnOnce(&mut Option<T>) -> R) -> Result<R, Error> {
        cache::update(self.name, change)
    }

    /// Changes it in place, from its type's default if it is absent.
    pub fn modify<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, Error>
    where
        T: Default,
    {
        self.update(|value| change(value.get_or_insert_default()))
    }

    /// Sets it.
    pub fn set(&self, value: T) {
        cache::put(self.name, Some(value));
    }

    /// Removes it.
    pub fn remove(&self) {
        cache::put::<T>(self.name, None);
    }

    /// Removes and returns it.
    pub fn take(&self) -> Result<Option<T>, Error> {
        self.update(Option::take)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Counter;
    use crate::testing::{drop_worker, invoke, reset, stored_in_session};

    static NAMES: Value<Vec<String>> = Value::new("names");
    static COUNT: Counter = Counter::new("count");

    #[test]
    fn a_value_outlives_its_worker_as_json() {
        reset();
        invoke("s", || NAMES.modify(|names| names.push("a".into()))).unwrap();
        drop_worker();
        invoke("s", || NAMES.modify(|names| names.push("b".into()))).unwrap();
        assert_eq!(stored_in_session("s", "names").unwrap(), br#"["a","b"]"#);
        assert_eq!(invoke("s", || NAMES.take()).unwrap().unwrap().len(), 2);
        assert_eq!(stored_in_session("s", "names"), None);
        assert_eq!(invoke("s", || NAMES.get()), Ok(None));
    }

    #[test]
    fn a_closure_may_use_other_state() {
        reset();
        let count = invoke("s", || {
            NAMES.modify(|names| {
                names.push("a".into());
                COUNT.add(1)
            })?
        });
        assert_eq!(count, Ok(1));
    }

    #[test]
    fn a_closure_that_uses_its_own_state_is_told_so() {
        reset();
        let nested = invoke("s", || NAMES.modify(|_| NAMES.get())?);
        assert!(nested.unwrap_err().to_string().contains("inside a closure"));
        let nested = invoke("s", || NAMES.modify(|_| NAMES.set(vec![])));
        assert!(nested.unwrap_err().to_string().contains("inside a closure"));
        let looking = invoke("s", || NAMES.with(|_| NAMES.get())?);
        assert_eq!(looking, Ok(None));
    }

    #[test]
    fn one_key_has_one_type() {
        reset();
        static OTHER: Value<u8> = Value::new("names");
        let both = invoke("s", || {
            NAMES.set(vec![]);
            OTHER.get()
        });
        assert!(both.unwrap_err().to_string().contains("two types"));
        invoke("s", || {
            NAMES.set(vec![]);
            Ok(())
        })
        .unwrap();
        drop_worker();
        let wrong = invoke("s", || OTHER.get()).unwrap_err().to_string();
        assert!(wrong.contains(r#""names" is not a u8"#), "{wrong}");
    }
}
