//! Threads that compute: what takes longer than a moment leaves the threads that serve connections and commits.
//!
//! A call begins where it was asked for, since most take microseconds. One that computes for longer than [`SHORT`], or whose
//! function's last call did, goes on here: in the order of arrival among the calls of its function, and by turns among functions
//! ([`turns`]). What waits for the disk or the network is never in line behind what computes; the system's scheduler divides the
//! CPUs between both.

mod turns;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_task::Runnable;
use fulmar_model::FunctionName;
use parking_lot::{Condvar, Mutex};
use rustc_hash::FxHashMap;
use tokio::runtime::Handle;

use turns::{Account, Turns};

/// What computes for no longer stays on the thread that asked for it.
const SHORT: Duration = Duration::from_millis(2);
/// After so long another call of the same function goes on, if one waits.
const STINT: Duration = Duration::from_millis(100);

/// The threads, which end with it.
pub(crate) struct Compute(Arc<Shared>);

struct Shared {
    line: Mutex<Line>,
    /// Somebody waits, or the threads are to end.
    some: Condvar,
    lanes: Mutex<FxHashMap<FunctionName, Weak<Lane>>>,
    /// How many wait.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Line {
    turns: Turns<Runnable>,
    is_closed: bool,
}

/// The calls of one function.
pub(crate) struct Lane {
    account: Arc<Account>,
    /// Whether its last call computed for longer than a moment.
    is_long: AtomicBool,
}

/// How often a call has let others run, since that was asked last. Told by whoever interrupts it.
pub(crate) type Ticks = Arc<AtomicU32>;

impl Drop for Compute {
    fn drop(&mut self) {
        self.0.line.lock().is_closed = true;
        self.0.some.notify_all();
    }
}

impl Compute {
    /// Starts so many threads.
    pub(crate) fn start(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            line: Mutex::default(),
            some: Condvar::new(),
            lanes: Mutex::default(),
            waiting: AtomicUsize::new(0),
        });
        // Ends those that have started if another one does not.
        let compute = Self(shared.clone());
        for _ in 0..threads {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name("fulmar-compute".into());
            thread.spawn(move || {
                while let Some(runnable) = shared.next() {
                    runnable.run();
                }
            })?;
        }
        Ok(compute)
    }

    /// Calls of a function that wait for a thread.
    pub(crate) fn waiting(&self, function: &FunctionName) -> usize {
        if self.0.waiting.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        let lane = self.0.lanes.lock().get(function).and_then(Weak::upgrade);
        lane.map_or(0, |lane| lane.account.waiting())
    }

    /// The lane of a function's calls, with its share of the CPUs in relation to others.
    pub(crate) fn lane(&self, function: &FunctionName, weight: u32) -> Arc<Lane> {
        let mut lanes = self.0.lanes.lock();
        let known = lanes.get(function).and_then(Weak::upgrade);
        if let Some(lane) = known.filter(|lane| lane.account.weight() == weight) {
            return lane;
        }
        let lane = Arc::new(Lane {
            account: Arc::new(Account::new(weight)),
            is_long: AtomicBool::new(false),
        });
        lanes.retain(|_, lane| lane.strong_count() > 0);
        lanes.insert(function.clone(), Arc::downgrade(&lane));
        lane
    }

    /// Runs a call that says when it is interrupted: here, or, if it takes long, on the threads that compute.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        lane: &Arc<Lane>,
        ticks: &Ticks,
        call: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let mut call: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(call);
        if !lane.is_long.load(Ordering::Relaxed) {
            let began = Instant::now();
            let here = poll_fn(|context| {
                loop {
                    ticks.store(0, Ordering::Relaxed);
                    if let Poll::Ready(done) = call.as_mut().poll(context) {
                        return Poll::Ready(Some(done));
                    }
                    match (ticks.load(Ordering::Relaxed), began.elapsed() < SHORT) {
                        (0, _) => return Poll::Pending,
                        (_, true) => {}
                        (_, false) => return Poll::Ready(None),
                    }
                }
            });
            if let Some(done) = here.await {
                return done;
            }
        }
        let is_last = Arc::new(AtomicBool::new(true));
        let stints = Stints {
            call,
            ticks: ticks.clone(),
            lane: lane.clone(),
            shared: self.0.clone(),
            io: Handle::current(),
            is_last: is_last.clone(),
            computed: Duration::ZERO,
        };
        let (shared, account) = (self.0.clone(), lane.account.clone());
        let schedule = move |runnable| shared.wait(&account, runnable, &is_last);
        let (runnable, task) = async_task::Builder::new()
            .propagate_panic(true)
            .spawn(|()| stints, schedule);
        runnable.schedule();
        task.await
    }
}

impl Shared {
    /// Puts a call in line: behind the others of its function if it begins or has had its stint, else before them.
    fn wait(&self, account: &Arc<Account>, runnable: Runnable, is_last: &AtomicBool) {
        let is_last = is_last.swap(false, Ordering::Relaxed);
        self.waiting.fetch_add(1, Ordering::Relaxed);
        self.line.lock().turns.wait(account, runnable, is_last);
        self.some.notify_one();
    }

