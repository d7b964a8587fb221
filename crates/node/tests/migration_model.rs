//! The protocol by which a session moves, as a model whose every interleaving is looked at.
//!
//! Two nodes send a session to and fro; the directory decides. Messages arrive late, in any order, or never;
//! nodes crash at any moment and come back with what they had stored. The model's steps are those of
//! `migrate.rs`, `arrive.rs` and `homes.rs`, and what they rely on is checked in every state: at most one
//! node would commit, and whoever commits has all that was committed before.

use std::collections::{HashSet, VecDeque};

/// Bounds of the model: commits, attempts to move, messages on their way, crashes.
const COMMITS: u8 = 3;
const ATTEMPTS: u8 = 3;
const MESSAGES: usize = 3;
const CRASHES: u8 = 2;

/// What a node has stored of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Stored {
    Nothing,
    /// At home, under an epoch, with so many commits.
    Home {
        epoch: u8,
        commits: u8,
    },
    /// The same, and it may have gone (`HomeRecord::Leaving`, which names the epoch after this one).
    Leaving {
        epoch: u8,
        commits: u8,
    },
    /// A whole copy (`HomeRecord::Arriving`).
    Arriving {
        epoch: u8,
        attempt: u8,
        commits: u8,
    },
}

/// What a node is about to do; forgotten in a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Doing {
    Nothing,
    /// Waits until the other node has the copy.
    Staging {
        attempt: u8,
    },
    /// Waits for the directory.
    Relocating,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Message {
    Stage {
        to: usize,
        epoch: u8,
        attempt: u8,
        commits: u8,
    },
    Staged {
        to: usize,
        attempt: u8,
    },
    Relocate {
        from: usize,
        epoch: u8,
    },
    /// Answers one call, as of RPCs: it is not taken for the answer to another.
    Relocated {
        to: usize,
        epoch: u8,
        done: bool,
    },
    Settle {
        to: usize,
        epoch: u8,
        attempt: u8,
    },
    GiveUp {
        to: usize,
        attempt: u8,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    stored: [Stored; 2],
    doing: [Doing; 2],
    /// Home and epoch, as the directory's record says.
    directory: (usize, u8),
    /// Sorted: it is a set of messages, not a queue.
    messages: Vec<Message>,
    commits: u8,
    attempts: u8,
    crashes: u8,
}

impl State {
    fn first() -> Self {
        Self {
            stored: [
                Stored::Home {
                    epoch: 1,
                    commits: 0,
                },
                Stored::Nothing,
            ],
            doing: [Doing::Nothing; 2],
            directory: (0, 1),
            messages: Vec::new(),
            commits: 0,
            attempts: 0,
            crashes: 0,
        }
    }

    /// Sends a message, which may also be lost.
    fn send(mut self, message: Message, next: &mut Vec<Self>) {
        next.push(self.clone());
        if self.messages.len() < MESSAGES {
            self.messages.push(message);
            self.messages.sort_unstable();
            next.push(self);
        }
    }

    /// What the directory's record becomes when it is asked for another home; whether it did.
    fn relocate(&mut self, from: usize, epoch: u8, to: usize) -> bool {
        if self.directory == (from, epoch) {
            self.directory = (to, epoch + 1);
        }
        self.directory == (to, epoch + 1)
    }

    /// All that can happen next.
    fn next(&self) -> Vec<Self> {
        let mut next = Vec::new();
        for node in 0..2 {
            self.node_steps(node, &mut next);
        }
        for at in 0..self.messages.len() {
            let mut state = self.clone();
            let message = state.messages.remove(at);
            // Never delivered.
            next.push(state.clone());
            state.receive(message, &mut next);
        }
        next
    }

    fn node_steps(&self, node: usize, next: &mut Vec<Self>) {
        let other = 1 - node;
        let change = |stored: Stored, doing: Doing| {
            let mut state = self.clone();
            state.stored[node] = stored;
            state.doing[node] = doing;
            state
        };
        match (self.stored[node], self.doing[node]) {
            (Stored::Home { epoch, commits }, Doing::Nothing) => {
                if self.commits < COMMITS {
                    assert_eq!(
                        commits, self.commits,
                        "commits that this home does not have: {self:?}"
                    );
                    let commits = commits + 1;
                    let mut state = change(Stored::Home { epoch, commits }, Doing::Nothing);
                    state.commits += 1;
                    next.push(state);
                }
                if self.attempts < ATTEMPTS {
                    let attempt = self.attempts + 1;
                    let leaving = Stored::Leaving { epoch, commits };
                    let mut state = change(leaving, Doing::Staging { attempt });
                    state.attempts = attempt;
                    let epoch = epoch + 1;
                    state.send(
                        Message::Stage {
                            to: other,
                            epoch,
                            attempt,
                            commits,
                        },
                        next,
                    );
                }
            }
            // No answer in time: nobody was asked to make the other node its home, so that it stays.
            (Stored::Leaving { epoch, commits }, Doing::Staging { attempt }) => {
                let state = change(Stored::Home { epoch, commits }, Doing::Nothing);
                state.send(Message::GiveUp { to: other, attempt }, next);
            }
            // No answer in time: whoever wants the session next asks.
            (stored @ Stored::Leaving { .. }, Doing::Relocating) => {
                next.push(change(stored, Doing::Nothing));
            }
            // Somebody wants the session.
            (Stored::Leaving { epoch, commits }, Doing::Nothing) => {
                let mut state = self.clone();
                let stays = state.relocate(node, epoch, node);
                let epoch = epoch + 1;
                state.stored[node] = match stays {
                    true => Stored::Home { epoch, commits },
                    false => Stored::Nothing,
                };
                next.push(state);
            }
            (Stored::Arriving { epoch, commits, .. }, _) if self.directory == (node, epoch) => {
                next.push(change(Stored::Home { epoch, commits }, Doing::Nothing));
            }
            _ => {}
        }
        if self.crashes < CRASHES {
            let mut state = change(self.stored[node], Doing::Nothing);
            state.crashes += 1;
            next.push(state);
        }
    }

    fn receive(mut self, message: Message, next: &mut Vec<Self>) {
        match message {
            Message::Stage {
                to,
                epoch,
                attempt,
                commits,
            } => {
                match self.stored[to] {
                    Stored::Home { .. } | Stored::Leaving { .. } => return next.push(self),
                    // What was sent before what is here.
                    Stored::Arriving {
                        epoch: known,
                        attempt: newer,
                        ..
                    } if (epoch, attempt) <= (known, newer) => {
                        return next.push(self);
                    }
                    // An earlier attempt, which may have come to its end.
                    Stored::Arriving {
                        epoch: begun,
                        commits,
                        ..
                    } if self.directory.0 == to => {
                        assert_eq!(
                            self.directory.1, begun,
                            "home to what is not here: {self:?}"
                        );
                        self.stored[to] = Stored::Home {
                            epoch: begun,
                            commits,
                        };
                        return next.push(self);
                    }
                    Stored::Arriving { .. } | Stored::Nothing => {}
                }
                self.stored[to] = Stored::Arriving {
                    epoch,
                    attempt,
                    commits,
                };
                self.send(
                    Message::Staged {
                        to: 1 - to,
                        attempt,
                    },
                    next,
                );
            }
            Message::Staged { to, attempt } => match (self.stored[to], self.doing[to]) {
                (Stored::Leaving { epoch, .. }, Doing::Staging { attempt: begun })
                    if begun == attempt =>
                {
                    self.doing[to] = Doing::Relocating;
                    self.send(Message::Relocate { from: to, epoch }, next);
                }
                _ => next.push(self),
            },
            Message::Relocate { from, epoch } => {
                let done = self.relocate(from, epoch, 1 - from);
                self.send(
                    Message::Relocated {
                        to: from,
                        epoch,
                        done,
                    },
                    next,
                );
            }
            Message::Relocated {
                to,
                epoch: asked,
                done,
            } => match (self.stored[to], self.doing[to]) {
                (Stored::Leaving { epoch, .. }, Doing::Relocating) if epoch == asked => {
                    self.doing[to] = Doing::Nothing;
                    if !done {
                        return next.push(self);
                    }
                    self.stored[to] = Stored::Nothing;
                    let (attempt, epoch) = (self.attempts, epoch + 1);
                    self.send(
                        Message::Settle {
                            to: 1 - to,
                            epoch,
                            attempt,
                        },
                        next,
                    );
                }
                _ => next.push(self),
            },
            Message::Settle { to, epoch, attempt } => {
                if let Stored::Arriving {
                    epoch: begun,
                    attempt: known,
                    commits,
                } = self.stored[to]
                    && (begun, known) == (epoch, attempt)
                {
                    self.stored[to] = Stored::Home { epoch, commits };
                }
                next.push(self);
            }
            Message::GiveUp { to, attempt } => {
                if let Stored::Arriving { attempt: known, .. } = self.stored[to]
                    && known == attempt
                {
                    self.stored[to] = Stored::Nothing;
                }
                next.push(self);
            }
        }
    }

    fn check(&self) {
        let homes = self
            .stored
            .iter()
            .filter(|stored| matches!(stored, Stored::Home { .. }));
        assert!(homes.count() <= 1, "two homes: {self:?}");
        // Whoever the directory names has all of it, or will have when it asks.
        let (home, named) = self.directory;
        let kept = match self.stored[home] {
            Stored::Home { commits, .. } | Stored::Leaving { commits, .. } => Some(commits),
            Stored::Arriving { epoch, commits, .. } if epoch == named => Some(commits),
            _ => None,
        };
        assert_eq!(
            kept,
            Some(self.commits),
            "the directory's home lacks something: {self:?}"
        );
    }
}

#[test]
fn no_order_of_messages_and_crashes_makes_two_homes_or_loses_a_commit() {
    let mut seen = HashSet::from([State::first()]);
    let mut waiting = VecDeque::from([State::first()]);
    let mut moved = 0;
    while let Some(state) = waiting.pop_front() {
        state.check();
        moved += usize::from(matches!(state.stored[1], Stored::Home { .. }));
        for next in state.next() {
            if seen.insert(next.clone()) {
                waiting.push_back(next);
            }
        }
    }
    assert!(
        seen.len() > 10_000 && moved > 1000,
        "{} states, {moved} moved",
        seen.len()
    );
    eprintln!("{} states", seen.len());
}
