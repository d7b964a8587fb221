//! Images of containers, made from the machine's own Python.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use tar::{Builder, EntryType, Header};

use super::{Node, fulmar, sha256};

/// A handler that adds what it is sent.
pub const COUNTER: &str = "n = int(ctx.state.get('n', b'0')) + int(request.body)
ctx.state['n'] = str(n).encode()
return str(n)";

/// A function whose image is a folder with an image layout: a program in Python, run by the machine's interpreter.
pub struct Image(tempfile::TempDir);

/// Whether containers can be started here; if not, says so loudly.
pub fn has_runtime() -> bool {
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

/// This machine's, as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
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
    pub fn handler(body: &str) -> Self {
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
            "os": "linux",
            "architecture": architecture(),
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

    pub fn folder(&self) -> &Path {
        self.0.path()
    }

    pub fn layout(&self) -> PathBuf {
        self.0.path().join("image")
    }

    pub fn manifest(&self, text: &str) {
        let files = "[grants]\nfiles = [{ host = \"/usr\", guest = \"/usr\" }]\n";
        std::fs::write(self.0.path().join("fulmar.toml"), format!("{text}{files}")).unwrap();
    }

    pub fn deploy(&self, node: &Node) {
        fulmar(node, &["deploy", self.0.path().to_str().unwrap()]).unwrap();
    }
}
