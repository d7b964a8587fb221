//! State that is lent to the node that runs an invocation, and what comes back: both sides of the protocol.

use std::time::{Duration, Instant};

use bytes::Bytes;
use fulmar_model::{Code, Durability, Epoch, Group, NodeName, Problem, Version};
use fulmar_state::record::{IdempotencyRecord, MessageRecord, Record};
use tonic::Status;

use crate::handler::{Handler, Lent, NotHere, Returned, Settled};
use crate::join::Cluster;
use crate::peers::PeerError;
use crate::wire::peer_client::PeerClient;
use crate::wire::{self, CommitReply, CommitRequest, LoadReply, LoadRequest, StateEntry};

/// Longest wait for a home.
const DEADLINE: Duration = Duration::from_secs(10);

impl Cluster {
    /// Borrows a session's state from its home.
    ///
    /// # Errors
    /// When the home does not answer. What it answers may be that it is not the home.
    pub async fn load(
        &self,
        node: &NodeName,
        group: &Group,
    ) -> Result<Result<Lent, NotHere>, PeerError> {
        let message = LoadRequest {
            group: Some(group.into()),
        };
        let request = self.peers().request(message, DEADLINE);
        let asked = Instant::now();
        let reply = self
            .peers()
            .call(node, DEADLINE, |channel| async move {
                PeerClient::new(channel)
                    .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
                    .load(request)
                    .await
            })
            .await?;
        let values = reply
            .entries
            .iter()
            .filter_map(|entry| entry.value.as_ref());
        let bytes: usize = values.map(|value| value.len()).sum();
        self.hints()
            .transferred(node, bytes as u64, asked.elapsed());
        if let Some(not_here) = not_here(&reply.problem, &reply.moved_to, reply.moved_epoch) {
            return Ok(Err(not_here));
        }
        let entries = reply.entries.into_iter();
        let entries = entries.map(|entry| (entry.key, entry.value.unwrap_or_default()));
        Ok(Ok(Lent {
            version: Version(reply.version),
            epoch: Epoch(reply.epoch),
            entries: (!reply.too_large).then(|| entries.collect()),
        }))
    }

    /// Gives back what came of an invocation that ran on borrowed state.
    ///
    /// # Errors
    /// When the home does not answer: then it may have been committed.
    pub async fn commit(
        &self,
        node: &NodeName,
        returned: &Returned,
    ) -> Result<Result<Settled, NotHere>, PeerError> {
        let writes = returned.writes.iter().map(|(key, value)| StateEntry {
            key: key.clone(),
            value: value.clone(),
        });
        let messages = returned.messages.iter();
        let (idempotency_key, idempotency) = match &returned.idempotency {
            Some((key, record)) => (key.clone(), record.encode().into()),
            None => (String::new(), Bytes::new()),
        };
        let message = CommitRequest {
            group: Some((&returned.group).into()),
            version: returned.version.0,
            epoch: returned.epoch.0,
            writes: writes.collect(),
            messages: messages.map(|message| message.encode().into()).collect(),
            idempotency_key,
            idempotency,
            durability: returned.durability.as_str().to_owned(),
        };
        let request = self.peers().request(message, DEADLINE);
        let reply = self
            .peers()
            .call(node, DEADLINE, |channel| async move {
                PeerClient::new(channel)
                    .max_encoding_message_size(wire::MAX_MESSAGE_BYTES)
                    .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
                    .commit(request)
                    .await
            })
            .await?;
        if let Some(not_here) = not_here(&reply.problem, &reply.moved_to, reply.moved_epoch) {
            return Ok(Err(not_here));
        }
        if reply.conflict {
            return Ok(Ok(Settled::Conflict));
        }
        if !reply.replay.is_empty() {
            let record = IdempotencyRecord::decode(&reply.replay);
            let record = record.map_err(|error| PeerError::Refused {
                node: node.clone(),
                reason: error.to_string(),
            })?;
            return Ok(Ok(Settled::Replay(record)));
        }
        Ok(Ok(Settled::Committed(Version(reply.version))))
    }
}

fn not_here(problem: &[u8], moved_to: &str, moved_epoch: u64) -> Option<NotHere> {
    if problem.is_empty() {
        return None;
    }
    Some(match serde_json::from_slice::<Problem>(problem) {
        Ok(problem) if problem.code == Code::SessionMoved => {
            let to = NodeName::new(moved_to).ok();
            NotHere::Moved(to.map(|to| (to, Epoch(moved_epoch))))
        }
        Ok(problem) => NotHere::Failed(problem),
        Err(error) => NotHere::Failed(Problem::new(Code::Internal, error.to_string())),
    })
}

fn refusal(not_here: NotHere) -> (Bytes, String, u64) {
    match not_here {
        NotHere::Failed(problem) => (problem.to_json().into(), String::new(), 0),
        NotHere::Moved(to) => {
            let problem = Problem::new(Code::SessionMoved, "the session is elsewhere");
            let (to, epoch) =
                to.map_or((String::new(), 0), |(to, epoch)| (to.to_string(), epoch.0));
            (problem.to_json().into(), to, epoch)
        }
    }
}

/// Answers a call for a session's state.
pub(crate) async fn lend(handler: &dyn Handler, from: &NodeName, group: &Group) -> LoadReply {
    match handler.load(from, group).await {
        Ok(lent) => {
            let too_large = lent.entries.is_none();
            let entries = lent.entries.unwrap_or_default().into_iter();
            LoadReply {
                version: lent.version.0,
                epoch: lent.epoch.0,
                entries: entries
                    .map(|(key, value)| StateEntry {
                        key,
                        value: Some(value),
                    })
                    .collect(),
                too_large,
                ..LoadReply::default()
            }
        }
        Err(not_here) => {
            let (problem, moved_to, moved_epoch) = refusal(not_here);
            LoadReply {
                problem,
                moved_to,
                moved_epoch,
                ..LoadReply::default()
            }
        }
    }
}

/// Answers a call with what came of an invocation.
pub(crate) async fn take_back(
    handler: &dyn Handler,
    from: &NodeName,
    group: Group,
    message: CommitRequest,
) -> Result<CommitReply, Status> {
    let bad = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
    let messages = message.messages.iter();
    let messages = messages.map(|message| MessageRecord::decode(message));
    let idempotency = match message.idempotency.is_empty() {
        true => None,
        false => {
            let record = IdempotencyRecord::decode(&message.idempotency);
            Some((
                message.idempotency_key,
                record.map_err(|error| bad(&error))?,
            ))
        }
    };
    let returned = Returned {
        group,
        version: Version(message.version),
        epoch: Epoch(message.epoch),
        writes: message
            .writes
            .into_iter()
            .map(|write| (write.key, write.value))
            .collect(),
        messages: messages
            .collect::<Result<_, _>>()
            .map_err(|error| bad(&error))?,
        idempotency,
        durability: Durability::parse(&message.durability)
            .ok_or_else(|| bad(&format!("{:?} is no durability", message.durability)))?,
    };
    let mut reply = CommitReply::default();
    match handler.commit(from, returned).await {
        Ok(Settled::Committed(version)) => reply.version = version.0,
        Ok(Settled::Conflict) => reply.conflict = true,
        Ok(Settled::Replay(record)) => reply.replay = record.encode().into(),
        Err(not_here) => {
            (reply.problem, reply.moved_to, reply.moved_epoch) = refusal(not_here);
        }
    }
    Ok(reply)
}
