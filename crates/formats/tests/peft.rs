//! Adapters: what PEFT wrote is read, what is written is what PEFT writes (`scripts/golden_peft_adapter.py`).
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

mod common;

use std::collections::BTreeMap;

use baton_formats::peft::{CONFIG_FILE, WEIGHTS_FILE};
use baton_formats::{
    Adapter, AdapterConfig, DirFiles, LoraPair, MemoryFiles, ModelConfig, PeftError, Projection, WeightsError,
};
use futures::executor::block_on;
use serde_json::{Value, json};

/// stories260k, which the golden adapter belongs to.
fn model() -> ModelConfig {
    ModelConfig::parse(
        br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 172,
            "num_hidden_layers": 5, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 512}"#,
    )
    .unwrap()
}

fn config(targets: &[Projection]) -> AdapterConfig {
    AdapterConfig {
        base_model_name_or_path: Some("stories260k".to_owned()),
        ..AdapterConfig::new(3, 6.0, model().target_names(targets))
    }
}

/// An adapter whose every value is another.
fn adapter(targets: &[Projection]) -> Adapter {
    let config = config(targets);
    let mut next = 0.0;
    let mut values = |length: usize| {
        (0..length)
            .map(|_| {
                next += 0.5;
                next
            })
            .collect::<Vec<f32>>()
    };
    let mut weights = BTreeMap::new();
    for block in 0..model().num_hidden_layers {
        for projection in targets {
            let (out, input) = projection.shape(&model());
            weights.insert((block, *projection), LoraPair { a: values(3 * input), b: values(out * 3) });
        }
    }
    Adapter { config, weights, head: BTreeMap::new() }
}

fn files((config, weights): (String, Vec<u8>)) -> MemoryFiles {
    let mut files = MemoryFiles::new();
    files.insert(CONFIG_FILE, config);
    files.insert(WEIGHTS_FILE, weights);
    files
}

#[test]
fn an_adapter_that_peft_saved_is_read_value_by_value() {
    let adapter = block_on(Adapter::read(&DirFiles::new(common::golden("peft_adapter")), &model())).unwrap();
    assert_eq!((adapter.config.r, adapter.config.lora_alpha), (2, 4.0));
    assert_eq!(adapter.config.projections(&model()).unwrap(), [Projection::Q, Projection::Down]);
    assert_eq!(adapter.weights.len(), 2 * 5);
    for ((block, projection), pair) in &adapter.weights {
        let (out, input) = projection.shape(&model());
        for (values, length) in [(&pair.a, 2 * input), (&pair.b, out * 2)] {
            let expected: Vec<f32> =
                (0..length).map(|at| (((7 * at + 3 * block + 1) % 129) as f32 - 64.0) / 64.0).collect();
            assert_eq!(*values, expected, "{block} {projection:?}");
        }
    }
}

#[test]
fn an_adapter_of_peft_is_written_back_to_the_same_bytes() {
    let adapter = block_on(Adapter::read(&DirFiles::new(common::golden("peft_adapter")), &model())).unwrap();
    let (config, weights) = adapter.to_files(&model()).unwrap();
    assert_eq!(weights, std::fs::read(common::golden("peft_adapter/adapter_model.safetensors")).unwrap());
    let ours: Value = serde_json::from_str(&config).unwrap();
    let theirs: Value =
        serde_json::from_slice(&std::fs::read(common::golden("peft_adapter/adapter_config.json")).unwrap())
            .unwrap();
    for (field, value) in ours.as_object().unwrap() {
        let named = |value: &Value| {
            value
                .as_array()
                .map(|names| names.iter().map(Value::to_string).collect::<std::collections::BTreeSet<_>>())
        };
        assert!(theirs[field] == *value || named(&theirs[field]) == named(value), "{field}: {value}");
    }
}

#[test]
fn an_adapter_comes_back_as_it_was_written() {
    for targets in [&Projection::ALL[..7], &[Projection::V], &[Projection::O, Projection::Gate]] {
        let adapter = adapter(targets);
        let files = files(adapter.to_files(&model()).unwrap());
        assert_eq!(block_on(Adapter::read(&files, &model())).unwrap(), adapter);
    }
}

