//! Models of every family in a room: writers and labellers, frozen weights of every kind, judged alike by however many
//! devices share the work.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod common;
#[path = "common/words.rs"]
mod words;

use baton_engine::source::{AnyFiles, Model};
use baton_formats::config::ALL_LINEAR;
use baton_formats::{Example, Files, Label, MemoryFiles, ModelConfig, dataset};
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::RunPhase;
use baton_protocol::run::{Backbone, Settings};
use common::{Outcome, adapter_numbers, run_room};
use futures::executor::block_on;
use std::path::{Path, PathBuf};

const STEPS: u32 = 4;

fn settings() -> Settings {
    Settings {
        steps: STEPS,
        batch_size: 4,
        micro_batches: 2,
        seq_len: 16,
        lora_rank: 2,
        targets: vec![ALL_LINEAR.into()],
        lr: 1e-2,
        warmup_steps: 0,
        boundary: Precision::F32,
        seed: 3,
        sample_tokens: 0,
        append_eos: false,
        validation: 0.25,
        evaluate_every: 2,
        ..Settings::default()
    }
}

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families").join(family)
}

const WORDS: [&str; 24] = [
    "red", "green", "blue", "old", "new", "big", "small", "cat", "dog", "bird", "runs", "sleeps", "sings",
    "good", "bad", "fine", "awful", "the", "a", "and", "but", "is", "was", "very",
];

/// A golden family's model with a tokenizer of a few words: its own was never made.
fn files(family: &str) -> MemoryFiles {
    let mut files = MemoryFiles::new();
    for entry in std::fs::read_dir(golden(family)).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_file() && !name.starts_with("golden") {
            files.insert(name, std::fs::read(entry.path()).unwrap());
        }
    }
    files.insert("tokenizer.json", words::tokenizer(&WORDS));
    files
}

fn config(family: &str) -> ModelConfig {
    ModelConfig::parse(&std::fs::read(golden(family).join("config.json")).unwrap()).unwrap()
}

/// Sentences, a line each.
fn text() -> (&'static str, Vec<u8>) {
    let line = |i: usize| {
        let word = |k: usize| WORDS[(i * 7 + k * k + k) % WORDS.len()];
        (0..4 + i % 5).map(word).collect::<Vec<_>>().join(" ")
    };
    ("lines.txt", (0..24).map(line).collect::<Vec<_>>().join("\n").into_bytes())
}

/// Sentences with what to say of them.
fn labelled(regression: bool) -> (&'static str, Vec<u8>) {
    let line = |i: usize| {
        let word = if i.is_multiple_of(2) { "good" } else { "awful" };
        let label = match (regression, i.is_multiple_of(2)) {
            (true, good) => {
                if good {
                    "0.75"
                } else {
                    "-0.5"
                }
            }
            (false, true) => "1",
            (false, false) => "0",
        };
        format!("the {} {} is {word}{}\t{label}\n", WORDS[i % 7], WORDS[7 + i % 3], " very".repeat(i % 4))
    };
    let lines: String = (0..24).map(line).collect();
    ("labels.tsv", format!("sentence\tlabel\n{lines}").into_bytes())
}

fn room(family: &str, text: (&str, Vec<u8>), settings: &Settings, stages: usize) -> Outcome {
    let outcome = run_room(AnyFiles::Memory(files(family)), text, settings, stages, None);
    let what = format!("{family}, {stages} stages");
    assert_eq!((&outcome.phase, &outcome.errors), (&Some(RunPhase::Finished), &Vec::new()), "{what}");
    assert_eq!(outcome.losses.len(), STEPS as usize, "{what}");
    let judged: Vec<u32> = outcome.judged.iter().map(|(done, _)| *done).collect();
    assert_eq!(judged, [0, 2, 4], "{what}");
    outcome
}

fn assert_same(family: &str, got: &Outcome, want: &Outcome) {
    let close = |got: f64, want: f64| (got - want).abs() <= 1e-5 * want.abs().max(1e-3);
    for (got, want) in got.losses.iter().zip(&want.losses) {
        assert!(close(*got, *want), "{family}: loss {got} against {want}");
    }
    for ((_, got), (_, want)) in got.judged.iter().zip(&want.judged) {
        assert!(close(got.loss, want.loss), "{family}: judged {got:?} against {want:?}");
        assert_eq!((got.samples, got.classification), (want.samples, want.classification), "{family}");
    }
    let json = block_on(baton_formats::read_all(&files(family), "config.json", 1 << 20)).unwrap();
    let (got, want) = (adapter_numbers(&got.zip, &json), adapter_numbers(&want.zip, &json));
    let worst = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && worst < 1e-4, "{family}: an adapter number differs by {worst}");
}

#[test]
fn writers_of_every_family_train_alike_however_they_are_split() {
    for family in ["llama3", "mistral", "qwen2", "qwen3", "gemma3", "gpt2", "llama_sharded", "llama_bf16"] {
        let alone = room(family, text(), &settings(), 0);
        // A random model's few steps need not help on other lines; they change what it says of them.
        assert_ne!(alone.judged[2].1.loss, alone.judged[0].1.loss, "{family} is not trained");
        for stages in [1, 3] {
            assert_same(family, &room(family, text(), &settings(), stages), &alone);
        }
    }
}

