//! The vocabulary in a GGUF file as a `tokenizer.json`.
//!
//! GGUF has the tokens and names the rest: which of llama.cpp's tokenizers it is (`tokenizer.ggml.model`), and for
//! byte-level BPE which regular expression cuts the text into words (`tokenizer.ggml.pre`). What each name stands for is in
//! llama.cpp's `llama-vocab.cpp`, and in the `tokenizer.json` of the model that it is named after.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::super::WeightsError;
use super::{Gguf, GgufValue};

/// Llama 3's words: contractions, letters with a mark before them, at most three digits, marks, spaces.
const LLAMA3_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Qwen's words: the same, but each digit alone.
const QWEN2_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// The values of `tokenizer.ggml.pre` that are known.
const KNOWN_WORDS: &str = "default, gpt-2, llama-bpe, qwen2 and smollm";
/// The values of `tokenizer.ggml.model` that are known.
const KNOWN_MODELS: &str = "gpt2 and llama; for another one put the model's tokenizer.json beside the file";
/// SentencePiece's sign for a space.
const SPACE: &str = "▁";
/// No real piece has more characters (Gemma's longest runs of spaces have 31).
const PIECE_LIMIT: usize = 64;

/// Kinds of tokens (`tokenizer.ggml.token_type`).
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

impl Gguf {
    /// The `tokenizer.json` that the model would have on the Hugging Face hub.
    ///
    /// # Errors
    ///
    /// When the file has no tokenizer, or one of a kind that is not known.
    pub fn tokenizer_json(&self) -> Result<String, WeightsError> {
        let none = || WeightsError::NoGgufTokenizer { name: self.file.clone() };
        match self.text("tokenizer.ggml.model").ok_or_else(none)? {
            "gpt2" => self.byte_level(),
            "llama" => self.sentence_piece(),
            other => Err(self.unknown("tokenizer", other, KNOWN_MODELS)),
        }
    }

    /// A `tokenizer_config.json` of what the file has: the special tokens, and the chat template.
    pub fn tokenizer_config_json(&self) -> String {
        let token = |name: &str| self.special(name).map(|(_, token)| token);
        json!({
            "bos_token": token("bos"),
            "eos_token": token("eos"),
            "unk_token": token("unknown"),
            "pad_token": token("padding"),
            "chat_template": self.chat_template(),
        })
        .to_string()
    }

