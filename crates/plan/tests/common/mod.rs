//! Random rooms and the search that leaves nothing out.
#![allow(dead_code, reason = "each test takes what it needs")]

use baton_plan::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

pub(crate) fn device(memory: u64, forward: f64, backward: f64) -> DeviceProfile {
    DeviceProfile {
        memory,
        forward: Curve::affine(forward * 0.3, forward * 0.7).unwrap(),
        backward: Curve::affine(backward * 0.3, backward * 0.7).unwrap(),
        update: forward * 0.1,
        slowness: 1.0,
    }
}

pub(crate) fn block(work: f64) -> BlockProfile {
    BlockProfile {
        work,
        frozen: [4_000_000, 2_000_000, 1_060_000, 530_000],
        adapters: 160_000,
        state: 120_000,
        kept: Growth { linear: 10_000, quadratic: 40 },
        input: Growth { linear: 1_000, quadratic: 0 },
        open: Growth { linear: 10_000, quadratic: 40 },
        open_recompute: Growth { linear: 20_000, quadratic: 80 },
    }
}

pub(crate) fn model(blocks: usize) -> ModelProfile {
    ModelProfile {
        blocks: vec![block(1.0); blocks],
        ends: EndsProfile {
            frozen: [3_000_000, 1_500_000, 800_000, 400_000],
            trained: 0,
            open: Growth { linear: 4_000, quadratic: 0 },
            logits: Growth { linear: 4_000, quadratic: 0 },
            most_logits: 500_000,
        },
        tokens: 64,
        hidden: 256,
        buffers: Growth { linear: 4_096, quadratic: 0 },
        loading: 0,
    }
}

pub(crate) fn zero() -> Curve {
    Curve::new([(1, 0.0)]).unwrap()
}

/// A room without distances whose devices are alike; the host computes nothing.
pub(crate) fn ideal(devices: usize, forward: f64, backward: f64) -> Room {
    let mut peer = PeerProfile { device: device(u64::MAX, forward, backward), link: LinkProfile::IDEAL };
    peer.device.update = 0.0;
    let mut host = peer.device.clone();
    host.memory = u64::MAX;
    Room {
        host: HostProfile { device: host, front: zero(), head: zero() },
        devices: vec![peer; devices],
        wires: BTreeMap::new(),
    }
}

/// Phones, a laptop at times, some of them slow, some small, on Wi-Fi of all qualities; a model whose blocks may differ.
pub(crate) fn random(rng: &mut ChaCha8Rng, devices: usize, blocks: usize) -> (Room, ModelProfile, Options) {
    let mut model = model(blocks);
    if rng.random_bool(0.3) {
        for block in &mut model.blocks {
            block.work = rng.random_range(0.5..2.0);
        }
    }
    // From plenty down to hardly enough, or not enough.
    let share = model.blocks.len() as f64 / (devices + 1) as f64;
    let enough = (share + 1.0) * 6e6 + 4e6;
    let draw = |rng: &mut ChaCha8Rng| {
        let forward = 0.02 * 8f64.powf(rng.random_range(-1.0..1.0));
        let memory = enough * 4f64.powf(rng.random_range(-0.7..1.0));
        device(memory as u64, forward, forward * rng.random_range(1.5..3.0))
    };
    let host = draw(rng);
    let mut peers: Vec<PeerProfile> = Vec::new();
    for _ in 0..devices {
        let link = LinkProfile {
            up: 1e6 * 30f64.powf(rng.random_range(0.0..1.0)),
            down: 1e6 * 30f64.powf(rng.random_range(0.0..1.0)),
            round_trip: rng.random_range(0.001..0.03),
        };
        let twin = rng.random_bool(0.3).then(|| peers.last().cloned()).flatten();
        peers.push(twin.unwrap_or_else(|| PeerProfile { device: draw(rng), link }));
    }
    let front = Curve::affine(0.001, 0.0005).unwrap();
    let head = host.forward.scaled(rng.random_range(0.2..3.0));
    let room =
        Room { host: HostProfile { device: host, front, head }, devices: peers, wires: BTreeMap::new() };
    let options = Options {
        batch_size: [4, 6, 8][rng.random_range(0..3)],
        recompute: [Recompute::Never, Recompute::WhereNeeded, Recompute::Always][rng.random_range(0..3)],
        commit_overlaps: rng.random_bool(0.5),
        ..Options::default()
    };
    (room, model, options)
}

/// The least seconds of a step of all plans that fit, by looking at each; `replicas` devices share a stage at most.
pub(crate) fn brute(room: &Room, model: &ModelProfile, options: &Options) -> Option<f64> {
    let mut best = None;
    let most = u16::try_from(options.batch_size).unwrap();
    let counts: Vec<u16> = match options.micro_batches.as_slice() {
        [] => (1..=most).filter(|count| most.is_multiple_of(*count)).collect(),
        counts => counts.to_vec(),
    };
    for micro_batches in counts {
        let blocks = u16::try_from(model.blocks.len()).unwrap();
        for host in 0..=blocks.min(options.host_blocks) {
            let mut partition = Partition {
                micro_batches,
                ahead: 0,
                storage: options.storages[0],
                boundary: options.boundaries[0],
                host: 0..host,
                host_recompute: false,
                stages: Vec::new(),
            };
            extend(room, model, options, &mut partition, host, &mut best);
        }
    }
    best
}

fn extend(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    partition: &mut Partition,
    from: u16,
    best: &mut Option<f64>,
) {
    let blocks = u16::try_from(model.blocks.len()).unwrap();
    if from == blocks {
        let time = time(room, model, options, partition).filter(|time| best.is_none_or(|best| *time < best));
        *best = time.or(*best);
        return;
    }
    let used: Vec<DeviceIndex> = partition.stages.iter().flat_map(|stage| stage.devices.clone()).collect();
    let free: Vec<DeviceIndex> = (0..room.devices.len())
        .map(|index| DeviceIndex(index as u16))
        .filter(|device| !used.contains(device))
        .collect();
    for mask in 1u32..1 << free.len() {
        if mask.count_ones() > options.max_replicas.into() {
            continue;
        }
        let devices: Vec<DeviceIndex> =
            (0..free.len()).filter(|bit| mask >> bit & 1 == 1).map(|bit| free[bit]).collect();
        for to in from + 1..=blocks {
            partition.stages.push(StagePlan { devices: devices.clone(), blocks: from..to, recompute: false });
            extend(room, model, options, partition, to, best);
            partition.stages.pop();
        }
    }
}

/// Seconds of a step with recomputation only where the memory demands it, if that fits.
fn time(room: &Room, model: &ModelProfile, options: &Options, partition: &Partition) -> Option<f64> {
    let mut partition = partition.clone();
    let always = options.recompute == Recompute::Always;
    partition.host_recompute = always && !partition.host.is_empty();
    partition.stages.iter_mut().for_each(|stage| stage.recompute = always);
    let prediction = predict(room, model, options, &partition).unwrap();
    if prediction.fits() {
        return Some(prediction.step);
    }
    if options.recompute == Recompute::Never {
        return None;
    }
    for load in prediction.loads.iter().filter(|load| load.memory.total() > load.usable) {
        match load.node {
            Node::Host => partition.host_recompute = true,
            Node::Device(device) => {
                partition
                    .stages
                    .iter_mut()
                    .filter(|stage| stage.devices.contains(&device))
                    .for_each(|stage| stage.recompute = true);
            }
        }
    }
    let prediction = predict(room, model, options, &partition).unwrap();
    prediction.fits().then_some(prediction.step)
}
