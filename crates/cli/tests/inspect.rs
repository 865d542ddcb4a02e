//! `baton inspect`: what is there, what is wrong, all of it and not the first thing only, and what it needs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const FORMATS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../formats/tests/golden");

fn family(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families").join(name)
}

fn inspect(model: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_baton"));
    command.arg("inspect").arg(model).args(more).output().expect("the binary runs")
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The facts of a model that nothing is wrong with but its tokenizer: the golden models have none.
fn json(model: &Path) -> Value {
    let output = inspect(model, &["--json"]);
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "it cannot be trained on text");
    assert_eq!(facts["problems"], facts["tokenizer"]["problems"], "{}", said(&output.stderr));
    facts
}

/// The model's files but the weights, in a folder of its own.
fn copy(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(family(name).join("config.json"), folder.path().join("config.json")).unwrap();
    folder
}

/// A safetensors file of other tensors than `model`'s: `change` is given the header.
fn rewrite(model: &Path, to: &Path, change: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    let bytes = fs::read(model).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(&bytes[8 + length..]);
    fs::write(to, file).unwrap();
}

#[test]
fn a_whole_model_is_described_and_its_bytes_are_counted_from_its_shapes() {
    let facts = json(&family("llama2"));
    assert_eq!(facts["family"], "Llama");
    assert!(facts["problems"][0].as_str().unwrap().contains("tokenizer.json"));
    let config: Value =
        serde_json::from_slice(&fs::read(family("llama2").join("config.json")).unwrap()).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap();
    let (hidden, mlp, vocab) = (number("hidden_size"), number("intermediate_size"), number("vocab_size"));
    let (heads, keys) = (number("num_attention_heads"), number("num_key_value_heads"));
    let keys = hidden / heads * keys;
    let block = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * mlp + 2 * hidden;
    assert_eq!(facts["sizes"]["block_parameters"], block);
    assert_eq!(facts["bytes"]["block"]["f32"], 4 * block);
    assert_eq!(facts["bytes"]["ends"]["f32"], 4 * (2 * vocab * hidden + hidden));
    assert_eq!(facts["tensors"]["missing"], Value::Array(Vec::new()));
    assert_eq!(facts["tensors"]["needed"], facts["tensors"]["count"]);
    assert!(facts["tensors"]["list"].is_null());
    for (at, phones) in [1, 2, 4].into_iter().enumerate() {
        let stages = facts["bytes"]["spread"][at]["stages"].as_array().unwrap();
        assert_eq!(stages.len(), phones.min(3), "three blocks");
        let frozen = |storage: &str| -> u64 {
            stages.iter().map(|stage| stage["memory"][storage]["frozen"].as_u64().unwrap()).sum()
        };
        assert_eq!(frozen("f32"), 3 * 4 * block, "every block is on one phone");
        assert!(
            frozen("f32") > frozen("bf16")
                && frozen("bf16") > frozen("int8")
                && frozen("int8") > frozen("nf4")
        );
        // q, k, v, o, gate, up and down at rank 8, each number with a gradient and two moments.
        let adapters = stages.iter().map(|stage| stage["memory"]["f32"]["adapters"].as_u64().unwrap());
        let inputs_and_outputs = 9 * hidden + 2 * keys + 3 * mlp;
        assert_eq!(adapters.sum::<u64>(), 3 * 16 * 8 * inputs_and_outputs);
    }
}

#[test]
fn a_person_reads_sizes_tensors_and_what_the_phones_need() {
    let output = inspect(&family("llama_sharded"), &["--tensors"]);
    let text = said(&output.stdout);
    assert!(said(&output.stderr).contains("there is no"), "{}", said(&output.stderr));
    for part in [
        "Llama, writes text",
        "3 blocks of width 32",
        "Weights     4 files",
        "all 30 that the model needs are there",
        "there is no",
        "tokenizer.json",
        "without a chat template",
        "each of 2 phones (1 or 2 blocks)",
        "each of 4 phones (only 3 used)",
        "An estimate",
        "model.layers.2.mlp.up_proj.weight F32",
        "in model-00004-of-00004.safetensors",
    ] {
        assert!(text.contains(part), "no \"{part}\" in:\n{text}");
    }
}

#[test]
fn a_gguf_file_is_a_whole_model() {
    let facts = json(&Path::new(FORMATS).join("gguf/llama_q8.gguf"));
    assert_eq!(facts["family"], "Llama");
    assert!(facts["tensors"]["formats"]["Q8_0"]["tensors"].as_u64().unwrap() > 0);
    assert_eq!(facts["files"][0]["name"], "llama_q8.gguf");
    // This one was written without a tokenizer, which does not hinder the rest from being told.
    let problem = facts["tokenizer"]["problems"][0].as_str().unwrap();
    assert!(problem.contains("tokenizer.ggml.model") && problem.contains("beside it"), "{problem}");
}

