//! GGUF: files of gguf-py read as the models that they were made of, and files that lie refused.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "clippy does not see that the helpers are of tests")]

mod common;

use std::ops::Range;
use std::path::Path;

use baton_formats::weights::gguf::Strings;
use baton_formats::{
    DirFiles, Files, FilesError, GgufValue, MemoryFiles, ModelConfig, NumberFormat, TensorIndex, Tokenizer,
    WeightsError, read_all, write_gguf,
};
use common::Counting;
use futures::executor::block_on;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FILE: &str = "model.gguf";
const FAMILIES: [&str; 7] = ["llama", "llama_q8", "qwen2", "qwen3", "gemma3", "gpt2", "bert"];

fn golden() -> DirFiles {
    DirFiles::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf"))
}

fn golden_bytes(name: &str) -> Vec<u8> {
    block_on(read_all(&golden(), name, 1 << 20)).unwrap()
}

fn files(bytes: Vec<u8>) -> MemoryFiles {
    let mut files = MemoryFiles::new();
    files.insert(FILE, bytes);
    files
}

fn open(bytes: Vec<u8>) -> Result<TensorIndex, WeightsError> {
    block_on(TensorIndex::open_model(&files(bytes)))
}

fn read(files: &impl Files, index: &TensorIndex, name: &str) -> Vec<f32> {
    let shape = index.get(name).unwrap().shape.clone();
    block_on(index.read_f32(files, name, &shape)).unwrap()
}

#[test]
fn every_number_format_is_what_ggml_makes_of_it_to_the_bit() {
    let files = golden();
    let index = block_on(TensorIndex::open(&files, "quants.gguf")).unwrap();
    let expected = block_on(TensorIndex::open(&files, "quants.safetensors")).unwrap();
    assert_eq!(index.names().collect::<Vec<_>>(), expected.names().collect::<Vec<_>>());
    let mut seen = Vec::new();
    for entry in index.entries() {
        assert_eq!(entry.format.name(), entry.name);
        assert_eq!(entry.shape, expected.get(&entry.name).unwrap().shape);
        let bits = |values: Vec<f32>| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        let (found, right) = (read(&files, &index, &entry.name), read(&files, &expected, &entry.name));
        assert!(right.iter().any(|value| *value != 0.0));
        assert_eq!(bits(found), bits(right), "{}", entry.name);
        seen.push(entry.format);
    }
    assert_eq!(seen.len(), 11);
    assert!(
        [NumberFormat::Q4K, NumberFormat::Q6K, NumberFormat::Q8_0].iter().all(|kind| seen.contains(kind))
    );
}

#[test]
fn every_family_has_the_tensors_of_the_model_that_it_was_converted_from() {
    let files = golden();
    for family in FAMILIES {
        let index = block_on(TensorIndex::open(&files, &format!("{family}.gguf"))).unwrap();
        let expected = block_on(TensorIndex::open(&files, &format!("{family}.safetensors"))).unwrap();
        let extra = index.names().filter(|name| expected.get(name).is_none()).collect::<Vec<_>>();
        assert_eq!(extra, if family == "llama" { vec!["rope_freqs.weight"] } else { vec![] }, "{family}");
        for right in expected.entries() {
            let entry = index.get(&right.name).unwrap_or_else(|| panic!("{family} has no {}", right.name));
            assert_eq!(entry.shape, right.shape, "{family} {}", right.name);
            let (found, right) = (read(&files, &index, &entry.name), read(&files, &expected, &entry.name));
            for (found, right) in found.iter().zip(&right) {
                // What Gemma's norms lose when one is added; all else is exact.
                let off = if family == "gemma3" && entry.name.ends_with("norm.weight") { 1e-6 } else { 0.0 };
                assert!((found - right).abs() <= off, "{family} {}: {found} {right}", entry.name);
            }
        }
    }
}

