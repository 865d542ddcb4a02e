//! Whole rings of machines in memory: they train as one process would, whatever happens to their devices.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use baton_protocol::codec::Precision;
use baton_protocol::coordinator::RunPhase;
use baton_protocol::message::Message;
use baton_protocol::{PeerId, Step};
use baton_sim::{Act, HOST, JobName, Moment, Pace, Scenario, ToyModel, Violation, World, peer};
use rand::{Rng, seq::IndexedRandom};
use std::time::Duration;

/// Runs a test for many seeds, or for the one in `BATON_SEED`; a seed that fails is printed.
fn for_seeds(seeds: std::ops::Range<u64>, test: impl Fn(u64)) {
    struct Name(u64);
    impl Drop for Name {
        fn drop(&mut self) {
            if std::thread::panicking() {
                eprintln!("failed with BATON_SEED={}", self.0);
            }
        }
    }
    let run = |seed| {
        let name = Name(seed);
        test(seed);
        drop(name);
    };
    match std::env::var("BATON_SEED") {
        Ok(seed) => run(seed.parse().unwrap()),
        Err(_) => seeds.for_each(run),
    }
}

#[test]
fn every_number_of_stages_and_micro_batches_trains_like_one_process() {
    for_seeds(0..3, |seed| {
        for peers in 0..=4 {
            for micro_batches in [1, 2, 4, 8] {
                let mut world = World::new(Scenario::new(peers, micro_batches), seed).unwrap();
                world.settle().unwrap();
                world.assert_equals_reference();
            }
        }
    });
}

#[test]
fn more_devices_than_blocks_leave_some_without_a_stage() {
    let mut scenario = Scenario::new(5, 4);
    scenario.toy.blocks = 3;
    let mut world = World::new(scenario, 0).unwrap();
    world.settle().unwrap();
    world.assert_equals_reference();
    let employed = world.coordinator.devices().into_iter().filter(|device| device.blocks.is_some());
    assert_eq!(employed.count(), 3);
}

#[test]
fn boundaries_of_many_frames_and_more_than_a_window_arrive() {
    let mut scenario = Scenario::new(2, 2);
    scenario.toy.width = 150_000;
    scenario.toy.blocks = 2;
    scenario.settings.steps = 2;
    let mut world = World::new(scenario, 0).unwrap();
    world.settle().unwrap();
    world.assert_equals_reference();
}

#[test]
fn halved_boundaries_train_almost_alike() {
    let mut scenario = Scenario::new(3, 4);
    scenario.toy.precision = Precision::F16;
    let mut world = World::new(scenario, 0).unwrap();
    world.settle().unwrap();
    for ((report, _), want) in world.committed.iter().zip(&world.model.reference.losses) {
        assert!((report.loss - want).abs() < 1e-3 * want, "{} {want}", report.loss);
    }
    assert_eq!(world.committed.len(), world.model.reference.losses.len());
}

#[test]
fn no_time_is_idle_beyond_the_bubble_of_1f1b() {
    let time = Duration::from_millis(10);
    for stages in 1..=5_u32 {
        for micro_batches in [1, 2, 4, 8] {
            let mut scenario = Scenario::new(stages, micro_batches);
            (scenario.pace, scenario.max_delay) = (Pace::Equal(time), 0);
            let mut world = World::new(scenario, 0).unwrap();
            world.settle().unwrap();
            world.assert_equals_reference();
            // A step is M + N − 1 forwards and as many backwards long, of which a stage works M: the bubble is
            // (N − 1) / (M + N − 1).
            let step = 2 * time * (u32::from(micro_batches) + stages - 1);
            let mut before = world.let_go.unwrap();
            for (report, at) in &world.committed {
                assert_eq!(*at - before, step, "{stages} stages, {micro_batches} micro-batches, {report:?}");
                before = *at;
            }
            for n in 0..stages {
                assert_eq!(world.busy(peer(n)), 2 * time * u32::from(micro_batches) * 5);
            }
        }
    }
}

#[test]
fn activations_in_flight_are_bounded_by_the_position() {
    // The toy asserts the bound itself; here it is reached.
    let mut scenario = Scenario::new(4, 8);
    (scenario.pace, scenario.max_delay) = (Pace::Equal(Duration::from_millis(10)), 40_000);
    let mut world = World::new(scenario, 0).unwrap();
    world.settle().unwrap();
    world.assert_equals_reference();
    assert_eq!(world.most_kept(), [5, 4, 3, 2]);
}

