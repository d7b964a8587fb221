//! Whether a session follows its clients: it moves to the node that takes their requests, if that pays.
//!
//! The network-triggered migration of local-state workers of "Stateful FaaS at the Edge" (section III: a worker
//! follows its client), with the price of the move in it, as in the migration costs of "Function Offloading
//! and Data Migration ..." (eqs. 15-17). Everything is counted as time that requests wait, in seconds.

/// A node that takes requests of a session which is at home elsewhere.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Broker {
    /// Requests per second that it takes.
    pub rate: f64,
    /// Round trip between it and the session's home, in seconds.
    pub round_trip: f64,
    /// What the way to it carries, in bytes per second.
    pub bandwidth: f64,
}

/// A session, as its home sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Session<'a> {
    /// Requests per second that the home takes itself.
    pub at_home: f64,
    /// Who takes the others.
    pub brokers: &'a [Broker],
    /// Size of its state.
    pub state_bytes: f64,
    /// Since when it has been here, in seconds.
    pub here_for: f64,
}

/// What is worth a move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Time within which a move has to pay, in seconds.
    pub horizon: f64,
    /// How many times it has to pay.
    pub margin: f64,
    /// A round trip below is as good as none, in seconds.
    pub least_round_trip: f64,
    /// Time that a session stays where it has come to, in seconds.
    pub least_stay: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            horizon: 10.0,
            margin: 2.0,
            least_round_trip: 1e-3,
            least_stay: 3.0,
        }
    }
}

/// What a move to a broker would bring.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Which one.
    pub broker: usize,
    /// Waiting that it saves, in seconds for each second; below 0: that it adds.
    pub gain: f64,
    /// Waiting that the move causes, in seconds.
    pub cost: f64,
}

/// Round trips for which a session is held up while it moves.
const HELD_ROUND_TRIPS: f64 = 3.0;

/// What moves to each of the brokers would bring, and the one to which the session should move, if to any.
///
/// Of other nodes than home and candidate only the way to the home is known: theirs to the candidate is taken as
/// the longest that it can be, by way of the home.
pub fn follow(session: &Session<'_>, settings: &Settings) -> (Option<usize>, Vec<Candidate>) {
    let others: f64 = session.brokers.iter().map(|broker| broker.rate).sum();
    let total = session.at_home + others;
    let candidates: Vec<Candidate> = session
        .brokers
        .iter()
        .enumerate()
        .map(|(at, broker)| {
            let rest = total - broker.rate;
            let copy = session.state_bytes / broker.bandwidth.max(1.0);
            let held = HELD_ROUND_TRIPS * broker.round_trip + copy;
            Candidate {
                broker: at,
                gain: broker.round_trip * (broker.rate - rest),
                // Those that come meanwhile wait half of it on average; and what the copy takes of the link
                // others wait for.
                cost: total * held * held / 2.0 + copy,
            }
        })
        .collect();
    let pays = |candidate: &&Candidate| {
        session.brokers[candidate.broker].round_trip >= settings.least_round_trip
            && candidate.gain * settings.horizon > settings.margin * candidate.cost
    };
    let best = candidates
        .iter()
        .filter(pays)
        .max_by(|one, other| one.gain.total_cmp(&other.gain))
        .filter(|_| session.here_for >= settings.least_stay);
    (best.map(|best| best.broker), candidates)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn broker(rate: f64, round_trip: f64) -> Broker {
        Broker {
            rate,
            round_trip,
            bandwidth: 1e7,
        }
    }

    fn decide(at_home: f64, brokers: &[Broker], state_bytes: f64) -> Option<usize> {
        let session = Session {
            at_home,
            brokers,
            state_bytes,
            here_for: 60.0,
        };
        follow(&session, &Settings::default()).0
    }

    #[test]
    fn it_goes_where_most_requests_come_from_if_the_way_is_long() {
        assert_eq!(decide(1.0, &[broker(10.0, 0.02)], 1e3), Some(0));
        assert_eq!(
            decide(9.0, &[broker(10.0, 0.02), broker(5.0, 0.02)], 1e3),
            None
        );
        assert_eq!(decide(0.0, &[broker(10.0, 0.0002)], 1e3), None);
        // A gigabyte is not worth it for a request every two seconds.
        assert_eq!(decide(0.0, &[broker(0.5, 0.02)], 1e9), None);
        assert_eq!(decide(0.0, &[broker(0.5, 0.02)], 1e3), Some(0));
    }

    #[test]
    fn it_stays_for_a_while() {
        let session = Session {
            at_home: 0.0,
            brokers: &[broker(10.0, 0.02)],
            state_bytes: 1e3,
            here_for: 1.0,
        };
        assert_eq!(follow(&session, &Settings::default()).0, None);
    }

    proptest! {
        #[test]
        fn nobody_who_has_moved_goes_back_for_the_same_requests(
            at_home in 0.0..100.0,
            rate in 0.0..100.0,
            round_trip in 0.0..0.5,
            state_bytes in 0.0..1e8,
        ) {
            let there = decide(at_home, &[broker(rate, round_trip)], state_bytes);
            let back = decide(rate, &[broker(at_home, round_trip)], state_bytes);
            prop_assert!(there.is_none() || back.is_none());
        }

        #[test]
        fn more_requests_from_there_never_keep_it_here(
            rate in 0.0..50.0,
            more in 0.0..50.0,
            at_home in 0.0..50.0,
        ) {
            if decide(at_home, &[broker(rate, 0.02)], 1e3).is_some() {
                prop_assert!(decide(at_home, &[broker(rate + more, 0.02)], 1e3).is_some());
            }
        }
    }
}
