//! The use cases of "Stateful FaaS at the Edge": what the policy is for.

use fulmar_sim::settings::Sources;
use fulmar_sim::{Report, Run, scenarios};

fn run(name: &str, set: &[&str], replications: u32, threads: usize) -> Report {
    let sources = Sources {
        set: set.iter().map(|text| (*text).to_owned()).collect(),
        ..Sources::default()
    };
    let mut run = Run::quiet(1);
    (run.replications, run.threads) = (Some(replications), threads);
    let report = scenarios::find(name).and_then(|entry| entry.run(&sources, &run));
    report.expect("the settings make sense")
}

#[test]
fn the_policy_keeps_both_slos_with_few_containers() {
    for name in ["smart-vehicle", "smart-factory"] {
        let report = run(name, &[], 3, 2);
        report.check().unwrap();
        for table in &report.tables {
            println!("{name}\n{}", table.columns.join(" | "));
            for row in &table.rows {
                println!("{}", row.join(" | "));
            }
        }
        for finding in &report.findings {
            println!("{} {}: {}", finding.holds, finding.claim, finding.evidence);
        }
        assert_eq!(report.findings.len(), 5);
        let wrong: Vec<_> = report
            .findings
            .iter()
            .filter(|finding| !finding.holds)
            .collect();
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
    }
}

/// Who does not move needs no migration, and who does takes its state along.
#[test]
fn state_follows_cars_only() {
    let migrations = |name: &str, set: &[&str]| {
        let report = run(name, set, 1, 1);
        let rows = report.results.iter();
        let mut of_policy = rows.filter(|row| row.metric == "migrations");
        of_policy.next_back().unwrap().mean
    };
    assert_eq!(migrations("smart-factory", &[]), 0.0);
    assert_eq!(
        migrations("smart-vehicle", &[]),
        0.0,
        "cars stand while parking"
    );
    assert!(migrations("smart-vehicle", &["moves_when_strict=true"]) > 10.0);
}

#[test]
fn the_same_seed_gives_the_same_report_on_any_number_of_threads() {
    let short = ["seconds=300"];
    assert_eq!(
        run("smart-vehicle", &short, 2, 1),
        run("smart-vehicle", &short, 2, 2)
    );
}
