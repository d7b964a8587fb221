//! Who could run what, and what a replication of it takes.
//!
//! A replication keeps each job of the pool with the probability that gives the wanted number, and
//! assigns the kept ones in random order. Latency is taken with everything assigned, as if all jobs
//! ran at once; there is no other contention.

use fulmar_policy::assignment::{self, Paths, Processor, Step};

use super::{Allocation, Model, Settings};
use crate::Error;
use crate::random::Random;
use crate::topology::{Route, Topology};
use crate::trace::Job;

const CPU: u8 = 0;
const GPU: u8 = 1;

/// What stays the same over all replications.
pub(super) struct World<'a> {
    settings: &'a Settings,
    jobs: &'a [Job],
    processors: Vec<Processor>,
    /// Of each job: its client, and the kind of processor of each task.
    drawn: Vec<(usize, Vec<u8>)>,
    clients: Vec<Client>,
}

/// The routes of one client.
struct Client {
    up: Vec<f64>,
    down: Vec<f64>,
    hops: Vec<(u32, u32)>,
    /// To the central node and back.
    centre: (Route, Route),
}

/// What one job took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outcome {
    pub(super) length: u32,
    pub(super) processing_seconds: f64,
    /// By execution model, in the order of [`Model::ALL`].
    pub(super) network_seconds: [f64; 4],
    pub(super) traffic_bytes: [f64; 4],
}

