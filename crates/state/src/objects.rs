//! The object store: S3, GCS, Azure, or a folder with fsync.
//!
//! Nothing here relies on a listing: what is needed is found by its name, and the one thing that has to be
//! atomic is [`Objects::create`], which only one of several writers of a name can do.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, PutResult, UpdateVersion,
};

/// Longest wait for an answer, retries within it included.
const DEADLINE: Duration = Duration::from_secs(20);

/// The object store cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ObjectsError {
    /// The URL means nothing.
    #[error(
        "{url:?} is no object store: {reason}; write a folder, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
    )]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It did not do what it was asked; whether a write took effect is unknown.
    #[error("the object store cannot {doing} {name}: {reason}")]
    Failed {
        /// What was tried.
        doing: &'static str,
        /// With which object.
        name: String,
        /// What was said.
        reason: String,
    },
}

/// An object store, below a prefix.
#[derive(Debug, Clone)]
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// For folders, which know no conditions.
    locks: Option<Arc<Locks>>,
}

/// Tells an object from what it was before and will be later.
#[derive(Debug, Clone)]
pub struct Tag(UpdateVersion);

impl From<PutResult> for Tag {
    fn from(put: PutResult) -> Self {
        Self(UpdateVersion {
            e_tag: put.e_tag,
            version: put.version,
        })
    }
}

/// Certificates are checked with the same library as everywhere else.
pub(crate) fn choose_ciphers() {
    // That it was chosen before is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Objects {
    /// Opens a store by its URL. Options are those of the clouds' own tools, as they read them from the
    /// environment, in lower case (`aws_endpoint`); what is in the environment counts where an option is not given.
    /// Without a scheme it is a folder.
    ///
    /// # Errors
    /// When the URL means nothing, or the folder cannot be made.
    pub fn open(url: &str, options: &BTreeMap<String, String>) -> Result<Self, ObjectsError> {
        let bad = |reason: String| ObjectsError::Url {
            url: url.to_owned(),
            reason,
        };
        if !url.contains("://") || url.starts_with("file://") {
            return Self::folder(FilePath::new(url.trim_start_matches("file://"))).map_err(bad);
        }
        choose_ciphers();
        let parsed = reqwest::Url::parse(url).map_err(|error| bad(error.to_string()))?;
        let given = options
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()));
        let options = std::env::vars().map(|(key, value)| (key.to_lowercase(), value));
        let options = options.chain(given);
        let (store, prefix) = object_store::parse_url_opts(&parsed, options)
            .map_err(|error| bad(error.to_string()))?;
        Ok(Self {
            store: store.into(),
            prefix,
            locks: None,
        })
    }

    /// Any other store that knows conditions.
    pub fn over(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            prefix: Path::default(),
            locks: None,
        }
    }

    fn folder(path: &FilePath) -> Result<Self, String> {
        std::fs::create_dir_all(path).map_err(|error| error.to_string())?;
        let store = LocalFileSystem::new_with_prefix(path).map_err(|error| error.to_string())?;
        Ok(Self {
            store: Arc::new(store.with_fsync(true)),
            prefix: Path::default(),
            locks: Some(Arc::new(Locks(path.join(".locks")))),
        })
    }

    fn path(&self, name: &str) -> Path {
        let parts = name.split('/').filter(|part| !part.is_empty());
        parts.fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Writes an object that is not there; false if there is one of that name already.
    ///
    /// # Errors
    /// When it is not known whether it was written.
    pub async fn create(&self, name: &str, bytes: Bytes) -> Result<bool, ObjectsError> {
        let path = self.path(name);
        let options = PutOptions::from(PutMode::Create);
        let put = self.store.put_opts(&path, PutPayload::from(bytes), options);
        match within(put).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(failed("write", name, &error)),
        }
    }

    /// Writes an object, whatever is there.
    ///
    /// # Errors
    /// When it is not known whether it was written.
    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), ObjectsError> {
        let path = self.path(name);
        let put = within(self.store.put(&path, PutPayload::from(bytes))).await;
        put.map(|_| ())
            .map_err(|error| failed("write", name, &error))
    }

    /// Reads an object; none if it is not there.
    ///
    /// # Errors
    /// When that cannot be said.
    pub async fn get(&self, name: &str) -> Result<Option<Bytes>, ObjectsError> {
        let path = self.path(name);
        let whole = async { self.store.get(&path).await?.bytes().await };
        match within(whole).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("read", name, &error)),
        }
    }

    /// Reads an object with what tells it from others; none if it is not there.
    ///
    /// # Errors
    /// When that cannot be said.
    pub async fn get_tagged(&self, name: &str) -> Result<Option<(Tag, Bytes)>, ObjectsError> {
        let path = self.path(name);
        let whole = async {
            let found = self.store.get(&path).await?;
            let tag = Tag(UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            });
            Ok((tag, found.bytes().await?))
        };
        match within(whole).await {
            Ok(found) => Ok(Some(found)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("read", name, &error)),
        }
    }

    /// Writes an object if it is still the one of this tag, or, without a tag, if there is none; none if it is not.
    ///
    /// # Errors
    /// When it is not known whether it was written.
    pub async fn replace(
        &self,
        name: &str,
        tag: Option<&Tag>,
        bytes: Bytes,
    ) -> Result<Option<Tag>, ObjectsError> {
        use object_store::Error::{AlreadyExists, NotFound, Precondition};
        let path = self.path(name);
        let payload = PutPayload::from(bytes);
        let put = match (tag, &self.locks) {
            (None, _) => {
                let create = PutOptions::from(PutMode::Create);
                within(self.store.put_opts(&path, payload, create)).await
            }
            (Some(Tag(tag)), None) => {
                let update = PutOptions::from(PutMode::Update(tag.clone()));
                within(self.store.put_opts(&path, payload, update)).await
            }
            (Some(Tag(tag)), Some(locks)) => {
                let locked = locks.lock(name).await;
                let _locked = locked.map_err(|error| failed("lock", name, &error))?;
                match within(self.store.head(&path)).await {
                    Ok(meta) if meta.e_tag == tag.e_tag => {
                        within(self.store.put(&path, payload)).await
                    }
                    Ok(_) => return Ok(None),
                    Err(error) => Err(error),
                }
            }
        };
        match put {
            Ok(put) => Ok(Some(put.into())),
            Err(AlreadyExists { .. } | Precondition { .. } | NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("replace", name, &error)),
        }
    }

    /// Names of the objects that a listing shows below a name, without that, in order, and at most so many.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn list(&self, below: &str, limit: usize) -> Result<Vec<String>, ObjectsError> {
        let path = self.path(below);
        let found = self.store.list(Some(&path)).take(limit);
        let found = within(found.try_collect::<Vec<_>>()).await;
        let found = found.map_err(|error| failed("list", below, &error))?;
        let name = |location: &Path| {
            let rest = location.as_ref().strip_prefix(path.as_ref())?;
            Some(rest.trim_start_matches('/').to_owned())
        };
        let mut names: Vec<_> = found
            .iter()
            .filter_map(|meta| name(&meta.location))
            .collect();
        names.sort();
        Ok(names)
    }

    /// Size of an object in bytes; none if it is not there.
    ///
    /// # Errors
    /// When that cannot be said.
    pub async fn size(&self, name: &str) -> Result<Option<u64>, ObjectsError> {
        let path = self.path(name);
        match within(self.store.head(&path)).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("look at", name, &error)),
        }
    }

    /// Deletes an object; one that is not there is fine.
    ///
    /// # Errors
    /// When it is not known whether it is gone.
    pub async fn delete(&self, name: &str) -> Result<(), ObjectsError> {
        let path = self.path(name);
        match within(self.store.delete(&path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete", name, &error)),
        }
    }

    /// Deletes whatever a listing shows below a name: only to give room back.
    ///
    /// # Errors
    /// When it cannot be listed, or something of it stays.
    pub async fn delete_below(&self, name: &str) -> Result<(), ObjectsError> {
        let path = self.path(name);
        let found = within(self.store.list(Some(&path)).try_collect::<Vec<_>>()).await;
        for meta in found.map_err(|error| failed("list", name, &error))? {
            let deleted = within(self.store.delete(&meta.location)).await;
            deleted.map_err(|error| failed("delete", name, &error))?;
        }
        Ok(())
    }
}

