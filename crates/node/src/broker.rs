//! Takes invocations from clients: `/fn/...` and `/invocations/...`.
//!
//! Path, headers and body are checked and read here, before anything of the function is touched;
//! a slow client holds its connection and nothing else.

mod here;
mod later;
mod request;
mod way;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use fulmar_cluster::{Automatic, Cluster, Forwarded, Home};
use fulmar_model::{Code, ExecutionModel, Group, NodeName, Problem, SessionName};
use fulmar_worker::World;
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Body as _;

use crate::admission::Admission;
use crate::body::RequestBody;
use crate::core::Core;
use crate::functions::{Deployed, Function};
use crate::headers::{idempotency_key, prefers_async};
use crate::invocation::IdempotencyKey;
use crate::respond::{self, Body};
use crate::route::{self, Answered, Place};
use crate::schedule::{self, Choice};
use crate::target::Target;
use crate::{carry, continuum, migrate, models, transition};

use request::{read_body, request_digest, too_large};
use way::Way;

pub(crate) use later::invocation_status;

/// Answers an invocation by a client.
pub(crate) async fn invoke(core: &Arc<Core>, request: Request<RequestBody>) -> Response<Body> {
    let arrived = Instant::now();
    let (mut head, body) = request.into_parts();
    // Only nodes say so.
    head.headers.remove(&route::OFFLOADED);
    let response = match accept(core, &head, Source::Client(body), arrived).await {
        Ok(response) => response,
        Err(problem) => respond::problem(&problem),
    };
    core.metrics
        .total_seconds
        .observe(arrived.elapsed().as_secs_f64());
    response
}

/// Answers an invocation that another node took: here, or not at all.
pub(crate) async fn answer_peer(
    core: &Arc<Core>,
    from: &NodeName,
    request: Request<Bytes>,
) -> Forwarded {
    let (head, body) = request.into_parts();
    let source = Source::Peer(body, from.clone());
    let (mut response, moved) = match accept(core, &head, source, Instant::now()).await {
        Ok(response) => (response, None),
        Err(problem) => {
            let is_moved = problem.code == Code::SessionMoved;
            let moved = is_moved.then(|| moved_to(core, head.uri.path())).flatten();
            (respond::problem(&problem), moved)
        }
    };
    tell_model(core, head.uri.path(), &mut response);
    Forwarded {
        response: continuum::whole(response).await,
        moved: moved.map(|home| (home.node, home.epoch)),
    }
}

/// The function and the session of an invocation's path.
fn group_of(core: &Core, path: &str) -> Option<(Arc<Function>, Group)> {
    let target = Target::parse(path).ok()?;
    let function = core.functions.get(&target.function)?;
    let session = SessionName::new(&target.session?).ok()?;
    let group = route::group(&function.name, &session);
    Some((function, group))
}

/// Where the session of an invocation's path was when it was last heard of.
fn moved_to(core: &Core, path: &str) -> Option<Home> {
    let (_, group) = group_of(core, path)?;
    core.cluster.as_ref()?.directory().cached(&group)
}

/// Tells another node which model was chosen for the session of an invocation's path, if one was.
fn tell_model(core: &Core, path: &str, response: &mut Response<Body>) {
    let Some((function, group)) = group_of(core, path) else {
        return;
    };
    if function.current().manifest.execution_model != ExecutionModel::Auto {
        return;
    }
    match models::at_home(core, &group) {
        Ok(Some(model)) => {
            let model = HeaderValue::from_static(model.as_str());
            response.headers_mut().insert(transition::CHOSEN, model);
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "which model a session has cannot be read"),
    }
}

/// Where an invocation comes from, with its body.
enum Source {
    /// From a client, which may be slow.
    Client(RequestBody),
    /// From another node, which has all of it.
    Peer(Bytes, NodeName),
}

