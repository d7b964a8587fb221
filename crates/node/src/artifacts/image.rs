//! An OCI image: a tar archive of an image layout, checked digest by digest and unpacked with care, since whoever deploys may
//! not be who runs the node.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use fulmar_worker::Image;
use serde::Deserialize;
use tar::Archive;

use super::hex;
use super::layers::{Layers, LayersError};
use sha2::{Digest, Sha256};

/// What tells an image from other archives.
const LAYOUT: &str = "oci-layout";
/// Where its files are, and what it says, in the folder that it is unpacked to.
pub(super) const ROOT: &str = "root";
pub(super) const CONFIG: &str = "image.json";
/// Indexes in indexes.
const MAX_DEPTH: u32 = 4;
/// An index, a manifest or a configuration, in bytes.
const MAX_DOCUMENT: usize = 4 << 20;

/// An image is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum ImageError {
    /// It cannot be read, or its files cannot be written.
    #[error("the image: {0}")]
    Io(#[from] std::io::Error),
    /// What is in it is not what it says.
    #[error("the image: {0}")]
    Invalid(String),
    /// A document in it cannot be read.
    #[error("the image: {what} cannot be read: {error}")]
    Document {
        /// Which.
        what: String,
        /// Why not.
        error: serde_json::Error,
    },
    /// A layer is refused.
    #[error("the image: layer {digest}: {error}")]
    Layer {
        /// Which.
        digest: String,
        /// Why.
        error: LayersError,
    },
}

fn invalid(text: impl Into<String>) -> ImageError {
    ImageError::Invalid(text.into())
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Config,
    rootfs: RootFs,
}

/// What runs, as images say it.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    working_dir: String,
    user: String,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

/// The blobs of an image layout, by digest.
struct Blobs<'a> {
    all: HashMap<String, &'a [u8]>,
    index: &'a [u8],
}

impl Platform {
    /// Whether it is this machine's.
    fn is_own(&self) -> bool {
        let own = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.os == "linux" && self.architecture == own
    }
}

/// Whether an archive is an image.
pub(super) fn is_image(tar: &[u8]) -> bool {
    let mut archive = Archive::new(tar);
    let Ok(entries) = archive.entries() else {
        return false;
    };
    entries.flatten().any(|entry| {
        let path = entry.path();
        path.is_ok_and(|path| path.strip_prefix(".").unwrap_or(&path) == Path::new(LAYOUT))
    })
}

/// Unpacks an image into a folder that is not there yet: its files, and what it says.
pub(super) fn unpack(tar: &[u8], folder: &Path) -> Result<(), ImageError> {
    let blobs = Blobs::of(tar)?;
    let manifest = blobs.manifest(blobs.index, 0)?;
    let config: Document = blobs.document(&manifest.config, "its configuration")?;
    let diffs = &config.rootfs.diff_ids;
    if diffs.len() != manifest.layers.len() {
        let (layers, diffs) = (manifest.layers.len(), diffs.len());
        return Err(invalid(format!(
            "it has {layers} layers, and its configuration tells of {diffs}"
        )));
    }
    std::fs::create_dir(folder)?;
    let root = folder.join(ROOT);
    let mut layers = Layers::begin(&root)?;
    for (layer, diff) in manifest.layers.iter().zip(diffs) {
        let bytes = blobs.get(layer)?;
        layers
            .apply(bytes, &layer.media_type, diff)
            .map_err(|error| ImageError::Layer {
                digest: layer.digest.clone(),
                error,
            })?;
    }
    for mounted in Image::MOUNTED {
        layers.folder(mounted)?;
    }
    let image = image(config.config, &root)?;
    let text = serde_json::to_vec(&image).map_err(|error| ImageError::Document {
        what: "what it says".to_owned(),
        error,
    })?;
    std::fs::write(folder.join(CONFIG), text)?;
    layers.sync()?;
    Ok(())
}

impl<'a> Blobs<'a> {
    fn of(tar: &'a [u8]) -> Result<Self, ImageError> {
        let (mut all, mut index) = (HashMap::new(), None);
        let mut archive = Archive::new(tar);
        for entry in archive.entries()? {
            let entry = entry?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path()?.into_owned();
            let (from, size) = (entry.raw_file_position() as usize, entry.size() as usize);
            let bytes = from.checked_add(size).and_then(|to| tar.get(from..to));
            let bytes = bytes.ok_or_else(|| invalid("the end of its archive is missing"))?;
            let path = path.strip_prefix(".").unwrap_or(&path);
            if path == Path::new("index.json") {
                index = Some(bytes);
            } else if let Ok(name) = path.strip_prefix("blobs/sha256") {
                let digest = format!("sha256:{}", name.display());
                all.insert(digest, bytes);
            }
        }
        let index = index.ok_or_else(|| invalid("there is no index.json in it"))?;
        Ok(Self { all, index })
    }

