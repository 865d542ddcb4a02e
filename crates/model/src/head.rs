//! The head that labels samples: trained with the adapters, on the device that has the labels.

use std::collections::BTreeMap;

use baton_formats::config::Classifier;
use baton_formats::{Files, HeadPart, Label, ModelConfig, TensorIndex, TensorSpec, head_tensors};
use baton_kernels::Storage;
use burn::tensor::{Device, Tensor};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::device::{all_to_f32, matrix, to_f32};
use crate::load::{Reader, dims, plain};
use crate::lora::checked_matrix;
use crate::pretrain::normal;
use crate::{AdamW, Ends, ModelError, Moments};

/// transformers' `initializer_range`: the deviation of a fresh head's weights.
const DEVIATION: f64 = 0.02;

/// A classification or regression head in training: PEFT's `modules_to_save`.
pub struct ClassifierHead {
    config: ModelConfig,
    classifier: Classifier,
    adamw: AdamW,
    specs: Vec<TensorSpec<HeadPart>>,
    parameters: BTreeMap<HeadPart, Parameter>,
}

/// A weight or a bias in training.
#[derive(Clone)]
struct Parameter {
    /// [out, in], or [1, out]
    value: Tensor<2>,
    gradient: Option<Tensor<2>>,
    moments: Moments,
}

impl Parameter {
    fn new(value: Tensor<2>) -> Self {
        Self { gradient: None, moments: Moments::zeros(&value), value }
    }
}

/// The numbers of a forward pass.
struct Scores {
    /// [batch, outputs]
    tensor: Tensor<2>,
    /// The same as rows.
    rows: Vec<Vec<f32>>,
}

impl ClassifierHead {
    /// The head that the files have, if it gives as many numbers as `config` says; otherwise a fresh one as transformers
    /// makes it: weights from N(0, 0.02²) by `seed`, biases 0.
    ///
    /// # Errors
    ///
    /// When `config` is of a model without such a head, or the files cannot be read.
    pub async fn load_or_init(
        files: &impl Files,
        index: &TensorIndex,
        config: &ModelConfig,
        seed: u64,
        adamw: AdamW,
        device: &Device,
    ) -> Result<Self, ModelError> {
        let specs = head_tensors(config);
        let fits = |spec: &TensorSpec<HeadPart>| {
            index.find(&spec.names).is_some_and(|entry| entry.shape == spec.file_shape())
        };
        if !specs.iter().all(fits) {
            return Self::init(config, seed, adamw, device);
        }
        let mut reader = Reader { files, index, storage: Storage::F32, device, on_bytes: &mut |_| () };
        let values = reader.read(&specs).await?.into_iter();
        Self::new(config, values.map(|(part, matrix)| (part, plain(&matrix))).collect(), adamw)
    }

    /// A fresh head, as [`Self::load_or_init`] says.
    ///
    /// # Errors
    ///
    /// When `config` is of a model without such a head.
    pub fn init(config: &ModelConfig, seed: u64, adamw: AdamW, device: &Device) -> Result<Self, ModelError> {
        // A stream of its own: the adapters draw from the same seed.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(1);
        let mut values = BTreeMap::new();
        for spec in head_tensors(config) {
            let [rows, columns] = dims(&spec);
            let numbers = match spec.part {
                HeadPart::Dense | HeadPart::Output => {
                    (0..rows * columns).map(|_| (normal(&mut rng) * DEVIATION) as f32).collect()
                }
                HeadPart::DenseBias | HeadPart::OutputBias => vec![0.0; columns],
            };
            values.insert(spec.part, matrix(numbers, [rows, columns], device));
        }
        Self::new(config, values, adamw)
    }

    fn new(
        config: &ModelConfig,
        values: BTreeMap<HeadPart, Tensor<2>>,
        adamw: AdamW,
    ) -> Result<Self, ModelError> {
        let missing = || ModelError::NoClassifier(config.architecture.name());
        let classifier = config.classifier().ok_or_else(missing)?.clone();
        let parameters = values.into_iter().map(|(part, value)| (part, Parameter::new(value))).collect();
        Ok(Self { config: config.clone(), classifier, adamw, specs: head_tensors(config), parameters })
    }

