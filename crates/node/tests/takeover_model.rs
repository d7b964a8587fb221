//! The protocol by which a node takes over from another, as a model whose every interleaving is looked at.
//!
//! A node has a session, and perhaps the shard of the directory with its record; it may lose its lease at any moment
//! without noticing, crash, and come back. Another node takes over while that goes on, with a view of the registry that
//! may be old. The model's steps are those of `custody.rs` and `takeover.rs`, and what users rely on is checked in
//! each: whoever acknowledges a write, or answers a read, has all that was acknowledged before.
//!
//! Each of the rules that make it so can be left out, and then the model finds what goes wrong.

use std::collections::{HashSet, VecDeque};

/// Logs of one data directory.
const STREAMS: usize = 3;

/// How much happens.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    commits: u8,
    leases: u8,
    crashes: u8,
}

const SHORT: Bounds = Bounds {
    commits: 2,
    leases: 2,
    crashes: 0,
};
const LONG: Bounds = Bounds {
    commits: 4,
    leases: 2,
    crashes: 1,
};

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// The taker looks for the lease again when it has ended the log.
    LookAgain,
    /// The taker asks the registry for the log before it takes the shard.
    LogBeforeShard,
    /// The taker asks the registry for the log when it knows who is home to what.
    LogAfterHomes,
    /// A node that comes back tells where its new log is before it becomes home to anything.
    TellFirst,
    /// A node that comes back writes again that it owns its shard.
    KeepShard,
    /// A node that comes back asks the directory about its session.
    Doubt,
}

/// What is known of the session: its home and epoch.
type Home = (Node, u8);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Node {
    Owner,
    Taker,
}

/// A log in the object store.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Log {
    exists: bool,
    commits: u8,
    /// The record of the directory, if the shard is the owner's.
    directory: Option<Home>,
    /// The epoch under which the session was at home.
    epoch: u8,
    fenced: bool,
}

/// The registry: where the owner's log is, who has the shard since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Registry {
    log: usize,
    shard: (Node, u8),
    live: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// It is not known whether the log is still its own.
    Starting,
    /// The new log has a base, and nobody knows of it.
    Ready,
    /// It is told where it is.
    Told,
    Open,
    Fenced,
}

/// The node that has the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Owner {
    phase: Phase,
    stream: usize,
    commits: u8,
    /// Under which epoch it has the session, if it has it.
    epoch: Option<u8>,
    doubted: bool,
    /// Its record of the directory.
    directory: Home,
    /// Since when it believes to have the shard, if it does.
    shard: Option<u8>,
    proven: bool,
}

/// How far the taker is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Taking {
    Nothing,
    /// Has looked at shard and log, ended that and read it.
    Read {
        since: u8,
        log: usize,
    },
    /// Has found that the lease is still gone.
    Gone {
        since: u8,
        log: usize,
    },
    /// Has asked for the log.
    Checked {
        since: u8,
        log: usize,
    },
    /// Has taken the shard, or found that it is another's.
    Shard {
        log: usize,
    },
    /// Knows under which epoch the session is there.
    Listed {
        log: usize,
        epoch: u8,
    },
    /// Has asked for the log once more.
    Certain {
        log: usize,
        epoch: u8,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    owner: Owner,
    taking: Taking,
    /// What the taker knows of the registry, from some moment before.
    view: Registry,
    /// The taker's record of the directory, and what it has of the session.
    directory: Option<Home>,
    taken: Option<u8>,
    registry: Registry,
    logs: [Log; STREAMS],
    /// The directory, where it is on a third node.
    elsewhere: Option<Home>,
    acknowledged: u8,
    leases: u8,
    crashes: u8,
    wrong: bool,
}

impl State {
    fn first(is_elsewhere: bool) -> Self {
        let registry = Registry {
            log: 0,
            shard: (Node::Owner, 1),
            live: true,
        };
        let home = (Node::Owner, 1);
        let mut logs = [Log::default(); STREAMS];
        logs[0] = Log {
            exists: true,
            epoch: 1,
            directory: Some(home),
            ..Log::default()
        };
        Self {
            owner: Owner {
                phase: Phase::Open,
                stream: 0,
                commits: 0,
                epoch: Some(1),
                doubted: false,
                directory: home,
                shard: Some(1),
                proven: true,
            },
            taking: Taking::Nothing,
            view: registry,
            directory: None,
            taken: None,
            registry,
            logs,
            elsewhere: is_elsewhere.then_some(home),
            acknowledged: 0,
            leases: 0,
            crashes: 0,
            wrong: false,
        }
    }

    /// Copies all that the owner has; false if its log was ended.
    fn ship(&mut self) -> bool {
        let log = &mut self.logs[self.owner.stream];
        if log.fenced {
            self.owner.phase = Phase::Fenced;
            return false;
        }
        log.exists = true;
        log.commits = self.owner.commits;
        log.epoch = self.owner.epoch.unwrap_or(log.epoch);
        log.directory = Some(self.owner.directory);
        true
    }

