//! What is wrong with a manifest, where, and what to write instead.

use std::fmt;
use std::ops::Range;

/// Longest piece of a line shown in a message, in characters: a terminal's width and a bit.
const SNIPPET_CHARS: usize = 120;
/// More findings than this are counted and not shown: the first ones explain the rest.
const SHOWN_ISSUES: usize = 20;

/// Everything that is wrong with one manifest; never empty.
///
/// Displays as `file:line:column: what was found; what is allowed; what to do` with the line
/// below, one paragraph for each finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestError {
    file_name: String,
    issues: Vec<ManifestIssue>,
}

impl ManifestError {
    pub(super) fn new(file_name: &str, mut issues: Vec<ManifestIssue>) -> Self {
        assert!(!issues.is_empty(), "an error says what is wrong");
        issues.sort_by_key(|issue| (issue.line, issue.column));
        Self {
            file_name: file_name.to_owned(),
            issues,
        }
    }

    /// The file as named by whoever parsed it.
    pub fn file_name(&self) -> &str {
        &self.file_name
    }

    /// What was found, in the order of the file; at least one.
    pub fn issues(&self) -> &[ManifestIssue] {
        &self.issues
    }
}

impl std::error::Error for ManifestError {}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, issue) in self.issues.iter().take(SHOWN_ISSUES).enumerate() {
            if at > 0 {
                f.write_str("\n\n")?;
            }
            write!(f, "{}:{issue}", self.file_name)?;
        }
        match self.issues.len().saturating_sub(SHOWN_ISSUES) {
            0 => Ok(()),
            more => write!(f, "\n\nand {more} more"),
        }
    }
}

/// One finding in a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestIssue {
    /// Line in the file, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What was found.
    pub found: String,
    /// What is allowed there.
    pub allowed: String,
    /// What to do.
    pub fix: String,
    /// The line, or the piece of it around the finding.
    snippet: String,
    /// Characters of the snippet before the marked ones.
    indent: usize,
    /// Marked characters, at least one.
    marked: usize,
}

impl fmt::Display for ManifestIssue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.to_string();
        let margin = " ".repeat(line.len());
        write!(f, "{line}:{}: {}", self.column, self.found)?;
        for part in [&self.allowed, &self.fix] {
            if !part.is_empty() {
                write!(f, "; {part}")?;
            }
        }
        writeln!(f, "\n{margin} |")?;
        writeln!(f, "{line} | {}", self.snippet)?;
        write!(
            f,
            "{margin} | {}{}",
            " ".repeat(self.indent),
            "^".repeat(self.marked)
        )
    }
}

/// Makes an issue out of a span of `text` (bytes). A span beyond the end points at the end.
pub(super) fn issue(
    text: &str,
    span: Range<usize>,
    found: String,
    allowed: String,
    fix: String,
) -> ManifestIssue {
    let start = floor_char(text, span.start);
    let end = floor_char(text, span.end.max(start));
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let rest = &text[line_start..];
    let line_text = rest.split('\n').next().unwrap_or("").trim_end_matches('\r');
    let line_end = line_start + line_text.len();

    let before_mark = text[line_start..start.min(line_end)].chars().count();
    let in_mark = text[start.min(line_end)..end.clamp(start.min(line_end), line_end)]
        .chars()
        .count();
    let skip = if before_mark > SNIPPET_CHARS / 2 {
        before_mark - SNIPPET_CHARS / 4
    } else {
        0
    };
    let snippet: String = line_text
        .chars()
        .skip(skip)
        .take(SNIPPET_CHARS)
        // Tabs and escape codes would shift the caret or colour the terminal.
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    let indent = before_mark - skip;
    let room = snippet.chars().count().saturating_sub(indent);
    ManifestIssue {
        line: before.matches('\n').count() + 1,
        column: text[line_start..start].chars().count() + 1,
        found,
        allowed,
        fix,
        snippet: snippet.trim_end().to_owned(),
        indent,
        marked: in_mark.min(room).max(1),
    }
}

fn floor_char(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, span: Range<usize>) -> String {
        let found = issue(text, span, "odd".into(), "even".into(), "halve it".into());
        ManifestError::new("f.toml", vec![found]).to_string()
    }

    #[test]
    fn the_caret_is_under_the_finding() {
        assert_eq!(
            at("a = 1\nä = 23\nc = 3\n", 11..13),
            "f.toml:2:5: odd; even; halve it\n  |\n2 | ä = 23\n  |     ^^"
        );
    }

    #[test]
    fn spans_at_and_beyond_the_end_are_shown() {
        assert!(at("a", 1..1).starts_with("f.toml:1:2:"));
        assert!(at("a\n", 90..99).starts_with("f.toml:2:1:"));
        assert!(at("", 0..0).starts_with("f.toml:1:1:"));
    }

    #[test]
    fn long_lines_are_cut_around_the_finding() {
        let text = format!("{}!{}", "x".repeat(5_000), "y".repeat(5_000));
        let shown = at(&text, 5_000..5_001);
        assert!(shown.len() < 500, "{shown}");
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[2].find('!'), lines[3].find('^'));
    }
}