impl<'a> World<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        topology: &Topology,
        jobs: &'a [Job],
        random: &mut Random,
    ) -> Result<Self, Error> {
        if let Some(count) = settings
            .jobs
            .iter()
            .find(|count| **count as usize > jobs.len())
        {
            return Err(Error::invalid(format!(
                "jobs is {count}, but there are only {} to draw from",
                jobs.len()
            )));
        }
        let nodes = topology.nodes();
        let is_gpu = |model: &String| settings.gpu_models.contains(model);
        let processors: Vec<Processor> = nodes
            .iter()
            .map(|node| Processor {
                speed: node.speed,
                affinity: if is_gpu(&node.model) { GPU } else { CPU },
                steps: 0,
                ops: 0.0,
            })
            .collect();
        let at: Vec<usize> = (0..nodes.len())
            .filter(|at| settings.client_models.contains(&nodes[*at].model))
            .collect();
        if at.is_empty() {
            return Err(Error::invalid(format!(
                "client_models is {:?}, but no machine of the topology is of such a model",
                settings.client_models
            )));
        }
        let centre = topology.centre();
        let clients = at
            .iter()
            .map(|client| Client {
                up: (0..nodes.len())
                    .map(|node| topology.route(*client, node).seconds_per_byte)
                    .collect(),
                down: (0..nodes.len())
                    .map(|node| topology.route(node, *client).seconds_per_byte)
                    .collect(),
                hops: (0..nodes.len())
                    .map(|node| {
                        let there = topology.route(*client, node).hops;
                        (there, topology.route(node, *client).hops)
                    })
                    .collect(),
                centre: (
                    topology.route(*client, centre),
                    topology.route(centre, *client),
                ),
            })
            .collect();
        // Kinds of functions are shared out by speed, those for CPUs first.
        let speed = |kind: u8| -> f64 {
            let of_kind = processors.iter().filter(|node| node.affinity == kind);
            of_kind.map(|node| node.speed).sum()
        };
        let share = speed(CPU) / (speed(CPU) + speed(GPU));
        let for_cpu = (f64::from(settings.functions) * share).round() as usize;
        let for_gpu = settings.functions as usize - for_cpu;
        // A kind that rounds to nothing gets nothing, also if a single function is all there is.
        let drawn = jobs
            .iter()
            .map(|job| {
                let client = random.below(at.len());
                let kinds = job.tasks.iter().map(|_| {
                    let function = random.below(for_cpu + for_gpu);
                    if function < for_cpu { CPU } else { GPU }
                });
                (client, kinds.collect())
            })
            .collect();
        Ok(Self {
            settings,
            jobs,
            processors,
            drawn,
            clients,
        })
    }

    /// Runs about `count` jobs; the random numbers decide which and in which order.
    pub(super) fn replicate(
        &self,
        count: u32,
        allocation: Allocation,
        model: Model,
        random: &mut Random,
    ) -> Vec<Outcome> {
        let kept = f64::from(count) / self.jobs.len() as f64;
        let mut order: Vec<usize> = (0..self.jobs.len())
            .filter(|_| random.chance(kept))
            .collect();
        random.shuffle(&mut order);
        let mut processors = self.processors.clone();
        let assigned: Vec<Vec<usize>> = order
            .iter()
            .map(|job| self.assign(*job, allocation, model, &mut processors))
            .collect();
        order
            .iter()
            .zip(&assigned)
            .map(|(job, nodes)| self.outcome(*job, nodes, &processors))
            .collect()
    }

    fn assign(
        &self,
        job: usize,
        allocation: Allocation,
        model: Model,
        processors: &mut [Processor],
    ) -> Vec<usize> {
        let (client, kinds) = &self.drawn[job];
        let client = &self.clients[*client];
        let paths = Paths {
            up: &client.up,
            down: &client.down,
        };
        let job = &self.jobs[job];
        // The paper's policy counts all states of the job with every step; ours those that move.
        let moves = |task: usize| match (allocation, model) {
            (Allocation::Load | Allocation::LoadNet, _) => job.state_bytes(),
            (Allocation::LookAhead, Model::InClient) => {
                let states = &job.tasks[task].states;
                states.iter().map(|state| job.states[*state]).sum()
            }
            (Allocation::LookAhead, _) => 0.0,
        };
        let step = |task: usize| {
            let state = moves(task);
            Step {
                ops: job.tasks[task].ops,
                affinity: kinds[task],
                up_bytes: job.tasks[task].argument_bytes + state,
                down_bytes: job.result_bytes(task) + state,
            }
        };
        let steps = (0..job.tasks.len()).map(step);
        // A kind of function is only drawn if there are processors of its kind.
        if allocation == Allocation::LookAhead {
            let steps: Vec<Step> = steps.collect();
            return assignment::look_ahead(&steps, processors, &paths).unwrap_or_default();
        }
        steps
            .filter_map(|step| {
                let at = match allocation {
                    Allocation::Load => assignment::load(&step, processors),
                    _ => assignment::load_net(&step, processors, &paths),
                }?;
                assignment::take(&step, &mut processors[at]);
                Some(at)
            })
            .collect()
    }

    fn outcome(&self, job: usize, nodes: &[usize], processors: &[Processor]) -> Outcome {
        let client = &self.clients[self.drawn[job].0];
        let job = &self.jobs[job];
        let mut outcome = Outcome {
            length: job.tasks.len() as u32,
            processing_seconds: 0.0,
            network_seconds: [0.0; 4],
            traffic_bytes: [0.0; 4],
        };
        let cloud_seconds_per_byte = 8.0 / (self.settings.cloud_mbps * 1e6);
        for (at, (task, node)) in job.tasks.iter().zip(nodes).enumerate() {
            let processor = &processors[*node];
            outcome.processing_seconds += task.ops * f64::from(processor.steps) / processor.speed;
            let (up, down) = (client.up[*node], client.down[*node]);
            let (up_hops, down_hops) = client.hops[*node];
            let (argument, result) = (task.argument_bytes, job.result_bytes(at));
            let state: f64 = task.states.iter().map(|state| job.states[*state]).sum();
            let seconds = argument * up + result * down;
            let traffic = argument * f64::from(up_hops) + result * f64::from(down_hops);
            for (model, (total, bytes)) in Model::ALL.iter().zip(
                outcome
                    .network_seconds
                    .iter_mut()
                    .zip(&mut outcome.traffic_bytes),
            ) {
                let (more_seconds, more_bytes) = match model {
                    Model::InFunction => (0.0, 0.0),
                    Model::InClient => {
                        (state * (up + down), state * f64::from(up_hops + down_hops))
                    }
                    Model::InEdge => {
                        let (there, back) = client.centre;
                        (
                            state * (there.seconds_per_byte + back.seconds_per_byte),
                            state * f64::from(there.hops + back.hops),
                        )
                    }
                    Model::External => {
                        // One read and one write of all that the step needs.
                        let accesses = if task.states.is_empty() { 0.0 } else { 2.0 };
                        (
                            accesses * self.settings.cloud_seconds
                                + 2.0 * state * cloud_seconds_per_byte,
                            2.0 * state,
                        )
                    }
                };
                *total += seconds + more_seconds;
                *bytes += traffic + more_bytes;
            }
        }
        outcome
    }
}
