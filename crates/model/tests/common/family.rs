//! A tiny random model of one family with what transformers and PEFT compute for it: see scripts/golden_families.py.

use std::collections::BTreeMap;
use std::ops::Range;

use baton_formats::layout::{block_tensors, end_tensors, path};
use baton_formats::peft::LoraPair;
use baton_formats::{Label, MemoryFiles, ModelConfig, TensorIndex, TensorSpec, write_safetensors};
use baton_kernels::FrozenMatrix;
use baton_model::{
    AdamW, Blocks, ClassifierHead, Device, Ends, HeadState, KvCache, Lora, LoraSpec, Storage, Tensor, Trainer,
};

use super::{Golden, Pairs, all_gradients, pairs_relative, relative, values};

/// The folders of golden/families, sorted.
pub const NAMES: [&str; 19] = [
    "bert",
    "bert_hub",
    "bert_regression",
    "gemma3",
    "gpt2",
    "gpt2_hub",
    "llama2",
    "llama3",
    "llama_bf16",
    "llama_linear",
    "llama_sharded",
    "minilm",
    "mistral",
    "qwen2",
    "qwen2_tied",
    "qwen3",
    "roberta",
    "smollm2",
    "tinyllama",
];

/// A model, the batch of its golden, and what comes of it.
pub struct Family {
    pub name: String,
    pub files: MemoryFiles,
    pub index: TensorIndex,
    pub config: ModelConfig,
    pub golden: Golden,
    /// The file of PEFT's adapter; none where the golden has only the model's logits.
    pub adapter: Option<Golden>,
    pub device: Device,
    /// Rows cut to their lengths.
    pub ids: Vec<Vec<u32>>,
    pub types: Vec<Vec<u32>>,
    pub lengths: Vec<usize>,
}

/// What one pass forward and backward gives.
pub struct Outcome {
    pub loss: f64,
    pub gradients: Pairs,
    /// Of the head, by name.
    pub head: BTreeMap<String, Vec<f32>>,
}

impl Family {
    pub async fn open(
        name: &str,
        files: MemoryFiles,
        golden: Golden,
        adapter: Option<Golden>,
        device: Device,
    ) -> Self {
        let json = baton_formats::read_all(&files, "config.json", 1 << 20).await.unwrap();
        let config = ModelConfig::parse(&json).unwrap();
        let index = TensorIndex::open_model(&files).await.unwrap();
        let time = golden.shape("ids")[1];
        let lengths: Vec<usize> = match golden.has("lengths") {
            true => golden.f32("lengths").iter().map(|&length| length as usize).collect(),
            false => vec![time; golden.shape("ids")[0]],
        };
        let rows = |name: &str| -> Vec<Vec<u32>> {
            let all = golden.f32(name);
            let rows = all.chunks(time).zip(&lengths);
            rows.map(|(row, &length)| row[..length].iter().map(|&id| id as u32).collect()).collect()
        };
        let ids = rows("ids");
        let types = if config.is_encoder() { rows("token_type_ids") } else { Vec::new() };
        let name = name.to_owned();
        Self { name, files, index, config, golden, adapter, device, ids, types, lengths }
    }

    pub fn spec(&self) -> LoraSpec {
        LoraSpec::new(2, 6.0, self.config.projections().collect())
    }

    pub async fn ends(&self, storage: Storage) -> Ends {
        let (files, device) = (&self.files, &self.device);
        Ends::load(files, &self.index, &self.config, storage, device, |_| ()).await.unwrap()
    }

    pub async fn blocks(&self, range: Range<usize>, storage: Storage) -> Blocks {
        let (files, device) = (&self.files, &self.device);
        Blocks::load(files, &self.index, &self.config, range, storage, device, |_| ()).await.unwrap()
    }

    async fn all_blocks(&self, storage: Storage) -> Blocks {
        self.blocks(0..self.config.num_hidden_layers, storage).await
    }

    /// The pairs of a file of PEFT's, or their gradients.
    pub fn pairs(&self, file: &Golden, prefix: &str) -> Pairs {
        let mut pairs = Pairs::new();
        for block in 0..self.config.num_hidden_layers {
            for projection in self.config.projections() {
                let path = path(&self.config, block, projection);
                let name = |part| format!("{prefix}base_model.model.{path}.lora_{part}.weight");
                if file.has(&name("A")) {
                    let [a, b] = ["A", "B"].map(|part| file.f32(&name(part)));
                    pairs.insert((block, projection), LoraPair { a, b });
                }
            }
        }
        pairs
    }

