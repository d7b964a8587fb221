//! One live instance of a component.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fulmar_model::FunctionName;
use fulmar_state::Transaction;
use http_body_util::{BodyExt, Full};
use tokio::sync::oneshot;
use wasmtime::{PoolConcurrencyLimitError, Store, Trap, UpdateDeadline, WasmBacktrace};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::Proxy;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use crate::call::{Call, CallError, Reply, Request};
use crate::compute::Lane;
use crate::logs::LogSink;
use crate::settings::FunctionSettings;
use crate::wasm::bindings::function::{Failure, Function};
use crate::wasm::component::{Mapped, Pre};
use crate::wasm::host::Host;
use crate::wasm::runtime::Runtime;

/// How long a worker may take to start: what its language's runtime does first.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// One live instance.
pub(crate) struct Instance {
    store: Store<Host>,
    serves: Serves,
    runtime: Runtime,
    /// Where its calls wait if they compute for long.
    lane: Option<Arc<Lane>>,
}

enum Serves {
    Function(Function),
    Http(Proxy),
}

impl Instance {
    /// Starts one.
    pub(crate) async fn start(
        component: &Mapped,
        function: &FunctionName,
        settings: &Arc<FunctionSettings>,
        logs: &Arc<dyn LogSink>,
    ) -> Result<Self, CallError> {
        let host = Host::new(function, settings, logs)?;
        let mut store = Store::new(component.runtime.engine(), host);
        store.limiter(|host| &mut host.limits);
        store.epoch_deadline_callback(|mut context| {
            let host = context.data_mut();
            host.ticks.fetch_add(1, Ordering::Relaxed);
            if Instant::now() < host.deadline {
                return Ok(UpdateDeadline::Yield(1));
            }
            host.timed_out = true;
            Ok(UpdateDeadline::Interrupt)
        });
        store.set_epoch_deadline(1);
        store.data_mut().deadline = Instant::now() + START_TIMEOUT;
        let _running = component.runtime.running();
        let deadline = store.data().deadline;
        let starting = async {
            match &component.pre {
                Pre::Function(pre) => pre
                    .instantiate_async(&mut store)
                    .await
                    .map(Serves::Function),
                Pre::Http(pre) => pre.instantiate_async(&mut store).await.map(Serves::Http),
            }
        };
        let compute = component.runtime.compute();
        let lane = compute.map(|compute| compute.lane(function, settings.cpu.weight()));
        let Some(started) = cut_off(starting, deadline).await else {
            return Err(CallError::Timeout);
        };
        match started {
            Ok(serves) => Ok(Self {
                store,
                serves,
                runtime: component.runtime.clone(),
                lane,
            }),
            Err(error) => Err(match explain(&error, store.data()) {
                CallError::Trap(text) => CallError::Start(text),
                known => known,
            }),
        }
    }

    /// Runs one invocation on its transaction, on whatever thread it has a place; back when it is done.
    pub(crate) async fn call(
        mut self: Box<Self>,
        call: Call,
        tx: Transaction,
    ) -> (Box<Self>, Transaction, Result<Reply, CallError>) {
        let runtime = self.runtime.clone();
        let lane = self.lane.clone();
        let ticks = self.store.data().ticks.clone();
        let running = async move {
            let (tx, result) = self.run(call, tx).await;
            (self, tx, result)
        };
        match (runtime.compute(), lane) {
            (Some(compute), Some(lane)) => compute.run(&lane, &ticks, running).await,
            _ => running.await,
        }
    }

    async fn run(
        &mut self,
        call: Call,
        tx: Transaction,
    ) -> (Transaction, Result<Reply, CallError>) {
        let deadline = call.deadline;
        let host = self.store.data_mut();
        host.begin(&call, tx);
        self.store.set_epoch_deadline(1);
        let _running = self.runtime.running();
        let result = match (&self.serves, call.request) {
            (Serves::Function(function), Request::Bytes(input)) => {
                let called = call_function(function, &mut self.store, input);
                cut_off(called, deadline).await
            }
            (Serves::Http(proxy), Request::Http(request)) => {
                let called = call_http(proxy, &mut self.store, *request);
                cut_off(called, deadline).await
            }
            (Serves::Function(_), Request::Http(_)) => Some(Err(CallError::Rejected(
                "a function of fulmar:function takes bytes, not an HTTP request".into(),
            ))),
            (Serves::Http(_), Request::Bytes(_)) => Some(Err(CallError::Rejected(
                "a function of wasi:http/proxy takes an HTTP request, not bytes".into(),
            ))),
        };
        let tx = self.store.data_mut().end();
        (tx, result.unwrap_or(Err(CallError::Timeout)))
    }
}

async fn call_function(
    function: &Function,
    store: &mut Store<Host>,
    input: Bytes,
) -> Result<Reply, CallError> {
    let max = store.data().settings.max_response_bytes;
    match function.call_handle(&mut *store, &input).await {
        Ok(Ok(output)) if output.len() > max => Err(CallError::ResponseTooLarge { limit: max }),
        Ok(Ok(output)) => Ok(Reply::Bytes(output.into())),
        Ok(Err(Failure::Failed(text))) => Err(CallError::Failed(text)),
        Ok(Err(Failure::Rejected(text))) => Err(CallError::Rejected(text)),
        Err(error) => Err(explain(&error, store.data())),
    }
}

