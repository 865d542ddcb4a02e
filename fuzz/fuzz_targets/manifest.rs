//! A manifest as it comes from the host: after its check every byte of every file has one hash.

#![no_main]

use baton_formats::{Manifest, ManifestFile};
use baton_fuzz::seed;
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<Vec<u8>> {
    let file = |name: &str, size: u64, chunks| ManifestFile {
        name: name.into(),
        size,
        chunks: vec![[7; 32]; chunks],
    };
    let manifests = [
        Manifest { chunk_size: 1 << 20, files: Vec::new() },
        Manifest { chunk_size: 1 << 16, files: vec![file("config.json", 600, 1), file("empty", 0, 0)] },
        Manifest { chunk_size: 1 << 16, files: vec![file("model.safetensors", 200_000, 4)] },
    ];
    manifests.iter().map(|manifest| postcard::to_stdvec(manifest).expect("plain data")).collect()
}

fuzz_target!(init: seed("manifest", seeds()), |bytes: &[u8]| {
    let Ok(manifest) = postcard::from_bytes::<Manifest>(bytes) else { return };
    let id = manifest.id();
    if manifest.check().is_err() {
        return;
    }
    let mut size = 0;
    for file in &manifest.files {
        let mut reached = 0;
        for index in 0..u32::try_from(file.chunks.len()).expect("a checked count") {
            let (range, _) = manifest.chunk(&file.name, index).expect("every chunk is there");
            assert!(range.start == reached && range.end > reached);
            reached = range.end;
        }
        assert_eq!(reached, file.size);
        assert!(manifest.chunk(&file.name, u32::MAX).is_none());
        size += file.size;
    }
    assert_eq!(manifest.size(), size);
    let again = postcard::to_stdvec(&manifest).expect("plain data");
    assert_eq!(postcard::from_bytes::<Manifest>(&again).expect("what was written").id(), id);
});
