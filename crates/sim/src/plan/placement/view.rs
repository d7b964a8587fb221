//! The user's names and numbers as the policies see them, checked.

use std::collections::HashMap;

use fulmar_policy::placement::Problem;
use fulmar_policy::{Access, Function, FunctionIndex, Key, KeyIndex, Network, NodeIndex, Slo};

use super::Settings;
use crate::Error;

pub(super) struct View {
    network: Network,
    storage_bytes: Vec<u64>,
    may_host: Vec<bool>,
    functions: Vec<Function>,
    invocation_rates: Vec<f64>,
    keys: Vec<Key>,
    accesses: Vec<Access>,
}

/// Names of one kind and their places.
struct Names<'a> {
    kind: &'static str,
    places: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    fn new(kind: &'static str, names: impl Iterator<Item = &'a String>) -> Result<Self, Error> {
        let mut places = HashMap::new();
        for (at, name) in names.enumerate() {
            if places.insert(name.as_str(), at).is_some() {
                return Err(Error::invalid(format!("two {kind}s are called {name}")));
            }
        }
        Ok(Self { kind, places })
    }

    fn find(&self, name: &str, who: &str) -> Result<usize, Error> {
        self.places.get(name).copied().ok_or_else(|| {
            let mut known: Vec<&str> = self.places.keys().copied().collect();
            known.sort_unstable();
            Error::invalid(format!(
                "{who} names the {} {name}, which there is not; there are: {}",
                self.kind,
                known.join(", ")
            ))
        })
    }
}

/// # Errors
/// When it is not a number of 0 or above.
fn not_negative(what: &str, value: f64) -> Result<f64, Error> {
    match value.is_finite() && value >= 0.0 {
        true => Ok(value),
        false => Err(Error::invalid(format!(
            "{what} is {value}; it has to be 0 or above"
        ))),
    }
}

impl View {
    pub(super) fn new(settings: &Settings) -> Result<Self, Error> {
        for (key, weight) in [
            ("penalty_weight", settings.penalty_weight),
            ("move_weight", settings.move_weight),
        ] {
            if !(0.0..=1.0).contains(&weight) {
                return Err(Error::invalid(format!(
                    "{key} is {weight}; it has to be from 0 to 1"
                )));
            }
        }
        not_negative("exact_seconds", settings.exact_seconds)?;
        if settings.horizon_seconds.is_nan() || settings.horizon_seconds <= 0.0 {
            return Err(Error::invalid(format!(
                "horizon_seconds is {}; it has to be above 0",
                settings.horizon_seconds
            )));
        }
        let nodes = Names::new("node", settings.nodes.iter().map(|node| &node.name))?;
        let functions = Names::new("function", settings.functions.iter().map(|f| &f.name))?;
        let keys = Names::new("key", settings.keys.iter().map(|key| &key.name))?;
        let mut of_functions = Vec::new();
        let mut invocation_rates = Vec::new();
        for function in &settings.functions {
            let name = &function.name;
            let what = |what: &str| format!("{what} of the function {name}");
            let slo = function.max_data_access_seconds;
            if slo.is_nan() || slo <= 0.0 {
                return Err(Error::invalid(format!(
                    "{} is {slo}; it has to be above 0",
                    what("max_data_access_seconds")
                )));
            }
            let rate = not_negative(
                &what("invocations_per_second"),
                function.invocations_per_second,
            )?;
            invocation_rates.push(rate);
            of_functions.push(Function {
                name: name.as_str().into(),
                exec_seconds: 0.0,
                memory_bytes: 0,
                input_bytes: 0.0,
                output_bytes: 0.0,
                slo: Slo {
                    max_data_access_seconds: slo,
                    max_response_seconds: f64::INFINITY,
                    penalty_per_second: not_negative(
                        &what("penalty_per_second"),
                        function.penalty_per_second,
                    )?,
                },
            });
        }
        let mut of_keys = Vec::new();
        for key in &settings.keys {
            let home = nodes.find(&key.home, &format!("the key {}", key.name))?;
            of_keys.push(Key {
                size_bytes: key.size_bytes,
                home: NodeIndex::from(home),
            });
        }
        let mut accesses = Vec::new();
        for (at, access) in settings.accesses.iter().enumerate() {
            let who = format!("access {}", at + 1);
            let function = functions.find(&access.function, &who)?;
            let rate = not_negative(&format!("per_second of {who}"), access.per_second)?;
            if rate > 0.0 && invocation_rates[function] == 0.0 {
                return Err(Error::invalid(format!(
                    "{who} is by {}, which is never invoked: its invocations_per_second is 0",
                    access.function
                )));
            }
            accesses.push(Access {
                function: FunctionIndex::from(function),
                key: KeyIndex::from(keys.find(&access.key, &who)?),
                node: NodeIndex::from(nodes.find(&access.node, &who)?),
                rate,
            });
        }
        accesses.sort_by_key(|access| (access.key, access.function, access.node));
        Ok(Self {
            network: network(settings, &nodes)?,
            storage_bytes: settings
                .nodes
                .iter()
                .map(|node| node.storage_bytes)
                .collect(),
            may_host: settings.nodes.iter().map(|node| node.may_host).collect(),
            functions: of_functions,
            invocation_rates,
            keys: of_keys,
            accesses,
        })
    }

