//! The deployed functions of the node, and each one's sessions.
//!
//! A function keeps its entry across deployments; what is deployed changes inside it, so that new
//! invocations take the new version while running ones finish on the old.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fulmar_model::manifest::FileMode;
use fulmar_model::{Durability, FunctionName, Group, Manifest};
use fulmar_worker::{Artifact, Cpu, FileGrant, FunctionSettings, Key as PoolKey, Need, World};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Semaphore;

use crate::accesses::Accesses;
use crate::crashes::Crashes;
use crate::fleet::Fleet;
use crate::intake::Intake;
use crate::loaded::Loaded;
use crate::profile::Profile;
use crate::schedule::{Distances, Told, Tried};
use crate::sessions::Sessions;

/// One deployed version of a function.
pub(crate) struct Deployed {
    pub(crate) version: u64,
    pub(crate) manifest: Manifest,
    /// SHA-256 of the component, in hexadecimal.
    pub(crate) digest: String,
    pub(crate) deployed_unix_ms: u64,
    /// Whether other nodes may have taken its sessions over, by this version or one before.
    pub(crate) was_taken_over: bool,
    /// None: what stands for shared keys is never invoked.
    pub(crate) artifact: Option<Loaded>,
    pub(crate) settings: Arc<FunctionSettings>,
    /// One permit per worker without a session.
    pub(crate) workers: Arc<Semaphore>,
    /// How its workers fail.
    pub(crate) crashes: Crashes,
    /// Whether it has too much to do, if its workers are instances.
    pub(crate) intake: Option<Intake>,
    /// Its workers, if they are processes of their own.
    pub(crate) fleet: Option<Arc<Fleet>>,
}

impl Deployed {
    pub(crate) fn new(
        manifest: Manifest,
        version: u64,
        digest: String,
        deployed_unix_ms: u64,
        artifact: Option<Arc<Artifact>>,
    ) -> Self {
        Self {
            version,
            settings: Arc::new(settings(&manifest)),
            workers: Arc::new(Semaphore::new(manifest.workers.max as usize)),
            crashes: Crashes::default(),
            intake: (!manifest.is_program()).then(|| Intake::new(&manifest)),
            fleet: manifest
                .is_program()
                .then(|| Arc::new(fleet(&manifest, version))),
            manifest,
            digest,
            deployed_unix_ms,
            was_taken_over: false,
            artifact: artifact.map(Loaded::new),
        }
    }

    /// What each of its workers takes.
    pub(crate) fn need(&self) -> Need {
        need(&self.manifest)
    }

    pub(crate) fn world(&self) -> World {
        let artifact = self.artifact.as_ref();
        artifact.map_or(World::Function, Loaded::world)
    }
}

/// The workers of a version that are processes of their own: they go from session to session.
fn fleet(manifest: &Manifest, version: u64) -> Fleet {
    let key = PoolKey {
        function: manifest.name.clone(),
        version,
        session: None,
    };
    Fleet::new(key, manifest)
}

/// What each worker of a function takes.
pub(crate) fn need(manifest: &Manifest) -> Need {
    Need {
        bytes: manifest.limits.memory.0,
        cpu_millis: manifest.workers.reserved_cpu.millis(),
    }
}

