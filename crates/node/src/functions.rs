//! The deployed functions of the node, and each one's sessions.
//!
//! A function keeps its entry across deployments; what is deployed changes inside it, so that new
//! invocations take the new version while running ones finish on the old.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fulmar_model::{FunctionName, Manifest};
use fulmar_worker::{Artifact, FunctionSettings, World};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use crate::profile::Profile;
use crate::schedule::Told;
use crate::sessions::Sessions;

/// One deployed version of a function.
pub(crate) struct Deployed {
    pub(crate) version: u64,
    pub(crate) manifest: Manifest,
    /// SHA-256 of the component, in hexadecimal.
    pub(crate) digest: String,
    pub(crate) deployed_unix_ms: u64,
    pub(crate) artifact: Arc<Artifact>,
    pub(crate) settings: Arc<FunctionSettings>,
    /// One permit per worker without a session.
    pub(crate) workers: Arc<Semaphore>,
}

impl Deployed {
    pub(crate) fn world(&self) -> World {
        self.artifact.world()
    }
}

/// A function of the node.
pub(crate) struct Function {
    pub(crate) name: FunctionName,
    current: RwLock<Arc<Deployed>>,
    pub(crate) sessions: Sessions,
    /// Sessions that other nodes lend: in queues of their own, so that what waits for a lender never holds
    /// up what other nodes ask of this one.
    pub(crate) borrowed: Sessions,
    /// How long it takes and how large it is.
    pub(crate) profile: Profile,
    /// What was decided about its invocations last.
    pub(crate) told: Told,
    /// Sessionless invocations by idempotency key, so that two with the same key run one by one.
    pub(crate) keyed: Sessions,
    /// Sessions at home here of which other nodes take requests.
    pub(crate) followed: Followed,
    /// Sessionless invocations that wait for a worker.
    waiting: AtomicUsize,
}

/// Names of sessions that are looked at now and then.
#[derive(Default)]
pub(crate) struct Followed {
    names: Mutex<HashSet<Arc<str>>>,
    count: AtomicUsize,
}

impl Followed {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Arc<str>> {
        self.names.lock().iter().cloned().collect()
    }

    /// One more.
    pub(crate) fn add(&self, name: &Arc<str>) {
        let mut names = self.names.lock();
        names.insert(name.clone());
        self.count.store(names.len(), Ordering::Relaxed);
    }

    /// One fewer.
    pub(crate) fn forget(&self, name: &str) {
        let mut names = self.names.lock();
        names.remove(name);
        self.count.store(names.len(), Ordering::Relaxed);
    }
}

/// Counts a waiting invocation while it lives.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Function {
    /// What new invocations run.
    pub(crate) fn current(&self) -> Arc<Deployed> {
        self.current.read().clone()
    }

    /// Sessions with state in memory: those at home here, or those that other nodes lend.
    pub(crate) fn kept(&self, is_own: bool) -> &Sessions {
        match is_own {
            true => &self.sessions,
            false => &self.borrowed,
        }
    }

    /// Counts a sessionless invocation as waiting until what comes back is dropped.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(&self.waiting)
    }

    /// Sessionless invocations that wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// The functions of the node, by name.
#[derive(Default)]
pub(crate) struct Functions(RwLock<BTreeMap<FunctionName, Arc<Function>>>);

impl Functions {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Function>> {
        self.0.read().get(name).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        self.0.read().values().cloned().collect()
    }

    /// Makes `deployed` what new invocations run.
    pub(crate) fn deploy(&self, deployed: Deployed) -> Arc<Function> {
        let name = deployed.manifest.name.clone();
        let deployed = Arc::new(deployed);
        let mut functions = self.0.write();
        if let Some(function) = functions.get(&name) {
            *function.current.write() = deployed;
            return function.clone();
        }
        let function = Arc::new(Function {
            name: name.clone(),
            current: RwLock::new(deployed),
            sessions: Sessions::default(),
            borrowed: Sessions::default(),
            keyed: Sessions::default(),
            followed: Followed::default(),
            profile: Profile::default(),
            told: Told::default(),
            waiting: AtomicUsize::new(0),
        });
        functions.insert(name, function.clone());
        function
    }

    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Function>> {
        self.0.write().remove(name)
    }
}