#[test]
fn nothing_is_trained_before_the_run_is_let_go() {
    let mut world = World::new(Scenario::new(2, 4), 0).unwrap();
    world.lets_go = false;
    world.run_until(|world| world.coordinator.phase() == RunPhase::Loaded).unwrap();
    world.act(Act::Infer { request: 1, want: 9 });
    world.run_until(|world| world.now > Duration::from_secs(60)).unwrap();
    assert_eq!((world.coordinator.phase(), world.coordinator.committed()), (RunPhase::Loaded, Step(0)));
    assert_eq!(world.text(1), world.model.reference.text(0, 1, 9));
    world.act(Act::Resume);
    world.settle().unwrap();
    world.assert_equals_reference();
}

#[test]
fn a_text_is_written_while_the_host_trains_alone() {
    let mut world = World::new(Scenario::new(0, 4), 0).unwrap();
    world.run_until(|world| world.committed.len() == 1).unwrap();
    world.act(Act::Infer { request: 1, want: 4 });
    world.run_until(|world| world.text(1).len() == 4).unwrap();
    assert_eq!(world.coordinator.phase(), RunPhase::Running);
    world.settle().unwrap();
    world.assert_equals_reference();
}

#[test]
fn a_step_waits_for_the_states_of_the_one_before() {
    for_seeds(0..10, |seed| {
        let mut scenario = Scenario::new(3, 2);
        scenario.max_delay = 0;
        let mut world = World::new(scenario, seed).unwrap();
        world.run_until(|world| world.coordinator.phase() == RunPhase::Loaded).unwrap();
        world.delay_bulk(peer(1), Duration::from_secs(3));
        world.settle().unwrap();
        world.assert_equals_reference();
        assert!(world.now > Duration::from_secs(15));
    });
}

#[test]
fn more_texts_than_a_stage_holds_are_all_written() {
    for_seeds(0..5, |seed| {
        let mut world = World::new(Scenario::new(3, 4), seed).unwrap();
        world.slow_down(peer(1), 100);
        world.run_until(|world| world.committed.len() == 2).unwrap();
        for request in 0..60 {
            world.act(Act::Infer { request, want: 4 });
        }
        world.settle().unwrap();
        world.assert_equals_reference();
    });
}

#[test]
fn a_member_cannot_slander_devices_that_are_not_its_neighbours() {
    let mut scenario = Scenario::new(4, 4);
    scenario.toy.blocks = 3;
    let mut world = World::new(scenario, 0).unwrap();
    world.run_until(|world| world.committed.len() == 2).unwrap();
    let generation = world.generation(peer(0)).unwrap();
    let employed: Vec<PeerId> = world.coordinator.devices().iter().map(|device| device.peer).collect();
    for slanderer in [peer(0), peer(3)] {
        for victim in [peer(2), PeerId(77), HOST] {
            for _ in 0..5 {
                world.deliver(slanderer, HOST, Message::NeighbourLost { generation, peer: victim });
            }
        }
    }
    assert_eq!(world.coordinator.phase(), RunPhase::Running);
    world.settle().unwrap();
    world.assert_equals_reference();
    assert_eq!(world.generation(peer(0)), Some(generation));
    assert!(world.coordinator.devices().iter().map(|device| device.peer).eq(employed));
}

#[test]
fn a_text_fails_with_the_host_that_cannot_load_its_part() {
    let mut world = World::new(Scenario::new(2, 4), 0).unwrap();
    world.plan(Moment::Job { who: HOST, job: JobName::Load, nth: 1, done: false }, Act::FailJob(HOST));
    world.run_until(|world| world.coordinator.phase() == RunPhase::Loading).unwrap();
    world.act(Act::Infer { request: 1, want: 4 });
    world.run_until(World::is_over).unwrap();
    assert!(matches!(world.coordinator.phase(), RunPhase::Failed(_)));
    assert_eq!(world.failed_texts, [1]);
}

#[test]
fn what_makes_no_sense_is_not_started() {
    let mut scenario = Scenario::new(2, 4);
    scenario.toy.blocks = 0;
    let mut world = World::new(scenario, 0).unwrap();
    world.run_until(|world| world.coordinator.phase() != RunPhase::Lobby).unwrap();
    assert!(
        matches!(world.coordinator.phase(), RunPhase::Failed(reason) if reason.contains("no transformer blocks"))
    );
}

/// A moment in the life of a run, most of them while a certain job begins or ends.
fn moment(world: &mut World, who: PeerId) -> Moment {
    if world.rng.random_ratio(1, 3) {
        return Moment::At(Duration::from_millis(world.rng.random_range(0..12_000)));
    }
    let job = *JobName::ALL.choose(&mut world.rng).unwrap();
    let most = if job.is_pass() { 20 } else { 5 };
    let nth = if job == JobName::Load { 1 } else { world.rng.random_range(1..=most) };
    Moment::Job { who, job, nth, done: world.rng.random() }
}

