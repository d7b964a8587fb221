//! What the store tells whoever counts and times (the node's metrics).

use std::time::Duration;

/// Hears of each batch that the group commit wrote.
pub trait CommitObserver: Send + Sync {
    /// A batch of `commits` commits and `bytes` bytes was written (and synced, if `synced`) in `took`.
    fn batch_written(&self, commits: usize, bytes: usize, synced: bool, took: Duration);
}

/// Hears nothing.
impl CommitObserver for () {
    fn batch_written(&self, _: usize, _: usize, _: bool, _: Duration) {}
}
