//! A GGUF file: its metadata and tensors, and the configuration and tokenizer that are made from the metadata.

#![no_main]

use baton_formats::{GgufValue, MemoryFiles, ModelConfig, Tokenizer, write_gguf};
use baton_fuzz::{contents, read_weights, seed};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = contents("crates/formats/tests/golden/gguf", ".gguf");
    // The golden files are models without a tokenizer; these are tokenizers without a model.
    let text = |text: &str| GgufValue::String(text.to_owned());
    let tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab", "Ġ", "Ġa"];
    let list = |texts: &[&str]| GgufValue::Strings(texts.iter().collect());
    let common = |model: &str| {
        vec![
            ("tokenizer.ggml.model".to_owned(), text(model)),
            ("tokenizer.ggml.tokens".to_owned(), list(&tokens)),
            ("tokenizer.ggml.token_type".to_owned(), GgufValue::Integers(vec![2, 3, 3, 6, 1, 1, 1, 1, 1, 4])),
            ("tokenizer.ggml.bos_token_id".to_owned(), GgufValue::U32(1)),
            ("tokenizer.ggml.eos_token_id".to_owned(), GgufValue::U32(2)),
            ("tokenizer.ggml.add_bos_token".to_owned(), GgufValue::Bool(true)),
        ]
    };
    let mut sentence_piece = common("llama");
    let scores = (0..10_u8).map(|token| -f32::from(token)).collect();
    sentence_piece.push(("tokenizer.ggml.scores".to_owned(), GgufValue::Floats(scores)));
    seeds.extend(write_gguf(&sentence_piece, &[]));
    for words in ["gpt-2", "llama-bpe", "qwen2", "smollm"] {
        let mut byte_level = common("gpt2");
        byte_level.push(("tokenizer.ggml.pre".to_owned(), text(words)));
        byte_level.push(("tokenizer.ggml.merges".to_owned(), list(&["a b", "Ġ a"])));
        byte_level.push(("tokenizer.chat_template".to_owned(), text("{{ messages }}")));
        seeds.extend(write_gguf(&byte_level, &[]));
    }
    seeds
}

fuzz_target!(
    init: seed("gguf", seeds()),
    |bytes: &[u8]| {
        let mut files = MemoryFiles::new();
        files.insert("model.gguf", bytes);
        let Some(index) = read_weights(&files) else { return };
        let Some(gguf) = index.gguf() else { return };
        for (key, _) in gguf.metadata() {
            assert!(gguf.get(key).is_some());
        }
        if let Ok(json) = gguf.config_json() {
            let _ = ModelConfig::parse(json.as_bytes());
        }
        if let Ok(json) = gguf.tokenizer_json()
            && let Ok(tokenizer) = Tokenizer::from_bytes(json.as_bytes())
        {
            let _ = tokenizer.encode("The wind, é 風");
        }
        let _ = (gguf.tokenizer_config_json(), gguf.chat_template());
    }
);
