//! `model.safetensors.index.json` and the two files that it may name.

#![no_main]

use baton_formats::MemoryFiles;
use baton_fuzz::{file, join, read_weights, seed, split};
use libfuzzer_sys::fuzz_target;

const NAMES: [&str; 3] = ["model.safetensors.index.json", "a", "b"];

fn shard(tensor: &str) -> Vec<u8> {
    let header = format!(r#"{{"{tensor}":{{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend([0; 8]);
    file
}

fn seeds() -> Vec<Vec<u8>> {
    let index = br#"{"metadata":{"total_size":16},"weight_map":{"x":"a","y":"b"}}"#;
    let model = "crates/model/tests/golden/families/llama_sharded";
    vec![join(&[index, &shard("x"), &shard("y")]), file(&format!("{model}/model.safetensors.index.json"))]
}

fuzz_target!(init: seed("sharded", seeds()), |bytes: &[u8]| {
    let mut files = MemoryFiles::new();
    for (name, part) in NAMES.into_iter().zip(split::<3>(bytes)) {
        files.insert(name, part);
    }
    read_weights(&files);
});