#[test]
fn labellers_train_their_head_with_the_host() {
    for family in ["bert", "minilm", "roberta"] {
        let settings = Settings { steps: STEPS, lr: 3e-2, ..settings() };
        let alone = room(family, labelled(false), &settings, 0);
        let judged = |at: usize| alone.judged[at].1.classification.unwrap();
        assert_ne!(alone.judged[2].1.loss, alone.judged[0].1.loss, "{family} is not trained");
        assert!((0.0..=1.0).contains(&judged(2).accuracy));
        for stages in [1, 3] {
            assert_same(family, &room(family, labelled(false), &settings, stages), &alone);
        }
    }
}

#[test]
fn values_are_learned_and_judged_by_correlation() {
    let alone = room("bert_regression", labelled(true), &settings(), 0);
    assert!(alone.judged[2].1.correlation.is_some_and(|values| values.pearson.is_some()));
    assert_same("bert_regression", &room("bert_regression", labelled(true), &settings(), 2), &alone);
}

#[test]
fn packed_weights_train_alike_however_they_are_split_and_close_to_whole_ones() {
    for family in ["qwen3", "gpt2"] {
        let whole = room(family, text(), &settings(), 0);
        for (backbone, bound) in [(Backbone::Bf16, 0.02), (Backbone::Int8, 0.02), (Backbone::Nf4, 0.2)] {
            let settings = Settings { backbone, ..settings() };
            let alone = room(family, text(), &settings, 0);
            assert_ne!(alone.losses, whole.losses, "{family} {backbone:?}: nothing was packed");
            for (got, want) in alone.losses.iter().zip(&whole.losses) {
                assert!((got - want).abs() < bound * want, "{family} {backbone:?}: {got} against {want}");
            }
            assert_same(family, &room(family, text(), &settings, 3), &alone);
        }
    }
}

#[test]
fn text_without_labels_is_refused_by_a_labeller() {
    let outcome = run_room(AnyFiles::Memory(files("bert")), text(), &settings(), 0, None);
    assert!(outcome.errors[0].contains("labels texts"), "{:?}", outcome.errors);
}

/// The file without the tensors whose names contain `part`: they go by another name.
fn without(mut files: MemoryFiles, part: &str) -> MemoryFiles {
    let mut weights = block_on(baton_formats::read_all(&files, "model.safetensors", 1 << 24)).unwrap();
    let other = "_".repeat(part.len());
    let places: Vec<_> =
        weights.windows(part.len()).enumerate().filter(|(_, at)| *at == part.as_bytes()).collect();
    let places: Vec<_> = places.into_iter().map(|(place, _)| place).collect();
    assert!(!places.is_empty(), "there is no {part}");
    for place in places {
        weights[place..place + part.len()].copy_from_slice(other.as_bytes());
    }
    files.insert("model.safetensors", weights);
    files
}

#[test]
fn a_model_whose_tensors_are_not_all_there_is_refused_when_it_is_chosen() {
    let open = |files| block_on(Model::open(AnyFiles::Memory(files))).err().map(|error| error.to_string());
    assert_eq!(open(files("bert")), None);
    // As BertForMaskedLM is saved.
    let mut masked = without(files("bert"), "pooler.dense");
    let config = String::from_utf8(std::fs::read(golden("bert").join("config.json")).unwrap()).unwrap();
    assert!(config.contains("BertForSequenceClassification"));
    masked.insert("config.json", config.replace("BertForSequenceClassification", "BertForMaskedLM"));
    let error = open(masked).unwrap();
    assert!(error.contains("pooler") && error.contains("BertForSequenceClassification"), "{error}");
    // RoBERTa's head is trained whole: it has no pooler to miss.
    assert_eq!(open(files("roberta")), None);
    let error = open(without(files("llama3"), "layers.1.mlp.up_proj")).unwrap();
    assert!(error.contains("model.layers.1.mlp.up_proj.weight"), "{error}");
}

#[test]
fn a_labeller_of_three_classes_keeps_its_own_head() {
    assert_eq!(config("bert").classifier().unwrap().outputs, 3);
    // Its file has a head for three: two labels in the text do not cut it down.
    room("bert", labelled(false), &settings(), 2);
    assert!(block_on(files("bert").size("model.safetensors")).is_ok());
}

#[test]
fn classes_keep_their_names_whatever_order_each_file_counts_them_in() {
    let model = block_on(Model::open(AnyFiles::Memory(files("bert")))).unwrap();
    let data = |lines: &str| dataset::parse("a.tsv", format!("sentence\tlabel\n{lines}").as_bytes()).unwrap();
    let classes = |examples: &[Example]| examples.iter().map(|example| example.label).collect::<Vec<_>>();
    let class = |class| Some(Label::Class(class));
    // The file's own names, whatever their case.
    let own = data("good cat\tlabel_2\nbad cat\tLABEL_0\n");
    let prepared = model.prepare(&own, Some(&data("old dog\tLABEL_2\n")), &settings()).unwrap();
    assert_eq!(classes(&prepared.train.examples), [class(2), class(0)]);
    assert_eq!(classes(&prepared.validation), [class(2)]);
    assert_eq!(prepared.config.classifier().unwrap().outputs, 3);
    // Other names make another head, and the file to judge by follows the one to train on.
    let other = data("good cat\tjoy\nbad cat\tanger\nold cat\tsadness\n");
    let prepared =
        model.prepare(&other, Some(&data("old dog\tsadness\nnew dog\tjoy\n")), &settings()).unwrap();
    assert_eq!(classes(&prepared.train.examples), [class(1), class(0), class(2)]);
    assert_eq!(classes(&prepared.validation), [class(2), class(1)]);
    assert_eq!(prepared.config.classifier().unwrap().labels, ["anger", "joy", "sadness"]);
    assert!(model.prepare(&other, Some(&data("old dog\tfear\n")), &settings()).is_err());
}
