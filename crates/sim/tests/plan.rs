//! `fulmar plan`: the models on a user's own numbers, and what is wrong with these.

use fulmar_sim::plan::{Latency, PlacementPlan, Provision};
use fulmar_sim::settings::{self, Sources};
use fulmar_sim::{Error, Report, Run, Scenario};

fn plan<S: Scenario>(file: Option<&str>, set: &[&str]) -> Result<Report, Error> {
    let sources = Sources {
        file: file.map(|text| ("my.toml".to_owned(), text.to_owned())),
        set: set.iter().map(|text| (*text).to_owned()).collect(),
    };
    let report = S::run(&settings::resolve::<S>(&sources)?, &Run::quiet(0))?;
    report.check()?;
    Ok(report)
}

fn error<S: Scenario>(file: Option<&str>, set: &[&str]) -> String {
    match plan::<S>(file, set) {
        Ok(_) => panic!("{file:?} {set:?} makes sense"),
        Err(error) => error.to_string(),
    }
}

fn claim<S: Scenario>(file: Option<&str>, set: &[&str]) -> String {
    let report = plan::<S>(file, set).expect("the settings make sense");
    report.findings[0].claim.clone()
}

#[test]
fn the_papers_numbers() {
    // Fig. 3: the optimum moves to the left with more clients.
    assert_eq!(claim::<Latency>(None, &[]), "dedicate 18 of 40 containers");
    let few = claim::<Latency>(None, &["clients=50"]);
    assert_eq!(few, "dedicate 33 of 40 containers");
    // Fig. 4: "with 10 clients and 20 %, at least 0.7 containers a client".
    let provide = claim::<Provision>(None, &["clients=10"]);
    assert_eq!(provide, "provide 7 containers for 10 clients");
}

#[test]
fn the_example_keeps_its_slo_after_one_move() {
    let report = plan::<PlacementPlan>(None, &["exact_seconds=20"]).expect("the example is right");
    assert_eq!(report.findings[0].claim, "move 1 of 3 keys");
    assert!(report.findings.iter().all(|finding| finding.holds));
    let rows = &report.tables[1].rows;
    assert!(rows.iter().all(|row| row[4] == "yes"), "{rows:?}");
}

#[test]
fn queues_without_end_say_which_and_by_how_much() {
    let text = error::<Latency>(None, &["clients=200"]);
    assert!(
        text.contains("the pool of 40 containers is unstable"),
        "{text}"
    );
    assert!(text.contains("0.1250 too much"), "{text}");
    for (set, says) in [
        ("rate=0", "rate is 0; it has to be above 0"),
        ("rate=nan", "rate is NaN"),
        ("containers=0", "containers is 0"),
        ("client=3", "there is no such setting"),
    ] {
        let text = error::<Latency>(None, &[set]);
        assert!(text.contains(says), "{set}: {text}");
    }
    let text = error::<Provision>(None, &["local_share=1.5"]);
    assert!(
        text.contains("local_share is 1.5; it has to be from 0 to 1"),
        "{text}"
    );
    let text = error::<Provision>(None, &["clients=2", "max_refused=0.000001"]);
    assert!(text.contains("no number of containers"), "{text}");
}

#[test]
fn networks_and_names_are_checked() {
    let nodes =
        "nodes = [{ name = \"a\", storage_bytes = 100 }, { name = \"b\", storage_bytes = 100 }]\n";
    let link = |to: &str, seconds: &str, mbps: &str| {
        format!(
            "{nodes}links = [{{ between = [\"a\", \"{to}\"], latency_seconds = {seconds}, mbps = {mbps} }}]\nkeys = []\naccesses = []\n"
        )
    };
    let two =
        "nodes = [{ name = \"a\", storage_bytes = 1 }, { name = \"a\", storage_bytes = 1 }]\n";
    let store = "nodes = [{ name = \"a\", storage_bytes = 100 }, { name = \"store\", storage_bytes = 0, may_host = false }]\n\
        links = [{ between = [\"a\", \"store\"], latency_seconds = 0.1, mbps = 1.0 }]\n\
        keys = [{ name = \"k\", size_bytes = 150, home = \"store\" }]\naccesses = []\n";
    for (file, says) in [
        (
            link("c", "0.1", "1.0"),
            "names the node c, which there is not; there are: a, b",
        ),
        (
            link("b", "0.1", "0.0"),
            "mbps of the link between a and b is 0; it has to be above 0",
        ),
        (
            link("b", "0.1", "-1.0"),
            "mbps of the link between a and b is -1",
        ),
        (
            link("b", "nan", "1.0"),
            "latency_seconds of the link between a and b is NaN",
        ),
        (link("a", "0.1", "1.0"), "there is no way from a to b"),
        (two.to_owned(), "two nodes are called a"),
        (
            store.to_owned(),
            "there is no room for 150 bytes of keys on a (100 bytes left)",
        ),
        (
            "nodes = []\nlinks = []\nkeys = []\naccesses = []".to_owned(),
            "there are no nodes",
        ),
        (
            "nodez = []".to_owned(),
            "my.toml, line 1: unknown field `nodez`",
        ),
    ] {
        let text = error::<PlacementPlan>(Some(&file), &[]);
        assert!(text.contains(says), "{file}: {text}");
    }
}

#[test]
fn too_many_nodes_are_refused_before_they_are_laid_out() {
    let nodes: Vec<String> = (0..6_000)
        .map(|at| format!("{{ name = \"n{at}\", storage_bytes = 1 }}"))
        .collect();
    let file = format!(
        "nodes = [{}]\nlinks = []\nkeys = []\naccesses = []",
        nodes.join(", ")
    );
    let text = error::<PlacementPlan>(Some(&file), &[]);
    assert!(text.contains("there are 6000 nodes"), "{text}");
}
