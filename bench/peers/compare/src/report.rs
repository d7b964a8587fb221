//! The tables: medians over the rounds, and ratios of medians, as Markdown.

use crate::Arguments;
use crate::load::Run;
use crate::probe::{self, Unusable};
use crate::results::{Record, Results, Start};
use crate::target::{Phase, Target};

/// Bytes of a MiB.
const MIB: f64 = 1_048_576.0;

/// The median; `None` of nothing.
fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_unstable_by(f64::total_cmp);
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[count / 2]),
        count => Some((values[count / 2 - 1] + values[count / 2]) / 2.0),
    }
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.digits$}"))
}

/// The results, asked for by target.
struct Medians<'a>(&'a Results);

impl<'a> Medians<'a> {
    /// The runs that are not void.
    fn runs(&self, target: Target, phase: Phase) -> impl Iterator<Item = &'a Run> {
        self.0
            .records
            .iter()
            .filter_map(move |record| match record {
                Record::Run(run) if run.target == target && run.phase == phase && !run.void => {
                    Some(run)
                }
                _ => None,
            })
    }

    fn run(&self, target: Target, phase: Phase, value: impl Fn(&Run) -> f64) -> Option<f64> {
        median(self.runs(target, phase).map(value))
    }

    fn rate(&self, target: Target, phase: Phase) -> Option<f64> {
        self.run(target, phase, |run| run.outcome.requests_per_second)
    }

    fn start(&self, target: Target, value: impl Fn(&Start) -> f64) -> Option<f64> {
        median(self.0.records.iter().filter_map(|record| match record {
            Record::Start(start) if start.target == target => Some(value(start)),
            _ => None,
        }))
    }

    fn new_sessions(&self, target: Target) -> Option<f64> {
        median(self.0.records.iter().filter_map(|record| match record {
            Record::NewSessions(difference) if difference.target == target => {
                Some(difference.ratio)
            }
            _ => None,
        }))
    }
}

/// Prints everything to standard output.
pub(crate) fn print(arguments: &Arguments, results: &Results) {
    let medians = Medians(results);
    for record in &results.records {
        if let Record::Machine(machine) = record {
            println!(
                "{}, {} cores, Linux {}, {}; commit {}; load by {}; medians of {} rounds of {} s",
                machine.processor,
                machine.cores,
                machine.kernel,
                machine.file_system,
                machine.commit,
                machine.generator,
                machine.rounds,
                machine.seconds
            );
            println!("{}\n", machine.versions.join("; "));
        }
    }
    for &phase in &arguments.phases {
        loads(arguments, &medians, phase);
    }
    starts(arguments, &medians);
    sync(results, &medians);
    soundness(results);
    println!("\nAll results: {}", results.path.display());
}

fn title(arguments: &Arguments, phase: Phase) -> String {
    let Arguments {
        connections,
        sessions,
        ..
    } = arguments;
    match phase {
        Phase::Many => format!("Counter, {sessions} sessions, {connections} connections"),
        Phase::Hot => format!("Counter, one session, {connections} connections"),
        Phase::Single => format!("Counter, {sessions} sessions, one connection"),
        Phase::Five => format!(
            "Five reads and writes in one request (Redis: five INCRBY), {connections} connections"
        ),
        Phase::FiveGetSet => format!(
            "Five reads and writes in one request (Redis: five GET, five SET), {connections} connections"
        ),
    }
}

