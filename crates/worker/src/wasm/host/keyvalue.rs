//! `wasi:keyvalue` 0.2.0-draft: the bucket `session` is the session's own, others are shared.

use bytes::Bytes;
use fulmar_model::{Bucket as BucketName, NameError};
use fulmar_state::{StateError, Transaction};
use wasmtime::component::Resource;

use super::Host;
use crate::running::NOT_YET;
use crate::wasm::bindings::offered::wasi::keyvalue0_2_0_draft::{atomics, batch, store};

/// Keys of one page.
pub(crate) const PAGE: usize = 1000;

/// An opened bucket.
#[allow(unreachable_pub)] // The generated bindings name it.
pub struct Bucket {
    name: String,
}

/// A compare-and-swap in progress: what was there when it began.
#[allow(unreachable_pub)] // The generated bindings name it.
pub struct Cas {
    pub(crate) bucket: String,
    pub(crate) key: String,
    pub(crate) seen: Option<Bytes>,
}

/// Why a bucket or key could not be used; each draft has its own type for it.
pub(crate) enum KvError {
    NoSuchStore,
    AccessDenied,
    Other(String),
}

impl From<StateError> for KvError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::NoSession => KvError::NoSuchStore,
            StateError::ReadOnly => KvError::AccessDenied,
            other => KvError::Other(other.to_string()),
        }
    }
}

impl From<NameError> for KvError {
    fn from(error: NameError) -> Self {
        KvError::Other(error.to_string())
    }
}

/// Keys, each with its value if it has one.
pub(crate) type Pairs = Vec<(String, Option<Vec<u8>>)>;

/// A page of keys and where the next one starts.
pub(crate) struct Page {
    pub(crate) keys: Vec<String>,
    pub(crate) next: Option<String>,
}

