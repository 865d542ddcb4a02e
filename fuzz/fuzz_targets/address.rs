//! What a person or a server says in a line: a model's address, and `Content-Range`.

#![no_main]

use baton_formats::UrlFiles;
use baton_formats::files::ContentRange;
use baton_fuzz::seed;
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    [
        "bytes 0-99/100",
        "bytes 5-18446744073709551614/*",
        "bytes */100",
        "org/name",
        "https://huggingface.co/org/name/tree/refs%2Fpr%2F1",
        "http://localhost:8080/org/name/resolve/main/config.json",
        "https://example.org/models/tiny",
        "https://example.org/models/tiny.gguf",
        "huggingface.co/org/name@v1",
    ]
    .map(|seed| seed.as_bytes().to_vec())
    .into()
}

fuzz_target!(init: seed("address", seeds()), |text: &str| {
    if let Some(range) = ContentRange::parse(text) {
        assert!(range.start <= range.last && range.last < u64::MAX);
        assert!(range.size.is_none_or(|size| range.last < size));
    }
    let _ = ContentRange::unsatisfied(text);
    if let Ok(files) = UrlFiles::new(text) {
        assert!(files.base().ends_with('/'), "names are appended to it: {}", files.base());
        assert!(!files.pinned_base().is_empty());
    }
});
