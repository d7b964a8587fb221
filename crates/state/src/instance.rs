//! What tells a data directory from all others: a random name, made once and kept in it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::engine::Table;
use crate::record::Record;
use crate::store::{Bookkeeping, Store, StoreError};

/// Key in the system table; nodes have had it since they were first members of a cluster.
const KEY: &[u8] = b"cluster/instance";

#[derive(Serialize, Deserialize)]
struct InstanceRecord {
    instance: String,
}

impl Record for InstanceRecord {}

impl Store {
    /// The data directory's name; made now, durably, if it has none.
    ///
    /// # Errors
    /// When it cannot be read or stored.
    pub async fn instance(self: &Arc<Self>) -> Result<String, StoreError> {
        if let Some(record) = self.record::<InstanceRecord>(Table::System, KEY)? {
            return Ok(record.instance);
        }
        let instance = format!("{:032x}", fastrand::Rng::new().u128(..));
        let mut bookkeeping = Bookkeeping::default();
        let record = InstanceRecord {
            instance: instance.clone(),
        };
        bookkeeping.put(Table::System, KEY, &record);
        self.commit_durably(bookkeeping).await?;
        Ok(instance)
    }
}
