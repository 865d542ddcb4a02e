//! Devices that fall silent, hide, come late, miscount or do nothing: who is left goes on at once, and what was lost in
//! balance is made up for between two steps.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_protocol::coordinator::RunPhase;
use baton_protocol::stage::Failure;
use baton_protocol::{Generation, PeerId};
use baton_sim::{Act, JobName, Moment, Scenario, World, peer};
use std::ops::Range;
use std::time::Duration;

fn scenario(peers: u32, steps: u32) -> Scenario {
    let mut scenario = Scenario::new(peers, 4);
    scenario.settings.steps = steps;
    // Far devices are left out where that is faster.
    scenario.max_delay = 3_000;
    scenario.settings.evaluate_every = 0;
    scenario
}

fn world(peers: u32, steps: u32, seed: u64) -> World {
    World::new(scenario(peers, steps), seed).unwrap()
}

fn blocks(world: &World) -> Vec<(PeerId, Range<u16>)> {
    let view = world.coordinator.devices().into_iter();
    view.filter_map(|device| Some((device.peer, device.blocks?))).collect()
}

fn newest_plan(world: &World) -> Generation {
    let generations = (0..world.room.peers + 3).filter_map(|n| world.generation(peer(n)));
    generations.max().unwrap_or_default()
}

#[test]
fn a_device_that_falls_silent_is_replaced_within_two_seconds_and_the_run_goes_on_within_five() {
    for seed in 0..12 {
        let mut world = world(3, 400, seed);
        world.run_until(|world| world.committed.len() == 5).unwrap();
        let (plan, killed) = (newest_plan(&world), world.now);
        world.act(Act::Kill { peer: peer(1), silent: true });
        world.run_until(|world| newest_plan(world) > plan).unwrap();
        assert!(world.now - killed < Duration::from_secs(2), "detected after {:?}", world.now - killed);
        let done = world.committed.len();
        world.run_until(|world| world.committed.len() > done).unwrap();
        assert!(world.now - killed < Duration::from_secs(5), "went on after {:?}", world.now - killed);
        assert_eq!(world.left[0].0, "phone 3");
        world.settle().unwrap();
        world.assert_equals_reference();
    }
}

#[test]
fn a_late_joiner_is_put_to_work_between_two_steps() {
    for seed in 0..12 {
        let mut world = world(2, 300, seed);
        world.run_until(|world| world.committed.len() == 5).unwrap();
        let plan = newest_plan(&world);
        world.act(Act::Join);
        world.run_until(|world| blocks(world).len() == 3).unwrap();
        let order: Vec<PeerId> = blocks(&world).iter().map(|(id, _)| *id).collect();
        assert_eq!(order, [peer(0), peer(1), peer(2)], "nobody changes places");
        assert_eq!(newest_plan(&world).0.max(plan.0 + 1), plan.0 + 1, "one change is enough");
        world.settle().unwrap();
        world.assert_equals_reference();
    }
}

#[test]
fn a_spare_that_stands_by_takes_over_and_everybody_else_keeps_its_blocks() {
    for seed in 0..12 {
        let mut scenario = scenario(4, 300);
        scenario.toy.blocks = 3;
        let mut world = World::new(scenario, seed).unwrap();
        let stands_by = |world: &World| world.coordinator.devices().iter().any(|d| d.standby.is_some());
        world.run_until(|world| world.committed.len() >= 5 && stands_by(world)).unwrap();
        world.act(Act::Kill { peer: peer(1), silent: seed % 2 == 0 });
        world.run_until(|world| blocks(world).iter().any(|(id, _)| *id == peer(3))).unwrap();
        assert_eq!(blocks(&world), [(peer(0), 0..1), (peer(2), 2..3), (peer(3), 1..2)]);
        world.settle().unwrap();
        world.assert_equals_reference();
    }
}

#[test]
fn a_hidden_page_hands_its_stage_over_and_gets_one_again_when_it_is_looked_at() {
    for seed in 0..12 {
        let mut world = world(3, 2_000, seed);
        world.run_until(|world| world.committed.len() == 5).unwrap();
        world.act(Act::Hide(peer(0)));
        let hidden = world.now;
        world.run_until(|world| blocks(world).len() == 2).unwrap();
        assert!(world.now - hidden < Duration::from_secs(1));
        let done = world.committed.len();
        world.run_until(|world| world.committed.len() == done + 5).unwrap();
        world.act(Act::Show(peer(0)));
        world.run_until(|world| blocks(world).len() == 3).unwrap();
        assert!(world.now - hidden < Duration::from_secs(60));
        world.settle().unwrap();
        world.assert_equals_reference();
    }
}

#[test]
fn a_device_that_comes_and_goes_is_left_in_peace() {
    for seed in 0..2 {
        let mut world = world(3, 4_000, seed);
        world.run_until(|world| world.committed.len() == 5).unwrap();
        let plan = newest_plan(&world);
        for second in 0..120 {
            let at = world.now + Duration::from_secs(second);
            let act = if second % 2 == 0 { Act::Hide(peer(1)) } else { Act::Show(peer(1)) };
            world.plan(Moment::At(at), act);
        }
        world.settle().unwrap();
        world.assert_equals_reference();
        assert!(newest_plan(&world).0 - plan.0 < 20, "{:?} to {:?}", plan, newest_plan(&world));
    }
}

