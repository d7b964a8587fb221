//! `wasi:keyvalue` 0.2.0-draft2: signed counters, compare-and-swap, cursors that are keys.

use wasmtime::component::Resource;

use super::Host;
use super::keyvalue::{Bucket, Cas, KvError};
use crate::wasm::bindings::offered::wasi::keyvalue0_2_0_draft2::{atomics, batch, store};

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

    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<String>,
    ) -> Answer<store::KeyResponse> {
        let page = self.kv_page(&bucket, cursor).await?;
        Ok(page
            .map(|page| store::KeyResponse {
                keys: page.keys,
                cursor: page.next,
            })
            .map_err(Into::into))
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
        delta: i64,
    ) -> Answer<i64> {
        let sum = self.kv_key(&bucket, &key, |tx, bucket, key| {
            tx.increment(bucket, key, delta)
        });
        answer(sum.await)
    }

    fn swap(
        &mut self,
        cas: Resource<Cas>,
        value: Vec<u8>,
    ) -> wasmtime::Result<Result<(), atomics::CasError>> {
        let Cas { bucket, key, seen } = self.table.delete(cas)?;
        let swapped = self.kv_named(&bucket, |tx, bucket| {
            tx.compare_and_swap(bucket, &key, seen.as_deref(), Some(value.into()))
        });
        match swapped {
            Ok(true) => Ok(Ok(())),
            Ok(false) => {
                // A fresh handle that has seen what is there now.
                match self.kv_named(&bucket, |tx, bucket| tx.get(bucket, &key)) {
                    Ok(seen) => {
                        let cas = self.table.push(Cas { bucket, key, seen })?;
                        Ok(Err(atomics::CasError::CasFailed(cas)))
                    }
                    Err(error) => Ok(Err(atomics::CasError::StoreError(error.into()))),
                }
            }
            Err(error) => Ok(Err(atomics::CasError::StoreError(error.into()))),
        }
    }
}

impl atomics::HostCas for Host {
    async fn new(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Resource<Cas>> {
        let name = self.kv_name(&bucket)?;
        let got = self.kv_key(&bucket, &key, |tx, bucket, key| tx.get(bucket, key));
        match got.await? {
            Ok(seen) => Ok(Ok(self.table.push(Cas {
                bucket: name,
                key,
                seen,
            })?)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    fn current(&mut self, cas: Resource<Cas>) -> Answer<Option<Vec<u8>>> {
        Ok(Ok(self.table.get(&cas)?.seen.clone().map(Vec::from)))
    }

    fn drop(&mut self, cas: Resource<Cas>) -> wasmtime::Result<()> {
        self.table.delete(cas)?;
        Ok(())
    }
}

impl batch::Host for Host {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Answer<Vec<(String, Option<Vec<u8>>)>> {
        answer(self.kv_get_many(&bucket, keys).await)
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
