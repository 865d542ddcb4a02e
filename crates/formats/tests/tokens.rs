//! Token ids are those of Python's `tokenizers` (`scripts/golden_tokenizers.py`).
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

mod common;

use std::path::{Path, PathBuf};

use baton_formats::Tokenizer;
use serde_json::Value;
use sha2::{Digest, Sha256};

fn trained(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizers").join(file)
}

/// Where a tokenizer is; `None`, said aloud, where it is not.
fn find(name: &str) -> Option<PathBuf> {
    match name {
        "byte-level" | "unigram" => Some(trained(&format!("{name}.json"))),
        "minilm" => common::minilm("tokenizer.json"),
        _ => common::shared(&format!("models/{name}/tokenizer.json")),
    }
}

fn models() -> Vec<(String, Tokenizer, Value)> {
    let golden: Value = serde_json::from_slice(&std::fs::read(trained("ids.json")).unwrap()).unwrap();
    let models = golden["models"].as_object().unwrap();
    assert_eq!(models.len(), 5);
    let models = models.iter().filter_map(|(name, golden)| {
        let tokenizer = Tokenizer::from_bytes(&std::fs::read(find(name)?).unwrap()).unwrap();
        Some((name.clone(), tokenizer, golden.clone()))
    });
    models.collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn digest<'a>(tokenizer: &Tokenizer, texts: impl Iterator<Item = &'a str>) -> Value {
    let (mut hash, mut count) = (Sha256::new(), 0);
    for text in texts {
        let ids = tokenizer.encode(text).unwrap();
        hash.update(u32::try_from(ids.len()).unwrap().to_le_bytes());
        ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        count += ids.len();
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    serde_json::json!({"ids": count, "sha256": hash})
}

#[test]
fn text_becomes_the_tokens_of_tokenizers_and_back() {
    for (name, tokenizer, golden) in models() {
        assert_eq!(Some(tokenizer.vocab_size() as u64), golden["vocab_size"].as_u64(), "{name}");
        for sample in golden["samples"].as_array().unwrap() {
            let text = sample["text"].as_str().unwrap();
            let encoded = tokenizer.encode(text).unwrap();
            assert_eq!(encoded, ids(&sample["ids"]), "{name}: {text:?}");
            assert_eq!(tokenizer.encode_plain(text).unwrap(), ids(&sample["plain"]), "{name}: {text:?}");
            let spans: Vec<u32> =
                tokenizer.encode_spans(text).unwrap().iter().map(|token| token.id).collect();
            assert_eq!(spans, encoded, "{name}: {text:?}");
            let decoded = tokenizer.decode(&encoded, true).unwrap();
            assert_eq!(decoded, sample["decoded"].as_str().unwrap(), "{name}: {text:?}");
        }
    }
}

#[test]
fn whole_files_and_their_lines_become_the_tokens_of_tokenizers() {
    for (name, tokenizer, golden) in models() {
        for (file, golden) in golden["files"].as_object().unwrap() {
            let Some(path) = common::shared(file) else { continue };
            let text = std::fs::read_to_string(path).unwrap();
            assert_eq!(digest(&tokenizer, std::iter::once(text.as_str())), golden["whole"], "{name}: {file}");
            assert_eq!(digest(&tokenizer, text.split('\n')), golden["lines"], "{name}: {file}");
        }
    }
}

#[test]
fn very_long_runs_become_the_tokens_of_tokenizers() {
    for (name, tokenizer, golden) in models() {
        for run in golden["repeated"].as_array().unwrap() {
            let (piece, times) = (run["piece"].as_str().unwrap(), run["times"].as_u64().unwrap());
            let text = piece.repeat(usize::try_from(times).unwrap());
            let found = digest(&tokenizer, std::iter::once(text.as_str()));
            assert_eq!((&found["ids"], &found["sha256"]), (&run["ids"], &run["sha256"]), "{name}: {piece:?}");
        }
    }
}

#[test]
fn spans_tile_the_text_without_going_back() {
    let text = "  Hello wörld 👩‍👩‍👧,\n two  spaces <s> ";
    for (name, tokenizer, _) in models().into_iter().filter(|(name, ..)| name != "minilm") {
        let mut reached = 0;
        for token in tokenizer.encode_spans(text).unwrap() {
            let Some(span) = token.span else { continue };
            assert!(span.start <= reached && reached <= span.end, "{name}: {span:?} after {reached}");
            reached = span.end;
        }
        assert_eq!(reached, text.len(), "{name}");
    }
}