    /// The head with parameters from a file, `<prefix><name>`; that of the model where there are none.
    async fn head(&self, file: &Golden, prefix: &str) -> ClassifierHead {
        let (files, config) = (&self.files, &self.config);
        let adamw = AdamW::default();
        let mut head =
            ClassifierHead::load_or_init(files, &self.index, config, 1, adamw, &self.device).await.unwrap();
        let names = baton_formats::head_tensors(config).into_iter().map(|spec| spec.name().to_owned());
        let found = names.filter(|name| file.has(&format!("{prefix}{name}")));
        let values: BTreeMap<_, _> =
            found.map(|name| (name.clone(), file.f32(&format!("{prefix}{name}")))).collect();
        if !values.is_empty() {
            head.restore(&HeadState::fresh(config, &values).unwrap()).unwrap();
        }
        head
    }

    fn labels(&self) -> Vec<Label> {
        let regression = self.config.classifier().unwrap().regression;
        let label = |&label: &f32| if regression { Label::Value(label) } else { Label::Class(label as u32) };
        self.golden.f32("labels").iter().map(label).collect()
    }

    /// Next tokens and their weights, rows of the longest row's length.
    fn targets(&self) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
        let time = self.lengths.iter().max().copied().unwrap();
        let count: usize = self.lengths.iter().map(|length| length - 1).sum();
        let padded = |row: &Vec<u32>| {
            let mut targets = row[1..].to_vec();
            targets.resize(time, 0);
            targets
        };
        let weights = |row: &Vec<u32>| {
            let mut weights = vec![1.0 / count as f32; row.len() - 1];
            weights.resize(time, 0.0);
            weights
        };
        (self.ids.iter().map(padded).collect(), self.ids.iter().map(weights).collect())
    }

    /// What the model says: of every real position one after another, or of every sample.
    async fn answer(&self, h: Tensor<3>, ends: &Ends, head: Option<&ClassifierHead>) -> Vec<f32> {
        match head {
            Some(head) => head.logits(h, ends).await.unwrap().concat(),
            None => self.real(&ends.logits(h).await.unwrap()),
        }
    }

    /// The rows of real positions of `[batch, time, vocab]`.
    fn real(&self, logits: &[f32]) -> Vec<f32> {
        let time = self.lengths.iter().max().unwrap();
        let rows = logits.chunks(time * self.config.vocab_size).zip(&self.lengths);
        rows.flat_map(|(row, length)| &row[..length * self.config.vocab_size]).copied().collect()
    }

    /// The base model's logits are those of transformers.
    pub async fn base_logits_match(&self) {
        let (ends, blocks) = (self.ends(Storage::F32).await, self.all_blocks(Storage::F32).await);
        let head = match self.config.classifier() {
            Some(_) => Some(self.head(&self.golden, "head.").await),
            None => None,
        };
        let h = blocks.forward(None, ends.embed(&self.ids, &self.types).unwrap(), &self.lengths);
        let found = self.answer(h, &ends, head.as_ref()).await;
        let expected = match head {
            Some(_) => self.golden.f32("logits"),
            None => self.real(&self.golden.f32("logits")),
        };
        let error = relative(&found, &expected);
        println!("{}: logits differ by {error:.1e}", self.name);
        assert!(error < 1e-4, "{}: {error:e}", self.name);
    }

    /// The adapted model's logits, loss and gradients are PEFT's, and in any number of stages the same.
    pub async fn training_matches(&self, cuts: &[&[usize]]) {
        let Some(adapter) = &self.adapter else {
            return;
        };
        let name = &self.name;
        let ends = self.ends(Storage::F32).await;
        let lora = self.pairs(adapter, "");
        let whole = Lora::from_pairs(&self.config, &self.spec(), self.range(), &lora, &self.device).unwrap();
        let h = ends.embed(&self.ids, &self.types).unwrap();
        let h = self.all_blocks(Storage::F32).await.forward(Some(&whole), h, &self.lengths);
        let (found, expected) = match self.config.classifier() {
            Some(_) => {
                let head = self.head(adapter, "base_model.model.").await;
                (self.answer(h, &ends, Some(&head)).await, self.golden.f32("adapted_logits"))
            }
            None => (self.answer(h, &ends, None).await, self.real(&self.golden.f32("adapted_logits"))),
        };
        let error = relative(&found, &expected);
        assert!(error < 1e-4, "{name}: adapted logits differ by {error:e}");

        let first = self.pass(Storage::F32, &[0, self.config.num_hidden_layers], true).await;
        let loss = self.golden.f64("loss")[0];
        let loss = (first.loss - loss).abs() / loss.abs();
        let gradients = pairs_relative(&first.gradients, &self.pairs(&self.golden, "grad."));
        println!("{name}: with the adapter logits {error:.1e}, loss {loss:.1e}, gradients {gradients:.1e}");
        assert!(loss < 1e-3 && gradients < 1e-3, "{name}: loss {loss:e}, gradients {gradients:e}");
        assert_eq!(first.head.is_empty(), self.config.classifier().is_none());
        for (tensor, gradient) in &first.head {
            let expected = self.golden.f32(&format!("grad.base_model.model.{tensor}"));
            let error = relative(gradient, &expected);
            assert!(error < 1e-3, "{name}: the gradient of {tensor} differs by {error:e}");
        }
        for cuts in cuts {
            for recompute in [false, true] {
                let other = self.pass(Storage::F32, cuts, recompute).await;
                same(&other, &first, 1e-5, &format!("{name} cut at {cuts:?}, recompute {recompute}"));
            }
        }
    }

    fn range(&self) -> Range<usize> {
        0..self.config.num_hidden_layers
    }

    /// A pass forward and backward through stages.
    pub async fn pass(&self, storage: Storage, cuts: &[usize], recompute: bool) -> Outcome {
        let adapter = self.adapter.as_ref().unwrap();
        let lora = self.pairs(adapter, "");
        let ends = self.ends(storage).await;
        let mut stages = Vec::new();
        for cut in cuts.windows(2) {
            let range = cut[0]..cut[1];
            let lora = Lora::from_pairs(&self.config, &self.spec(), range.clone(), &lora, &self.device);
            let blocks = self.blocks(range, storage).await;
            stages.push(Trainer::new(blocks, lora.unwrap(), AdamW::default(), recompute));
        }
        let mut h = ends.embed(&self.ids, &self.types).unwrap();
        for stage in &mut stages {
            h = stage.forward(0, h, &self.lengths);
        }
        let (loss, mut grad, head) = match self.config.classifier() {
            Some(_) => {
                let mut head = self.head(adapter, "base_model.model.").await;
                let (labels, weight) = (self.labels(), 1.0 / self.ids.len() as f32);
                let (loss, grad, said) = head.loss_and_grad(h, &ends, &labels, weight).await.unwrap();
                assert_eq!(said.len(), labels.len());
                let gradients = head.gradients().await.unwrap().into_iter();
                (loss, grad, gradients.map(|(name, _, values)| (name, values)).collect())
            }
            None => {
                let (targets, weights) = self.targets();
                let (loss, grad) = ends.loss_and_grad(h, &targets, &weights).await.unwrap();
                (loss, grad, BTreeMap::new())
            }
        };
        for (i, stage) in stages.iter_mut().enumerate().rev() {
            if let Some(next) = stage.backward(0, grad.clone(), i > 0).unwrap() {
                grad = next;
            }
        }
        Outcome { loss, gradients: all_gradients(&stages).await, head }
    }

    /// A row alone gives what it gives beside longer ones.
    pub async fn padding_changes_nothing(&self) {
        let (ends, blocks) = (self.ends(Storage::F32).await, self.all_blocks(Storage::F32).await);
        let h = blocks.forward(None, ends.embed(&self.ids, &self.types).unwrap(), &self.lengths);
        for (row, &length) in self.lengths.iter().enumerate() {
            let types = self.types.get(row..=row).unwrap_or_default();
            let alone = blocks.forward(None, ends.embed(&self.ids[row..=row], types).unwrap(), &[]);
            let beside = h.clone().narrow(0, row, 1).narrow(1, 0, length);
            let error = relative(&values(alone).await, &values(beside).await);
            assert!(error < 1e-5, "{} row {row}: {error:e}", self.name);
        }
    }

    /// Decoding with a cache gives what a pass over the whole text gives.
    pub async fn cache_changes_nothing(&self) {
        if self.config.is_encoder() {
            return;
        }
        let (ends, blocks) = (self.ends(Storage::F32).await, self.all_blocks(Storage::F32).await);
        let ids = &self.ids[0];
        let whole = blocks.forward(None, ends.embed(std::slice::from_ref(ids), &[]).unwrap(), &[]);
        let mut cache = KvCache::new();
        let mut pieces = Vec::new();
        // The last pieces are longer than the windows of the goldens.
        for piece in [0..1, 1..4, 4..5, 5..7, 7..8, 8..ids.len() - 1, ids.len() - 1..ids.len()] {
            let h = ends.embed_after(cache.time(), &[ids[piece].to_vec()], &[]).unwrap();
            pieces.extend(values(blocks.forward_cached(None, h, &mut cache)).await);
        }
        assert_eq!(cache.time(), ids.len());
        let error = relative(&pieces, &values(whole).await);
        assert!(error < 1e-5, "{}: {error:e}", self.name);
    }

    /// Packed weights give what the numbers that they stand for give, at a bounded distance from the model's own, and
    /// take the bytes that the config predicts.
    pub async fn packed_weights_match(&self, storage: Storage, bound: f64) {
        let name = format!("{} in {}", self.name, storage.name());
        let (ends, blocks) = (self.ends(storage).await, self.all_blocks(storage).await);
        assert_eq!(blocks.bytes(), baton_model::frozen_bytes(&self.config, self.range(), storage), "{name}");
        assert_eq!(ends.bytes(), baton_model::end_bytes(&self.config, storage), "{name}");
        let states = |ends: Ends, blocks: Blocks| {
            let h = ends.embed(&self.ids, &self.types).unwrap();
            blocks.forward(None, h, &self.lengths)
        };
        let packed = values(states(ends, blocks)).await;
        let own = states(self.ends(Storage::F32).await, self.all_blocks(Storage::F32).await);
        let error = root_mean_square(&packed, &values(own).await);
        println!("{name}: hidden states differ by {error:.1e} of their root mean square from f32");
        assert!(error < bound, "{name}: {error:e}");
        if storage == Storage::F32 {
            return;
        }
        // The bf16 model's own numbers are on the grid of bf16.
        assert!(error > 0.0 || self.name == "llama_bf16", "{name}: nothing was packed");
        let plain = self.unpacked(storage).await;
        let h = states(plain.ends(Storage::F32).await, plain.all_blocks(Storage::F32).await);
        let error = relative(&packed, &values(h).await);
        assert!(error < 1e-4, "{name}: {error:e} from the unpacked weights");
        if self.adapter.is_some() {
            let cuts = [0, 1, self.config.num_hidden_layers];
            let (found, expected) = (self.pass(storage, &cuts, true), plain.pass(Storage::F32, &cuts, true));
            same(&found.await, &expected.await, 1e-4, &name);
        }
    }

    /// The same model with the numbers that its packed weights stand for.
    async fn unpacked(&self, storage: Storage) -> Self {
        let mut tensors = Vec::new();
        for block in self.range() {
            for spec in block_tensors(&self.config, block) {
                let packed = matches!(spec.part, baton_formats::BlockPart::Weight(_));
                tensors.push(self.rounded(&spec, storage, packed).await);
            }
        }
        for spec in end_tensors(&self.config) {
            use baton_formats::EndPart::{Embedding, LanguageHead};
            let packed = matches!(spec.part, Embedding | LanguageHead);
            tensors.push(self.rounded(&spec, storage, packed).await);
        }
        let mut files = MemoryFiles::new();
        let json = baton_formats::read_all(&self.files, "config.json", 1 << 20).await.unwrap();
        files.insert("config.json", json);
        files.insert("model.safetensors", write_safetensors(&tensors, &BTreeMap::new()).unwrap());
        let index = TensorIndex::open_model(&files).await.unwrap();
        Self {
            name: self.name.clone(),
            files,
            index,
            config: self.config.clone(),
            golden: self.golden.clone(),
            adapter: self.adapter.clone(),
            device: self.device.clone(),
            ids: self.ids.clone(),
            types: self.types.clone(),
            lengths: self.lengths.clone(),
        }
    }

    async fn rounded<P>(
        &self,
        spec: &TensorSpec<P>,
        storage: Storage,
        packed: bool,
    ) -> (String, Vec<usize>, Vec<f32>) {
        let entry = self.index.find(&spec.names).unwrap();
        let mut values = self.index.read_f32(&self.files, &entry.name, &spec.file_shape()).await.unwrap();
        if let (&[rows, columns], true) = (&spec.shape[..], packed) {
            let turn = |values: &[f32], rows: usize, columns: usize| -> Vec<f32> {
                (0..rows * columns).map(|i| values[i % columns * rows + i / columns]).collect()
            };
            if spec.transposed {
                values = turn(&values, rows, columns);
            }
            let matrix = FrozenMatrix::from_f32(storage, values, [rows, columns], &self.device).unwrap();
            values = matrix.to_f32().await.unwrap();
            if spec.transposed {
                values = turn(&values, columns, rows);
            }
        }
        (spec.name().to_owned(), spec.file_shape(), values)
    }
}

/// The root mean square of the differences over that of the values.
fn root_mean_square(found: &[f32], expected: &[f32]) -> f64 {
    let sum =
        |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
    let difference = sum(&mut found.iter().zip(expected).map(|(f, e)| f - e));
    (difference / sum(&mut expected.iter().copied())).sqrt()
}

/// The same loss and gradients, to `bound`.
fn same(found: &Outcome, expected: &Outcome, bound: f64, what: &str) {
    let loss = (found.loss - expected.loss).abs() / expected.loss.abs();
    assert!(loss < bound, "{what}: loss {loss:e}");
    let gradients = pairs_relative(&found.gradients, &expected.gradients);
    assert!(gradients < bound, "{what}: gradients {gradients:e}");
    assert!(found.head.keys().eq(expected.head.keys()));
    for (name, gradient) in &found.head {
        let error = relative(gradient, &expected.head[name]);
        assert!(error < bound, "{what}: the gradient of {name} {error:e}");
    }
}
