//! `cargo xtask docs`: reference pages that cannot drift from the code.

mod cli;
mod configuration;
mod errors;

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::steps::{self, Steps};
use crate::workspace::Workspace;

/// Stands at the top of each page.
const NOTICE: &str = "<!-- Written by `cargo xtask docs` from the code. Do not edit. -->\n\n";

pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let check = match arguments {
        [] => false,
        [flag] if flag == "--check" => true,
        [other, ..] => bail!("unexpected argument {other:?}; allowed is --check"),
    };
    let mut steps = Steps::new("docs", 3);
    steps.run("docs/errors.md", || {
        settle(workspace, "errors", &errors::page(), check)
    })?;
    steps.run("docs/configuration.md", || {
        settle(workspace, "configuration", &configuration::page()?, check)
    })?;
    steps.run("docs/cli.md", || {
        settle(workspace, "cli", &cli_page(workspace)?, check)
    })?;
    steps.finish();
    Ok(())
}

/// Writes the page, or says whether it is as it should be.
fn settle(workspace: &Workspace, name: &str, body: &str, check: bool) -> Result<String> {
    let path = workspace.root().join("docs").join(format!("{name}.md"));
    let text = format!("{NOTICE}{}\n", body.trim_end());
    let old = match std::fs::read_to_string(&path) {
        Ok(old) => Some(old),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    if old.as_deref() == Some(&text) {
        return Ok("up to date".to_owned());
    }
    if check {
        let place = first_difference(old.as_deref().unwrap_or(""), &text);
        bail!(
            "docs/{name}.md differs from the code {place}; run `cargo xtask docs` and commit the result"
        );
    }
    write(&path, &text)?;
    Ok("written".to_owned())
}

fn write(path: &Path, text: &str) -> Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn first_difference(old: &str, new: &str) -> String {
    let same = old
        .lines()
        .zip(new.lines())
        .take_while(|(old, new)| old == new)
        .count();
    let expected = new.lines().nth(same).unwrap_or("(the end of the file)");
    format!("at line {}, which should be {expected:?}", same + 1)
}

/// The page of the command line, from the program itself.
fn cli_page(workspace: &Workspace) -> Result<String> {
    // With `--tests` the dependencies have the same features as in `cargo test --workspace`,
    // and are not compiled again.
    steps::run(
        workspace
            .cargo()
            .args(["build", "--workspace", "--bins", "--tests"]),
    )?;
    cli::page(workspace, &workspace.program("debug", "fulmar")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_placed() {
        assert_eq!(
            first_difference("a\nb\n", "a\nc\n"),
            "at line 2, which should be \"c\""
        );
        assert_eq!(
            first_difference("a\nb\n", "a\n"),
            "at line 2, which should be \"(the end of the file)\""
        );
        assert_eq!(
            first_difference("", "a\n"),
            "at line 1, which should be \"a\""
        );
    }

    #[test]
    fn pages_in_the_tree_are_those_of_the_code() {
        let workspace = Workspace::find().unwrap();
        settle(&workspace, "errors", &errors::page(), true).unwrap();
        settle(
            &workspace,
            "configuration",
            &configuration::page().unwrap(),
            true,
        )
        .unwrap();
    }
}
