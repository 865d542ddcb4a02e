//! The same formats in a browser: its regex engine, its 32-bit sizes, its files and its fetch.
#![cfg(target_arch = "wasm32")]
#![allow(clippy::unwrap_used)] // clippy does not see that these are tests

use std::collections::BTreeMap;
use std::time::Duration;

use baton_formats::files::Patience;
use baton_formats::{
    BlobFiles, Encoding, Files, FilesError, MemoryFiles, Target, TensorIndex, Tokenizer, UrlFiles,
    WeightsError, dataset, read_all, write_safetensors, zip,
};
use js_sys::{Array, Function, Uint8Array};
use wasm_bindgen::JsValue;
use wasm_bindgen_test::{wasm_bindgen_test, wasm_bindgen_test_configure};
use web_sys::File;

wasm_bindgen_test_configure!(run_in_browser);

const FILE: &str = "model.safetensors";

fn picked(name: &str, bytes: &[u8]) -> (String, File) {
    let parts = Array::of1(&Uint8Array::from(bytes));
    (name.to_owned(), File::new_with_u8_array_sequence(&parts, name).unwrap())
}

fn weights() -> Vec<u8> {
    let tensors =
        [("a".to_owned(), vec![2, 2], vec![1.0f32, -2.0, 3.0, 0.5]), ("b".to_owned(), vec![3], vec![7.0; 3])];
    write_safetensors(&tensors, &BTreeMap::new()).unwrap()
}

#[wasm_bindgen_test]
fn text_becomes_the_tokens_that_it_becomes_natively() {
    let tokenizer = Tokenizer::from_bytes(include_bytes!("tiny_tokenizer.json")).unwrap();
    // By tokenizers 0.23.3 in Python, without the truncation and the padding that the file names.
    let ids = [0, 3, 12, 6, 10, 13, 11, 7, 8];
    assert_eq!(tokenizer.encode("the cat the té").unwrap(), ids);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the cat the té");
    assert!(Tokenizer::from_bytes(b"{}").is_err());
}

