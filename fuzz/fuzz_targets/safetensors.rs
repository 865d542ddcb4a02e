//! A safetensors file: its header, and every tensor that the header says is there.

#![no_main]

use baton_formats::MemoryFiles;
use baton_fuzz::{contents, read_weights, seed};
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = contents("crates/formats/tests/golden/gguf", ".safetensors");
    seeds.retain(|seed| seed.len() < 8192);
    // One of each number format, and an empty tensor.
    let dtypes =
        [("F64", 8), ("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1)];
    for (dtype, width) in dtypes {
        let header = format!(
            r#"{{"__metadata__":{{"format":"pt"}},"w":{{"dtype":"{dtype}","shape":[2,3],"data_offsets":[0,{}]}},"e":{{"dtype":"{dtype}","shape":[0],"data_offsets":[{0},{0}]}}}}"#,
            6 * width
        );
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.extend((0..6 * width).map(|byte: u8| byte.wrapping_mul(7)));
        seeds.push(file);
    }
    seeds
}

fuzz_target!(init: seed("safetensors", seeds()), |bytes: &[u8]| {
    let mut files = MemoryFiles::new();
    files.insert("model.safetensors", bytes);
    read_weights(&files);
});
