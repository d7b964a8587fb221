//! A worker for an invocation: one that waits, or a fresh one as soon as there is room for it.

use std::time::Instant;

use fulmar_model::units::{ByteSize, CpuAmount};
use fulmar_model::{Code, Problem, SessionName};
use fulmar_worker::{CallError, Holds, Key as PoolKey, Reserved, Worker};

use super::Run;
use crate::functions::Deployed;

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

impl Run<'_> {
    /// Puts a worker by that did what is not kept, if it can do without what it remembers of it.
    pub(super) fn let_go(&self, worker: Worker, key: &PoolKey) {
        if worker.catches_up() {
            let expires = Instant::now() + self.deployed.manifest.workers.idle_ttl.get();
            self.core.pool.put_back(key.clone(), 0, worker, expires);
        }
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
        let waiting = match (&key.session, session) {
            (None, Some(session)) => self.core.pool.take_for(key, session),
            _ => self.core.pool.take(key, tag),
        };
        if let Some(worker) = waiting {
            return Ok(worker);
        }
        let started = Instant::now();
        let Deployed {
            artifact: Some(artifact),
            settings,
            ..
        } = &*self.deployed
        else {
            let detail = format!("{} cannot be invoked", self.function.name);
            return Err(Problem::new(Code::FunctionNotFound, detail));
        };
        loop {
            let room = match room.take() {
                Some(room) => room,
                None => self.room().await?,
            };
            self.may_start()?;
            let (name, logs) = (&self.function.name, &self.core.log_sink);
            match Worker::start(room, artifact, name, settings, logs).await {
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

    /// Refuses to start what has crashed again and again, for a while.
    fn may_start(&self) -> Result<(), Problem> {
        let crashes = &self.deployed.crashes;
        crashes.may_start(Instant::now()).map_err(|told| {
            let detail = format!(
                "the last {} workers of {} crashed, the last since it {}; the next starts in {:.1} s",
                told.count,
                self.function.name,
                told.last,
                told.pause.as_secs_f64()
            );
            Problem::new(Code::CrashLoop, detail)
        })
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
