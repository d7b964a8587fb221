//! What the node counts and times, in Prometheus' text format. Times are in seconds.

use std::sync::Arc;
use std::time::Duration;

use fulmar_model::Code;
use fulmar_state::CommitObserver;
use prometheus::{
    CounterVec, Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts,
    Registry, TextEncoder,
};
use serde::Serialize;

/// Upper bounds of the latency buckets: 10 us to 10 s, three a decade.
const SECONDS: [f64; 19] = [
    1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0,
    2.0, 5.0, 10.0,
];
/// Upper bounds of the batch size buckets.
const COMMITS: [f64; 11] = [
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];

/// The node's metrics.
pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) invocations: IntCounter,
    failures: IntCounterVec,
    pub(crate) replays: IntCounter,
    pub(crate) conflicts: IntCounter,
    /// Sessions that went to the external store, or came back.
    pub(crate) crossings: IntCounter,
    /// From arrival to the start of its run.
    pub(crate) queue_seconds: Histogram,
    /// Loading a cold session.
    pub(crate) load_seconds: Histogram,
    /// Starting a worker.
    pub(crate) start_seconds: Histogram,
    /// In the function.
    pub(crate) execute_seconds: Histogram,
    /// From the end of the function to the release.
    pub(crate) commit_seconds: Histogram,
    /// From arrival to the response.
    pub(crate) total_seconds: Histogram,
    pub(crate) delivered: IntCounter,
    pub(crate) redelivered: IntCounter,
    pub(crate) parked: IntCounter,
    pub(crate) taken_over: IntCounter,
    /// Invocations of one session that were committed together, where the manifest wants that.
    pub(crate) batch_size: Histogram,
    batch_commits: Histogram,
    batch_bytes: IntCounter,
    sync_seconds: Histogram,
    slo_invocations: IntCounterVec,
    slo_misses: IntCounterVec,
    slo_data_misses: IntCounterVec,
    slo_penalty: CounterVec,
    pub(crate) hot_sessions: IntGauge,
    pub(crate) hot_bytes: IntGauge,
    pub(crate) cold_sessions: IntGauge,
    pub(crate) workers: IntGauge,
    pub(crate) queued: IntGauge,
    pub(crate) messages_pending: IntGauge,
    pub(crate) dead_letters: IntGauge,
    pub(crate) connections: IntGauge,
}

