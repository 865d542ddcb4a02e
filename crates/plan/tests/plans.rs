//! What every plan and every refusal has to be.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy does not see that the helpers are of tests")]

mod common;
use baton_plan::*;
use common::*;
use rand::Rng;

fn chain(devices: u16, each: u16, micro_batches: u16) -> Partition {
    let stages = (0..devices).map(|index| StagePlan {
        devices: vec![DeviceIndex(index)],
        blocks: index * each..(index + 1) * each,
        recompute: false,
    });
    Partition {
        micro_batches,
        ahead: 0,
        storage: Storage::F32,
        boundary: BoundaryPrecision::F32,
        host: 0..0,
        host_recompute: false,
        stages: stages.collect(),
    }
}

#[test]
fn equal_stages_without_distance_leave_the_textbook_bubble() {
    for devices in 1..=8u16 {
        for micro_batches in [1, 2, 3, 4, 8, 16] {
            let (room, model) = (ideal(devices.into(), 0.03, 0.07), model(usize::from(devices) * 2));
            let options = Options { batch_size: 16, ..Options::default() };
            let options = Options {
                batch_size: options.batch_size / u32::from(micro_batches) * u32::from(micro_batches),
                ..options
            };
            let prediction = predict(&room, &model, &options, &chain(devices, 2, micro_batches)).unwrap();
            let (n, m) = (f64::from(devices), f64::from(micro_batches));
            let bubble = (n - 1.0) / (m + n - 1.0);
            assert!(
                (prediction.bubble - bubble).abs() < 1e-9,
                "{devices} stages, {micro_batches}: {prediction:?}"
            );
            let load = &prediction.loads[1];
            assert!((prediction.flush - (m + n - 1.0) * (load.forward + load.backward)).abs() < 1e-6);
            assert!((prediction.bound - prediction.step).abs() < 1e-6, "the bound is exact here");
        }
    }
}