fn random_world(seed: u64) -> World {
    let peers = 1 + u32::try_from(seed % 4).expect("small");
    let micro_batches = [1, 2, 4, 8][usize::try_from(seed / 4 % 4).expect("small")];
    let mut scenario = Scenario::new(peers, micro_batches);
    scenario.max_delay = [0, 2_000, 30_000, 400_000][usize::try_from(seed / 16 % 4).expect("small")];
    World::new(scenario, seed).unwrap()
}

/// Has something happen at a random moment of a random device's work.
fn happens(world: &mut World, act: impl Fn(PeerId) -> Act) {
    let victim = peer(world.rng.random_range(0..world.room.peers));
    let witness = if world.rng.random_ratio(1, 4) { HOST } else { victim };
    let moment = moment(world, witness);
    world.plan(moment, act(victim));
}

fn write_texts(world: &mut World) {
    for request in 0..world.rng.random_range(0..4) {
        let at = Duration::from_millis(world.rng.random_range(1_000..8_000));
        world.plan(Moment::At(at), Act::Infer { request, want: 12 });
    }
}

/// After a run the ring still writes, and what the trained model would.
fn finish(mut world: World) {
    world.settle().unwrap();
    world.assert_equals_reference();
    world.act(Act::Infer { request: 100, want: 6 });
    world.settle().unwrap();
    assert_eq!(world.text(100), world.model.reference.text(world.committed.len(), 100, 6));
}