#[test]
fn a_device_whose_numbers_are_none_is_named_and_worked_around() {
    for seed in 0..12 {
        let mut world = world(3, 20, seed);
        world.run_until(|world| world.committed.len() == 5).unwrap();
        world.act(Act::FailPasses(peer(2), Failure::Diverged));
        world.settle().unwrap();
        world.assert_equals_reference();
        assert!(world.left.iter().any(|(name, reason)| name == "phone 4" && reason.contains("infinite")));
        assert!(world.endings[&peer(2)].contains("The numbers of this device"));
    }
}

#[test]
fn numbers_that_are_none_on_every_device_are_the_training_s_own() {
    for seed in 0..20 {
        let mut world = world(3, 20, seed);
        world.run_until(|world| world.committed.len() == 5).unwrap();
        for n in 0..3 {
            world.act(Act::FailPasses(peer(n), Failure::Diverged));
        }
        world.run_until(World::is_over).unwrap();
        assert!(
            matches!(world.coordinator.phase(), RunPhase::Failed(reason) if reason.contains("lower learning rate"))
        );
        assert_eq!(world.coordinator.devices().len(), 3, "nobody is to blame");
    }
}

#[test]
fn what_a_neighbour_cannot_use_is_held_against_who_sent_it() {
    for seed in 0..20 {
        let mut world = world(3, 20, seed);
        world.run_until(|world| world.committed.len() == 5).unwrap();
        // One that can read nothing at all accuses all others; it is not believed for ever.
        world.act(Act::FailPasses(peer(1), Failure::Input));
        world.settle().unwrap();
        world.assert_equals_reference();
        assert!(world.left.iter().any(|(name, _)| name == "phone 3"), "{:?}", world.left);
    }
}

#[test]
fn a_device_that_is_there_and_does_nothing_is_named_and_worked_around() {
    for seed in 0..12 {
        let mut world = world(3, 20, seed);
        let idle = peer(u32::try_from(seed % 3).unwrap());
        world.plan(Moment::Job { who: idle, job: JobName::Forward, nth: 10, done: true }, Act::Stall(idle));
        world.settle().unwrap();
        world.assert_equals_reference();
        let name = format!("phone {idle}");
        assert!(world.left.iter().any(|(device, why)| *device == name && why.contains("did not get on")));
    }
}

#[test]
fn a_slow_device_is_left_fewer_blocks_and_the_room_settles() {
    for seed in 0..8 {
        let mut scenario = scenario(3, 1_500);
        scenario.toy.blocks = 12;
        let mut world = World::new(scenario, seed).unwrap();
        // Known to be slow from the start in half of the rooms, slow all at once in the others.
        if seed % 2 == 1 {
            world.run_until(|world| world.committed.len() == 40).unwrap();
        }
        world.slow_down(peer(1), 6);
        let slow_from = world.committed.len();
        world.settle().unwrap();
        world.assert_equals_reference();
        let share =
            |id| blocks(&world).iter().find(|(owner, _)| *owner == id).map_or(0, |(_, own)| own.len());
        assert!(share(peer(1)) <= 2 && share(peer(0)).abs_diff(share(peer(2))) <= 4, "{:?}", blocks(&world));
        assert!(newest_plan(&world).0 <= 9, "it goes on moving: {:?}", newest_plan(&world));
        // As it became slow, and in the end.
        let (first, last) =
            (&world.committed[slow_from..][..4], &world.committed[world.committed.len() - 61..]);
        let time =
            |steps: &[(_, Duration)]| (steps[steps.len() - 1].1 - steps[0].1) / (steps.len() as u32 - 1);
        let share = if seed % 2 == 1 { 0.8 } else { 1.2 };
        assert!(time(last) < time(first).mul_f64(share), "{:?} and then {:?}", time(first), time(last));
    }
}

#[test]
fn a_device_that_computes_something_else_is_found_out_by_a_spot_check_and_no_other_is_blamed() {
    for seed in 0..12 {
        let mut world = world(3, 300, seed);
        world.run_until(|world| world.committed.len() == 20).unwrap();
        let checked = world.coordinator.devices().iter().filter(|device| device.checked.is_some()).count();
        assert!(checked > 0, "the first check is over");
        let liar = peer(seed as u32 % 3);
        world.act(Act::Lie(liar));
        world.run_until(|world| !world.left.is_empty()).unwrap();
        let (name, reason) = &world.left[0];
        assert_eq!((name, world.left.len()), (&format!("phone {liar}"), 1));
        assert!(
            reason.contains("computed one of its micro-batches again") && reason.contains("off by"),
            "{reason}"
        );
        assert!(reason.contains("since step"), "{reason}");
        world.settle().unwrap();
        assert!(world.endings[&liar].contains("came out different"));
        assert_eq!(world.left.len(), 1);
        assert_eq!(world.coordinator.phase(), RunPhase::Finished);
    }
}
