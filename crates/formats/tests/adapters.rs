//! Adapters of every family: what PEFT wrote (`scripts/golden_families.py`) comes back the same, and is merged and made
//! uniform without a change of meaning. That PEFT, transformers and llama.cpp read what is written, `scripts/check_adapters.py`
//! sees.
#![cfg(not(target_arch = "wasm32"))]
#![allow(clippy::unwrap_used, clippy::panic)] // clippy does not see that the helpers are of tests

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use baton_formats::gguf_adapter::to_gguf;
use baton_formats::merge::{merge, merged_config};
use baton_formats::peft::{CONFIG_FILE, LABELS_FILE, WEIGHTS_FILE, fitted, labels_json};
use baton_formats::weights::GgufValue;
use baton_formats::{
    Adapter, AdapterConfig, DirFiles, Head, HeadPart, LoraPair, MemoryFiles, ModelConfig, NumberFormat,
    PeftError, Projection, Targets, TensorIndex, layout,
};
use futures::executor::block_on;
use serde_json::{Value, json};

fn families() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/golden/families"))
}

/// Every golden adapter: the folders of its model and of itself.
fn golden_adapters() -> Vec<(PathBuf, PathBuf)> {
    let folders = |path: PathBuf| {
        let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    };
    let models = folders(families()).into_iter();
    let adapters: Vec<_> = models
        .flat_map(|model| folders(model.clone()).into_iter().map(move |adapter| (model.clone(), adapter)))
        .collect();
    assert!(adapters.len() >= 17, "{adapters:?}");
    adapters
}

fn config(folder: &Path) -> ModelConfig {
    ModelConfig::parse(&std::fs::read(folder.join("config.json")).unwrap()).unwrap()
}

/// A golden adapter, and its model with the head that the adapter was trained with.
fn read(family: &str, adapter: &str) -> (ModelConfig, Adapter) {
    let files = DirFiles::new(families().join(family).join(adapter));
    let model = block_on(fitted(&files, config(&families().join(family)))).unwrap();
    let adapter = block_on(Adapter::read(&files, &model)).unwrap();
    (model, adapter)
}

/// `scale · BA` of a pair, `[out, in]`.
fn update(pair: &LoraPair, rank: usize, scale: f64) -> Vec<f64> {
    let input = pair.a.len() / rank;
    let rows = pair.b.chunks_exact(rank).flat_map(|row| {
        (0..input).map(move |column| {
            let products =
                row.iter().enumerate().map(|(k, b)| f64::from(*b) * f64::from(pair.a[k * input + column]));
            scale * products.sum::<f64>()
        })
    });
    rows.collect()
}

/// The updates of all maps that an adapter changes.
fn updates(adapter: &Adapter, model: &ModelConfig) -> BTreeMap<String, Vec<f64>> {
    let places = adapter.config.places(model).unwrap().into_iter();
    let all = places.map(|place| {
        let pair = &adapter.weights[&(place.block, place.projection)];
        (place.path, update(pair, place.rank, place.scale))
    });
    all.filter(|(_, update)| update.iter().any(|value| *value != 0.0)).collect()
}

#[test]
fn every_familys_adapter_comes_back_bit_by_bit_with_the_same_settings() {
    for (model_folder, folder) in golden_adapters() {
        let files = DirFiles::new(&folder);
        let model = block_on(fitted(&files, config(&model_folder))).unwrap();
        let adapter = block_on(Adapter::read(&files, &model)).unwrap();
        let (json, weights) = adapter.to_files(&model).unwrap();
        assert!(weights == std::fs::read(folder.join(WEIGHTS_FILE)).unwrap(), "{}", folder.display());

        let theirs: Value =
            serde_json::from_slice(&std::fs::read(folder.join(CONFIG_FILE)).unwrap()).unwrap();
        let ours: Value = serde_json::from_str(&json).unwrap();
        for (field, value) in ours.as_object().unwrap() {
            assert_eq!(*value, theirs[field], "{} {field}", folder.display());
        }
        // A field that is left out is off in PEFT.
        for (field, value) in
            theirs.as_object().unwrap().iter().filter(|(field, _)| ours.get(field).is_none())
        {
            let off = value.is_null() || value == false || *value == json!({}) || *value == json!([]);
            assert!(
                off || ["megatron_core", "peft_version", "qalora_group_size"].contains(&field.as_str()),
                "{field}"
            );
        }
    }
}

