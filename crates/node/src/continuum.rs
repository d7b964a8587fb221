//! This node among others: what it does when they call, and how it takes up what the registry says.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_cluster::view::FUNCTIONS;
use fulmar_cluster::{
    Cluster, Delivered, Delivery, Entries, Forwarded, Handler, Lent, Measured, NotHere, Returned,
    Settled, StageHead,
};
use fulmar_model::{Code, Epoch, Group, NodeName, Problem};
use fulmar_state::aside;
use fulmar_state::record::{FunctionRecord, Record};
use http::{Request, Response};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::core::Core;
use crate::functions::Function;
use crate::respond::{self, Body};
use crate::target;
use crate::{access, admin, arrive, broker, courier, deploy, lend, namespaces, schedule};

/// Longest wait until what the registry says is in effect: fetching and compiling a large component.
const CATCH_UP: Duration = Duration::from_secs(60);
/// Pause before a function that could not be taken up is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Which change of the registry is in effect here, and what of it could not be put into effect.
pub(crate) struct InEffect {
    revision: watch::Sender<u64>,
    failed: Mutex<HashMap<String, Problem>>,
}

impl Default for InEffect {
    fn default() -> Self {
        Self {
            revision: watch::Sender::new(0),
            failed: Mutex::default(),
        }
    }
}

impl InEffect {
    /// Waits until a change is in effect.
    ///
    /// # Errors
    /// When it takes too long, or something of it cannot be put into effect.
    pub(crate) async fn wait(&self, revision: u64) -> Result<(), Problem> {
        self.reached(revision).await?;
        match self.failed.lock().values().next() {
            Some(problem) => Err(problem.clone()),
            None => Ok(()),
        }
    }

    /// Waits until a change was tried to put into effect.
    async fn reached(&self, revision: u64) -> Result<(), Problem> {
        let mut revisions = self.revision.subscribe();
        let reached = revisions.wait_for(|seen| *seen >= revision);
        if !matches!(tokio::time::timeout(CATCH_UP, reached).await, Ok(Ok(_))) {
            let detail = format!("change {revision} was not in effect within {CATCH_UP:?}");
            return Err(Problem::new(Code::RegistryUnreachable, detail));
        }
        Ok(())
    }
}

/// A function that is to be invoked. One that was deployed and is not taken up yet, since the node has just started, is
/// waited for.
///
/// # Errors
/// When there is none, it cannot be taken up, or it is not known whether there is one.
pub(crate) async fn function(core: &Core, name: &str) -> Result<Arc<Function>, Problem> {
    if let Some(function) = core.functions.get(name) {
        return Ok(function);
    }
    let no_such = || {
        let detail = format!("no function {name:?} is deployed");
        Err(Problem::new(Code::FunctionNotFound, detail))
    };
    let Some(cluster) = &core.cluster else {
        return no_such();
    };
    let view = cluster.view();
    if view.get(&format!("{FUNCTIONS}{name}")).is_some() {
        core.in_effect.reached(view.revision()).await?;
        if let Some(problem) = core.in_effect.failed.lock().get(name) {
            return Err(problem.clone());
        }
        return core.functions.get(name).map_or_else(no_such, Ok);
    }
    if view.is_connected() {
        return no_such();
    }
    let detail = format!("no function {name:?} was known here when the registry was last followed");
    Err(Problem::new(Code::RegistryUnreachable, detail))
}

/// What a node does when another calls it.
pub(crate) struct Answers(pub(crate) Arc<Core>);

#[tonic::async_trait]
impl Handler for Answers {
    async fn forward(&self, from: &NodeName, request: Request<Bytes>) -> Forwarded {
        tracing::debug!(%from, path = request.uri().path(), "a request by way of another node");
        let core = &self.0;
        if request.uri().path().starts_with(target::PREFIX) {
            return broker::answer_peer(core, from, request).await;
        }
        let request = request.map(axum::body::Body::from);
        let response = match admin::router(core.clone()).oneshot(request).await {
            Ok(response) => respond::routed(response),
            Err(never) => match never {},
        };
        Forwarded {
            response: whole(response).await,
            moved: None,
        }
    }

    fn room_bytes(&self) -> Option<u64> {
        self.0.keeper.room_bytes()
    }

    fn worker_bytes(&self) -> Option<u64> {
        self.0.pool.room().total_bytes()
    }

    fn execution_times(&self) -> Vec<(String, Measured)> {
        schedule::execution_times(&self.0)
    }

    async fn deliver(&self, delivery: Delivery) -> Delivered {
        courier::receive(&self.0, delivery).await
    }

    async fn load(&self, from: &NodeName, group: &Group) -> Result<Lent, NotHere> {
        lend::load(&self.0, from, group).await
    }

    async fn commit(&self, from: &NodeName, returned: Returned) -> Result<Settled, NotHere> {
        lend::commit(&self.0, from, returned).await
    }

