//! Programs to deploy.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::Path;

use crate::common::{Node, fulmar};

/// A folder with a program in Python and the SDK that it uses.
pub struct Folder(pub tempfile::TempDir);

impl Folder {
    pub fn of(main: &str, manifest: &str) -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../sdk/python/src/fulmar");
        let own = folder.0.path().join("fulmar");
        std::fs::create_dir(&own).unwrap();
        for file in std::fs::read_dir(sdk).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "py") {
                std::fs::copy(&path, own.join(path.file_name().unwrap())).unwrap();
            }
        }
        std::fs::write(folder.0.path().join("main.py"), main).unwrap();
        std::fs::write(folder.0.path().join("fulmar.toml"), manifest).unwrap();
        folder
    }

    pub fn example() -> Self {
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/process-counter");
        let read = |name| std::fs::read_to_string(example.join(name)).unwrap();
        Self::of(&read("main.py"), &read("fulmar.toml"))
    }

    /// A handler whose body is given, as the function `it`.
    pub fn handler(body: &str) -> Self {
        let body = body.replace('\n', "\n    ");
        let main = format!(
            "import os, fulmar\n\ndef handle(request, ctx):\n    {body}\n\nfulmar.serve(handle)\n"
        );
        let manifest =
            "name = \"it\"\nartifact = \".\"\n[process]\ncommand = [\"python3\", \"main.py\"]\n";
        Self::of(&main, manifest)
    }

    pub fn deploy(&self, node: &Node) {
        fulmar(node, &["deploy", self.0.path().to_str().unwrap()]).unwrap();
    }

    /// More of its manifest.
    pub fn add(&self, more: &str) {
        let manifest = self.0.path().join("fulmar.toml");
        let text = std::fs::read_to_string(&manifest).unwrap();
        std::fs::write(&manifest, format!("{text}{more}")).unwrap();
    }
}