#[test]
fn a_classifiers_head_is_read_with_its_adapter() {
    let (model, adapter) = read("bert", "adapter");
    assert_eq!(model.classifier().unwrap().outputs, 3);
    assert_eq!(adapter.head[&HeadPart::Output].len(), 3 * 32);
    assert_eq!(adapter.head.keys().copied().collect::<Vec<_>>(), [HeadPart::Output, HeadPart::OutputBias]);
    let (_, adapter) = read("roberta", "adapter");
    assert_eq!(adapter.head[&HeadPart::Dense].len(), 32 * 32);
    assert_eq!(adapter.head.len(), 4);

    // The base's file knows nothing of the adapter's three classes.
    let files = DirFiles::new(families().join("bert/adapter"));
    let bare = config(&families().join("minilm"));
    assert_eq!(bare.classifier().unwrap().outputs, 2);
    assert!(matches!(block_on(Adapter::read(&files, &bare)), Err(PeftError::Weights(_))));
    let model = block_on(fitted(&files, bare)).unwrap();
    assert_eq!(block_on(Adapter::read(&files, &model)).unwrap().head[&HeadPart::OutputBias].len(), 3);
}

#[test]
fn half_a_head_is_refused() {
    let (model, whole) = read("bert", "adapter");
    let mut half = whole.clone();
    half.head.remove(&HeadPart::OutputBias);
    assert!(
        matches!(half.to_files(&model), Err(PeftError::Missing { path }) if path.ends_with("classifier.bias"))
    );
    let mut short = whole.clone();
    short.head.get_mut(&HeadPart::Output).unwrap().pop();
    assert!(matches!(short.to_files(&model), Err(PeftError::WrongLength { expected: 96, found: 95, .. })));
    let llama = config(&families().join("llama2"));
    let mut stray = read("llama2", "adapter").1;
    stray.head = whole.head;
    assert!(matches!(stray.to_files(&llama), Err(PeftError::Unexpected { .. })));
}

#[test]
fn an_encoders_adapter_without_a_head_is_whole() {
    let (model, mut adapter) = read("bert", "adapter");
    adapter.head.clear();
    let (json, weights) = adapter.to_files(&model).unwrap();
    let mut files = MemoryFiles::new();
    files.insert(CONFIG_FILE, json);
    files.insert(WEIGHTS_FILE, weights);
    assert_eq!(block_on(Adapter::read(&files, &model)).unwrap(), adapter);
}