#[test]
fn every_wrong_tensor_is_named_and_the_rest_is_told_all_the_same() {
    let folder = copy("llama2");
    let weights = folder.path().join("model.safetensors");
    rewrite(&family("llama2").join("model.safetensors"), &weights, |header| {
        // Another name: one is missing, and one is there for nothing.
        let gain = header.remove("model.norm.weight").unwrap();
        header.insert("model.norm.gain".to_owned(), gain);
        // Other shapes of as many numbers.
        for name in ["model.layers.0.self_attn.q_proj.weight", "model.layers.2.mlp.down_proj.weight"] {
            let shape = header[name]["shape"].as_array_mut().unwrap();
            let count = shape.iter().map(|dim| dim.as_u64().unwrap()).product::<u64>();
            *shape = vec![count.into(), 1.into()];
        }
        // A format that no model is trained from.
        header["model.layers.1.input_layernorm.weight"]["dtype"] = "I32".into();
    });
    let output = inspect(folder.path(), &["--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output.stderr).contains("5 problems"), "{}", said(&output.stderr));
    let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(facts["tensors"]["missing"], serde_json::json!(["model.norm.weight"]));
    assert_eq!(facts["tensors"]["unused"], serde_json::json!(["model.norm.gain"]));
    let problems = facts["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 5, "with the tokenizer");
    for part in [
        "model.norm.weight is missing",
        "0.self_attn.q_proj.weight has shape",
        "down_proj.weight has shape",
        "is in I32",
    ] {
        assert!(
            problems.iter().any(|problem| problem.as_str().unwrap().contains(part)),
            "{part}: {problems:?}"
        );
    }
    let text = said(&inspect(folder.path(), &[]).stdout);
    assert!(text.contains("1 of the 30 that the model needs is missing"), "{text}");
    assert!(text.contains("1 is not used: model.norm.gain"), "{text}");
}

#[test]
fn a_trained_head_may_be_missing_and_a_tokenizer_of_another_model_is_told() {
    let folder = copy("bert");
    let weights = folder.path().join("model.safetensors");
    rewrite(&family("bert").join("model.safetensors"), &weights, |header| {
        let head = header.remove("classifier.weight").unwrap();
        header.insert("another".to_owned(), head);
    });
    fs::copy(Path::new(FORMATS).join("tokenizers/unigram.json"), folder.path().join("tokenizer.json"))
        .unwrap();
    let facts = json(folder.path());
    assert_eq!(facts["family"], "BERT");
    assert_eq!(facts["tensors"]["fresh_head"], true);
    assert_eq!(facts["tokenizer"]["kind"], "Unigram");
    let problem = facts["tokenizer"]["problems"][0].as_str().unwrap();
    assert!(problem.contains("another model's"), "{problem}");
}

#[test]
fn what_is_no_model_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |model: &Path| {
        let output = inspect(model, &[]);
        let words = said(&output.stderr);
        assert!(
            output.status.code() == Some(1) && output.stdout.is_empty() && !words.contains("panicked"),
            "{words}"
        );
        words
    };
    assert!(refused(folder.path()).contains("config.json"));
    fs::copy(family("llama2").join("config.json"), folder.path().join("config.json")).unwrap();
    assert!(refused(folder.path()).contains("there are no weights here"));
    fs::write(folder.path().join("model.safetensors"), [0xff; 64]).unwrap();
    assert!(refused(folder.path()).contains("model.safetensors says that its header has"));
    fs::write(folder.path().join("config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    assert!(refused(folder.path()).contains("mamba"));
    assert!(refused(&folder.path().join("a/b/c")).contains("neither a folder nor a .gguf file"));
}

#[test]
fn the_estimate_is_of_the_phones_and_the_settings_that_are_asked_for() {
    let model = family("llama2");
    let of = |more: &[&str]| -> Value {
        let output = inspect(&model, &[&["--json", "--phones", "2"], more].concat());
        let facts: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(facts["bytes"]["spread"].as_array().unwrap().len(), 1);
        facts["bytes"]["spread"][0]["stages"][0]["memory"]["nf4"].clone()
    };
    let usual = of(&[]);
    let long = of(&["--seq-len", "256"]);
    assert!(long["activations"].as_u64() > usual["activations"].as_u64());
    let few = of(&["--targets", "q_proj", "--lora-rank", "4"]);
    assert!(few["adapters"].as_u64() < usual["adapters"].as_u64());
    assert!(
        few["activations"].as_u64() < usual["activations"].as_u64(),
        "a map without an adapter keeps no input"
    );
    assert_eq!(few["frozen"], usual["frozen"]);
    let output = inspect(&model, &["--targets", "elsewhere"]);
    assert!(!output.status.success() && said(&output.stderr).contains("elsewhere"));
}

#[test]
fn numbers_that_make_no_sense_are_refused_and_a_sample_too_long_for_the_model_is_noted() {
    let model = family("llama2");
    let none = inspect(&model, &["--phones", "0"]);
    assert_eq!(none.status.code(), Some(2));
    assert!(said(&none.stderr).contains("--phones"), "{}", said(&none.stderr));
    let long = said(&inspect(&model, &["--seq-len", "4000"]).stdout);
    assert!(long.contains("Note: a --seq-len of 4000 is longer than the"), "{long}");
    assert!(!said(&inspect(&model, &["--seq-len", "8"]).stdout).contains("Note:"));
    // Large numbers stay apart.
    let huge = inspect(&model, &["--seq-len", "4000", "--batch-size", "4096", "--micro-batches", "1"]);
    let huge = format!("{}{}", said(&huge.stdout), said(&huge.stderr));
    let row = huge.lines().find(|line| line.contains("1 phone (3 blocks)") && line.contains("TB"));
    let row = row.unwrap_or_else(|| panic!("no row of terabytes: {huge}"));
    assert_eq!(row.matches(" TB").count(), 4, "{row}");
    assert_eq!(row.split_whitespace().count(), 12, "{row}");
}
