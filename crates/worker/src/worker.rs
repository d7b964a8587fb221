//! A live worker of any kind: calls come one at a time.

use std::sync::Arc;

use fulmar_model::{FunctionName, SessionName};
use fulmar_state::Transaction;

use crate::artifact::{Artifact, Kind};
use crate::call::{Call, CallError, Reply};
use crate::cgroup::Used;
use crate::logs::LogSink;
use crate::pool::Holds;
use crate::process::Process;
use crate::room::{Need, Reserved};
use crate::settings::FunctionSettings;
use crate::wasm::Instance;

/// One live worker: calls come one at a time.
pub struct Worker {
    live: Live,
    /// Set while a call runs and after one that failed.
    poisoned: bool,
    /// Given back last, when the worker is gone.
    room: Reserved,
    /// Dropped with it: whoever counts workers.
    counted: Option<Box<dyn Send + Sync>>,
}

enum Live {
    Instance(Box<Instance>),
    Process(Box<Process>),
    /// An instance that was called, until it has answered.
    Away,
}

impl Holds for Worker {
    fn has(&self) -> Need {
        self.room.need()
    }

    fn catches_up(&self) -> bool {
        matches!(self.live, Live::Process(_))
    }

    fn remembers(&self, session: &SessionName) -> bool {
        match &self.live {
            Live::Process(process) => process.remembers(session),
            Live::Instance(_) | Live::Away => false,
        }
    }

    fn committed(&mut self, tag: u64) {
        if let Live::Process(process) = &mut self.live {
            process.committed(tag);
        }
    }
}

impl Worker {
    /// Starts a worker, for which there is room.
    ///
    /// # Errors
    /// Why it does not start.
    pub async fn start(
        room: Reserved,
        artifact: &Arc<Artifact>,
        function: &FunctionName,
        settings: &Arc<FunctionSettings>,
        logs: &Arc<dyn LogSink>,
    ) -> Result<Self, CallError> {
        let live = match &artifact.kind {
            Kind::Component(component) => {
                let starting = Instance::start(component, function, settings, logs);
                Live::Instance(Box::new(starting.await?))
            }
            Kind::Program(program) => {
                let starting = Process::start(program, function, settings, logs);
                Live::Process(Box::new(starting.await?))
            }
            Kind::Container(container) => {
                let starting = Process::start(container, function, settings, logs);
                Live::Process(Box::new(starting.await?))
            }
        };
        Ok(Self {
            live,
            poisoned: false,
            room,
            counted: None,
        })
    }

    /// Keeps something until the worker is gone.
    #[must_use]
    pub fn counted_by(mut self, counted: impl Send + Sync + 'static) -> Self {
        self.counted = Some(Box::new(counted));
        self
    }

    /// What it has used of the CPUs so far, with all that it has started; none if nobody knows.
    pub fn used(&self) -> Option<Used> {
        match &self.live {
            Live::Process(process) => process.used(),
            Live::Instance(_) | Live::Away => None,
        }
    }

    /// Ends the worker; its memory is kept for the next one.
    pub fn into_room(self) -> Reserved {
        self.room
    }

    /// Whether the worker must be dropped: its last call failed, or was itself dropped half way.
    pub fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    /// Runs one invocation on its transaction. After an error the worker must be dropped: what it
    /// remembers may have never happened. It refuses to be called again.
    pub async fn call(
        &mut self,
        call: Call,
        tx: Transaction,
    ) -> (Transaction, Result<Reply, CallError>) {
        if self.poisoned {
            let refused = "the worker was called again after a call that failed";
            return (tx, Err(CallError::Trap(refused.into())));
        }
        self.poisoned = true;
        let (tx, result) = match &mut self.live {
            Live::Process(process) => process.call(call, tx).await,
            live => match std::mem::replace(live, Live::Away) {
                Live::Instance(instance) => {
                    let (instance, tx, result) = instance.call(call, tx).await;
                    self.live = Live::Instance(instance);
                    (tx, result)
                }
                _ => unreachable!("whoever dropped a call has poisoned the worker"),
            },
        };
        self.poisoned = result.is_err();
        (tx, result)
    }
}
