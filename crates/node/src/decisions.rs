//! What the node has decided about sessions and invocations by itself, and from what: remembered for people, and carried
//! out.

use std::collections::VecDeque;
use std::sync::Arc;

use fulmar_cluster::{Automatic, Cluster};
use fulmar_model::{ExecutionModel, FunctionName, Group, NodeName};
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::core::Core;
use crate::functions::Function;
use crate::schedule::Expected;
use crate::{clock, migrate};

/// Sessions on their way at once, so that moves leave room for requests.
const AT_ONCE: usize = 4;
/// Decisions that are remembered.
const REMEMBERED: usize = 1000;

/// A decision about a session, for people.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Decision {
    pub(crate) at: String,
    pub(crate) node: NodeName,
    pub(crate) function: FunctionName,
    pub(crate) session: String,
    /// `moved`, `stays`, `would-move`, `failed`; of an invocation `as-usual`, `here`, `offloaded`, `refused`, `tried`,
    /// `would-...`; of an execution model `changed`, `would-change`, `failed`.
    pub(crate) verdict: &'static str,
    pub(crate) to: Option<NodeName>,
    /// The execution model that the session gets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<ExecutionModel>,
    pub(crate) requests_per_second_here: f64,
    pub(crate) state_bytes: usize,
    pub(crate) candidates: Vec<Candidate>,
    /// What was expected of each node, for an invocation.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) estimates: Vec<Expected>,
    /// What the function is promised, and how it stands with that, if its sessions are placed for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) promise: Option<Promise>,
    /// What a change of models is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latency: Option<Latency>,
    pub(crate) error: Option<String>,
}

impl Decision {
    /// One that was made now, here, about a session of a function, or an invocation without one (`""`); nothing more is said
    /// of it.
    pub(crate) fn now(
        cluster: &Cluster,
        function: &FunctionName,
        session: String,
        verdict: &'static str,
    ) -> Self {
        Self {
            at: clock::rfc3339(clock::unix_ms()),
            node: cluster.name().clone(),
            function: function.clone(),
            session,
            verdict,
            to: None,
            model: None,
            requests_per_second_here: 0.0,
            state_bytes: 0,
            candidates: Vec::new(),
            estimates: Vec::new(),
            promise: None,
            latency: None,
            error: None,
        }
    }
}

/// What a move to a node would bring.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Candidate {
    pub(crate) node: NodeName,
    pub(crate) requests_per_second: f64,
    pub(crate) round_trip_seconds: f64,
    pub(crate) bytes_per_second: f64,
    /// Waiting saved in each second.
    pub(crate) saves_seconds_per_second: f64,
    /// Waiting that the move itself causes.
    pub(crate) costs_seconds: f64,
}

/// Mean times of an access to the sessions' state that are at home on a node, in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Promise {
    pub(crate) max_data_access_seconds: f64,
    pub(crate) now_seconds: f64,
    /// When all moves that are planned are done.
    pub(crate) then_seconds: f64,
}

/// Mean latency of invocations of the sessions that share a node's workers, in seconds; none: their queue would grow and
/// grow.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Latency {
    pub(crate) workers: u32,
    pub(crate) sessions: usize,
    pub(crate) now_seconds: Option<f64>,
    /// When all changes that are planned are done.
    pub(crate) then_seconds: Option<f64>,
}

/// The last decisions of this node, and the moves that come of them.
pub(crate) struct Decisions {
    last: Mutex<VecDeque<Decision>>,
    moving: Arc<Semaphore>,
}

impl Default for Decisions {
    fn default() -> Self {
        Self {
            last: Mutex::default(),
            moving: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Decisions {
    pub(crate) fn remember(&self, decision: Decision) {
        let mut decisions = self.last.lock();
        if decisions.len() == REMEMBERED {
            decisions.pop_front();
        }
        decisions.push_back(decision);
    }

    /// What has to be held while a session is on its way; none if enough are.
    pub(crate) fn begin(&self) -> Option<OwnedSemaphorePermit> {
        self.moving.clone().try_acquire_owned().ok()
    }

    /// Those about a function, or one of its sessions, the oldest first.
    pub(crate) fn about(&self, function: &str, session: Option<&str>) -> Vec<Decision> {
        let decisions = self.last.lock();
        let about = decisions.iter().filter(|decision| {
            decision.function.as_str() == function
                && session.is_none_or(|session| decision.session == session)
        });
        about.cloned().collect()
    }
}

/// The verdict about a session that is to go somewhere, or nowhere.
pub(crate) fn verdict(to: Option<&NodeName>, mode: Automatic) -> &'static str {
    match (to, mode) {
        (None, _) => "stays",
        (Some(_), Automatic::On) => "moved",
        (Some(_), _) => "would-move",
    }
}

/// Has a session moved as was decided, unless enough are on their way: then its turn comes. That it stays, or would have
/// been moved, is only remembered, if it is to be told.
pub(crate) fn carry_out(
    core: &Arc<Core>,
    cluster: &Arc<Cluster>,
    function: &Function,
    group: &Group,
    mut decision: Decision,
    mode: Automatic,
    is_to_be_told: bool,
) {
    let Some(to) = decision.to.clone().filter(|_| mode == Automatic::On) else {
        if is_to_be_told {
            core.decisions.remember(decision);
        }
        return;
    };
    let Some(permit) = core.decisions.begin() else {
        return;
    };
    if let Some(session) = function.sessions.peek(group.session.as_str()) {
        session.forget_takers();
    }
    function.followed.forget(group.session.as_str());
    let (core, cluster, group) = (core.clone(), cluster.clone(), group.clone());
    tokio::spawn(async move {
        let _permit = permit;
        if let Err(problem) = migrate::migrate(&core, &cluster, &group, &to).await {
            decision.verdict = "failed";
            decision.error = Some(problem.to_string());
        }
        core.decisions.remember(decision);
    });
}
