//! What happens: who reports what, when, and to which node. The same for every execution model.

use std::time::Duration;

/// The two parts of a client's day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// The car drives past one node after the other.
    Cruising,
    /// It stands still and looks around.
    Parking,
    /// The arms report.
    Calm,
    /// One of them begins to fail: it reports more, and where the diagnosis is.
    Failing,
}

impl Phase {
    pub(super) const ALL: [Self; 4] = [Self::Cruising, Self::Parking, Self::Calm, Self::Failing];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Cruising => "cruising",
            Self::Parking => "parking",
            Self::Calm => "calm",
            Self::Failing => "failing",
        }
    }
}

/// How a client reaches the node that it talks to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uplink {
    /// There and back.
    pub(super) round_trip: Duration,
    /// In each direction.
    pub(super) bytes_per_second: f64,
}

impl Uplink {
    /// Time that so many bytes are on their way in one direction.
    pub(super) fn takes(&self, bytes: usize) -> Duration {
        self.round_trip / 2 + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second)
    }
}

/// One report.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Report {
    /// Since the beginning.
    pub(super) at: Duration,
    pub(super) phase: Phase,
    /// Who takes it.
    pub(super) node: &'static str,
    pub(super) sensor: usize,
    pub(super) bytes: usize,
}

/// Somebody who reports.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) name: String,
    pub(super) uplink: Uplink,
    /// Longest time that an answer may take.
    pub(super) slo: Duration,
    pub(super) reports: Vec<Report>,
}

/// A stretch of time in which a client reports steadily.
struct Stretch {
    phase: Phase,
    node: &'static str,
    /// Seconds since the beginning.
    from: f64,
    to: f64,
    per_second: f64,
    sensors: usize,
    bytes: usize,
}

fn reports(stretches: &[Stretch]) -> Vec<Report> {
    let mut reports = Vec::new();
    for stretch in stretches {
        let count = ((stretch.to - stretch.from) * stretch.per_second).round() as usize;
        for n in 0..count {
            let at = stretch.from + n as f64 / stretch.per_second;
            reports.push(Report {
                at: Duration::from_secs_f64(at),
                phase: stretch.phase,
                node: stretch.node,
                sensor: n % stretch.sensors,
                bytes: stretch.bytes,
            });
        }
    }
    reports
}

/// A short one by other names: who plays it has made all connections before anything counts.
pub(super) fn rehearsal() -> Vec<Client> {
    let mut clients = script(1.0);
    for client in &mut clients {
        client.name += "-rehearsal";
    }
    clients
}

/// Who reports, with phases of so many seconds.
pub(super) fn script(seconds: f64) -> Vec<Client> {
    let cruising = |node, from, to| Stretch {
        phase: Phase::Cruising,
        node,
        from: seconds * from,
        to: seconds * to,
        per_second: 10.0,
        sensors: 4,
        bytes: 64,
    };
    let parking = Stretch {
        phase: Phase::Parking,
        node: "road-3",
        from: seconds,
        to: 2.0 * seconds,
        per_second: 20.0,
        sensors: 24,
        bytes: 256,
    };
    let car = Client {
        name: "car-7".into(),
        // A cell of a mobile network with others in it.
        uplink: Uplink {
            round_trip: Duration::from_millis(4),
            bytes_per_second: 1e6,
        },
        slo: Duration::from_millis(15),
        reports: reports(&[
            cruising("road-1", 0.0, 1.0 / 3.0),
            cruising("road-2", 1.0 / 3.0, 2.0 / 3.0),
            cruising("road-3", 2.0 / 3.0, 1.0),
            parking,
        ]),
    };
    let arm = |number: usize, node: &'static str| {
        let fails = number == 2;
        let stretch = |phase, node, from, to, per_second| Stretch {
            phase,
            node,
            from,
            to,
            per_second,
            sensors: 6,
            bytes: 128,
        };
        Client {
            name: format!("arm-{number}"),
            // A cable.
            uplink: Uplink {
                round_trip: Duration::from_millis(1),
                bytes_per_second: 12.5e6,
            },
            slo: Duration::from_millis(10),
            reports: reports(&[
                stretch(Phase::Calm, node, 0.0, seconds, 5.0),
                match fails {
                    true => stretch(Phase::Failing, "plant-3", seconds, 2.0 * seconds, 20.0),
                    false => stretch(Phase::Failing, node, seconds, 2.0 * seconds, 5.0),
                },
            ]),
        }
    };
    vec![car, arm(1, "plant-1"), arm(2, "plant-2"), arm(3, "plant-3")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_model_gets_the_same_in_the_order_of_time() {
        let (one, other) = (script(10.0), script(10.0));
        for (one, other) in one.iter().zip(&other) {
            assert_eq!(one.reports, other.reports);
            assert!(one.reports.is_sorted_by_key(|report| report.at));
            let last = one.reports.last().map(|report| report.at);
            assert!(last < Some(Duration::from_secs(20)));
        }
        let phases = |client: &Client| {
            let mut phases: Vec<Phase> = client.reports.iter().map(|report| report.phase).collect();
            phases.dedup();
            phases
        };
        assert_eq!(phases(&one[0]), [Phase::Cruising, Phase::Parking]);
        assert_eq!(phases(&one[2]), [Phase::Calm, Phase::Failing]);
    }
}
