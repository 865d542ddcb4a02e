//! The planner against the search that leaves nothing out.
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy does not see that the helpers are of tests")]

mod common;
use baton_plan::*;
use common::*;

fn compare(seed: u64, devices: usize, blocks: usize, replicas: u16) -> (bool, bool) {
    let mut rng = rng(seed);
    let (room, model, mut options) = random(&mut rng, devices, blocks);
    options.max_replicas = replicas;
    let best = brute(&room, &model, &options);
    match plan(&room, &model, &options) {
        Ok(plan) => {
            let best = best.unwrap_or_else(|| panic!("seed {seed}: a plan where none fits: {plan:#?}"));
            assert_eq!(
                plan.prediction.step, best,
                "seed {seed}, {devices} devices, {blocks} blocks: {plan:#?}"
            );
            assert!(plan.proven && plan.prediction.fits());
            assert_eq!(predict(&room, &model, &options, &plan.partition).unwrap(), plan.prediction);
            let recomputes =
                plan.partition.host_recompute || plan.partition.stages.iter().any(|stage| stage.recompute);
            (true, recomputes && options.recompute == Recompute::WhereNeeded)
        }
        Err(PlanError::Refused(_)) => {
            assert_eq!(best, None, "seed {seed}: refused what fits");
            (false, false)
        }
        Err(error) => panic!("seed {seed}: {error}"),
    }
}

#[test]
fn every_small_room_is_planned_as_well_as_can_be() {
    let (mut planned, mut tight, mut refused) = (0, 0, 0);
    for devices in 0..=4 {
        for blocks in 1..=6 {
            for round in 0..10 {
                let seed = 1000 * devices as u64 + 100 * blocks as u64 + round;
                let (fits, recomputes) = compare(seed, devices, blocks, 1);
                planned += u32::from(fits);
                tight += u32::from(recomputes);
                refused += u32::from(!fits);
            }
        }
    }
    assert!(
        planned > 200 && tight > 10 && refused > 10,
        "{planned} planned, {tight} tight, {refused} refused"
    );
}

#[test]
fn devices_share_stages_as_well_as_can_be() {
    for devices in 1..=3 {
        for blocks in 1..=4 {
            for round in 0..20 {
                compare(50_000 + 1000 * devices as u64 + 100 * blocks as u64 + round, devices, blocks, 3);
            }
        }
    }
}

/// The least that the most loaded device holds of all partitions in which the devices stand as they are and each has a block.
fn least_peak(
    room: &Room,
    model: &ModelProfile,
    options: &Options,
    partition: &mut Partition,
) -> Option<u64> {
    let blocks = u16::try_from(model.blocks.len()).unwrap();
    let start = partition.stages.last().map_or(partition.host.end, |stage| stage.blocks.end);
    let index = partition.stages.len();
    if index == room.devices.len() {
        let said = predict(room, model, options, partition).ok().filter(Prediction::fits);
        return said.map(|said| said.peak_memory());
    }
    let mut best = None;
    for end in start + 1..=blocks {
        let devices = vec![DeviceIndex(u16::try_from(index).unwrap())];
        let recompute = options.recompute != Recompute::Never;
        partition.stages.push(StagePlan { devices, blocks: start..end, recompute });
        best = [best, least_peak(room, model, options, partition)].into_iter().flatten().min();
        partition.stages.pop();
    }
    best
}

