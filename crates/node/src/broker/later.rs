//! Invocations whose clients come back for the answer: stored as messages to their functions, with a place
//! for what comes of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fulmar_cluster::Cluster;
use fulmar_model::{Code, NodeName, Problem, SessionName};
use fulmar_state::record::{
    Address, IdempotencyRecord, InvocationRecord, InvocationStatus, MessageRecord, StoredReply,
    StoredRequest,
};
use fulmar_state::{Bookkeeping, Table, key};
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::json;
use tokio::sync::oneshot;

use super::ClientCall;
use crate::core::Core;
use crate::execute::{self, storage_failed};
use crate::invocation::{Answer, IdempotencyKey, node_of, restore_reply};
use crate::respond::{self, Body};
use crate::route::{self, Answered};
use crate::sessions::Session;
use crate::transition::{self, Away};
use crate::{access, clock, courier, custody, external, homes};

impl ClientCall<'_> {
    /// Stores the invocation as a message and answers where its result will be.
    pub(super) async fn submit_async(
        &self,
        request: StoredRequest,
    ) -> Result<Response<Body>, Problem> {
        let core = self.core;
        // With a key: alone in its lane, so that two with the same key become one. Among other nodes:
        // alone as well, since it is stored where the session is.
        let mut _turn = None;
        let mut is_in_store = false;
        let has_home = core.cluster.is_some() && !self.deployed.is_external();
        if let (Some(session), true, None) = (&self.session, has_home, &self.idempotency) {
            let lane = self.function.sessions.of(session.shared());
            _turn = Some(execute::turn(core, self.function, &lane).await?);
            self.settle_home(&lane, session).await?;
        }
        if let Some(idempotency) = &self.idempotency {
            let lane = match &self.session {
                Some(session) => self.function.sessions.of(session.shared()),
                None => self.function.keyed.of(&idempotency.key),
            };
            _turn = Some(execute::turn(core, self.function, &lane).await?);
            if let (Some(session), false) = (&self.session, self.deployed.is_external()) {
                is_in_store = self.settle_home(&lane, session).await?;
                if is_in_store && let Some(kept) = self.kept_in_store(session, idempotency).await? {
                    return Ok(kept);
                }
            }
            if let Some(kept) = self.kept(idempotency)? {
                let last = core.store.commits().submitted();
                let safe = custody::safe(core, &self.function.name, last).await;
                safe.map_err(|failure| storage_failed(&failure))?;
                return Ok(kept);
            }
        }
        if let Some(refused) = core.refuses_writes() {
            return Err(refused);
        }
        let id = core.id_text(core.next_id());
        let now = clock::unix_ms();
        let retention = self
            .function
            .current()
            .manifest
            .idempotency
            .retention
            .get()
            .as_millis() as u64;
        let to = Address {
            function: self.function.name.clone(),
            session: self.session.clone(),
        };
        let accepted = StoredReply {
            status: StatusCode::ACCEPTED.as_u16(),
            headers: vec![
                ("location".into(), location(&id).into_bytes()),
                ("content-type".into(), b"application/json".to_vec()),
            ],
            body: json!({ "id": id, "status": "pending" })
                .to_string()
                .into_bytes(),
        };
        let mut bookkeeping = Bookkeeping::default();
        let pending = InvocationRecord {
            to: to.clone(),
            submitted_unix_ms: now,
            finished_unix_ms: 0,
            status: InvocationStatus::Pending,
            expires_unix_ms: now + retention,
        };
        bookkeeping.put(Table::Invocations, id.as_bytes(), &pending);
        let mut remembered = None;
        if let Some(idempotency) = &self.idempotency {
            let record = IdempotencyRecord {
                request: idempotency.request,
                invocation: id.clone(),
                reply: accepted.clone(),
                expires_unix_ms: now + retention,
            };
            let session = self.session.as_ref().map(SessionName::as_str);
            let key = key::idempotency(self.function.name.as_str(), session, &idempotency.key);
            bookkeeping.put(Table::Idempotency, &key, &record);
            remembered = Some((idempotency, record));
        }
        let message = MessageRecord {
            from: None,
            to,
            request,
            invocation: Some(id.clone()),
            idempotency_key: self.idempotency_key.as_deref().map(str::to_owned),
            attempts: 0,
            error: String::new(),
            at_unix_ms: now,
        };
        let (durable, stored) = oneshot::channel();
        let release = Box::new(move |result| {
            let _ = durable.send(result);
        });
        let key = core
            .store
            .commit_message(bookkeeping, &message, release)
            .map_err(|failure| storage_failed(&failure))?;
        core.courier.post(core, vec![(key, message)]);
        let stored = match stored.await {
            Ok(Ok(())) => {
                Ok(custody::safe(core, &self.function.name, courier::commit_of(&key)).await)
            }
            other => other,
        };
        match stored {
            Ok(Ok(())) => {
                if let (Some(session), true, Some((idempotency, record))) =
                    (&self.session, is_in_store, remembered)
                {
                    self.keep_in_store(session, idempotency, record).await?;
                }
            }
            Ok(Err(failure)) => return Err(storage_failed(&failure)),
            Err(_) => {
                return Err(Problem::new(
                    Code::ShuttingDown,
                    "the node stopped before the invocation was stored",
                ));
            }
        }
        let reply = restore_reply(accepted)?;
        Ok(respond::answer(Answer {
            reply,
            invocation: id.into(),
            replayed: false,
        }))
    }

    /// Makes sure, in the session's turn, that this node is home to it; whether its state is in the external store.
    async fn settle_home(&self, lane: &Session, session: &SessionName) -> Result<bool, Problem> {
        if lane.state().is_some() {
            return Ok(false);
        }
        let group = route::group(&self.function.name, session);
        homes::load_for_others(self.core, &group, lane).await?;
        let away = transition::away(self.core, &group);
        match away.map_err(|error| Problem::new(Code::Internal, error.to_string()))? {
            None => Ok(false),
            Some(Away::InStore(_)) => Ok(true),
            Some(Away::WithClient(_)) => Err(transition::with_client(&group)),
        }
    }

    /// The answer that the external store keeps for the key, if there is one.
    async fn kept_in_store(
        &self,
        session: &SessionName,
        idempotency: &IdempotencyKey,
    ) -> Result<Option<Response<Body>>, Problem> {
        let group = route::group(&self.function.name, session);
        let store = external::of(self.core).await?;
        let kept = store
            .answered(&group, &[&*idempotency.key], clock::unix_ms())
            .await;
        let kept = kept.map_err(|error| external::problem(&error))?;
        kept.into_iter()
            .flatten()
            .next()
            .map(|record| answer_again(idempotency, record))
            .transpose()
    }

    /// Has the external store know that the key was used.
    async fn keep_in_store(
        &self,
        session: &SessionName,
        idempotency: &IdempotencyKey,
        record: IdempotencyRecord,
    ) -> Result<(), Problem> {
        let group = route::group(&self.function.name, session);
        let store = external::of(self.core).await?;
        let answers = [(idempotency.key.to_string(), record)];
        let kept = store.keep_answers(&group, &answers, clock::unix_ms()).await;
        kept.map_err(|error| external::problem(&error))
    }

    /// The answer kept for the key, if there is one.
    fn kept(&self, idempotency: &IdempotencyKey) -> Result<Option<Response<Body>>, Problem> {
        let session = self.session.as_ref().map(SessionName::as_str);
        let key = key::idempotency(self.function.name.as_str(), session, &idempotency.key);
        let record = self
            .core
            .store
            .record::<IdempotencyRecord>(Table::Idempotency, &key);
        let record = record.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        let Some(record) = record.filter(|record| record.expires_unix_ms > clock::unix_ms()) else {
            return Ok(None);
        };
        answer_again(idempotency, record).map(Some)
    }
}

