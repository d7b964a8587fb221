//! An object store in a folder that can go away, and functions that others take over.

use std::path::{Path, PathBuf};

use super::Node;

pub const REPLICATED: &str = "durability = \"replicated\"\non_partition = \"takeover-after 1s\"\n";
pub const LOCAL: &str = "on_partition = \"takeover-after 1s\"\n";

/// An object store that can go away.
pub struct ObjectFolder(tempfile::TempDir);

impl ObjectFolder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("objects")
    }

    pub fn go_away(&self) {
        take_away(&self.path());
    }

    pub fn come_back(&self) {
        give_back(&self.path());
    }
}

/// Puts a file where a folder was: every request fails.
pub fn take_away(folder: &Path) {
    std::fs::rename(folder, folder.with_extension("away")).unwrap();
    std::fs::write(folder, "not a folder").unwrap();
}

pub fn give_back(folder: &Path) {
    std::fs::remove_file(folder).unwrap();
    std::fs::rename(folder.with_extension("away"), folder).unwrap();
}

/// Waits until a session answers on a node as it is to.
pub fn counts_with(node: &Node, path: &str, body: &str, answer: &str) {
    node.eventually(&format!("{path} says {answer}"), |node| {
        let reply = node.request("POST", &format!("/fn/{path}"), &[], body.as_bytes());
        reply.status == 200 && reply.text() == answer
    });
}