#[test]
fn targets_ranks_and_scales_follow_pefts_rules() {
    let (model, adapter) = read("smollm2", "adapter_pattern");
    let places = adapter.config.places(&model).unwrap();
    let found: Vec<_> = places.iter().map(|place| (place.block, place.projection, place.rank)).collect();
    use Projection::{Down, Q, V};
    assert_eq!(found, [(0, Q, 2), (0, V, 2), (0, Down, 5), (2, Q, 3), (2, V, 2), (2, Down, 5)]);
    // rsLoRA: alpha over the rank's root; only block 0's v has an alpha of its own.
    for place in places {
        let alpha = if (place.block, place.projection) == (0, V) { 9.0 } else { 6.0 };
        assert_eq!(place.scale, alpha / (place.rank as f64).sqrt(), "{}", place.path);
    }

    let bert = config(&families().join("bert"));
    let on = |targets: Targets| {
        let places = AdapterConfig::new(2, 4.0, targets).places(&bert).unwrap();
        places.into_iter().map(|place| place.path).collect::<Vec<_>>()
    };
    // A name is whole words at the end of a path: `output.dense` is also the end of `attention.output.dense`.
    let names =
        |names: &[&str]| Targets::from(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    assert_eq!(on(names(&["output.dense"])).len(), 2 * 3);
    assert_eq!(on(names(&["1.output.dense"])), ["bert.encoder.layer.1.output.dense"]);
    assert_eq!(on(names(&["all-linear"])).len(), 6 * 3);
    // A regular expression is for the whole path.
    assert_eq!(on(Targets::Regex(r".*layer\.2.*(query|key)".to_owned())).len(), 2);
    let none = AdapterConfig::new(2, 4.0, Targets::Regex(r"query".to_owned())).places(&bert);
    assert!(matches!(none, Err(PeftError::UnknownTarget { .. })));

    // Of two patterns that fit, the first in the file counts, and it may come later in the alphabet.
    let json = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": "all-linear",
        "rank_pattern": {"self.query": 7, "[a-z]*.query": 5, "layer.0.output.dense": 9}}"#;
    let config = AdapterConfig::parse(json).unwrap();
    let ranks: BTreeMap<_, _> =
        config.places(&bert).unwrap().into_iter().map(|place| (place.path, place.rank)).collect();
    assert_eq!(ranks["bert.encoder.layer.0.attention.self.query"], 7);
    assert_eq!(ranks["bert.encoder.layer.0.output.dense"], 9);
    assert_eq!(ranks["bert.encoder.layer.1.output.dense"], 2);
    let again = AdapterConfig::parse(config.to_json(&bert).unwrap().as_bytes()).unwrap();
    assert_eq!(again.rank_pattern, config.rank_pattern);
    assert_eq!(again.places(&bert).unwrap(), config.places(&bert).unwrap());
}

#[test]
fn one_rank_and_scale_for_all_change_no_update() {
    let (model, adapter) = read("smollm2", "adapter_pattern");
    let uniform = adapter.clone().uniform(&model).unwrap();
    assert_eq!(uniform.config.r, 5);
    assert!(uniform.config.rank_pattern.is_empty() && !uniform.config.use_rslora);
    assert_eq!(uniform.weights.len(), 3 * model.num_hidden_layers);
    let (before, after) = (updates(&adapter, &model), updates(&uniform, &model));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (path, before) in before {
        let gap =
            before.iter().zip(&after[&path]).map(|(one, other)| (one - other).abs()).fold(0.0, f64::max);
        assert!(gap < 1e-7, "{path}: {gap}");
    }
    assert!(uniform.to_files(&model).is_ok());
    // One that is uniform already keeps its bits.
    let (model, adapter) = read("gpt2", "adapter");
    assert_eq!(adapter.clone().uniform(&model).unwrap(), adapter);
}

/// A merged model's tensors.
fn merged(
    base: &DirFiles,
    adapter: &Adapter,
    model: &ModelConfig,
    format: Option<NumberFormat>,
) -> MemoryFiles {
    let bytes = block_on(merge(base, model, adapter, format, Vec::new(), &mut |_| ())).unwrap();
    let mut files = MemoryFiles::new();
    files.insert("model.safetensors", bytes);
    files
}

