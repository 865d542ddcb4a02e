//! A whole room in memory: the losses and the adapter do not depend on how many devices share the work.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use baton_engine::cache::AnyCache;
use baton_engine::source::AnyFiles;
use baton_formats::DirFiles;
use baton_formats::files::DirCache;
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::RunPhase;
use baton_protocol::run::Settings;
use common::{Outcome, Script, adapter_numbers, play, run_room};
use std::path::{Path, PathBuf};
use std::rc::Rc;

const STEPS: u32 = 3;

/// The shared models and data, beside the repository; none where they are not there.
fn shared(path: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared").join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("NOTICE: {} is not there, so this test checks nothing", path.display());
    None
}

fn settings() -> Settings {
    Settings {
        steps: STEPS,
        batch_size: 8,
        micro_batches: 4,
        seq_len: 48,
        targets: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
            .map(String::from)
            .to_vec(),
        warmup_steps: 0,
        boundary: Precision::F32,
        seed: 7,
        sample_tokens: 0,
        validation: 0.0,
        ..Settings::default()
    }
}

fn files() -> Option<(PathBuf, Vec<u8>)> {
    let model = shared("models/stories260k")?;
    let text = std::fs::read(shared("data/e2e/valid.txt")?).unwrap();
    Some((model, text))
}

fn dir(model: &Path) -> AnyFiles {
    AnyFiles::Dir(DirFiles::new(model))
}

fn finished(outcome: &Outcome) {
    assert_eq!((&outcome.phase, &outcome.errors), (&Some(RunPhase::Finished), &Vec::new()));
    assert_eq!(outcome.losses.len(), STEPS as usize);
}

fn assert_same(model: &Path, got: &Outcome, want: &Outcome, tolerance: f64, what: &str) {
    assert_eq!((&got.phase, &got.errors), (&Some(RunPhase::Finished), &Vec::new()), "{what}");
    assert_eq!(got.losses.len(), want.losses.len(), "{what}");
    for (step, (got, want)) in got.losses.iter().zip(&want.losses).enumerate() {
        assert!((got - want).abs() <= tolerance * want, "{what}: step {step}: {got} against {want}");
    }
    let config = std::fs::read(model.join("config.json")).unwrap();
    let (got, want) = (adapter_numbers(&got.zip, &config), adapter_numbers(&want.zip, &config));
    assert_eq!(got.len(), want.len());
    let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    assert!(f64::from(worst) <= 10.0 * tolerance, "{what}: an adapter number differs by {worst}");
}

#[test]
fn stages_and_micro_batches_change_no_loss() {
    let Some((model, text)) = files() else { return };
    let room = |stages, micro_batches| {
        run_room(
            dir(&model),
            ("valid.txt", text.clone()),
            &Settings { micro_batches, ..settings() },
            stages,
            None,
        )
    };
    let alone = room(0, 1);
    finished(&alone);
    assert!(alone.losses[2] < alone.losses[0], "it learns: {:?}", alone.losses);
    for stages in [1, 2, 3, 4] {
        for micro_batches in [1, 2, 4, 8] {
            let what = format!("{stages} stages, {micro_batches} micro-batches");
            assert_same(&model, &room(stages, micro_batches), &alone, 1e-5, &what);
        }
    }
}

#[test]
fn f16_boundaries_and_recomputation_stay_close() {
    let Some((model, text)) = files() else { return };
    let room = |settings| run_room(dir(&model), ("valid.txt", text.clone()), &settings, 3, None);
    let exact = room(settings());
    let half = room(Settings { boundary: Precision::F16, ..settings() });
    finished(&half);
    let (got, want) = (half.losses[2], exact.losses[2]);
    assert!((got - want).abs() < 0.01 * want, "{got} against {want}");
    assert!(half.losses != exact.losses, "the boundaries were not rounded at all");
    assert_same(&model, &room(Settings { recompute: true, ..settings() }), &exact, 1e-5, "recomputed");
}

#[test]
fn a_device_that_leaves_costs_no_step() {
    let Some((model, text)) = files() else { return };
    let room = |stages, lose| run_room(dir(&model), ("valid.txt", text.clone()), &settings(), stages, lose);
    let undisturbed = room(3, None);
    for (stages, stage) in [(3, 0), (3, 1), (3, 2), (1, 0)] {
        let what = format!("stage {stage} of {stages} left");
        assert_same(&model, &room(stages, Some((stage, 1))), &undisturbed, 1e-5, &what);
    }
}