#[wasm_bindgen_test]
fn only_the_completion_is_learned() {
    let tokenizer = Tokenizer::from_bytes(include_bytes!("tiny_tokenizer.json")).unwrap();
    let dataset = dataset::parse("a.jsonl", br#"{"prompt": "the cat", "completion": " the"}"#).unwrap();
    let encoding = Encoding { seq_len: 16, append_eos: None, packing: false, target: Target::Text };
    let encoded = dataset::encode(&dataset, &tokenizer, None, &encoding).unwrap();
    assert_eq!(encoded.examples[0].ids, [0, 3, 12, 6, 10, 13]);
    assert_eq!(encoded.examples[0].train, [false, false, false, false, false, true]);
}

#[wasm_bindgen_test]
async fn a_picked_file_is_read_slice_by_slice() {
    let files = BlobFiles::new(vec![picked("a.bin", b"0123456789")]);
    assert_eq!(files.size("a.bin").await, Ok(10));
    assert_eq!(files.read("a.bin", 3..7).await.unwrap(), b"3456");
    assert_eq!(files.read("a.bin", 10..10).await.unwrap(), b"");
    let past = FilesError::OutOfRange { name: "a.bin".to_owned(), start: 5, end: 11, size: 10 };
    assert_eq!(files.read("a.bin", 5..11).await, Err(past));
    assert_eq!(files.size("b.bin").await, Err(FilesError::NotFound { name: "b.bin".to_owned() }));
}

#[wasm_bindgen_test]
async fn tensors_come_out_of_a_picked_file() {
    let files = BlobFiles::new(vec![picked(FILE, &weights())]);
    let index = TensorIndex::open(&files, FILE).await.unwrap();
    assert_eq!(index.read_f32(&files, "a", &[2, 2]).await.unwrap(), [1.0, -2.0, 3.0, 0.5]);
    assert_eq!(index.read_f32(&files, "b", &[3]).await.unwrap(), [7.0; 3]);
}

#[wasm_bindgen_test]
async fn files_that_lie_are_refused() {
    let whole = weights();
    let mut files = MemoryFiles::new();
    files.insert(FILE, &whole[..whole.len() - 4]);
    let (expected, found) = (whole.len() as u64, whole.len() as u64 - 4);
    assert_eq!(
        TensorIndex::open(&files, FILE).await.unwrap_err(),
        WeightsError::Truncated { name: FILE.to_owned(), expected, found }
    );
    // Sizes and offsets that 32 bits do not hold.
    for header in [
        r#"{"a":{"dtype":"F32","shape":[65536,65536],"data_offsets":[0,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1073741825],"data_offsets":[0,4]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4294967296,4294967300]}}"#,
    ] {
        files.insert(FILE, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat());
        assert!(
            matches!(TensorIndex::open(&files, FILE).await, Err(WeightsError::Header { .. })),
            "{header}"
        );
    }
    files.insert(FILE, [&u64::MAX.to_le_bytes()[..], &[0; 8]].concat());
    assert!(matches!(TensorIndex::open(&files, FILE).await, Err(WeightsError::HeaderLength { .. })));
}

/// Puts a server in place of `https://fake.test/`: `whole.bin` knows no ranges, `hidden.bin` does not let a page see
/// `Content-Range`, `long.bin` sends more than asked for, `cut.bin` breaks off after 100 bytes, `busy.bin` answers only
/// every other time, `stuck.bin` stops after one byte. `org/name` is a hub's repository that shows no headers.
fn fake_server() {
    let script = r#"
        if (globalThis.realFetch) return;
        globalThis.realFetch = globalThis.fetch;
        const data = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);
        globalThis.fetch = async (request) => {
            if (!request.url.startsWith("https://fake.test/")) return globalThis.realFetch(request);
            const name = request.url.slice("https://fake.test/".length);
            if (request.method === "HEAD") return new Response(null, { headers: { "content-length": "1000" } });
            if (name === "whole.bin") return new Response(data);
            if (name === "large.bin") return new Response(data, { headers: { "content-length": "99999999" } });
            globalThis.asked = [...(globalThis.asked ?? []), `${name} ${request.headers.get("range")}`];
            if (name === "busy.bin" && (globalThis.turn = !globalThis.turn)) return new Response("", { status: 503 });
            if (name === "api/models/org/name/revision/main") return Response.json({ sha: "a".repeat(40) });
            if (name === "org/name/resolve/main/config.json") return new Response("{}");
            if (name.startsWith("org/name/") && !name.includes("a".repeat(40))) return new Response("", { status: 404 });
            if (name === "gone.bin") return new Response("no", { status: 404 });
            const [, start, last] = request.headers.get("range").match(/^bytes=(\d+)-(\d+)$/).map(Number);
            const headers = name === "hidden.bin" ? {} : { "content-range": `bytes ${start}-${last}/1000` };
            const extra = name === "long.bin" ? 1 : 0;
            if (name === "cut.bin" || name === "stuck.bin") {
                let at = start;
                const pull = (stream) => {
                    if (name === "stuck.bin" && at === start + 1) {
                        return new Promise((_, stop) => request.signal.onabort = () => stop(request.signal.reason));
                    }
                    if (at === Math.min(start + 100, last + 1)) {
                        return at === last + 1 ? stream.close() : stream.error(new TypeError("network error"));
                    }
                    stream.enqueue(data.slice(at, ++at));
                };
                return new Response(new ReadableStream({ pull }), { status: 206, headers });
            }
            return new Response(data.slice(start, last + 1 + extra), { status: 206, headers });
        };
    "#;
    Function::new_no_args(script).call0(&JsValue::NULL).unwrap();
}

