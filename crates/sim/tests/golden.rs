//! Small runs give the same bytes as ever, on every machine. After a change that is meant:
//! `FULMAR_BLESS=1 cargo test -p fulmar-sim --test golden`, and look at the difference.

use std::path::Path;

use fulmar_sim::report::Title;
use fulmar_sim::settings::Sources;
use fulmar_sim::{Run, scenarios};

/// Name and settings of a run that takes milliseconds.
const SMALL: [(&str, &[&str]); 6] = [
    ("cliffhanger", &["seconds=60", "cold_seconds=60"]),
    ("ds2p", &["seconds=300", "t_max=0.1"]),
    ("in-network", &["jobs=20", "pool=200", "detail_jobs=20"]),
    ("smart-factory", &["seconds=120"]),
    ("smart-vehicle", &["seconds=120"]),
    (
        "stateful-faas",
        &[
            "clients=60",
            "simulated_calls=500",
            "most_clients=12",
            "simulated_slots=500",
            "shifts=1",
        ],
    ),
];

#[test]
fn small_runs_give_the_same_bytes_as_ever() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (name, set) in SMALL {
        let sources = Sources {
            set: set.iter().map(|text| (*text).to_owned()).collect(),
            ..Sources::default()
        };
        let mut run = Run::quiet(11);
        run.replications = Some(2);
        let entry = scenarios::find(name).expect("it is there");
        let report = entry.run(&sources, &run).expect("the settings make sense");
        let out = tempfile::tempdir().expect("a folder for the report");
        let title = Title {
            scenario: name,
            summary: entry.summary,
            seed: run.seed,
            set: &sources.set,
        };
        report
            .write(&title, out.path())
            .expect("the report is written");
        let results = std::fs::read_to_string(out.path().join("results.csv"));
        let results = results.expect("the results are there");
        let golden = folder.join(format!("{name}.csv"));
        if std::env::var_os("FULMAR_BLESS").is_some() {
            std::fs::write(&golden, &results).expect("the golden file is written");
        }
        let expected = std::fs::read_to_string(&golden).expect("the golden file is there");
        assert_eq!(results, expected, "{name}");
    }
}
