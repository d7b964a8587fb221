//! Whether to take one more invocation that has to wait for a worker, or to say at once that there are too many.
//!
//! "Cliffhanger", IV-A and V: under overload queues grow until all that is done is late. A burst may wait; a queue that does
//! not empty (as CoDel tells one from the other, Nichols and Jacobson 2012) takes no more than what is worked off soon.

/// A queue whose wait is shorter is none, in seconds.
const TARGET: f64 = 0.01;
/// A queue that is younger is a burst, in seconds.
const YOUNG: f64 = 0.1;
/// A burst may take so long to be worked off, in seconds.
const BURST: f64 = 0.4;

/// What waits for the workers of a function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Queue {
    /// How many wait.
    pub waiting: u32,
    /// For how long there was always one that waited, in seconds.
    pub standing_seconds: f64,
    /// Workers that work on it.
    pub workers: u32,
    /// How long each invocation keeps one now, in seconds.
    pub seconds: f64,
    /// How long one may wait, in seconds, if somebody has said so.
    pub allowed_seconds: Option<f64>,
}

/// What a newcomer is told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TooMany {
    /// How long it would wait, in seconds.
    pub wait_seconds: f64,
    /// When it may come again, in seconds.
    pub again_seconds: f64,
}

impl Queue {
    /// How long one that joins now would wait, in seconds; 0 if nobody knows.
    pub fn wait_seconds(&self) -> f64 {
        match self.workers {
            0 => 0.0,
            workers => f64::from(self.waiting) * self.seconds / f64::from(workers),
        }
    }

    /// Takes one more, or not.
    ///
    /// # Errors
    /// How long it would wait, if that is too long.
    pub fn admit(&self) -> Result<(), TooMany> {
        let soon = self.allowed_seconds.unwrap_or(TARGET.max(self.seconds));
        let allowed = match self.standing_seconds < YOUNG {
            true => BURST.max(soon),
            false => soon,
        };
        let wait_seconds = self.wait_seconds();
        match wait_seconds > allowed {
            true => Err(TooMany {
                wait_seconds,
                again_seconds: wait_seconds - soon,
            }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUEUE: Queue = Queue {
        waiting: 0,
        standing_seconds: 0.0,
        workers: 2,
        seconds: 0.02,
        allowed_seconds: None,
    };

    #[test]
    fn a_burst_waits_and_a_standing_queue_does_not_grow() {
        let queue = |waiting, standing_seconds| Queue {
            waiting,
            standing_seconds,
            ..QUEUE
        };
        assert_eq!(queue(40, 0.05).admit(), Ok(()), "worked off in 0.4 s");
        assert!(queue(41, 0.05).admit().is_err());
        assert_eq!(queue(2, 10.0).admit(), Ok(()));
        assert!(queue(3, 10.0).admit().is_err());
        let patient = Queue {
            allowed_seconds: Some(0.5),
            ..queue(50, 10.0)
        };
        assert_eq!(patient.admit(), Ok(()));
        let told = queue(50, 10.0).admit().unwrap_err();
        assert!((told.wait_seconds - 0.5).abs() < 1e-9);
        assert!((told.again_seconds - 0.48).abs() < 1e-9);
    }

    #[test]
    fn what_takes_long_may_wait_for_long() {
        let slow = Queue {
            waiting: 2,
            standing_seconds: 60.0,
            seconds: 10.0,
            ..QUEUE
        };
        assert_eq!(slow.admit(), Ok(()));
        let unknown = Queue {
            waiting: 1000,
            workers: 0,
            ..slow
        };
        assert_eq!(unknown.admit(), Ok(()), "the first is being started");
    }

    /// Arrivals at ten times what two workers do, for a minute: what is accepted, and how long it waits.
    #[test]
    fn goodput_stays_and_waits_stay_short() {
        let (capacity, step) = (100.0, 0.001);
        let (mut waiting, mut standing, mut done) = (0.0_f64, 0.0, 0.0);
        let mut waits = Vec::new();
        for _ in 0..60_000 {
            let worked: f64 = (capacity * step * 1.0_f64).min(waiting);
            waiting -= worked;
            done += worked;
            standing = if waiting < 1.0 { 0.0 } else { standing + step };
            let queue = Queue {
                waiting: waiting as u32,
                standing_seconds: standing,
                ..QUEUE
            };
            if queue.admit().is_ok() {
                waiting += 10.0 * capacity * step;
                waits.push(queue.wait_seconds());
            }
        }
        assert!(done > 0.99 * 60.0 * capacity, "{done}");
        waits.sort_by(f64::total_cmp);
        let p99 = waits[waits.len() * 99 / 100];
        assert!(p99 <= 0.04, "{p99}");
    }
}