#[test]
fn no_step_is_shorter_than_its_bound() {
    for seed in 0..300 {
        let mut rng = rng(seed);
        let (devices, blocks) = (rng.random_range(0..6), rng.random_range(1..12));
        let (room, model, mut options) = random(&mut rng, devices, blocks);
        options.max_replicas = 3;
        // Any partition at all.
        let mut cuts: Vec<u16> = (0..devices).map(|_| rng.random_range(0..=blocks as u16)).collect();
        if devices > 0 {
            cuts.push(blocks as u16);
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut free: Vec<u16> = (0..devices as u16).collect();
        let mut partition = chain(0, 0, rng.random_range(1..=options.batch_size as u16));
        let mut from = cuts.first().copied().unwrap_or(blocks as u16);
        partition.host = 0..from;
        for to in cuts.into_iter().skip(1) {
            let count = rng.random_range(1..=free.len().min(2));
            let devices =
                (0..count).map(|_| DeviceIndex(free.swap_remove(rng.random_range(0..free.len())))).collect();
            partition.stages.push(StagePlan { devices, blocks: from..to, recompute: rng.random_bool(0.3) });
            from = to;
            if free.is_empty() {
                partition.stages.last_mut().unwrap().blocks.end = blocks as u16;
                break;
            }
        }
        let prediction = predict(&room, &model, &options, &partition)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(prediction.bound <= prediction.step, "seed {seed}: {prediction:?}");
        assert!(prediction.flush <= prediction.step && (0.0..1.0).contains(&prediction.bubble));
        let rounds = f64::from(partition.micro_batches);
        assert!(prediction.loads.iter().all(|load| load.busy <= prediction.flush + 1e-6), "seed {seed}");
        // Who has a stage alone does every job of it.
        for (load, stage) in
            prediction.loads[1..].iter().zip(&partition.stages).take_while(|pair| pair.1.devices.len() == 1)
        {
            let most = rounds * (load.forward + load.backward);
            assert!(load.busy > 0.0 && load.busy <= most + 1e-6, "seed {seed}: {stage:?}");
        }
    }
}

#[test]
fn a_large_room_is_planned_the_same_every_time_and_never_worse_with_more_memory() {
    for seed in 0..6 {
        let (mut room, model, options) = random(&mut rng(seed), 12, 24);
        let Ok(first) = plan(&room, &model, &options) else { continue };
        assert_eq!(plan(&room, &model, &options).unwrap(), first);
        assert!(first.prediction.fits());
        room.host.device.memory = u64::MAX;
        room.devices.iter_mut().for_each(|peer| peer.device.memory = u64::MAX);
        let more = plan(&room, &model, &options).unwrap();
        assert!(more.prediction.step <= first.prediction.step * 1.02, "seed {seed}");
    }
}

#[test]
fn what_fits_is_not_quantised_and_what_does_not_is_as_little_as_needed() {
    let (mut room, model) = (ideal(2, 0.01, 0.02), model(8));
    let options = Options { storages: Storage::ALL.to_vec(), ..Options::default() };
    let storage = |room: &Room| plan(room, &model, &options).unwrap().partition.storage;
    assert_eq!(storage(&room), Storage::F32);
    let mut seen = vec![];
    for memory in (4..60).rev() {
        room.host.device.memory = memory * 1_000_000;
        room.devices.iter_mut().for_each(|peer| peer.device.memory = memory * 1_000_000);
        match plan(&room, &model, &options) {
            Ok(plan) => seen.push(plan.partition.storage),
            Err(PlanError::Refused(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(seen.is_sorted(), "{seen:?}");
    seen.dedup();
    assert_eq!(seen, Storage::ALL);
}

#[test]
fn a_smaller_boundary_is_taken_only_where_it_is_worth_it() {
    let (mut room, model) = (ideal(3, 0.01, 0.02), model(9));
    let options = Options {
        boundaries: vec![BoundaryPrecision::F32, BoundaryPrecision::F16],
        host_blocks: 0,
        ..Options::default()
    };
    assert_eq!(plan(&room, &model, &options).unwrap().partition.boundary, BoundaryPrecision::F32);
    for peer in &mut room.devices {
        peer.link = LinkProfile { up: 2e6, down: 2e6, round_trip: 0.01 };
    }
    assert_eq!(plan(&room, &model, &options).unwrap().partition.boundary, BoundaryPrecision::F16);
}

#[test]
fn every_remedy_of_a_refusal_is_one() {
    let mut kinds = [0; 5];
    for seed in 0..200 {
        let mut rng = rng(seed);
        let (devices, blocks) = (rng.random_range(0..4), rng.random_range(2..8));
        let (mut room, model, options) = random(&mut rng, devices, blocks);
        let share = rng.random_range(0.1..0.9);
        for device in room.devices.iter_mut().map(|peer| &mut peer.device).chain([&mut room.host.device]) {
            device.memory = (device.memory as f64 * share) as u64;
        }
        if seed % 4 == 0 {
            enough_for_one_sample(&mut room, &model, &options);
        }
        let Err(error) = plan(&room, &model, &options) else { continue };
        let words = error.to_string();
        let PlanError::Refused(refusal) = error else { panic!("seed {seed}: {words}") };
        assert!(!refusal.nearest.fits() && words.contains("would need"), "seed {seed}: {words}");
        for remedy in &refusal.remedies {
            let (mut room, mut model, mut options) = (room.clone(), model.clone(), options.clone());
            match *remedy {
                Remedy::AnotherDevice { memory } => {
                    let mut peer = room.devices.first().cloned().unwrap_or(PeerProfile {
                        device: room.host.device.clone(),
                        link: LinkProfile::IDEAL,
                    });
                    peer.device.memory = memory;
                    room.devices.push(peer);
                    kinds[0] += 1;
                }
                Remedy::SmallerStorage(storage) => {
                    options.storages.push(storage);
                    kinds[1] += 1;
                }
                Remedy::ShorterSamples { tokens } => {
                    assert!(tokens < model.tokens);
                    model.tokens = tokens;
                    kinds[2] += 1;
                }
                Remedy::MoreMicroBatches { micro_batches } => {
                    (options.micro_batches, options.recompute) =
                        (vec![micro_batches], Recompute::WhereNeeded);
                    kinds[3] += 1;
                }
                Remedy::SmallerBatch { batch_size } => {
                    (options.batch_size, options.recompute) = (batch_size, Recompute::WhereNeeded);
                    options.micro_batches = vec![];
                    kinds[4] += 1;
                }
            }
            let plan = plan(&room, &model, &options)
                .unwrap_or_else(|error| panic!("seed {seed}: {remedy:?}: {error}"));
            assert!(plan.prediction.fits());
        }
    }
    assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
}

/// Gives everybody the memory that the fastest plan for a batch of one sample takes, and no more.
fn enough_for_one_sample(room: &mut Room, model: &ModelProfile, options: &Options) {
    let devices = |room: &mut Room, memory: &dyn Fn(Node) -> u64| {
        room.host.device.memory = memory(Node::Host);
        for (peer, index) in room.devices.iter_mut().zip(0..) {
            peer.device.memory = memory(Node::Device(DeviceIndex(index)));
        }
    };
    devices(room, &|_| u64::MAX);
    let one =
        Options { batch_size: 1, micro_batches: vec![1], recompute: Recompute::Always, ..options.clone() };
    let loads = plan(room, model, &one).unwrap().prediction.loads;
    let memory = |node| loads.iter().find(|load| load.node == node).map_or(0, |load| load.memory.total());
    devices(room, &memory);
}

#[test]
fn partitions_that_are_none_and_profiles_that_cannot_be_are_refused_in_words() {
    let (room, model, options) = (ideal(2, 0.01, 0.02), model(4), Options::default());
    let refuse = |room: &Room, change: &dyn Fn(&mut Partition)| {
        let mut partition = chain(2, 2, 4);
        change(&mut partition);
        predict(room, &model, &options, &partition).unwrap_err().to_string()
    };
    assert!(predict(&room, &model, &options, &chain(2, 2, 4)).is_ok());
    assert!(refuse(&room, &|p| p.stages[1].blocks = 3..4).contains("from 2 on"));
    assert!(refuse(&room, &|p| p.stages[1].blocks = 2..3).contains("ends before block 3"));
    assert!(refuse(&room, &|p| p.stages[1].devices[0] = DeviceIndex(0)).contains("device 0"));
    assert!(refuse(&room, &|p| p.stages[1].devices[0] = DeviceIndex(u16::MAX)).contains("device 65535"));
    assert!(refuse(&room, &|p| p.stages[1].devices.clear()).contains("no device"));
    assert!(refuse(&room, &|p| p.micro_batches = 0).contains("0 micro-batches"));
    assert!(refuse(&room, &|p| p.micro_batches = 9).contains("9 micro-batches"));
    let mut bad = room.clone();
    bad.devices[1].link.up = f64::NAN;
    assert!(refuse(&bad, &|_| {}).contains("device 2"));
    bad.devices[1].link.up = 0.0;
    assert!(matches!(plan(&bad, &model, &options), Err(PlanError::Profile(_))));
    let none = Options { storages: vec![], ..Options::default() };
    assert!(matches!(plan(&room, &model, &none), Err(PlanError::Wrong(_))));
}

#[test]
fn more_devices_than_the_search_takes_are_planned_for_all_the_same() {
    let mut room = ideal(70, 0.02, 0.04);
    let model = model(24);
    // The fast ones are the last.
    for peer in &mut room.devices[66..] {
        peer.device = device(u64::MAX, 0.002, 0.004);
    }
    room.host.device.memory = 10_000_000;
    let plan = plan(&room, &model, &Options::default()).unwrap();
    let of_the_fast = plan
        .partition
        .stages
        .iter()
        .filter(|stage| stage.devices[0].0 >= 66)
        .map(|stage| stage.blocks.len())
        .sum::<usize>();
    assert!(of_the_fast >= 16, "{plan:?}");
    assert_eq!(predict(&room, &model, &Options::default(), &plan.partition).unwrap(), plan.prediction);
}

#[test]
fn plans_travel() {
    let (room, model, options) = random(&mut rng(7), 3, 6);
    let travel = |bytes: Vec<u8>| postcard::from_bytes::<(Room, ModelProfile, Options)>(&bytes).unwrap();
    let sent = (room, model, options);
    assert_eq!(travel(postcard::to_stdvec(&sent).unwrap()), sent);
}

#[test]
fn the_search_ends_whatever_may_share_a_stage_and_however_finely_the_batch_is_cut() {
    let (room, model, options) = random(&mut rng(3), 24, 8);
    let many = Options { max_replicas: u16::MAX, ..options.clone() };
    assert!(plan(&room, &model, &many).unwrap().prediction.fits());
    let fine = Options { batch_size: 4096, ..options };
    assert!(plan(&room, &model, &fine).unwrap().prediction.fits());
}

#[test]
fn a_plan_is_tuned_in_a_room_of_any_size_and_never_gets_slower_or_larger_than_fits() {
    for seed in 0..200 {
        let mut rng = rng(seed);
        let blocks = rng.random_range(3..12);
        let (mut room, model, options) = random(&mut rng, 3, blocks);
        let options = Options { micro_batches: Vec::new(), most_ahead: 4, ..options };
        let start = Partition { micro_batches: 1, ..thirds(blocks as u16, [0, 1, 2]) };
        let (as_it_is, before) = settle(&room, &model, &options, &start).unwrap();
        assert_eq!(before, predict(&room, &model, &options, &as_it_is).unwrap(), "seed {seed}");
        let (tuned, after) = tune(&room, &model, &options, &start).unwrap();
        assert_eq!(after, predict(&room, &model, &options, &tuned).unwrap(), "seed {seed}");
        assert!(after.fits() || !before.fits(), "seed {seed}");
        assert!(!before.fits() || after.step <= 1.02 * before.step, "seed {seed}: {after:?} {before:?}");
        // The same three among many others.
        let few = std::mem::take(&mut room.devices);
        room.wires.clear();
        let alone = tune(&Room { devices: few.clone(), ..room.clone() }, &model, &options, &start).unwrap();
        room.devices = vec![few[0].clone(); 90];
        for (place, device) in [7, 40, 81].into_iter().zip(few) {
            room.devices[place] = device;
        }
        let far = Partition { micro_batches: 1, ..thirds(blocks as u16, [7, 40, 81]) };
        let (tuned, prediction) = tune(&room, &model, &options, &far).unwrap();
        assert_eq!((tuned.micro_batches, tuned.ahead), (alone.0.micro_batches, alone.0.ahead), "seed {seed}");
        assert_eq!(tuned.stages[2].devices, [DeviceIndex(81)]);
        assert_eq!(
            (prediction.step, prediction.loads[3].node),
            (alone.1.step, Node::Device(DeviceIndex(81)))
        );
    }
}

/// Blocks for three devices.
fn thirds(blocks: u16, devices: [u16; 3]) -> Partition {
    let stages = devices.into_iter().zip(even_split(blocks, 3)).map(|(device, blocks)| StagePlan {
        devices: vec![DeviceIndex(device)],
        blocks,
        recompute: false,
    });
    Partition { stages: stages.collect(), ..chain(0, 0, 1) }
}
