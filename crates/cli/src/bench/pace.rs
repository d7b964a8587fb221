//! Waiting for an instant more precisely than the runtime's timer, whose tick is a millisecond.

use std::time::Instant;

/// Wakes a task at given instants.
#[derive(Debug)]
pub(super) struct Pacer {
    #[cfg(target_os = "linux")]
    timer: tokio::io::unix::AsyncFd<rustix::fd::OwnedFd>,
}

#[cfg(target_os = "linux")]
impl Pacer {
    /// A pacer for one task.
    #[expect(
        unsafe_code,
        reason = "tokio has no safe way to register a file descriptor"
    )]
    pub(super) fn new() -> std::io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        // SAFETY: an `OwnedFd` always gives the same open descriptor, and nothing replaces it.
        let timer = unsafe { tokio::io::unix::AsyncFd::register(timer)? };
        Ok(Self { timer })
    }

    /// Waits until `due`; returns at once if it is over.
    pub(super) async fn until(&mut self, due: Instant) -> std::io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let setting = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::empty(), &setting)?;
        loop {
            let mut ready = self.timer.readable().await?;
            let mut fired = [0; 8];
            let read = ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut fired)?));
            match read {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl Pacer {
    /// A pacer for one task.
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Waits until `due`; returns at once if it is over.
    pub(super) async fn until(&mut self, due: Instant) -> std::io::Result<()> {
        tokio::time::sleep_until(due.into()).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_never_wakes_early() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut pacer = Pacer::new().unwrap();
            for micros in [0, 50, 300, 2500] {
                let due = Instant::now() + Duration::from_micros(micros);
                pacer.until(due).await.unwrap();
                assert!(Instant::now() >= due);
            }
        });
    }
}