#[wasm_bindgen_test]
async fn a_url_is_fetched_by_range() {
    fake_server();
    let files = UrlFiles::new("https://fake.test").unwrap();
    let bytes: Vec<u8> = (0..1000u32).map(|at| (at % 251) as u8).collect();
    for name in ["range.bin", "hidden.bin", "whole.bin"] {
        assert_eq!(files.size(name).await, Ok(1000), "{name}");
        assert_eq!(files.read(name, 300..417).await.unwrap(), bytes[300..417], "{name}");
        assert_eq!(read_all(&files, name, 1000).await.unwrap(), bytes, "{name}");
    }
    assert_eq!(files.size("gone.bin").await, Err(FilesError::NotFound { name: "gone.bin".to_owned() }));
    assert!(matches!(files.size("large.bin").await, Err(FilesError::NoRanges { .. })));
    let long = FilesError::Excess { name: "long.bin".to_owned(), wanted: 10 };
    assert_eq!(files.read("long.bin", 0..10).await, Err(long));
}

/// Waits that a test can afford.
fn quick() -> Patience {
    let wait = Duration::from_millis(1);
    let answer = Duration::from_millis(200);
    Patience { first_wait: wait, longest_wait: wait, answer, seed: Some(1), ..Patience::default() }
}

/// The requests that the server saw for a file.
fn asked(name: &str) -> Vec<String> {
    let asked = Function::new_no_args("return globalThis.asked").call0(&JsValue::NULL).unwrap();
    let asked = Array::from(&asked).into_iter().map(|line| line.as_string().unwrap());
    asked.filter_map(|line| Some(line.strip_prefix(name)?.trim().to_owned())).collect()
}

#[wasm_bindgen_test]
async fn what_fails_in_a_fetch_is_resumed_waited_for_or_given_up() {
    fake_server();
    let files = UrlFiles::with_patience("https://fake.test", quick()).unwrap();
    let bytes: Vec<u8> = (0..1000u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(files.read("cut.bin", 10..310).await.unwrap(), bytes[10..310]);
    assert_eq!(asked("cut.bin"), ["bytes=10-309", "bytes=110-309", "bytes=210-309"]);
    assert_eq!(files.read("busy.bin", 10..20).await.unwrap(), bytes[10..20]);
    assert_eq!(files.read("busy.bin", 20..30).await.unwrap(), bytes[20..30]);
    let error = files.read("stuck.bin", 0..900).await.unwrap_err();
    let said = "6 of 900 bytes came (it was not all there after 0.2 seconds)";
    assert!(error.to_string().contains(said), "{error}");
}

#[wasm_bindgen_test]
async fn a_commit_is_found_though_the_hub_shows_no_header() {
    fake_server();
    let files = UrlFiles::with_patience("https://fake.test/org/name/tree/main", quick()).unwrap();
    assert_eq!(files.size("a.bin").await, Ok(1000));
    assert_eq!(files.pinned(), Some("a".repeat(40).as_str()));
}

#[wasm_bindgen_test]
async fn the_real_fetch_brings_a_file_of_this_page() {
    let files = UrlFiles::new("/").unwrap();
    // This test's own module, which the runner serves.
    let name = "wasm-bindgen-test_bg.wasm";
    let size = files.size(name).await.unwrap();
    assert_eq!(files.read(name, 0..4).await.unwrap(), b"\0asm");
    assert_eq!(read_all(&files, name, size).await.unwrap().len() as u64, size);
    let missing = FilesError::NotFound { name: "none.bin".to_owned() };
    assert_eq!(files.size("none.bin").await, Err(missing));
    // Nothing listens on port 1.
    let nowhere = UrlFiles::new("http://127.0.0.1:1/").unwrap();
    assert!(matches!(nowhere.size("a.bin").await, Err(FilesError::GaveUp { .. })));
}

#[wasm_bindgen_test]
fn an_adapter_is_packed_for_download() {
    let archive = zip(&[("adapter_config.json", b"{}"), ("adapter_model.safetensors", &weights())]).unwrap();
    assert!(archive.starts_with(b"PK\x03\x04"));
}
