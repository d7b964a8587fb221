//! Who runs an invocation and when: the queue of its session, or as soon as a worker is free.
//!
//! [`submit`] puts an invocation into its session's queue and, if the session was idle, runs the queue at once on the
//! caller's task; only if that has to wait for something does it move to a task of its own. A client that goes away
//! therefore never interrupts an invocation half way.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};

use fulmar_model::{Code, Problem};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{batch, run};
use crate::core::Core;
use crate::functions::Function;
use crate::invocation::{Invocation, StateFrom, Turn};
use crate::sessions::{Enqueued, Session, Work};

/// Invocations of one queue that run before other tasks of the thread get a turn.
const BACK_TO_BACK: usize = 32;
/// Why an invocation was not accepted.
pub(crate) struct QueueFull;

/// Hands an invocation in; its outcome goes to its origin.
pub(crate) fn submit(
    core: &Arc<Core>,
    function: &Arc<Function>,
    invocation: Invocation,
) -> Result<(), QueueFull> {
    let max = function.current().manifest.queue.max as usize;
    if invocation.session.is_none() && function.waiting() >= max {
        return Err(QueueFull);
    }
    match lane(function, &invocation) {
        Some(session) => match session.enqueue(Work::Invocation(invocation), max) {
            Enqueued::Full => Err(QueueFull),
            Enqueued::Waits => Ok(()),
            Enqueued::Run => {
                start(run_queue(core.clone(), function.clone(), session));
                Ok(())
            }
        },
        None => {
            start(run_sessionless(core.clone(), function.clone(), invocation));
            Ok(())
        }
    }
}

/// The queue that orders the invocation: its session's, or one of its idempotency key, so that two
/// with the same key do not run at once.
fn lane(function: &Function, invocation: &Invocation) -> Option<Arc<Session>> {
    match (&invocation.session, &invocation.idempotency) {
        (Some(session), _) => {
            let is_lent = matches!(invocation.state, StateFrom::Node(_) | StateFrom::Store);
            let is_own = !is_lent && !function.current().is_external();
            Some(function.kept(is_own).of(session.shared()))
        }
        (None, Some(idempotency)) => Some(function.keyed.of(&idempotency.key)),
        (None, None) => None,
    }
}

/// Waits for the exclusive use of a session.
pub(crate) async fn turn(
    core: &Arc<Core>,
    function: &Arc<Function>,
    session: &Arc<Session>,
) -> Result<Turn, Problem> {
    let (give, take) = oneshot::channel();
    if let Enqueued::Run = session.enqueue(Work::Turn(give), usize::MAX) {
        start(run_queue(core.clone(), function.clone(), session.clone()));
    }
    take.await
        .map_err(|_| Problem::new(Code::Internal, "the session's queue went away"))
}

/// Runs a future on this task as far as it goes without waiting, and the rest on a task of its own.
pub(crate) fn start(future: impl Future<Output = ()> + Send + 'static) {
    let mut future: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(future);
    // What wakes this first poll is lost, but spawning polls again.
    if future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
        .is_pending()
    {
        tokio::spawn(future);
    }
}

/// Runs what is queued, until the queue is empty.
async fn run_queue(core: Arc<Core>, function: Arc<Function>, session: Arc<Session>) {
    let mut in_a_row = BACK_TO_BACK - 1;
    while let Some(work) = session.next() {
        match work {
            Work::Invocation(invocation) if invocation.read_only => {
                let turn = session.turn.clone().read_owned().await;
                let (core, function, session) = (core.clone(), function.clone(), session.clone());
                start(async move {
                    let _place = place(&core, &function, &invocation).await;
                    run(&core, &function, Some(&session), invocation).await;
                    drop(turn);
                });
            }
            Work::Invocation(invocation) => {
                let _turn = session.turn.write().await;
                let batch = &function.current().manifest.batch;
                if batch.max > 1 && invocation.session.is_some() {
                    let gathered = batch::gather(&session, invocation, batch).await;
                    in_a_row += gathered.len();
                    batch::run_all(&core, &function, &session, gathered).await;
                } else {
                    let _place = place(&core, &function, &invocation).await;
                    run(&core, &function, Some(&session), invocation).await;
                }
            }
            Work::Turn(give) => {
                let _turn = session.turn.write().await;
                let (done, given_back) = oneshot::channel();
                if give.send(Turn { _done: done }).is_ok() {
                    // Ends when the turn is dropped: nothing is ever sent.
                    let _ = given_back.await;
                }
            }
        }
        in_a_row += 1;
        if in_a_row >= BACK_TO_BACK {
            in_a_row = 0;
            if session.waiting() > 0 {
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Runs an invocation without a session as soon as the function has a worker free.
async fn run_sessionless(core: Arc<Core>, function: Arc<Function>, invocation: Invocation) {
    let _place = place(&core, &function, &invocation).await;
    run(&core, &function, None, invocation).await;
}

/// One of the places that a function has for invocations without a session, in the order in which they are asked for; none where
/// others count workers. As long as some of them have a worker and wait for a CPU, another worker would only wait as well.
async fn place(
    core: &Core,
    function: &Function,
    invocation: &Invocation,
) -> Option<OwnedSemaphorePermit> {
    let deployed = function.current();
    if invocation.session.is_some() || deployed.fleet.is_some() {
        return None;
    }
    let place = match deployed.workers.clone().try_acquire_owned() {
        Ok(place) => Ok(place),
        Err(_) => {
            let _waiting = function.wait();
            deployed.workers.clone().acquire_owned().await
        }
    };
    if let Some(intake) = &deployed.intake {
        intake.until_worthwhile(core, function).await;
    }
    // It is never closed.
    place.ok()
}
