//! Components by digest, and their compiled form.
//!
//! ```text
//! DIR/<sha256>.wasm                       as it was uploaded
//! DIR/<sha256>.<compatibility>.cwasm      compiled once, memory-mapped afterwards
//! ```

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use fulmar_model::{Code, Problem};
use fulmar_state::datadir::write_durably;
use fulmar_worker::{Artifact, ArtifactError, Runtime};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// The artefacts of the node.
pub(crate) struct Artifacts {
    dir: PathBuf,
    /// Those in use, so that one is mapped once however many functions run it.
    loaded: Mutex<HashMap<String, Weak<Artifact>>>,
}

/// SHA-256 in hexadecimal.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text is a SHA-256 digest in lower-case hexadecimal.
pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn internal(doing: &str, path: &Path, error: &std::io::Error) -> Problem {
    Problem::new(
        Code::Internal,
        format!("cannot {doing} {}: {error}", path.display()),
    )
}

fn invalid(error: &ArtifactError) -> Problem {
    Problem::new(Code::ArtifactInvalid, error.to_string())
}

impl Artifacts {
    pub(crate) fn open(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            loaded: Mutex::default(),
        })
    }

    fn wasm(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.wasm"))
    }

    /// Whether the artefact was uploaded.
    pub(crate) fn has(&self, digest: &str) -> bool {
        is_digest(digest) && self.wasm(digest).exists()
    }

    /// The artefact as it was uploaded; none if it was not, or cannot be read.
    pub(crate) fn read(&self, digest: &str) -> Option<Vec<u8>> {
        let path = self.has(digest).then(|| self.wasm(digest))?;
        std::fs::read(path).ok()
    }

    /// Checks, compiles and stores a component. Takes seconds for a large one: not for a thread
    /// that serves others.
    pub(crate) fn store(
        &self,
        runtime: &Runtime,
        expected: &str,
        wasm: &[u8],
    ) -> Result<(), Problem> {
        let found = digest(wasm);
        if found != expected {
            let detail =
                format!("the bytes have the digest {found}, not {expected} as in the path");
            return Err(Problem::new(Code::ArtifactInvalid, detail));
        }
        let path = self.compiled(runtime, expected);
        if path.exists() && self.has(expected) {
            return Ok(());
        }
        let compiled = runtime.compile(wasm).map_err(|error| invalid(&error))?;
        write_durably(&path, &compiled.bytes).map_err(|error| internal("write", &path, &error))?;
        let path = self.wasm(expected);
        write_durably(&path, wasm).map_err(|error| internal("write", &path, &error))
    }

    fn compiled(&self, runtime: &Runtime, digest: &str) -> PathBuf {
        self.dir
            .join(format!("{digest}.{}.cwasm", runtime.compatibility()))
    }

    /// The artefact, ready to start workers; compiled again if this version of the node has not
    /// done so yet.
    pub(crate) fn load(&self, runtime: &Runtime, digest: &str) -> Result<Arc<Artifact>, Problem> {
        if let Some(artifact) = self.loaded.lock().get(digest).and_then(Weak::upgrade) {
            return Ok(artifact);
        }
        let compiled = self.compiled(runtime, digest);
        if !compiled.exists() {
            let path = self.wasm(digest);
            let wasm = match std::fs::read(&path) {
                Ok(wasm) => wasm,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(Problem::new(
                        Code::ArtifactNotFound,
                        format!("no artefact {digest} was uploaded"),
                    ));
                }
                Err(error) => return Err(internal("read", &path, &error)),
            };
            self.store(runtime, digest, &wasm)?;
        }
        let artifact = runtime.load(&compiled).map_err(|error| invalid(&error))?;
        let mut loaded = self.loaded.lock();
        loaded.retain(|_, artifact| artifact.strong_count() > 0);
        loaded.insert(digest.to_owned(), Arc::downgrade(&artifact));
        Ok(artifact)
    }
}
