//! What a hostile `tokenizer.json` could do is refused in words, before it costs memory or time.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

mod common;

use baton_formats::{Tokenizer, TokenizerError};
use serde_json::{Value, json};

fn trained(name: &str) -> Value {
    let file = format!("{}/tests/golden/tokenizers/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn refusal(json: &[u8]) -> String {
    match Tokenizer::from_bytes(json) {
        Err(TokenizerError::Invalid { reason }) => reason,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken: {}", String::from_utf8_lossy(&json[..json.len().min(300)])),
    }
}

/// The byte-level tokenizer with one of its parts exchanged is refused with these words.
fn refused(part: &str, with: Value, words: &str) {
    let mut tokenizer = trained("byte-level");
    *tokenizer.pointer_mut(part).unwrap() = with;
    let reason = refusal(&serde_json::to_vec(&tokenizer).unwrap());
    assert!(reason.contains(words), "{reason:?} does not say {words:?}");
}

fn taken(part: &str, with: Value) {
    let mut tokenizer = trained("byte-level");
    *tokenizer.pointer_mut(part).unwrap() = with;
    let tokenizer = Tokenizer::from_bytes(&serde_json::to_vec(&tokenizer).unwrap()).unwrap();
    tokenizer.encode("Once upon a time, 1234567 there was… 日本").unwrap();
}

fn regex(pattern: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

#[test]
fn depth_counts_and_ids_are_bounded() {
    for depth in [100, 100_000] {
        let nested =
            format!("{}{}", r#"{"type":"Sequence","normalizers":["#.repeat(depth), "]}".repeat(depth));
        refusal(format!(r#"{{"normalizer": {nested}}}"#).as_bytes());
    }
    refusal(format!(r#"{{"other": {}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000)).as_bytes());
    refused("/model/vocab", json!({"a": 1 << 24}), "the token id 16777216 is not below");
    refused("/model/vocab", json!({"a": u64::MAX}), "the token id 18446744073709551615");
    let added = |id: u64| json!({"id": id, "content": format!("<{id}>"), "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    refused("/added_tokens", json!([added(1 << 40)]), "the token id 1099511627776");
    refused("/added_tokens", (0..70_000).map(added).collect(), "adds more than 65536 tokens");
    let long = json!([{"id": 0, "content": "x".repeat(1 << 20), "special": true}]);
    refused("/added_tokens", long, "an added token has 1048576 bytes");
    let tokens: String = (0..(2 << 20) + 1).map(|id| format!("\"{id:x}\":1,")).collect();
    let many = format!(r#"{{"model": {{"type": "BPE", "vocab": {{{}}}}}}}"#, tokens.trim_end_matches(','));
    assert!(refusal(many.as_bytes()).contains("more than 2097152 tokens"));
    refused("/normalizer", (0..20_000).collect(), "has more than 16384 values");
    refused("/model/vocab", json!({"a": 1e300}), "invalid type");
}

#[test]
fn parts_that_multiply_text_are_refused() {
    let chain = |parts: Vec<Value>| json!({"type": "Sequence", "normalizers": parts});
    refused("/normalizer", chain(vec![replace("a", "aa"); 40]), "more than 1024 times as long");
    refused("/normalizer", chain(vec![replace("x", "y"); 100]), "parts, more than 64");
    refused("/normalizer", replace("a", &"b".repeat(1 << 20)), "writes a text of more than 4096 bytes");
    refused("/decoder", json!({"type": "Sequence", "decoders": vec![replace("a", "aa"); 11]}), "1024 times");
    refused(
        "/normalizer",
        json!({"type": "Prepend", "prepend": "b".repeat(1 << 20)}),
        "more than 4096 bytes",
    );
    taken("/normalizer", chain(vec![json!({"type": "Prepend", "prepend": "▁"}), replace(" ", "▁")]));
}

#[test]
fn patterns_that_take_forever_are_refused_and_those_of_real_models_are_not() {
    for pattern in ["(a+)+$", "(?:a*)*", r"(\w|\d*)*x", "((a{2,}))+", "(a{1,1000}){1,1000}b"] {
        refused("/pre_tokenizer", regex(pattern), "repeats a repetition");
    }
    refused("/pre_tokenizer", regex(&"a".repeat(5000)), "a pattern of it has 5000 bytes");
    // Of GPT-2, Llama 3, Qwen2, GPT-4o, DeepSeek, BLOOM, and of numbers in threes.
    for pattern in [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        r" ?[^(\s|[.,!?…。，、।۔،])]+",
        r"\d{1,3}(?=(?:\d{3})*\b)",
        r"(?=(\d{3})+(?!\d))",
    ] {
        taken("/pre_tokenizer", regex(pattern));
    }
}

#[test]
fn what_would_make_the_library_panic_is_refused() {
    let merges = json!([["Once", "upon"]]);
    let mut tokenizer = trained("byte-level");
    tokenizer["model"]["vocab"] = json!({"Once": 0, "upon": 1});
    tokenizer["model"]["merges"] = merges;
    tokenizer["added_tokens"] = json!([]);
    assert!(refusal(&serde_json::to_vec(&tokenizer).unwrap()).contains("a merge makes a token that is not"));
    tokenizer["model"]["vocab"] = json!({"é": 0, "a": 1, "long enough": 2});
    tokenizer["model"]["merges"] = json!([["a", "a"]]);
    tokenizer["model"]["continuing_subword_prefix"] = json!("##");
    assert!(refusal(&serde_json::to_vec(&tokenizer).unwrap()).contains("does not begin with \"##\""));
    refused("/model/dropout", json!(0.5), "drops merges at random");
    refused("/normalizer", json!({"type": "Precompiled"}), "has no precompiled_charsmap");
    refused("/normalizer", json!({"precompiled_charsmap": "AAAA"}), "its charsmap");
    let length = json!({"type": "FixedLength", "length": 0});
    refused("/pre_tokenizer", length, "pieces of length 0");
    refused("/decoder", json!({"type": "Strip", "content": " ", "start": 0, "stop": 5}), "strips the end");
    let template = |single: Value, special: Value| json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": special});
    let piece = |kind: &str, id: &str| json!({kind: {"id": id, "type_id": 0}});
    let none = template(json!([piece("SpecialToken", "<s>")]), json!({}));
    refused("/post_processor", none, "the special token \"<s>\", which it does not describe");
    let second = template(json!([piece("Sequence", "B")]), json!({}));
    refused("/post_processor", second, "for a single text names the text \"B\"");
    let repeated = template(vec![piece("Sequence", "A"); 1000].into(), json!({}));
    refused("/post_processor", repeated, "has 1000 pieces");
}

#[test]
fn a_charsmap_that_leads_outside_of_itself_is_refused() {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let unigram = trained("unigram");
    let at = "/normalizer/normalizers/0/precompiled_charsmap";
    let good = STANDARD.decode(unigram.pointer(at).unwrap().as_str().unwrap()).unwrap();
    let with = |bytes: &[u8]| {
        let mut tokenizer = unigram.clone();
        *tokenizer.pointer_mut(at).unwrap() = STANDARD.encode(bytes).into();
        Tokenizer::from_bytes(&serde_json::to_vec(&tokenizer).unwrap())
    };
    assert!(with(&good).is_ok());
    assert!(matches!(with(&[]), Err(TokenizerError::Invalid { .. })));
    let huge = [&u32::MAX.to_le_bytes()[..], &good[4..]].concat();
    assert!(matches!(with(&huge), Err(TokenizerError::Invalid { reason }) if reason.contains("cut short")));
    // Whatever is changed in it, it is refused, or text goes through it.
    let text = "ＡＢ ﬁ Ω é ﷺ\u{200b}x\u{3000}y".to_owned() + &('\u{80}'..'\u{3000}').collect::<String>();
    let (mut passed, mut stopped) = (0, 0);
    for place in 4..good.len() {
        let mut bytes = good.clone();
        bytes[place] ^= [0xff, 0x10, 0x01][place % 3];
        match with(&bytes) {
            Ok(tokenizer) => {
                tokenizer.encode(&text).unwrap();
                passed += 1;
            }
            Err(TokenizerError::Invalid { .. }) => stopped += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(passed > 0 && stopped > 0, "{passed} {stopped}");
}

#[test]
fn a_real_tokenizer_that_is_changed_anywhere_is_refused_or_works() {
    // Every 11th byte of the parts around the vocabulary.
    for name in ["byte-level", "unigram"] {
        let file = format!("{}/tests/golden/tokenizers/{name}.json", env!("CARGO_MANIFEST_DIR"));
        let good = std::fs::read(file).unwrap();
        let head = good.windows(9).position(|window| window.starts_with(b"\"vocab\":")).unwrap();
        for place in (0..head).step_by(11) {
            for byte in *b"0\"}x]" {
                let mut bytes = good.clone();
                bytes[place] = byte;
                if let Ok(tokenizer) = Tokenizer::from_bytes(&bytes)
                    && let Ok(ids) = tokenizer.encode("Once upon a time <s> é")
                {
                    let _ = tokenizer.decode(&ids, true);
                }
            }
        }
    }
}

#[test]
fn a_chain_of_byte_levels_or_of_templates_is_refused() {
    let bytes =
        |count: usize| json!({"type": "Sequence", "normalizers": vec![json!({"type": "ByteLevel"}); count]});
    taken("/normalizer", bytes(2));
    refused("/normalizer", bytes(34), "its normalizer can make text more than 1024 times as long");
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let template =
        json!({"type": "TemplateProcessing", "single": [text, text, text], "pair": [], "special_tokens": {}});
    let templates = |count: usize| json!({"type": "Sequence", "processors": vec![template.clone(); count]});
    taken("/post_processor", templates(1));
    refused("/post_processor", templates(2), "its post_processor has more than one template");
}
