//! A store in a folder, and a real etcd.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod etcd;

use std::path::Path;
use std::sync::Arc;

use fulmar_state::{DataDir, Store, Submitters};

pub fn store(path: &Path) -> Arc<Store> {
    let data = DataDir::open(path).unwrap();
    let threads = Arc::new(Submitters::uncounted());
    Store::local(
        &data,
        Arc::new(()),
        Arc::new(|releases| releases()),
        threads,
        false,
    )
    .unwrap()
}
