//! Which sessions to make local-state now, and which to make remote-state again.
//!
//! Sessions differ in rate and service times. Those whose application asks for it come first; the
//! remaining containers go to the sessions that gain most, up to the number with the least mean
//! latency. A change has to pay: what it saves within the horizon must exceed what it costs, and the
//! whole plan must be better by a margin, or everything stays as it is.

use super::Unstable;
use super::erlang::{dedicated_seconds, pool_seconds};

/// What an application has asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: the network decides.
    None,
    /// To be local-state as long as there are containers.
    Local,
    /// To be remote-state.
    Remote,
}

/// One session as measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Session {
    /// Calls per second.
    pub rate: f64,
    /// Mean service time as local-state, in seconds.
    pub local_seconds: f64,
    /// Mean service time as remote-state, in seconds.
    pub remote_seconds: f64,
    /// Whether it is local-state now.
    pub is_local: bool,
    /// What its application asked for.
    pub wish: Wish,
}

/// How readily sessions change.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// Containers in all, dedicated and shared.
    pub containers: u32,
    /// Seconds of delay that one transition costs its session.
    pub transition_seconds: f64,
    /// Seconds within which a transition has to pay for itself.
    pub horizon_seconds: f64,
    /// Least relative improvement of the mean latency for any change that nobody asked for.
    pub margin: f64,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Sessions to make local-state, by their place in the input.
    pub promote: Vec<usize>,
    /// Sessions to make remote-state.
    pub demote: Vec<usize>,
    /// Expected mean latency as things are, in seconds; the queue that is unstable, if one is.
    pub before: Result<f64, Unstable>,
    /// Expected mean latency after the plan, in seconds.
    pub after: Result<f64, Unstable>,
    /// Wishes to be local-state that no container was left for.
    pub refused: Vec<usize>,
}

/// Decides from measured rates. Sessions keep their place in all results.
pub fn plan(sessions: &[Session], options: &Options) -> Plan {
    let now: Vec<bool> = sessions.iter().map(|session| session.is_local).collect();
    let before = mean_seconds(sessions, &now, options.containers);
    let waiting = pool_waiting(sessions, &now, options.containers);
    // What a session gains by a container, in seconds of latency per second.
    let gain = |session: &Session| match dedicated_seconds(session.rate, session.local_seconds) {
        Ok(local) => session.rate * (session.remote_seconds + waiting - local),
        Err(_) => f64::NEG_INFINITY,
    };
    let mut order: Vec<(usize, f64)> = sessions
        .iter()
        .map(gain)
        .enumerate()
        .filter(|(at, gain)| sessions[*at].wish != Wish::Remote && gain.is_finite())
        .collect();
    // Those who have a container already cost no transition: with equal gains they stay.
    let pays = |at: usize, gain: f64| {
        sessions[at].is_local || gain * options.horizon_seconds > options.transition_seconds
    };
    order.retain(|(at, gain)| sessions[*at].wish == Wish::Local || pays(*at, *gain));
    order.sort_by(|(a, gain_a), (b, gain_b)| {
        let asked = |at: usize| sessions[at].wish == Wish::Local;
        let kept = |at: usize| sessions[at].is_local;
        (asked(*b), kept(*b) && asked(*b))
            .cmp(&(asked(*a), kept(*a) && asked(*a)))
            .then(gain_b.total_cmp(gain_a))
            .then(kept(*b).cmp(&kept(*a)))
            .then(a.cmp(b))
    });
    let asked = order
        .iter()
        .filter(|(at, _)| sessions[*at].wish == Wish::Local)
        .count();
    let (granted, best) = best_prefix(sessions, &order, asked, options.containers);
    let worth = match (&before, &best) {
        (Err(_), _) => true,
        (Ok(before), Ok(after)) => *after < before * (1.0 - options.margin),
        (Ok(_), Err(_)) => false,
    };
    let mut then = vec![false; sessions.len()];
    for (at, _) in &order[..granted] {
        then[*at] = true;
    }
    let asked_for = |session: &Session, then: bool| match session.wish {
        Wish::Local => then && !session.is_local,
        Wish::Remote => session.is_local,
        Wish::None => false,
    };
    let forced = sessions
        .iter()
        .zip(&then)
        .any(|(session, then)| asked_for(session, *then));
    let too_many = now.iter().filter(|local| **local).count() > options.containers as usize;
    let changes = worth || forced || too_many;
    if !changes {
        then.clone_from(&now);
    }
    let after = if changes { best } else { before.clone() };
    let all = |wanted: bool| {
        (0..sessions.len())
            .filter(|at| now[*at] != wanted && then[*at] == wanted)
            .collect()
    };
    Plan {
        promote: all(true),
        demote: all(false),
        before,
        after,
        refused: (0..sessions.len())
            .filter(|at| sessions[*at].wish == Wish::Local && !then[*at])
            .collect(),
    }
}

