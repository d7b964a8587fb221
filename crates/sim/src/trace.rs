//! Jobs of dependent tasks: read from a cluster trace or generated; each becomes a chain of steps,
//! some of which have state.
//!
//! `batch_task.csv` (plain or `.gz`): `start,job,task,duration,cpu,mem,instances` without a head. A
//! task named `X5_2_3` is the fifth of its job and depends on the second and the third; names with
//! `task_` in them are independent and skipped. The chain starts at the first task and follows those
//! that depend on it; tasks that a member depends on but that are not members are its *states*.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use crate::Error;
use crate::random::Random;

/// Operations of a task that keeps one core of the trace's machines busy for a second.
const OPS_PER_CORE_SECOND: f64 = 100_000.0;
/// Bytes of a task that the trace gives one unit of memory.
const BYTES_PER_MEMORY: f64 = 1_000_000.0;

/// A chain with state.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// In the order in which they run.
    pub tasks: Vec<Task>,
    /// Bytes of each state.
    pub states: Vec<f64>,
}

/// A step of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Operations.
    pub ops: f64,
    /// Bytes of its argument; its result is the next one's argument, or for the last one as large as
    /// the first one's.
    pub argument_bytes: f64,
    /// Its states, by their places in the job.
    pub states: Vec<usize>,
}

impl Job {
    /// Bytes that the task returns.
    pub fn result_bytes(&self, task: usize) -> f64 {
        let next = self.tasks.get(task + 1).unwrap_or(&self.tasks[0]);
        next.argument_bytes
    }

    /// Bytes of all states.
    pub fn state_bytes(&self) -> f64 {
        self.states.iter().sum()
    }
}

/// One line of the trace that is kept.
struct Row {
    ops: f64,
    bytes: f64,
    needs: Vec<u32>,
}

/// Reads the jobs that have state.
///
/// # Errors
/// When the file cannot be read, or a line makes no sense; the text says which.
pub fn read(path: &Path) -> Result<Vec<Job>, Error> {
    let file = |source| Error::File {
        path: path.to_owned(),
        source,
    };
    let bytes = std::fs::read(path).map_err(file)?;
    let mut text = String::new();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_string(&mut text)
            .map_err(|error| {
                Error::invalid(format!(
                    "{}: it ends early or is damaged: {error}",
                    path.display()
                ))
            })?;
    } else {
        text = String::from_utf8(bytes)
            .map_err(|error| Error::invalid(format!("{}: {error}", path.display())))?;
    }
    parse(&path.display().to_string(), &text)
}

/// The jobs with state in the text of a trace; `name` is for messages.
///
/// # Errors
/// As [`read`].
pub fn parse(name: &str, text: &str) -> Result<Vec<Job>, Error> {
    let mut jobs: Vec<(&str, BTreeMap<u32, Row>)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let wrong = |what: &str| Error::invalid(format!("{name}, line {}: {what}", at + 1));
        let fields: Vec<&str> = line.split(',').collect();
        let [_, job, task, duration, cpu, memory, _] = fields[..] else {
            return Err(wrong(&format!(
                "{} fields, expected 7: start,job,task,duration,cpu,mem,instances",
                fields.len()
            )));
        };
        if task.contains("task_") {
            continue;
        }
        let number = |what: &str, text: &str| match text.trim().parse::<f64>() {
            Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
            _ => Err(wrong(&format!(
                "the {what} is {text:?}; it has to be a number, 0 or more"
            ))),
        };
        let parts: Option<Vec<u32>> = task
            .trim_start_matches(|letter: char| letter.is_ascii_alphabetic())
            .split('_')
            .map(|part| part.parse().ok())
            .collect();
        let Some([index, needs @ ..]) = parts.as_deref() else {
            return Err(wrong(&format!(
                "the task {task:?} is not of the form X5_2_3"
            )));
        };
        let row = Row {
            ops: (number("duration", duration)? * number("cpu", cpu)? / 100.0
                * OPS_PER_CORE_SECOND)
                .round(),
            bytes: number("memory", memory)? * BYTES_PER_MEMORY,
            needs: needs.to_vec(),
        };
        let place = *places.entry(job).or_insert_with(|| {
            jobs.push((job, BTreeMap::new()));
            jobs.len() - 1
        });
        jobs[place].1.insert(*index, row);
    }
    let mut kept = Vec::new();
    for (job, rows) in &jobs {
        check_order(name, job, rows)?;
        kept.extend(chain(rows));
    }
    if kept.is_empty() {
        return Err(Error::invalid(format!(
            "{name}: there is no job with state in it"
        )));
    }
    Ok(kept)
}

