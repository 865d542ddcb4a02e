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

#[test]
fn the_least_that_a_room_must_hold_is_found() {
    let (mut found, mut lighter) = (0, 0);
    for devices in 0..=3 {
        for blocks in 1..=5 {
            for round in 0..6 {
                let seed = 90_000 + 1000 * devices as u64 + 100 * blocks as u64 + round;
                let (room, model, options) = random(&mut rng(seed), devices, blocks);
                let Ok(fastest) = plan(&room, &model, &options) else {
                    assert!(matches!(least_peak(&room, &model, &options), Err(PlanError::Refused(_))));
                    continue;
                };
                let peak = least_peak(&room, &model, &options).unwrap();
                let light = plan(&room.capped(peak), &model, &options).unwrap().prediction;
                assert!(light.peak_memory() <= peak && light.step >= fastest.prediction.step, "seed {seed}");
                assert_eq!(brute(&room.capped(peak - peak / 50), &model, &options), None, "seed {seed}");
                found += 1;
                lighter += u32::from(peak < fastest.prediction.peak_memory() * 9 / 10);
            }
        }
    }
    assert!(found > 80 && lighter > 20, "{found} found, {lighter} lighter than the fastest plan by a tenth");
}

#[test]
fn the_least_of_a_model_of_a_few_bytes_is_found_too() {
    for bytes in 0..4 {
        let none = Growth { linear: 0, quadratic: 0 };
        let mut model = model(2);
        for block in &mut model.blocks {
            (block.frozen, block.adapters, block.state) = ([bytes; 4], 0, 0);
            (block.kept, block.input, block.open, block.open_recompute) = (none, none, none, none);
        }
        model.ends = EndsProfile { frozen: [0; 4], trained: 0, open: none, logits: none, most_logits: 0 };
        (model.buffers, model.loading) = (none, 0);
        let least = least_peak(&ideal(2, 1.0, 1.0), &model, &Options::default()).unwrap();
        assert!((bytes..=bytes + 1).contains(&least), "{least} of {bytes}");
    }
}
