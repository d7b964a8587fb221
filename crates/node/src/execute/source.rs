//! Where the state of an invocation's session comes from: memory, the local data store, whoever lends it, or the client.

use std::sync::Arc;
use std::time::Instant;

use fulmar_model::{Code, Epoch, Group, Problem, SessionName, Version};
use fulmar_state::SessionState;

use super::Run;
use super::lender::Lender;
use crate::invocation::{Origin, Receipt, StateFrom};
use crate::sessions::Session;
use crate::{carry, external, homes, route, transition};

impl Run<'_> {
    /// Who lends the state of the session, if somebody does.
    pub(super) async fn lender<'a>(
        &'a self,
        from: &'a StateFrom,
        has_session: bool,
    ) -> Result<Option<Lender<'a>>, Problem> {
        Ok(match (from, &self.core.cluster) {
            _ if has_session
                && (self.deployed.is_external() || matches!(from, StateFrom::Store)) =>
            {
                Some(Lender::External(self.core, external::of(self.core).await?))
            }
            (StateFrom::Node(node), Some(cluster)) => Some(Lender::Node(cluster, node)),
            _ => None,
        })
    }

    /// Makes sure that the session is at home here, with its client or not.
    pub(super) async fn confirm(
        &self,
        session: &Arc<Session>,
        name: &SessionName,
    ) -> Result<(), Problem> {
        let group = route::group(&self.function.name, name);
        let loaded = homes::load_for_others(self.core, &group, session).await;
        loaded.map(|_| ())
    }

    /// The session's state as its client sent it.
    pub(super) async fn carried(
        &self,
        origin: &Origin,
        name: &SessionName,
        token: Option<&str>,
    ) -> Result<carry::Opened, Problem> {
        if !matches!(origin, Origin::Client(_)) {
            return Err(carry::unreachable(self.function.name.as_str()));
        }
        let group = Group {
            function: self.function.name.clone(),
            session: name.clone(),
        };
        carry::open(self.core, &self.deployed, group, token).await
    }

    /// Whether a message from elsewhere was sent to the home that this node is, and not before the session was elsewhere
    /// meanwhile, where it may have got the message by another way.
    pub(super) fn came_in_time(receipt: &Receipt, state: &SessionState) -> Result<(), Problem> {
        if receipt.under == Epoch(0) || receipt.under == state.epoch() {
            return Ok(());
        }
        let detail = format!(
            "{} has been elsewhere since the message was sent",
            state.group()
        );
        Err(Problem::new(Code::SessionMoved, detail))
    }

    /// The session's state: hot, or loaded now.
    pub(super) async fn state(
        &self,
        session: &Arc<Session>,
        name: &SessionName,
    ) -> Result<Arc<SessionState>, Problem> {
        if let Some(state) = session.state() {
            return Ok(state);
        }
        let group = Group {
            function: self.function.name.clone(),
            session: name.clone(),
        };
        let started = Instant::now();
        let state = homes::load(self.core, &group).await?;
        self.core
            .metrics
            .load_seconds
            .observe(started.elapsed().as_secs_f64());
        self.core.keeper.loaded(state.hot_bytes());
        session.set_state(Some(state.clone()));
        Ok(state)
    }

    /// The session's state at its home, to which its client brings it back, and what it brings.
    pub(super) async fn returned(
        &self,
        session: &Arc<Session>,
        name: &SessionName,
        token: &str,
    ) -> Result<(carry::Opened, Vec<(String, Vec<u8>)>), Problem> {
        let group = route::group(&self.function.name, name);
        let carried = carry::open_token(self.core, &self.deployed, &group, token).await?;
        // Its last commit may not be where it is loaded from.
        let last = self.core.store.commits().submitted();
        self.core.durable(last).await?;
        let state = match session.state() {
            Some(state) => state,
            None => homes::load_copy(self.core, &group).await?,
        };
        let away = transition::away(self.core, &group);
        let away = away.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
        transition::check_return(&group, &carried, away, state.version() == Version(0))?;
        let opened = carry::Opened {
            state,
            tag: carry::tag(token),
        };
        Ok((opened, carried.entries))
    }
}
