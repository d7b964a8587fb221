//! Reading the counters that a run has increased, by adding nothing to them.

use std::rc::Rc;

use anyhow::{Context, ensure};

use super::connection::Connection;
use super::load::{Plan, on_one_thread};

/// The sum of the counters of all sessions of a plan, read by requests whose body is 0.
pub(super) fn sum(plan: &Plan) -> anyhow::Result<i64> {
    let plan = Rc::new(Plan {
        template: plan.template.with_body(b"0"),
        sessions: if plan.template.has_sessions() {
            plan.sessions
        } else {
            1
        },
        ..plan.clone()
    });
    on_one_thread(async {
        let tasks: Vec<_> = (0..plan.connections as u64)
            .map(|index| tokio::task::spawn_local(sum_of(Rc::clone(&plan), index)))
            .collect();
        let mut sum = 0;
        for task in tasks {
            sum += task.await.context("reading the counters failed")??;
        }
        Ok(sum)
    })?
}

/// The sum of every so many-th counter, over a connection of its own.
async fn sum_of(plan: Rc<Plan>, index: u64) -> anyhow::Result<i64> {
    let mut connection = Connection::open(plan.address).await?;
    let mut request = Vec::new();
    let mut sum = 0;
    let mut session = index + 1;
    while session <= plan.sessions {
        plan.template.write(&mut request, session, None);
        let status = connection.exchange(&request).await?;
        let text = String::from_utf8_lossy(connection.body()).into_owned();
        ensure!(
            (200..300).contains(&status),
            "reading counter {session}: status {status}: {text}"
        );
        let value: i64 = text
            .trim()
            .parse()
            .with_context(|| format!("counter {session} answered {text:?}, which is no number"))?;
        sum += value;
        session += plan.connections as u64;
    }
    Ok(sum)
}