    /// GPT-2's byte-level BPE, whose tokens and merges are written in its alphabet of bytes.
    fn byte_level(&self) -> Result<String, WeightsError> {
        let tokens = self.tokens()?;
        let Some(GgufValue::Strings(pairs)) = self.get("tokenizer.ggml.merges") else {
            return Err(self.lacks("tokenizer.ggml.merges"));
        };
        let mut merges = Vec::with_capacity(pairs.len());
        for pair in pairs.iter() {
            merges.push(pair.split_once(' ').ok_or_else(|| self.wrong(format!("a merge is \"{pair}\"")))?);
        }
        let bytes = |use_regex: bool| {
            json!({
                "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex
            })
        };
        let words = |pattern: &str| {
            let split = json!({
                "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false
            });
            json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
        };
        let pre = self.text("tokenizer.ggml.pre").unwrap_or("default");
        let (normalizer, pre_tokenizer) = match pre {
            "default" | "gpt-2" => (Value::Null, bytes(true)),
            "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, words(LLAMA3_WORDS)),
            "qwen2" => (json!({"type": "NFC"}), words(QWEN2_WORDS)),
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                (Value::Null, json!({"type": "Sequence", "pretokenizers": [digits, bytes(true)]}))
            }
            other => return Err(self.unknown("cutting of text into words", other, KNOWN_WORDS)),
        };
        let llama3 = matches!(pre, "llama-bpe" | "llama3" | "llama-v3");
        // The places that a converter filled up are of no token.
        let vocabulary = tokens.iter().filter(|token| token.kind != UNUSED);
        Ok(Parts {
            added: self.added(&tokens),
            normalizer,
            pre_tokenizer,
            post_processor: self.template(llama3)?,
            decoder: json!({
                "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true
            }),
            model: json!({"type": "BPE", "ignore_merges": llama3}),
            vocabulary: vocabulary.map(|token| (token.text, token.id)).collect(),
            merges,
        }
        .json())
    }

    /// SentencePiece's BPE, whose merges are its pieces in the order of their scores.
    fn sentence_piece(&self) -> Result<String, WeightsError> {
        let tokens = self.tokens()?;
        let scores = match self.get("tokenizer.ggml.scores") {
            Some(GgufValue::Floats(scores)) if scores.len() == tokens.len() => scores,
            _ => return Err(self.lacks("tokenizer.ggml.scores")),
        };
        let prefix = self.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
        let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
        let normalizer = if prefix {
            let first = json!({"type": "Prepend", "prepend": SPACE});
            json!({"type": "Sequence", "normalizers": [first, spaces]})
        } else {
            spaces
        };
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if prefix {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let unknown = tokens.iter().find(|token| token.kind == UNKNOWN).map(|token| token.text);
        Ok(Parts {
            added: self.added(&tokens),
            normalizer,
            pre_tokenizer: Value::Null,
            post_processor: self.template(true)?,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            model: json!({"type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": true}),
            merges: merges(&tokens, scores),
            vocabulary: tokens.iter().map(|token| (token.text, token.id)).collect(),
        }
        .json())
    }

    fn tokens(&self) -> Result<Vec<Token<'_>>, WeightsError> {
        let Some(GgufValue::Strings(tokens)) = self.get("tokenizer.ggml.tokens") else {
            return Err(self.lacks("tokenizer.ggml.tokens"));
        };
        let kinds = match self.get("tokenizer.ggml.token_type") {
            Some(GgufValue::Integers(kinds)) if kinds.len() == tokens.len() => Some(kinds),
            None => None,
            _ => return Err(self.lacks("tokenizer.ggml.token_type")),
        };
        let kind = |at: usize| kinds.and_then(|kinds| kinds.get(at)).copied().unwrap_or(NORMAL);
        Ok(tokens.iter().enumerate().map(|(id, text)| Token { id, text, kind: kind(id) }).collect())
    }

    /// The tokens that are looked for in the text before all else.
    fn added(&self, tokens: &[Token<'_>]) -> Vec<Value> {
        let added = tokens.iter().filter(|token| [UNKNOWN, CONTROL, USER_DEFINED].contains(&token.kind));
        added
            .map(|token| {
                json!({
                    "id": token.id, "content": token.text, "special": token.kind != USER_DEFINED,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
                })
            })
            .collect()
    }

    /// A special token by its part in the text: its id and itself.
    fn special(&self, name: &str) -> Option<(u64, &str)> {
        let id = self.number(&format!("tokenizer.ggml.{name}_token_id"))?;
        let Some(GgufValue::Strings(tokens)) = self.get("tokenizer.ggml.tokens") else { return None };
        Some((id, tokens.get(usize::try_from(id).ok()?)?))
    }

    /// What is put around a text.
    fn template(&self, bos_by_default: bool) -> Result<Value, WeightsError> {
        let wanted = |name: &str, default: bool| -> Result<Option<(u64, &str)>, WeightsError> {
            let flag = self.flag(&format!("tokenizer.ggml.add_{name}_token"));
            match (flag.unwrap_or(default), self.special(name)) {
                (true, Some(token)) => Ok(Some(token)),
                (true, None) if flag.is_some() => Err(self.lacks(&format!("tokenizer.ggml.{name}_token_id"))),
                _ => Ok(None),
            }
        };
        let (bos, eos) = (wanted("bos", bos_by_default)?, wanted("eos", false)?);
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let special = |kind: u64| move |(_, token): (u64, &str)| json!({"SpecialToken": {"id": token, "type_id": kind}});
        let around = |name: &str, kind: u64| {
            let text = json!({"Sequence": {"id": name, "type_id": kind}});
            let parts = [bos.map(special(kind)), Some(text), eos.map(special(kind))];
            parts.into_iter().flatten().collect::<Vec<_>>()
        };
        let tokens: serde_json::Map<String, Value> = [bos, eos]
            .into_iter()
            .flatten()
            .map(|(id, token)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        let pair = [around("A", 0), around("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        }))
    }
}

struct Token<'a> {
    id: usize,
    text: &'a str,
    kind: i32,
}

/// Every way to put a piece together from two others, the best-scored pieces first, as transformers derives them
/// (`generate_merges` in `convert_slow_tokenizer.py`).
fn merges<'a>(tokens: &[Token<'a>], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let plain = |token: &&Token<'_>| [NORMAL, USER_DEFINED].contains(&token.kind);
    let ids: HashMap<&str, usize> = tokens.iter().filter(plain).map(|token| (token.text, token.id)).collect();
    let mut found = Vec::new();
    for (token, score) in tokens.iter().zip(scores).filter(|(token, _)| token.kind == NORMAL) {
        if token.text.len() > 4 * PIECE_LIMIT {
            continue;
        }
        let first = found.len();
        for (at, _) in token.text.char_indices().skip(1) {
            let (left, right) = token.text.split_at(at);
            if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                found.push((*score, left, right, *left_id, *right_id));
            }
        }
        if let Some(own) = found.get_mut(first..) {
            own.sort_by_key(|(_, _, _, left, right)| (*left, *right));
        }
    }
    let length = |text: &str| text.chars().count();
    found.sort_by(|(score, left, right, ..), (other_score, other_left, other_right, ..)| {
        let by_length = || (length(other_left), length(other_right)).cmp(&(length(left), length(right)));
        other_score.total_cmp(score).then_with(by_length)
    });
    found.into_iter().map(|(_, left, right, ..)| (left, right)).collect()
}

/// What a `tokenizer.json` is made of.
struct Parts<'a> {
    added: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Value,
    vocabulary: Vec<(&'a str, usize)>,
    merges: Vec<(&'a str, &'a str)>,
}

impl Parts<'_> {
    /// The lists are written straight into the text: as JSON values they would take many times their size.
    fn json(self) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let mut vocabulary = String::new();
        let mut seen = std::collections::HashSet::new();
        // A token that a file has twice keeps its first id.
        for (token, id) in self.vocabulary.into_iter().filter(|(token, _)| seen.insert(*token)) {
            let comma = if vocabulary.is_empty() { "" } else { "," };
            vocabulary.extend([comma, &quoted(token), ":", &id.to_string()]);
        }
        let mut merges = String::new();
        for (left, right) in self.merges {
            let comma = if merges.is_empty() { "" } else { "," };
            merges.extend([comma, "[", &quoted(left), ",", &quoted(right), "]"]);
        }
        let model = self.model.to_string();
        let model = model.strip_suffix('}').unwrap_or(&model);
        format!(
            "{{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":{},\"normalizer\":{},\
             \"pre_tokenizer\":{},\"post_processor\":{},\"decoder\":{},\
             \"model\":{model},\"vocab\":{{{vocabulary}}},\"merges\":[{merges}]}}}}",
            Value::from(self.added),
            self.normalizer,
            self.pre_tokenizer,
            self.post_processor,
            self.decoder,
        )
    }
}
