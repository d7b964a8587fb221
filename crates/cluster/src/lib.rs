//! Many nodes: who they are, who is home to what, and how they speak with each other.
//!
//! Three things with three different promises. The [`registry`] (embedded, or etcd) is the source of
//! truth for what is proportional to nodes and functions: it compares and swaps, and its revisions
//! are the root of all epochs. The [`directory`] says who is home to a session; its records are in the
//! local data stores of the shards' owners. [`peers`] carries calls, each with a deadline.
//!
//! Imports `state` and `model`. Knows nothing of functions, workers or HTTP clients: what a node does
//! when it is called comes in as a [`Handler`].

mod calls;
pub mod clock;
pub mod config;
mod custody;
pub mod directory;
mod gossip;
mod handler;
pub mod hints;
pub mod identity;
pub mod join;
mod lending;
pub mod links;
mod membership;
pub mod network;
pub mod peers;
pub mod registry;
mod serve;
pub mod transport;
mod tunnel;
pub mod view;
pub mod wire;

pub use config::{Automatic, ConfigError, NodeConfig};
pub use custody::{Custody, LogRecord, TakeoverRecord};
pub use directory::{DirectoryError, Home};
pub use handler::{
    Delivered, Delivery, Entries, Forwarded, Handler, Lent, Measured, NotHere, Returned, Settled,
    StageEntry, StageHead,
};
pub use join::{Cluster, JoinError};
pub use network::Network;
pub use peers::{Copying, PeerError};
pub use serve::Ending;
