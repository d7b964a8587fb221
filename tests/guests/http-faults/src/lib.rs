//! A `wasi:http` function that misbehaves as its path says; see the README.

mod bindings {
    wit_bindgen::generate!({
        path: "../../../examples/counter-http/wit",
        world: "counter",
        generate_all,
    });
}

use bindings::exports::wasi::http::incoming_handler::Guest;
use bindings::wasi::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use bindings::wasi::io::streams::{OutputStream, StreamError};
use bindings::wasi::keyvalue::store;

/// What a stream takes at once.
const PIECE: usize = 4096;

struct Faults;

impl Guest for Faults {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        let words = path.split('?').next().unwrap_or_default().split('/');
        let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
        match words[..] {
            ["echo"] => {
                let headers = [("x-method", method(&request)), ("x-path", path.clone())];
                let body = read_all(&request);
                reply(out, 200, &headers, &body);
            }
            ["status", code] => match code.parse() {
                Ok(code) => reply(out, code, &[], code.to_string().as_bytes()),
                Err(_) => reply(out, 400, &[], b"CODE is not a number\n"),
            },
            ["headers"] => reply(out, 200, &[], &headers_as_text(&request)),
            ["write", key, value] => {
                write(key, value);
                reply(out, 200, &[], b"written\n");
            }
            ["read", key] => match bucket().get(key).expect("the key is readable") {
                Some(value) => reply(out, 200, &[], &value),
                None => reply(out, 404, &[], b"absent\n"),
            },
            ["500-after-write", key, value] => {
                write(key, value);
                reply(out, 500, &[], b"told to fail after writing\n");
            }
            ["trap-after-write", key, value] => {
                write(key, value);
                panic!("told to trap after writing");
            }
            ["trap-after-response", key, value] => {
                write(key, value);
                reply(out, 200, &[], b"answered\n");
                panic!("told to trap after answering");
            }
            ["no-response"] => {}
            ["stream", bytes] => match bytes.parse() {
                Ok(bytes) => stream(out, bytes),
                Err(_) => reply(out, 400, &[], b"BYTES is not a number\n"),
            },
            ["half-stream", bytes] => match bytes.parse() {
                Ok(bytes) => half_stream(out, bytes),
                Err(_) => reply(out, 400, &[], b"BYTES is not a number\n"),
            },
            ["stream-forever"] => stream(out, usize::MAX),
            ["ignore-body"] => reply(out, 200, &[], b"not read\n"),
            _ => reply(out, 404, &[], b"no such fault\n"),
        }
    }
}

fn bucket() -> store::Bucket {
    store::open("session").expect("the invocation has a session")
}

fn write(key: &str, value: &str) {
    bucket()
        .set(key, value.as_bytes())
        .expect("the key can be written");
}

fn method(request: &IncomingRequest) -> String {
    let name = match request.method() {
        Method::Get => "GET",
        Method::Head => "HEAD",
        Method::Post => "POST",
        Method::Put => "PUT",
        Method::Delete => "DELETE",
        Method::Connect => "CONNECT",
        Method::Options => "OPTIONS",
        Method::Trace => "TRACE",
        Method::Patch => "PATCH",
        Method::Other(other) => return other,
    };
    name.to_owned()
}

fn headers_as_text(request: &IncomingRequest) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in request.headers().entries() {
        text.extend_from_slice(name.as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(&value);
        text.push(b'\n');
    }
    text
}

fn read_all(request: &IncomingRequest) -> Vec<u8> {
    let body = request.consume().expect("the body is taken once");
    let stream = body.stream().expect("the stream is taken once");
    let mut bytes = Vec::new();
    loop {
        match stream.blocking_read(64 * 1024) {
            Ok(piece) => bytes.extend(piece),
            Err(StreamError::Closed) => return bytes,
            Err(error) => panic!("the body broke off: {error:?}"),
        }
    }
}

fn begin(out: ResponseOutparam, status: u16, headers: &[(&str, String)]) -> OutgoingBody {
    let fields = Fields::new();
    for (name, value) in headers {
        let value = value.as_bytes().to_vec();
        fields.set(name, &[value]).expect("the header is valid");
    }
    let response = OutgoingResponse::new(fields);
    response
        .set_status_code(status)
        .expect("the status is valid");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    body
}

fn send(stream: &OutputStream, bytes: &[u8]) -> Result<(), StreamError> {
    bytes
        .chunks(PIECE)
        .try_for_each(|piece| stream.blocking_write_and_flush(piece))
}

/// Nobody may be listening any more; that is not the function's fault.
fn reply(out: ResponseOutparam, status: u16, headers: &[(&str, String)], bytes: &[u8]) {
    let body = begin(out, status, headers);
    {
        let stream = body.write().expect("the stream is taken once");
        let _ = send(&stream, bytes);
    }
    let _ = OutgoingBody::finish(body, None);
}

fn stream(out: ResponseOutparam, bytes: usize) {
    let body = begin(out, 200, &[]);
    {
        let stream = body.write().expect("the stream is taken once");
        let piece = [b'x'; PIECE];
        let mut left = bytes;
        while left > 0 {
            let now = left.min(PIECE);
            if send(&stream, &piece[..now]).is_err() {
                return;
            }
            left -= now;
        }
    }
    let _ = OutgoingBody::finish(body, None);
}

fn half_stream(out: ResponseOutparam, bytes: usize) {
    let body = begin(out, 200, &[("content-length", bytes.to_string())]);
    let stream = body.write().expect("the stream is taken once");
    let _ = send(&stream, &vec![b'x'; bytes / 2]);
}

bindings::export!(Faults with_types_in bindings);
