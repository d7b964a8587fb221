//! Housekeeping: memory of hot sessions, idle workers, expired records, room on the disk.
//!
//! One task that wakes a few times a second, and at once when much was loaded.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fulmar_state::record::{IdempotencyRecord, InvocationRecord, Record};
use fulmar_state::{Bookkeeping, Table};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::core::Core;

/// Pause between two sweeps.
const SWEEP: Duration = Duration::from_millis(500);
/// Sweeps after which an idle session is let go even if there is memory for it.
const IDLE_SWEEPS: u32 = 2 * 600;
/// Sweeps after which the queue of an idempotency key is let go.
const IDLE_KEY_SWEEPS: u32 = 2;
/// Pause between two searches for expired records.
const EXPIRY: Duration = Duration::from_secs(60);
/// Records looked at before the search pauses for others.
const EXPIRY_STEP: usize = 1000;

/// What the other parts tell the housekeeping task.
#[derive(Default)]
pub(crate) struct Keeper {
    wake: Notify,
    loaded: AtomicUsize,
    disk_full: AtomicBool,
    /// Room on the disk beyond what is to be kept free, in bytes; none: not known.
    room: Mutex<Option<u64>>,
}

impl Keeper {
    /// A session of so many bytes was loaded.
    pub(crate) fn loaded(&self, bytes: usize) {
        // An eighth of the smallest sensible budget between two looks at the whole.
        const LOOK: usize = 4 << 20;
        let before = self.loaded.fetch_add(bytes, Ordering::Relaxed);
        if before / LOOK != (before + bytes) / LOOK {
            self.wake.notify_one();
        }
    }

    /// How much more may be stored, in bytes, if that is known.
    pub(crate) fn room_bytes(&self) -> Option<u64> {
        *self.room.lock()
    }

    /// Whether the disk has less room than the node wants to keep free.
    pub(crate) fn disk_is_full(&self) -> bool {
        self.disk_full.load(Ordering::Relaxed)
    }
}

/// Runs until stopped.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let mut expiry_due = Instant::now() + EXPIRY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = core.keeper.wake.notified() => {}
            () = tokio::time::sleep(SWEEP) => {}
        }
        sweep_sessions(&core);
        core.pool.sweep(Instant::now());
        check_disk(&core);
        if Instant::now() >= expiry_due {
            drop_expired::<IdempotencyRecord>(&core, Table::Idempotency, |record| {
                record.expires_unix_ms
            })
            .await;
            drop_expired::<InvocationRecord>(&core, Table::Invocations, |record| {
                match record.finished_unix_ms {
                    0 => u64::MAX,
                    _ => record.expires_unix_ms,
                }
            })
            .await;
            expiry_due = Instant::now() + EXPIRY;
        }
    }
}

/// Lets sessions go that are long idle, and the longest idle ones while memory is over its budget.
fn sweep_sessions(core: &Core) {
    let applied = core.store.commits().applied();
    let (mut bytes, mut sessions, mut queued) = (0, 0, 0);
    let mut idle = Vec::new();
    for function in core.functions.with_shared_keys() {
        for is_own in [true, false] {
            let kept = function.kept(is_own);
            let (hot, can_go) = kept.sweep(applied);
            let (count, waiting) = kept.count();
            bytes += hot;
            sessions += count;
            queued += waiting;
            let can_go = can_go.into_iter();
            idle.extend(can_go.map(|session| (function.clone(), is_own, session)));
        }
        queued += function.waiting();
        if let Some(loaded) = &function.current().artifact {
            loaded.sweep();
        }
        for key in function.keyed.sweep(applied).1 {
            if key.age >= IDLE_KEY_SWEEPS {
                function.keyed.evict(&key.name, applied);
            }
        }
    }
    idle.sort_unstable_by_key(|(_, _, session)| std::cmp::Reverse(session.age));
    for (function, is_own, session) in idle {
        if bytes <= core.options.hot_bytes && session.age < IDLE_SWEEPS {
            break;
        }
        if function.kept(is_own).evict(&session.name, applied) {
            core.pool.evict_session(&function.name, &session.name);
            bytes -= session.hot_bytes.min(bytes);
            sessions -= 1;
        }
    }
    core.metrics.hot_bytes.set(bytes as i64);
    core.metrics.hot_sessions.set(sessions as i64);
    let stored = core.store.approximate_len(Table::Sessions);
    core.metrics
        .cold_sessions
        .set(stored.saturating_sub(sessions) as i64);
    core.metrics.queued.set(queued as i64);
    core.metrics.workers.set(core.pool.len() as i64);
}

/// Refuses work while the disk is nearly full, before a write fails half way.
fn check_disk(core: &Core) {
    let Some(path) = &core.data_path else { return };
    if core.options.surroundings.disk.is_some() {
        // It has no end.
        return;
    }
    match rustix::fs::statvfs(path) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let full = free < core.options.reserve_disk_bytes;
            let room = free.saturating_sub(core.options.reserve_disk_bytes);
            *core.keeper.room.lock() = Some(room);
            if core.keeper.disk_full.swap(full, Ordering::Relaxed) != full {
                if full {
                    tracing::error!(
                        free_bytes = free,
                        "the disk is nearly full: invocations are refused until there is room"
                    );
                } else {
                    tracing::info!(free_bytes = free, "the disk has room again");
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot ask how much room the disk has"),
    }
}

/// Deletes the records of a table whose time is over, a step at a time.
async fn drop_expired<R: Record>(core: &Core, table: Table, expires: impl Fn(&R) -> u64) {
    let mut after: Option<Vec<u8>> = None;
    loop {
        let now = clock::unix_ms();
        let (mut seen, mut last, mut expired) = (0, None, Bookkeeping::default());
        let scanned = core
            .store
            .scan(table, &[], after.as_deref(), &mut |key, value| {
                match R::decode(value) {
                    Ok(record) if expires(&record) <= now => expired.delete(table, key),
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, table = table.name(), "a record cannot be read")
                    }
                }
                seen += 1;
                last = Some(key.to_vec());
                seen < EXPIRY_STEP
            });
        if let Err(error) = scanned {
            tracing::warn!(%error, table = table.name(), "cannot look for expired records");
            return;
        }
        if !expired.is_empty()
            && core
                .store
                .commit_bookkeeping(expired, Box::new(|_| {}))
                .is_err()
        {
            return;
        }
        if seen < EXPIRY_STEP {
            return;
        }
        after = last;
        tokio::task::yield_now().await;
    }
}
