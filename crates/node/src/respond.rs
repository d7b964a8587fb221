//! Responses: answers of functions, problems, JSON.

use bytes::Bytes;
use fulmar_model::{Problem, problem};
use fulmar_worker::Reply;
use http::header::{
    ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
};
use http::{Response, StatusCode};
use http_body_util::{Either, Full};

use crate::invocation::{Answer, BYTES_TYPE};

/// Body of a response: mostly bytes, sometimes a stream.
pub(crate) type Body = Either<Full<Bytes>, axum::body::Body>;

/// Names the invocation in its response.
pub(crate) const INVOCATION: HeaderName = HeaderName::from_static("fulmar-invocation");
/// Marks an answer that was kept for its idempotency key.
pub(crate) const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// A response of bytes.
pub(crate) fn bytes(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A problem as `application/problem+json`.
pub(crate) fn problem(problem: &Problem) -> Response<Body> {
    let status =
        StatusCode::from_u16(problem.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = bytes(status, problem::CONTENT_TYPE, problem.to_json());
    match status {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            response
                .headers_mut()
                .insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        StatusCode::UNAUTHORIZED => {
            response
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        StatusCode::METHOD_NOT_ALLOWED => {
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("POST"));
        }
        _ => {}
    }
    response
}

/// What a function answered.
pub(crate) fn answer(answer: Answer) -> Response<Body> {
    let mut response = match answer.reply {
        Reply::Bytes(body) => bytes(StatusCode::OK, BYTES_TYPE, body),
        Reply::Http(response) => {
            let mut response = response.map(|body| Either::Left(Full::new(body)));
            strip_hop_by_hop(response.headers_mut());
            response
        }
    };
    if let Ok(id) = HeaderValue::from_str(&answer.invocation) {
        response.headers_mut().insert(INVOCATION, id);
    }
    if answer.replayed {
        response
            .headers_mut()
            .insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// Removes headers that speak of a connection rather than of the message (RFC 9110, 7.6.1), and the
/// length, which follows from the body.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    for name in [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
    ] {
        headers.remove(name);
    }
}

/// A response of the router, whose body may be a stream.
pub(crate) fn routed(response: Response<axum::body::Body>) -> Response<Body> {
    response.map(Either::Right)
}