async fn accept(
    core: &Arc<Core>,
    head: &http::request::Parts,
    source: Source,
    arrived: Instant,
) -> Result<Response<Body>, Problem> {
    if core.stopping.is_cancelled() {
        return Err(Problem::new(
            Code::ShuttingDown,
            "the node stops and takes nothing new",
        ));
    }
    let target = Target::parse(head.uri.path())?;
    let function = continuum::function(core, &target.function).await?;
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
    let model = transition::wanted(core, &head.headers, &deployed)?;
    let carried = match deployed.is_in_client() || deployed.may_be_in_client() {
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
    let way = Way::of(&deployed, carried.is_some(), model.filter(|_| !read_only));
    if way != Way::AtHome && session.is_some() && prefers_async(&head.headers) {
        return Err(carry::unreachable(function.name.as_str()));
    }
    let _running = match source {
        Source::Client(_) => core.namespaces.admit(&function.name, read_only)?,
        Source::Peer(..) => None,
    };
    // What promises to be in time among other nodes runs where it is.
    let is_scheduled = core.cluster.is_some() && deployed.manifest.slo.promises();
    if let Some(intake) = deployed.intake.as_ref()
        && !is_scheduled
        && !prefers_async(&head.headers)
    {
        intake.admit(core, &function)?;
    }
    let mut admitted = Admission::admit(core)?;
    let max = deployed.manifest.limits.max_request.as_usize();
    let mut taken_by = None;
    let body = match source {
        Source::Client(body) => read_body(core, body, max, &mut admitted).await?,
        Source::Peer(body, _) if body.len() > max => return Err(too_large(max)),
        Source::Peer(body, by) => {
            taken_by = Some(by);
            admitted
                .room_for(body.len(), core.options.body_timeout)
                .await?;
            body
        }
    };
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
        deployed,
        head,
        target,
        session,
        carried,
        model,
        way,
        idempotency,
        idempotency_key,
        read_only,
        taken_by,
        arrived,
    };
    match &core.cluster {
        Some(cluster) if call.taken_by.is_none() => call.scheduled(cluster, body).await,
        Some(_) => {
            call.has_room()?;
            call.here(body, call.lender()?).await
        }
        None => {
            call.promised(call.here(body.clone(), None), body.len())
                .await
        }
    }
}

struct ClientCall<'a> {
    core: &'a Arc<Core>,
    function: &'a Arc<Function>,
    deployed: Arc<Deployed>,
    head: &'a http::request::Parts,
    target: Target<'a>,
    session: Option<SessionName>,
    carried: Option<Box<str>>,
    /// The execution model that the request wants.
    model: Option<ExecutionModel>,
    way: Way,
    idempotency: Option<IdempotencyKey>,
    idempotency_key: Option<Arc<str>>,
    read_only: bool,
    /// The node that took it, if it was another one.
    taken_by: Option<NodeName>,
    arrived: Instant,
}

