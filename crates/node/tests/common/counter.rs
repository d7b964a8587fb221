//! What those get to know who increment counters while there is trouble, and whether it is right.

#![allow(clippy::unwrap_used, unreachable_pub)]

use std::time::Instant;

/// One increment that was acknowledged, or one look at the counter: when it was asked for first, when it was answered,
/// with what.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub session: usize,
    pub is_look: bool,
    pub asked: Instant,
    pub answered: Instant,
    pub value: u64,
}

/// A small generator of choices (splitmix64), so that a seed repeats them.
pub struct Choices(pub u64);

impl Choices {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}

/// All answers of a session are those of one counter that was incremented once for each of them that is no look, at some
/// moment between question and answer (linearizable).
pub fn check(session: usize, answers: &[Answered]) {
    let mut answers: Vec<Answered> = answers
        .iter()
        .filter(|answer| answer.session == session)
        .copied()
        .collect();
    // A look comes after the increment that it sees, and before the next.
    answers.sort_by_key(|answer| (answer.value, answer.is_look, answer.asked));
    let increments = answers.iter().filter(|answer| !answer.is_look);
    for (at, answer) in increments.enumerate() {
        assert_eq!(
            answer.value,
            at as u64 + 1,
            "session {session}: lost or counted twice"
        );
    }
    // Whoever got a higher value was not answered before a lower one was asked for.
    let mut earliest = None;
    for answer in answers.iter().rev() {
        if let Some(earliest) = earliest {
            assert!(
                earliest >= answer.asked,
                "session {session}: {answer:?} came too late"
            );
        }
        earliest =
            Some(earliest.map_or(answer.answered, |known: Instant| known.min(answer.answered)));
    }
}

#[test]
fn the_checker_finds_what_is_wrong() {
    let start = Instant::now();
    let at = |ms: u64| start + std::time::Duration::from_millis(ms);
    let answer = |asked, answered, value| Answered {
        session: 0,
        is_look: false,
        asked: at(asked),
        answered: at(answered),
        value,
    };
    let look = |asked, answered, value| Answered {
        is_look: true,
        ..answer(asked, answered, value)
    };
    check(0, &[answer(0, 10, 2), answer(5, 12, 1)]);
    check(0, &[answer(0, 10, 1), look(5, 6, 0), look(7, 8, 1)]);
    for bad in [
        [answer(0, 1, 1), answer(2, 3, 1)],
        [answer(0, 1, 1), answer(2, 3, 3)],
        [answer(0, 1, 2), answer(2, 3, 1)],
        // Old; from the future; seen and then not.
        [answer(0, 1, 1), look(2, 3, 0)],
        [answer(4, 5, 1), look(2, 3, 1)],
        [look(0, 1, 1), look(2, 3, 0)],
    ] {
        assert!(
            std::panic::catch_unwind(|| check(0, &bad)).is_err(),
            "{bad:?}"
        );
    }
}
