//! `report.html`: one file with everything in it, for light and dark screens.

use std::fmt::Write as _;

use super::plot::{number, svg};
use super::{Plot, Report, Table, Title};

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --soft: #8888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .2rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
svg text { fill: currentColor; } svg .grid { stroke: var(--line); }
.scroll { overflow-x: auto; } .soft { color: var(--soft); }
.yes::before { content: '✓ '; color: #009e73; } .no::before { content: '✗ '; color: #d55e00; }
";

pub(super) fn page(title: &Title<'_>, report: &Report) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{0}</title><style>{STYLE}</style>\n<h1>{0}</h1>\n<p>{1}</p>\n\
         <p class=\"soft\">seed {2}{3}</p>\n",
        escape(title.scenario),
        escape(title.summary),
        title.seed,
        title
            .set
            .iter()
            .map(|set| format!(", {}", escape(set)))
            .collect::<String>()
    );
    // Writing into a text cannot fail.
    if !report.findings.is_empty() {
        page.push_str("<h2>Findings</h2>\n<ul>\n");
        for finding in &report.findings {
            let _ = writeln!(
                page,
                "<li class=\"{}\">{} <span class=\"soft\">{}</span></li>",
                if finding.holds { "yes" } else { "no" },
                escape(&finding.claim),
                escape(&finding.evidence)
            );
        }
        page.push_str("</ul>\n");
    }
    for shown in &report.tables {
        let _ = writeln!(page, "<h2>{}</h2>", escape(&shown.title));
        table(&mut page, shown);
    }
    for plot in &report.plots {
        let _ = writeln!(page, "<h2>{}</h2>\n{}", escape(&plot.title), svg(plot));
        page.push_str("<details><summary>Values</summary>\n");
        table(&mut page, &values(plot));
        page.push_str("</details>\n");
    }
    for note in &report.notes {
        let _ = writeln!(page, "<p class=\"soft\">{}</p>", escape(note));
    }
    page + "</html>\n"
}

fn table(page: &mut String, table: &Table) {
    page.push_str("<div class=\"scroll\"><table><tr>");
    for column in &table.columns {
        let _ = write!(page, "<th>{}</th>", escape(column));
    }
    page.push_str("</tr>\n");
    for row in &table.rows {
        page.push_str("<tr>");
        for cell in row {
            let _ = write!(page, "<td>{}</td>", escape(cell));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table></div>\n");
}

/// A plot's values: a row for each `x`, a column for each line.
fn values(plot: &Plot) -> Table {
    let mut xs: Vec<f64> = plot
        .series
        .iter()
        .flat_map(|series| series.points.iter().map(|point| point.x))
        .collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let names = plot.series.iter().map(|series| series.name.clone());
    let row = |x: &f64| {
        let cell = |points: &[super::Point]| {
            points
                .iter()
                .find(|point| point.x == *x)
                .map_or_else(String::new, |point| number(point.y))
        };
        let cells = plot.series.iter().map(|series| cell(&series.points));
        std::iter::once(number(*x)).chain(cells).collect()
    };
    Table {
        title: plot.title.clone(),
        columns: std::iter::once(plot.x.clone()).chain(names).collect(),
        rows: xs.iter().map(row).collect(),
    }
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Finding, Point, Series};

    #[test]
    fn a_page_has_everything_and_refers_to_nothing() {
        let report = Report {
            findings: vec![Finding {
                claim: "a < b".into(),
                holds: true,
                evidence: "1 & 2".into(),
            }],
            plots: vec![Plot {
                title: "Latency".into(),
                x: "clients".into(),
                y: "s".into(),
                log_y: false,
                series: vec![Series {
                    name: "formula".into(),
                    points: vec![
                        Point {
                            x: 1.0,
                            y: 2.0,
                            ci95: Some((1.5, 2.5)),
                        },
                        Point {
                            x: 2.0,
                            y: 3.0,
                            ci95: None,
                        },
                    ],
                    dots: false,
                }],
            }],
            ..Report::default()
        };
        let title = Title {
            scenario: "s",
            summary: "what it is",
            seed: 7,
            set: &["a=1".into()],
        };
        let page = page(&title, &report);
        for part in [
            "a &lt; b",
            "1 &amp; 2",
            "<polyline",
            "seed 7, a=1",
            "<td>2</td><td>3</td>",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("http"), "{page}");
    }
}
