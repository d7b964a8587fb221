//! What is compared, and under which loads.

use clap::ValueEnum;
use serde::Serialize;

/// A server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// A function that counts, durability `local`.
    Fulmar,
    /// axum alone, answering the body.
    Axum,
    /// axum and Redis with `appendonly yes`, `appendfsync always`.
    Redis,
    /// axum and PostgreSQL.
    Postgres,
    /// workerd with a durable object.
    Workerd,
    /// Restate with two partitions.
    #[value(name = "restate-2")]
    #[serde(rename = "restate-2")]
    Restate2,
    /// Restate as it comes.
    Restate,
}

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Many connections, many sessions.
    Many,
    /// Many connections, one session.
    Hot,
    /// One connection, many sessions.
    Single,
    /// Five reads and five writes in one request. Redis: five commands that read and write.
    Five,
    /// The same with Redis' GET and SET: ten commands.
    FiveGetSet,
}

macro_rules! display_as_value {
    ($type:ty) => {
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let value = self.to_possible_value();
                f.pad(value.as_ref().map_or("", |value| value.get_name()))
            }
        }
    };
}
display_as_value!(Target);
display_as_value!(Phase);
display_as_value!(crate::load::Generator);

impl Target {
    pub(crate) const ALL: [Self; 7] = [
        Self::Fulmar,
        Self::Axum,
        Self::Redis,
        Self::Postgres,
        Self::Workerd,
        Self::Restate2,
        Self::Restate,
    ];

    /// What it is called in tables.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Fulmar => "Fulmar",
            Self::Axum => "axum echo",
            Self::Redis => "axum + Redis (always)",
            Self::Postgres => "axum + PostgreSQL",
            Self::Workerd => "workerd, durable object",
            Self::Restate2 => "Restate, 2 partitions",
            Self::Restate => "Restate, default",
        }
    }

    /// Path of the counter, with {k} for the session.
    pub(crate) fn counter_path(self) -> &'static str {
        match self {
            Self::Fulmar => "/fn/counter/k{k}",
            _ => "/counter/k{k}/add",
        }
    }

    /// Path of a load; `None` if the server has nothing to compare under it.
    pub(crate) fn path(self, phase: Phase) -> Option<&'static str> {
        match (phase, self) {
            (Phase::Many | Phase::Hot | Phase::Single, _) => Some(self.counter_path()),
            (Phase::Five, Self::Fulmar) => Some("/fn/five/k{k}"),
            (Phase::Five, Self::Redis) => Some("/five/k{k}/add"),
            (Phase::FiveGetSet, Self::Redis) => Some("/five-get-set/k{k}/add"),
            (Phase::Five | Phase::FiveGetSet, _) => None,
        }
    }
}

/// By how much one answered request moves the counters under a path; `None` if that is not certain.
pub(crate) fn increment(path: &str) -> Option<i64> {
    if path.contains("five-get-set") {
        // GET and SET by concurrent requests lose updates.
        None
    } else if path.contains("five") {
        Some(5)
    } else {
        Some(1)
    }
}

impl Phase {
    pub(crate) const ALL: [Self; 5] = [
        Self::Many,
        Self::Hot,
        Self::Single,
        Self::Five,
        Self::FiveGetSet,
    ];
}
