//! Takes invocations from clients: `/fn/...` and `/invocations/...`.
//!
//! Path, headers and body are checked and read here, before anything of the function is touched;
//! a slow client holds its connection and nothing else.

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fulmar_model::{Code, Problem, SessionName};
use fulmar_state::record::{
    Address, IdempotencyRecord, InvocationRecord, InvocationStatus, MessageRecord, StoredReply,
    StoredRequest,
};
use fulmar_state::{Bookkeeping, Table, key};
use fulmar_worker::{Request as WorkerRequest, World};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::core::{Admission, Admitted, Core};
use crate::execute::{self, QueueFull, storage_failed};
use crate::functions::Function;
use crate::headers::{idempotency_key, prefers_async};
use crate::invocation::{Answer, IdempotencyKey, Invocation, Origin, restore_reply};
use crate::respond::{self, Body};
use crate::target::Target;
use crate::{carry, clock};

/// Bytes a second that a client has to send at least, on average, once it has begun.
const MIN_BODY_RATE: u64 = 16 << 10;

/// Answers an invocation by a client.
pub(crate) async fn invoke(core: &Arc<Core>, request: Request<Incoming>) -> Response<Body> {
    let arrived = Instant::now();
    let response = match accept(core, request, arrived).await {
        Ok(response) => response,
        Err(problem) => respond::problem(&problem),
    };
    core.metrics
        .total_seconds
        .observe(arrived.elapsed().as_secs_f64());
    response
}

async fn accept(
    core: &Arc<Core>,
    request: Request<Incoming>,
    arrived: Instant,
) -> Result<Response<Body>, Problem> {
    if core.stopping.is_cancelled() {
        return Err(Problem::new(
            Code::ShuttingDown,
            "the node stops and takes nothing new",
        ));
    }
    let (head, body) = request.into_parts();
    let target = Target::parse(head.uri.path())?;
    let function = core.functions.get(&target.function).ok_or_else(|| {
        Problem::new(
            Code::FunctionNotFound,
            format!("no function {:?} is deployed", target.function),
        )
    })?;
    let session = target.session.as_deref().map(SessionName::new).transpose();
    let session =
        session.map_err(|error| Problem::new(Code::SessionNameInvalid, error.to_string()))?;
    let deployed = function.current();
    let read_only = deployed.manifest.is_read_only(head.method.as_str());
    if deployed.world() == World::Function {
        if target.rest != "/" {
            let detail = format!(
                "{} speaks fulmar:function, which has no sub-paths; {:?} is left over",
                function.name, target.rest
            );
            return Err(Problem::new(Code::NotFound, detail));
        }
        if head.method != Method::POST && !read_only {
            let detail = format!(
                "{} speaks fulmar:function and takes POST, not {}",
                function.name, head.method
            );
            return Err(Problem::new(Code::MethodNotAllowed, detail));
        }
    }
    let idempotency_key = idempotency_key(&head.headers)?;
    let carried = match deployed.is_in_client() {
        true => carry::token(&head.headers)?,
        false if head.headers.contains_key(&carry::STATE) => {
            return Err(Problem::new(
                Code::SessionsInTheWay,
                format!(
                    "{} keeps its sessions on the node, and a state came along",
                    function.name
                ),
            ));
        }
        false => None,
    };
    if deployed.is_in_client() && session.is_some() && prefers_async(&head.headers) {
        return Err(carry::unreachable(function.name.as_str()));
    }
    let mut admitted = Admission::admit(core)?;
    let max = deployed.manifest.limits.max_request.as_usize();
    let body = read_body(core, body, max, &mut admitted).await?;
    let idempotency = idempotency_key.as_ref().map(|key| IdempotencyKey {
        key: key.clone(),
        request: request_digest(
            &head.method,
            head.uri.path_and_query().map_or("/", |path| path.as_str()),
            &body,
        ),
    });
    let call = ClientCall {
        core,
        function: &function,
        session,
        carried,
        idempotency,
        idempotency_key,
        read_only,
        arrived,
    };
    if prefers_async(&head.headers) {
        return call
            .submit_async(stored_request(&head, &target, &body))
            .await;
    }
    let request = match deployed.world() {
        World::Function => WorkerRequest::Bytes(body),
        World::Http => WorkerRequest::Http(Box::new(http_request(head.clone(), &target, body)?)),
    };
    drop(deployed);
    call.run(request).await.map(respond::answer)
}

struct ClientCall<'a> {
    core: &'a Arc<Core>,
    function: &'a Arc<Function>,
    session: Option<SessionName>,
    carried: Option<Box<str>>,
    idempotency: Option<IdempotencyKey>,
    idempotency_key: Option<Arc<str>>,
    read_only: bool,
    arrived: Instant,
}

