//! `baton generate` prints prompt and continuation, and nothing else.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;

use common::{baton, fails, shared};
use serde_json::Value;

#[test]
fn two_hundred_greedy_tokens_are_those_of_transformers() {
    let Some(model) = shared("models/stories260k") else { return };
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/greedy.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    let model = model.display().to_string();
    let text =
        baton(&["generate", "--model", &model, "--prompt", "", "--tokens", "200", "--temperature", "0"]);
    assert_eq!(text, golden["text"].as_str().unwrap());
}

#[test]
fn a_prompt_stands_before_its_continuation_and_a_seed_repeats_a_draw() {
    let Some(model) = shared("models/stories260k") else { return };
    let model = model.display().to_string();
    let draw = |seed| {
        let prompt = "Tom had a red ball";
        baton(&[
            "generate",
            "--model",
            &model,
            "--prompt",
            prompt,
            "--tokens",
            "20",
            "--temperature",
            "1",
            "--seed",
            seed,
        ])
    };
    let (one, again, two) = (draw("1"), draw("1"), draw("2"));
    assert!(one.starts_with("Tom had a red ball") && one.len() > 25, "{one}");
    assert_eq!(one, again);
    assert_ne!(one, two);
}

#[test]
fn an_adapter_changes_what_is_written() {
    let Some(model) = shared("models/stories260k") else { return };
    let model = model.display().to_string();
    let adapter = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/train/final_adapter");
    let write = |more: &[&str]| {
        let mut arguments = vec!["generate", "--model", &model, "--prompt", "name : ", "--tokens", "30"];
        arguments.extend(more);
        baton(&arguments)
    };
    // As PEFT writes with this adapter (transformers' generate, greedy).
    assert_eq!(write(&["--adapter", adapter]), "name : Clab Clab Clabby Clabby. Clab ");
    assert!(write(&[]).starts_with("name : Anna"));
    assert!(fails(&["generate", "--model", &model, "--adapter", "/nowhere"]).contains("/nowhere"));
    assert!(fails(&["generate", "--model", &model, "--temperature=-1"]).contains("temperature"));
}
