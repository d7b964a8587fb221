//! `docs/cli.md`: what `fulmar --help` says, for every command.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Deeper than any noun and verb: a program that lists itself as its own command ends here.
const MAX_DEPTH: usize = 4;

/// The page of the program at `program`.
pub(super) fn page(workspace: &Workspace, program: &Path) -> Result<String> {
    page_of(&|path| {
        let mut command = workspace.command(program);
        command.args(path).arg("--help");
        // The same text on every machine: no values of the caller's variables, one width, no colours.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("FULMAR_") {
                command.env_remove(name);
            }
        }
        command.env("COLUMNS", "100").env("NO_COLOR", "1");
        let output = command
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if !output.status.success() {
            bail!(
                "`fulmar {} --help` ended with {}: {}",
                path.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        String::from_utf8(output.stdout).context("the help is not UTF-8")
    })
}

/// The page of a program whose help for a path of commands is `help(path)`.
fn page_of(help: &dyn Fn(&[String]) -> Result<String>) -> Result<String> {
    let mut text = String::from(
        "# Command line\n\n\
         Everything is one program, `fulmar`. This page is its own help, command by command.\n",
    );
    // Depth first, in the order of the help.
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let shown = help(&path)?;
        let title = format!("fulmar {}", path.join(" "));
        let lines: Vec<&str> = shown.trim().lines().map(str::trim_end).collect();
        text += &format!(
            "\n## `{}`\n\n```text\n{}\n```\n",
            title.trim_end(),
            lines.join("\n")
        );
        if path.len() < MAX_DEPTH {
            for name in commands_in(&shown).into_iter().rev() {
                open.push([&path[..], &[name]].concat());
            }
        }
    }
    Ok(text)
}

/// Names in the section `Commands:` of a help text.
fn commands_in(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        // Deeper lines go on with the description above them.
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(|name| name.trim_end_matches(',').to_owned())
        .filter(|name| name != "help")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_gets_a_section_in_the_order_of_the_help() {
        let help = |path: &[String]| -> Result<String> {
            Ok(match path.join(" ").as_str() {
                "" => "Top\n\nUsage: fulmar <COMMAND>\n\nCommands:\n  state  Read and write\n           state   \n  dev    Start\n  help   Print\n\nOptions:\n  -h, --help  Print help\n",
                "state" => "State\n\nCommands:\n  get  One\n  ls   All\n",
                _ => "A leaf\n",
            }
            .to_owned())
        };
        let page = page_of(&help).unwrap();
        let titles: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("## "))
            .collect();
        assert_eq!(
            titles,
            [
                "## `fulmar`",
                "## `fulmar state`",
                "## `fulmar state get`",
                "## `fulmar state ls`",
                "## `fulmar dev`"
            ]
        );
        assert!(!page.contains(" \n"), "no blanks at ends of lines");
    }
}
