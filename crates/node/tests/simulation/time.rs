//! Time and chance of the thread that simulates: the time of the runtime that runs on it, and numbers from a seed. Whoever
//! asks the C library gets them, so that nothing has to be written for simulations. Other threads get the real ones.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ffi::{c_int, c_long, c_uint, c_void};
use std::time::{Duration, Instant};

use rustix::rand::GetRandomFlags;

use crate::counter::Choices;

/// What the clocks say when a simulation begins, in seconds: in 2023, and some time after the machine was started.
const EPOCH: u64 = 1_700_000_000;
const STARTED: u64 = 1000;
const NANOS: u64 = 1_000_000_000;

thread_local! {
    /// Nanoseconds since the simulation began; none on threads that simulate nothing.
    static NOW: Cell<Option<u64>> = const { Cell::new(None) };
    /// Set while the runtime is asked, which may ask back.
    static ASKS: Cell<bool> = const { Cell::new(false) };
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// From now on the calling thread simulates.
pub(crate) fn begin(seed: u64) {
    RANDOM.set(seed);
    fastrand::seed(seed);
    NOW.set(Some(0));
    BEGAN.set(Some(Instant::now()));
}

/// How long the simulation has been running.
pub(crate) fn elapsed() -> Duration {
    BEGAN.get().map_or(Duration::ZERO, |began| began.elapsed())
}

/// What a clock says; none for the real time.
fn simulated() -> Option<u64> {
    let last = NOW.get()?;
    let began = BEGAN.get();
    if ASKS.replace(true) {
        return Some(last);
    }
    let mut now = last;
    if let Some(began) = began
        && tokio::runtime::Handle::try_current().is_ok()
    {
        let since = tokio::time::Instant::now().into_std().duration_since(began);
        now = now.max(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    }
    ASKS.set(false);
    NOW.set(Some(now));
    Some(now)
}

/// `struct timespec`.
#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: c_long,
}

// SAFETY of the names: both have the signature and the meaning of the C library's functions that they stand for, and
// those are what programs that bring their own may replace.

/// See `clock_gettime(2)`.
#[unsafe(no_mangle)]
extern "C" fn clock_gettime(clock: c_int, out: *mut Timespec) -> c_int {
    let (seconds, nanoseconds) = match simulated() {
        Some(now) => {
            let begin = if clock == 0 { EPOCH } else { STARTED };
            (begin + now / NANOS, now % NANOS)
        }
        None => {
            let clock = if clock == 0 {
                rustix::time::ClockId::Realtime
            } else {
                rustix::time::ClockId::Monotonic
            };
            let now = rustix::time::clock_gettime(clock);
            (now.tv_sec as u64, now.tv_nsec as u64)
        }
    };
    let now = Timespec {
        seconds: seconds as i64,
        nanoseconds: nanoseconds as c_long,
    };
    // SAFETY: the caller gives a place for a `struct timespec`, which it may write to.
    unsafe { out.write(now) };
    0
}

/// See `getrandom(2)`.
#[unsafe(no_mangle)]
extern "C" fn getrandom(out: *mut c_void, length: usize, flags: c_uint) -> isize {
    // SAFETY: the caller gives a place of that length, which nobody else uses meanwhile; bytes of any value are bytes.
    let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), length) };
    if NOW.get().is_none() {
        let flags = GetRandomFlags::from_bits_retain(flags);
        return match rustix::rand::getrandom(out, flags) {
            Ok(filled) => filled as isize,
            Err(_) => -1,
        };
    }
    let mut choices = Choices(RANDOM.get());
    for byte in out {
        *byte = choices.below(256) as u8;
    }
    RANDOM.set(choices.0);
    length as isize
}
