//! `baton train` against PEFT with torch, and what it promises: a report, an adapter that goes on, errors in words.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{baton, fails, minilm, refuses, says, shared};
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
        let out = home.path().join(format!("adapter{micro_batches}"));
        let report = home.path().join("report.json");
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
    let init = format!("{GOLDEN}/init_adapter");
    let said = with(&["--lora-rank", "2", "--targets", "q_proj", "--init-adapter", &init]);
    for part in ["rank 4, targets", "down_proj", "the run has rank 2, targets q_proj"] {
        assert!(said.contains(part), "all differences at once: {said}");
    }
    let said = with(&["--init-adapter", "/nope"]);
    assert!(said.contains("there is no /nope") && said.contains("adapter_config.json"), "{said}");
    let both = ["--validation", "0.2", "--validation-data", &data];
    let both = [&["train", "--model", &model, "--data", &data, "--out", &out][..], &both].concat();
    assert!(refuses(&both).contains("cannot be used with"));
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

/// stories260k's folder, and a file of this text in a folder of its own.
fn with_file(name: &str, text: &str) -> Option<(String, tempfile::TempDir, String)> {
    let model = shared("models/stories260k")?;
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join(name);
    std::fs::write(&data, text).unwrap();
    Some((model.display().to_string(), home, data.display().to_string()))
}

#[test]
fn columns_of_any_name_are_trained_on_and_what_is_read_as_what_is_said() {
    let rows = "frage,antwort,nummer\nwhat is it,a ball,1\nwho is it,a dog,2\n";
    let Some((model, home, data)) = with_file("own.csv", rows) else { return };
    let out = |name: &str| home.path().join(name).display().to_string();
    let (a, b, c) = (out("a"), out("b"), out("c"));
    let base = ["train", "--model", &model, "--data", &data, "--steps", "1", "--out"];
    let words = says(&[&base[..], &[&a, "--columns", "prompt=frage,completion=antwort"]].concat());
    let line = "own.csv: read as prompt \"frage\" and completion \"antwort\"; \"nummer\" is ignored";
    assert!(words.contains(line) && words.contains("2 samples"), "{words}");
    // Judged by one sample of a file that is read the same way.
    let judge = home.path().join("judge.csv");
    std::fs::write(&judge, "nummer,frage,antwort\n1,what,a hat\n").unwrap();
    let judge = judge.display().to_string();
    let more = [&b, "--columns", "prompt=frage,completion=antwort", "--validation-data", &judge];
    let words = says(&[&base[..], &more].concat());
    assert!(words.contains("; 1 sample of ") && words.contains("judge.csv to judge"), "{words}");
    assert!(words.contains("after 1 step:") && !words.contains("kept out"), "{words}");
    let words = fails(&[&base[..], &[&c, "--columns", "prompt=frage,completion=answer"]].concat());
    assert!(words.contains("no column \"answer\"") && words.contains("\"antwort\", \"nummer\""), "{words}");
    let records = home.path().join("own.jsonl");
    std::fs::write(&records, "{\"frage\": \"what is it\", \"antwort\": \"a ball\"}\n").unwrap();
    let records = records.display().to_string();
    let words = fails(&["train", "--model", &model, "--data", &records, "--out", &c]);
    assert!(words.contains("[\"antwort\", \"frage\"]") && words.contains("--columns"), "{words}");
    let words = refuses(&[&base[..], &[&c, "--columns", "question=frage"]].concat());
    assert!(words.contains("messages, system"), "{words}");
}

#[test]
fn a_run_overwrites_no_adapter_but_may_go_on_from_it_with_its_own_settings() {
    let Some((model, home, data)) = with_file("text.txt", "Once upon a time.\nThe end.\n") else { return };
    let folder = home.path().join("out");
    let out = folder.display().to_string();
    let with = |more: &[&str]| {
        let all = ["train", "--model", &model, "--data", &data, "--out", &out, "--steps", "1"];
        all.iter().chain(more).map(|part| (*part).to_owned()).collect::<Vec<_>>()
    };
    let strs = |all: &[String]| says(&all.iter().map(String::as_str).collect::<Vec<_>>());
    strs(&with(&["--lora-rank", "3", "--lora-alpha", "5", "--targets", "o_proj"]));
    let config = || -> Value {
        serde_json::from_slice(&std::fs::read(folder.join("adapter_config.json")).unwrap()).unwrap()
    };
    let (first, before) = (config(), weights(&folder));
    let again = with(&[]);
    let said = fails(&again.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said.contains("--force") && said.contains("--init-adapter"), "{said}");
    assert!(!said.contains("step 1"), "it is said before the training: {said}");
    assert_eq!(weights(&folder), before);
    strs(&with(&["--init-adapter", &out]));
    assert_eq!(config(), first, "rank, alpha and targets are the adapter's");
    assert_ne!(weights(&folder), before);
    strs(&with(&["--force"]));
    assert_eq!(config()["r"], 8);
}

