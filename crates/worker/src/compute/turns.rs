//! Whose turn it is: functions have their CPU time in proportion to their weights, as far as they want it.
//!
//! Start-time fair queueing (Goyal, Vin and Cheng 1996): each function has a clock that its CPU time, divided by its weight,
//! drives; the one that is behind goes next. One that comes back after a while does not get what it did not want.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What a function has had.
#[derive(Debug)]
pub(super) struct Account {
    weight: u32,
    /// Nanoseconds at weight 1. Written only under the lock of those that wait.
    clock: AtomicU64,
    /// How many of its calls wait. Written under the same lock.
    waiting: AtomicUsize,
}

/// Calls that wait, by function.
#[derive(Debug)]
pub(super) struct Turns<T> {
    waiting: Vec<(Arc<Account>, VecDeque<T>)>,
    /// The clock of whoever went last.
    now: u64,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self {
            waiting: Vec::new(),
            now: 0,
        }
    }
}

impl Account {
    pub(super) fn new(weight: u32) -> Self {
        Self {
            weight: weight.max(1),
            clock: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    fn clock(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    /// It has computed for so long.
    pub(super) fn charge(&self, spent: Duration) {
        let spent = spent.as_nanos() as u64 / u64::from(self.weight);
        self.clock.fetch_add(spent, Ordering::Relaxed);
    }
}

impl<T> Turns<T> {
    /// A call waits: behind all others of its function, or before them.
    pub(super) fn wait(&mut self, account: &Arc<Account>, call: T, is_last: bool) {
        let mut known = self.waiting.iter();
        let at = match known.position(|(known, _)| Arc::ptr_eq(known, account)) {
            Some(at) => at,
            None => {
                account.clock.fetch_max(self.now, Ordering::Relaxed);
                self.waiting.push((account.clone(), VecDeque::new()));
                self.waiting.len() - 1
            }
        };
        let (_, calls) = &mut self.waiting[at];
        account.waiting.fetch_add(1, Ordering::Relaxed);
        match is_last {
            true => calls.push_back(call),
            false => calls.push_front(call),
        }
    }

    /// The call whose turn it is.
    pub(super) fn next(&mut self) -> Option<T> {
        let clocks = self.waiting.iter().enumerate();
        let (at, _) = clocks.min_by_key(|(_, (account, _))| account.clock())?;
        let (account, calls) = &mut self.waiting[at];
        self.now = self.now.max(account.clock());
        let call = calls.pop_front()?;
        account.waiting.fetch_sub(1, Ordering::Relaxed);
        if calls.is_empty() {
            self.waiting.swap_remove(at);
        }
        Some(call)
    }

    /// Whether another function's turn has come while one computes.
    pub(super) fn is_anothers(&self, account: &Arc<Account>) -> bool {
        let mine = account.clock();
        self.waiting
            .iter()
            .any(|(other, _)| !Arc::ptr_eq(other, account) && other.clock() < mine)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(weights: [u32; 2]) -> [Arc<Account>; 2] {
        weights.map(|weight| Arc::new(Account::new(weight)))
    }

    #[test]
    fn calls_of_a_function_go_in_their_order() {
        let mut turns = Turns::default();
        let [one, _] = accounts([100, 100]);
        for call in [1, 2, 3] {
            turns.wait(&one, call, true);
        }
        turns.wait(&one, 0, false);
        let order: Vec<i32> = std::iter::from_fn(|| turns.next()).collect();
        assert_eq!(order, [0, 1, 2, 3]);
    }

    #[test]
    fn functions_get_what_their_weights_say() {
        let mut turns = Turns::default();
        let accounts = accounts([300, 100]);
        let mut had = [0, 0];
        for (at, account) in accounts.iter().enumerate() {
            turns.wait(account, at, true);
        }
        for _ in 0..400 {
            let at = turns.next().unwrap();
            had[at] += 1;
            accounts[at].charge(Duration::from_millis(2));
            turns.wait(&accounts[at], at, true);
        }
        assert!((299..=301).contains(&had[0]), "{had:?}");
    }

    #[test]
    fn who_comes_back_gets_nothing_for_the_time_away() {
        let mut turns = Turns::default();
        let [busy, back] = accounts([100, 100]);
        for _ in 0..100 {
            turns.wait(&busy, 0, true);
            turns.next();
            busy.charge(Duration::from_millis(10));
        }
        turns.wait(&busy, 0, true);
        turns.wait(&back, 1, true);
        assert_eq!(turns.next(), Some(1));
        back.charge(Duration::from_millis(15));
        turns.wait(&back, 1, true);
        assert!(turns.is_anothers(&back));
        assert_eq!(turns.next(), Some(0), "it is not ahead by more than a turn");
    }
}
