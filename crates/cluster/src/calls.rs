//! What nodes ask of each other beyond the directory and the registry.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fulmar_model::{Code, Epoch, Group, NodeName, Problem};
use fulmar_state::record::{MessageRecord, Record, StoredReply};
use futures_util::{Stream, StreamExt};
use tonic::Status;

use crate::directory::Home;
use crate::handler::{Delivered, Forwarded, StageEntry, StageHead};
use crate::join::Cluster;
use crate::peers::PeerError;
use crate::wire::directory_client::DirectoryClient;
use crate::wire::peer_client::PeerClient;
use crate::wire::{self, CatchUpRequest, DeliverRequest, FetchArtifactRequest, ForwardRequest};

/// Longest wait for a node to hear that it is home.
const SETTLE: Duration = Duration::from_secs(3);
/// Longest wait for a list of sessions, and for its next part.
const HOMES: Duration = Duration::from_secs(30);
/// Longest pause within an artefact.
const ARTIFACT_PAUSE: Duration = Duration::from_secs(10);

impl Cluster {
    /// Lets another node answer a client's request.
    ///
    /// # Errors
    /// When there is no answer within `deadline`.
    pub async fn forward(
        &self,
        node: &NodeName,
        request: http::Request<Bytes>,
        deadline: Duration,
    ) -> Result<Forwarded, PeerError> {
        let (head, body) = request.into_parts();
        let headers = head.headers.iter().map(|(name, value)| wire::Header {
            name: name.as_str().to_owned(),
            value: Bytes::copy_from_slice(value.as_bytes()),
        });
        let message = ForwardRequest {
            method: head.method.as_str().to_owned(),
            uri: head
                .uri
                .path_and_query()
                .map_or("/", |path| path.as_str())
                .to_owned(),
            headers: headers.collect(),
            body,
        };
        let request = self.peers().request(message, deadline);
        let reply = self
            .peers()
            .call(node, deadline, |channel| async move {
                PeerClient::new(channel)
                    .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(wire::MAX_MESSAGE_BYTES)
                    .forward(request)
                    .await
            })
            .await?;
        let refused = |reason: String| PeerError::Refused {
            node: node.clone(),
            reason,
        };
        let moved = match reply.moved_to.as_str() {
            "" => None,
            to => {
                let to = NodeName::new(to).map_err(|error| refused(error.to_string()))?;
                Some((to, Epoch(reply.moved_epoch)))
            }
        };
        let mut response = http::Response::new(reply.body);
        *response.status_mut() = u16::try_from(reply.status)
            .ok()
            .and_then(|status| http::StatusCode::from_u16(status).ok())
            .ok_or_else(|| refused(format!("{} is no status of HTTP", reply.status)))?;
        *response.headers_mut() = wire::http_headers(reply.headers)
            .map_err(|_| refused("a header is not one of HTTP".to_owned()))?;
        Ok(Forwarded { response, moved })
    }

    /// Delivers a message to a session of another node, if that is still its home as it is named. `deadline` includes the
    /// function's time; the instance is the data directory that the message was sent from.
    ///
    /// # Errors
    /// When there is no answer in time: then it may have been delivered, and sending it again does no harm.
    pub async fn deliver(
        &self,
        home: &Home,
        instance: &str,
        key: [u8; 12],
        settled: Range<[u8; 12]>,
        message: &MessageRecord,
        deadline: Duration,
    ) -> Result<Delivered, PeerError> {
        let message = DeliverRequest {
            instance: instance.to_owned(),
            key: Bytes::copy_from_slice(&key),
            // Nodes that know only this field take it from the first key on.
            settled_below: match settled.start == [0; 12] {
                true => Bytes::copy_from_slice(&settled.end),
                false => Bytes::copy_from_slice(&[0; 12]),
            },
            settled_from: Bytes::copy_from_slice(&settled.start),
            settled_to: Bytes::copy_from_slice(&settled.end),
            message: message.encode().into(),
            epoch: home.epoch.0,
        };
        let request = self.peers().request(message, deadline);
        let reply = self
            .peers()
            .call(&home.node, deadline, |channel| async move {
                PeerClient::new(channel)
                    .max_decoding_message_size(wire::MAX_MESSAGE_BYTES)
                    .max_encoding_message_size(wire::MAX_MESSAGE_BYTES)
                    .deliver(request)
                    .await
            })
            .await?;
        let refused = |reason: String| PeerError::Refused {
            node: home.node.clone(),
            reason,
        };
        if !reply.problem.is_empty() {
            let problem: Problem = serde_json::from_slice(&reply.problem)
                .map_err(|error| refused(error.to_string()))?;
            if problem.code != Code::SessionMoved {
                return Ok(Delivered::Failed(problem));
            }
            let to = NodeName::new(&reply.moved_to).ok();
            return Ok(Delivered::Moved(
                to.map(|to| (to, Epoch(reply.moved_epoch))),
            ));
        }
        if reply.reply.is_empty() {
            return Ok(Delivered::Done(None));
        }
        let answer =
            StoredReply::decode(&reply.reply).map_err(|error| refused(error.to_string()))?;
        Ok(Delivered::Done(Some(answer)))
    }