/// How many of `order` get a container, at least the first `asked` as far as the others' pool stays
/// stable; and the mean latency then.
fn best_prefix(
    sessions: &[Session],
    order: &[(usize, f64)],
    asked: usize,
    containers: u32,
) -> (usize, Result<f64, Unstable>) {
    let most = order.len().min(containers as usize);
    let mut pool = Pool::of(sessions, &vec![false; sessions.len()]);
    let mut dedicated = 0.0;
    let mut best: Option<(usize, f64)> = None;
    let mut last_stable_wish = None;
    for granted in 0..=most {
        if granted > 0 {
            let session = &sessions[order[granted - 1].0];
            pool.remove(session);
            // Unstable ones were sorted out before.
            dedicated += dedicated_seconds(session.rate, session.local_seconds)
                .map_or(f64::INFINITY, |seconds| session.rate * seconds);
        }
        let Ok(pooled) = pool.seconds(containers - granted as u32) else {
            continue;
        };
        let mean = (dedicated + pooled) / total_rate(sessions);
        if granted <= asked {
            last_stable_wish = Some((granted, mean));
        }
        if granted >= asked && best.is_none_or(|(_, least)| mean < least) {
            best = Some((granted, mean));
        }
    }
    match best.or(last_stable_wish) {
        Some((granted, mean)) => (granted, Ok(mean)),
        None => {
            let nobody = vec![false; sessions.len()];
            (0, mean_seconds(sessions, &nobody, containers))
        }
    }
}

/// Mean latency over all calls, in seconds, when `local` says who has a container.
///
/// # Errors
/// When a queue is unstable.
pub fn mean_seconds(
    sessions: &[Session],
    local: &[bool],
    containers: u32,
) -> Result<f64, Unstable> {
    let mut dedicated = 0.0;
    let mut taken = 0;
    for (session, _) in sessions.iter().zip(local).filter(|(_, local)| **local) {
        dedicated += session.rate * dedicated_seconds(session.rate, session.local_seconds)?;
        taken += 1;
    }
    let pooled = Pool::of(sessions, local).seconds(containers.saturating_sub(taken))?;
    Ok((dedicated + pooled) / total_rate(sessions))
}

/// Mean time that a call waits for a shared container; how long the work of a whole second would
/// take if the pool is unstable, so that gains still compare.
fn pool_waiting(sessions: &[Session], local: &[bool], containers: u32) -> f64 {
    let taken = local.iter().filter(|local| **local).count() as u32;
    let pool = Pool::of(sessions, local);
    let mean = pool.work / pool.rate.max(f64::MIN_POSITIVE);
    match pool.seconds(containers.saturating_sub(taken)) {
        Ok(seconds) if pool.rate > 0.0 => seconds / pool.rate - mean,
        Ok(_) => 0.0,
        Err(_) => pool.work.max(mean),
    }
}

fn total_rate(sessions: &[Session]) -> f64 {
    let rate: f64 = sessions.iter().map(|session| session.rate).sum();
    rate.max(f64::MIN_POSITIVE)
}

/// The remote-state sessions taken together: one M/M/c queue with their mean service time.
struct Pool {
    rate: f64,
    /// Seconds of service asked for in a second.
    work: f64,
    sessions: usize,
}

impl Pool {
    fn of(sessions: &[Session], local: &[bool]) -> Self {
        let mut pool = Self {
            rate: 0.0,
            work: 0.0,
            sessions: 0,
        };
        for (session, _) in sessions.iter().zip(local).filter(|(_, local)| !**local) {
            pool.rate += session.rate;
            pool.work += session.rate * session.remote_seconds;
            pool.sessions += 1;
        }
        pool
    }