#[test]
fn the_metadata_make_the_config_that_the_model_had() {
    for family in FAMILIES {
        let index = open(golden_bytes(&format!("{family}.gguf"))).unwrap();
        let json = index.gguf().unwrap().config_json().unwrap();
        let found = ModelConfig::parse(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
        let mut right = ModelConfig::parse(&golden_bytes(&format!("{family}.json"))).unwrap();
        if family == "bert" {
            // This one was written without a tokenizer.
            right.bos_token_id = found.bos_token_id;
            right.eos_token_ids.clone_from(&found.eos_token_ids);
        }
        assert_eq!(found, right, "{family}: {json}");
    }
}

#[test]
fn a_tensor_is_read_in_the_same_order_whatever_the_pieces() {
    // Several fetches of 8 MiB: heads of 64 rows, permuted as llama.cpp does it.
    let (heads, head, columns) = (40, 64, 1024);
    let row = |at: usize| {
        let (head_at, within) = (at / head, at % head);
        // Row `j` of the first half goes to `2j`, of the second to `2j + 1`.
        head_at * head + 2 * (within % (head / 2)) + within / (head / 2)
    };
    let mut values = vec![0.0; heads * head * columns];
    for at in 0..heads * head {
        values[row(at) * columns..][..columns].fill(at as f32);
    }
    let metadata = [
        ("general.architecture".to_owned(), GgufValue::String("llama".to_owned())),
        ("llama.attention.head_count".to_owned(), GgufValue::U32(40)),
    ];
    let shape = vec![heads * head, columns];
    let tensors = [("blk.0.attn_q.weight".to_owned(), shape, values.as_slice())];
    let files = Counting::new(files(write_gguf(&metadata, &tensors).unwrap()));
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    files.take();
    let found = read(&files, &index, "model.layers.0.self_attn.q_proj.weight");
    assert_eq!(files.take().len(), 2);
    assert_eq!(found.len(), heads * head * columns);
    assert!(found.iter().enumerate().all(|(at, value)| *value == (at / columns) as f32));

    // And GPT-2's matrices, which are stored the other way round.
    let (out, input) = (1000, 3000);
    let values: Vec<f32> = (0..out * input).map(|at| at as f32).collect();
    let metadata = [("general.architecture".to_owned(), GgufValue::String("gpt2".to_owned()))];
    let tensors = [("blk.7.ffn_up.weight".to_owned(), vec![out, input], values.as_slice())];
    let files = self::files(write_gguf(&metadata, &tensors).unwrap());
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    let name = "transformer.h.7.mlp.c_fc.weight";
    assert_eq!(index.get(name).unwrap().shape, [input, out]);
    let found = read(&files, &index, name);
    for (at, value) in found.iter().enumerate() {
        assert_eq!(*value, (at % out * input + at / out) as f32);
    }
}

fn text(value: &str) -> GgufValue {
    GgufValue::String(value.to_owned())
}

#[test]
fn what_is_written_is_read_back() {
    let metadata: Vec<(String, GgufValue)> = [
        ("general.architecture", text("llama")),
        ("general.type", text("adapter")),
        ("adapter.lora.alpha", GgufValue::F32(16.0)),
        ("a.u32", GgufValue::U32(u32::MAX)),
        ("a.i32", GgufValue::I32(-7)),
        ("a.u64", GgufValue::U64(u64::MAX)),
        ("a.i64", GgufValue::I64(i64::MIN)),
        ("a.f64", GgufValue::F64(0.1)),
        ("a.bool", GgufValue::Bool(true)),
        ("a.strings", GgufValue::Strings(["x", "", "näme"].into_iter().collect())),
        ("a.integers", GgufValue::Integers(vec![1, -2])),
        ("a.floats", GgufValue::Floats(vec![0.5])),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let tensors = [
        ("blk.0.attn_q.weight.lora_a".to_owned(), vec![2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0][..]),
        ("blk.0.attn_q.weight.lora_b".to_owned(), vec![1], &[7.0][..]),
    ];
    let bytes = write_gguf(&metadata, &tensors).unwrap();
    let files = files(bytes);
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    let gguf = index.gguf().unwrap();
    assert_eq!(gguf.metadata().count(), metadata.len());
    for (key, value) in &metadata {
        assert_eq!(gguf.get(key), Some(value));
    }
    for (name, shape, values) in &tensors {
        assert_eq!(block_on(index.read_f32(&files, name, shape)).unwrap(), *values);
    }

    let wrong = [("a".to_owned(), vec![2, 3], &[0.0f32; 5][..])];
    let error = write_gguf(&[], &wrong).unwrap_err();
    assert_eq!(error, WeightsError::WrongLength { tensor: "a".to_owned(), shape: vec![2, 3], values: 5 });
    let twice = [("a".to_owned(), vec![1], &[0.0f32][..]), ("a".to_owned(), vec![1], &[0.0][..])];
    assert!(matches!(write_gguf(&[], &twice), Err(WeightsError::Write { .. })));
}

/// The pieces of a header, to be put together wrongly.
fn header(version: u32, tensors: u64, keys: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(keys.to_le_bytes());
    rest.iter().for_each(|part| bytes.extend(*part));
    bytes
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

/// A tensor's line in the header: dimensions innermost first.
fn info(name: &str, dimensions: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let mut bytes = string(name);
    bytes.extend(u32::try_from(dimensions.len()).unwrap().to_le_bytes());
    dimensions.iter().for_each(|dimension| bytes.extend(dimension.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(offset.to_le_bytes());
    bytes
}

#[test]
fn headers_that_lie_are_refused() {
    let u32s = |number: u32| number.to_le_bytes().to_vec();
    let u64s = |number: u64| number.to_le_bytes().to_vec();
    let key = |kind: u32, rest: &[u8]| [&string("a.key")[..], &kind.to_le_bytes(), rest].concat();
    let list = |kind: u32, length: u64| key(9, &[u32s(kind), u64s(length)].concat());
    let pad = vec![0; 256];
    let flag = key(7, &[1]);
    let a = info("a", &[8], 0, 0);
    let alignment =
        |number: u32| [&string("general.alignment")[..], &4u32.to_le_bytes(), &number.to_le_bytes()].concat();
    for (lie, bytes) in [
        ("version 1", header(1, 0, 0, &[&pad])),
        ("version 4", header(4, 0, 0, &[&pad])),
        ("big-endian", header(3u32.swap_bytes(), 0, 0, &[&pad])),
        ("an unknown kind", header(3, 0, 1, &[&key(13, &pad)])),
        ("a list of lists", header(3, 0, 1, &[&list(9, 1), &pad])),
        ("a truth value of 2", header(3, 0, 1, &[&key(7, &[2]), &pad])),
        ("no UTF-8", header(3, 0, 1, &[&key(8, &[&u64s(2)[..], &[0xff, 0xfe]].concat()), &pad])),
        ("a key twice", header(3, 0, 2, &[&flag, &flag, &pad])),
        ("alignment 0", header(3, 1, 1, &[&alignment(0), &a, &pad])),
        ("alignment 24", header(3, 1, 1, &[&alignment(24), &a, &pad])),
        ("five dimensions", header(3, 1, 0, &[&info("a", &[1, 1, 1, 1, 1], 0, 0), &pad])),
        ("a dimension of 0", header(3, 1, 0, &[&info("a", &[0], 0, 0), &pad])),
        ("overflow", header(3, 1, 0, &[&info("a", &[1 << 40, 1 << 40], 0, 0), &pad])),
        ("bytes that overflow", header(3, 1, 0, &[&info("a", &[1 << 62], 0, 0), &pad])),
        ("an unknown type", header(3, 1, 0, &[&info("a", &[8], 99, 0), &pad])),
        ("a removed type", header(3, 1, 0, &[&info("a", &[8], 4, 0), &pad])),
        ("half a block", header(3, 1, 0, &[&info("a", &[48], 8, 0), &pad])),
        ("blocks across rows", header(3, 1, 0, &[&info("a", &[16, 2], 8, 0), &pad])),
        ("an odd offset", header(3, 1, 0, &[&info("a", &[8], 0, 4), &pad])),
        ("an overflowing offset", header(3, 1, 0, &[&info("a", &[8], 0, u64::MAX - 31), &pad])),
        ("overlap", header(3, 2, 0, &[&info("a", &[16], 0, 0), &info("b", &[8], 0, 32), &pad])),
    ] {
        let found = open(bytes);
        assert!(matches!(found, Err(WeightsError::Header { .. })), "{lie}: {found:?}");
    }
    let name = || FILE.to_owned();
    let found = open(header(3, 2, 0, &[&a, &info("a", &[8], 0, 32), &pad])).unwrap_err();
    assert_eq!(found, WeightsError::Twice { tensor: "a".to_owned(), first: name(), second: name() });
    for (what, bytes) in [
        ("tensors", header(3, u64::MAX, 0, &[&pad])),
        ("keys", header(3, 0, 1 << 60, &[&pad])),
        ("values in lists", header(3, 0, 1, &[&list(8, u64::MAX), &pad])),
        ("values in lists", header(3, 0, 1, &[&list(4, 1 << 40), &pad])),
        ("bytes in one name or text", header(3, 0, 1, &[&key(8, &u64s(u64::MAX)), &pad])),
        ("bytes in one name or text", header(3, 0, 1, &[&u64s(1 << 20), &pad])),
    ] {
        let found = open(bytes);
        assert!(
            matches!(&found, Err(WeightsError::TooMany { what: whats, .. }) if *whats == what),
            "{found:?}"
        );
    }
    for bytes in [
        header(3, 1, 0, &[&info("a", &[1 << 30], 0, 0), &pad]),
        header(3, 0, 1, &[&key(8, &u64s(1000)), &pad]),
        header(3, 60000, 0, &[&pad]),
        header(3, 0, 1, &[&list(8, 1 << 20), &pad]),
    ] {
        let size = bytes.len() as u64;
        let found = open(bytes);
        assert!(matches!(found, Err(WeightsError::Truncated { found, .. }) if found == size), "{found:?}");
    }
}

#[test]
fn every_cut_and_any_damage_is_an_error_or_harmless_and_never_a_panic() {
    let good = golden_bytes("llama.gguf");
    let header = 2000;
    for end in 0..header {
        assert!(open(good[..end].to_vec()).is_err(), "{end}");
    }
    for seed in 0..3000 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut bytes = good.clone();
        for _ in 0..random.random_range(1..4) {
            bytes[random.random_range(0..header)] = random.random();
        }
        let files = files(bytes);
        let Ok(index) = block_on(TensorIndex::open(&files, FILE)) else { continue };
        for entry in index.entries() {
            let values = block_on(index.read_f32(&files, &entry.name, &entry.shape));
            let expected: usize = entry.shape.iter().product();
            let right = values.is_err() || values.is_ok_and(|values| values.len() == expected);
            assert!(right, "seed {seed}");
        }
        if let Some(gguf) = index.gguf() {
            let config = gguf.config_json().map(|json| ModelConfig::parse(json.as_bytes()).is_ok());
            drop((config, gguf.tokenizer_json(), gguf.tokenizer_config_json()));
        }
    }
}

/// A true beginning, and zeros without end.
struct Vast {
    head: Vec<u8>,
    size: u64,
}

impl Files for Vast {
    async fn size(&self, _: &str) -> Result<u64, FilesError> {
        Ok(self.size)
    }

    async fn read(&self, _: &str, range: Range<u64>) -> Result<Vec<u8>, FilesError> {
        let byte = |at| self.head.get(usize::try_from(at).unwrap()).copied().unwrap_or(0);
        Ok(range.map(byte).collect())
    }
}

#[test]
fn a_header_that_claims_too_much_is_given_up_unfetched() {
    let claims = |kind: u32, length: u64| {
        let first = [&string("k")[..], &kind.to_le_bytes(), &length.to_le_bytes()].concat();
        let files = Counting::new(Vast { head: header(3, 0, 1, &[&first]), size: 1 << 40 });
        let error = block_on(TensorIndex::open(&files, FILE)).unwrap_err();
        let read: u64 = files.take().iter().map(|range| range.end - range.start).sum();
        assert!(read <= 128 << 10, "{read}");
        error
    };
    assert!(matches!(claims(8, 65 << 20), WeightsError::TooMany { .. }));
    assert!(matches!(claims(8, 64 << 20), WeightsError::HeaderLength { limit, .. } if limit == 64 << 20));
}

#[test]
fn a_vocabulary_of_a_quarter_of_a_million_tokens_is_read_in_a_few_fetches() {
    let tokens: Strings = (0..262_144).map(|at| format!("token number {at}")).collect();
    let metadata = [("tokenizer.ggml.tokens".to_owned(), GgufValue::Strings(tokens.clone()))];
    let files = Counting::new(files(write_gguf(&metadata, &[]).unwrap()));
    let index = block_on(TensorIndex::open(&files, FILE)).unwrap();
    assert_eq!(index.gguf().unwrap().get("tokenizer.ggml.tokens"), Some(&metadata[0].1));
    assert_eq!(tokens.get(262_143), Some("token number 262143"));
    assert!(files.take().len() < 12);
}

#[test]
fn only_what_is_known_becomes_a_config_or_a_tokenizer() {
    let with = |metadata: &[(&str, GgufValue)]| {
        let metadata: Vec<_> =
            metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        open(write_gguf(&metadata, &[]).unwrap()).unwrap()
    };
    let name = || FILE.to_owned();
    let key = |key: &str| WeightsError::Metadata { name: name(), key: key.to_owned() };
    let none = with(&[]);
    let gguf = none.gguf().unwrap();
    assert_eq!(gguf.config_json().unwrap_err(), key("general.architecture"));
    assert_eq!(gguf.tokenizer_json().unwrap_err(), WeightsError::NoGgufTokenizer { name: name() });
    let mamba = with(&[("general.architecture", text("mamba")), ("tokenizer.ggml.model", text("rwkv"))]);
    let gguf = mamba.gguf().unwrap();
    for error in [gguf.config_json().unwrap_err(), gguf.tokenizer_json().unwrap_err()] {
        assert!(matches!(&error, WeightsError::Unknown { found, .. } if found == "mamba" || found == "rwkv"));
    }
    let llama = with(&[("general.architecture", text("llama")), ("llama.embedding_length", text("64"))]);
    assert_eq!(llama.gguf().unwrap().config_json().unwrap_err(), key("llama.embedding_length"));
    let pre = with(&[
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("tekken")),
        ("tokenizer.ggml.tokens", GgufValue::Strings(["a"].into_iter().collect())),
        ("tokenizer.ggml.merges", GgufValue::Strings(Strings::default())),
    ]);
    let error = pre.gguf().unwrap().tokenizer_json().unwrap_err();
    assert!(matches!(&error, WeightsError::Unknown { found, .. } if found == "tekken"), "{error}");
    let part = [("split.count".to_owned(), GgufValue::U32(3))];
    let error = open(write_gguf(&part, &[]).unwrap()).unwrap_err();
    assert!(error.to_string().contains("llama-gguf-split"), "{error}");
}

/// A `tokenizer.json` of ../shared, and the texts to compare on.
fn shared_tokenizer(model: &str) -> Option<(serde_json::Value, Tokenizer, Vec<String>)> {
    let bytes = std::fs::read(common::shared(&format!("models/{model}/tokenizer.json"))?).unwrap();
    let text = std::fs::read_to_string(common::shared("data/e2e/valid.txt")?).unwrap();
    let mut texts: Vec<String> = text.lines().take(2000).map(str::to_owned).collect();
    texts.extend(
        [
            "",
            " ",
            "   two  spaces\n\n\tand tabs ",
            "12345 1,000.00 x2",
            "I'm we'LL they've",
            "Ünïcödé 漢字 😀👩‍👩‍👧",
            "e\u{301} \u{a0}\u{2003}odd\r\n",
            "<s>special</s> <|endoftext|><|im_start|>user",
            "a\u{0}b",
            "fn main() { x += 1; }",
        ]
        .map(str::to_owned),
    );
    Some((serde_json::from_slice(&bytes).unwrap(), Tokenizer::from_bytes(&bytes).unwrap(), texts))
}

/// The tokens by id, those of `vocab` and the added ones, with llama.cpp's kinds.
fn tokens(json: &serde_json::Value) -> (Strings, Vec<i32>) {
    let mut tokens: Vec<(u64, String, i32)> = Vec::new();
    let added = json["added_tokens"].as_array().unwrap();
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap();
        let kind = match added.iter().find(|added| added["id"] == id) {
            Some(_) if token == "<unk>" => 2,
            Some(added) if added["special"] == true => 3,
            Some(_) => 4,
            None if token.starts_with("<0x") && token.len() == 6 => 6,
            None => 1,
        };
        tokens.push((id, token.clone(), kind));
    }
    for token in added {
        let id = token["id"].as_u64().unwrap();
        if !tokens.iter().any(|(other, ..)| *other == id) {
            tokens.push((id, token["content"].as_str().unwrap().to_owned(), 3));
        }
    }
    tokens.sort();
    assert!(tokens.iter().enumerate().all(|(at, (id, ..))| at as u64 == *id));
    (tokens.iter().map(|(_, token, _)| token).collect(), tokens.iter().map(|(.., kind)| *kind).collect())
}

fn rebuilt(metadata: Vec<(&str, GgufValue)>) -> Tokenizer {
    let metadata: Vec<_> =
        metadata.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect();
    let index = open(write_gguf(&metadata, &[]).unwrap()).unwrap();
    let json = index.gguf().unwrap().tokenizer_json().unwrap();
    Tokenizer::from_bytes(json.as_bytes()).unwrap()
}

fn compare(original: &Tokenizer, rebuilt: &Tokenizer, texts: &[String]) {
    assert_eq!(original.vocab_size(), rebuilt.vocab_size());
    for text in texts {
        let ids = original.encode(text).unwrap();
        assert_eq!(rebuilt.encode(text).unwrap(), ids, "{text:?}");
        for skip in [false, true] {
            assert_eq!(rebuilt.decode(&ids, skip).unwrap(), original.decode(&ids, skip).unwrap(), "{text:?}");
        }
    }
}

#[test]
fn the_name_of_the_words_decides_where_a_text_is_cut() {
    let vocabulary = ["1", "2", "3", "4", "12", "123", "1234", "'", "S", "'S", "!", "Ċ", "!Ċ"];
    let merges = ["1 2", "12 3", "123 4", "' S", "! Ċ"];
    for (pre, words) in [
        ("gpt-2", ["1234", "' S", "! Ċ"]),
        ("default", ["1234", "' S", "! Ċ"]),
        ("smollm", ["1 2 3 4", "' S", "! Ċ"]),
        ("qwen2", ["1 2 3 4", "'S", "!Ċ"]),
        ("llama-bpe", ["123 4", "'S", "!Ċ"]),
    ] {
        let tokenizer = rebuilt(vec![
            ("model", text("gpt2")),
            ("pre", text(pre)),
            ("tokens", GgufValue::Strings(vocabulary.into_iter().collect())),
            ("merges", GgufValue::Strings(merges.into_iter().collect())),
        ]);
        for (text, words) in ["1234", "'S", "!\n"].into_iter().zip(words) {
            let ids = tokenizer.encode(text).unwrap();
            let found: Vec<&str> = ids.iter().map(|id| vocabulary[*id as usize]).collect();
            assert_eq!(found.join(" "), words, "{pre}");
        }
    }
}

#[test]
fn a_token_stands_before_and_after_the_text_where_the_file_says_so() {
    let with = |extra: &[(&'static str, GgufValue)]| {
        let tokens = ["<s>", "</s>", "a", "▁", "▁a"];
        let mut metadata = vec![
            ("model", text("llama")),
            ("tokens", GgufValue::Strings(tokens.into_iter().collect())),
            ("token_type", GgufValue::Integers(vec![3, 3, 1, 1, 1])),
            ("scores", GgufValue::Floats(vec![0.0, 0.0, -9.0, -9.0, -1.0])),
            ("bos_token_id", GgufValue::U32(0)),
            ("eos_token_id", GgufValue::U32(1)),
        ];
        metadata.extend(extra.iter().cloned());
        rebuilt(metadata).encode("a").unwrap()
    };
    assert_eq!(with(&[]), [0, 4]);
    assert_eq!(with(&[("add_bos_token", GgufValue::Bool(false))]), [4]);
    assert_eq!(with(&[("add_eos_token", GgufValue::Bool(true))]), [0, 4, 1]);
    assert_eq!(with(&[("add_space_prefix", GgufValue::Bool(false))]), [0, 2]);
}

#[test]
fn smollm2s_tokenizer_rebuilt_from_its_metadata_gives_the_same_ids() {
    let Some((json, original, texts)) = shared_tokenizer("smollm2-135m-tokenizer") else { return };
    let (tokens, kinds) = tokens(&json);
    let merges: Strings =
        json["model"]["merges"].as_array().unwrap().iter().map(|merge| merge.as_str().unwrap()).collect();
    let rebuilt = rebuilt(vec![
        ("model", text("gpt2")),
        ("pre", text("smollm")),
        ("tokens", GgufValue::Strings(tokens)),
        ("token_type", GgufValue::Integers(kinds)),
        ("merges", GgufValue::Strings(merges)),
        ("bos_token_id", GgufValue::U32(1)),
        ("eos_token_id", GgufValue::U32(2)),
        ("add_bos_token", GgufValue::Bool(false)),
    ]);
    compare(&original, &rebuilt, &texts);
}

#[test]
fn stories_tokenizer_rebuilt_from_its_scores_gives_the_same_ids() {
    let Some((json, original, texts)) = shared_tokenizer("stories260k") else { return };
    let (tokens, kinds) = tokens(&json);
    // SentencePiece's BPE gives each merged piece the score of its rank, and none to the single characters.
    let merged = json["model"]["merges"].as_array().unwrap();
    let rank = |token: &str| {
        let is = |merge: &serde_json::Value| {
            format!("{}{}", merge[0].as_str().unwrap(), merge[1].as_str().unwrap()) == token
        };
        merged.iter().position(is)
    };
    let scores = tokens.iter().map(|token| rank(token).map_or(-1e9, |rank| -(rank as f32))).collect();
    let rebuilt = rebuilt(vec![
        ("model", text("llama")),
        ("tokens", GgufValue::Strings(tokens)),
        ("token_type", GgufValue::Integers(kinds)),
        ("scores", GgufValue::Floats(scores)),
        ("bos_token_id", GgufValue::U32(1)),
        ("eos_token_id", GgufValue::U32(2)),
        ("unknown_token_id", GgufValue::U32(0)),
    ]);
    compare(&original, &rebuilt, &texts);
}
