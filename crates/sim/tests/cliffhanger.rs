//! The findings of "Cliffhanger" come out, each by name.

use fulmar_sim::settings::Sources;
use fulmar_sim::{Report, Run, scenarios};

fn run(set: &[&str], replications: u32, threads: usize) -> Report {
    let sources = Sources {
        set: set.iter().map(|text| (*text).to_owned()).collect(),
        ..Sources::default()
    };
    let mut run = Run::quiet(1);
    (run.replications, run.threads) = (Some(replications), threads);
    let report = scenarios::find("cliffhanger").and_then(|entry| entry.run(&sources, &run));
    report.expect("the settings make sense")
}

#[test]
fn every_finding_comes_out() {
    let report = run(&[], 5, 2);
    report.check().unwrap();
    for table in &report.tables {
        println!("{}\n{}", table.title, table.columns.join(" | "));
        for row in &table.rows {
            println!("{}", row.join(" | "));
        }
    }
    for finding in &report.findings {
        println!("{} {}: {}", finding.holds, finding.claim, finding.evidence);
    }
    assert_eq!(report.findings.len(), 13);
    let wrong: Vec<_> = report
        .findings
        .iter()
        .filter(|finding| !finding.holds)
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_same_seed_gives_the_same_report_on_any_number_of_threads() {
    let short = ["seconds=100", "cold_seconds=100"];
    assert_eq!(run(&short, 2, 1), run(&short, 2, 2));
}