/// Every map of the merged model is the base's and the adapter's update of it, and every other tensor the base's.
fn check_merged(base: &DirFiles, model: &ModelConfig, adapter: &Adapter) {
    let label = base.path().display();
    let files = merged(base, adapter, model, Some(NumberFormat::F32));
    let updates = updates(adapter, model);
    let (theirs, ours) = block_on(async {
        (TensorIndex::open_model(base).await.unwrap(), TensorIndex::open_model(&files).await.unwrap())
    });
    let mut changed = 0;
    for block in 0..model.num_hidden_layers {
        for spec in layout::block_tensors(model, block) {
            let shape = spec.file_shape();
            let name = &theirs.find(&spec.names).unwrap().name;
            let before = block_on(theirs.read_f32(base, name, &shape)).unwrap();
            let after = block_on(ours.read_f32(&files, spec.name(), &shape)).unwrap();
            let Some(update) = spec.name().strip_suffix(".weight").and_then(|path| updates.get(path)) else {
                assert_eq!(before, after, "{label} {}", spec.name());
                continue;
            };
            changed += 1;
            for (at, (before, after)) in before.iter().zip(&after).enumerate() {
                let (row, column) = (at / shape[1], at % shape[1]);
                let at = if spec.transposed { column * shape[0] + row } else { at };
                let expected = f64::from(*before) + update[at];
                assert!(
                    (expected - f64::from(*after)).abs() < 1e-6,
                    "{label} {} {row} {column}",
                    spec.name()
                );
            }
        }
    }
    assert_eq!(changed, updates.len(), "{label}");
    for spec in layout::end_tensors(model) {
        assert!(ours.get(spec.name()).is_some(), "{label} {}", spec.name());
    }
    for spec in layout::head_tensors(model) {
        assert_eq!(
            block_on(ours.read_f32(&files, spec.name(), &spec.file_shape())).unwrap(),
            adapter.head[&spec.part]
        );
    }
}

#[test]
fn a_merged_model_has_every_update_in_its_weights_and_nothing_else_changed() {
    // Transposed maps, a prefix that the base's file lacks, and parts in several files.
    for (base, twin) in
        [("gpt2", "gpt2"), ("gpt2_hub", "gpt2"), ("minilm", "minilm"), ("llama_sharded", "tinyllama")]
    {
        let (model, adapter) = read(twin, "adapter");
        check_merged(&DirFiles::new(families().join(base)), &model, &adapter);
    }
}

#[test]
fn a_gguf_file_is_a_base_as_the_model_that_it_was_converted_from() {
    // Rows of queries and keys in another order, transposed maps, and 8 bits a number.
    for name in ["llama", "gpt2", "llama_q8"] {
        let base = DirFiles::new(format!("{}/tests/golden/gguf/{name}.gguf", env!("CARGO_MANIFEST_DIR")));
        let index = block_on(TensorIndex::open_model(&base)).unwrap();
        let model = ModelConfig::parse(index.gguf().unwrap().config_json().unwrap().as_bytes()).unwrap();
        let config = AdapterConfig::new(2, 4.0, Targets::AllLinear);
        let wave =
            |length: usize, at: f32| (0..length).map(|i| (i as f32 + at).sin() / 8.0).collect::<Vec<_>>();
        let pairs = config.places(&model).unwrap().into_iter().map(|place| {
            let pair = LoraPair { a: wave(2 * place.input, 1.0), b: wave(place.out * 2, 2.0) };
            ((place.block, place.projection), pair)
        });
        let adapter = Adapter { weights: pairs.collect(), config, head: BTreeMap::new() };
        check_merged(&base, &model, &adapter);
    }
}

#[test]
fn a_merged_model_is_written_in_the_bases_format_or_the_one_asked_for() {
    let (model, adapter) = read("tinyllama", "adapter");
    for (format, expected) in [(None, NumberFormat::Bf16), (Some(NumberFormat::F32), NumberFormat::F32)] {
        let base = DirFiles::new(families().join("llama_bf16"));
        let files = merged(&base, &adapter, &model, format);
        let index = block_on(TensorIndex::open_model(&files)).unwrap();
        assert!(index.entries().all(|entry| entry.format == expected));
    }
}

