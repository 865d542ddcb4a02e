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
    // The text ends with a line of its own.
    assert_eq!(text, format!("{}\n", golden["text"].as_str().unwrap().trim_end_matches('\n')));
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
    assert_eq!(write(&["--adapter", adapter]), "name : Clab Clab Clabby Clabby. Clab \n");
    assert!(write(&[]).starts_with("name : Anna"));
    let said = fails(&["generate", "--model", &model, "--adapter", "/nowhere"]);
    assert!(said.contains("there is no /nowhere") && said.contains("adapter_config.json"), "{said}");
    let said = fails(&["generate", "--model", &model, "--adapter", &model]);
    assert!(said.contains("a model's folder"), "{said}");
    assert!(fails(&["generate", "--model", &model, "--temperature=-1"]).contains("temperature"));
}

#[test]
fn a_message_is_answered_as_training_wrote_conversations_and_only_the_answer_is_printed() {
    let Some(model) = shared("models/stories260k") else { return };
    let model = model.display().to_string();
    let write = |more: &[&str]| {
        let mut arguments = vec!["generate", "--model", &model, "--tokens", "12"];
        arguments.extend(more);
        baton(&arguments)
    };
    // This model has no chat template: the turns are those of `Sample::segments`.
    let answer = |whole: &str| {
        let answer =
            whole.rsplit_once("assistant:").unwrap().1.trim_start().lines().next().unwrap().to_owned();
        assert!(!answer.is_empty());
        answer + "\n"
    };
    let whole = write(&["--prompt", "user: Hi\nassistant:"]);
    assert_eq!(write(&["--prompt", "Hi", "--chat"]), answer(&whole));
    let whole = write(&["--prompt", "system: Be kind.\nuser: Hi\nassistant:"]);
    assert_eq!(write(&["--prompt", "Hi", "--chat", "--system", "Be kind."]), answer(&whole));
}
