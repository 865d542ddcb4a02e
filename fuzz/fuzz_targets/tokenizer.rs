//! `tokenizer.json`: whatever it says, a short text becomes tokens and text again, or an error, in a bounded time.

#![no_main]

use baton_formats::Tokenizer;
use baton_fuzz::{contents, seed};
use libfuzzer_sys::fuzz_target;

/// Words, digits, spaces, several scripts, an emoji of several code points, and what looks like special tokens.
const TEXT: &str = "Hello wörld, it's 1234!  \n\t<s> [CLS] 風が吹く 👩\u{200d}🚀 e\u{301} a b c</s>";

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = contents("crates/formats/tests/golden/tokenizers", "l.json");
    seeds.extend(contents("crates/formats/tests", "tiny_tokenizer.json"));
    // Small ones, one of each model, that a mutation changes more of.
    let wrap = |normalizer: &str, pre: &str, post: &str, decoder: &str, model: &str| {
        format!(
            r#"{{"version":"1.0","truncation":null,"padding":null,"added_tokens":[{{"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}}],"normalizer":{normalizer},"pre_tokenizer":{pre},"post_processor":{post},"decoder":{decoder},"model":{model}}}"#
        )
        .into_bytes()
    };
    seeds.push(wrap(
        r#"{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]}"#,
        "null",
        r#"{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],"pair":[{"Sequence":{"id":"A","type_id":0}},{"Sequence":{"id":"B","type_id":1}}],"special_tokens":{"<s>":{"id":"<s>","ids":[0],"tokens":["<s>"]}}}"#,
        r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#,
        r#"{"type":"BPE","dropout":null,"unk_token":"<s>","continuing_subword_prefix":null,"end_of_word_suffix":null,"fuse_unk":true,"byte_fallback":true,"ignore_merges":false,"vocab":{"<s>":0,"▁":1,"a":2,"b":3,"ab":4,"<0x0A>":5},"merges":[["a","b"]]}"#,
    ));
    seeds.push(wrap(
        r#"{"type":"BertNormalizer","clean_text":true,"handle_chinese_chars":true,"strip_accents":null,"lowercase":true}"#,
        r#"{"type":"BertPreTokenizer"}"#,
        r#"{"type":"BertProcessing","sep":["b",3],"cls":["<s>",0]}"#,
        r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###,
        r###"{"type":"WordPiece","unk_token":"<s>","continuing_subword_prefix":"##","max_input_chars_per_word":100,"vocab":{"<s>":0,"a":1,"##b":2,"b":3}}"###,
    ));
    seeds.push(wrap(
        r#"{"type":"NFKC"}"#,
        r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#,
        "null",
        r#"{"type":"Metaspace","replacement":"▁","prepend_scheme":"always","split":true}"#,
        r#"{"type":"Unigram","unk_id":0,"vocab":[["<s>",0.0],["▁",-1.5],["a",-2.0],["b",-3.0]],"byte_fallback":false}"#,
    ));
    seeds.push(wrap(
        "null",
        r#"{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"(?i:'s|'t)|\\p{L}+|\\s+(?!\\S)|\\s+"},"behavior":"Isolated","invert":false},{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}]}"#,
        r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false,"use_regex":true}"#,
        r#"{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":true,"use_regex":true}"#,
        r#"{"type":"WordLevel","vocab":{"<s>":0,"a":1},"unk_token":"<s>"}"#,
    ));
    seeds
}

fuzz_target!(init: seed("tokenizer", seeds()), |json: &[u8]| {
    let Ok(tokenizer) = Tokenizer::from_bytes(json) else { return };
    let Ok(ids) = tokenizer.encode(TEXT) else { return };
    let _ = tokenizer.decode(&ids, true);
    let _ = tokenizer.decode(&[0, 1, 5, u32::MAX], false);
    if let Ok(tokens) = tokenizer.encode_spans_plain(TEXT) {
        assert!(tokens.iter().filter_map(|token| token.span.as_ref()).all(|span| TEXT.get(span.clone()).is_some()));
    }
    if let Ok(framed) = tokenizer.encode_framed(TEXT, Some("a b"), 6) {
        assert_eq!(framed.ids.len(), framed.type_ids.len());
    }
});
