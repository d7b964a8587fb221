//! Functions that are containers: an image is deployed, its container started, ended, and moved, on one node and on two.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::cluster::Cluster;
use common::{Node, fulmar, sha256};
use serde_json::json;
use tar::{Builder, EntryType, Header};

/// A function whose image is a folder with an image layout: a program in Python, run by the machine's interpreter.
struct Image(tempfile::TempDir);

/// Whether containers can be started here; if not, says so loudly.
fn has_runtime() -> bool {
    let works = |name: &&str| {
        let version = Command::new(name).arg("--version").output();
        version.is_ok_and(|output| output.status.success())
    };
    let has = ["crun", "runc", "youki"].iter().any(works);
    if !has {
        eprintln!("SKIPPED: no OCI runtime works here; install crun");
    }
    has
}

fn file(layer: &mut Builder<Vec<u8>>, path: &str, text: &[u8]) {
    let mut header = Header::new_gnu();
    header.set_mode(0o644);
    header.set_size(text.len() as u64);
    layer.append_data(&mut header, path, text).unwrap();
}

/// The files of the image, as one layer.
fn layer(main: &str) -> Vec<u8> {
    let mut layer = Builder::new(Vec::new());
    for name in ["bin", "lib", "lib64"] {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_mode(0o777);
        header.set_size(0);
        layer
            .append_link(&mut header, name, format!("usr/{name}"))
            .unwrap();
    }
    file(&mut layer, "app/main.py", main.as_bytes());
    let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/python/src/fulmar");
    for found in std::fs::read_dir(sdk).unwrap() {
        let path = found.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "py") {
            let name = path.file_name().unwrap().to_str().unwrap();
            file(
                &mut layer,
                &format!("app/fulmar/{name}"),
                &std::fs::read(&path).unwrap(),
            );
        }
    }
    layer.into_inner().unwrap()
}

impl Image {
    fn handler(body: &str) -> Self {
        let body = body.replace('\n', "\n    ");
        let main = format!(
            "import fulmar, os\n\ndef handle(request, ctx):\n    {body}\n\nfulmar.serve(handle)\n"
        );
        let image = Self(tempfile::tempdir().unwrap());
        let blobs = image.layout().join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let add = |kind: &str, bytes: &[u8]| {
            let digest = sha256(bytes);
            std::fs::write(blobs.join(&digest), bytes).unwrap();
            json!({
                "mediaType": format!("application/vnd.oci.image.{kind}"),
                "digest": format!("sha256:{digest}"),
                "size": bytes.len(),
            })
        };
        let files = layer(&main);
        let python = ["/usr/bin/python3", "/usr/local/bin/python3"];
        let python = python.into_iter().find(|path| Path::new(path).exists());
        let config = json!({
            "config": { "Cmd": [python.unwrap(), "-S", "main.py"], "WorkingDir": "/app", "User": "1000" },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&files))] },
        });
        let config = add("config.v1+json", config.to_string().as_bytes());
        let layers = [add("layer.v1.tar", &files)];
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
        let manifest = add("manifest.v1+json", manifest.to_string().as_bytes());
        let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
        std::fs::write(image.layout().join("index.json"), index.to_string()).unwrap();
        let version = r#"{"imageLayoutVersion":"1.0.0"}"#;
        std::fs::write(image.layout().join("oci-layout"), version).unwrap();
        image.manifest("name = \"it\"\nartifact = \"image\"\nruntime = \"container\"\n");
        image
    }

    fn layout(&self) -> PathBuf {
        self.0.path().join("image")
    }

    fn manifest(&self, text: &str) {
        let files = "[grants]\nfiles = [{ host = \"/usr\", guest = \"/usr\" }]\n";
        std::fs::write(self.0.path().join("fulmar.toml"), format!("{text}{files}")).unwrap();
    }

    fn deploy(&self, node: &Node) {
        fulmar(node, &["deploy", self.0.path().to_str().unwrap()]).unwrap();
    }
}

const COUNTER: &str = "n = int(ctx.state.get('n', b'0')) + int(request.body)
ctx.state['n'] = str(n).encode()
return str(n)";

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
    let packed = image.0.path().join("image.tar");
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
    let deploy = || fulmar(&node, &["deploy", image.0.path().to_str().unwrap()]);
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
