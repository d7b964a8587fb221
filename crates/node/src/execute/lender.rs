//! Who lends the state of a session to the node that runs its invocation: the node that is its home, or the external
//! store.

use std::time::Duration;

use fulmar_cluster::{Cluster, Lent, Returned, Settled};
use fulmar_model::{Code, Epoch, FunctionName, Group, NodeName, Problem, Version};
use fulmar_state::external::{Change, External, Outcome, Unsent};
use fulmar_state::record::IdempotencyRecord;

use crate::core::Core;
use crate::{clock, external, route};

/// The one that lends.
pub(crate) enum Lender<'a> {
    /// Another node.
    Node(&'a Cluster, &'a NodeName),
    /// The external store.
    External(&'a Core, &'a External),
}

impl Lender<'_> {
    /// Why an invocation on what is lent cannot write shared keys.
    pub(crate) fn has_no_shared_keys(&self, function: &FunctionName) -> Problem {
        match self {
            // It runs there instead.
            Self::Node(..) => {
                let detail = format!("{function} wrote shared keys, which its session's home does");
                Problem::new(Code::SessionMoved, detail)
            }
            Self::External(..) => {
                let detail = format!(
                    "{function} wrote shared keys, and its session is in the external store"
                );
                Problem::new(Code::SharedWriteRefused, detail)
            }
        }
    }

    /// Fetches a session's state.
    ///
    /// # Errors
    /// `session-moved` if it is elsewhere.
    pub(crate) async fn load(&self, group: &Group) -> Result<Lent, Problem> {
        match self {
            Self::Node(cluster, node) => {
                let loaded = cluster.load(node, group).await;
                let loaded = loaded.map_err(|error| route::lost_before(&error))?;
                loaded.map_err(|not_here| route::elsewhere(cluster, group, not_here))
            }
            Self::External(core, store) => {
                external::there(core, ASKING_BYTES).await;
                let kept = store.load(group).await;
                let kept = kept.map_err(|error| external::problem(&error))?;
                let function = core.functions.get(group.function.as_str());
                let is_only_there =
                    function.is_none_or(|function| function.current().is_external());
                if !is_only_there && (kept.closed.is_some() || kept.version == Version(0)) {
                    core.models.forget(group);
                    let detail = format!("the state of {group} is not in the external store now");
                    return Err(Problem::new(Code::SessionMoved, detail));
                }
                let entries = kept.entries.iter();
                let bytes = entries.map(|(key, value)| key.len() + value.len());
                external::back(core, ASKING_BYTES + bytes.sum::<usize>()).await;
                Ok(Lent {
                    version: kept.version,
                    // Nobody is home to it, so that nobody can be a later home.
                    epoch: Epoch(0),
                    entries: Some(kept.entries),
                })
            }
        }
    }

    /// The answers that are kept for keys, where asking for them first costs less than running in vain.
    pub(crate) async fn answered(
        &self,
        group: &Group,
        keys: &[&str],
    ) -> Result<Vec<Option<IdempotencyRecord>>, Problem> {
        match self {
            // It says so when it is asked to commit.
            Self::Node(..) => Ok(vec![None; keys.len()]),
            Self::External(core, store) => {
                external::there(core, ASKING_BYTES * keys.len()).await;
                let answered = store.answered(group, keys, clock::unix_ms()).await;
                external::back(core, ASKING_BYTES).await;
                answered.map_err(|error| external::problem(&error))
            }
        }
    }

    /// After a run in vain, of how many before: waits until another one makes sense.
    ///
    /// # Errors
    /// When none does.
    pub(crate) async fn try_again(&self, conflicts: u32) -> Result<(), Problem> {
        match self {
            Self::Node(..) if conflicts < MAX_NODE_CONFLICTS => Ok(()),
            Self::Node(..) => {
                // Where the state is nobody comes in between.
                let detail = "others keep changing the session";
                Err(Problem::new(Code::SessionMoved, detail))
            }
            Self::External(..) if conflicts < MAX_STORE_CONFLICTS => {
                let longest = Duration::from_millis(1 << conflicts.min(6));
                tokio::time::sleep(longest.mul_f64(fastrand::f64())).await;
                Ok(())
            }
            Self::External(..) => {
                let detail = "other nodes keep changing the session in the external store";
                Err(Problem::new(Code::QueueFull, detail))
            }
        }
    }

    /// Gives back what came of an invocation.
    ///
    /// # Errors
    /// `session-moved` if it is elsewhere; `outcome-unknown` if nobody can say whether it took effect.
    pub(crate) async fn commit(&self, returned: &Returned) -> Result<Settled, Problem> {
        match self {
            Self::Node(cluster, node) => match cluster.commit(node, returned).await {
                Ok(Ok(settled)) => Ok(settled),
                Ok(Err(not_here)) => Err(route::elsewhere(cluster, &returned.group, not_here)),
                Err(error) => Err(route::lost(&error)),
            },
            Self::External(core, store) => {
                commit_in_store(core, store, returned, returned.idempotency.as_slice()).await
            }
        }
    }
}

/// Writes what came of invocations to the external store, with what is kept for their keys.
///
/// # Errors
/// `outcome-unknown`.
pub(crate) async fn commit_in_store(
    core: &Core,
    store: &External,
    returned: &Returned,
    answers: &[(String, IdempotencyRecord)],
) -> Result<Settled, Problem> {
    let messages = returned.messages.iter().map(|message| Unsent {
        by: core.instance.clone(),
        message: message.clone(),
    });
    let messages: Vec<Unsent> = messages.collect();
    let change = Change {
        group: &returned.group,
        base: returned.version,
        next: external::after(returned.version),
        writes: &returned.writes,
        messages: &messages,
        answers,
        now_unix_ms: clock::unix_ms(),
    };
    let writes = returned.writes.iter();
    let bytes = writes.map(|(key, value)| key.len() + value.as_ref().map_or(0, bytes::Bytes::len));
    external::there(core, ASKING_BYTES + bytes.sum::<usize>()).await;
    let outcome = store.commit(&change).await;
    external::back(core, ASKING_BYTES).await;
    match outcome {
        Ok(Outcome::Committed(version)) => Ok(Settled::Committed(version)),
        Ok(Outcome::Conflict) => Ok(Settled::Conflict),
        Ok(Outcome::Replay(record)) => Ok(Settled::Replay(record)),
        Err(error) => Err(Problem::new(Code::OutcomeUnknown, error.to_string())),
    }
}

/// Runs in vain on what another node lends before the invocation runs there.
const MAX_NODE_CONFLICTS: u32 = 2;
/// Runs in vain on what the external store has before the client is to come back: there is nowhere else to run.
const MAX_STORE_CONFLICTS: u32 = 24;

/// What a request to the external store has besides the state, about, in bytes, for emulated links.
const ASKING_BYTES: usize = 200;