fn loads(arguments: &Arguments, medians: &Medians, phase: Phase) {
    println!("## {}\n", title(arguments, phase));
    println!(
        "| server | runs | requests/s | min to max | Fulmar is | p50 us | p99 us | CPU us a request | server cores | other cores |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    // Fulmar does the five in one way; Redis in two.
    let own_phase = match phase {
        Phase::FiveGetSet => Phase::Five,
        other => other,
    };
    let own = medians.rate(Target::Fulmar, own_phase);
    for &target in &arguments.targets {
        let phase = match target {
            Target::Fulmar => own_phase,
            _ => phase,
        };
        let rates: Vec<f64> = medians
            .runs(target, phase)
            .map(|run| run.outcome.requests_per_second)
            .collect();
        if rates.is_empty() {
            continue;
        }
        let of = |value: fn(&Run) -> f64| medians.run(target, phase, value);
        let rate = medians.rate(target, phase);
        let ratio = match (own, rate) {
            (Some(own), Some(rate)) if target != Target::Fulmar => format!("{:.2} x", own / rate),
            _ => "-".to_owned(),
        };
        println!(
            "| {} | {} | {} | {:.0} to {:.0} | {ratio} | {} | {} | {} | {} | {} |",
            target.label(),
            rates.len(),
            shown(rate, 0),
            rates.iter().copied().fold(f64::INFINITY, f64::min),
            rates.iter().copied().fold(0.0, f64::max),
            shown(of(|run| run.outcome.p50_us as f64), 0),
            shown(of(|run| run.outcome.p99_us as f64), 0),
            shown(of(|run| run.cpu_us_per_request), 1),
            shown(of(|run| run.server_cores), 2),
            shown(of(|run| run.other_cores), 2),
        );
    }
    println!();
}

fn starts(arguments: &Arguments, medians: &Medians) {
    println!("## Start, memory, new sessions\n");
    println!(
        "| server | start to first response, ms | idle memory, MiB | first request of a session / next ones |"
    );
    println!("|---|---|---|---|");
    for &target in &arguments.targets {
        println!(
            "| {} | {} | {} | {} |",
            target.label(),
            shown(medians.start(target, |start| start.to_first_response_ms), 0),
            shown(
                medians.start(target, |start| start.idle_bytes as f64 / MIB),
                0
            ),
            shown(medians.new_sessions(target), 2),
        );
    }
    println!();
}

/// One connection against the disk, and the size of the binary.
fn sync(results: &Results, medians: &Medians) {
    let syncs = || {
        results.records.iter().filter_map(|record| match record {
            Record::Sync(sync) => Some(sync),
            _ => None,
        })
    };
    let append = median(syncs().map(|sync| sync.append_us));
    let overwrite = median(syncs().map(|sync| sync.overwrite_us));
    println!("## One connection and the disk\n");
    println!(
        "fdatasync after a write of 128 bytes, p50: {} us at the end of a growing file, {} us within a file.",
        shown(append, 0),
        shown(overwrite, 0)
    );
    let single = medians.run(Target::Fulmar, Phase::Single, |run| {
        run.outcome.p50_us as f64
    });
    let bare = medians.run(Target::Axum, Phase::Single, |run| run.outcome.p50_us as f64);
    // The worse of the two: neither may have been the disk's own time.
    let other_cores = median(syncs().map(|sync| sync.other_cores))
        .unwrap_or(0.0)
        .max(
            medians
                .run(Target::Fulmar, Phase::Single, |run| run.other_cores)
                .unwrap_or(0.0),
        );
    if let (Some(single), Some(append), Some(overwrite)) = (single, append, overwrite) {
        println!(
            "Fulmar's p50 over one connection is {single:.0} us, bare axum's {} us; others took {other_cores:.2} cores meanwhile.",
            shown(bare, 0)
        );
        // The shorter of the two: what is more than that is Fulmar's, whatever its log does.
        let sync = append.min(overwrite);
        println!(
            "{}",
            match probe::excess(single, sync, other_cores) {
                Ok(excess) => format!("That is {excess:.0} us more than one fdatasync."),
                Err(Unusable::Busy) => "NOT comparable with one fdatasync: the machine was busy, \
                    and a sync's time is then the scheduler's rather than the disk's. Measure again \
                    on an idle machine."
                    .to_owned(),
                Err(Unusable::FasterThanTheDisk) =>
                    "NOT comparable with one fdatasync: the durable request was faster than the \
                    sync it waits for, so one of the two is measured wrongly."
                        .to_owned(),
            }
        );
    }
    for record in &results.records {
        if let Record::Machine(machine) = record {
            println!(
                "The binary of Fulmar has {:.1} MiB.",
                machine.binary_bytes as f64 / MIB
            );
        }
    }
}

fn soundness(results: &Results) {
    let (mut void, mut runs, mut wrong, mut checks) = (0, 0, 0, 0);
    for record in &results.records {
        match record {
            Record::Run(run) => {
                runs += 1;
                void += u32::from(run.void);
            }
            Record::Counters(counters) => {
                checks += 1;
                wrong += u32::from(!counters.check.ok);
            }
            _ => {}
        }
    }
    println!(
        "\n{void} of {runs} runs are void; {wrong} of {checks} sums of counters are not what the answers say."
    );
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median([]), None);
        assert_eq!(median([3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