fn answer_again(
    idempotency: &IdempotencyKey,
    record: IdempotencyRecord,
) -> Result<Response<Body>, Problem> {
    if record.request != idempotency.request {
        let detail = format!(
            "the key was used by invocation {} for another request",
            record.invocation
        );
        return Err(Problem::new(Code::IdempotencyKeyReused, detail));
    }
    let reply = restore_reply(record.reply)?;
    Ok(respond::answer(Answer {
        reply,
        invocation: record.invocation.into(),
        replayed: true,
    }))
}

/// Answers `GET /invocations/{id}` and `/invocations/{id}/result`.
pub(crate) async fn invocation_status(
    core: &Arc<Core>,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Problem> {
    let rest = path.strip_prefix("/invocations/").unwrap_or(path);
    let (id, wants_result) = match rest.strip_suffix("/result") {
        Some(id) => (id, true),
        None => (rest, false),
    };
    let found = core
        .store
        .record_with_ticket::<InvocationRecord>(Table::Invocations, id.as_bytes())
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let is_relayed = headers.contains_key(&route::RELAYED);
    if let (None, false, Some((cluster, node))) = (&found, is_relayed, whom_to_ask(core, id)) {
        return relay(core, &cluster, &node, path, headers).await;
    }
    // One that may not be seen is told apart from none by nothing.
    let found = found.filter(|(record, _)| access::may_see(headers, record.to.function.as_str()));
    let Some((record, ticket)) = found else {
        let detail = format!("no asynchronous invocation {id:?} is known");
        return Err(Problem::new(Code::InvocationNotFound, detail));
    };
    // A result may be seen here before it is safe; it must not leave the node before.
    let safe = custody::safe(core, &record.to.function, ticket).await;
    safe.map_err(|failure| storage_failed(&failure))?;
    if wants_result {
        return match record.status {
            InvocationStatus::Done(reply) => {
                let reply = restore_reply(reply)?;
                Ok(respond::answer(Answer {
                    reply,
                    invocation: id.into(),
                    replayed: false,
                }))
            }
            InvocationStatus::Failed(problem) => {
                match serde_json::from_slice::<Problem>(&problem) {
                    Ok(problem) => Err(problem),
                    Err(error) => Err(Problem::new(Code::Internal, error.to_string())),
                }
            }
            InvocationStatus::Pending => {
                let body = json!({ "id": id, "status": "pending" }).to_string();
                Ok(respond::bytes(
                    StatusCode::ACCEPTED,
                    "application/json",
                    body,
                ))
            }
        };
    }
    let (status, problem) = match record.status {
        InvocationStatus::Pending => ("pending", None),
        InvocationStatus::Done(_) => ("done", None),
        InvocationStatus::Failed(problem) => (
            "failed",
            serde_json::from_slice::<serde_json::Value>(&problem).ok(),
        ),
    };
    let mut document = json!({
        "id": id,
        "function": record.to.function,
        "session": record.to.session,
        "status": status,
        "submitted_at": clock::rfc3339(record.submitted_unix_ms),
        "finished_at": (record.finished_unix_ms > 0).then(|| clock::rfc3339(record.finished_unix_ms)),
    });
    if let Some(problem) = problem {
        document["problem"] = problem;
    }
    Ok(respond::bytes(
        StatusCode::OK,
        "application/json",
        document.to_string(),
    ))
}

/// The other node that knows of an invocation: the one that accepted it, or whoever has taken over from that one.
fn whom_to_ask(core: &Core, id: &str) -> Option<(Arc<Cluster>, NodeName)> {
    let node = node_of(id)?;
    let cluster = core.cluster.as_ref()?;
    let is_there = node != *cluster.name()
        && cluster
            .view()
            .members()
            .iter()
            .any(|member| member.live && member.name == node);
    match cluster.takeover_of(&node) {
        Some(takeover) if !is_there => route::other(core, Some(takeover.by)),
        _ => route::other(core, Some(node)),
    }
}

/// Asks the node that knows.
async fn relay(
    core: &Core,
    cluster: &Cluster,
    node: &NodeName,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Problem> {
    let mut request = Request::get(path).header(route::RELAYED, "1");
    if let Some(functions) = headers.get(&access::FUNCTIONS) {
        request = request.header(access::FUNCTIONS, functions);
    }
    let request = request.body(Bytes::new());
    let request = request.map_err(|error| Problem::new(Code::BadRequest, error.to_string()))?;
    let (head, body) = request.into_parts();
    let sent = route::send(core, cluster, node, None, &head, body, Duration::ZERO);
    match sent.await? {
        Answered::Response(response) => Ok(response),
        Answered::Elsewhere | Answered::NoRoom => {
            Err(Problem::new(Code::Internal, "no session was asked for"))
        }
    }
}

fn location(id: &str) -> String {
    format!("/invocations/{id}")
}
