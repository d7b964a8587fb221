//! Steps of a chore: announced as they start, timed, summed up at the end.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Runs the steps of one chore. A failing step ends it; the summary still comes.
pub(crate) struct Steps {
    chore: &'static str,
    total: usize,
    done: Vec<Done>,
    started: Instant,
}

struct Done {
    name: String,
    took: Duration,
    /// What is worth knowing of it afterwards; `None` when it failed.
    result: Option<String>,
}

impl Steps {
    /// A chore of `total` steps.
    pub(crate) fn new(chore: &'static str, total: usize) -> Self {
        Self {
            chore,
            total,
            done: Vec::new(),
            started: Instant::now(),
        }
    }

    /// Runs one step. What it returns stands in the summary.
    pub(crate) fn run(&mut self, name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
        let at = self.done.len() + 1;
        eprintln!("\n[{at}/{}] {name}", self.total.max(at));
        let started = Instant::now();
        let result = work();
        let took = started.elapsed();
        let (note, outcome) = match result {
            Ok(note) => (Some(note), Ok(())),
            Err(error) => (
                None,
                Err(error.context(format!("{}: {name} failed", self.chore))),
            ),
        };
        self.done.push(Done {
            name: name.to_owned(),
            took,
            result: note,
        });
        if outcome.is_err() {
            eprintln!("{}", self.summary());
        }
        outcome
    }

    /// Prints the summary of a chore whose steps all went well.
    pub(crate) fn finish(self) {
        eprintln!("{}", self.summary());
    }

    fn summary(&self) -> String {
        let failed = self.done.iter().any(|step| step.result.is_none());
        let verdict = if failed { "FAILED" } else { "ok" };
        let width = self.done.iter().map(|step| step.name.chars().count()).max();
        let width = width.unwrap_or(0);
        let mut text = format!(
            "\n{}: {verdict} in {}\n",
            self.chore,
            seconds(self.started.elapsed())
        );
        for step in &self.done {
            let mark = if step.result.is_some() {
                "ok    "
            } else {
                "FAILED"
            };
            let note = step.result.as_deref().unwrap_or("");
            let line = format!(
                "  {mark} {:<width$} {:>8}  {note}",
                step.name,
                seconds(step.took)
            );
            text += line.trim_end();
            text += "\n";
        }
        text
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// Runs a program that prints for itself. Its failure names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("  $ {}", shown(command));
    let status = command
        .status()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a program, passes its standard output on and shows each line to `watch`.
pub(crate) fn run_watched(command: &mut Command, mut watch: impl FnMut(&str)) -> Result<()> {
    eprintln!("  $ {}", shown(command));
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(command)))?;
    let output = child.stdout.take().context("the output was to be piped")?;
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        std::io::stdout().write_all(&line)?;
        watch(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// The command as one would type it, with bare program names.
fn shown(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let program = program.file_name().unwrap_or(command.get_program());
    let mut text = program.to_string_lossy().into_owned();
    for argument in command.get_args() {
        text += " ";
        text += &argument.to_string_lossy();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_step_is_named_and_ends_the_chore() {
        let mut steps = Steps::new("test", 2);
        steps.run("first", || Ok("3 things".to_owned())).unwrap();
        let error = steps.run("second", || bail!("no such file")).unwrap_err();
        assert_eq!(format!("{error:#}"), "test: second failed: no such file");
        let summary = steps.summary();
        assert!(summary.contains("test: FAILED"), "{summary}");
        assert!(
            summary.contains("ok     first") && summary.contains("3 things"),
            "{summary}"
        );
        assert!(summary.contains("FAILED second"), "{summary}");
    }

    #[test]
    fn output_is_watched_and_failures_name_the_command() {
        let mut lines = Vec::new();
        run_watched(
            Command::new("sh").args(["-c", "echo one; echo two"]),
            |line| {
                lines.push(line.to_owned());
            },
        )
        .unwrap();
        assert_eq!(lines, ["one", "two"]);
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert!(
            error.to_string().contains("`sh -c exit 3` ended with"),
            "{error}"
        );
    }
}
