//! Emulated links, for demonstrations and tests on one machine: connections to peers that are slow, narrow,
//! lossy or cut, without the system's help.
//!
//! The node that makes a connection shapes both its directions. Bytes are held back until they would have
//! arrived; what is lost comes late, as TCP would send it again; what is cut waits until the link is back.

mod alarm;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fulmar_model::NodeName;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// Bytes that are read at once: a large segment.
const SEGMENT: usize = 16 << 10;
/// Segments on their way in one direction.
const SEGMENTS: usize = 4096;
/// Bytes between a connection's user and the link.
const PIPE: usize = 64 << 10;
/// What a loss adds: the shortest time after which TCP sends again.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// How a link to a peer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// Time of a byte in one direction, in milliseconds.
    pub latency_ms: f64,
    /// Bytes a second in each direction; 0: as many as come.
    pub bytes_per_second: f64,
    /// Part of the segments that are lost and sent again, 0 to 1.
    pub loss: f64,
    /// Whether nothing gets there.
    pub cut_out: bool,
    /// Whether nothing comes from there.
    pub cut_in: bool,
}

impl Link {
    /// # Errors
    /// What of it makes no sense.
    pub fn check(&self) -> Result<(), String> {
        let is_amount = |value: f64| value.is_finite() && value >= 0.0;
        if !is_amount(self.latency_ms) || !is_amount(self.bytes_per_second) {
            return Err("latency_ms and bytes_per_second have to be 0 or more".into());
        }
        match (0.0..1.0).contains(&self.loss) {
            true => Ok(()),
            false => Err(format!(
                "loss is {}; it has to be from 0 to below 1",
                self.loss
            )),
        }
    }
}

/// The links to all peers, which may change at any time.
#[derive(Default)]
pub struct Links(Mutex<HashMap<NodeName, Way>>);

/// A link, and what has gone over it.
struct Way {
    link: watch::Sender<Link>,
    carried: Arc<Carried>,
}

#[derive(Default)]
struct Carried {
    bytes_out: AtomicU64,
    bytes_in: AtomicU64,
}

impl Way {
    fn new() -> Self {
        Self {
            link: watch::Sender::new(Link::default()),
            carried: Arc::default(),
        }
    }
}

/// How a link is, and how many bytes have gone over it since the node started, by connections that this node made.
#[derive(Debug, Clone, Serialize)]
pub struct Usage {
    /// The other end.
    pub to: NodeName,
    /// How it is.
    pub link: Link,
    /// Bytes to there.
    pub bytes_out: u64,
    /// Bytes from there.
    pub bytes_in: u64,
}

impl Links {
    /// Changes the link to a peer, for the connections that there are as well.
    pub fn set(&self, peer: &NodeName, link: Link) {
        let mut links = self.0.lock();
        let way = links.entry(peer.clone()).or_insert_with(Way::new);
        way.link.send_replace(link);
    }

    /// All links that were ever set or used.
    pub fn all(&self) -> Vec<Usage> {
        let links = self.0.lock();
        let usage = |(to, way): (&NodeName, &Way)| Usage {
            to: to.clone(),
            link: *way.link.borrow(),
            bytes_out: way.carried.bytes_out.load(Ordering::Relaxed),
            bytes_in: way.carried.bytes_in.load(Ordering::Relaxed),
        };
        links.iter().map(usage).collect()
    }

    fn to(&self, peer: &NodeName) -> (watch::Receiver<Link>, Arc<Carried>) {
        let mut links = self.0.lock();
        let way = links.entry(peer.clone()).or_insert_with(Way::new);
        (way.link.subscribe(), way.carried.clone())
    }

    /// Waits for as long as so many bytes are on their way to something that is reached by other means than a
    /// connection of [`Links::shape`], and counts them.
    pub async fn there(&self, to: &NodeName, bytes: usize) {
        let (link, carried) = self.to(to);
        carried.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
        travel(link, bytes, |link| link.cut_out).await;
    }

    /// The same for bytes from there.
    pub async fn back(&self, from: &NodeName, bytes: usize) {
        let (link, carried) = self.to(from);
        carried.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
        travel(link, bytes, |link| link.cut_in).await;
    }

    /// A connection to a peer by way of its link.
    pub(crate) fn shape<S>(self: &Arc<Self>, peer: &NodeName, stream: S) -> DuplexStream
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (user, link_end) = tokio::io::duplex(PIPE);
        let (from_user, to_user) = tokio::io::split(link_end);
        let (from_peer, to_peer) = tokio::io::split(stream);
        let (link, carried) = self.to(peer);
        let out = {
            let carried = carried.clone();
            move |bytes| _ = carried.bytes_out.fetch_add(bytes, Ordering::Relaxed)
        };
        let back = move |bytes| _ = carried.bytes_in.fetch_add(bytes, Ordering::Relaxed);
        let (there, here) = (link.clone(), link);
        tokio::spawn(direction(
            from_user,
            to_peer,
            there,
            |link| link.cut_out,
            out,
        ));
        tokio::spawn(direction(
            from_peer,
            to_user,
            here,
            |link| link.cut_in,
            back,
        ));
        user
    }
}

