//! Shows what happens: drawn on a terminal, as lines anywhere else.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};

use super::board::{Board, Snapshot};

/// Pause between two lines about how it is going.
const LINE: Duration = Duration::from_secs(2);

/// Where it is shown.
pub(super) enum Screen {
    /// Nowhere.
    Dark,
    /// Lines on standard error.
    Lines { next: Instant },
    /// A whole terminal, given back when dropped.
    Terminal(Box<DefaultTerminal>),
}

impl Screen {
    pub(super) fn open(plain: bool) -> anyhow::Result<Self> {
        if plain || !std::io::stdout().is_terminal() || !stderr().is_terminal() {
            return Ok(Self::Lines {
                next: Instant::now() + LINE,
            });
        }
        Ok(Self::Terminal(Box::new(ratatui::try_init()?)))
    }

    /// Shows it; true if whoever looks has seen enough.
    pub(super) fn show(&mut self, board: &Board) -> anyhow::Result<bool> {
        match self {
            Self::Dark => Ok(false),
            Self::Lines { next } => {
                for text in board.news() {
                    eprintln!("{text}");
                }
                if Instant::now() >= *next {
                    *next = Instant::now() + LINE;
                    eprintln!("{}", line(&board.snapshot()));
                }
                Ok(false)
            }
            Self::Terminal(terminal) => {
                let snapshot = board.snapshot();
                terminal.draw(|frame| draw(frame, board, &snapshot))?;
                let mut is_enough = false;
                while event::poll(Duration::ZERO)? {
                    if let Event::Key(key) = event::read()? {
                        let interrupts = key.modifiers.contains(KeyModifiers::CONTROL)
                            && key.code == KeyCode::Char('c');
                        is_enough |= interrupts || key.code == KeyCode::Char('q');
                    }
                }
                Ok(is_enough)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        if let Self::Terminal(_) = self {
            ratatui::restore();
        }
    }
}

fn line(snapshot: &Snapshot) -> String {
    let clients = snapshot.clients.iter().map(|(name, served)| {
        format!(
            "{name} {} at {} {:.1} ms",
            served.model,
            served.node,
            served.mean_ms()
        )
    });
    let clients: Vec<String> = clients.collect();
    format!(
        "{:5.1} s  {}; {} kB to the cloud",
        snapshot.seconds,
        clients.join(", "),
        snapshot.cloud_bytes / 1000
    )
}

fn draw(frame: &mut ratatui::Frame<'_>, board: &Board, snapshot: &Snapshot) {
    let clients = snapshot.clients.len() as u16;
    let [head, table, events, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(clients + 3),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let title = format!(
        "Fulmar: a car and a factory, with execution_model = \"{}\"   {:.0} s   {} kB to the cloud",
        board.model,
        snapshot.seconds,
        snapshot.cloud_bytes / 1000
    );
    frame.render_widget(Paragraph::new(Line::styled(title, bold)), head);
    let rows = snapshot.clients.iter().map(|(name, served)| {
        let style = match served.late * 20 > served.requests {
            true => Style::new().fg(Color::Yellow),
            false => Style::new().fg(Color::Green),
        };
        Row::new([
            name.clone(),
            served.phase.to_owned(),
            served.node.clone(),
            served.model.clone(),
            format!("{:.1}", served.mean_ms()),
            served.requests.to_string(),
            served.late.to_string(),
        ])
        .style(style)
    });
    let widths = [10, 10, 10, 12, 8, 9, 10].map(Constraint::Length);
    let names = [
        "CLIENT",
        "PHASE",
        "RUNS AT",
        "STATE",
        "MS",
        "REQUESTS",
        "SLO MISSES",
    ];
    let clients = Table::new(rows, widths)
        .header(Row::new(names).style(bold))
        .block(Block::bordered());
    frame.render_widget(clients, table);
    let room = usize::from(events.height.saturating_sub(2));
    let skipped = snapshot.events.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = snapshot
        .events
        .iter()
        .skip(skipped)
        .map(|text| Line::raw(text.as_str()))
        .collect();
    let happened = Paragraph::new(lines).block(Block::bordered().title("what happens"));
    frame.render_widget(happened, events);
    frame.render_widget(Paragraph::new("q ends it"), foot);
}