#[test]
fn a_merged_encoders_config_is_that_of_a_classifier() {
    let (model, adapter) = read("minilm", "adapter");
    let base = std::fs::read(families().join("minilm/config.json")).unwrap();
    let config = merged_config(&base, &model, &adapter, None).unwrap();
    let read: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(read["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(read["id2label"], json!({"0": "LABEL_0", "1": "LABEL_1"}));
    assert_eq!(read["hidden_size"], 32);
    let again = ModelConfig::parse(config.as_bytes()).unwrap();
    assert_eq!(again.classifier().unwrap().outputs, 2);
    assert!(merged_config(b"[]", &model, &adapter, None).is_err());
    // A language model's is left alone.
    let (model, adapter) = self::read("llama2", "adapter");
    let base = std::fs::read(families().join("llama2/config.json")).unwrap();
    let same: Value = serde_json::from_str(&merged_config(&base, &model, &adapter, None).unwrap()).unwrap();
    assert_eq!(same, serde_json::from_slice::<Value>(&base).unwrap());
    let half = merged_config(&base, &model, &adapter, Some(NumberFormat::Bf16)).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&half).unwrap()["dtype"], "bfloat16");
}

#[test]
fn an_adapter_of_another_model_is_not_merged() {
    let (model, adapter) = read("tinyllama", "adapter");
    let base = DirFiles::new(families().join("gpt2"));
    let error = block_on(merge(&base, &model, &adapter, None, Vec::new(), &mut |_| ())).unwrap_err();
    assert!(error.to_string().contains("model.layers"), "{error}");
}