/// Carries bytes in one direction, until one of its ends is gone.
async fn direction(
    mut from: impl AsyncRead + Unpin + Send + 'static,
    mut to: impl AsyncWrite + Unpin,
    mut link: watch::Receiver<Link>,
    is_cut: impl Fn(&Link) -> bool,
    count: impl Fn(u64) + Send + 'static,
) {
    let (send, mut arriving) = mpsc::channel::<(Instant, Bytes)>(SEGMENTS);
    let shape = link.clone();
    let reading = tokio::spawn(async move {
        let mut last = Instant::now();
        let mut segment = vec![0; SEGMENT];
        while let Ok(read @ 1..) = from.read(&mut segment).await {
            let arrives = arrival(&shape.borrow(), read, &mut last);
            let bytes = Bytes::copy_from_slice(&segment[..read]);
            count(read as u64);
            if send.send((arrives, bytes)).await.is_err() {
                return;
            }
        }
    });
    let carried: io::Result<()> = async {
        while let Some((arrives, bytes)) = arriving.recv().await {
            alarm::at(arrives.into_std()).await;
            if link.wait_for(|link| !is_cut(link)).await.is_err() {
                break;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    }
    .await;
    if carried.is_err() {
        reading.abort();
    }
}

/// Waits for as long as bytes are on their way that nothing is before.
async fn travel(mut link: watch::Receiver<Link>, bytes: usize, is_cut: impl Fn(&Link) -> bool) {
    let arrives = arrival(&link.borrow_and_update(), bytes, &mut Instant::now());
    alarm::at(arrives.into_std()).await;
    // Whoever changes links is there as long as the node.
    let _ = link.wait_for(|link| !is_cut(link)).await;
}

/// When a segment arrives that is sent now, after those before it.
fn arrival(link: &Link, bytes: usize, last_sent: &mut Instant) -> Instant {
    let now = Instant::now();
    let sending = match link.bytes_per_second {
        0.0 => Duration::ZERO,
        rate => Duration::from_secs_f64(bytes as f64 / rate),
    };
    let sent = now.max(*last_sent) + sending;
    *last_sent = sent;
    let mut arrives = sent + Duration::from_secs_f64(link.latency_ms / 1000.0);
    if link.loss > 0.0 && fastrand::f64() < link.loss {
        arrives += RETRANSMISSION;
    }
    arrives
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> NodeName {
        NodeName::new("n2").unwrap()
    }

    /// A peer that sends everything back, over a link.
    fn echo(links: &Arc<Links>) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(far);
            tokio::io::copy(&mut read, &mut write).await
        });
        links.shape(&peer(), near)
    }

    async fn round_trip(stream: &mut DuplexStream, bytes: usize) -> Duration {
        let started = Instant::now();
        let mut back = vec![0; bytes];
        let (mut read, mut write) = tokio::io::split(stream);
        let sent = vec![7; bytes];
        let (sent, received) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
        sent.unwrap();
        received.unwrap();
        assert!(back.iter().all(|byte| *byte == 7));
        started.elapsed()
    }

    #[tokio::test]
    async fn links_are_slow_narrow_and_whole() {
        let links = Arc::new(Links::default());
        links.set(
            &peer(),
            Link {
                latency_ms: 10.0,
                ..Link::default()
            },
        );
        let mut stream = echo(&links);
        assert!(round_trip(&mut stream, 1).await >= Duration::from_millis(20));
        // One megabyte at ten megabytes a second, there and back at the same time.
        let narrow = Link {
            bytes_per_second: 1e7,
            ..Link::default()
        };
        links.set(&peer(), narrow);
        assert!(round_trip(&mut stream, 1_000_000).await >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn what_is_cut_waits_until_the_link_is_back() {
        let links = Arc::new(Links::default());
        for (cut_out, cut_in) in [(true, false), (false, true)] {
            let cut = Link {
                cut_out,
                cut_in,
                ..Link::default()
            };
            links.set(&peer(), cut);
            let mut stream = echo(&links);
            let waits = tokio::time::timeout(Duration::from_millis(20), round_trip(&mut stream, 9));
            assert!(waits.await.is_err());
            links.set(&peer(), Link::default());
            let mut back = [0; 9];
            stream.read_exact(&mut back).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_ends_on_both_sides() {
        let links = Arc::new(Links::default());
        let (near, mut far) = tokio::io::duplex(PIPE);
        let mut user = links.shape(&peer(), near);
        user.write_all(b"last").await.unwrap();
        user.shutdown().await.unwrap();
        let mut seen = Vec::new();
        far.read_to_end(&mut seen).await.unwrap();
        assert_eq!(seen, b"last");
    }

    #[test]
    fn links_that_make_no_sense_are_refused() {
        assert!(Link::default().check().is_ok());
        for bad in [
            Link {
                latency_ms: -1.0,
                ..Link::default()
            },
            Link {
                bytes_per_second: f64::NAN,
                ..Link::default()
            },
            Link {
                loss: 1.0,
                ..Link::default()
            },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