    async fn stage(
        &self,
        from: &NodeName,
        head: StageHead,
        entries: Entries,
    ) -> Result<(), Problem> {
        arrive::stage(&self.0, from, head, entries).await
    }

    async fn settle(&self, group: &Group, epoch: Epoch, attempt: u64, arrived: bool) {
        arrive::settle(&self.0, group, epoch, attempt, arrived).await;
    }

    async fn artifact(&self, digest: &str) -> Option<Bytes> {
        let (core, digest) = (self.0.clone(), digest.to_owned());
        let read = aside::run(move || core.artifacts.read(&digest)).await;
        read.ok().flatten().map(Bytes::from)
    }

    async fn catch_up(&self, revision: u64) -> Result<(), Problem> {
        self.0.in_effect.wait(revision).await
    }
}

/// A response with all of its body.
pub(crate) async fn whole(response: Response<Body>) -> Response<Bytes> {
    let (head, body) = response.into_parts();
    match body.collect().await {
        Ok(body) => Response::from_parts(head, body.to_bytes()),
        Err(error) => {
            let detail = format!("the answer broke off: {error}");
            let problem = Problem::new(Code::Internal, detail);
            let mut response = Response::new(Bytes::from(problem.to_json()));
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            response
        }
    }
}

/// Takes up what the registry says, now and whenever it changes, until stopped.
pub(crate) async fn follow(core: Arc<Core>, cluster: Arc<Cluster>, stop: CancellationToken) {
    let mut revisions = cluster.view().subscribe();
    while let Err(problem) = access::share(&core, &cluster).await {
        tracing::warn!(%problem, "tokens from when this node was alone are not shared yet");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
    let mut taken_up: HashMap<String, u64> = HashMap::new();
    loop {
        let revision = *revisions.borrow_and_update();
        take_up_rules(&core, &cluster);
        take_up_functions(&core, &cluster, &mut taken_up).await;
        core.in_effect.revision.send_replace(revision);
        let has_failed = !core.in_effect.failed.lock().is_empty();
        tokio::select! {
            () = stop.cancelled() => return,
            changed = revisions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if has_failed => {}
        }
    }
}

/// Takes up who may do what, what namespaces may have, and the keys of carried state.
pub(crate) fn take_up_rules(core: &Core, cluster: &Cluster) {
    if cluster.view().revision() > 0 {
        core.access
            .take_up(&cluster.view().list(access::KEY_PREFIX));
        core.namespaces
            .take_up(cluster.view().list(namespaces::KEY_PREFIX));
        core.state_keys.take_up(cluster);
    }
}

async fn take_up_functions(
    core: &Arc<Core>,
    cluster: &Cluster,
    taken_up: &mut HashMap<String, u64>,
) {
    let entries = cluster.view().list(FUNCTIONS);
    if cluster.view().revision() == 0 {
        // Nothing was heard yet: what is stored here stays.
        return;
    }
    let mut names = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.key[FUNCTIONS.len()..].to_owned();
        names.push(name.clone());
        if taken_up.get(&name) == Some(&entry.revision) {
            continue;
        }
        match take_up(core, cluster, &entry.value).await {
            Ok(()) => {
                core.in_effect.failed.lock().remove(&name);
                taken_up.insert(name, entry.revision);
            }
            Err(problem) => {
                tracing::error!(function = name, %problem, "a function that was deployed cannot be taken up");
                core.in_effect.failed.lock().insert(name, problem);
            }
        }
    }
    let deployed = core.functions.all();
    for function in deployed {
        let name = function.name.as_str();
        if !names.iter().any(|known| known == name) {
            taken_up.remove(name);
            if let Err(problem) = deploy::take_down(core, name).await {
                tracing::error!(function = name, %problem, "a function that was removed stays");
            }
        }
    }
    core.in_effect
        .failed
        .lock()
        .retain(|name, _| names.contains(name));
}

async fn take_up(core: &Arc<Core>, cluster: &Cluster, record: &[u8]) -> Result<(), Problem> {
    let record = FunctionRecord::decode(record)
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    if !core.artifacts.has(&record.artifact) {
        fetch(core, cluster, &record.artifact).await?;
    }
    deploy::take_up(core, record).await
}

/// Gets an artefact from whoever has it.
async fn fetch(core: &Arc<Core>, cluster: &Cluster, digest: &str) -> Result<(), Problem> {
    let mut last = format!("no other node is running that could have the artefact {digest}");
    for node in cluster.others() {
        let wasm = match cluster.fetch_artifact(&node, digest).await {
            Ok(wasm) => wasm,
            Err(error) => {
                last = error.to_string();
                continue;
            }
        };
        let (core, digest) = (core.clone(), digest.to_owned());
        let stored = aside::run(move || core.artifacts.store(&core.runtime, &digest, &wasm));
        return stored
            .await
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    }
    Err(Problem::new(Code::ArtifactNotFound, last))
}
