//! Progress bars, on stderr and only when somebody watches.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar for `length` things.
pub(crate) fn bar(length: u64, what: &'static str) -> ProgressBar {
    let template = format!("{{bar:32}} {{pos}}/{{len}} {what}  {{elapsed}} {{msg}}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
