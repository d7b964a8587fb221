//! A worker for an invocation: one that waits, or a fresh one as soon as there is room for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fulmar_model::units::{ByteSize, CpuAmount};
use fulmar_model::{Code, Problem, SessionName};
use fulmar_worker::{CallError, Holds, Key as PoolKey, Reserved, Used, Worker};

use super::Run;
use crate::core::Core;
use crate::deploy;
use crate::fleet::Fleet;
use crate::functions::{Deployed, Function};

/// What is left of an invocation's run that met other values of shared keys than it had taken them for.
#[derive(Default)]
pub(super) enum Before {
    #[default]
    Nothing,
    /// Memory for a worker.
    Room(Reserved),
    /// A worker.
    Worker(Worker),
}

impl Before {
    /// Of a worker that remembers writes that did not happen. Its memory is kept: whoever has it may wait for the keys that
    /// are kept here.
    pub(super) fn of(worker: Worker) -> Self {
        match worker.catches_up() {
            true => Self::Worker(worker),
            false => Self::Room(worker.into_room()),
        }
    }
}

impl Run<'_> {
    /// Puts a worker by that did what is not kept, if it can do without what it remembers of it.
    pub(super) fn let_go(&self, worker: Worker) {
        if let Some(fleet) = &self.deployed.fleet {
            fleet.free(&self.core.pool, worker, self.is_current());
        }
    }

    /// Puts a worker by whose last invocation is committed, and has made this version of its session.
    pub(super) fn put_by(&self, mut worker: Worker, key: &PoolKey, tag: u64) {
        if let Some(fleet) = &self.deployed.fleet {
            worker.committed(tag);
            return fleet.free(&self.core.pool, worker, self.is_current());
        }
        let expires = Instant::now() + self.deployed.manifest.workers.idle_ttl.get();
        self.core.pool.put(key.clone(), tag, worker, expires);
    }

    /// Whether this version is what new invocations run.
    fn is_current(&self) -> bool {
        self.function.current().version == self.deployed.version
    }

    /// A live worker that knows the session's present state or can be told of it, or a fresh one.
    pub(super) async fn worker(
        &self,
        key: &PoolKey,
        session: Option<&SessionName>,
        tag: u64,
        before: Before,
    ) -> Result<Worker, Problem> {
        let mut room = match before {
            Before::Worker(worker) => return Ok(worker),
            Before::Room(room) => Some(room),
            Before::Nothing => None,
        };
        if let Some(fleet) = &self.deployed.fleet {
            return self.hire(fleet, session).await;
        }
        if room.is_none()
            && let Some(worker) = self.core.pool.take(key, tag)
        {
            return Ok(worker);
        }
        self.start(room.take()).await
    }

    /// A worker that is a process of its own, as soon as one is free.
    async fn hire(&self, fleet: &Fleet, session: Option<&SessionName>) -> Result<Worker, Problem> {
        let _waiting = session.is_none().then(|| self.function.wait());
        let timeout = self.deployed.manifest.limits.timeout;
        let hiring = fleet.hire(&self.core.pool, session, self.has_begun);
        let hired = tokio::time::timeout_at((self.started + timeout.get()).into(), hiring);
        hired.await.unwrap_or_else(|_| {
            let name = &self.function.name;
            let detail =
                format!("all workers of {name} were busy for the {timeout} that it may take");
            Err(Problem::new(Code::FunctionTimeout, detail))
        })
    }

    /// A fresh worker.
    pub(super) async fn start(&self, mut room: Option<Reserved>) -> Result<Worker, Problem> {
        let started = Instant::now();
        let Some(artifact) = deploy::loaded(self.core, &self.deployed).await? else {
            let detail = format!("{} cannot be invoked", self.function.name);
            return Err(Problem::new(Code::FunctionNotFound, detail));
        };
        loop {
            let room = match room.take() {
                Some(room) => room,
                None => self.room().await?,
            };
            let (name, logs) = (&self.function.name, &self.core.log_sink);
            let settings = &self.deployed.settings;
            match Worker::start(room, &artifact, name, settings, logs).await {
                Ok(worker) => {
                    self.core
                        .metrics
                        .start_seconds
                        .observe(started.elapsed().as_secs_f64());
                    return Ok(worker);
                }
                // One that waits makes room; if all are busy, the client has to come back.
                Err(CallError::NoRoom) if self.core.pool.drop_oldest() => {}
                Err(error) => {
                    self.note_crash(&error);
                    return Err(self.call_problem(error));
                }
            }
        }
    }

    /// Room for a worker, as soon as the node has some.
    async fn room(&self) -> Result<Reserved, Problem> {
        let (name, limits) = (&self.function.name, &self.deployed.manifest.limits);
        let need = self.deployed.need();
        let reserving = self.core.pool.reserve(need);
        let reserved = tokio::time::timeout(limits.timeout.get(), reserving).await;
        let cpu = |millis| CpuAmount::from_millis(millis);
        let takes = match need.cpu_millis {
            0 => limits.memory.to_string(),
            millis => format!("{} and {} of CPU", limits.memory, cpu(millis)),
        };
        let detail = match reserved {
            Ok(Some(reserved)) => return Ok(reserved),
            Ok(None) => format!("a worker of {name} takes {takes}"),
            Err(_) => format!(
                "workers that run had all of it for the {} that {name} may take",
                limits.timeout
            ),
        };
        let room = self.core.pool.room();
        let memory = room.total_bytes().map(|bytes| ByteSize(bytes).to_string());
        let reserved = room.total_cpu_millis().filter(|_| need.cpu_millis > 0);
        let reserved = reserved.map(|millis| format!("{} of CPU", cpu(millis)));
        let total: Vec<String> = memory.into_iter().chain(reserved).collect();
        let total = total.join(" and ");
        let detail = format!("the node has {total} for workers: {detail}");
        Err(Problem::new(Code::NoRoom, detail))
    }

    /// What a worker has used of the CPUs so far, if that is worth looking at.
    pub(super) fn used(&self, worker: &Worker) -> Option<Used> {
        let fleet = self.deployed.fleet.as_ref()?;
        fleet.looks_at_cpu().then(|| worker.used())?
    }

    /// Remembers how long a worker worked.
    pub(super) fn note_work(&self, worked: Duration, before: Option<Used>, worker: &Worker) {
        if let Some(intake) = &self.deployed.intake {
            intake.done(self.core, self.function);
        }
        if let Some(fleet) = &self.deployed.fleet {
            let spent = before.and_then(|before| Some(worker.used()?.since(&before)));
            fleet.worked(worked, spent);
        }
    }

    /// Remembers that a worker has crashed that is costly to start.
    pub(super) fn note_crash(&self, error: &CallError) {
        let is_crash = match error {
            CallError::Start(_) | CallError::Exited(_) | CallError::MemoryLimit { .. } => true,
            // Whatever else it does wrong, it lives.
            _ => false,
        };
        if is_crash && self.deployed.manifest.is_program() {
            let crashes = &self.deployed.crashes;
            crashes.crashed(&error.to_string(), Instant::now());
        }
    }
}

/// Refuses to start what has crashed again and again, for a while.
pub(crate) fn may_start(function: &Function, deployed: &Deployed) -> Result<(), Problem> {
    deployed.crashes.may_start(Instant::now()).map_err(|told| {
        let detail = format!(
            "the last {} workers of {} crashed, the last since it {}; the next starts in {:.1} s",
            told.count,
            function.name,
            told.last,
            told.pause.as_secs_f64()
        );
        Problem::new(Code::CrashLoop, detail)
    })
}

/// Starts a worker that nobody has asked for by name.
pub(crate) async fn start_worker(
    core: &Arc<Core>,
    function: &Arc<Function>,
    deployed: &Arc<Deployed>,
) -> Result<Worker, Problem> {
    let run = Run {
        core,
        function,
        deployed: deployed.clone(),
        started: Instant::now(),
        has_begun: false,
    };
    run.start(None).await
}