impl Metrics {
    pub(crate) fn new() -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let metric = IntCounter::new(format!("fulmar_{name}"), help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(format!("fulmar_{name}"), help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let histogram =
            |name: &str, help: &str, buckets: &[f64]| -> Result<Histogram, prometheus::Error> {
                let options =
                    HistogramOpts::new(format!("fulmar_{name}"), help).buckets(buckets.to_vec());
                let metric = Histogram::with_opts(options)?;
                registry.register(Box::new(metric.clone()))?;
                Ok(metric)
            };
        let stage = |stage: &str, help: &str| {
            histogram(&format!("invocation_{stage}_seconds"), help, &SECONDS)
        };
        let failures = IntCounterVec::new(
            Opts::new(
                "fulmar_invocation_failures_total",
                "Invocations that failed, by problem code.",
            ),
            &["code"],
        )?;
        registry.register(Box::new(failures.clone()))?;
        let by_function = |name: &str, help: &str| -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(name, help), &["function"])?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let slo_invocations = by_function(
            "fulmar_slo_invocations_total",
            "Invocations of functions with an SLO that this node took.",
        )?;
        let slo_misses = by_function(
            "fulmar_slo_misses_total",
            "Of those: answered too late, or refused because no node was expected to be in time.",
        )?;
        let slo_data_misses = by_function(
            "fulmar_slo_data_misses_total",
            "Invocations that ran on this node and took longer to reach their state than promised.",
        )?;
        let slo_penalty = CounterVec::new(
            Opts::new(
                "fulmar_slo_penalty_total",
                "What being late has cost, by the functions' manifests.",
            ),
            &["function"],
        )?;
        registry.register(Box::new(slo_penalty.clone()))?;
        Ok(Arc::new(Self {
            invocations: counter(
                "invocations_total",
                "Invocations accepted, deliveries included.",
            )?,
            failures,
            slo_invocations,
            slo_misses,
            slo_data_misses,
            slo_penalty,
            replays: counter(
                "idempotent_replays_total",
                "Answers repeated for an idempotency key.",
            )?,
            crossings: counter(
                "model_changes_total",
                "Sessions that went to the external store, or came back.",
            )?,
            conflicts: counter(
                "shared_conflicts_total",
                "Runs repeated because a shared key changed meanwhile.",
            )?,
            queue_seconds: stage("queue", "From arrival to the start of the run.")?,
            load_seconds: stage("load", "Loading a cold session.")?,
            start_seconds: stage("worker_start", "Starting a worker.")?,
            execute_seconds: stage("execute", "In the function.")?,
            commit_seconds: stage(
                "commit",
                "From the end of the function to its durable commit.",
            )?,
            total_seconds: stage("total", "From arrival to the response.")?,
            delivered: counter("messages_delivered_total", "Messages delivered.")?,
            redelivered: counter("message_failures_total", "Deliveries that failed.")?,
            parked: counter("messages_parked_total", "Messages given up and parked.")?,
            taken_over: counter(
                "sessions_taken_over_total",
                "Sessions taken over from nodes that were gone.",
            )?,
            batch_size: histogram(
                "invocation_batch_size",
                "Invocations of one session that were committed together, of functions with [batch].",
                &COMMITS,
            )?,
            batch_commits: histogram("commit_batch_commits", "Commits of one batch.", &COMMITS)?,
            batch_bytes: counter("commit_bytes_total", "Bytes written by commits.")?,
            sync_seconds: histogram(
                "commit_sync_seconds",
                "Writing and syncing one batch.",
                &SECONDS,
            )?,
            hot_sessions: gauge("sessions_hot", "Sessions held in memory.")?,
            hot_bytes: gauge("sessions_hot_bytes", "Memory that they take.")?,
            cold_sessions: gauge(
                "sessions_cold",
                "Sessions only in the local data store, as last counted.",
            )?,
            workers: gauge("workers_idle", "Live workers that wait for an invocation.")?,
            queued: gauge(
                "invocations_queued",
                "Invocations that wait for their turn.",
            )?,
            messages_pending: gauge("messages_pending", "Messages not delivered yet.")?,
            dead_letters: gauge("dead_letters", "Messages parked.")?,
            connections: gauge("connections", "Open client connections.")?,
            registry,
        }))
    }

    /// Counts a failed invocation.
    pub(crate) fn failed(&self, code: Code) {
        self.failures.with_label_values(&[code.as_str()]).inc();
    }

    /// Counts an invocation of a function with an SLO: late by so many seconds, or not; refused: for as long as nobody
    /// can say.
    pub(crate) fn promised(&self, function: &str, late: Option<f64>, penalty_per_second: u32) {
        let function = &[function];
        self.slo_invocations.with_label_values(function).inc();
        if let Some(late) = late {
            self.slo_misses.with_label_values(function).inc();
            let penalty = late * f64::from(penalty_per_second);
            self.slo_penalty.with_label_values(function).inc_by(penalty);
        }
    }

    /// Counts an invocation that ran here and reached its state later than promised, by so many seconds.
    pub(crate) fn reached_late(&self, function: &str, late: f64, penalty_per_second: u32) {
        let function = &[function];
        self.slo_data_misses.with_label_values(function).inc();
        let penalty = late * f64::from(penalty_per_second);
        self.slo_penalty.with_label_values(function).inc_by(penalty);
    }

    /// How a function's SLO is kept.
    pub(crate) fn kept(&self, function: &str) -> Kept {
        let function = &[function];
        Kept {
            invocations: self.slo_invocations.with_label_values(function).get(),
            misses: self.slo_misses.with_label_values(function).get(),
            data_misses: self.slo_data_misses.with_label_values(function).get(),
            penalty: self.slo_penalty.with_label_values(function).get(),
        }
    }

    /// Everything as text.
    pub(crate) fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// How a function's SLO is kept.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Kept {
    /// That this node took.
    invocations: u64,
    /// Of those, answered too late or not at all.
    misses: u64,
    /// That ran on this node, and reached their state too late.
    data_misses: u64,
    /// What both have cost.
    penalty: f64,
}

impl CommitObserver for Metrics {
    fn batch_written(&self, commits: usize, bytes: usize, synced: bool, took: Duration) {
        self.batch_commits.observe(commits as f64);
        self.batch_bytes.inc_by(bytes as u64);
        if synced {
            self.sync_seconds.observe(took.as_secs_f64());
        }
    }
}