    /// Copies a session to another node: durably there when this comes back, if it is the last part.
    ///
    /// # Errors
    /// When it was not taken, or there is no answer in time; then it is of no use.
    pub async fn stage(
        &self,
        node: &NodeName,
        head: StageHead,
        entries: impl Stream<Item = Vec<StageEntry>> + Send + 'static,
        deadline: Duration,
    ) -> Result<(), PeerError> {
        let mut first = Some(wire::StageHead {
            group: Some((&head.group).into()),
            epoch: head.epoch.0,
            attempt: head.attempt,
            first: head.first,
            last: head.last.is_some(),
            version: head.last.unwrap_or_default().0,
        });
        let begun = Instant::now();
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let entries = entries.inspect(move |entries| {
            let bytes = |entry: &StageEntry| entry.value.as_ref().map_or(0, Bytes::len);
            let bytes: usize = entries.iter().map(bytes).sum();
            count.fetch_add(bytes as u64, Ordering::Relaxed);
        });
        // The head goes even if nothing follows.
        let parts = futures_util::stream::once(async { Vec::new() })
            .chain(entries)
            .map(move |entries| wire::StagePart {
                head: first.take(),
                entries: entries.into_iter().map(wire::StageEntry::from).collect(),
            });
        let request = self.peers().request(parts, deadline);
        self.peers()
            .call(node, deadline, |channel| async move {
                PeerClient::new(channel).stage(request).await
            })
            .await?;
        let bytes = sent.load(Ordering::Relaxed);
        self.hints().transferred(node, bytes, begun.elapsed());
        Ok(())
    }

    /// Tells a node whether it has become home to a session of which it has a copy.
    ///
    /// # Errors
    /// When there is no answer in time; the node will find out by itself.
    pub async fn settle(
        &self,
        node: &NodeName,
        group: &Group,
        epoch: Epoch,
        attempt: u64,
        arrived: bool,
    ) -> Result<(), PeerError> {
        let message = wire::SettleRequest {
            group: Some(group.into()),
            epoch: epoch.0,
            attempt,
            arrived,
        };
        let request = self.peers().request(message, SETTLE);
        self.peers()
            .call(node, SETTLE, |channel| async move {
                PeerClient::new(channel).settle(request).await
            })
            .await
            .map(|_| ())
    }

    /// Sessions that are at home on a node, as the shards of another have it.
    ///
    /// # Errors
    /// When that one does not answer.
    pub async fn homes_of(
        &self,
        owner: &NodeName,
        node: &NodeName,
    ) -> Result<Vec<(Group, Epoch)>, PeerError> {
        let message = wire::HomesOfRequest {
            node: node.to_string(),
        };
        let request = self.peers().request(message, HOMES);
        let mut replies = self
            .peers()
            .call(owner, HOMES, |channel| async move {
                DirectoryClient::new(channel).homes_of(request).await
            })
            .await?;
        let refused = |reason: String| PeerError::Refused {
            node: owner.clone(),
            reason,
        };
        let mut homes = Vec::new();
        loop {
            let reply = tokio::time::timeout(HOMES, replies.message()).await;
            let reply = reply.map_err(|_| refused("the list broke off".to_owned()))?;
            let Some(reply) = reply.map_err(|status| refused(status.message().to_owned()))? else {
                return Ok(homes);
            };
            for at in reply.groups {
                let group = at
                    .group
                    .ok_or_else(|| refused("no session is named".to_owned()))?;
                let group = group.try_into();
                let group =
                    group.map_err(|error: fulmar_model::NameError| refused(error.to_string()))?;
                homes.push((group, Epoch(at.epoch)));
            }
        }
    }

    /// A component from another node.
    ///
    /// # Errors
    /// When the node does not have it, or does not send it.
    pub async fn fetch_artifact(&self, node: &NodeName, digest: &str) -> Result<Bytes, PeerError> {
        let digest = digest.to_owned();
        let request = self.peers().stream_request(FetchArtifactRequest { digest });
        let mut chunks = self
            .peers()
            .call(node, ARTIFACT_PAUSE, |channel| async move {
                PeerClient::new(channel).fetch_artifact(request).await
            })
            .await?;
        let lost = |status: &Status| PeerError::Lost {
            node: node.clone(),
            reason: status.message().to_owned(),
        };
        let late = || Status::deadline_exceeded(format!("no part within {ARTIFACT_PAUSE:?}"));
        let mut whole = BytesMut::new();
        loop {
            let next = tokio::time::timeout(ARTIFACT_PAUSE, chunks.message()).await;
            match next.unwrap_or_else(|_| Err(late())) {
                Ok(Some(chunk)) => whole.extend_from_slice(&chunk.bytes),
                Ok(None) => return Ok(whole.freeze()),
                Err(status) => return Err(lost(&status)),
            }
        }
    }

    /// Waits until another node has put into effect what the registry said up to a revision.
    ///
    /// # Errors
    /// When it does not answer, or cannot.
    pub async fn catch_up(
        &self,
        node: &NodeName,
        revision: u64,
        deadline: Duration,
    ) -> Result<(), PeerError> {
        let request = self.peers().request(CatchUpRequest { revision }, deadline);
        self.peers()
            .call(node, deadline, |channel| async move {
                PeerClient::new(channel).catch_up(request).await
            })
            .await
            .map(|_| ())
    }
}
