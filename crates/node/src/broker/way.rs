//! Where the state of a request's session is, where it is to be, and what follows for where the request may run.

use fulmar_model::{Code, ExecutionModel, Group, NodeName, Problem};

use super::ClientCall;
use crate::functions::Deployed;
use crate::headers::prefers_async;
use crate::{route, transition};

/// Where the state of a request's session is, and is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Where it is at home.
    AtHome,
    /// With the client.
    Carried,
    /// From its home to the client.
    Leaving,
    /// From the client to its home.
    Returning,
}

impl Way {
    pub(super) fn of(deployed: &Deployed, has_token: bool, wanted: Option<ExecutionModel>) -> Self {
        use ExecutionModel::{External, InClient, InEdge, InFunction};
        match (deployed.is_in_client(), has_token, wanted) {
            (false, true, Some(InFunction | InEdge | External)) => Self::Returning,
            (true, _, _) | (false, true, _) => Self::Carried,
            (false, false, Some(InClient)) => Self::Leaving,
            (false, false, _) => Self::AtHome,
        }
    }
}

impl ClientCall<'_> {
    /// The node that lends the session's state, if another node has decided so.
    pub(super) fn lender(&self) -> Result<Option<NodeName>, Problem> {
        let Some(lender) = self.head.headers.get(route::OFFLOADED) else {
            return Ok(None);
        };
        match lender.to_str() {
            Ok("") => Ok(None),
            Ok(name) => match NodeName::new(name) {
                Ok(name) => Ok(Some(name)),
                Err(error) => Err(Problem::new(Code::BadRequest, error.to_string())),
            },
            Err(error) => Err(Problem::new(Code::BadRequest, error.to_string())),
        }
    }

    /// Makes sure that what another node has decided to have run here need not wait for memory: that node finds another.
    pub(super) fn has_room(&self) -> Result<(), Problem> {
        let is_offloaded = self.head.headers.contains_key(route::OFFLOADED);
        if !is_offloaded || self.core.pool.fits(self.deployed.need()) {
            return Ok(());
        }
        let detail = "running workers have all memory that the node has for them";
        Err(Problem::new(Code::NoRoom, detail))
    }

    /// Whether only a node remembers what it has answered for an idempotency key, and no session leads there.
    pub(super) fn is_answered_by_a_node(&self) -> bool {
        let is_promised = self.deployed.is_external() && prefers_async(&self.head.headers);
        self.is_carried_whole() || is_promised
    }

    /// Whether all that the session needs came along.
    pub(super) fn is_carried_whole(&self) -> bool {
        self.way == Way::Carried && !self.deployed.manifest.anti_rollback
    }

    pub(super) fn group(&self) -> Option<Group> {
        let session = self.session.as_ref()?;
        Some(route::group(&self.function.name, session))
    }

    /// The model that was chosen for the session, as far as this node knows.
    pub(super) fn chosen(&self) -> Option<ExecutionModel> {
        let session = self.session.as_ref()?;
        let group = || route::group(&self.function.name, session);
        self.core.models.get(group)
    }

    /// Whether the session's state is in the external store, as far as this node knows, and may stay there.
    pub(super) fn is_in_store(&self) -> bool {
        self.way == Way::AtHome
            && !self.wants_it_elsewhere()
            && self.chosen() == Some(ExecutionModel::External)
    }

    /// Whether the request wants the session's state not to be in the external store.
    pub(super) fn wants_it_elsewhere(&self) -> bool {
        let wanted = self.model.filter(|_| !self.read_only);
        wanted.is_some_and(|model| model != ExecutionModel::External)
    }

    /// Whether nothing was chosen for the session that keeps its invocations at its home.
    pub(super) fn may_run_anywhere(&self) -> bool {
        use ExecutionModel::{External, InFunction};
        if !self.deployed.manifest.slo.promises() {
            return true;
        }
        let chosen = self.chosen().or_else(|| {
            let group = self.group()?;
            transition::chosen(self.core, &group).ok()?
        });
        !matches!(chosen, Some(InFunction | External))
    }
}