impl Host {
    pub(crate) fn kv_open(
        &mut self,
        name: String,
    ) -> wasmtime::Result<Result<Resource<Bucket>, KvError>> {
        match BucketName::new(&name) {
            Ok(BucketName::Session)
                if self
                    .running
                    .current
                    .as_ref()
                    .is_some_and(|current| current.session.is_none()) =>
            {
                Ok(Err(KvError::NoSuchStore))
            }
            Ok(_) => Ok(Ok(self.table.push(Bucket { name })?)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    pub(crate) fn kv_name(&self, bucket: &Resource<Bucket>) -> wasmtime::Result<String> {
        Ok(self.table.get(bucket)?.name.clone())
    }

    pub(crate) fn kv<T>(
        &mut self,
        bucket: &Resource<Bucket>,
        use_state: impl FnOnce(&mut Transaction, BucketName<'_>) -> Result<T, StateError>,
    ) -> wasmtime::Result<Result<T, KvError>> {
        let name = self.kv_name(bucket)?;
        Ok(self.kv_named(&name, use_state))
    }

    pub(crate) fn kv_named<T>(
        &mut self,
        name: &str,
        use_state: impl FnOnce(&mut Transaction, BucketName<'_>) -> Result<T, StateError>,
    ) -> Result<T, KvError> {
        let used = self.running.in_bucket(BucketName::new(name)?, use_state);
        Ok(used.ok_or_else(|| KvError::Other(NOT_YET.into()))??)
    }

    /// The same with a key that may have to come from another node.
    pub(crate) async fn kv_key<T>(
        &mut self,
        bucket: &Resource<Bucket>,
        key: &str,
        use_state: impl FnOnce(&mut Transaction, BucketName<'_>, &str) -> Result<T, StateError>,
    ) -> wasmtime::Result<Result<T, KvError>> {
        let name = self.kv_name(bucket)?;
        let used = async {
            self.running.fetch(BucketName::new(&name)?, key).await?;
            self.kv_named(&name, |tx, bucket| use_state(tx, bucket, key))
        };
        Ok(used.await)
    }

    pub(crate) async fn kv_page(
        &mut self,
        bucket: &Resource<Bucket>,
        after: Option<String>,
    ) -> wasmtime::Result<Result<Page, KvError>> {
        let name = self.kv_name(bucket)?;
        let listed = async {
            let bucket = BucketName::new(&name)?;
            let keys = self.running.list(bucket, "", after.as_deref(), PAGE).await;
            let keys = keys.ok_or_else(|| KvError::Other(NOT_YET.into()))??;
            let next = (keys.len() == PAGE).then(|| keys.last().cloned()).flatten();
            Ok(Page { keys, next })
        };
        Ok(listed.await)
    }

    pub(crate) fn kv_set_many(
        &mut self,
        bucket: &Resource<Bucket>,
        pairs: Vec<(String, Vec<u8>)>,
    ) -> wasmtime::Result<Result<(), KvError>> {
        self.kv(bucket, |tx, bucket| {
            pairs
                .into_iter()
                .try_for_each(|(key, value)| tx.set(bucket, &key, value.into()))
        })
    }

    pub(crate) fn kv_delete_many(
        &mut self,
        bucket: &Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<(), KvError>> {
        self.kv(bucket, |tx, bucket| {
            keys.iter().try_for_each(|key| tx.delete(bucket, key))
        })
    }

    pub(crate) async fn kv_get_many(
        &mut self,
        bucket: &Resource<Bucket>,
        keys: Vec<String>,
    ) -> wasmtime::Result<Result<Pairs, KvError>> {
        let mut pairs = Pairs::with_capacity(keys.len());
        for key in keys {
            match self
                .kv_key(bucket, &key, |tx, bucket, key| tx.get(bucket, key))
                .await?
            {
                Ok(value) => pairs.push((key, value.map(Vec::from))),
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(pairs))
    }
}

impl From<KvError> for store::Error {
    fn from(error: KvError) -> Self {
        match error {
            KvError::NoSuchStore => store::Error::NoSuchStore,
            KvError::AccessDenied => store::Error::AccessDenied,
            KvError::Other(text) => store::Error::Other(text),
        }
    }
}

type Answer<T> = wasmtime::Result<Result<T, store::Error>>;

fn answer<T>(result: wasmtime::Result<Result<T, KvError>>) -> Answer<T> {
    Ok(result?.map_err(Into::into))
}

impl store::Host for Host {
    fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        answer(self.kv_open(identifier))
    }
}

impl store::HostBucket for Host {
    async fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        let got = self.kv_key(&bucket, &key, |tx, bucket, key| tx.get(bucket, key));
        answer(got.await.map(|got| got.map(|value| value.map(Vec::from))))
    }

    fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        answer(self.kv(&bucket, |tx, bucket| tx.set(bucket, &key, value.into())))
    }

    fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        answer(self.kv(&bucket, |tx, bucket| tx.delete(bucket, &key)))
    }

    async fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        let got = self.kv_key(&bucket, &key, |tx, bucket, key| tx.get(bucket, key));
        answer(got.await.map(|got| got.map(|value| value.is_some())))
    }

    /// The cursor is a number here, so it counts pages from the start.
    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<u64>,
    ) -> Answer<store::KeyResponse> {
        let (mut after, mut page_number) = (None, 0);
        loop {
            let page = match self.kv_page(&bucket, after).await? {
                Ok(page) => page,
                Err(error) => return Ok(Err(error.into())),
            };
            if page_number == cursor.unwrap_or(0) || page.next.is_none() {
                let keys = if page_number == cursor.unwrap_or(0) {
                    page.keys
                } else {
                    Vec::new()
                };
                let cursor = page.next.map(|_| page_number + 1);
                return Ok(Ok(store::KeyResponse { keys, cursor }));
            }
            after = page.next;
            page_number += 1;
        }
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for Host {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> Answer<u64> {
        let Ok(delta) = i64::try_from(delta) else {
            return Ok(Err(store::Error::Other(
                "the delta is outside a signed 64-bit number".into(),
            )));
        };
        let sum = self.kv_key(&bucket, &key, |tx, bucket, key| {
            tx.increment(bucket, key, delta)
        });
        let sum = sum.await?;
        Ok(sum.map_err(Into::into).and_then(|sum| {
            u64::try_from(sum)
                .map_err(|_| store::Error::Other(format!("the sum {sum} is negative")))
        }))
    }
}

impl batch::Host for Host {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let found = self.kv_get_many(&bucket, keys).await?;
        let pair = |(key, value): (String, Option<Vec<u8>>)| value.map(|value| (key, value));
        Ok(found
            .map(|found| found.into_iter().map(pair).collect())
            .map_err(Into::into))
    }

    fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<(String, Vec<u8>)>,
    ) -> Answer<()> {
        answer(self.kv_set_many(&bucket, key_values))
    }

    fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        answer(self.kv_delete_many(&bucket, keys))
    }
}
