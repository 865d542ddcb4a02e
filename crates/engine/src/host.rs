//! The engine behind the coordinator's jobs: the ends, the text, the head, and the host's own blocks.

use crate::batches::{Aim, Batches, MicroBatchData};
use crate::cache::AnyCache;
use crate::error::EngineError;
use crate::evaluate::Evaluation;
use crate::measure;
use crate::node::{Environment, ModelFiles};
use crate::source::{Model, Prepared, adamw, storage};
use crate::stage::{Most, Part, numbers, receive, send};
use crate::texts::Texts;
use baton_formats::files::FilesSource;
use baton_formats::{Files, Manifest, ModelConfig, VerifiedFiles, end_tensors};
use baton_model::{ClassifierHead, Device, Ends, HeadState, Tensor};
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::coordinator::{Done, Job};
use baton_protocol::ids::{MicroBatch, Step};
use baton_protocol::message::BlockBytes;
use baton_protocol::run::Settings;
use std::cell::RefCell;
use std::rc::Rc;

/// What is asked for outside of training, shared with who asks.
#[derive(Clone, Default)]
pub struct Requests {
    /// Texts that the model writes.
    pub texts: Rc<RefCell<Texts>>,
    /// Samples that it is judged by.
    pub evaluation: Rc<RefCell<Evaluation>>,
}

/// The engine of a host.
pub struct HostEngine {
    device: Device,
    model: Rc<Model>,
    /// The model's, with the head that the text asks for.
    config: ModelConfig,
    settings: Settings,
    batches: Batches,
    requests: Requests,
    ends: Option<Ends>,
    head: Option<ClassifierHead>,
    /// The host's own blocks, if it has any.
    part: Option<Part>,
    /// Whether those are all.
    alone: bool,
    /// The model's files, checked piece by piece.
    checked: Option<VerifiedFiles<FilesSource<ModelFiles>, AnyCache>>,
}

impl HostEngine {
    /// An engine that has read nothing yet. `text` is as [`Model::prepare`] makes it; what is to be judged goes to
    /// `requests`.
    pub fn new(
        device: Device,
        model: Rc<Model>,
        text: Prepared,
        settings: Settings,
        requests: Requests,
    ) -> Self {
        let shuffle = settings.shuffle.then_some(settings.seed);
        let batches = Batches::new(text.train.examples, settings.batch_size, settings.micro_batches, shuffle);
        let size = usize::try_from(settings.batch_size)
            .unwrap_or(usize::MAX)
            .div_ceil(usize::from(settings.micro_batches).max(1));
        // The plan may leave no memory for more.
        let size = if settings.freedom.micro_batches { size.min(2) } else { size };
        requests.evaluation.borrow_mut().replace(MicroBatchData::all(&text.validation, size));
        let config = text.config;
        Self {
            device,
            model,
            config,
            settings,
            batches,
            requests,
            ends: None,
            head: None,
            part: None,
            alone: false,
            checked: None,
        }
    }

    /// Has what is read checked against a manifest of the model's files, and kept in `cache`.
    ///
    /// # Errors
    ///
    /// When the manifest does not hold together.
    pub fn check_files(&mut self, manifest: Manifest, cache: AnyCache) -> Result<(), EngineError> {
        let source = FilesSource::new(ModelFiles(self.model.clone()), &manifest);
        self.checked = Some(VerifiedFiles::new(manifest, vec![source], cache)?);
        Ok(())
    }

    /// Whether a head is trained here.
    pub fn trains_head(&self) -> bool {
        self.config.classifier().is_some()
    }

