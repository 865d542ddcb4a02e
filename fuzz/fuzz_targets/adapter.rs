//! PEFT adapters: `adapter_config.json` and `adapter_model.safetensors`, read for a tiny model and written again.

#![no_main]

use std::sync::LazyLock;

use baton_formats::peft::{CONFIG_FILE, WEIGHTS_FILE};
use baton_formats::{Adapter, AdapterConfig, MemoryFiles, ModelConfig};
use baton_fuzz::{file, join, seed, split};
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;

const FAMILIES: [&str; 4] = ["llama2", "gpt2", "bert", "roberta"];

static MODELS: LazyLock<Vec<ModelConfig>> = LazyLock::new(|| {
    let config = |family| file(&format!("crates/model/tests/golden/families/{family}/config.json"));
    FAMILIES.map(|family| ModelConfig::parse(&config(family)).expect("a test file")).into()
});

fn seeds() -> Vec<Vec<u8>> {
    let part = |family, name| file(&format!("crates/model/tests/golden/families/{family}/adapter/{name}"));
    FAMILIES.map(|family| join(&[&part(family, CONFIG_FILE), &part(family, WEIGHTS_FILE)])).into()
}

fuzz_target!(init: seed("adapter", seeds()), |bytes: &[u8]| {
    let [config, weights] = split::<2>(bytes);
    let parsed = AdapterConfig::parse(config);
    let mut files = MemoryFiles::new();
    files.insert(CONFIG_FILE, config);
    files.insert(WEIGHTS_FILE, weights);
    for model in MODELS.iter() {
        if let Ok(parsed) = &parsed {
            let _ = parsed.projections(model);
        }
        let Ok(adapter) = block_on(Adapter::read(&files, model)) else { continue };
        assert!(parsed.is_ok());
        let (json, bytes) = adapter.to_files(model).expect("what was read can be written");
        let mut written = MemoryFiles::new();
        written.insert(CONFIG_FILE, json);
        written.insert(WEIGHTS_FILE, bytes);
        assert_eq!(block_on(Adapter::read(&written, model)).as_ref(), Ok(&adapter));
    }
});