    fn remove(&mut self, session: &Session) {
        self.sessions -= 1;
        self.rate -= session.rate;
        self.work -= session.rate * session.remote_seconds;
        if self.sessions == 0 {
            // What rounding left.
            (self.rate, self.work) = (0.0, 0.0);
        }
    }

    /// Seconds of latency per second over all its calls.
    fn seconds(&self, containers: u32) -> Result<f64, Unstable> {
        if self.rate <= 0.0 {
            return Ok(0.0);
        }
        Ok(self.rate * pool_seconds(containers, self.rate, self.work / self.rate)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::local_state::latency::Clients;
    use proptest::prelude::*;

    const OPTIONS: Options = Options {
        containers: 40,
        transition_seconds: 1.0,
        horizon_seconds: 600.0,
        margin: 0.02,
    };

    fn session() -> Session {
        Session {
            rate: 0.075,
            local_seconds: 1.0,
            remote_seconds: 3.0,
            is_local: false,
            wish: Wish::None,
        }
    }

    fn carried_out(sessions: &[Session], plan: &Plan) -> Vec<Session> {
        let mut sessions = sessions.to_vec();
        for at in &plan.promote {
            sessions[*at].is_local = true;
        }
        for at in &plan.demote {
            sessions[*at].is_local = false;
        }
        sessions
    }

    #[test]
    fn equal_sessions_get_the_optimum_of_the_model() {
        let clients = Clients {
            clients: 90,
            containers: 40,
            rate: 0.075,
            local_seconds: 1.0,
            remote_seconds: 3.0,
        };
        let (best, seconds) = clients.optimum().unwrap();
        let plan = plan(&vec![session(); 90], &OPTIONS);
        assert_eq!(plan.promote.len(), best as usize);
        assert!((plan.after.unwrap() - seconds).abs() < 1e-9);
    }

    #[test]
    fn wishes_come_first_and_remote_ones_are_obeyed() {
        let mut sessions = vec![session(); 90];
        for (at, session) in sessions.iter_mut().enumerate() {
            session.rate = 0.05 + at as f64 * 0.0005;
        }
        sessions[0].wish = Wish::Local;
        sessions[89].wish = Wish::Remote;
        sessions[89].is_local = true;
        let plan = plan(&sessions, &OPTIONS);
        assert!(plan.promote.contains(&0), "the slowest, but it asked");
        assert_eq!(plan.demote, [89]);
        assert!(plan.refused.is_empty());
    }

    #[test]
    fn what_does_not_pay_is_left_alone() {
        let impatient = Options {
            horizon_seconds: 1.0,
            transition_seconds: 100.0,
            ..OPTIONS
        };
        let plan = plan(&vec![session(); 90], &impatient);
        assert!(plan.promote.is_empty());
    }

    #[test]
    fn nobody_calls() {
        let mut idle = session();
        idle.rate = 0.0;
        let plan = plan(&[idle; 3], &OPTIONS);
        assert!(plan.promote.is_empty());
        assert_eq!(plan.after, Ok(0.0));
    }

    proptest! {
        #[test]
        fn a_plan_that_was_carried_out_is_kept(
            rates in prop::collection::vec((0.01_f64..0.3, 0.2_f64..1.5, 0.5_f64..4.0), 1..80),
            containers in 1_u32..60,
        ) {
            let sessions: Vec<Session> = rates
                .iter()
                .map(|(rate, local_seconds, more)| Session {
                    rate: *rate,
                    local_seconds: *local_seconds,
                    remote_seconds: local_seconds + more,
                    is_local: false,
                    wish: Wish::None,
                })
                .collect();
            let options = Options { containers, ..OPTIONS };
            let first = plan(&sessions, &options);
            prop_assert!(first.promote.len() <= containers as usize);
            if let (Ok(before), Ok(after)) = (&first.before, &first.after) {
                prop_assert!(after <= before);
            }
            // Gains depend on how full the pool is, so a second look may still improve; it must not
            // go back and forth.
            let mut sessions = carried_out(&sessions, &first);
            let mut last = first.after;
            for _ in 0..4 {
                let next = plan(&sessions, &options);
                if let (Ok(last), Ok(next)) = (&last, &next.after) {
                    prop_assert!(*next <= last * (1.0 + 1e-9));
                }
                last = next.after.clone();
                sessions = carried_out(&sessions, &next);
            }
            let settled = plan(&sessions, &options);
            prop_assert!(settled.promote.is_empty() || settled.before.is_err());
        }
    }
}