    /// Runs a job; `on_progress` hears bytes of bytes while it loads.
    ///
    /// # Errors
    ///
    /// In words, when it cannot.
    pub async fn run(
        &mut self,
        job: Job,
        environment: &impl Environment,
        on_progress: impl FnMut(u64, u64),
    ) -> Result<Done, EngineError> {
        match job {
            Job::Load { blocks, states, micro_batches, in_flight, recompute } => {
                self.batches.cut_in(micro_batches);
                self.settings = Settings { micro_batches, recompute, ..self.settings.clone() };
                let expected = measure::expected_of_host(&self.config, &self.settings, &blocks, in_flight)?;
                environment.holding(expected).await;
                self.alone = blocks.len() == self.config.num_hidden_layers;
                self.load(blocks, &states, on_progress).await?;
                Ok(Done::Load)
            }
            Job::Front { step, micro_batch } => {
                let data = self.data(step, micro_batch)?;
                let h = self.ends()?.embed(&data.ids, &data.type_ids)?;
                let h = match &mut self.part {
                    Some(part) => part.forward(micro_batch.0, h, data.lengths()),
                    None => h,
                };
                Ok(Done::Front(send(h, data.lengths(), self.precision()).await?))
            }
            Job::Head { step, micro_batch, tensor } => {
                let data = self.data(step, micro_batch)?;
                let h = self.receive(&tensor)?;
                let ends = self.ends.as_ref().ok_or(EngineError::NotLoaded)?;
                let (loss, grad) = match &data.aim {
                    Aim::Tokens { targets, weights } => ends.loss_and_grad(h, targets, weights).await?,
                    Aim::Labels { labels, weight, .. } => {
                        let head = self.head.as_mut().ok_or(EngineError::NotLoaded)?;
                        let (loss, grad, _) = head.loss_and_grad(h, ends, labels, *weight).await?;
                        (loss, grad)
                    }
                };
                let grad = send(grad, &[], self.precision()).await?;
                Ok(Done::Head { loss, tokens: data.tokens, grad })
            }
            Job::BackFront { micro_batch, tensor } => {
                let part = self.part.as_mut().ok_or(EngineError::NotLoaded)?;
                let (grad, _) = part.receive(&tensor)?;
                part.backward(micro_batch.0, grad, false)?;
                Ok(Done::BackFront)
            }
            Job::GradNorm => {
                let mut sum = 0.0;
                if let Some(part) = &self.part {
                    sum += part.grad_sum_of_squares().await?;
                }
                if let Some(head) = &self.head {
                    sum += head.grad_sum_of_squares().await?;
                }
                Ok(Done::GradNorm(sum))
            }
            Job::Apply { lr, scale } => {
                let mut states = match &mut self.part {
                    Some(part) => part.apply(lr, scale).await?,
                    None => Vec::new(),
                };
                if let Some(head) = &mut self.head {
                    head.apply(lr, scale);
                    let state = head.state().await?;
                    state.check_finite()?;
                    states.push(BlockBytes { block: head_block(&self.config), bytes: state.to_bytes() });
                }
                Ok(Done::Apply(states))
            }
            Job::InferFront { request } => {
                let (ids, type_ids, lengths) = self.request(request)?;
                let h = self.ends()?.embed(&ids, &type_ids)?;
                let h = match &self.part {
                    Some(part) => part.infer(h, &lengths),
                    None => h,
                };
                Ok(Done::InferFront(send(h, &lengths, Precision::F32).await?))
            }
            Job::InferHead { request, tensor } => {
                let h = self.receive(&tensor)?;
                let done = if Evaluation::is_request(request) {
                    self.judge(request, h).await?;
                    true
                } else {
                    let logits = self.ends()?.logits_last(h).await?;
                    let mut texts = self.requests.texts.borrow_mut();
                    let text = texts.get_mut(request).ok_or(EngineError::NotLoaded)?;
                    text.push(&logits);
                    text.is_done(&self.model)
                };
                Ok(Done::InferHead { done })
            }
            Job::Check { blocks, input, states } => {
                Ok(Done::Check(self.again(blocks, &input, &states).await?))
            }
            Job::Measure(measure) => {
                let part = self.part.as_ref().map_or(0, Part::held);
                let held = part.saturating_add(self.ends.as_ref().map_or(0, Ends::bytes));
                let memory = environment.memory(measure.most, held).await;
                // The head is that of the text.
                let (config, settings) = (&self.config, &measure.settings);
                let profile = measure::host(config, settings, &self.device, memory, environment).await?;
                Ok(Done::Measure(Box::new(profile)))
            }
        }
    }

    /// What is not trained on passes the model once. h: `[batch, time, hidden]`, what left the last block
    async fn judge(&self, request: u32, h: Tensor<3>) -> Result<(), EngineError> {
        let data = self.requests.evaluation.borrow().batch(request).cloned().ok_or(EngineError::NotLoaded)?;
        let ends = self.ends()?;
        let (loss, predictions) = match &data.aim {
            Aim::Tokens { targets, weights } => (ends.loss(h, targets, weights).await?, Vec::new()),
            Aim::Labels { labels, weight, .. } => {
                let head = self.head.as_ref().ok_or(EngineError::NotLoaded)?;
                head.loss(h, ends, labels, *weight).await?
            }
        };
        self.requests.evaluation.borrow_mut().add(request, loss, predictions);
        Ok(())
    }

    /// Tokens, types and lengths of what is asked for outside of training.
    #[expect(clippy::type_complexity, reason = "what `embed` and the blocks take")]
    fn request(&self, request: u32) -> Result<(Vec<Vec<u32>>, Vec<Vec<u32>>, Vec<usize>), EngineError> {
        if Evaluation::is_request(request) {
            let evaluation = self.requests.evaluation.borrow();
            let data = evaluation.batch(request).ok_or(EngineError::NotLoaded)?;
            return Ok((data.ids.clone(), data.type_ids.clone(), data.lengths().to_vec()));
        }
        let texts = self.requests.texts.borrow();
        let ids = texts.get(request).ok_or(EngineError::NotLoaded)?.ids().to_vec();
        Ok((vec![ids], Vec::new(), Vec::new()))
    }