    /// The loss, its gradient with respect to `h`, and what the head took the samples for; the gradients of the head's
    /// own parameters are added up.
    ///
    /// `h` is `[batch, time, hidden]`, what left the last block. The loss is `Σ weight · loss of a sample`: cross
    /// entropy, or the squared error of a regression. With 1/n for a step of n samples the micro-batches' losses add up
    /// to the step's mean, which is that of transformers.
    ///
    /// # Errors
    ///
    /// When there are not as many labels as samples, a label is of another kind or no class of the head, or the device
    /// fails.
    pub async fn loss_and_grad(
        &mut self,
        h: Tensor<3>,
        ends: &Ends,
        labels: &[Label],
        weight: f32,
    ) -> Result<(f64, Tensor<3>, Vec<Label>), ModelError> {
        self.check_labels(h.dims()[0], labels)?;
        let leaf = h.autodiff().require_grad();
        let leaves: BTreeMap<_, _> = self
            .parameters
            .iter()
            .map(|(&part, parameter)| (part, parameter.value.clone().autodiff().require_grad()))
            .collect();
        let scores = self.scores(leaf.clone(), ends, |part| leaves[&part].clone()).await?;
        let mut loss = 0.0;
        let mut gradient = Vec::new();
        for (row, &label) in scores.rows.iter().zip(labels) {
            let (own, slopes) = sample_loss(row, label);
            loss += own * f64::from(weight);
            gradient.extend(slopes.into_iter().map(|slope| (slope * f64::from(weight)) as f32));
        }
        let gradient = matrix(gradient, scores.tensor.dims(), &leaf.device());
        let mut gradients = (scores.tensor * gradient).sum().backward();
        for (part, leaf) in leaves {
            if let (Some(parameter), Some(new)) =
                (self.parameters.get_mut(&part), leaf.grad_remove(&mut gradients))
            {
                parameter.gradient = Some(match parameter.gradient.take() {
                    None => new,
                    Some(sum) => sum + new,
                });
            }
        }
        let gradient = leaf.grad_remove(&mut gradients).unwrap_or_else(|| leaf.inner().zeros_like());
        let predictions = scores.rows.iter().map(|row| self.prediction(row)).collect();
        Ok((loss, gradient, predictions))
    }

    /// The loss of [`Self::loss_and_grad`] and what the head took the samples for, without gradients.
    ///
    /// # Errors
    ///
    /// As there.
    pub async fn loss(
        &self,
        h: Tensor<3>,
        ends: &Ends,
        labels: &[Label],
        weight: f32,
    ) -> Result<(f64, Vec<Label>), ModelError> {
        self.check_labels(h.dims()[0], labels)?;
        let rows = self.logits(h, ends).await?;
        let losses = rows.iter().zip(labels).map(|(row, &label)| sample_loss(row, label).0);
        let predictions = rows.iter().map(|row| self.prediction(row)).collect();
        Ok((losses.sum::<f64>() * f64::from(weight), predictions))
    }

    /// What the head says of each sample: a row of as many numbers as it gives. h: `[batch, time, hidden]`
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn logits(&self, h: Tensor<3>, ends: &Ends) -> Result<Vec<Vec<f32>>, ModelError> {
        Ok(self.scores(h, ends, |part| self.parameters[&part].value.clone()).await?.rows)
    }

    /// The class of the largest number, or the value itself.
    pub fn prediction(&self, row: &[f32]) -> Label {
        if self.classifier.regression {
            return Label::Value(row.first().copied().unwrap_or(f32::NAN));
        }
        let best =
            (0..).zip(row).fold(
                (0, f32::NEG_INFINITY),
                |best, (class, &score)| {
                    if score > best.1 { (class, score) } else { best }
                },
            );
        Label::Class(best.0)
    }

