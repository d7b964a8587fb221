//! `results.csv` and `quantiles.csv`: one row a value, so that any tool can group them.

use std::fmt::Write as _;

use super::{Config, Report};

/// `scenario,config...,metric,unit,mean,ci95_low,ci95_high,n`.
pub(super) fn results(scenario: &str, report: &Report) -> String {
    let columns = columns(report.results.iter().map(|row| &row.config));
    let mut text = head(&columns, "metric,unit,mean,ci95_low,ci95_high,n");
    for row in &report.results {
        let (low, high) = row.ci95.map_or_else(Default::default, |(low, high)| {
            (low.to_string(), high.to_string())
        });
        line(&mut text, scenario, &columns, &row.config);
        // Writing into a text cannot fail.
        let _ = writeln!(
            text,
            ",{},{},{},{low},{high},{}",
            row.metric, row.unit, row.mean, row.n
        );
    }
    text
}

/// `scenario,config...,metric,unit,quantile,value,n`.
pub(super) fn quantiles(scenario: &str, report: &Report) -> String {
    let columns = columns(report.quantiles.iter().map(|row| &row.config));
    let mut text = head(&columns, "metric,unit,quantile,value,n");
    for row in &report.quantiles {
        line(&mut text, scenario, &columns, &row.config);
        let _ = writeln!(
            text,
            ",{},{},{},{},{}",
            row.metric, row.unit, row.quantile, row.value, row.n
        );
    }
    text
}

/// All names that occur in configurations, in the order in which they first do.
fn columns<'a>(configs: impl Iterator<Item = &'a Config>) -> Vec<&'static str> {
    let mut columns = Vec::new();
    for (name, _) in configs.flatten() {
        if !columns.contains(name) {
            columns.push(*name);
        }
    }
    columns
}

fn head(columns: &[&str], rest: &str) -> String {
    let mut text = "scenario".to_owned();
    for column in columns {
        text.push(',');
        text.push_str(column);
    }
    format!("{text},{rest}\n")
}

fn line(text: &mut String, scenario: &str, columns: &[&str], config: &Config) {
    text.push_str(scenario);
    for column in columns {
        text.push(',');
        if let Some((_, value)) = config.iter().find(|(name, _)| name == column) {
            field(text, value);
        }
    }
}

/// Quoted if it has to be (RFC 4180).
fn field(text: &mut String, value: &str) {
    if value.contains([',', '"', '\n', '\r']) {
        let _ = write!(text, "\"{}\"", value.replace('"', "\"\""));
    } else {
        text.push_str(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{QuantileRow, ResultRow};

    #[test]
    fn one_row_a_value_and_a_column_for_every_name() {
        let report = Report {
            results: vec![
                ResultRow {
                    config: vec![("jobs", "100".into())],
                    metric: "latency",
                    unit: "ms",
                    mean: 1.5,
                    ci95: Some((1.0, 2.0)),
                    n: 10,
                },
                ResultRow {
                    config: vec![("model", "in-edge, \"near\"".into())],
                    metric: "traffic",
                    unit: "MB",
                    mean: 2.0,
                    ci95: None,
                    n: 1,
                },
            ],
            quantiles: vec![QuantileRow {
                config: vec![("jobs", "100".into())],
                metric: "latency",
                unit: "ms",
                quantile: 0.5,
                value: 1.25,
                n: 7,
            }],
            ..Report::default()
        };
        assert_eq!(
            results("s", &report),
            "scenario,jobs,model,metric,unit,mean,ci95_low,ci95_high,n\n\
             s,100,,latency,ms,1.5,1,2,10\n\
             s,,\"in-edge, \"\"near\"\"\",traffic,MB,2,,,1\n"
        );
        assert_eq!(
            quantiles("s", &report),
            "scenario,jobs,metric,unit,quantile,value,n\ns,100,latency,ms,0.5,1.25,7\n"
        );
    }
}
