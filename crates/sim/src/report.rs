//! What a scenario found: rows for programs, tables, plots and findings for people.
//!
//! Plain data; a scenario fills it and knows nothing of files.

/// The result of a scenario.
#[derive(Debug, Clone, Default, PartialEq)]
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

/// Names and values that tell one configuration from another, in the order of the columns.
pub type Config = Vec<(&'static str, String)>;

/// A mean over replications.
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// What it shows.
    pub title: String,
    /// Heads of the columns.
    pub columns: Vec<String>,
    /// As many cells each as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// A plot of lines over a common axis.
#[derive(Debug, Clone, Default, PartialEq)]
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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// In order of `x`.
    pub points: Vec<Point>,
    /// Dots only, as for simulated values beside a formula's line.
    pub dots: bool,
}

/// One value of a line.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// Horizontal.
    pub x: f64,
    /// Vertical.
    pub y: f64,
    /// 95 % confidence interval of `y`.
    pub ci95: Option<(f64, f64)>,
}

/// A statement and whether the results bear it out.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// The statement, with its source.
    pub claim: String,
    /// Whether it came out.
    pub holds: bool,
    /// The figures that show it.
    pub evidence: String,
}
