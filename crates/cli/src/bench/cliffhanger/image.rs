//! `detect` as a container: an OCI image layout of the program in Python, which finds the machine's own interpreter under `/usr`,
//! as its manifest grants.

use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::output::hex;

/// Where an interpreter may be.
const INTERPRETERS: [&str; 2] = ["/usr/local/bin/python3", "/usr/bin/python3"];
/// What starts containers.
const RUNTIMES: [&str; 3] = ["crun", "runc", "youki"];

/// Whether containers can be started here.
pub(super) fn can_run() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |name: &&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    RUNTIMES.iter().any(has)
}

/// Writes the image of a program into a folder.
pub(super) fn write(program: &Path, folder: &Path) -> anyhow::Result<()> {
    let main = program.join("main.py");
    let text = std::fs::read(&main).with_context(|| format!("cannot read {}", main.display()))?;
    let found = INTERPRETERS.iter().find(|path| Path::new(path).exists());
    let interpreter = found.context("there is no python3 below /usr")?;
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs)?;
    let add = |kind: &str, bytes: &[u8]| -> anyhow::Result<Value> {
        let digest = hex(&Sha256::digest(bytes));
        std::fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({
            "mediaType": format!("application/vnd.oci.image.{kind}"),
            "digest": format!("sha256:{digest}"),
            "size": bytes.len(),
        }))
    };
    let files = layer(&text)?;
    let config = json!({
        "config": { "Cmd": [interpreter, "main.py"], "WorkingDir": "/app", "User": "1000" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&files)))] },
    });
    let config = add("config.v1+json", config.to_string().as_bytes())?;
    let layers = [add("layer.v1.tar", &files)?];
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let manifest = add("manifest.v1+json", manifest.to_string().as_bytes())?;
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    std::fs::write(folder.join("index.json"), index.to_string())?;
    std::fs::write(
        folder.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    Ok(())
}

/// The program, and where what it needs is.
fn layer(main: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut layer = Builder::new(Vec::new());
    for name in ["bin", "lib", "lib64"] {
        let mut header = header(EntryType::Symlink, 0);
        layer.append_link(&mut header, name, format!("usr/{name}"))?;
    }
    let mut header = header(EntryType::Regular, main.len() as u64);
    layer.append_data(&mut header, "app/main.py", main)?;
    Ok(layer.into_inner()?)
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == EntryType::Symlink {
        0o777
    } else {
        0o644
    });
    header.set_mtime(0);
    header.set_size(size);
    header
}
