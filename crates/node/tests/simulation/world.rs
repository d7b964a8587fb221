//! What simulated nodes run on: a network, disks that lose what was not synced, and an object store that has lost its
//! listing, is slow, away, or does what it was asked without saying so.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fulmar_cluster::network::{Duplex, SimulatedListener, SimulatedNetwork};
use fulmar_state::Table;
use fulmar_state::engine::{Engine, EngineError, Visit, Write};
use fulmar_state::memory_engine::MemoryEngine;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use turmoil::net::{TcpListener, TcpStream};

use crate::time;

/// The simulated network.
pub(crate) struct Wires;

struct Ear(TcpListener);

impl SimulatedNetwork for Wires {
    fn listen(
        &self,
        address: SocketAddr,
    ) -> BoxFuture<'static, io::Result<Box<dyn SimulatedListener>>> {
        Box::pin(async move {
            let listener = TcpListener::bind(address).await?;
            Ok(Box::new(Ear(listener)) as Box<dyn SimulatedListener>)
        })
    }

    fn connect(&self, address: &str) -> BoxFuture<'static, io::Result<Box<dyn Duplex>>> {
        let address = address.to_owned();
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

impl SimulatedListener for Ear {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(Box<dyn Duplex>, SocketAddr)>> {
        Box::pin(async {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as Box<dyn Duplex>, from))
        })
    }
}

/// What a key was before.
type Before = (Table, Vec<u8>, Option<Bytes>);

/// A disk that remembers what it has not synced.
#[derive(Default)]
pub(crate) struct Disk {
    content: MemoryEngine,
    unsynced: Mutex<Vec<Before>>,
}

impl Disk {
    /// The power is gone: what was not synced is lost.
    pub(crate) fn lose_unsynced(&self) {
        for (table, key, value) in self.unsynced.lock().drain(..).rev() {
            let write = Write {
                table,
                key: &key,
                value: value.as_deref(),
            };
            self.content.write(&[write], true).unwrap();
        }
    }
}

impl Engine for Disk {
    fn get(&self, table: Table, key: &[u8]) -> std::result::Result<Option<Bytes>, EngineError> {
        self.content.get(table, key)
    }

    fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        after: Option<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> std::result::Result<(), EngineError> {
        self.content.scan(table, prefix, after, visit)
    }

    fn write(&self, writes: &[Write<'_>], sync: bool) -> std::result::Result<(), EngineError> {
        if sync {
            self.content.write(writes, true)?;
            return self.sync();
        }
        let mut unsynced = self.unsynced.lock();
        for write in writes {
            let before = self.content.get(write.table, write.key)?;
            unsynced.push((write.table, write.key.to_vec(), before));
        }
        self.content.write(writes, false)
    }

    fn sync(&self) -> std::result::Result<(), EngineError> {
        self.unsynced.lock().clear();
        self.content.sync()
    }

    fn approximate_len(&self, table: Table) -> usize {
        self.content.approximate_len(table)
    }
}

/// A time between two, in microseconds, and now and then a hundred times as long.
pub(crate) fn while_it_takes(us: Range<u64>) -> Duration {
    let took = Duration::from_micros(fastrand::u64(us));
    match fastrand::u32(..SLOW) {
        0 => took * 100,
        _ => took,
    }
}

/// One in so many writes and requests is slow.
const SLOW: u32 = 200;
/// One in so many requests takes effect without an answer.
const LOST: u32 = 200;

/// Until when a node is asleep, in nanoseconds since the simulation began.
#[derive(Debug, Default)]
pub(crate) struct Asleep(AtomicU64);

impl Asleep {
    pub(crate) fn until(&self, moment: Duration) {
        self.0.store(moment.as_nanos() as u64, Ordering::Relaxed);
    }

    /// What is left of it.
    pub(crate) fn left(&self) -> Duration {
        let until = Duration::from_nanos(self.0.load(Ordering::Relaxed));
        until.saturating_sub(time::elapsed())
    }
}

/// The object store, as one node sees it.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) content: Arc<InMemory>,
    /// Whether the node reaches it.
    pub(crate) is_there: Arc<AtomicBool>,
    pub(crate) asleep: Arc<Asleep>,
}

impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a simulated bucket")
    }
}

impl Bucket {
    /// There, or back.
    async fn way(&self) -> Result<()> {
        tokio::time::sleep(self.asleep.left() + while_it_takes(1000..8000)).await;
        if self.is_there.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(object_store::Error::Generic {
            store: "simulated",
            source: "it is not there".into(),
        })
    }

    async fn way_back<T>(&self, result: Result<T>) -> Result<T> {
        self.way().await?;
        if fastrand::u32(..LOST) == 0 {
            return Err(object_store::Error::Generic {
                store: "simulated",
                source: "the answer was lost".into(),
            });
        }
        result
    }
}

#[async_trait]
impl ObjectStore for Bucket {
    async fn put_opts(&self, at: &Path, what: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.way().await?;
        let put = self.content.put_opts(at, what, how).await;
        self.way_back(put).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.content.put_multipart_opts(at, how).await
    }

    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        self.way().await?;
        let got = self.content.get_opts(at, how).await;
        self.way_back(got).await
    }

    fn delete_stream(
        &self,
        which: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.content.delete_stream(which)
    }

    /// It has lost its listing: whatever is there has to be found by its name.
    fn list(&self, _: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        futures_util::stream::empty().boxed()
    }

    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.content.list_with_delimiter(below).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.content.copy_opts(from, to, how).await
    }
}
