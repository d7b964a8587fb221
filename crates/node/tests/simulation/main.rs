//! Whole nodes in a deterministic simulation: the code that runs in production, on a simulated network (`turmoil`), with
//! simulated disks and a simulated object store, in simulated time. A seed decides all that happens, and a seed that fails
//! does so each time:
//!
//! ```text
//! FULMAR_SIMULATION_SEED=17 FULMAR_SIMULATION_LOG=info cargo test -p fulmar-node --test simulation -- --ignored --nocapture one
//! ```
//!
//! Each simulation is a process of its own, since what a process has done before changes what chance there is later.

#![allow(clippy::unwrap_used)]

mod client;
mod cluster;
#[path = "../common/counter.rs"]
mod counter;
mod time;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client::SESSIONS;
use cluster::{Cluster, NODES, name};
use counter::{Answered, Choices, check};

/// Simulated times of trouble, in seconds.
const TROUBLE: [u64; 3] = [6, 12, 24];
/// Clients at once.
const CLIENTS: usize = 8;
/// One step of simulated time.
const TICK: Duration = Duration::from_millis(1);
const SEED: &str = "FULMAR_SIMULATION_SEED";
const ARTIFACTS: &str = "FULMAR_SIMULATION_ARTIFACTS";

/// What is to be put right again, and when.
enum Repair {
    Start(usize),
    Join(usize, usize),
    Release(usize, usize),
    Objects(usize),
    Wake(usize),
    /// Nothing to be put right: a session is to be moved.
    Move(usize, usize),
}

/// Which node is to be asked to move a session of which function, and where to.
type Moves = Rc<RefCell<VecDeque<(usize, &'static str, String, usize)>>>;

/// Makes trouble, and repairs it.
struct Trouble<'a> {
    cluster: &'a Cluster,
    choices: Choices,
    next: Duration,
    /// Longest pause between two troubles, in milliseconds.
    pause: usize,
    repairs: VecDeque<(Duration, Repair)>,
    is_down: [bool; NODES],
    moves: Moves,
}

impl Trouble<'_> {
    fn ms(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from + self.choices.below(to - from)) as u64)
    }

    /// A while, now and then for so long that others take over.
    fn away(&mut self) -> Duration {
        match self.choices.below(3) {
            0 => self.ms(5000, 9000),
            _ => self.ms(20, 1500),
        }
    }

    fn repair(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        let all = std::mem::take(&mut self.repairs);
        for (at, repair) in all {
            if at > now {
                self.repairs.push_back((at, repair));
                continue;
            }
            match repair {
                Repair::Start(node) => {
                    self.is_down[node] = false;
                    sim.bounce(name(node));
                }
                Repair::Join(one, other) => sim.repair(name(one), name(other)),
                Repair::Release(one, other) => sim.release(name(one), name(other)),
                Repair::Objects(node) => self.cluster.objects(node, true),
                Repair::Wake(node) => self.cluster.wake(sim, node),
                Repair::Move(asked, to) => self.relocate(asked, to),
            }
        }
    }

    /// Has some session moved to a node.
    fn relocate(&mut self, asked: usize, to: usize) {
        let (function, session) = [("counter", "s"), ("receiver", "r")][self.choices.below(2)];
        let session = format!("{session}{}", self.choices.below(SESSIONS));
        let mut moves = self.moves.borrow_mut();
        moves.push_back((asked, function, session, to));
    }

    fn make(&mut self, sim: &mut turmoil::Sim<'_>, now: Duration) {
        if now < self.next {
            return;
        }
        self.next = now + self.ms(20, self.pause);
        let node = self.choices.below(NODES);
        let other = (node + 1 + self.choices.below(NODES - 1)) % NODES;
        let until = now + self.away();
        let what = self.choices.below(10);
        tracing::info!(what, node, other, ?until, "trouble");
        match what {
            0 | 1 if !self.is_down[node] => {
                self.is_down[node] = true;
                let power = self.choices.below(2) == 0;
                self.cluster.kill(sim, node, power);
                self.repairs.push_back((until, Repair::Start(node)));
            }
            2 => {
                sim.partition(name(node), name(other));
                self.repairs.push_back((until, Repair::Join(node, other)));
            }
            3 => {
                sim.partition_oneway(name(node), name(other));
                self.repairs.push_back((until, Repair::Join(node, other)));
            }
            4 => {
                sim.hold(name(node), name(other));
                self.repairs
                    .push_back((until, Repair::Release(node, other)));
            }
            5 => {
                self.cluster.objects(node, false);
                self.repairs.push_back((until, Repair::Objects(node)));
            }
            6 | 7 => {
                self.cluster.sleep(sim, node, until);
                self.repairs.push_back((until, Repair::Wake(node)));
                // And as soon as it wakes it is to have sessions.
                for _ in 0..self.choices.below(8) {
                    let moment = until + self.ms(0, 300);
                    self.repairs.push_back((moment, Repair::Move(other, node)));
                }
            }
            _ => {
                let to = self.choices.below(NODES);
                self.relocate(node, to);
            }
        }
    }
}