    /// A boundary that came back from the blocks: `[batch, time, hidden]`.
    fn receive(&self, tensor: &Boundary) -> Result<Tensor<3>, EngineError> {
        let most = Most::new(&self.settings, &self.config);
        Ok(receive(tensor, &self.config, most, &self.device)?.0)
    }

    /// What stays on this device is not rounded.
    fn precision(&self) -> Precision {
        if self.alone { Precision::F32 } else { self.settings.boundary }
    }

    fn data(&mut self, step: Step, micro_batch: MicroBatch) -> Result<MicroBatchData, EngineError> {
        self.batches.micro_batch(step.0, micro_batch.0).ok_or(EngineError::NoText(step))
    }

    fn ends(&self) -> Result<&Ends, EngineError> {
        self.ends.as_ref().ok_or(EngineError::NotLoaded)
    }

    /// What a stage of these blocks makes of its input, one block after the other: no more than one is held.
    async fn again(
        &mut self,
        blocks: std::ops::Range<u16>,
        input: &Boundary,
        states: &[BlockBytes],
    ) -> Result<Boundary, EngineError> {
        match self.checked.take() {
            Some(files) => {
                let again = self.again_from(&files, blocks, input, states).await;
                self.checked = Some(files);
                again
            }
            None => self.again_from(&self.model.files, blocks, input, states).await,
        }
    }

    async fn again_from(
        &self,
        files: &impl Files,
        blocks: std::ops::Range<u16>,
        input: &Boundary,
        states: &[BlockBytes],
    ) -> Result<Boundary, EngineError> {
        let most = Most::new(&self.settings, &self.config);
        let (mut h, lengths) = receive(input, &self.config, most, &self.device)?;
        for block in blocks {
            let own: Vec<_> = states.iter().filter(|state| state.block == block).cloned().collect();
            let (index, range) = (&self.model.index, block..block + 1);
            let (config, settings, device) = (&self.config, &self.settings, &self.device);
            let part = Part::load(files, index, config, range, settings, &own, None, device, |_| ()).await?;
            h = part.infer(h, &lengths);
        }
        send(h, &lengths, self.settings.boundary).await
    }

    async fn load(
        &mut self,
        blocks: std::ops::Range<u16>,
        states: &[BlockBytes],
        on_progress: impl FnMut(u64, u64),
    ) -> Result<(), EngineError> {
        match self.checked.take() {
            Some(files) => {
                let loaded = self.load_from(&files, blocks, states, on_progress).await;
                self.checked = Some(files);
                loaded
            }
            None => {
                let model = self.model.clone();
                self.load_from(&model.files, blocks, states, on_progress).await
            }
        }
    }

    async fn load_from(
        &mut self,
        files: &impl Files,
        blocks: std::ops::Range<u16>,
        states: &[BlockBytes],
        mut on_progress: impl FnMut(u64, u64),
    ) -> Result<(), EngineError> {
        let (index, config) = (&self.model.index, &self.config);
        let (settings, device, storage) = (&self.settings, &self.device, storage(&self.settings));
        let ends = end_tensors(config);
        let ends = ends.iter().filter_map(|tensor| index.find(&tensor.names)).map(|entry| entry.bytes());
        let total = ends.sum::<u64>() + Part::bytes(index, config, blocks.clone());
        let mut loaded = 0;
        let mut on_bytes = |bytes| {
            loaded += bytes;
            on_progress(loaded, total);
        };
        if self.ends.is_none() {
            self.ends = Some(Ends::load(files, index, config, storage, device, &mut on_bytes).await?);
        }
        let own = head_block(config);
        let kept = self.part.take();
        self.head = None;
        if config.classifier().is_some() {
            let adamw = adamw(settings);
            // The file's head gives its own classes, in its own order.
            let same = self.model.config.classifier().is_some_and(|own| {
                own.labels.is_empty() || Some(&own.labels) == config.classifier().map(|head| &head.labels)
            });
            let mut head = if same {
                ClassifierHead::load_or_init(files, index, config, settings.seed, adamw, device).await?
            } else {
                ClassifierHead::init(config, settings.seed, adamw, device)?
            };
            if let Some(state) = states.iter().find(|state| state.block == own) {
                head.restore(&HeadState::from_bytes(config, &state.bytes)?)?;
            }
            self.head = Some(head);
        }
        if !blocks.is_empty() {
            let states: Vec<_> = states.iter().filter(|state| state.block != own).cloned().collect();
            let kept = kept.map(|part| part.into_blocks().within(numbers(&blocks)));
            let part =
                Part::load(files, index, config, blocks, settings, &states, kept, device, &mut on_bytes)
                    .await?;
            self.part = Some(part);
        }
        Ok(())
    }
}

/// The number of the block as which the head's state travels: the one after the last.
pub fn head_block(config: &ModelConfig) -> u16 {
    u16::try_from(config.num_hidden_layers).unwrap_or(u16::MAX)
}
