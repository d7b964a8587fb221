//! A counter per session over `wasi:http` and `wasi:keyvalue`, generated from the plain WITs of WASI:
//! nothing of Fulmar is in it. `GET` answers the count; `POST` adds the body, a whole number (empty:
//! 1), and answers the sum.

mod bindings {
    wit_bindgen::generate!({ path: "wit", world: "counter", generate_all });
}

use bindings::exports::wasi::http::incoming_handler::Guest;
use bindings::wasi::http::types::{
    Fields, IncomingBody, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use bindings::wasi::io::streams::{InputStream, StreamError};
use bindings::wasi::keyvalue::{atomics, store};

/// The bucket that belongs to the session of the request.
const BUCKET: &str = "session";
const KEY: &str = "count";
/// More digits than a 64-bit number has; nothing longer is read.
const MAX_BODY: u64 = 64;

/// A status with the text that explains it.
type Refusal = (u16, String);

struct Counter;

impl Guest for Counter {
    fn handle(request: IncomingRequest, response: ResponseOutparam) {
        let (status, text) = match answer(request) {
            Ok(count) => (200, count.to_string()),
            Err(refusal) => refusal,
        };
        reply(response, status, &text);
    }
}

fn answer(request: IncomingRequest) -> Result<i64, Refusal> {
    let bucket = store::open(BUCKET).map_err(unavailable)?;
    match request.method() {
        Method::Get => {
            let Some(count) = bucket.get(KEY).map_err(unavailable)? else {
                return Ok(0);
            };
            let count = std::str::from_utf8(&count)
                .ok()
                .and_then(|text| text.parse().ok());
            count.ok_or_else(|| (500, "the stored count is not a number\n".to_owned()))
        }
        Method::Post => {
            let body = body(&request)?;
            let delta = match body.trim() {
                "" => 1,
                text => text
                    .parse()
                    .map_err(|_| (400, format!("{text:?} is not a whole number\n")))?,
            };
            atomics::increment(&bucket, KEY, delta).map_err(unavailable)
        }
        _ => Err((405, "use GET or POST\n".to_owned())),
    }
}

fn unavailable(error: store::Error) -> Refusal {
    match error {
        store::Error::NoSuchStore => (400, "no session: use /fn/counter-http/SESSION\n".to_owned()),
        store::Error::AccessDenied => (403, "writing is not allowed here\n".to_owned()),
        store::Error::Other(text) => (500, format!("{text}\n")),
    }
}

fn body(request: &IncomingRequest) -> Result<String, Refusal> {
    let unreadable = |_| (400, "the body cannot be read\n".to_owned());
    let body: IncomingBody = request.consume().map_err(unreadable)?;
    let stream: InputStream = body.stream().map_err(unreadable)?;
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(MAX_BODY) {
            Ok(chunk) => bytes.extend(chunk),
            Err(StreamError::Closed) => break,
            Err(StreamError::LastOperationFailed(_)) => return Err(unreadable(())),
        }
        if bytes.len() as u64 > MAX_BODY {
            return Err((413, "the body is a number\n".to_owned()));
        }
    }
    String::from_utf8(bytes).map_err(|_| (400, "the body is not UTF-8\n".to_owned()))
}

/// Sends the whole response. An error here means that the client has gone, which is no matter.
fn reply(out: ResponseOutparam, status: u16, text: &str) {
    let headers = Fields::new();
    let _ = headers.set("content-type", &[b"text/plain".to_vec()]);
    let response = OutgoingResponse::new(headers);
    let _ = response.set_status_code(status);
    let Ok(body) = response.body() else { return };
    ResponseOutparam::set(out, Ok(response));
    if let Ok(stream) = body.write() {
        let _ = stream.blocking_write_and_flush(text.as_bytes());
    }
    let _ = OutgoingBody::finish(body, None);
}

bindings::export!(Counter with_types_in bindings);