    /// The record of the directory, wherever it is kept now.
    fn record(&self) -> Option<Home> {
        self.elsewhere.or(match self.registry.shard.0 {
            Node::Owner => Some(self.owner.directory),
            Node::Taker => self.directory,
        })
    }

    fn acknowledge(&mut self, value: u8) {
        self.wrong |= value <= self.acknowledged;
        self.acknowledged = self.acknowledged.max(value);
    }

    /// The directory makes another node the home, whoever keeps the record; none: it cannot be asked.
    fn relocate(&mut self, asks: Node, from: Home, to: Node) -> Option<bool> {
        fn change(record: &mut Home, from: Home, to: Node) -> bool {
            let done = (to, from.1 + 1);
            if *record == from {
                *record = done;
            }
            *record == done
        }
        if let Some(record) = &mut self.elsewhere {
            return Some(change(record, from, to));
        }
        let at_owner = match asks {
            Node::Owner => self.owner.shard.is_some(),
            Node::Taker => self.view.shard.0 == Node::Owner,
        };
        if !at_owner {
            let record = self.directory.as_mut()?;
            return Some(change(record, from, to));
        }
        if self.owner.phase != Phase::Open || self.owner.shard.is_none() {
            return None;
        }
        let done = change(&mut self.owner.directory, from, to);
        self.ship().then_some(done)
    }

    fn next(self, without: Without, bounds: Bounds) -> Vec<Self> {
        let mut next = Vec::new();
        self.world(bounds, &mut next);
        self.owner_steps(without, bounds, &mut next);
        self.taker_steps(without, bounds, &mut next);
        next
    }

    fn world(self, bounds: Bounds, next: &mut Vec<Self>) {
        let mut push = |state: Self| next.push(state);
        if self.registry.live && self.leases < bounds.leases {
            let mut state = self;
            state.leases += 1;
            state.registry.live = false;
            push(state);
        }
        if self.crashes < bounds.crashes {
            let mut state = self;
            state.crashes += 1;
            state.owner.phase = Phase::Starting;
            state.owner.proven = false;
            push(state);
        }
        if self.view != self.registry {
            let mut state = self;
            state.view = state.registry;
            push(state);
        }
        let shard = self.registry.shard;
        let believed = (shard.0 == Node::Owner).then_some(shard.1);
        if self.owner.shard != believed {
            let mut state = self;
            state.owner.shard = believed;
            push(state);
        }
    }

    fn owner_steps(self, without: Without, bounds: Bounds, next: &mut Vec<Self>) {
        let owner = self.owner;
        if !self.registry.live {
            // It gets another lease, which it has proven nothing under.
            let mut state = self;
            state.registry.live = true;
            state.owner.proven = false;
            next.push(state);
        }
        match owner.phase {
            Phase::Starting => {
                let mut state = self;
                if state.ship() {
                    state.owner.phase = Phase::Ready;
                }
                next.push(state);
            }
            Phase::Fenced if owner.stream + 1 < STREAMS => {
                let mut state = self;
                state.owner.doubted = owner.epoch.is_some() && without != Without::Doubt;
                state.owner.stream += 1;
                state.owner.phase = Phase::Starting;
                state.owner.proven = false;
                next.push(state);
            }
            Phase::Fenced => {}
            Phase::Ready => {
                let mut state = self;
                state.registry.log = owner.stream;
                state.owner.phase = Phase::Told;
                next.push(state);
            }
            Phase::Told => {
                let mut state = self;
                if let (Some(since), true) = (owner.shard, without != Without::KeepShard) {
                    if state.registry.shard == (Node::Owner, since) && owner.stream > 0 {
                        state.registry.shard.1 += 1;
                    }
                    let (by, since) = state.registry.shard;
                    state.owner.shard = (by == Node::Owner).then_some(since);
                }
                state.owner.phase = Phase::Open;
                next.push(state);
            }
            Phase::Open => {}
        }
        let tells_first = without != Without::TellFirst;
        let may_settle = match owner.phase {
            Phase::Open => true,
            Phase::Ready | Phase::Told | Phase::Starting => !tells_first,
            Phase::Fenced => false,
        };
        if let (Some(epoch), true, true) = (owner.epoch, owner.doubted, may_settle) {
            let mut state = self;
            match state.relocate(Node::Owner, (Node::Owner, epoch), Node::Owner) {
                Some(true) => {
                    state.owner.epoch = Some(epoch + 1);
                    state.owner.doubted = false;
                }
                Some(false) => {
                    state.owner.epoch = None;
                    state.owner.doubted = false;
                }
                // Its answer is lost, or there is none.
                None => {}
            }
            next.push(state);
        }
        if owner.phase != Phase::Open {
            return;
        }
        if self.registry.live && !owner.proven {
            let mut state = self;
            state.owner.proven = state.ship();
            next.push(state);
        }
        if owner.epoch.is_some() && !owner.doubted {
            // A write, acknowledged when it is copied.
            if owner.commits < bounds.commits {
                let mut state = self;
                state.owner.commits += 1;
                next.push(state);
                if state.ship() {
                    state.acknowledge(state.owner.commits);
                    let home = state.owner.epoch.map(|epoch| (Node::Owner, epoch));
                    state.wrong |= state.record() != home;
                }
                next.push(state);
            }
            // A read: of what is copied, under a lease that was proven, or with a proof of its own.
            let log = self.logs[owner.stream];
            let is_sure = self.registry.live && owner.proven;
            if owner.commits == log.commits && (is_sure || !log.fenced) {
                let mut state = self;
                state.wrong |= owner.commits < state.acknowledged;
                next.push(state);
            }
        }
    }