    pub(super) fn problem(&self, settings: &Settings) -> Problem<'_> {
        Problem {
            network: &self.network,
            storage_bytes: &self.storage_bytes,
            may_host: &self.may_host,
            functions: &self.functions,
            invocation_rates: &self.invocation_rates,
            keys: &self.keys,
            accesses: &self.accesses,
            penalty_weight: settings.penalty_weight,
            move_weight: settings.move_weight,
            horizon_seconds: settings.horizon_seconds,
        }
    }
}

/// Between every two nodes: the way with the least latency (Floyd and Warshall), and the narrowest
/// link on it.
fn network(settings: &Settings, nodes: &Names<'_>) -> Result<Network, Error> {
    let count = settings.nodes.len();
    if count == 0 {
        return Err(Error::invalid("there are no nodes"));
    }
    // Three matrices of 8 bytes, and what decisions are taken from.
    const MOST_NODES: usize = 5_000;
    if count > MOST_NODES {
        return Err(Error::invalid(format!(
            "there are {count} nodes; more than {MOST_NODES} need more memory than a plan may take"
        )));
    }
    let mut latency = vec![f64::INFINITY; count * count];
    let mut bandwidth = vec![0.0; count * count];
    for at in 0..count {
        latency[at * count + at] = 0.0;
        bandwidth[at * count + at] = f64::INFINITY;
    }
    for link in &settings.links {
        let who = format!(
            "the link between {} and {}",
            link.between[0], link.between[1]
        );
        let a = nodes.find(&link.between[0], &who)?;
        let b = nodes.find(&link.between[1], &who)?;
        let seconds = not_negative(&format!("latency_seconds of {who}"), link.latency_seconds)?;
        if !link.mbps.is_finite() || link.mbps <= 0.0 {
            return Err(Error::invalid(format!(
                "mbps of {who} is {}; it has to be above 0",
                link.mbps
            )));
        }
        for cell in [a * count + b, b * count + a] {
            if seconds < latency[cell] {
                (latency[cell], bandwidth[cell]) = (seconds, link.mbps * 1e6 / 8.0);
            }
        }
    }
    for via in 0..count {
        for from in 0..count {
            let first = latency[from * count + via];
            if first.is_infinite() {
                continue;
            }
            for to in 0..count {
                let seconds = first + latency[via * count + to];
                if seconds < latency[from * count + to] {
                    latency[from * count + to] = seconds;
                    bandwidth[from * count + to] =
                        f64::min(bandwidth[from * count + via], bandwidth[via * count + to]);
                }
            }
        }
    }
    if let Some(cell) = latency.iter().position(|seconds| seconds.is_infinite()) {
        return Err(Error::invalid(format!(
            "there is no way from {} to {}",
            settings.nodes[cell / count].name,
            settings.nodes[cell % count].name
        )));
    }
    Ok(Network::new(count, latency, bandwidth))
}
