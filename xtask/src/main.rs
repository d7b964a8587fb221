//! Chores of the project, one command each: `cargo xtask` lists them.
//!
//! A command is a list of [steps]; each is announced, timed and summed up at the end.
//! Nothing here is needed to use Fulmar.

mod cliffhanger;
mod demo;
mod docs;
mod fuzz;
mod guests;
mod steps;
mod test;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use anyhow::{Result, bail};

use workspace::Workspace;

/// One chore.
struct Command {
    name: &'static str,
    arguments: &'static str,
    about: &'static str,
    run: fn(&Workspace, &[String]) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "test",
        arguments: "[-- CARGO-TEST-ARGUMENTS]",
        about: "set up what is missing, build the test functions and run every test",
        run: test::run,
    },
    Command {
        name: "long",
        arguments: "[-- CARGO-TEST-ARGUMENTS]",
        about: "run the tests that take long: the ignored ones, thousands of simulations of nodes, and half an hour of trouble",
        run: test::long,
    },
    Command {
        name: "demo",
        arguments: "[-- RUNNER-ARGUMENTS]",
        about: "set up what is missing, build and run multi-camera tracking end to end",
        run: demo::run,
    },
    Command {
        name: "cliffhanger",
        arguments: "[-- BENCH-ARGUMENTS]",
        about: "set up what is missing, and run the experiments of the Cliffhanger study",
        run: cliffhanger::run,
    },
    Command {
        name: "docs",
        arguments: "[--check]",
        about: "write docs/cli.md, docs/configuration.md and docs/errors.md from the code (or check them)",
        run: docs::run,
    },
    Command {
        name: "guests",
        arguments: "",
        about: "build the functions (components) of the examples and the tests",
        run: guests::run,
    },
    Command {
        name: "fuzz",
        arguments: "[SECONDS]",
        about: "run each fuzz target for so long (default 60; needs nightly and cargo-fuzz)",
        run: fuzz::run,
    },
    Command {
        name: "ci",
        arguments: "",
        about: "run what the CI runs: .ci/run",
        run: test::ci,
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    let Some((name, rest)) = arguments.split_first() else {
        print!("{}", usage());
        return Ok(());
    };
    if matches!(name.as_str(), "help" | "-h" | "--help") {
        print!("{}", usage());
        return Ok(());
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        bail!("there is no chore {name:?}\n\n{}", usage());
    };
    (command.run)(&Workspace::find()?, rest)
}

fn usage() -> String {
    let mut text = String::from("Chores of the project: cargo xtask NAME\n\n");
    for command in COMMANDS {
        let call = format!("{} {}", command.name, command.arguments);
        text += &format!("  {:<34} {}\n", call.trim_end(), command.about);
    }
    text
}

/// Refuses arguments for commands that take none.
fn no_arguments(arguments: &[String]) -> Result<()> {
    match arguments {
        [] => Ok(()),
        [first, ..] => bail!("unexpected argument {first:?}; this chore takes none"),
    }
}

/// What follows `--`; anything before it is refused.
fn passed_on(arguments: &[String]) -> Result<&[String]> {
    match arguments {
        [] => Ok(&[]),
        [dashes, rest @ ..] if dashes == "--" => Ok(rest),
        [first, ..] => bail!("unexpected argument {first:?}; arguments to pass on follow `--`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_chore_is_listed() {
        let usage = usage();
        for command in COMMANDS {
            assert!(usage.contains(command.name) && usage.contains(command.about));
        }
    }

    #[test]
    fn an_unknown_chore_lists_the_known_ones() {
        let error = dispatch(&strings(&["tset"])).unwrap_err().to_string();
        assert!(
            error.contains("\"tset\"") && error.contains("demo"),
            "{error}"
        );
    }

    #[test]
    fn only_what_follows_two_dashes_is_passed_on() {
        assert_eq!(passed_on(&strings(&["--", "a", "b"])).unwrap(), ["a", "b"]);
        assert!(passed_on(&[]).unwrap().is_empty());
        assert!(passed_on(&strings(&["a"])).is_err());
        assert!(no_arguments(&strings(&["a"])).is_err());
    }
}