async fn call_http(
    proxy: &Proxy,
    store: &mut Store<Host>,
    request: http::Request<Bytes>,
) -> Result<Reply, CallError> {
    let max = store.data().settings.max_response_bytes;
    let (respond, response) = oneshot::channel();
    let request = request.map(|body| Full::new(body).map_err(|never| match never {}));
    let trap = |error: wasmtime::Error| CallError::Trap(format!("{error:#}"));
    let mut http = store.data_mut().http();
    let request = http
        .new_incoming_request::<http_body_util::combinators::BoxBody<Bytes, wasmtime_wasi_http::Error>>(
            Scheme::Http,
            request.map(BodyExt::boxed),
        )
        .map_err(trap)?;
    let out = http.new_response_outparam(respond).map_err(trap)?;
    // The guest may go on writing its body after it has set the response, so both run together.
    let mut collected = pin!(collect(response, max));
    let mut called = pin!(async {
        let called = proxy
            .wasi_http_incoming_handler()
            .call_handle(&mut *store, request, out)
            .await;
        called.map_err(|error| explain(&error, store.data()))
    });
    let reply = tokio::select! {
        biased;
        called = &mut called => {
            called?;
            None
        }
        reply = &mut collected => Some(reply),
    };
    match reply {
        // Nobody wants to hear the rest of it.
        Some(Err(error @ CallError::ResponseTooLarge { .. })) => Err(error),
        // The guest may have more to do, and may trap doing it.
        Some(reply) => {
            called.await?;
            reply
        }
        // What it wrote is there; what it left open in its table nobody will ever write or close.
        None => {
            let now = poll_fn(|context| Poll::Ready(collected.as_mut().poll(context)));
            match tokio::task::unconstrained(now).await {
                Poll::Ready(reply) => reply,
                Poll::Pending => Err(CallError::NoResponse),
            }
        }
    }
}

/// Waits for the response and reads its body.
async fn collect(
    response: oneshot::Receiver<Result<http::Response<HyperOutgoingBody>, ErrorCode>>,
    max: usize,
) -> Result<Reply, CallError> {
    let response = match response.await {
        Ok(Ok(response)) => response,
        Ok(Err(code)) => {
            return Err(CallError::Failed(format!(
                "the function answered with the error {code:?}"
            )));
        }
        Err(_) => return Err(CallError::NoResponse),
    };
    let (head, mut body) = response.into_parts();
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    if whole.len() + data.len() > max {
                        return Err(CallError::ResponseTooLarge { limit: max });
                    }
                    whole.extend_from_slice(&data);
                }
            }
            // The body was dropped unfinished.
            Err(_) => return Err(CallError::NoResponse),
        }
    }
    Ok(Reply::Http(Box::new(http::Response::from_parts(
        head,
        whole.freeze(),
    ))))
}

/// Ends a call at its deadline even if it waits for the host. Most calls never wait, so the timer is
/// set only when one does. None: cut off.
async fn cut_off<T>(called: impl Future<Output = T>, deadline: Instant) -> Option<T> {
    let mut called = pin!(called);
    let at_once = poll_fn(|context| match called.as_mut().poll(context) {
        Poll::Ready(result) => Poll::Ready(Some(result)),
        Poll::Pending => Poll::Ready(None),
    })
    .await;
    match at_once {
        Some(result) => Some(result),
        None => tokio::time::timeout_at(deadline.into(), called).await.ok(),
    }
}

/// Why a call ended without a result.
fn explain(error: &wasmtime::Error, host: &Host) -> CallError {
    if host.timed_out {
        return CallError::Timeout;
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return CallError::NoRoom;
    }
    if host.limits.was_hit() {
        return CallError::MemoryLimit {
            limit: host.limits.memory_bytes(),
        };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::StackOverflow) => CallError::StackOverflow,
        Some(Trap::MemoryOutOfBounds) if is_deep_recursion(error) => CallError::StackOverflow,
        Some(trap) => CallError::Trap(format!("{trap}{}", host.last_words())),
        None => match error.downcast_ref::<I32Exit>() {
            Some(I32Exit(status)) => CallError::Trap(format!("exited with status {status}")),
            // Without the frames of the guest around it.
            None => CallError::Trap(error.root_cause().to_string()),
        },
    }
}

/// Languages that keep a stack of their own in linear memory (Rust, C) run past its end before the
/// engine's stack is used up: then the innermost calls are all of one or two functions.
fn is_deep_recursion(error: &wasmtime::Error) -> bool {
    const INNERMOST: usize = 16;
    let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() else {
        return false;
    };
    let mut functions: Vec<u32> = backtrace
        .frames()
        .iter()
        .take(INNERMOST)
        .map(|frame| frame.func_index())
        .collect();
    let enough = functions.len() == INNERMOST;
    functions.sort_unstable();
    functions.dedup();
    enough && functions.len() <= 2
}
