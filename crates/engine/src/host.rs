//! The engine behind the coordinator's jobs: the ends, the text, and the blocks of a host that trains alone.

use crate::batches::{Batches, MicroBatchData};
use crate::error::EngineError;
use crate::source::Model;
use crate::stage::{Most, Part, receive, send};
use crate::texts::Texts;
use baton_formats::{Example, end_tensors};
use baton_model::{Device, Ends, Storage, Tensor};
use baton_protocol::codec::Precision;
use baton_protocol::coordinator::{Done, Job};
use baton_protocol::ids::{MicroBatch, Step};
use baton_protocol::run::Settings;
use std::cell::RefCell;
use std::rc::Rc;

/// The engine of a host.
pub struct HostEngine {
    device: Device,
    model: Rc<Model>,
    settings: Settings,
    batches: Batches,
    texts: Rc<RefCell<Texts>>,
    ends: Option<Ends>,
    /// The blocks, if no other device has them.
    part: Option<Part>,
}

impl HostEngine {
    /// An engine that has read nothing yet. `examples` are the text as [`Model::encode`] makes them.
    pub fn new(
        device: Device,
        model: Rc<Model>,
        examples: Vec<Example>,
        settings: Settings,
        texts: Rc<RefCell<Texts>>,
    ) -> Self {
        let shuffle = settings.shuffle.then_some(settings.seed);
        let batches = Batches::new(examples, settings.batch_size, settings.micro_batches, shuffle);
        Self { device, model, settings, batches, texts, ends: None, part: None }
    }

    /// Runs a job; `on_progress` hears bytes of bytes while it loads.
    ///
    /// # Errors
    ///
    /// In words, when it cannot.
    pub async fn run(&mut self, job: Job, on_progress: impl FnMut(u64, u64)) -> Result<Done, EngineError> {
        match job {
            Job::Load { blocks, states } => {
                self.load(blocks, &states, on_progress).await?;
                Ok(Done::Load)
            }
            Job::Front { step, micro_batch } => {
                let data = self.data(step, micro_batch)?;
                let mut h = self.ends()?.embed(&data.ids, &[])?;
                if let Some(part) = &mut self.part {
                    h = part.forward(micro_batch.0, h);
                }
                Ok(Done::Front(send(h, self.precision()).await?))
            }
            Job::Head { step, micro_batch, tensor } => {
                let data = self.data(step, micro_batch)?;
                let h = receive(
                    &tensor,
                    &self.model.config,
                    Most::new(&self.settings, &self.model.config),
                    &self.device,
                )?;
                let (loss, grad) = self.ends()?.loss_and_grad(h, &data.targets, &data.weights).await?;
                let grad = send(grad, self.precision()).await?;
                Ok(Done::Head { loss, tokens: data.tokens, grad })
            }
            Job::BackFront { micro_batch, tensor } => {
                let part = self.part.as_mut().ok_or(EngineError::NotLoaded)?;
                let grad = part.receive(&tensor)?;
                part.backward(micro_batch.0, grad, false)?;
                Ok(Done::BackFront)
            }
            Job::GradNorm => Ok(Done::GradNorm(self.part()?.grad_sum_of_squares().await?)),
            Job::Apply { lr, scale } => Ok(Done::Apply(self.part()?.apply(lr, scale).await?)),
            Job::InferFront { request } => {
                let ids = self.texts.borrow().get(request).map(|text| text.ids().to_vec());
                let mut h = self.ends()?.embed(&[ids.ok_or(EngineError::NotLoaded)?], &[])?;
                if let Some(part) = &self.part {
                    h = part.infer(h);
                }
                Ok(Done::InferFront(send(h, Precision::F32).await?))
            }
            Job::InferHead { request, tensor } => {
                let h: Tensor<3> = receive(
                    &tensor,
                    &self.model.config,
                    Most::new(&self.settings, &self.model.config),
                    &self.device,
                )?;
                let logits = self.ends()?.logits_last(h).await?;
                let mut texts = self.texts.borrow_mut();
                let text = texts.get_mut(request).ok_or(EngineError::NotLoaded)?;
                text.push(&logits);
                Ok(Done::InferHead { done: text.is_done(&self.model) })
            }
        }
    }

    /// What stays on this device is not rounded.
    fn precision(&self) -> Precision {
        if self.part.is_some() { Precision::F32 } else { self.settings.boundary }
    }

    fn data(&mut self, step: Step, micro_batch: MicroBatch) -> Result<MicroBatchData, EngineError> {
        self.batches.micro_batch(step.0, micro_batch.0).ok_or(EngineError::NoText(step))
    }

    fn ends(&self) -> Result<&Ends, EngineError> {
        self.ends.as_ref().ok_or(EngineError::NotLoaded)
    }

    fn part(&mut self) -> Result<&mut Part, EngineError> {
        self.part.as_mut().ok_or(EngineError::NotLoaded)
    }

    async fn load(
        &mut self,
        blocks: std::ops::Range<u16>,
        states: &[baton_protocol::message::BlockBytes],
        mut on_progress: impl FnMut(u64, u64),
    ) -> Result<(), EngineError> {
        let Model { files, config, index, .. } = &*self.model;
        let ends = end_tensors(config);
        let ends = ends
            .iter()
            .filter_map(|tensor| index.get(tensor.name()))
            .map(|entry| entry.range.end - entry.range.start);
        let total = ends.sum::<u64>() + Part::bytes(index, config, blocks.clone());
        let mut loaded = 0;
        let mut on_bytes = |bytes| {
            loaded += bytes;
            on_progress(loaded, total);
        };
        if self.ends.is_none() {
            self.ends =
                Some(Ends::load(files, index, config, Storage::F32, &self.device, &mut on_bytes).await?);
        }
        self.part = None;
        if !blocks.is_empty() {
            let (settings, device) = (&self.settings, &self.device);
            let part =
                Part::load(files, index, config, blocks, settings, states, device, &mut on_bytes).await?;
            self.part = Some(part);
        }
        Ok(())
    }
}
