//! `baton train` against PEFT with torch, and what it promises: a report, an adapter that goes on, errors in words.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{baton, fails, shared};
use serde_json::Value;
use std::path::{Path, PathBuf};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/train");

/// The golden run's text: the first lines of a file that is not ours to commit.
fn text(folder: &Path) -> Option<String> {
    let lines = std::fs::read_to_string(shared("data/e2e/valid.txt")?).unwrap();
    let lines: String = lines.lines().take(32).flat_map(|line| [line, "\n"]).collect();
    let path = folder.join("text.txt");
    std::fs::write(&path, lines).unwrap();
    Some(path.display().to_string())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn weights(folder: &Path) -> Vec<f32> {
    let files = baton_formats::DirFiles::new(folder);
    let config = std::fs::read(shared("models/stories260k/config.json").unwrap()).unwrap();
    let config = baton_formats::ModelConfig::parse(&config).unwrap();
    let adapter = futures::executor::block_on(baton_formats::Adapter::read(&files, &config)).unwrap();
    adapter.weights.into_values().flat_map(|pair| pair.a.into_iter().chain(pair.b)).collect()
}

/// The golden run's flags (scripts/golden_train.py).
fn golden_flags<'a>(model: &'a str, data: &'a str, out: &'a str, report: &'a str) -> Vec<&'a str> {
    let init = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/train/init_adapter");
    let targets = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj";
    [
        ["--model", model, "--data", data, "--out", out, "--report", report, "--init-adapter", init],
        ["--steps", "8", "--batch-size", "4", "--seq-len", "40", "--lora-rank", "4", "--lora-alpha", "8"],
        [
            "--targets",
            targets,
            "--lr",
            "5e-3",
            "--lr-schedule",
            "linear",
            "--warmup-steps",
            "2",
            "--weight-decay",
            "0.1",
        ],
    ]
    .concat()
    .into_iter()
    .chain(["--grad-clip", "0.5", "--shuffle", "false", "--append-eos", "true"])
    .collect()
}

#[test]
fn losses_norms_and_the_adapter_are_those_of_peft_whatever_the_micro_batches() {
    let home = tempfile::tempdir().unwrap();
    let (Some(model), Some(data)) = (shared("models/stories260k"), text(home.path())) else { return };
    let golden: Value =
        serde_json::from_slice(&std::fs::read(PathBuf::from(GOLDEN).join("run.json")).unwrap()).unwrap();
    for micro_batches in ["1", "2", "4"] {
        let (out, report) = (home.path().join("adapter"), home.path().join("report.json"));
        let (model, out_name, report_name) =
            (model.display().to_string(), out.display().to_string(), report.display().to_string());
        let mut arguments = vec!["train"];
        arguments.extend(golden_flags(&model, &data, &out_name, &report_name));
        arguments.extend(["--micro-batches", micro_batches]);
        baton(&arguments);
        let report: Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
        for (key, tolerance) in [("losses", 1e-5), ("grad_norms", 1e-4)] {
            let (got, want) = (numbers(&report[key]), numbers(&golden[key]));
            assert_eq!(got.len(), want.len());
            for (step, (got, want)) in got.iter().zip(want).enumerate() {
                assert!(
                    (got - want).abs() < tolerance * want,
                    "{key} of step {step}: {got}, PEFT has {want}"
                );
            }
        }
        assert!(report["tokens_per_second"].as_f64().unwrap() > 0.0);
        if cfg!(target_os = "linux") {
            assert!(report["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
        }
        let (got, want) = (weights(&out), weights(&PathBuf::from(GOLDEN).join("final_adapter")));
        let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
        assert!(got.len() == want.len() && worst < 1e-4, "an adapter number differs by {worst}");
    }
}

#[test]
fn a_seed_makes_a_run_repeatable_and_another_one_changes_it() {
    let home = tempfile::tempdir().unwrap();
    let (Some(model), Some(data)) = (shared("models/stories260k"), text(home.path())) else { return };
    let model = model.display().to_string();
    let run = |seed: &str, name: &str| {
        let out = home.path().join(name);
        let out_name = out.display().to_string();
        baton(&[
            "train",
            "--model",
            &model,
            "--data",
            &data,
            "--out",
            &out_name,
            "--steps",
            "2",
            "--batch-size",
            "2",
            "--seq-len",
            "24",
            "--seed",
            seed,
        ]);
        weights(&out)
    };
    let (first, again, other) = (run("1", "a"), run("1", "b"), run("2", "c"));
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn what_cannot_be_done_is_said_before_any_work() {
    let home = tempfile::tempdir().unwrap();
    let (Some(model), Some(data)) = (shared("models/stories260k"), text(home.path())) else { return };
    let model = model.display().to_string();
    let out = home.path().join("out").display().to_string();
    let with = |flags: &[&str]| {
        let mut arguments = vec!["train", "--model", &model, "--data", &data, "--out", &out];
        arguments.extend(flags);
        fails(&arguments)
    };
    assert!(with(&["--targets", "q_proj,wrong"]).contains("wrong"));
    assert!(with(&["--micro-batches", "9"]).contains("9 micro-batches"));
    assert!(with(&["--lr", "nan"]).contains("learning rate"));
    assert!(
        with(&["--lora-rank", "2", "--init-adapter", &format!("{GOLDEN}/init_adapter")]).contains("rank")
    );
    let empty = home.path().join("empty.txt");
    std::fs::write(&empty, "\n \n").unwrap();
    let empty = empty.display().to_string();
    assert!(
        fails(&["train", "--model", &model, "--data", &empty, "--out", &out]).contains("nothing to train on")
    );
    assert!(fails(&["train", "--model", "/nowhere", "--data", &data, "--out", &out]).contains("/nowhere"));
    assert!(
        fails(&["train", "--model", &model, "--data", "/nowhere.txt", "--out", &out])
            .contains("/nowhere.txt")
    );
}
