//! One value.

use std::marker::PhantomData;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Error;
use crate::state::cache;
use crate::state::host::Node;

/// A value of the session, stored as JSON under its name.
#[derive(Debug, Clone, Copy)]
pub struct Value<T> {
    name: &'static str,
    _type: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned + 'static> Value<T> {
    /// The value of this name.
    pub const fn new(name: &'static str) -> Self {
        Self { name, _type: PhantomData }
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
        cache::read(&Node, self.name, &cache::json(), look)
    }

    /// Changes it in place; `None` is absent. Written once, when the invocation succeeds.
    pub fn update<R>(&self, change: impl FnOnce(&mut Option<T>) -> R) -> Result<R, Error> {
        cache::update(&Node, self.name, &cache::json(), change)
    }

    /// Sets it.
    pub fn set(&self, value: T) {
        cache::put(self.name, &cache::json(), Some(value));
    }

    /// Removes it.
    pub fn remove(&self) {
        cache::put::<T>(self.name, &cache::json(), None);
    }
}