#[test]
fn the_gguf_of_an_adapter_holds_every_update_as_llama_cpp_applies_it() {
    for (family, name, architecture) in [
        ("llama3", "adapter", "llama"),
        ("smollm2", "adapter_pattern", "llama"),
        ("mistral", "adapter", "llama"),
        ("qwen3", "adapter", "qwen3"),
        ("gpt2", "adapter", "gpt2"),
    ] {
        let (model, adapter) = read(family, name);
        let mut files = MemoryFiles::new();
        files.insert("adapter.gguf", to_gguf(&adapter, &model).unwrap());
        let index = block_on(TensorIndex::open(&files, "adapter.gguf")).unwrap();
        let gguf = index.gguf().unwrap();
        for (key, value) in
            [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", architecture)]
        {
            assert_eq!(gguf.get(key), Some(&GgufValue::String(value.to_owned())), "{family}");
        }
        assert_eq!(gguf.get("adapter.lora.alpha"), Some(&GgufValue::F32(6.0)));
        let places = adapter.config.places(&model).unwrap();
        assert_eq!(index.entries().count(), 2 * places.len(), "{family}");
        for place in places {
            let map = match place.projection {
                Projection::Q => "attn_q",
                Projection::K => "attn_k",
                Projection::V => "attn_v",
                Projection::Qkv => "attn_qkv",
                Projection::O => "attn_output",
                Projection::Gate => "ffn_gate",
                Projection::Up => "ffn_up",
                Projection::Down => "ffn_down",
            };
            let tensor = |factor: &str, shape: [usize; 2]| {
                let name = format!("blk.{}.{map}.weight.{factor}", place.block);
                block_on(index.read_f32(&files, &name, &shape)).unwrap()
            };
            let pair = LoraPair {
                a: tensor("lora_a", [place.rank, place.input]),
                b: tensor("lora_b", [place.out, place.rank]),
            };
            // llama.cpp: alpha over the pair's own rank.
            let theirs = update(&pair, place.rank, 6.0 / place.rank as f64);
            let ours = update(&adapter.weights[&(place.block, place.projection)], place.rank, place.scale);
            let rotated =
                architecture == "llama" && matches!(place.projection, Projection::Q | Projection::K);
            for row in 0..place.out {
                // Row 2i + h of a head there is row i of its half h here.
                let (head, at, half) = (row / model.head_dim, row % model.head_dim, model.head_dim / 2);
                let from = if rotated { head * model.head_dim + (at % 2) * half + at / 2 } else { row };
                for column in 0..place.input {
                    let gap = theirs[row * place.input + column] - ours[from * place.input + column];
                    assert!(gap.abs() < 1e-6, "{family} {} {row} {column}: {gap}", place.path);
                }
            }
        }
    }
}

#[test]
fn a_classifiers_adapter_is_no_gguf() {
    let (model, adapter) = read("bert", "adapter");
    let error = to_gguf(&adapter, &model).unwrap_err();
    assert_eq!(error, PeftError::NoGguf { family: "BERT" });
    assert!(error.to_string().contains("baton merge"));
}

#[test]
fn the_card_says_how_to_load_the_adapter_whatever_its_model_is_called() {
    let (model, mut adapter) = read("llama2", "adapter");
    let front = |card: &str| card.split("---\n").nth(1).unwrap().to_owned();
    adapter.config.base_model_name_or_path = Some("org/\"name\"\n'x'".into());
    let card = adapter.card(&model);
    // A name cannot end its line, nor a string that it stands in.
    assert!(front(&card).lines().any(|line| line == r#"base_model: "org/\"name\"\n'x'""#), "{card}");
    assert!(card.contains("AutoModelForCausalLM.from_pretrained(base)"), "{card}");
    assert!(card.contains(r"--model 'org/"), "{card}");
    assert!(card.contains(r"'\''x'\''"), "{card}");
    adapter.config.base_model_name_or_path = None;
    let card = adapter.card(&model);
    assert!(!front(&card).contains("base_model"), "{card}");
    assert!(card.contains("base = \"path/to/the/model\"") && card.contains("baton export-gguf"), "{card}");

    let (model, adapter) = read("bert_regression", "adapter");
    let outputs = model.classifier().unwrap().outputs;
    let card = adapter.card(&model);
    let loads = format!("AutoModelForSequenceClassification.from_pretrained(base, num_labels={outputs})");
    assert!(card.contains(&loads) && !card.contains("baton generate"), "{card}");
    assert!(card.contains("baton classify --model"), "{card}");
}

#[test]
fn the_classes_names_stay_with_the_adapter_and_come_into_the_merged_config() {
    let (mut model, adapter) = read("minilm", "adapter");
    let outputs = model.classifier().unwrap().outputs;
    let mut called = |names: &[String]| {
        let Head::Classifier(head) = &mut model.ends.head else { panic!("no head") };
        head.labels = names.to_vec();
        labels_json(&model)
    };
    assert_eq!(called(&[]), None);
    let numbers: Vec<String> = (0..outputs).map(|class| class.to_string()).collect();
    assert_eq!(called(&numbers), None, "numbers are no names");
    let names: Vec<String> = (0..outputs).map(|class| format!("mood {class}")).collect();
    let json = called(&names).unwrap();

    let (config, weights) = adapter.to_files(&model).unwrap();
    let with = |labels: &str| {
        let mut files = MemoryFiles::new();
        files.insert(CONFIG_FILE, config.clone());
        files.insert(WEIGHTS_FILE, weights.clone());
        files.insert(LABELS_FILE, labels.to_owned());
        // A model that was never told of these classes, nor of how many there are.
        let plain = read("minilm", "adapter").0.with_classifier(outputs + 3, false).unwrap();
        block_on(fitted(&files, plain))
    };
    let model = with(&json).unwrap();
    assert_eq!(model.classifier().unwrap().labels, names);
    let base = std::fs::read(families().join("minilm/config.json")).unwrap();
    let merged: Value = serde_json::from_str(&merged_config(&base, &model, &adapter, None).unwrap()).unwrap();
    assert_eq!(merged["id2label"]["1"], "mood 1");
    assert_eq!(merged["label2id"]["mood 1"], 1);
    for (labels, words) in [
        ("{}", "id2label"),
        (r#"{"id2label": {"0": "one"}}"#, "it names 1"),
        (&json.replace("\"mood 1\"", "\"mood 0\""), "two classes are called"),
        (&json.replace("\"1\":", "\"9\":"), "no name for class 1"),
    ] {
        let error = with(labels).unwrap_err().to_string();
        assert!(error.contains("labels.json") && error.contains(words), "{labels}: {error}");
    }
}
