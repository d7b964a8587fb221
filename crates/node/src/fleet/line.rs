//! Who waits for a worker.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fulmar_model::{Problem, SessionName};
use fulmar_worker::{Holds, Worker};
use tokio::sync::oneshot;

/// How many of those that wait are looked at for one that a worker remembers.
const LOOKED_AT: usize = 8;
/// So many may go before the first in line, since a worker remembers them.
const PASSED: u32 = 2;
/// After so many that go before others, one of the others.
const IN_A_ROW: u32 = 8;

/// Those that wait, in two lines: what completes work that has begun, and what begins.
pub(super) struct Line<W = Worker> {
    begun: VecDeque<Waiter<W>>,
    new: VecDeque<Waiter<W>>,
    /// How many have gone before those that are new.
    in_a_row: u32,
    /// Since when there is always somebody.
    standing: Option<Instant>,
}

struct Waiter<W> {
    session: Option<SessionName>,
    since: Instant,
    /// How many have gone before it that came later.
    passed: u32,
    give: oneshot::Sender<Result<W, Problem>>,
}

impl<W> Default for Line<W> {
    fn default() -> Self {
        Self {
            begun: VecDeque::new(),
            new: VecDeque::new(),
            in_a_row: 0,
            standing: None,
        }
    }
}

impl<W: Holds> Line<W> {
    pub(super) fn len(&self) -> usize {
        self.begun.len() + self.new.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// For how long the first waits.
    pub(super) fn longest(&self, now: Instant) -> Duration {
        let first = [self.begun.front(), self.new.front()].into_iter().flatten();
        let since = first.map(|waiter| waiter.since).min();
        since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// For how long there was always somebody.
    pub(super) fn standing(&self, now: Instant) -> Duration {
        let standing = self.standing.filter(|_| !self.is_empty());
        standing.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Waits at its end.
    pub(super) fn join(
        &mut self,
        session: Option<SessionName>,
        has_begun: bool,
    ) -> oneshot::Receiver<Result<W, Problem>> {
        let (give, taken) = oneshot::channel();
        let now = Instant::now();
        if self.is_empty() {
            self.standing = Some(now);
        }
        let line = if has_begun {
            &mut self.begun
        } else {
            &mut self.new
        };
        line.push_back(Waiter {
            session,
            since: now,
            passed: 0,
            give,
        });
        taken
    }

    /// Gives a worker to whoever is next; back, if nobody waits.
    pub(super) fn give(&mut self, mut worker: W) -> Option<W> {
        while let Some(waiter) = self.next(&worker) {
            match waiter.give.send(Ok(worker)) {
                Ok(()) => return None,
                // It has given up.
                Err(Ok(back)) => worker = back,
                Err(Err(_)) => return None,
            }
        }
        Some(worker)
    }

    fn next(&mut self, worker: &W) -> Option<Waiter<W>> {
        let is_others_turn = self.begun.is_empty() || self.in_a_row >= IN_A_ROW;
        let line = match is_others_turn && !self.new.is_empty() {
            true => {
                self.in_a_row = 0;
                &mut self.new
            }
            false => {
                self.in_a_row += 1;
                &mut self.begun
            }
        };
        let remembers = |waiter: &Waiter<W>| {
            let session = waiter.session.as_ref();
            session.is_some_and(|session| worker.remembers(session))
        };
        let first = line.front_mut()?;
        if first.passed >= PASSED {
            return line.pop_front();
        }
        first.passed += 1;
        let known = line.iter().take(LOOKED_AT).position(remembers);
        line.remove(known.unwrap_or(0))
    }

    /// Tells everybody why there is no worker.
    pub(super) fn send_away(&mut self, problem: &Problem) {
        for waiter in self.begun.drain(..).chain(self.new.drain(..)) {
            // It may have given up.
            let _ = waiter.give.send(Err(problem.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use fulmar_worker::Need;

    use super::*;

    /// Remembers one session.
    #[derive(Debug, PartialEq)]
    struct Knows(&'static str);

    impl Holds for Knows {
        fn has(&self) -> Need {
            Need::default()
        }

        fn remembers(&self, session: &SessionName) -> bool {
            session.as_str() == self.0
        }
    }

    fn session(name: &str) -> Option<SessionName> {
        Some(SessionName::new(name).unwrap())
    }

    #[test]
    fn what_has_begun_goes_first_and_others_are_not_forgotten() {
        let mut line = Line::default();
        let mut new = line.join(None, false);
        let mut begun: Vec<_> = (0..20).map(|_| line.join(None, true)).collect();
        for _ in 0..IN_A_ROW {
            assert_eq!(line.give(Knows("")), None);
        }
        assert!(new.try_recv().is_err());
        assert!(begun[7].try_recv().is_ok() && begun[8].try_recv().is_err());
        line.give(Knows(""));
        assert!(new.try_recv().is_ok(), "its turn");
        line.give(Knows(""));
        assert!(begun[8].try_recv().is_ok());
    }

    #[test]
    fn a_worker_goes_to_a_session_that_it_remembers() {
        let mut line = Line::default();
        let mut first = line.join(session("a"), false);
        let mut second = line.join(session("b"), false);
        assert_eq!(line.give(Knows("b")), None);
        assert!(second.try_recv().is_ok() && first.try_recv().is_err());
        assert_eq!(line.give(Knows("b")), None);
        assert!(first.try_recv().is_ok());
        assert_eq!(line.give(Knows("b")), Some(Knows("b")), "nobody waits");
    }

    #[test]
    fn nobody_is_passed_again_and_again() {
        let mut line = Line::default();
        let mut first = line.join(session("a"), false);
        let mut others: Vec<_> = (0..5).map(|_| line.join(session("b"), false)).collect();
        for _ in 0..=PASSED {
            assert!(first.try_recv().is_err());
            line.give(Knows("b"));
        }
        assert!(first.try_recv().is_ok());
        assert!(others[1].try_recv().is_ok() && others[2].try_recv().is_err());
    }

    #[test]
    fn who_has_given_up_gets_nothing() {
        let mut line = Line::default();
        drop(line.join(None, false));
        let mut patient = line.join(None, false);
        assert_eq!(line.give(Knows("")), None);
        assert!(patient.try_recv().unwrap().is_ok());
        let mut away = line.join(None, true);
        line.send_away(&Problem::new(fulmar_model::Code::CrashLoop, "x"));
        assert!(away.try_recv().unwrap().is_err() && line.is_empty());
    }
}