    /// The sum of the squares of all accumulated gradients, for the global norm.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn grad_sum_of_squares(&self) -> Result<f64, ModelError> {
        let gradients = self.parameters.values().filter_map(|parameter| parameter.gradient.clone());
        let sums = gradients.map(|gradient| gradient.square().sum().reshape([1, 1]));
        let sums = all_to_f32(sums).await?;
        Ok(sums.into_iter().flatten().map(f64::from).sum())
    }

    /// One step of AdamW on the accumulated gradients, multiplied by `scale` before; then they are cleared.
    pub fn apply(&mut self, lr: f64, scale: f64) {
        for parameter in self.parameters.values_mut() {
            if let Some(gradient) = parameter.gradient.take() {
                let gradient = gradient.mul_scalar(scale);
                let value = parameter.value.clone();
                parameter.value = self.adamw.update(value, gradient, &mut parameter.moments, lr);
            }
        }
    }

    /// Drops the accumulated gradients: the step is abandoned.
    pub fn discard(&mut self) {
        for parameter in self.parameters.values_mut() {
            parameter.gradient = None;
        }
    }

    /// The accumulated gradients with their names and shapes; those that have none are left out.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn gradients(&self) -> Result<Vec<(String, Vec<usize>, Vec<f32>)>, ModelError> {
        self.named(|parameter| parameter.gradient.clone()).await
    }

    /// The parameters with their names and shapes, as files and PEFT's adapters have them.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn to_tensors(&self) -> Result<Vec<(String, Vec<usize>, Vec<f32>)>, ModelError> {
        self.named(|parameter| Some(parameter.value.clone())).await
    }

    /// Parameters and moments, for another device to go on from.
    ///
    /// # Errors
    ///
    /// When the device fails to give them back.
    pub async fn state(&self) -> Result<HeadState, ModelError> {
        let all = self.parameters.values();
        let tensors = all.flat_map(|Parameter { value, moments, .. }| [value, &moments.m, &moments.v]);
        let mut values = all_to_f32(tensors.map(Tensor::clone)).await?.into_iter();
        let mut next = || values.next().unwrap_or_default();
        let mut step = 0;
        let parameters = self.parameters.iter().map(|(&part, parameter)| {
            step = parameter.moments.step;
            (part, [(); 3].map(|()| next()))
        });
        let parameters = parameters.collect();
        Ok(HeadState { step, parameters })
    }

    /// Takes parameters and moments over; an open step is discarded.
    ///
    /// # Errors
    ///
    /// When they are of another head. Nothing is taken over then.
    pub fn restore(&mut self, state: &HeadState) -> Result<(), ModelError> {
        let mut parameters = BTreeMap::new();
        for spec in &self.specs {
            let (shape, part) = (dims(spec), spec.part);
            let missing = || ModelError::MissingTensor(spec.name().to_owned());
            let [value, m, v] = state.parameters.get(&part).ok_or_else(missing)?.clone();
            let device = self.parameters.get(&part).ok_or_else(missing)?.value.device();
            let tensor = |values| checked_matrix("a tensor of the head's state", values, shape, &device);
            let moments = Moments { m: tensor(m)?, v: tensor(v)?, step: state.step };
            parameters.insert(part, Parameter { value: tensor(value)?, gradient: None, moments });
        }
        self.parameters = parameters;
        Ok(())
    }

    async fn named(
        &self,
        tensor: impl Fn(&Parameter) -> Option<Tensor<2>>,
    ) -> Result<Vec<(String, Vec<usize>, Vec<f32>)>, ModelError> {
        let found = |spec: &&TensorSpec<HeadPart>| tensor(self.parameters.get(&spec.part)?);
        let specs = self.specs.iter().filter(|spec| found(spec).is_some());
        let values = all_to_f32(self.specs.iter().filter_map(|spec| found(&spec))).await?;
        Ok(specs
            .zip(values)
            .map(|(spec, values)| (spec.name().to_owned(), spec.shape.clone(), values))
            .collect())
    }

    async fn scores(
        &self,
        h: Tensor<3>,
        ends: &Ends,
        parameter: impl Fn(HeadPart) -> Tensor<2>,
    ) -> Result<Scores, ModelError> {
        let map = |x: Tensor<2>, weight, bias| x.matmul(parameter(weight).transpose()) + parameter(bias);
        let mut x = ends.pooled(h);
        if self.parameters.contains_key(&HeadPart::Dense) {
            x = map(x, HeadPart::Dense, HeadPart::DenseBias).tanh();
        }
        let tensor = map(x, HeadPart::Output, HeadPart::OutputBias);
        let values = to_f32(tensor.clone()).await?;
        let rows = values.chunks(self.classifier.outputs.max(1)).map(<[f32]>::to_vec).collect();
        Ok(Scores { tensor, rows })
    }

    fn check_labels(&self, batch: usize, labels: &[Label]) -> Result<(), ModelError> {
        if labels.len() != batch {
            return Err(ModelError::Shape {
                what: "the labels of a batch",
                found: vec![labels.len()],
                expected: vec![batch],
            });
        }
        let Classifier { outputs, regression, .. } = self.classifier;
        let fits = |label: &Label| match *label {
            Label::Class(class) => !regression && (class as usize) < outputs,
            Label::Value(value) => regression && outputs == 1 && value.is_finite(),
        };
        match labels.iter().find(|label| !fits(label)) {
            None => Ok(()),
            Some(label) => Err(ModelError::Label {
                label: match label {
                    Label::Class(class) => format!("class {class}"),
                    Label::Value(value) => format!("value {value}"),
                },
                head: match (regression, outputs) {
                    (true, 1) => "finite values".to_owned(),
                    (true, outputs) => format!("{outputs} values at once"),
                    (false, outputs) => format!("classes 0 to {}", outputs.saturating_sub(1)),
                },
            }),
        }
    }

    /// The model that it is the head of.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
}