#[test]
fn a_device_that_dies_at_any_moment_costs_no_step() {
    for_seeds(0..300, |seed| {
        let mut world = random_world(seed);
        let silent = world.rng.random_ratio(1, 4);
        happens(&mut world, |peer| Act::Kill { peer, silent });
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn several_devices_that_die_cost_no_step() {
    for_seeds(0..300, |seed| {
        let mut world = random_world(seed);
        for _ in 0..world.rng.random_range(2..6) {
            let silent = world.rng.random_ratio(1, 4);
            happens(&mut world, |peer| Act::Kill { peer, silent });
        }
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn when_every_device_is_gone_the_run_says_why_and_goes_on_with_whoever_comes() {
    for_seeds(0..200, |seed| {
        let mut world = random_world(seed);
        world.has_spares = seed % 2 == 0;
        let at = Duration::from_millis(world.rng.random_range(1_200..2_500));
        for n in 0..world.room.peers {
            world.plan(Moment::At(at), Act::Kill { peer: peer(n), silent: false });
        }
        world.settle().unwrap();
        world.assert_equals_reference();
        assert!(world.pauses.iter().all(|(_, reason)| reason.contains("phone")), "{:?}", world.pauses);
        // A host whose devices died before they had work makes all of it alone, up to 20 ms for each pass of a block; judging
        // takes its time too.
        let seconds = 12 + 2 * world.judged.len() as u64;
        if world.committed.last().is_some_and(|(_, last)| *last > at + Duration::from_secs(seconds)) {
            assert!(!world.pauses.is_empty());
        }
        finish(world);
    });
}

#[test]
fn a_device_whose_engine_fails_or_whose_owner_leaves_is_replaced() {
    for_seeds(0..300, |seed| {
        let mut world = random_world(seed);
        for _ in 0..world.rng.random_range(1..4) {
            let how = world.rng.random_range(0..3);
            happens(&mut world, |peer| match how {
                0 => Act::FailJob(peer),
                1 => Act::Leave(peer),
                _ => Act::Remove(peer),
            });
        }
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn a_device_that_is_sent_away_is_told_why() {
    let mut world = World::new(Scenario::new(2, 4), 0).unwrap();
    world.plan(Moment::At(Duration::from_secs(2)), Act::Remove(peer(0)));
    world.plan(Moment::Job { who: peer(1), job: JobName::Load, nth: 2, done: true }, Act::FailJob(peer(1)));
    world.settle().unwrap();
    world.assert_equals_reference();
    assert_eq!(world.endings[&peer(0)], "The host removed this device from the room.");
    assert_eq!(world.endings[&peer(1)], "This device could not go on: its engine failed");
}

#[test]
fn who_slept_too_does_not_blame_the_others_for_their_silence() {
    for_seeds(0..20, |seed| {
        let mut world = random_world(seed);
        let at = Duration::from_millis(world.rng.random_range(500..2_500));
        world.plan(Moment::At(at), Act::FreezeAll(Duration::from_secs(100)));
        world.settle().unwrap();
        world.assert_equals_reference();
        assert_eq!((world.pauses.len(), world.endings.len()), (0, 0));
    });
}

#[test]
fn a_device_that_is_frozen_for_long_is_left_out_and_told() {
    for_seeds(0..40, |seed| {
        let mut world = random_world(seed);
        happens(&mut world, |peer| Act::Freeze(peer, 45));
        world.plan(Moment::At(Duration::from_secs(90)), Act::Pause);
        finish(world);
    });
}

#[test]
fn neighbours_that_lose_each_other_connect_again() {
    for_seeds(0..200, |seed| {
        let mut world = random_world(seed);
        for _ in 0..world.rng.random_range(1..4) {
            happens(&mut world, |victim| Act::Cut(victim, PeerId(victim.0 + 1)));
        }
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn neighbours_that_can_never_connect_are_separated() {
    for_seeds(0..30, |seed| {
        let mut world = random_world(seed);
        world.unreachable = vec![(peer(0), peer(1)), (peer(2), peer(3))];
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn pauses_resumes_late_joiners_and_slow_devices_change_nothing() {
    for_seeds(0..200, |seed| {
        let mut world = random_world(seed);
        for _ in 0..world.rng.random_range(1..4) {
            happens(&mut world, |_| Act::Pause);
        }
        happens(&mut world, |_| Act::Join);
        let slow = peer(world.rng.random_range(0..world.room.peers));
        world.slow_down(slow, 50);
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn links_that_open_twice_and_messages_that_come_late_change_nothing() {
    for_seeds(0..200, |seed| {
        let mut world = random_world(seed);
        for _ in 0..60 {
            let at = Duration::from_millis(world.rng.random_range(0..8_000));
            let act = if world.rng.random_ratio(1, 4) { Act::LinkedAgain } else { Act::Replay };
            world.plan(Moment::At(at), act);
        }
        happens(&mut world, |peer| Act::Kill { peer, silent: false });
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn a_stopped_run_keeps_its_steps_and_another_one_starts_afresh() {
    for_seeds(0..200, |seed| {
        let mut world = random_world(seed);
        happens(&mut world, |_| Act::Stop);
        if seed % 3 == 0 {
            happens(&mut world, |peer| Act::Kill { peer, silent: false });
        }
        write_texts(&mut world);
        if seed % 4 == 1 {
            // Its texts are still being written, and are by the next run.
            world.run_until(World::is_over).unwrap();
        } else {
            world.settle().unwrap();
        }
        let done = world.committed.len();
        assert_eq!(
            world.coordinator.committed(),
            world.committed.last().map_or(Step(0), |last| last.0.step.next())
        );
        if done > 0 {
            assert!(world.coordinator.states().eq(&world.model.reference.states[done]));
        }
        world.forget_moments();
        if seed % 2 == 0 {
            happens(&mut world, |peer| Act::Kill { peer, silent: false });
        }
        world.act(Act::Start);
        finish(world);
    });
}

#[test]
fn everything_at_once_costs_no_step() {
    for_seeds(0..300, |seed| {
        let mut world = random_world(seed);
        world.has_spares = world.rng.random();
        for _ in 0..world.rng.random_range(2..10) {
            let (how, silent) = (world.rng.random_range(0..10), world.rng.random_ratio(1, 4));
            happens(&mut world, |peer| match how {
                0 | 1 => Act::Kill { peer, silent },
                2 => Act::FailJob(peer),
                3 => Act::Leave(peer),
                4 => Act::Cut(peer, PeerId(peer.0 + 1)),
                5 => Act::Pause,
                6 => Act::Join,
                7 => Act::Replay,
                8 => Act::Freeze(peer, if silent { 45 } else { 15 }),
                _ => Act::LinkedAgain,
            });
        }
        write_texts(&mut world);
        finish(world);
    });
}

#[test]
fn what_was_done_survives_a_failure_of_the_host() {
    for_seeds(0..50, |seed| {
        let mut world = random_world(seed);
        happens(&mut world, |_| Act::FailJob(HOST));
        world
            .run_until(|world| matches!(world.coordinator.phase(), RunPhase::Finished | RunPhase::Failed(_)))
            .unwrap();
        let done = world.committed.len();
        if let RunPhase::Failed(reason) = world.coordinator.phase() {
            assert!(reason.contains("its engine failed"));
        }
        if done > 0 {
            assert!(world.coordinator.states().eq(&world.model.reference.states[done]));
        }
    });
}

#[test]
fn a_room_that_gets_other_numbers_than_one_process_is_told_apart() {
    let mut world = World::new(Scenario::new(2, 4), 0).unwrap();
    let mut other = world.room.settings.clone();
    other.lr *= 1.0 + 1e-9;
    world.model = ToyModel::new(world.model.toy, &other).unwrap();
    let found = world.settle();
    assert_eq!(found, Err(Violation::States { step: Step(1) }));
}
