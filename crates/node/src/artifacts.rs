//! Components by digest, and their compiled form; programs and images by digest, and their files.
//!
//! ```text
//! DIR/<sha256>.wasm                       as it was uploaded
//! DIR/<sha256>.<compatibility>.cwasm      compiled once, memory-mapped afterwards
//! DIR/<sha256>.tar                        files of a program, as they were uploaded
//! DIR/<sha256>.files/                     unpacked
//! DIR/<sha256>.image/                     the same of an image
//! ```

mod files;
mod image;
mod layers;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use fulmar_model::manifest::Runtime as ManifestRuntime;
use fulmar_model::{Code, Manifest, Problem};
use fulmar_state::datadir::write_durably;
use fulmar_worker::{Artifact, ArtifactError, Container, Program, Programs, Runtime};
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

fn not_uploaded(digest: &str) -> Problem {
    let detail = format!("no artefact {digest} was uploaded");
    Problem::new(Code::ArtifactNotFound, detail)
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

/// What was uploaded is not what the manifest says.
fn other_kind(found: ManifestRuntime, said: ManifestRuntime) -> Problem {
    let is = match found {
        ManifestRuntime::Wasm => "a component",
        ManifestRuntime::Process => "the files of a program",
        ManifestRuntime::Container => "an image",
    };
    let fix = match found {
        ManifestRuntime::Wasm => "remove `runtime` and `[process]` from the manifest",
        ManifestRuntime::Process => "add `[process]` with `command` to the manifest",
        ManifestRuntime::Container => "write runtime = \"container\" in the manifest",
    };
    let detail = format!("the artefact is {is}, and the manifest says `{said}`");
    let fix = format!("{fix}, or give another artefact");
    Problem::new(Code::ArtifactInvalid, detail).with_fix(fix)
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

    fn tar(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.tar"))
    }

    /// Where the artefact is as it was uploaded, if it was.
    fn uploaded(&self, digest: &str) -> Option<PathBuf> {
        let mut known = [self.wasm(digest), self.tar(digest)].into_iter();
        known.find(|path| is_digest(digest) && path.exists())
    }

    /// Whether the artefact was uploaded.
    pub(crate) fn has(&self, digest: &str) -> bool {
        self.uploaded(digest).is_some()
    }

    /// The artefact as it was uploaded; none if it was not, or cannot be read.
    pub(crate) fn read(&self, digest: &str) -> Option<Vec<u8>> {
        std::fs::read(self.uploaded(digest)?).ok()
    }

    /// Checks and stores an artefact: compiles a component, unpacks the files of a program. Takes seconds for a large one: not
    /// for a thread that serves others.
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
        if files::is_tar(wasm) {
            match image::is_image(wasm) {
                true => self.unpack_image(expected, wasm)?,
                false => self.unpack(expected, wasm)?,
            };
            let path = self.tar(expected);
            return write_durably(&path, wasm).map_err(|error| internal("write", &path, &error));
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

    fn files(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.files"))
    }

    fn image(&self, digest: &str) -> PathBuf {
        self.dir.join(format!("{digest}.image"))
    }

    /// The folder of a program's files, unpacked once.
    fn unpack(&self, digest: &str, tar: &[u8]) -> Result<PathBuf, Problem> {
        self.unpacked(self.files(digest), |folder| files::unpack(tar, folder))
    }

    /// The folder of an image, unpacked once.
    fn unpack_image(&self, digest: &str, tar: &[u8]) -> Result<PathBuf, Problem> {
        self.unpacked(self.image(digest), |folder| image::unpack(tar, folder))
    }

    fn unpacked<E: std::fmt::Display>(
        &self,
        folder: PathBuf,
        unpack: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<PathBuf, Problem> {
        if folder.exists() {
            return Ok(folder);
        }
        // Whole or not at all.
        let unfinished = folder.with_extension("unfinished");
        let _ = std::fs::remove_dir_all(&unfinished);
        if let Err(error) = unpack(&unfinished) {
            let _ = std::fs::remove_dir_all(&unfinished);
            let problem = Problem::new(Code::ArtifactInvalid, error.to_string());
            return Err(problem.with_fix("Correct what the detail names, and pack it again."));
        }
        std::fs::rename(&unfinished, &folder)
            .map_err(|error| internal("rename", &unfinished, &error))?;
        Ok(folder)
    }

    /// What a function runs, ready to start workers.
    pub(crate) fn of(
        &self,
        runtime: &Runtime,
        digest: &str,
        manifest: &Manifest,
        programs: &Arc<Programs>,
    ) -> Result<Arc<Artifact>, Problem> {
        let is = |path: &Path, kind: &str| path.extension().is_some_and(|found| found == kind);
        let found = match self.uploaded(digest) {
            _ if self.image(digest).exists() => ManifestRuntime::Container,
            // What was unpacked may have been deleted: it is made again.
            Some(path) if is(&path, "tar") && !self.files(digest).exists() => {
                let tar = std::fs::read(&path);
                match image::is_image(&tar.map_err(|error| internal("read", &path, &error))?) {
                    true => ManifestRuntime::Container,
                    false => ManifestRuntime::Process,
                }
            }
            Some(path) if is(&path, "tar") => ManifestRuntime::Process,
            Some(_) => ManifestRuntime::Wasm,
            // It says itself what is missing.
            None => manifest.runtime,
        };
        if found != manifest.runtime {
            return Err(other_kind(found, manifest.runtime));
        }
        let again = || std::fs::read(self.tar(digest)).map_err(|_| not_uploaded(digest));
        let program = |folder| Program {
            folder,
            command: manifest.process.command.clone(),
            programs: programs.clone(),
        };
        match found {
            ManifestRuntime::Wasm => self.load(runtime, digest),
            ManifestRuntime::Process => {
                let mut folder = self.files(digest);
                if !folder.exists() {
                    folder = self.unpack(digest, &again()?)?;
                }
                Ok(Arc::new(Artifact::program(program(folder))))
            }
            ManifestRuntime::Container => {
                let mut folder = self.image(digest);
                if !folder.exists() {
                    folder = self.unpack_image(digest, &again()?)?;
                }
                let path = folder.join(image::CONFIG);
                let text = std::fs::read(&path).map_err(|error| internal("read", &path, &error))?;
                let image = serde_json::from_slice(&text)
                    .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
                let root = folder.join(image::ROOT);
                Ok(Arc::new(Artifact::container(Container {
                    image,
                    program: program(root.clone()),
                    root,
                })))
            }
        }
    }

    fn compiled(&self, runtime: &Runtime, digest: &str) -> PathBuf {
        self.dir
            .join(format!("{digest}.{}.cwasm", runtime.compatibility()))
    }

    /// The artefact, ready to start workers; compiled again if this version of the node has not
    /// done so yet.
    fn load(&self, runtime: &Runtime, digest: &str) -> Result<Arc<Artifact>, Problem> {
        if let Some(artifact) = self.loaded.lock().get(digest).and_then(Weak::upgrade) {
            return Ok(artifact);
        }
        let compiled = self.compiled(runtime, digest);
        if !compiled.exists() {
            let path = self.wasm(digest);
            let wasm = match std::fs::read(&path) {
                Ok(wasm) => wasm,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(not_uploaded(digest));
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