    /// A blob, which is what its descriptor says.
    fn get(&self, of: &Descriptor) -> Result<&'a [u8], ImageError> {
        let bytes = self.all.get(&of.digest).copied();
        let bytes = bytes.ok_or_else(|| invalid(format!("it lacks {}", of.digest)))?;
        let found = format!("sha256:{}", hex(&Sha256::digest(bytes)));
        if bytes.len() as u64 != of.size || found != of.digest {
            let size = bytes.len();
            return Err(invalid(format!(
                "what it has for {} of {} bytes are {size} bytes with the digest {found}",
                of.digest, of.size
            )));
        }
        Ok(bytes)
    }

    fn document<T: for<'de> Deserialize<'de>>(
        &self,
        of: &Descriptor,
        what: &str,
    ) -> Result<T, ImageError> {
        read(self.get(of)?, what)
    }

    /// The manifest for this machine.
    fn manifest(&self, index: &[u8], depth: u32) -> Result<Manifest, ImageError> {
        let index: Index = read(index, "its index")?;
        let suits = |of: &&Descriptor| of.platform.as_ref().is_none_or(Platform::is_own);
        let found = index.manifests.iter().find(suits);
        let found = found.ok_or_else(|| {
            invalid(format!(
                "it is not for machines of this kind, linux on {}",
                std::env::consts::ARCH
            ))
        })?;
        match found.media_type.contains("index") || found.media_type.contains("manifest.list") {
            true if depth < MAX_DEPTH => self.manifest(self.get(found)?, depth + 1),
            true => Err(invalid("its indexes are in each other")),
            false => self.document(found, "its manifest"),
        }
    }
}

fn read<T: for<'de> Deserialize<'de>>(bytes: &[u8], what: &str) -> Result<T, ImageError> {
    if bytes.len() > MAX_DOCUMENT {
        return Err(invalid(format!("{what} has {} bytes", bytes.len())));
    }
    serde_json::from_slice(bytes).map_err(|error| ImageError::Document {
        what: what.to_owned(),
        error,
    })
}

/// What an image says, with its user as numbers.
fn image(config: Config, root: &Path) -> Result<Image, ImageError> {
    let command = [config.entrypoint, config.cmd].into_iter().flatten();
    let (user, group) = user(&config.user, root)?;
    Ok(Image {
        command: command.flatten().collect(),
        env: config.env.unwrap_or_default(),
        folder: config.working_dir,
        user,
        group,
    })
}

/// `user`, `user:group`, as numbers or as the image's own files name them.
fn user(text: &str, root: &Path) -> Result<(u32, u32), ImageError> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let number = |text: &str| text.parse::<u32>().ok();
    let known = |file: &str, name: &str| lookup(root, file, name);
    let unknown = |name: &str| invalid(format!("it does not know its user or group {name:?}"));
    if user.is_empty() {
        return Ok((0, 0));
    }
    let passwd = known("etc/passwd", user);
    let id = number(user).or_else(|| number(passwd.as_ref()?.get(2)?));
    let id = id.ok_or_else(|| unknown(user))?;
    let group_id = match group {
        Some(group) => {
            let known = known("etc/group", group);
            let id = number(group).or_else(|| number(known.as_ref()?.get(2)?));
            id.ok_or_else(|| unknown(group))?
        }
        None => passwd
            .and_then(|fields| number(fields.get(3)?))
            .unwrap_or_default(),
    };
    Ok((id, group_id))
}

/// The fields of a line of such a file that begins with a name.
fn lookup(root: &Path, file: &str, name: &str) -> Option<Vec<String>> {
    let mut text = String::new();
    // Not through a link that leads out of the image.
    let opened = super::layers::open_within(root, file).ok()?;
    let limit = MAX_DOCUMENT as u64;
    opened.take(limit).read_to_string(&mut text).ok()?;
    let line = text
        .lines()
        .find(|line| line.split(':').next() == Some(name))?;
    Some(line.split(':').map(str::to_owned).collect())
}

#[cfg(test)]
mod tests;