impl ClientCall<'_> {
    async fn run(self, request: WorkerRequest) -> Result<Answer, Problem> {
        let (reply, outcome) = oneshot::channel();
        self.core.metrics.invocations.inc();
        let invocation = Invocation {
            id: self.core.next_id(),
            session: self.session,
            request,
            carried: self.carried,
            idempotency: self.idempotency,
            idempotency_key: self.idempotency_key,
            read_only: self.read_only,
            attempt: 1,
            arrived: self.arrived,
            origin: Origin::Client(reply),
        };
        execute::submit(self.core, self.function, invocation)
            .map_err(|QueueFull| queue_full(self.function))?;
        outcome.await.unwrap_or_else(|_| {
            Err(Problem::new(
                Code::ShuttingDown,
                "the node stopped before the invocation ran",
            ))
        })
    }

    /// Stores the invocation as a message and answers where its result will be.
    async fn submit_async(self, request: StoredRequest) -> Result<Response<Body>, Problem> {
        let core = self.core;
        // With a key: alone in its lane, so that two with the same key become one.
        let mut _turn = None;
        if let Some(idempotency) = &self.idempotency {
            let lane = match &self.session {
                Some(session) => self.function.sessions.of(session.shared()),
                None => self.function.keyed.of(&idempotency.key),
            };
            _turn = Some(execute::turn(core, self.function, &lane).await?);
            if let Some(kept) = self.kept(idempotency)? {
                return Ok(kept);
            }
        }
        if let Some(refused) = core.refuses_writes() {
            return Err(refused);
        }
        let id = core.next_id().to_string();
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
        match stored.await {
            Ok(Ok(())) => {}
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
        if record.request != idempotency.request {
            let detail = format!(
                "the key was used by invocation {} for another request",
                record.invocation
            );
            return Err(Problem::new(Code::IdempotencyKeyReused, detail));
        }
        let reply = restore_reply(record.reply)?;
        Ok(Some(respond::answer(Answer {
            reply,
            invocation: record.invocation.into(),
            replayed: true,
        })))
    }
}

fn queue_full(function: &Function) -> Problem {
    let max = function.current().manifest.queue.max;
    Problem::new(
        Code::QueueFull,
        format!("{max} invocations of {} wait already", function.name),
    )
}

/// Answers `GET /invocations/{id}` and `/invocations/{id}/result`.
pub(crate) async fn invocation_status(
    core: &Arc<Core>,
    path: &str,
) -> Result<Response<Body>, Problem> {
    let rest = path.strip_prefix("/invocations/").unwrap_or(path);
    let (id, wants_result) = match rest.strip_suffix("/result") {
        Some(id) => (id, true),
        None => (rest, false),
    };
    let (record, ticket) = core
        .store
        .record_with_ticket::<InvocationRecord>(Table::Invocations, id.as_bytes())
        .map_err(|error| Problem::new(Code::Internal, error.to_string()))?
        .ok_or_else(|| {
            Problem::new(
                Code::InvocationNotFound,
                format!("no asynchronous invocation {id:?} is known"),
            )
        })?;
    // A result may be seen here before it is durable; it must not leave the node before.
    core.durable(ticket).await?;
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

fn location(id: &str) -> String {
    format!("/invocations/{id}")
}

fn request_digest(method: &Method, path: &str, body: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(method.as_str());
    hash.update([0]);
    hash.update(path);
    hash.update([0]);
    hash.update(body);
    hash.finalize().into()
}

/// Path and query as the function sees them: below its own path.
fn inner_path(head: &http::request::Parts, target: &Target<'_>) -> String {
    match head.uri.query() {
        Some(query) => format!("{}?{query}", target.rest),
        None => target.rest.to_owned(),
    }
}

fn http_request(
    mut head: http::request::Parts,
    target: &Target<'_>,
    body: Bytes,
) -> Result<http::Request<Bytes>, Problem> {
    let path = inner_path(&head, target);
    let authority = head
        .headers
        .get("host")
        .and_then(|host| host.to_str().ok())
        .unwrap_or("localhost")
        .to_owned();
    head.uri = http::Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|error| Problem::new(Code::BadRequest, format!("the request's URI: {error}")))?;
    respond::strip_hop_by_hop(&mut head.headers);
    // The function sees the state itself.
    head.headers.remove(&carry::STATE);
    Ok(Request::from_parts(head, body))
}

fn stored_request(head: &http::request::Parts, target: &Target<'_>, body: &Bytes) -> StoredRequest {
    let mut headers = head.headers.clone();
    respond::strip_hop_by_hop(&mut headers);
    headers.remove("prefer");
    StoredRequest {
        method: head.method.as_str().to_owned(),
        path: inner_path(head, target),
        headers: headers
            .iter()
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        body: body.to_vec(),
    }
}

/// Reads a body of at most `max` bytes, from a client that keeps sending.
async fn read_body(
    core: &Arc<Core>,
    mut body: Incoming,
    max: usize,
    admitted: &mut Admitted,
) -> Result<Bytes, Problem> {
    if body.is_end_stream() {
        return Ok(Bytes::new());
    }
    let too_large = || {
        Problem::new(
            Code::BodyTooLarge,
            format!("the body is larger than the function's limit of {max} bytes"),
        )
    };
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let timeout = core.options.body_timeout;
    let timed_out = || {
        let detail = format!(
            "the body has to come without a pause of {timeout:?} and at {MIN_BODY_RATE} bytes a second"
        );
        Problem::new(Code::BodyTimeout, detail)
    };
    let started = Instant::now();
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    let mut size = 0;
    while !body.is_end_stream() {
        let Some(frame) = tokio::time::timeout(timeout, body.frame())
            .await
            .map_err(|_| timed_out())?
        else {
            break;
        };
        let frame = frame.map_err(|error| {
            Problem::new(Code::BadRequest, format!("the body broke off: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        size += data.len();
        if size > max {
            return Err(too_large());
        }
        admitted.hold(data.len())?;
        if first.is_empty() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
        let elapsed = started.elapsed();
        if elapsed > timeout && (size as u64) < MIN_BODY_RATE * elapsed.as_secs() {
            return Err(timed_out());
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::from(first);
    whole.unsplit(rest);
    Ok(whole.freeze())
}