/// What a worker needs to know of the manifest.
fn settings(manifest: &Manifest) -> FunctionSettings {
    let files = manifest.grants.files.iter().map(|grant| FileGrant {
        host: grant.host.clone().into(),
        guest: grant.guest.clone(),
        writable: grant.mode == FileMode::ReadWrite,
    });
    FunctionSettings {
        memory_bytes: manifest.limits.memory.as_usize(),
        cpu: match manifest.workers.reserved_cpu.millis() {
            0 => Cpu::Weight(manifest.workers.cpu_weight),
            millis => Cpu::Reserved { millis },
        },
        max_response_bytes: manifest.limits.max_response.as_usize(),
        execution_model: manifest.execution_model,
        env: manifest.env.clone().into_iter().collect(),
        config: manifest.config.clone(),
        http: manifest.grants.http.clone(),
        network: manifest.grants.network,
        files: files.collect(),
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
    /// Which shared keys it uses.
    pub(crate) accesses: Accesses,
    /// How far those are from each node.
    pub(crate) distances: Distances,
    /// What was decided about its invocations last.
    pub(crate) told: Told,
    /// When one of them ran last that was expected to be late.
    pub(crate) tried: Tried,
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
    fn new(deployed: Deployed) -> Self {
        Self {
            name: deployed.manifest.name.clone(),
            current: RwLock::new(Arc::new(deployed)),
            sessions: Sessions::default(),
            borrowed: Sessions::default(),
            keyed: Sessions::default(),
            followed: Followed::default(),
            profile: Profile::default(),
            accesses: Accesses::default(),
            distances: Distances::default(),
            told: Told::default(),
            tried: Tried::default(),
            waiting: AtomicUsize::new(0),
        }
    }

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
pub(crate) struct Functions {
    deployed: RwLock<BTreeMap<FunctionName, Arc<Function>>>,
    /// What stands for the shared keys of each namespace, as far as there are functions in it or any were used here.
    shared_keys: RwLock<BTreeMap<FunctionName, Arc<Function>>>,
}

impl Functions {
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Function>> {
        self.deployed.read().get(name).cloned()
    }

    /// Whatever a placement group belongs to: a function that is deployed, or the shared keys of a namespace.
    pub(crate) fn of(&self, group: &Group) -> Option<Arc<Function>> {
        self.named(&group.function)
    }

    /// The same by its name.
    pub(crate) fn named(&self, name: &FunctionName) -> Option<Arc<Function>> {
        match name.is_shared_keys() {
            true => Some(self.shared_keys(name)),
            false => self.get(name.as_str()),
        }
    }

    fn shared_keys(&self, name: &FunctionName) -> Arc<Function> {
        if let Some(function) = self.shared_keys.read().get(name) {
            return function.clone();
        }
        let mut shared_keys = self.shared_keys.write();
        let made = || Arc::new(Function::new(as_function(name, &[])));
        shared_keys.entry(name.clone()).or_insert_with(made).clone()
    }

    /// Those that are deployed.
    pub(crate) fn all(&self) -> Vec<Arc<Function>> {
        self.deployed.read().values().cloned().collect()
    }

    /// Whatever has placement groups in use.
    pub(crate) fn with_shared_keys(&self) -> Vec<Arc<Function>> {
        let mut all = self.all();
        all.extend(self.shared_keys.read().values().cloned());
        all
    }

    /// Makes `deployed` what new invocations run.
    pub(crate) fn deploy(&self, deployed: Deployed) -> Arc<Function> {
        let name = deployed.manifest.name.clone();
        let mut functions = self.deployed.write();
        let function = match functions.get(&name) {
            Some(function) => {
                *function.current.write() = Arc::new(deployed);
                function.clone()
            }
            None => {
                let function = Arc::new(Function::new(deployed));
                functions.insert(name.clone(), function.clone());
                function
            }
        };
        self.suit_shared_keys(&functions, name.namespace());
        function
    }

    pub(crate) fn remove(&self, name: &str) -> Option<Arc<Function>> {
        let mut functions = self.deployed.write();
        let removed = functions.remove(name)?;
        self.suit_shared_keys(&functions, removed.name.namespace());
        Some(removed)
    }

    /// Keeps the shared keys of a namespace as its functions are kept.
    fn suit_shared_keys(&self, functions: &BTreeMap<FunctionName, Arc<Function>>, namespace: &str) {
        let those = functions.values();
        let those = those.filter(|function| function.name.namespace() == namespace);
        let those: Vec<_> = those.map(|function| function.current()).collect();
        let keys = self.shared_keys(&FunctionName::of_shared_keys(namespace));
        *keys.current.write() = Arc::new(as_function(&keys.name, &those));
    }
}

/// The shared keys of a namespace as if they were a function's sessions: as careful as the most careful of its functions.
fn as_function(name: &FunctionName, of: &[Arc<Deployed>]) -> Deployed {
    let mut manifest = Manifest::for_artifact(name.clone());
    let replicated = Durability::Replicated;
    if of
        .iter()
        .any(|deployed| deployed.manifest.durability == replicated)
    {
        manifest.durability = replicated;
    }
    Deployed::new(manifest, 0, String::new(), 0, None)
}
