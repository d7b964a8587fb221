//! Shared keys among nodes: each is a placement group of its own, somewhere, and is asked for before it is used.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;

use crate::commit::Ticket;
use crate::transaction::StateError;

/// What was found of a shared key.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// Its value; none: it is absent.
    pub value: Option<Bytes>,
    /// The commit of this node that wrote it; 0 if it is durable.
    pub saw: Ticket,
}

/// Some keys of a shared bucket.
#[derive(Debug, Clone, Copy)]
pub struct KeyRange<'a> {
    /// The bucket, by its name among those of all namespaces.
    pub bucket: &'a str,
    /// How they start.
    pub prefix: &'a str,
    /// After which key they come, in byte order.
    pub after: Option<&'a str>,
    /// How many at most.
    pub limit: usize,
}

/// An answer that may have to come from another node.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T, StateError>> + Send>>;

/// Reads shared keys that are placed among nodes.
pub trait PlacedKeys: Send + Sync {
    /// The value of a key, of a bucket by its name among those of all namespaces.
    fn read(&self, bucket: &str, key: &str) -> Answer<Found>;

    /// The keys of a range in byte order, wherever they are at home.
    fn list(&self, range: KeyRange<'_>) -> Answer<Vec<String>>;
}