/// The loss of a sample, and its gradient with respect to the head's numbers. The label fits the head.
fn sample_loss(scores: &[f32], label: Label) -> (f64, Vec<f64>) {
    match label {
        Label::Value(value) => {
            let error = f64::from(scores.first().copied().unwrap_or(0.0)) - f64::from(value);
            (error * error, vec![2.0 * error])
        }
        Label::Class(class) => {
            let largest = scores.iter().fold(f64::NEG_INFINITY, |max, &score| max.max(f64::from(score)));
            let exps: Vec<f64> = scores.iter().map(|&score| (f64::from(score) - largest).exp()).collect();
            let sum: f64 = exps.iter().sum();
            let mut slopes: Vec<f64> = exps.iter().map(|exp| exp / sum).collect();
            let target = scores.get(class as usize).copied().map_or(f64::NAN, f64::from);
            if let Some(slope) = slopes.get_mut(class as usize) {
                *slope -= 1.0;
            }
            (largest + sum.ln() - target, slopes)
        }
    }
}

/// Parameters and moments of a head as plain numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadState {
    /// Optimizer steps taken.
    pub step: u64,
    /// Value, first moment, second moment.
    parameters: BTreeMap<HeadPart, [Vec<f32>; 3]>,
}

/// The step (u64), little-endian; then the tensors in the order of `HeadPart`, each as value, first and second moment in f32.
const HEADER: usize = 8;

impl HeadState {
    /// A state that no step has touched, of parameters by the names that [`ClassifierHead::to_tensors`] gives them.
    ///
    /// # Errors
    ///
    /// When one is missing, is of another size or holds NaN or infinity.
    pub fn fresh(config: &ModelConfig, values: &BTreeMap<String, Vec<f32>>) -> Result<Self, ModelError> {
        let parameter = |spec: &TensorSpec<HeadPart>| {
            let value = values.get(spec.name());
            let value = value.ok_or_else(|| ModelError::MissingTensor(spec.name().to_owned()))?.clone();
            if value.len() as u64 != spec.elements() {
                return Err(ModelError::Shape {
                    what: "a tensor of the head",
                    found: vec![value.len()],
                    expected: spec.shape.clone(),
                });
            }
            let zeros = vec![0.0; value.len()];
            Ok((spec.part, [value, zeros.clone(), zeros]))
        };
        let parameters = head_tensors(config).iter().map(parameter).collect::<Result<_, ModelError>>()?;
        let state = Self { step: 0, parameters };
        state.check_finite()?;
        Ok(state)
    }

    /// How many bytes the state of a model's head takes.
    pub fn length(config: &ModelConfig) -> usize {
        let elements = |spec: &TensorSpec<HeadPart>| {
            let [rows, columns] = dims(spec);
            rows.saturating_mul(columns)
        };
        let elements = head_tensors(config).iter().map(elements).fold(0, usize::saturating_add);
        elements.saturating_mul(12).saturating_add(HEADER)
    }

    /// The state as bytes, as many as [`Self::length`] says.
    pub fn to_bytes(&self) -> Vec<u8> {
        let floats = self.parameters.values().flatten().flatten();
        let mut bytes = self.step.to_le_bytes().to_vec();
        bytes.extend(floats.flat_map(|float| float.to_le_bytes()));
        bytes
    }

    /// The state from bytes.
    ///
    /// # Errors
    ///
    /// When they are not as many as the model's head asks for, or hold NaN or infinity.
    pub fn from_bytes(config: &ModelConfig, bytes: &[u8]) -> Result<Self, ModelError> {
        let expected = Self::length(config);
        let wrong = ModelError::StateLength { found: bytes.len(), expected };
        if bytes.len() != expected {
            return Err(wrong);
        }
        let (step, rest) = bytes.split_first_chunk::<HEADER>().ok_or(wrong)?;
        let mut floats = rest.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let mut specs = head_tensors(config);
        specs.sort_by_key(|spec| spec.part);
        let parameters = specs.iter().map(|spec| {
            let count = dims(spec).iter().product();
            (spec.part, [(); 3].map(|()| floats.by_ref().take(count).collect()))
        });
        let state = Self { step: u64::from_le_bytes(*step), parameters: parameters.collect() };
        state.check_finite()?;
        Ok(state)
    }

    /// Refuses numbers that are infinite or not a number.
    ///
    /// # Errors
    ///
    /// [`ModelError::HeadNotFinite`] if there is one.
    pub fn check_finite(&self) -> Result<(), ModelError> {
        let mut floats = self.parameters.values().flatten().flatten();
        if floats.all(|float| float.is_finite()) { Ok(()) } else { Err(ModelError::HeadNotFinite) }
    }

    /// The parameters with their names and shapes, as [`ClassifierHead::to_tensors`] gives them.
    pub fn tensors(&self, config: &ModelConfig) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let tensor = |spec: TensorSpec<HeadPart>| {
            let [value, ..] = self.parameters.get(&spec.part)?;
            Some((spec.name().to_owned(), spec.shape.clone(), value.clone()))
        };
        head_tensors(config).into_iter().filter_map(tensor).collect()
    }
}
