//! `config.json`: what is accepted has dimensions that its tensors and targets can be counted with.

#![no_main]

use baton_formats::{ModelConfig, block_tensors, end_tensors, head_tensors};
use baton_fuzz::{contents, seed};
use libfuzzer_sys::fuzz_target;

fuzz_target!(
    init: seed("config", contents("crates/model/tests/golden/families", "/config.json")),
    |json: &[u8]| {
        let Ok(config) = ModelConfig::parse(json) else { return };
        let ends: u64 = end_tensors(&config).iter().map(|tensor| tensor.elements()).sum();
        let last = config.num_hidden_layers - 1;
        let block: u64 = block_tensors(&config, last).iter().map(|tensor| tensor.elements()).sum();
        assert_eq!(config.parameters(), ends + block * config.num_hidden_layers as u64);
        assert_eq!(config.block_parameters(), block);
        let head = head_tensors(&config);
        assert_eq!(head.is_empty(), config.classifier().is_none());
        assert!(head.iter().all(|tensor| tensor.elements() > 0));
        for projection in config.projections() {
            let (out, input) = projection.shape(&config);
            assert!(out > 0 && input > 0);
            let names = config.target_names(&[projection]);
            assert!(config.targets(&names).expect("its own names").contains(&projection));
        }
        for block in 0..config.num_hidden_layers {
            let _ = (config.rope(block), config.window(block));
        }
        let _ = config.targets(&["dense".to_owned(), "all-linear".to_owned()]);
        let _ = config.with_classifier(3, false).map(|config| head_tensors(&config));
    }
);