    fn taker_steps(self, without: Without, bounds: Bounds, next: &mut Vec<Self>) {
        let mut state = self;
        match self.taking {
            Taking::Nothing => {
                if self.view.live {
                    return;
                }
                let log = self.view.log;
                state.logs[log].fenced = true;
                let (by, since) = self.view.shard;
                let since = if by == Node::Owner { since } else { 0 };
                state.taking = Taking::Read { since, log };
            }
            Taking::Read { since, log } => {
                let is_back = self.registry.live && without != Without::LookAgain;
                state.taking = match is_back {
                    true => Taking::Nothing,
                    false => Taking::Gone { since, log },
                };
            }
            Taking::Gone { since, log } => {
                let is_other = self.registry.log != log && without != Without::LogBeforeShard;
                state.taking = match is_other {
                    true => Taking::Nothing,
                    false => Taking::Checked { since, log },
                };
            }
            Taking::Checked { since, log } => {
                state.taking = Taking::Shard { log };
                if self.elsewhere.is_none() && since > 0 {
                    let is_as_it_was = self.registry.shard == (Node::Owner, since);
                    if is_as_it_was {
                        state.registry.shard = (Node::Taker, since + 1);
                        state.directory = self.logs[log].directory;
                    }
                    // Either way it knows who has it now, ahead of whatever else has changed.
                    state.view.shard = state.registry.shard;
                }
            }
            Taking::Shard { log } => {
                let record = match self.elsewhere {
                    Some(record) => Some(record),
                    None if self.registry.shard.0 == Node::Taker => self.directory,
                    None => None,
                };
                state.taking = match record {
                    Some((Node::Owner, epoch)) => Taking::Listed { log, epoch },
                    _ => Taking::Nothing,
                };
            }
            Taking::Listed { log, epoch } => {
                let is_other = self.registry.log != log && without != Without::LogAfterHomes;
                state.taking = match is_other {
                    true => Taking::Nothing,
                    false => Taking::Certain { log, epoch },
                };
            }
            Taking::Certain { log, epoch } => {
                state.taking = Taking::Nothing;
                let relocated = state.relocate(Node::Taker, (Node::Owner, epoch), Node::Taker);
                if relocated == Some(true) {
                    state.taken = Some(self.logs[log].commits);
                }
            }
        }
        next.push(state);
        if let (Some(commits), true) = (self.taken, self.taken < Some(bounds.commits)) {
            let mut state = self;
            state.taken = Some(commits + 1);
            state.acknowledge(commits + 1);
            next.push(state);
        }
    }
}

/// How many states there are, and whether something is wrong in one of them.
fn explore(is_elsewhere: bool, without: Without, bounds: Bounds) -> (usize, bool) {
    let first = State::first(is_elsewhere);
    let mut seen = HashSet::from([first]);
    let mut waiting = VecDeque::from([first]);
    while let Some(state) = waiting.pop_front() {
        if state.wrong {
            return (seen.len(), true);
        }
        for next in state.next(without, bounds) {
            if seen.insert(next) {
                waiting.push_back(next);
            }
        }
    }
    (seen.len(), false)
}

fn nothing_is_wrong(bounds: Bounds) {
    for is_elsewhere in [false, true] {
        let (states, wrong) = explore(is_elsewhere, Without::Nothing, bounds);
        eprintln!("{states} states");
        assert!(!wrong);
        assert!(states > 10_000, "{states}");
    }
}

#[test]
fn whoever_acknowledges_has_all_that_was_acknowledged() {
    nothing_is_wrong(SHORT);
}

#[test]
#[ignore = "long: millions of states; cargo xtask long"]
fn whoever_acknowledges_has_all_that_was_acknowledged_also_after_crashes() {
    nothing_is_wrong(LONG);
}

#[test]
fn no_rule_can_be_left_out() {
    for without in [
        Without::LookAgain,
        Without::LogBeforeShard,
        Without::LogAfterHomes,
        Without::TellFirst,
        Without::KeepShard,
        Without::Doubt,
    ] {
        let wrong = [false, true].map(|is_elsewhere| explore(is_elsewhere, without, SHORT).1);
        assert!(wrong.contains(&true), "{without:?}");
    }
}
