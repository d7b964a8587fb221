//! Where an invocation of a function with an SLO runs: on the node that is expected to answer soonest, or nowhere.
//!
//! The decision is [`fulmar_policy::offload`]'s; here is what it is taken from: how long the function takes on each node,
//! as that says itself, and how far nodes are from each other and from the session's state.

mod world;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fulmar_cluster::{Automatic, Cluster, Measured};
use fulmar_model::{Code, NodeName, Problem, SessionName};
use fulmar_policy::offload::{Estimate, Rejection};
use parking_lot::Mutex;

use crate::core::Core;
use crate::decisions::Decision;
use crate::functions::{Deployed, Function};
use crate::ways::HERE;

use world::World;
pub(crate) use world::{Distances, Expected};

/// A node has to be expected this much sooner than the usual one, in parts of its time: what is expected varies.
const CLEARLY: f64 = 0.1;
/// Of the invocations of a function that are expected to be late because of shared keys one runs in so long.
const TRIED_EVERY: Duration = Duration::from_secs(1);
/// Decisions with the same verdict about a function are told this often.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// Where an invocation is to run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Choice {
    /// Where it would run without an SLO.
    AsUsual,
    /// Here, on state that the session's home lends.
    Here,
    /// On a node that has to borrow the state from its home, if there is a session; or has all that it needs.
    At {
        node: NodeName,
        home: Option<NodeName>,
    },
}

/// When it was told last that a function was decided about, by verdict.
#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<BTreeMap<&'static str, Instant>>);

/// When an invocation was let through last that was expected to be late.
#[derive(Debug, Default)]
pub(crate) struct Tried(Mutex<Option<Instant>>);

impl Tried {
    /// Whether an invocation is to run although it is expected to be late: of what is refused nothing more is learnt.
    fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let is_due = last.is_none_or(|at| at.elapsed() >= TRIED_EVERY);
        if is_due {
            *last = Some(Instant::now());
        }
        is_due
    }
}

impl Told {
    fn is_to_be_told(&self, verdict: &'static str) -> bool {
        let mut last = self.0.lock();
        let at = last.get(verdict);
        let is_new = at.is_none_or(|at| at.elapsed() >= TOLD_EVERY);
        if is_new {
            last.insert(verdict, Instant::now());
        }
        is_new
    }
}

/// How long functions with an SLO take here, for other nodes.
pub(crate) fn execution_times(core: &Core) -> Vec<(String, Measured)> {
    let functions = core.functions.all().into_iter();
    let times = functions.filter(|function| function.current().manifest.slo.promises());
    times
        .filter_map(|function| {
            let measured = function.profile.execution()?;
            Some((function.name.to_string(), measured))
        })
        .collect()
}

/// Decides about an invocation that this node took, and that some nodes had no memory for.
///
/// # Errors
/// `slo-unattainable` if no node is expected to answer in time.
pub(crate) fn choose(
    core: &Core,
    cluster: &Cluster,
    function: &Function,
    deployed: &Deployed,
    session: Option<&SessionName>,
    full: &[NodeName],
) -> Result<Choice, Problem> {
    let slo = &deployed.manifest.slo;
    let mode = cluster.config().offload;
    if !slo.promises() || mode == Automatic::Off {
        return Ok(Choice::AsUsual);
    }
    let Some(world) = World::around(core, cluster, function, deployed, session) else {
        // Nobody knows how long it takes before it has run somewhere.
        return Ok(Choice::AsUsual);
    };
    let estimates = world.estimates(core, function, &deployed.manifest, full);
    let usual = world.home.unwrap_or(HERE);
    let is_possible = |estimate: &&Estimate| estimate.rejected.is_none();
    let soonest = |one: &&Estimate, other: &&Estimate| {
        one.response_seconds.total_cmp(&other.response_seconds)
    };
    let is_known = |estimate: &Estimate| estimate.response_seconds.is_finite();
    let has_memory = |estimate: &Estimate| estimate.rejected != Some(Rejection::NoMemory);
    let best = estimates.iter().filter(is_possible).min_by(soonest);
    let at_usual = estimates.iter().find(|estimate| estimate.node == usual);
    let (verdict, choice) = match (best, at_usual) {
        (None, _) if slo.best_effort => ("as-usual", Ok(Choice::AsUsual)),
        // Nobody can say that none is in time: of some nodes it is not known yet how far they are.
        (None, Some(usual)) if has_memory(usual) && !estimates.iter().all(is_known) => {
            ("as-usual", Ok(Choice::AsUsual))
        }
        // Which shared keys are used is only seen of what runs.
        (None, Some(usual)) if has_memory(usual) && world.uses_keys && function.tried.is_due() => {
            ("tried", Ok(Choice::AsUsual))
        }
        (None, _) => ("refused", Err(unattainable(function, &estimates))),
        (Some(best), Some(usual))
            if usual.rejected.is_none()
                && best.response_seconds > usual.response_seconds * (1.0 - CLEARLY) =>
        {
            ("as-usual", Ok(Choice::AsUsual))
        }
        (Some(best), _) if best.node == usual => ("as-usual", Ok(Choice::AsUsual)),
        (Some(best), _) if best.node == HERE => ("here", Ok(Choice::Here)),
        (Some(best), _) => {
            let home = world.home.map(|home| world.name(home));
            let node = world.name(best.node);
            ("offloaded", Ok(Choice::At { node, home }))
        }
    };
    let verdict = match (mode, verdict) {
        (Automatic::Observe, "refused") => "would-refuse",
        (Automatic::Observe, "here") => "would-run-here",
        (Automatic::Observe, "offloaded") => "would-offload",
        (_, verdict) => verdict,
    };
    if function.told.is_to_be_told(verdict) {
        let session = session.map(ToString::to_string).unwrap_or_default();
        core.decisions.remember(Decision {
            to: match &choice {
                Ok(Choice::At { node, .. }) => Some(node.clone()),
                _ => None,
            },
            estimates: world.expected(&estimates),
            ..Decision::now(cluster, &function.name, session, verdict)
        });
    }
    match mode {
        Automatic::Observe => Ok(Choice::AsUsual),
        _ => choice,
    }
}

fn unattainable(function: &Function, estimates: &[Estimate]) -> Problem {
    let soonest = estimates
        .iter()
        .map(|estimate| estimate.response_seconds)
        .fold(f64::INFINITY, f64::min);
    let detail = format!(
        "of {} nodes none is expected to keep the SLO of {}; the soonest answer is expected after {:.1} ms",
        estimates.len(),
        function.name,
        soonest * 1000.0
    );
    Problem::new(Code::SloUnattainable, detail)
}
