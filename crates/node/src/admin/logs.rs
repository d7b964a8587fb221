//! What functions wrote, as JSON Lines, with or without what is still to come.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::Response;
use axum::routing::get;
use fulmar_model::{Code, Problem};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::Answer;
use crate::core::Core;
use crate::logs::Line;

pub(super) fn routes() -> Router<Arc<Core>> {
    Router::new().route("/admin/logs/{function}", get(logs))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    tail: Option<usize>,
    session: Option<String>,
    follow: Option<bool>,
}

fn encode(line: &Line) -> Bytes {
    let mut text = serde_json::to_vec(line).unwrap_or_default();
    text.push(b'\n');
    text.into()
}

async fn logs(
    State(core): State<Arc<Core>>,
    Path(function): Path<String>,
    Query(options): Query<Options>,
) -> Answer {
    if core.functions.get(&function).is_none() {
        return Err(Problem::new(
            Code::FunctionNotFound,
            format!("no function {function:?} is deployed"),
        )
        .into());
    }
    let tail = options.tail.unwrap_or(usize::MAX);
    let session = options.session;
    let body = if options.follow.unwrap_or(false) {
        let (lines, follower) = core.logs.follow(&function, session.as_deref(), tail);
        let kept = stream::iter(lines.into_iter().map(|line| encode(&line)));
        let stopping = core.stopping.clone();
        let coming = stream::unfold(follower, move |mut follower| {
            let (stopping, session) = (stopping.clone(), session.clone());
            async move {
                loop {
                    let received = tokio::select! {
                        () = stopping.cancelled() => return None,
                        received = follower.recv() => received,
                    };
                    match received {
                        Ok(line) if line.is_of(session.as_deref()) => {
                            return Some((encode(&line), follower));
                        }
                        Ok(_) => {}
                        // Lines went by faster than the client took them; the newest still come.
                        Err(RecvError::Lagged(_)) => {}
                        Err(RecvError::Closed) => return None,
                    }
                }
            }
        });
        Body::from_stream(kept.chain(coming).map(Ok::<_, Infallible>))
    } else {
        let lines = core.logs.tail(&function, session.as_deref(), tail);
        Body::from(
            lines
                .iter()
                .flat_map(|line| encode(line))
                .collect::<Vec<u8>>(),
        )
    };
    let mut response = Response::new(body);
    let json_lines = axum::http::HeaderValue::from_static("application/jsonl");
    response
        .headers_mut()
        .insert(axum::http::header::CONTENT_TYPE, json_lines);
    Ok(response)
}