#[test]
fn what_is_not_plain_lora_is_refused_by_name() {
    let golden: Value =
        serde_json::from_slice(&std::fs::read(common::golden("peft_adapter/adapter_config.json")).unwrap())
            .unwrap();
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("peft_type", Value::Null),
        ("bias", json!("all")),
        ("task_type", json!("SEQ_2_SEQ_LM")),
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layers_to_transform", json!([0, 1])),
        ("init_lora_weights", json!("pissa_niter_4")),
        ("target_modules", Value::Null),
    ] {
        let mut config = golden.clone();
        config[field] = value.clone();
        let error = AdapterConfig::parse(config.to_string().as_bytes()).unwrap_err();
        assert_eq!(error, PeftError::Unsupported { field: field.to_owned(), value: value.to_string() });
    }
    let parse = |field: &str, value: Value| {
        let mut config = golden.clone();
        config[field] = value;
        AdapterConfig::parse(config.to_string().as_bytes())
    };
    assert_eq!(parse("r", json!(0)), Err(PeftError::Rank { r: 0, limit: 4096 }));
    assert_eq!(parse("lora_alpha", json!(-1)), Err(PeftError::Alpha { alpha: -1.0 }));
    // As in PEFT: a name that the model does not have is no matter as long as another one has something.
    let some = parse("target_modules", json!(["q_proj", "query"])).unwrap();
    assert_eq!(some.projections(&model()).unwrap(), [Projection::Q]);
    for (targets, named) in [(json!(["query", "_proj"]), "query, _proj"), (json!([]), "no module at all")] {
        match parse("target_modules", targets).unwrap().projections(&model()) {
            Err(PeftError::UnknownTarget { found, known }) => {
                assert_eq!(found, named);
                assert!(known.contains("gate_proj"), "{known}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        parse("rank_pattern", json!({"q_proj": 100_000})),
        Err(PeftError::Rank { r: 100_000, limit: 4096 })
    );
    assert_eq!(parse("alpha_pattern", json!({"q_proj": -3})), Err(PeftError::Alpha { alpha: -3.0 }));
    assert!(matches!(parse("rank_pattern", json!(["q_proj"])), Err(PeftError::Json { .. })));
    assert!(matches!(parse("r", json!("8")), Err(PeftError::Json { .. })));
    assert!(matches!(AdapterConfig::parse(b"[]"), Err(PeftError::Json { .. })));
    assert_eq!(parse("init_lora_weights", json!("gaussian")).unwrap().r, 2);
}

#[test]
fn weights_that_do_not_belong_are_refused() {
    let whole = adapter(&[Projection::Q, Projection::V]);
    let (_, weights) = whole.to_files(&model()).unwrap();
    let fewer = config(&[Projection::Q]).to_json(&model()).unwrap();
    let error = block_on(Adapter::read(&files((fewer, weights.clone())), &model())).unwrap_err();
    assert!(matches!(error, PeftError::Unexpected { found } if found.contains("v_proj")));

    let more = config(&[Projection::Q, Projection::V, Projection::Up]).to_json(&model()).unwrap();
    let error = block_on(Adapter::read(&files((more, weights.clone())), &model())).unwrap_err();
    assert!(
        matches!(error, PeftError::Weights(WeightsError::Missing { tensor, .. }) if tensor.contains("up_proj"))
    );

    let rank = AdapterConfig { r: 4, ..whole.config }.to_json(&model()).unwrap();
    let error = block_on(Adapter::read(&files((rank, weights)), &model())).unwrap_err();
    assert!(matches!(error, PeftError::Weights(WeightsError::WrongShape { .. })));
}

#[test]
fn an_adapter_that_is_not_whole_is_not_written() {
    let whole = adapter(&[Projection::Q]);
    let key = (2, Projection::Q);
    let changed = |change: fn(&mut Adapter)| {
        let mut adapter = whole.clone();
        change(&mut adapter);
        adapter.to_files(&model()).unwrap_err()
    };
    let missing = changed(|adapter| drop(adapter.weights.remove(&(2, Projection::Q))));
    assert_eq!(missing, PeftError::Missing { path: "model.layers.2.self_attn.q_proj".to_owned() });
    let stray = changed(|adapter| {
        let pair = adapter.weights[&(2, Projection::Q)].clone();
        adapter.weights.insert((9, Projection::Q), pair);
    });
    assert_eq!(stray, PeftError::Unexpected { found: "model.layers.9.self_attn.q_proj".to_owned() });

    let mut short = whole.clone();
    short.weights.get_mut(&key).unwrap().b.pop();
    assert!(matches!(
        short.to_files(&model()),
        Err(PeftError::WrongLength { expected: 192, found: 191, .. })
    ));

    let mut broken = whole;
    broken.weights.get_mut(&key).unwrap().a[7] = f32::INFINITY;
    assert!(matches!(broken.to_files(&model()), Err(PeftError::NotFinite { value: f32::INFINITY, .. })));
}

#[test]
fn patterns_that_cannot_be_used_are_refused_before_they_cost_memory() {
    let golden = std::fs::read(common::golden("peft_adapter/adapter_config.json")).unwrap();
    let parse = |field: &str, value: Value| {
        let mut config: Value = serde_json::from_slice(&golden).unwrap();
        config[field] = value;
        AdapterConfig::parse(config.to_string().as_bytes())
    };
    // A bracket that would close one put around it, one that is open, what no automaton does, and bombs.
    let patterns =
        ["q_proj)|(.*", "(q_proj", r"(?=q)q_proj", r"(\w{900}){900}", &format!("({})", "a|".repeat(4000))];
    for pattern in patterns {
        for (field, value) in [
            ("target_modules", json!(pattern)),
            ("rank_pattern", json!({ pattern: 4 })),
            ("alpha_pattern", json!({ pattern: 4 })),
        ] {
            match parse(field, value) {
                Err(PeftError::Pattern { field: found, .. }) => assert_eq!(found, field),
                other => panic!("{field} {pattern}: {other:?}"),
            }
        }
    }
    let many: serde_json::Map<_, _> = (0..20_000).map(|at| (format!("q{at}"), json!(4))).collect();
    assert!(matches!(parse("rank_pattern", json!(many)), Err(PeftError::Json { .. })));
}