/// Locks of files, so that only one process at a time looks at an object and replaces it.
#[derive(Debug)]
struct Locks(PathBuf);

/// Files that the locks of all objects are spread over.
const LOCK_FILES: u32 = 64;

impl Locks {
    /// Waits for the lock of an object; dropping the file gives it back.
    async fn lock(&self, name: &str) -> object_store::Result<File> {
        let file = crc32fast::hash(name.as_bytes()) % LOCK_FILES;
        let path = self.0.join(file.to_string());
        let lock = move || {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            let file = File::create(path)?;
            file.lock()?;
            Ok(file)
        };
        let locked = tokio::task::spawn_blocking(lock).await;
        let locked = locked.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        locked.map_err(|error| object_store::Error::Generic {
            store: "folder",
            source: error.into(),
        })
    }
}

async fn within<T>(call: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(result) => result,
        Err(_) => Err(object_store::Error::Generic {
            store: "object store",
            source: format!("no answer within {DEADLINE:?}").into(),
        }),
    }
}

fn failed(doing: &'static str, name: &str, error: &object_store::Error) -> ObjectsError {
    ObjectsError::Failed {
        doing,
        name: name.to_owned(),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_created_once_and_found_without_a_listing() {
        let folder = tempfile::tempdir().unwrap();
        let objects = Objects::open(folder.path().to_str().unwrap(), &BTreeMap::new()).unwrap();
        assert!(
            objects
                .create("a/b/1", Bytes::from_static(b"x"))
                .await
                .unwrap()
        );
        assert!(
            !objects
                .create("a/b/1", Bytes::from_static(b"y"))
                .await
                .unwrap()
        );
        assert_eq!(objects.get("a/b/1").await.unwrap().unwrap(), "x");
        assert_eq!(objects.size("a/b/1").await.unwrap(), Some(1));
        assert_eq!(objects.get("a/b/2").await.unwrap(), None);
        objects
            .put("a/b/2", Bytes::from_static(b"zz"))
            .await
            .unwrap();
        objects.delete("a/b/2").await.unwrap();
        objects.delete("a/b/2").await.unwrap();
        objects.delete_below("a").await.unwrap();
        assert_eq!(objects.size("a/b/1").await.unwrap(), None);
    }

    #[test]
    fn what_is_no_store_is_said() {
        let error = Objects::open("gopher://x", &BTreeMap::new())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("gopher://x") && error.contains("s3://"),
            "{error}"
        );
    }
}
