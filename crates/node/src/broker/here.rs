//! A request that runs here: handed in as an invocation, on the state of its session wherever that is.

use std::time::Instant;

use bytes::Bytes;
use fulmar_model::{Code, ExecutionModel, NodeName, Problem};
use fulmar_worker::{Request as WorkerRequest, World};
use http::Response;
use tokio::sync::oneshot;

use super::ClientCall;
use super::request::{http_request, stored_request};
use super::way::Way;
use crate::execute::{self, QueueFull};
use crate::functions::Function;
use crate::headers::prefers_async;
use crate::invocation::{Answer, Invocation, Origin, StateFrom};
use crate::respond::{self, Body};
use crate::{follow, models, route, transition};

impl ClientCall<'_> {
    /// Answers here; with state that another node lends, if one is named.
    pub(super) async fn here(
        &self,
        body: Bytes,
        lender: Option<NodeName>,
    ) -> Result<Response<Body>, Problem> {
        if prefers_async(&self.head.headers) {
            let request = stored_request(self.head, &self.target, &body);
            return self.submit_async(request).await;
        }
        let Some(group) = self.group() else {
            return self.run_here(body, lender, false).await;
        };
        let mut lender = lender;
        for _ in 0..route::MAX_HOPS {
            let is_in_store = lender.is_none() && self.is_in_store();
            let ran = self.run_here(body.clone(), lender.take(), is_in_store);
            match ran.await {
                Err(problem) if problem.code == Code::SessionInStore => {
                    match self.wants_it_elsewhere() {
                        true => {
                            let home = ExecutionModel::Auto;
                            models::change_at_home(self.core, &group, home).await?;
                        }
                        false => self.core.models.learn(&group, ExecutionModel::External),
                    }
                }
                Err(problem) if problem.code == Code::SessionMoved && is_in_store => {}
                outcome => return outcome,
            }
        }
        Err(transition::in_store(&group))
    }

    /// Runs it here once: on state that another node lends, that the external store has, or as it came.
    async fn run_here(
        &self,
        body: Bytes,
        lender: Option<NodeName>,
        is_in_store: bool,
    ) -> Result<Response<Body>, Problem> {
        let request = match self.deployed.world() {
            World::Function => WorkerRequest::Bytes(body),
            World::Http | World::Program => WorkerRequest::Http(Box::new(http_request(
                self.head.clone(),
                &self.target,
                body,
            )?)),
        };
        let had = match (self.way, &lender) {
            _ if self.deployed.is_external() || is_in_store => ExecutionModel::External,
            (Way::Carried | Way::Leaving, _) => ExecutionModel::InClient,
            (Way::AtHome, Some(_)) => ExecutionModel::InEdge,
            _ => ExecutionModel::InFunction,
        };
        let ran = self.run(request, lender, is_in_store).await;
        let mut response = ran.map(respond::answer)?;
        if let (Some(wanted), Some(group)) = (self.model, self.group()) {
            transition::tell(&mut response, had);
            let goes = wanted == ExecutionModel::External && had != wanted && !self.read_only;
            if goes && !response.status().is_server_error() {
                models::change_soon(self.core, group, wanted);
            }
        }
        Ok(response)
    }

    /// Counts who took a request of a session that may follow its clients.
    fn note_taker(&self) {
        let by = self.taken_by.as_ref();
        let Some(session) = &self.session else {
            return;
        };
        if by.is_none() && self.function.followed.is_empty() {
            return;
        }
        if let Some(found) = self.function.sessions.peek(session.as_str()) {
            follow::note(self.core, self.function, &found, session.shared(), by);
        }
    }

    async fn run(
        &self,
        request: WorkerRequest,
        lender: Option<NodeName>,
        is_in_store: bool,
    ) -> Result<Answer, Problem> {
        let (reply, outcome) = oneshot::channel();
        self.core.metrics.invocations.inc();
        let is_own = lender.is_none();
        if is_own && !is_in_store {
            self.note_taker();
        }
        let invocation = Invocation {
            id: self.core.next_id(),
            session: self.session.clone(),
            request,
            state: match (lender, self.way, &self.carried) {
                (Some(node), _, _) => StateFrom::Node(node),
                (None, Way::Returning, Some(token)) => StateFrom::Returned(token.clone()),
                (None, Way::Leaving, _) => StateFrom::Leaving,
                (None, _, Some(token)) => StateFrom::Token(token.clone()),
                (None, _, None) if is_in_store => StateFrom::Store,
                (None, _, None) => StateFrom::Home,
            },
            idempotency: self.idempotency.clone(),
            idempotency_key: self.idempotency_key.clone(),
            read_only: self.read_only,
            attempt: 1,
            arrived: self.arrived,
            origin: Origin::Client(reply),
        };
        execute::submit(self.core, self.function, invocation)
            .map_err(|QueueFull| queue_full(self.function))?;
        let handed_in = Instant::now();
        let outcome = outcome.await.unwrap_or_else(|_| {
            Err(Problem::new(
                Code::ShuttingDown,
                "the node stopped before the invocation ran",
            ))
        });
        if is_own && outcome.is_ok() && self.deployed.manifest.slo.promises() {
            self.function.profile.executed(handed_in.elapsed());
        }
        outcome
    }
}

fn queue_full(function: &Function) -> Problem {
    let max = function.current().manifest.queue.max;
    Problem::new(
        Code::QueueFull,
        format!("{max} invocations of {} wait already", function.name),
    )
}
