//! Functions that are containers: an image is deployed, its container started, ended, and moved, on one node and on two.

#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::cluster::Cluster;
use common::images::{COUNTER, Image, has_runtime};
use common::{Node, fulmar};
use serde_json::json;

/// Processes whose command line has a word.
fn with_word(word: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let has = |line: &Vec<u8>| String::from_utf8_lossy(line).contains(word);
    lines.filter(has).count()
}

#[test]
fn a_container_counts_and_nothing_is_left_of_it_when_its_node_is_killed() {
    if !has_runtime() {
        return;
    }
    let mut node = Node::start(&[]);
    let body = format!(
        "import subprocess\nif request.body == b'0':\n    subprocess.Popen(['/usr/bin/setsid', '/usr/bin/sleep', '{{0}}'])\n{COUNTER}"
    );
    // Nobody else sleeps for so long.
    let long = format!("{}.25", 100_000 + std::process::id());
    let image = Image::handler(&body.replace("{0}", &long));
    image.deploy(&node);
    for count in 1..=3 {
        assert_eq!(node.invoke("it/a", "1"), count.to_string());
    }
    assert_eq!(node.invoke("it/b", "10"), "10");
    assert_eq!(node.invoke("it/a", "0"), "3");
    node.eventually("it has started something", |_| with_word(&long) == 1);
    node.crash();
    node.start_again();
    node.eventually("it is ended", |_| with_word(&long) == 0);
    assert_eq!(node.invoke("it/a", "1"), "4");
    assert_eq!(node.invoke("it/b", "1"), "11");
    // What was unpacked is made again.
    node.stop();
    let artifacts = std::fs::read_dir(node.data.join("artifacts")).unwrap();
    let folders = artifacts.map(|entry| entry.unwrap().path());
    for folder in folders.filter(|path| path.is_dir()) {
        std::fs::remove_dir_all(folder).unwrap();
    }
    node.start_again();
    assert_eq!(node.invoke("it/a", "1"), "5");
}

#[test]
fn an_image_goes_as_an_archive_and_to_other_nodes() {
    if !has_runtime() {
        return;
    }
    let cluster = Cluster::start(2);
    let [n1, n2] = &cluster.nodes[..] else {
        panic!("two nodes");
    };
    let image = Image::handler(COUNTER);
    let packed = image.folder().join("image.tar");
    let status = Command::new("tar")
        .args(["-C", image.layout().to_str().unwrap(), "-cf"])
        .args([packed.to_str().unwrap(), "."])
        .status();
    assert!(status.unwrap().success());
    image.manifest("name = \"it\"\nartifact = \"image.tar\"\nruntime = \"container\"\n");
    image.deploy(n1);
    assert_eq!(n1.invoke("it/a", "1"), "1");
    assert_eq!(n2.invoke("it/a", "1"), "2");
    for (at, to) in ["n2", "n1"].into_iter().enumerate() {
        let body = json!({ "function": "it", "session": "a", "to": to }).to_string();
        let moved = n1.request("POST", "/admin/migrations", &[], body.as_bytes());
        assert!([200, 409].contains(&moved.status), "{}", moved.text());
        assert_eq!(n2.invoke("it/a", "1"), (3 + at).to_string());
    }
}

#[test]
fn an_image_that_is_not_what_it_says_is_refused() {
    let node = Node::start(&[]);
    let image = Image::handler(COUNTER);
    let deploy = || fulmar(&node, &["deploy", image.folder().to_str().unwrap()]);
    let text = "name = \"it\"\nartifact = \"image\"\n";
    image.manifest(&format!("{text}[process]\ncommand = [\"python3\"]\n"));
    let error = deploy().unwrap_err();
    assert!(error.contains("the artefact is an image"), "{error}");
    assert!(error.contains("runtime = \"container\""), "{error}");
    let blobs = std::fs::read_dir(image.layout().join("blobs/sha256")).unwrap();
    let largest = blobs
        .flatten()
        .max_by_key(|blob| blob.metadata().unwrap().len());
    let path = largest.unwrap().path();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[700] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    image.manifest(&format!("{text}runtime = \"container\"\n"));
    let error = deploy().unwrap_err();
    assert!(error.contains("with the digest"), "{error}");
}
