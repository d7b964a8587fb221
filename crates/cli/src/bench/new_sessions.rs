//! Latency of the first request of a new session against that of the next one, in turn on one
//! connection, so that both see the same machine.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::ensure;
use hdrhistogram::Histogram;

use super::connection::Connection;
use super::load::{MAX_MICROS, on_one_thread};
use super::request::{Template, run_id};

/// Latencies in microseconds.
#[derive(Debug)]
pub(super) struct Latencies {
    pub(super) first: Histogram<u64>,
    pub(super) next: Histogram<u64>,
}

/// Makes so many sessions, each with two requests.
pub(super) fn measure(
    address: SocketAddr,
    template: &Template,
    sessions: u64,
) -> anyhow::Result<Latencies> {
    ensure!(
        template.has_sessions(),
        "the path has no {{k}}: every request would go to the same session"
    );
    on_one_thread(async {
        let run = run_id();
        let mut connection = Connection::open(address).await?;
        let mut request = Vec::new();
        let mut latencies = Latencies {
            first: Histogram::new_with_bounds(1, MAX_MICROS, 3)?,
            next: Histogram::new_with_bounds(1, MAX_MICROS, 3)?,
        };
        for session in 0..sessions {
            template.write(&mut request, format_args!("{run:x}-{session}"), None);
            for histogram in [&mut latencies.first, &mut latencies.next] {
                let sent = Instant::now();
                let status = connection.exchange(&request).await?;
                let micros = u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
                ensure!(
                    (200..300).contains(&status),
                    "status {status}: {}",
                    String::from_utf8_lossy(connection.body())
                );
                histogram.saturating_record(micros);
            }
        }
        Ok(latencies)
    })?
}