impl ClientCall<'_> {
    /// Answers where the function's SLO is kept best.
    async fn scheduled(&self, cluster: &Cluster, body: Bytes) -> Result<Response<Body>, Problem> {
        // Without a session a key is remembered where it was used first.
        let is_bound = self.session.is_none() && self.idempotency_key.is_some();
        let is_free = self.way == Way::AtHome
            && !is_bound
            && !prefers_async(&self.head.headers)
            && self.may_run_anywhere();
        let size = body.len();
        let answer = async {
            // Those that had no memory for a worker.
            let mut full = Vec::new();
            while is_free && full.len() < route::MAX_HOPS {
                let (core, function, session) = (self.core, self.function, self.session.as_ref());
                let chosen =
                    schedule::choose(core, cluster, function, &self.deployed, session, &full);
                match chosen? {
                    Choice::AsUsual => break,
                    Choice::Here => return self.anywhere(cluster, body, true).await,
                    Choice::At { node, home } => {
                        let offloaded = self.offload(cluster, &node, home, body.clone());
                        match offloaded.await? {
                            Answered::Response(response) => return Ok(response),
                            Answered::Elsewhere => break,
                            Answered::NoRoom => full.push(node),
                        }
                    }
                }
            }
            self.anywhere(cluster, body, false).await
        };
        self.promised(answer, size).await
    }

    /// Has it run on a node that borrows the session's state, or needs none.
    async fn offload(
        &self,
        cluster: &Cluster,
        node: &NodeName,
        home: Option<NodeName>,
        body: Bytes,
    ) -> Result<Answered, Problem> {
        let session = self.session.as_ref();
        let group = session.map(|session| route::group(&self.function.name, session));
        let timeout = self.deployed.manifest.limits.timeout.get();
        let mut head = self.head.clone();
        let lender = home.as_ref().filter(|home| *home != node);
        let lender = lender.map_or("", |home| home.as_str());
        let lender = HeaderValue::from_str(lender)
            .map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        head.headers.insert(route::OFFLOADED, lender);
        route::send(
            self.core,
            cluster,
            node,
            group.as_ref(),
            &head,
            body,
            timeout,
        )
        .await
    }

    /// Counts how the function's SLO is kept.
    async fn promised(
        &self,
        answer: impl Future<Output = Result<Response<Body>, Problem>>,
        input_bytes: usize,
    ) -> Result<Response<Body>, Problem> {
        let answered = answer.await;
        let slo = &self.deployed.manifest.slo;
        if !slo.promises() {
            return answered;
        }
        let output_bytes = match &answered {
            Ok(response) => response.body().size_hint().lower() as usize,
            Err(_) => 0,
        };
        self.function.profile.taken(input_bytes, output_bytes);
        let late = self
            .arrived
            .elapsed()
            .saturating_sub(slo.max_response.get());
        let is_refused = matches!(&answered, Err(problem) if problem.code == Code::SloUnattainable);
        let is_late = !late.is_zero() || is_refused;
        self.core.metrics.promised(
            self.function.name.as_str(),
            is_late.then_some(late.as_secs_f64()),
            slo.penalty_per_second,
        );
        if is_refused {
            self.core.metrics.failed(Code::SloUnattainable);
        }
        answered
    }

    /// Answers here or has it answered there, wherever the session turns out to be.
    async fn anywhere(
        &self,
        cluster: &Cluster,
        body: Bytes,
        borrows: bool,
    ) -> Result<Response<Body>, Problem> {
        let model = self.model.or_else(|| self.chosen());
        let model = model.unwrap_or(self.deployed.manifest.execution_model);
        let is_lent = borrows || model == ExecutionModel::InEdge;
        let mut may_borrow = is_lent && self.way == Way::AtHome;
        // What the client brings back is all that there is to move.
        let mut may_move =
            self.way == Way::Returning && cluster.config().follow_clients == Automatic::On;
        for _ in 0..route::MAX_HOPS {
            let name = &self.function.name;
            let place = match (&self.session, self.idempotency_key.as_deref()) {
                (Some(session), Some(_)) if self.is_answered_by_a_node() => {
                    route::of_key(self.core, name, session.as_str()).await?
                }
                (Some(_), _) if self.is_carried_whole() || self.deployed.is_external() => {
                    Place::Here
                }
                (Some(_), _) if self.is_in_store() && !prefers_async(&self.head.headers) => {
                    Place::Here
                }
                (Some(session), _) => route::of_session(self.core, self.function, session),
                (None, Some(key)) => route::of_key(self.core, name, key).await?,
                (None, None) => Place::Here,
            };
            match place {
                Place::Here => match self.here(body.clone(), None).await {
                    Err(problem) if problem.code == Code::SessionMoved => {}
                    outcome => return outcome,
                },
                Place::There(node) if may_borrow && !prefers_async(&self.head.headers) => {
                    // Whatever speaks against it, the next try is to have it run there.
                    may_borrow = false;
                    match self.here(body.clone(), Some(node)).await {
                        Err(problem) if problem.code == Code::SessionMoved => {}
                        outcome => return outcome,
                    }
                }
                Place::There(node) if may_move => {
                    may_move = false;
                    // If it does not, it comes back to where it was.
                    if let Some(session) = &self.session {
                        let group = route::group(name, session);
                        if let Err(problem) = migrate::bring(cluster, &group, &node).await {
                            tracing::debug!(%problem, "a session comes back to where it was");
                        }
                    }
                }
                Place::There(node) => {
                    let session = self.session.as_ref();
                    let group = session.map(|session| route::group(name, session));
                    let timeout = self.deployed.manifest.limits.timeout.get();
                    let (group, body) = (group.as_ref(), body.clone());
                    let sent =
                        route::send(self.core, cluster, &node, group, self.head, body, timeout);
                    match sent.await? {
                        Answered::Response(response) => return Ok(response),
                        Answered::Elsewhere | Answered::NoRoom => {}
                    }
                }
            }
        }
        let detail = format!(
            "the session was not where {} nodes said that it is",
            route::MAX_HOPS
        );
        Err(Problem::new(Code::SessionMoved, detail))
    }
}