#[test]
fn what_is_cut_off_is_said_with_what_keeps_it() {
    let line = "Tom had a red ball. ".repeat(40);
    let Some((model, home, data)) = with_file("book.txt", &line) else { return };
    let out = home.path().join("out").display().to_string();
    let all = ["train", "--model", &model, "--data", &data, "--out", &out, "--steps", "1", "--seq-len", "16"];
    let said = says(&all);
    assert!(said.contains("1 sample with 15 target tokens"), "{said}");
    assert!(said.contains("of 1 sample beyond --seq-len 16 are cut off"), "{said}");
    assert!(said.contains("--packing keeps all") && !said.contains("end token"), "{said}");
    let said = says(&[&all[..], &["--packing", "--force"]].concat());
    assert!(!said.contains("cut off"), "{said}");
}

#[test]
fn classes_keep_their_names_from_the_data_to_the_merged_model_and_are_told_of_a_text() {
    let Some(model) = minilm() else { return };
    let home = tempfile::tempdir().unwrap();
    let place = |name: &str| home.path().join(name).display().to_string();
    let (data, out, merged) = (place("moods.csv"), place("out"), place("merged"));
    std::fs::write(&data, "text,label\nwhat a joy,glad\nso very bad,sad\nhow nice,glad\nawful,sad\n")
        .unwrap();
    let steps = ["--steps", "12", "--batch-size", "4", "--seq-len", "16", "--lr", "5e-3"];
    let said = says(&[&["train", "--model", &model, "--data", &data, "--out", &out][..], &steps].concat());
    assert!(said.contains("classes: 0 \"glad\", 1 \"sad\""), "{said}");
    assert!(said.contains("with the labels in \"label\"") && said.contains("samples/s"), "{said}");
    assert!(!said.contains("tokens/s") && !said.contains("end token"), "{said}");
    let labels = std::fs::read(home.path().join("out/labels.json")).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&labels).unwrap()["id2label"]["1"], "sad");
    baton(&["merge", &model, &out, "--out", &merged]);
    let config = std::fs::read(home.path().join("merged/config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    assert_eq!((&config["id2label"]["0"], &config["label2id"]["sad"]), (&"glad".into(), &1.into()));
    // The adapter over its model, and the merged model alone, say the same.
    let texts = ["--text", "what a joy", "--text", "so very bad"];
    let told = baton(&[&["classify", "--model", &model, "--adapter", &out][..], &texts].concat());
    let lines: Vec<&str> = told.lines().collect();
    assert!(
        lines[0].starts_with("\"what a joy\": glad ") && lines[1].starts_with("\"so very bad\": sad "),
        "{told}"
    );
    let alone = baton(&[&["classify", "--model", &merged][..], &texts].concat());
    let odds =
        |told: &str| -> Vec<f64> { told.split([' ', '\n']).filter_map(|word| word.parse().ok()).collect() };
    assert_eq!(odds(&told).len(), 4, "{told}");
    for (one, other) in odds(&told).iter().zip(odds(&alone)) {
        assert!((one - other).abs() <= 0.02, "{told}{alone}");
    }
    // Classes that the adapter counts keep their numbers in a run that goes on, whatever a file of one of them shows.
    std::fs::write(&data, "text,label\nso very bad,sad\nawful,sad\n").unwrap();
    let more = ["--init-adapter", &out, "--steps", "1"];
    let said = says(&[&["train", "--model", &model, "--data", &data, "--out", &out][..], &more].concat());
    assert!(said.contains("classes: 0 \"glad\", 1 \"sad\""), "{said}");
    assert!(fails(&["classify", "--model", &model, "--text", "a"]).contains("no trained head"));
    assert!(fails(&["generate", "--model", &model, "--prompt", "a"]).contains("baton classify"));
}