    /// The call that is next, once there is one; none at the end.
    fn next(&self) -> Option<Runnable> {
        let mut line = self.line.lock();
        loop {
            if let Some(runnable) = line.turns.next() {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return Some(runnable);
            }
            if line.is_closed {
                return None;
            }
            self.some.wait(&mut line);
        }
    }
}

/// A call as the threads run it: for a stint, or until another function's turn has come.
struct Stints<T> {
    call: Pin<Box<dyn Future<Output = T> + Send>>,
    ticks: Ticks,
    lane: Arc<Lane>,
    shared: Arc<Shared>,
    /// Where what it waits for is driven.
    io: Handle,
    /// Where it goes in line when it is scheduled next.
    is_last: Arc<AtomicBool>,
    computed: Duration,
}

impl<T> Future for Stints<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let _within = this.io.enter();
        let began = Instant::now();
        let mut counted = began;
        loop {
            this.ticks.store(0, Ordering::Relaxed);
            let polled = this.call.as_mut().poll(context);
            let now = Instant::now();
            let spent = now - std::mem::replace(&mut counted, now);
            this.computed += spent;
            let line = this.shared.line.lock();
            let account = &this.lane.account;
            account.charge(spent);
            if polled.is_ready() {
                let is_long = this.computed > SHORT;
                this.lane.is_long.store(is_long, Ordering::Relaxed);
                return polled;
            }
            // Otherwise it waits for something, and nobody is kept.
            let is_interrupted = this.ticks.load(Ordering::Relaxed) > 0;
            if !is_interrupted || line.turns.is_anothers(account) {
                return Poll::Pending;
            }
            if now - began > STINT {
                this.is_last.store(true, Ordering::Relaxed);
                return Poll::Pending;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computes for so long, interrupted every millisecond.
    async fn compute(ticks: Ticks, time: Duration) {
        let began = Instant::now();
        let mut tick = began;
        while began.elapsed() < time {
            if tick.elapsed() > Duration::from_millis(1) {
                tick = Instant::now();
                ticks.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        }
    }

    fn thread() -> std::thread::ThreadId {
        std::thread::current().id()
    }

    fn setting() -> (Compute, Arc<Lane>, Ticks) {
        let compute = Compute::start(1).unwrap();
        let lane = compute.lane(&FunctionName::new("it").unwrap(), 100);
        (compute, lane, Ticks::default())
    }

    #[tokio::test]
    async fn what_is_short_stays_and_what_is_long_goes_to_another_thread() {
        let (compute, lane, ticks) = setting();
        let here = thread();
        let call = |time| {
            let ticks = ticks.clone();
            async move {
                let began = thread();
                compute_for(ticks, time).await;
                (began, thread())
            }
        };
        async fn compute_for(ticks: Ticks, time: Duration) {
            self::compute(ticks, time).await;
        }
        let (short, long) = (Duration::ZERO, SHORT * 3);
        assert_eq!(compute.run(&lane, &ticks, call(short)).await, (here, here));
        let (began, ended) = compute.run(&lane, &ticks, call(long)).await;
        assert!(began == here && ended != here);
        // The next one begins there, and what comes after a short one begins here again.
        let (began, ended) = compute.run(&lane, &ticks, call(short)).await;
        assert!(began != here && ended != here);
        assert_eq!(compute.run(&lane, &ticks, call(short)).await, (here, here));
    }

    #[tokio::test]
    async fn what_waits_keeps_nobody() {
        let (compute, lane, ticks) = setting();
        lane.is_long.store(true, Ordering::Relaxed);
        let (tell, told) = tokio::sync::oneshot::channel();
        let waits = compute.run(&lane, &ticks, async move {
            // A timer of the threads that serve.
            tokio::time::sleep(Duration::from_millis(1)).await;
            told.await
        });
        let tells = async {
            let ticks = Ticks::default();
            compute
                .run(&lane, &ticks, async move { tell.send(7) })
                .await
        };
        let (waited, _) = tokio::join!(waits, tells);
        assert_eq!(waited, Ok(7));
    }

    #[tokio::test]
    async fn a_call_that_panics_takes_nobody_with_it() {
        let (compute, lane, ticks) = setting();
        lane.is_long.store(true, Ordering::Relaxed);
        let compute = Arc::new(compute);
        let panics = {
            let (compute, lane, ticks) = (compute.clone(), lane.clone(), ticks.clone());
            tokio::spawn(async move {
                let panics = async { panic!("as it should") };
                compute.run::<()>(&lane, &ticks, panics).await;
            })
        };
        assert!(panics.await.unwrap_err().is_panic());
        assert_eq!(compute.run(&lane, &ticks, async { 1 }).await, 1);
    }
}
