//! Token ids are those of transformers (`scripts/golden_tokens.py`).
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

mod common;

use baton_formats::{Encoding, Tokenizer, dataset};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn models() -> Vec<(String, Tokenizer, Value)> {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(common::golden("tokens.json")).unwrap()).unwrap();
    let models = golden["models"].as_object().unwrap();
    let models = models.iter().filter_map(|(name, golden)| {
        let json = common::shared(&format!("models/{name}/tokenizer.json"))?;
        let tokenizer = Tokenizer::from_bytes(&std::fs::read(json).unwrap()).unwrap();
        Some((name.clone(), tokenizer, golden.clone()))
    });
    models.collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[test]
fn text_becomes_the_tokens_of_transformers_and_back() {
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
fn every_line_of_a_real_file_becomes_the_tokens_of_transformers() {
    let Some(file) = common::shared("data/e2e/valid.txt") else { return };
    let dataset = dataset::parse("valid.txt", &std::fs::read(file).unwrap()).unwrap();
    for (name, tokenizer, golden) in models() {
        let encoding = Encoding { seq_len: 1 << 20, append_eos: None, packing: false };
        let encoded = dataset::encode(&dataset, &tokenizer, &encoding).unwrap();
        assert_eq!((encoded.truncated_tokens, encoded.dropped), (0, 0));
        let mut hash = Sha256::new();
        for example in &encoded.examples {
            hash.update(u32::try_from(example.ids.len()).unwrap().to_le_bytes());
            example.ids.iter().for_each(|id| hash.update(id.to_le_bytes()));
        }
        let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hash, golden["valid_txt_sha256"].as_str().unwrap(), "{name}");
    }
}

#[test]
fn spans_tile_the_text_without_going_back() {
    let text = "  Hello wörld 👩‍👩‍👧,\n two  spaces <s> ";
    for (name, tokenizer, _) in models() {
        let mut reached = 0;
        for token in tokenizer.encode_spans(text).unwrap() {
            let Some(span) = token.span else { continue };
            assert!(span.start <= reached && reached <= span.end, "{name}: {span:?} after {reached}");
            reached = span.end;
        }
        assert_eq!(reached, text.len(), "{name}");
    }
}