#[test]
fn a_device_that_joins_late_changes_no_loss_and_keeps_its_neighbours_blocks() {
    let Some((model, text)) = files() else { return };
    let settings = Settings { steps: 12, ..settings() };
    let alone = run_room(dir(&model), ("valid.txt", text.clone()), &settings, 0, None);
    let script = Script { late: Some((2, 2)), ..Script::default() };
    let joined = play(dir(&model), Some(("valid.txt", text)), &settings, 3, &script);
    assert_eq!((&joined.phase, &joined.errors), (&Some(RunPhase::Finished), &Vec::new()));
    assert!(joined.stage_blocks.iter().all(Option::is_some), "{:?}", joined.stage_blocks);
    assert_eq!(joined.losses.len(), 12);
    for (got, want) in joined.losses.iter().zip(&alone.losses) {
        assert!((got - want).abs() <= 1e-5 * want, "{got} {want}");
    }
}

#[test]
fn a_host_that_comes_back_goes_on_where_its_run_was() {
    let Some((model, text)) = files() else { return };
    let settings = Settings { steps: 9, validation: 0.2, evaluate_every: 3, ..settings() };
    let whole = run_room(dir(&model), ("valid.txt", text.clone()), &settings, 2, None);
    let folder = tempfile::tempdir().unwrap();
    let store = AnyCache::Dir(Rc::new(DirCache::new(folder.path(), 64 << 20)));
    let crash = Script { crash: Some(5), store: store.clone(), ..Script::default() };
    let before = play(dir(&model), Some(("valid.txt", text)), &settings, 2, &crash);
    assert_eq!((before.losses.len(), &before.zip), (5, &Vec::new()));
    // Other devices than before, and twice the same place to go on from.
    for stages in [3, 0] {
        let script = Script { crash: (stages == 3).then_some(7), store: store.clone(), ..Script::default() };
        let after = play(dir(&model), None, &settings, stages, &script);
        assert_eq!(after.errors, Vec::<String>::new());
        for (got, want) in after.losses.iter().zip(&whole.losses) {
            assert!((got - want).abs() <= 1e-5 * want, "{stages}: {got} {want}");
        }
        if stages == 0 {
            assert_eq!((after.losses.len(), after.phase.as_ref()), (9, Some(&RunPhase::Finished)));
            assert_same(&model, &after, &whole, 1e-5, "a run in three parts");
            let steps: Vec<u32> = after.judged.iter().map(|(done, _)| *done).collect();
            assert_eq!(steps, [0, 3, 6, 9]);
        }
    }
    // A run that is over can be looked at again: its adapter is still there.
    let over = play(dir(&model), None, &settings, 0, &Script { store, ..Script::default() });
    assert_eq!(over.phase, Some(RunPhase::Finished));
    assert_same(&model, &over, &whole, 1e-5, "after its end");
}

#[test]
fn more_devices_than_blocks_leave_the_rest_waiting() {
    let Some((model, text)) = files() else { return };
    let outcome = run_room(dir(&model), ("valid.txt", text), &settings(), 7, None);
    finished(&outcome);
    let blocks: Vec<_> = outcome.stage_blocks.into_iter().flatten().collect();
    assert_eq!(blocks, [0..1, 1..2, 2..3, 3..4, 4..5]);
}

#[test]
fn the_model_writes_the_same_through_the_ring_and_alone() {
    let Some((model, text)) = files() else { return };
    let settings = Settings { sample_tokens: 24, steps: STEPS, ..settings() };
    let room = |stages| run_room(dir(&model), ("valid.txt", text.clone()), &settings, stages, None);
    let (alone, ring) = (room(0), room(2));
    finished(&ring);
    assert_eq!(alone.samples.len(), 2);
    assert!(alone.samples[0].starts_with("Once upon a time, there was a little"), "{:?}", alone.samples);
    assert_eq!(alone.samples, ring.samples);
}

#[test]
fn a_prompt_is_read_and_a_completion_is_learned() {
    let Some((model, _)) = files() else { return };
    let line = r#"{"prompt":"What does the fox say? ","completion":"Yip yip yip."}"#;
    let text = format!("{line}\n").repeat(8).into_bytes();
    let settings = Settings { steps: STEPS, lr: 1e-2, sample_tokens: 4, ..settings() };
    let outcome = run_room(dir(&model), ("fox.jsonl", text), &settings, 2, None);
    finished(&outcome);
    assert!(outcome.losses[2] < 0.8 * outcome.losses[0], "{:?}", outcome.losses);
    assert!(outcome.samples[1].starts_with("What does the fox say?"), "{:?}", outcome.samples);
}

#[test]
fn a_run_that_diverges_ends_with_the_reason_and_blames_no_device() {
    let Some((model, text)) = files() else { return };
    let settings = Settings { lr: 10.0, weight_decay: 1e30, grad_clip: 0.0, ..settings() };
    let outcome = run_room(dir(&model), ("valid.txt", text), &settings, 2, None);
    let Some(RunPhase::Failed(reason)) = &outcome.phase else { panic!("{:?}", outcome.phase) };
    assert!(reason.contains("diverged"), "{reason}");
}