#[test]
fn the_lightest_plan_is_as_light_as_can_be() {
    let (mut found, mut lighter) = (0, 0);
    for devices in 1..=4 {
        for blocks in 4..=8 {
            for round in 0..8 {
                let seed = 90_000 + 1000 * devices as u64 + 100 * blocks as u64 + round;
                let (mut room, model, mut options) = random(&mut rng(seed), devices, blocks);
                // Nobody lacks the memory for a block, and would be left out.
                for peer in &mut room.devices {
                    peer.device.memory = peer.device.memory.max(9_000_000);
                }
                options.host_blocks = if round % 2 == 0 { u16::MAX } else { 0 };
                let light = lightest(&room, &model, &options).unwrap();
                let recompute = options.recompute != Recompute::Never;
                let most = *[1, 2, 4, 8, 3, 6]
                    .iter()
                    .filter(|n| options.batch_size.is_multiple_of(**n))
                    .max()
                    .unwrap();
                let mut best = None;
                for host in 0..=blocks.min(options.host_blocks.into()) {
                    let mut partition = Partition {
                        micro_batches: u16::try_from(most).unwrap(),
                        ahead: 0,
                        storage: options.storages[0],
                        boundary: options.boundaries[0],
                        host: 0..u16::try_from(host).unwrap(),
                        host_recompute: recompute,
                        stages: Vec::new(),
                    };
                    let least = least_peak(&room, &model, &options, &mut partition);
                    best = [best, least].into_iter().flatten().min();
                }
                let Some(light) = light else {
                    assert_eq!(best, None, "seed {seed}");
                    continue;
                };
                let said = predict(&room, &model, &options, &light).unwrap();
                assert!(said.fits(), "seed {seed}: {said:?}");
                if light.stages.len() < devices {
                    assert_eq!(best, None, "seed {seed}: somebody is left out where all can take part");
                    continue;
                }
                assert_eq!(Some(said.peak_memory()), best, "seed {seed}: {said:?}");
                found += 1;
                let fast = plan(&room, &model, &options).ok().map(|plan| plan.prediction.peak_memory());
                lighter += u32::from(fast.is_some_and(|fast| said.peak_memory() < fast * 9 / 10));
            }
        }
    }
    assert!(found > 80 && lighter > 20, "{found} found, {lighter} lighter than the fastest by a tenth");
}

#[test]
fn the_lightest_plan_of_a_model_of_a_few_bytes_is_found_too() {
    for bytes in 0..4 {
        let none = Growth { linear: 0, quadratic: 0 };
        let mut model = model(2);
        for block in &mut model.blocks {
            (block.frozen, block.adapters, block.state) = ([bytes; 4], 0, 0);
            (block.kept, block.input, block.open, block.open_recompute) = (none, none, none, none);
        }
        model.ends = EndsProfile { frozen: [0; 4], trained: 0, open: none, logits: none, most_logits: 0 };
        (model.buffers, model.loading) = (none, 0);
        let (room, options) = (ideal(2, 1.0, 1.0), Options::default());
        let light = lightest(&room, &model, &options).unwrap().unwrap();
        assert_eq!(light.stages.iter().map(|stage| stage.blocks.len()).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(predict(&room, &model, &options, &light).unwrap().peak_memory(), bytes);
    }
}

#[test]
fn a_host_with_large_ends_does_not_make_the_lightest_plan_uneven() {
    let mut model = model(12);
    model.ends.frozen = [200_000_000; 4];
    let light = lightest(&ideal(3, 1.0, 1.0), &model, &Options::default()).unwrap().unwrap();
    assert_eq!(light.host, 0..0);
    let lens: Vec<usize> = light.stages.iter().map(|stage| stage.blocks.len()).collect();
    assert!(lens.iter().all(|len| (3..=5).contains(len)), "{lens:?}");
}

#[test]
fn who_lacks_the_memory_at_its_place_is_left_out_of_the_lightest_plan() {
    let (model, mut room) = (model(6), ideal(3, 1.0, 1.0));
    let options = Options { recompute: Recompute::Never, host_blocks: 0, ..Options::default() };
    let light = |room: &Room| lightest(room, &model, &options).unwrap();
    let whole = light(&room).unwrap();
    let said = predict(&room, &model, &options, &whole).unwrap();
    // Enough for a block with one sample in flight, and not for the four of the first place.
    let block = said.loads[1].memory.total() / whole.stages[0].blocks.len() as u64;
    room.devices[0].device.memory = block * 8 / 10;
    let left = light(&room).unwrap();
    assert_eq!(left.stages.iter().map(|stage| stage.devices[0].0).collect::<Vec<_>>(), [1, 2]);
    for peer in &mut room.devices {
        peer.device.memory = 1000;
    }
    assert_eq!(light(&room), None);
}
