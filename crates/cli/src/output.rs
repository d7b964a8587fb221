//! Printing: tables for people, JSON for programs.

use std::io::{BufWriter, ErrorKind, Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

/// Bytes in hexadecimal, as digests are written.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints a list of objects: as JSON, or as a table of some of their members.
pub(crate) fn rows(json: bool, rows: &[Value], columns: &[&str]) {
    if json {
        return value(&Value::Array(rows.to_vec()));
    }
    let cell = |row: &Value, column: &str| {
        let found = column
            .split('.')
            .try_fold(row, |value, name| value.get(name));
        match found {
            None | Some(Value::Null) => "-".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    };
    let mut table: Vec<Vec<String>> = vec![
        columns
            .iter()
            .map(|column| column.to_uppercase().replace(['.', '_'], " "))
            .collect(),
    ];
    table.extend(
        rows.iter()
            .map(|row| columns.iter().map(|column| cell(row, column)).collect()),
    );
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            table
                .iter()
                .map(|row| row[at].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in table {
        let line: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        line_out(line.join("  ").trim_end());
    }
}

/// Says that something was done: to people on standard error, to programs as JSON.
pub(crate) fn done(json: bool, message: &str, outcome: &Value) {
    if json {
        value(outcome);
    } else {
        eprintln!("{message}");
    }
}

/// Prints one value as JSON.
pub(crate) fn value(value: &Value) {
    line_out(&serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Prints a line to standard output; a reader that went away ends the program quietly, as with other
/// tools in a pipe.
pub(crate) fn line_out(line: &str) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Prints bytes as they are.
pub(crate) fn bytes_out(bytes: &[u8]) {
    let mut out = std::io::stdout();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints what a reader gives, piece by piece. An error is the reader's.
pub(crate) fn copy_out(mut source: impl Read) -> std::io::Result<()> {
    let mut out = BufWriter::with_capacity(64 * 1024, std::io::stdout().lock());
    let mut piece = vec![0; 64 * 1024];
    loop {
        let length = match source.read(&mut piece) {
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => {
                // What came is shown; the error tells that it is not all.
                let _ = out.flush();
                return Err(error);
            }
        };
        let written = match length {
            0 => out.flush(),
            _ => out.write_all(&piece[..length]),
        };
        if written.is_err() {
            std::process::exit(0);
        }
        if length == 0 {
            return Ok(());
        }
    }
}

/// Bytes as JSON: `text` if they are UTF-8, else `base64`; and how many.
pub(crate) fn content(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => json!({ "bytes": bytes.len(), "text": text }),
        Err(_) => json!({ "bytes": bytes.len(), "base64": BASE64_STANDARD.encode(bytes) }),
    }
}
