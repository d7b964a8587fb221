//! What a scenario found: rows for programs, tables, plots and findings for people.
//!
//! Plain data; a scenario fills it and knows nothing of files. [`Report::write`] makes the files.

mod csv;
mod html;
mod plot;
mod text;

use std::path::Path;

use serde::Serialize;

use crate::Error;

/// The result of a scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    /// Means with their confidence intervals: `results.csv`.
    pub results: Vec<ResultRow>,
    /// Quantiles: `quantiles.csv`.
    pub quantiles: Vec<QuantileRow>,
    /// Tables for the terminal and the HTML report.
    pub tables: Vec<Table>,
    /// Plots for the HTML report.
    pub plots: Vec<Plot>,
    /// Statements that the results bear out or not.
    pub findings: Vec<Finding>,
    /// Remarks: what was assumed, what was left out.
    pub notes: Vec<String>,
}

/// What was run, for the head of the files.
#[derive(Debug, Clone, Serialize)]
pub struct Title<'a> {
    /// The scenario's name.
    pub scenario: &'a str,
    /// What it is, in a line.
    pub summary: &'a str,
    /// The seed.
    pub seed: u64,
    /// What was set, as on the command line.
    pub set: &'a [String],
}

impl Report {
    /// Writes `results.csv`, `quantiles.csv`, `report.json` and `report.html` into a folder, which is
    /// made if it is not there.
    ///
    /// # Errors
    /// When a value is not a number (a fault of the scenario, which is named rather than written),
    /// or a file cannot be written.
    pub fn write(&self, title: &Title<'_>, folder: &Path) -> Result<(), Error> {
        self.check()?;
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| Error::File { path, source }
        };
        std::fs::create_dir_all(folder).map_err(file(folder))?;
        let json =
            serde_json::to_string_pretty(&serde_json::json!({ "run": title, "report": self }))
                .map_err(|error| Error::invalid(error.to_string()))?;
        for (name, text) in [
            ("results.csv", csv::results(title.scenario, self)),
            ("quantiles.csv", csv::quantiles(title.scenario, self)),
            ("report.json", json + "\n"),
            ("report.html", html::page(title, self)),
        ] {
            let path = folder.join(name);
            std::fs::write(&path, text).map_err(file(&path))?;
        }
        Ok(())
    }

    /// # Errors
    /// When a value is not a finite number.
    pub fn check(&self) -> Result<(), Error> {
        let bad = |metric: &str, config: &Config, value: f64| {
            let config: Vec<String> = config
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            Error::invalid(format!("{metric} is {value} for {}", config.join(" ")))
        };
        for row in &self.results {
            let (low, high) = row.ci95.unwrap_or((row.mean, row.mean));
            if let Some(value) = [row.mean, low, high]
                .iter()
                .find(|value| !value.is_finite())
            {
                return Err(bad(row.metric, &row.config, *value));
            }
        }
        match self.quantiles.iter().find(|row| !row.value.is_finite()) {
            Some(row) => Err(bad(row.metric, &row.config, row.value)),
            None => Ok(()),
        }
    }
}

/// Names and values that tell one configuration from another, in the order of the columns.
pub type Config = Vec<(&'static str, String)>;

/// A mean over replications.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResultRow {
    /// Which configuration.
    pub config: Config,
    /// What was measured.
    pub metric: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// The mean.
    pub mean: f64,
    /// 95 % confidence interval of the mean; none for exact values.
    pub ci95: Option<(f64, f64)>,
    /// How many values the mean is of.
    pub n: u64,
}

/// One quantile of a distribution.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuantileRow {
    /// Which configuration.
    pub config: Config,
    /// What was measured.
    pub metric: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// From 0 to 1.
    pub quantile: f64,
    /// The value that this share of the distribution does not exceed.
    pub value: f64,
    /// How many values the distribution is of.
    pub n: u64,
}

/// A table for people.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// As many cells each as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// A plot of lines over a common axis.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// The horizontal axis, with unit.
    pub x: String,
    /// The vertical axis, with unit.
    pub y: String,
    /// Logarithmic vertical axis.
    pub log_y: bool,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line of a plot.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// In order of `x`.
    pub points: Vec<Point>,
    /// Dots only, as for simulated values beside a formula's line.
    pub dots: bool,
}

/// One value of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Point {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// 95 % confidence interval of `y`.
    pub ci95: Option<(f64, f64)>,
}

/// A statement and whether the results bear it out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// The statement, with its source.
    pub claim: String,
    /// Whether it came out.
    pub holds: bool,
    /// The figures that show it.
    pub evidence: String,
}