/// Simulates what a seed decides; what the clients were answered.
fn simulate(seed: u64, artifacts: &Path) -> Vec<Answered> {
    time::begin(seed);
    let mut choices = Choices(seed);
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::new(folder.path(), artifacts, choices.below(2) == 0);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_micros(200))
        .max_message_latency(Duration::from_millis(20))
        .tcp_capacity(1 << 16)
        .simulation_duration(Duration::from_secs(600))
        .enable_random_order()
        .build();
    cluster.start(&mut sim);
    let models = ["in-function", "in-edge"];
    let models = [models[choices.below(2)], models[choices.below(2)]];
    let digest = std::fs::read_dir(artifacts).unwrap();
    let digest = digest.map(|file| file.unwrap().path());
    let digest = digest.filter(|file| file.extension().is_some_and(|end| end == "wasm"));
    let digest = digest.last().unwrap().file_stem().unwrap().to_owned();
    let digest = digest.into_string().unwrap();
    let (done, ready) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
    let moves = Moves::default();
    let answered = Rc::new(RefCell::new(Vec::new()));
    let clients = {
        let (done, ready) = (done.clone(), ready.clone());
        let (moves, answered) = (moves.clone(), answered.clone());
        async move {
            for (function, model) in [("counter", models[0]), ("receiver", models[1])] {
                let manifest = format!(
                    "execution_model = \"{model}\"\nread_only_methods = [\"GET\"]\n\
                     durability = \"replicated\"\non_partition = \"takeover-after 1s\"\n"
                );
                client::deploy(function, &digest, &manifest).await?;
            }
            ready.set(true);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|at| tokio::task::spawn_local(client::increment(at, seed, done.clone())))
                .collect();
            while !done.get() {
                let next = moves.borrow_mut().pop_front();
                if let Some((node, function, session, to)) = next {
                    tokio::task::spawn_local(async move {
                        client::relocate(node, function, &session, to).await
                    });
                }
                tokio::time::sleep(TICK).await;
            }
            let mut all = Vec::new();
            for client in clients {
                all.extend(client.await.unwrap()?);
            }
            for session in 0..SESSIONS {
                check(session, &all);
            }
            client::settle(&all).await?;
            answered.replace(all);
            Ok(())
        }
    };
    sim.client(cluster::CLIENTS, clients);
    let mut trouble = Trouble {
        cluster: &cluster,
        next: Duration::ZERO,
        pause: [300, 1000, 3000][choices.below(3)],
        choices,
        repairs: VecDeque::new(),
        is_down: [false; NODES],
        moves,
    };
    let lasts = Duration::from_secs(TROUBLE[trouble.choices.below(3)]);
    let mut since = None;
    loop {
        let now = sim.elapsed();
        if ready.get() && since.is_none() {
            since = Some(now);
        }
        trouble.repair(&mut sim, now);
        if let Some(since) = since {
            match now < since + lasts {
                true => trouble.make(&mut sim, now),
                false => done.set(true),
            }
        }
        match sim.step() {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => panic!("{models:?}, after {:?}: {error}", time::elapsed()),
        }
    }
    drop(sim);
    answered.take()
}

/// The component that all simulated functions run, compiled once.
fn artifacts(folder: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--target", "wasm32-wasip2"])
        .args(["-p", "guest-faults"])
        .current_dir(&root)
        .status();
    assert!(built.unwrap().success(), "building the component failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let component = target.join("wasm32-wasip2/release/guest_faults.wasm");
    cluster::compile(&std::fs::read(component).unwrap(), folder);
}

/// What a seed's simulation says of itself: a line that is the same each time.
fn told(answers: &[Answered]) -> String {
    let first = answers.iter().map(|answer| answer.asked).min().unwrap();
    let mut sum = 0_u64;
    for answer in answers {
        for part in [
            answer.session as u64,
            answer.value,
            answer.asked.duration_since(first).as_nanos() as u64,
            answer.answered.duration_since(first).as_nanos() as u64,
        ] {
            sum = (sum ^ part).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let looks = answers.iter().filter(|answer| answer.is_look).count();
    let increments = answers.len() - looks;
    format!("{increments} increments, {looks} looks, {sum:016x}")
}

/// Runs one seed in this process.
#[test]
#[ignore = "run by the others, in a process of its own"]
fn one() {
    let seed = std::env::var(SEED).map_or(1, |text| text.parse().unwrap());
    if let Ok(level) = std::env::var("FULMAR_SIMULATION_LOG") {
        tracing_subscriber::fmt()
            .with_env_filter(level)
            .with_ansi(false)
            .with_writer(std::io::stderr)
            .init();
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = match std::env::var_os(ARTIFACTS) {
        Some(path) => PathBuf::from(path),
        None => {
            artifacts(folder.path());
            folder.path().to_owned()
        }
    };
    // A thread on which nothing was left to chance before.
    let simulated = std::thread::spawn(move || told(&simulate(seed, &folder)));
    println!("\ntold: {}", simulated.join().unwrap());
}

/// Runs one seed in a process of its own: what it tells, or what went wrong.
fn run(seed: u64, artifacts: &Path) -> Result<String, String> {
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "one", "--nocapture"])
        .env(SEED, seed.to_string())
        .env(ARTIFACTS, artifacts)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&ran.stdout);
    let told = said.lines().find_map(|line| line.strip_prefix("told: "));
    match told.filter(|_| ran.status.success()) {
        Some(told) => Ok(told.to_owned()),
        None => Err(said + &text(&ran.stderr)),
    }
}

#[test]
fn whatever_a_seed_does_to_the_nodes_every_increment_counts_once() {
    let seeds = std::env::var("FULMAR_SIMULATION_SEEDS").unwrap_or("1-150".into());
    let (first, last) = seeds.split_once('-').unwrap();
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    artifacts(folder.path());
    let (next, failed) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let at_once = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > last {
                        return;
                    }
                    if let Err(said) = run(seed, folder.path()) {
                        eprintln!("{SEED}={seed} failed:\n{said}");
                        failed.lock().unwrap().push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{SEED} that failed: {failed:?}");
}

#[test]
fn a_seed_does_the_same_each_time() {
    let folder = tempfile::tempdir().unwrap();
    artifacts(folder.path());
    let first = run(7, folder.path()).unwrap();
    assert_eq!(first, run(7, folder.path()).unwrap());
}
