//! What a node does when another calls it; implemented above, where functions are known.

use bytes::Bytes;
use fulmar_model::{Epoch, NodeName, Problem};

use crate::registry::Revision;

/// The answer to a forwarded request.
#[derive(Debug)]
pub struct Forwarded {
    /// What the client gets.
    pub response: http::Response<Bytes>,
    /// Set when the session is elsewhere: where, under which epoch. Then nothing ran.
    pub moved: Option<(NodeName, Epoch)>,
}

/// What a node does when another calls it.
#[tonic::async_trait]
pub trait Handler: Send + Sync + 'static {
    /// Answers a client's request that another node took.
    async fn forward(&self, from: &NodeName, request: http::Request<Bytes>) -> Forwarded;

    /// A component by its digest, if it is here.
    async fn artifact(&self, digest: &str) -> Option<Bytes>;

    /// Waits until what the registry said up to a revision is in effect here.
    ///
    /// # Errors
    /// What cannot be put into effect.
    async fn catch_up(&self, revision: Revision) -> Result<(), Problem>;
}
