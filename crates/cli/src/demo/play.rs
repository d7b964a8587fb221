//! Plays the script: one thread for each client, which reports when the script says, to the node that it says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use fulmar_model::ExecutionModel;

use super::board::{Answered, Board};
use super::continuum::{self, Continuum};
use super::screen::Screen;
use super::script::{Client, Phase, Report};
use super::table::Outcome;

/// Pause between two looks at the screen.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes of a request or a response besides body and token, about.
const HEAD_BYTES: usize = 200;
/// Before the first report, so that all clients have begun.
const PREPARATION: Duration = Duration::from_millis(200);

/// Plays it with one model; what came of it.
pub(super) fn play(
    continuum: &Continuum,
    script: &[Client],
    board: &Arc<Board>,
    screen: &mut Screen,
    stop: &AtomicBool,
) -> anyhow::Result<Outcome> {
    let model = board.model;
    board.happened(&format!("everything with execution_model = \"{model}\""));
    let cloud_before = continuum.cloud_bytes()?;
    let started = Instant::now() + PREPARATION;
    let outcome = std::thread::scope(|scope| {
        let players: Vec<_> = script
            .iter()
            .map(|client| {
                scope
                    .spawn(move || Player::new(client, model).play(continuum, board, started, stop))
            })
            .collect();
        while !players.iter().all(|player| player.is_finished()) {
            if let Ok(bytes) = continuum.cloud_bytes() {
                board.set_cloud_bytes(bytes - cloud_before);
            }
            if screen.show(board)? {
                stop.store(true, Ordering::Relaxed);
            }
            std::thread::sleep(LOOK);
        }
        let mut outcome = Outcome::new(model);
        for player in players {
            let played = player.join().map_err(|_| anyhow!("a client gave up"))??;
            outcome.add(played);
        }
        anyhow::Ok(outcome)
    })?;
    screen.show(board)?;
    let cloud_bytes = continuum.cloud_bytes()? - cloud_before;
    Ok(outcome.with_cloud_bytes(cloud_bytes))
}

/// What a client has seen.
pub(super) struct Played {
    pub(super) answers: Vec<Answered>,
    /// Answers that were not the count that was to come.
    pub(super) wrong: u64,
}

struct Player<'a> {
    client: &'a Client,
    model: ExecutionModel,
    /// The state, while the client has it.
    token: Option<String>,
}

impl<'a> Player<'a> {
    fn new(client: &'a Client, model: ExecutionModel) -> Self {
        Self {
            client,
            model,
            token: None,
        }
    }

    fn play(
        mut self,
        continuum: &Continuum,
        board: &Board,
        started: Instant,
        stop: &AtomicBool,
    ) -> anyhow::Result<Played> {
        let agent = continuum::agent();
        let mut played = Played {
            answers: Vec::new(),
            wrong: 0,
        };
        for (before, report) in self.client.reports.iter().enumerate() {
            let due = started + report.at;
            while Instant::now() < due {
                if stop.load(Ordering::Relaxed) {
                    return Ok(played);
                }
                std::thread::sleep((due - Instant::now()).min(LOOK));
            }
            let url = continuum.url(report.node);
            let (mut answer, count) = self.send(&agent, url, report)?;
            answer.took = due.elapsed();
            answer.is_late = answer.took > self.client.slo;
            if count != (before + 1).to_string() {
                played.wrong += 1;
                board.happened(&format!(
                    "{}: {count} readings instead of {}",
                    self.client.name,
                    before + 1
                ));
            }
            board.answered(&self.client.name, &answer);
            played.answers.push(answer);
        }
        Ok(played)
    }

    /// Sends a report over the client's own way; what it had, and how many there were.
    fn send(
        &mut self,
        agent: &ureq::Agent,
        url: &str,
        report: &Report,
    ) -> anyhow::Result<(Answered, String)> {
        let (client, uplink) = (self.client, self.client.uplink);
        let mut body = format!("sensor-{}\n", report.sensor).into_bytes();
        body.resize(body.len() + report.bytes, b'x');
        let mut request = agent.post(format!(
            "{url}/fn/{}/{}",
            continuum::function(self.model),
            client.name
        ));
        if let Some(model) = self.wanted(report.phase) {
            request = request.header("fulmar-execution-model", model.as_str());
        }
        let mut token_bytes = 0;
        if let Some(token) = &self.token {
            token_bytes = token.len();
            request = request.header("fulmar-state", token);
        }
        std::thread::sleep(uplink.takes(HEAD_BYTES + token_bytes + body.len()));
        let mut response = request.send(&body[..])?;
        let text = response.body_mut().read_to_string()?;
        let header = |name: &str| response.headers().get(name)?.to_str().ok();
        let token = header("fulmar-state").map(str::to_owned);
        let token_bytes = token.as_ref().map_or(0, String::len);
        std::thread::sleep(uplink.takes(HEAD_BYTES + token_bytes + text.len()));
        if response.status() != 200 {
            bail!("{}: {text}", client.name);
        }
        let invocation = header("fulmar-invocation").unwrap_or_default();
        let node = invocation.rsplitn(3, '-').nth(2).unwrap_or_default();
        let model = header("fulmar-execution-model").and_then(ExecutionModel::parse);
        let model = model.unwrap_or(match self.model {
            ExecutionModel::Auto => ExecutionModel::InFunction,
            fixed => fixed,
        });
        self.token = match model {
            ExecutionModel::InClient => token.or(self.token.take()),
            _ => None,
        };
        let answered = Answered {
            phase: report.phase,
            node: node.to_owned(),
            model,
            took: Duration::ZERO,
            is_late: false,
        };
        Ok((answered, text))
    }

    /// What an application asks for that knows what its user is about to do: a car that drives takes its little state
    /// along, and one that parks leaves it where it is.
    fn wanted(&self, phase: Phase) -> Option<ExecutionModel> {
        match (self.model, phase) {
            (ExecutionModel::Auto, Phase::Cruising) => Some(ExecutionModel::InClient),
            (ExecutionModel::Auto, _) => Some(ExecutionModel::InFunction),
            _ => None,
        }
    }
}