/// # Errors
/// When the tasks of a job depend on each other in a circle.
fn check_order(name: &str, job: &str, rows: &BTreeMap<u32, Row>) -> Result<(), Error> {
    let mut done: BTreeSet<u32> = BTreeSet::new();
    loop {
        let ready: Vec<u32> = rows
            .iter()
            .filter(|(index, _)| !done.contains(index))
            .filter(|(_, row)| {
                row.needs
                    .iter()
                    .all(|need| done.contains(need) || !rows.contains_key(need))
            })
            .map(|(index, _)| *index)
            .collect();
        if ready.is_empty() {
            break;
        }
        done.extend(ready);
    }
    match rows.keys().find(|index| !done.contains(index)) {
        Some(index) => Err(Error::invalid(format!(
            "{name}: task {index} of {job} depends on itself in a circle"
        ))),
        None => Ok(()),
    }
}

/// The chain that starts at the job's first task; none if it has no state.
fn chain(rows: &BTreeMap<u32, Row>) -> Option<Job> {
    let first = *rows.keys().next()?;
    let mut members = BTreeSet::from([first]);
    let mut open = vec![first];
    while let Some(at) = open.pop() {
        for (index, _) in rows.iter().filter(|(_, row)| row.needs.contains(&at)) {
            if members.insert(*index) {
                open.push(*index);
            }
        }
    }
    let needed: BTreeSet<u32> = members
        .iter()
        .flat_map(|member| &rows[member].needs)
        .filter(|need| !members.contains(need) && rows.contains_key(need))
        .copied()
        .collect();
    if needed.is_empty() {
        return None;
    }
    let states: Vec<u32> = needed.into_iter().collect();
    let task = |row: &Row| Task {
        ops: row.ops,
        argument_bytes: row.bytes,
        states: (0..states.len())
            .filter(|at| row.needs.contains(&states[*at]))
            .collect(),
    };
    Some(Job {
        tasks: members.iter().map(|member| task(&rows[member])).collect(),
        states: states.iter().map(|state| rows[state].bytes).collect(),
    })
}

/// Jobs for those who have no trace: two to `longest` steps of some seconds each, about every second
/// with a state of its own or of an earlier step's.
pub fn generate(jobs: u32, longest: u32, random: &mut Random) -> Vec<Job> {
    (0..jobs)
        .map(|_| {
            // Short chains are more frequent: the smaller of two draws.
            let spread = longest.max(2) as usize - 1;
            let length = 2 + random.below(spread).min(random.below(spread));
            let mut states = vec![random.uniform(0.05, 1.0) * BYTES_PER_MEMORY];
            let tasks = (0..length)
                .map(|at| {
                    let state = match (at, random.chance(0.5)) {
                        (0, _) => vec![0],
                        (_, false) => Vec::new(),
                        (_, true) if random.chance(0.5) => vec![random.below(states.len())],
                        (_, true) => {
                            states.push(random.uniform(0.05, 1.0) * BYTES_PER_MEMORY);
                            vec![states.len() - 1]
                        }
                    };
                    Task {
                        ops: random.exponential(50.0) * OPS_PER_CORE_SECOND,
                        argument_bytes: random.uniform(0.05, 1.0) * BYTES_PER_MEMORY,
                        states: state,
                    }
                })
                .collect();
            Job { tasks, states }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0,j,M1,10,50,0.3,1\n0,j,R2_1,20,100,0.5,1\n0,j,M3,5,50,0.2,1\n\
                         0,j,R4_2_3,1,100,0.1,1\n0,k,M1,1,1,1,1\n0,k,R2_1,1,1,1,1\n\
                         0,k,task_xyz,1,1,1,1\n";

    #[test]
    fn predecessors_outside_the_chain_are_its_states() {
        let jobs = parse("t", TRACE).unwrap();
        assert_eq!(jobs.len(), 1, "the second job has no state");
        let job = &jobs[0];
        assert_eq!(job.tasks.len(), 3);
        assert_eq!(job.tasks[0].ops, 500_000.0);
        assert_eq!(job.states, [200_000.0]);
        assert_eq!(job.tasks[2].states, [0]);
        assert_eq!(job.result_bytes(0), 500_000.0);
        assert_eq!(job.result_bytes(2), 300_000.0, "the return value");
    }

    #[test]
    fn nonsense_is_refused_with_its_line() {
        for (text, says) in [
            ("", "no job with state"),
            ("0,j,M1,10,50,0.3", "line 1: 6 fields"),
            ("0,j,M1,x,50,0.3,1", "the duration is \"x\""),
            ("0,j,M1,NaN,50,0.3,1", "the duration is \"NaN\""),
            ("0,j,M,1,50,0.3,1", "\"M\" is not of the form"),
            ("0,j,M1_2,1,1,1,1\n0,j,M2_1,1,1,1,1", "in a circle"),
        ] {
            let error = parse("t", text).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn generated_jobs_have_state() {
        let jobs = generate(50, 8, &mut Random::new(1, 0));
        assert!(
            jobs.iter()
                .all(|job| !job.states.is_empty() && job.tasks.len() >= 2)
        );
        assert!(jobs.iter().any(|job| job.tasks.len() > 4));
    }
}
