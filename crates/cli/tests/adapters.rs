//! `baton merge` and `baton export-gguf`: the files are whole, and what cannot be done is said. That transformers and
//! llama.cpp read what is in them, `scripts/check_adapters.py` sees.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{baton, fails};
use serde_json::Value;

fn family(name: &str) -> String {
    format!("{}/../model/tests/golden/families/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_merged_model_is_a_folder_that_can_be_merged_into_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(format!("{}/{file}", family("minilm")), model.join(file)).unwrap();
    }
    std::fs::write(model.join("tokenizer.json"), b"of the model").unwrap();
    let (model, adapter) = (model.display().to_string(), family("minilm/adapter"));
    let out = folder.path().join("merged");
    let to = out.display().to_string();
    assert!(baton(&["merge", &model, &adapter, "--out", &to]).contains("18 pairs"));
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "BertForSequenceClassification");
    assert_eq!(std::fs::read(out.join("tokenizer.json")).unwrap(), b"of the model");
    assert!(!out.join("model.safetensors.partial").exists());
    // Nothing is overwritten.
    assert!(fails(&["merge", &model, &adapter, "--out", &to]).contains("another folder"));
    assert!(fails(&["merge", &model, &adapter, "--out", &model, "--force"]).contains("of the model itself"));
    baton(&["merge", &model, &adapter, "--out", &to, "--force"]);

    let twice = folder.path().join("twice");
    baton(&["merge", &to, &adapter, "--out", &twice.display().to_string(), "--dtype", "bf16"]);
    let size = |path: &std::path::Path| path.join("model.safetensors").metadata().unwrap().len();
    assert!(size(&twice) < size(&out) * 6 / 10);
}

#[test]
fn an_adapter_is_exported_for_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("adapter.gguf").display().to_string();
    let (model, adapter) = (family("llama3"), family("llama3/adapter"));
    assert!(baton(&["export-gguf", &adapter, "--model", &model, "--out", &out]).contains("21 pairs"));
    assert!(std::fs::read(&out).unwrap().starts_with(b"GGUF"));
    let again = ["export-gguf", &adapter, "--model", &model, "--out", &out];
    assert!(fails(&again).contains("--force"));
    baton(&[&again[..], &["--force"]].concat());
}

#[test]
fn what_does_not_fit_is_refused_in_words_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let (llama, minilm) = (family("llama2"), family("minilm"));
    let adapter = family("minilm/adapter");
    let said = fails(&["merge", &llama, &adapter, "--out", &out]);
    assert!(said.contains("another model") && said.contains("q_proj"), "{said}");
    assert!(fails(&["merge", &llama, "/nowhere", "--out", &out]).contains("/nowhere"));
    assert!(fails(&["merge", "/nowhere", &adapter, "--out", &out]).contains("there is no /nowhere"));
    let said = fails(&["inspect", &adapter]);
    assert!(said.contains("a LoRA adapter of rank") && said.contains("no model"), "{said}");
    let junk = folder.path().join("junk.gguf").display().to_string();
    std::fs::write(&junk, [7; 100]).unwrap();
    assert!(fails(&["inspect", &junk]).contains("is not a GGUF file"));
    assert!(fails(&["merge", &llama, &junk, "--out", &out]).contains("for llama.cpp alone"));
    let said = fails(&["export-gguf", &adapter, "--model", &minilm, "--out", &out]);
    assert!(said.contains("baton merge"), "{said}");
    assert!(!folder.path().join("out").exists());
}
