//! The engine behind a stage's jobs: its blocks, their adapters, forward, backward and the optimizer.

use crate::error::EngineError;
use crate::measure;
use crate::node::Environment;
use crate::source::{adamw, lora_spec, storage};
use baton_formats::{Files, ModelConfig, TensorEntry, TensorIndex, WeightsError, block_tensors};
use baton_model::{
    BlockState, Blocks, Device, InFlight, Lora, Tensor, Trainer, boundary_to_f32, f32_to_boundary,
    stage_memory,
};
use baton_protocol::codec::{Boundary, Precision};
use baton_protocol::message::{Assign, BlockBytes};
use baton_protocol::run::Settings;
use baton_protocol::stage::{Done, Job};
use std::ops::Range;

/// The largest boundary that a run can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Most {
    /// Samples.
    pub batch: usize,
    /// Tokens of each.
    pub time: usize,
}

impl Most {
    /// What the settings and the model allow.
    pub fn new(settings: &Settings, config: &ModelConfig) -> Self {
        let whole = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            batch: whole(settings.batch_size),
            time: whole(settings.seq_len).max(config.max_position_embeddings.min(MOST_TEXT)),
        }
    }
}

/// Texts outside training are cut at this length whatever the model was made for: a phone has no memory for more.
pub const MOST_TEXT: usize = 4096;

/// A slice of blocks in training, with what it takes to speak of them in the protocol's terms.
pub struct Part {
    config: ModelConfig,
    most: Most,
    trainer: Trainer,
    held: u64,
    device: Device,
}

impl Part {
    /// Reads the blocks of `range` and gives them the adapters of `states`, or fresh ones from the seed. Blocks that are
    /// in `kept` are not read again; the others of it are let go first.
    ///
    /// # Errors
    ///
    /// When the weights cannot be read, or the states are not of these blocks.
    #[expect(clippy::too_many_arguments, reason = "each is of a type of its own")]
    pub async fn load(
        files: &impl Files,
        index: &TensorIndex,
        config: &ModelConfig,
        range: Range<u16>,
        settings: &Settings,
        states: &[BlockBytes],
        kept: Option<Blocks>,
        device: &Device,
        on_bytes: impl FnMut(u64),
    ) -> Result<Self, EngineError> {
        let (range, storage) = (numbers(&range), storage(settings));
        let blocks = match kept {
            Some(kept) => kept.reload(files, index, range, storage, device, on_bytes).await?,
            None => Blocks::load(files, index, config, range, storage, device, on_bytes).await?,
        };
        Self::with_adapters(blocks, config, settings, states, device)
    }

    /// One block with numbers of no meaning and fresh adapters, to measure a device on.
    ///
    /// # Errors
    ///
    /// When it is too large for the device.
    pub fn made_up(config: &ModelConfig, settings: &Settings, device: &Device) -> Result<Self, EngineError> {
        let blocks = Blocks::made_up(config, storage(settings), device)?;
        Self::with_adapters(blocks, config, settings, &[], device)
    }

    fn with_adapters(
        blocks: Blocks,
        config: &ModelConfig,
        settings: &Settings,
        states: &[BlockBytes],
        device: &Device,
    ) -> Result<Self, EngineError> {
        let spec = lora_spec(settings, config)?;
        let lora = Lora::init(config, &spec, blocks.range(), settings.seed, device)?;
        let idle = InFlight { micro_batches: 0, samples: 0, time: 0, recompute: false };
        let held = stage_memory(config, blocks.range(), storage(settings), &spec, idle);
        let held = held.frozen.saturating_add(held.adapters);
        let mut trainer = Trainer::new(blocks, lora, adamw(settings), settings.recompute);
        if !states.is_empty() {
            let states = states.iter().map(|state| BlockState::from_bytes(&spec, config, &state.bytes));
            trainer.restore(&states.collect::<Result<Vec<_>, _>>()?)?;
        }
        Ok(Self {
            config: config.clone(),
            most: Most::new(settings, config),
            trainer,
            held,
            device: device.clone(),
        })
    }

    /// Bytes of these blocks in the file.
    pub fn bytes(index: &TensorIndex, config: &ModelConfig, blocks: impl Iterator<Item = u16>) -> u64 {
        let tensors = blocks.flat_map(|block| block_tensors(config, block.into()));
        tensors.filter_map(|tensor| index.find(&tensor.names)).map(TensorEntry::bytes).sum()
    }

    /// Bytes of the weights, the adapters, their gradients and moments.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// The frozen blocks, without what was trained.
    pub fn into_blocks(self) -> Blocks {
        self.trainer.into_blocks()
    }

    /// The training pass of a micro-batch. h: `[batch, time, hidden]`, lengths: tokens of each row, or empty
    pub fn forward(&mut self, micro_batch: u16, h: Tensor<3>, lengths: &[usize]) -> Tensor<3> {
        self.trainer.forward(micro_batch.into(), h, lengths)
    }

    /// The pass without training. h: `[batch, time, hidden]`, lengths: tokens of each row, or empty
    pub fn infer(&self, h: Tensor<3>, lengths: &[usize]) -> Tensor<3> {
        self.trainer.infer(h, lengths)
    }

    /// The backward pass of a micro-batch; its gradients are added up.
    ///
    /// # Errors
    ///
    /// When its forward pass was never run, or the gradient is of another shape.
    pub fn backward(
        &mut self,
        micro_batch: u16,
        grad: Tensor<3>,
        want: bool,
    ) -> Result<Option<Tensor<3>>, EngineError> {
        Ok(self.trainer.backward(micro_batch.into(), grad, want)?)
    }

    /// The sum of squares of the gradients.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub async fn grad_sum_of_squares(&self) -> Result<f64, EngineError> {
        Ok(self.trainer.grad_sum_of_squares().await?)
    }

    /// The optimizer update; gives adapters and moments as they are then.
    ///
    /// # Errors
    ///
    /// When the device fails.
    pub async fn apply(&mut self, lr: f64, scale: f64) -> Result<Vec<BlockBytes>, EngineError> {
        self.trainer.apply(lr, scale);
        let block = |state: BlockState| {
            // What overflowed in the update is not to be committed.
            state.check_finite()?;
            let block = u16::try_from(state.block).expect("the protocol numbers blocks with 16 bits");
            Ok(BlockBytes { block, bytes: state.to_bytes() })
        };
        self.trainer.state().await?.into_iter().map(block).collect()
    }

    /// A boundary that came from another device, checked, on this one: `[batch, time, hidden]`, and the tokens of each row
    /// if they are told.
    ///
    /// # Errors
    ///
    /// When it is not as wide as the model, or holds numbers that are none.
    pub fn receive(&self, boundary: &Boundary) -> Result<(Tensor<3>, Vec<usize>), EngineError> {
        receive(boundary, &self.config, self.most, &self.device)
    }
}

/// Block numbers as the model has them.
pub(crate) fn numbers(range: &Range<u16>) -> Range<usize> {
    usize::from(range.start)..usize::from(range.end)
}

/// A boundary that came from another device, checked, on this one: `[batch, time, hidden]`, and the tokens of each row if
/// they are told.
///
/// # Errors
///
/// When it is not as wide as the model, or holds numbers that are none.
pub fn receive(
    boundary: &Boundary,
    config: &ModelConfig,
    most: Most,
    device: &Device,
) -> Result<(Tensor<3>, Vec<usize>), EngineError> {
    let found = boundary.shape();
    let shape = found.map(|dim| usize::try_from(dim).unwrap_or(usize::MAX));
    if shape[2] != config.hidden_size || shape[0] == 0 || shape[1] == 0 {
        return Err(EngineError::Width { found, hidden: config.hidden_size });
    }
    // The attention of a longer one would take memory by the square of its length.
    if shape[0] > most.batch || shape[1] > most.time {
        return Err(EngineError::Length { found, most: [most.batch, most.time] });
    }
    let length = |length: &u32| usize::try_from(*length).unwrap_or(usize::MAX);
    let lengths = boundary.lengths().map_err(EngineError::Boundary)?.iter().map(length).collect();
    let values = boundary.decode().map_err(EngineError::Boundary)?;
    Ok((f32_to_boundary(values, shape, device), lengths))
}

/// A boundary for another device. tensor: `[batch, time, hidden]`, lengths: tokens of each row, or empty
///
/// # Errors
///
/// When the device fails, or the numbers are none.
pub async fn send(
    tensor: Tensor<3>,
    lengths: &[usize],
    precision: Precision,
) -> Result<Boundary, EngineError> {
    let (values, shape) = boundary_to_f32(tensor).await?;
    let shape = shape.map(|dim| u32::try_from(dim).unwrap_or(u32::MAX));
    let lengths = lengths.iter().map(|length| u32::try_from(*length).unwrap_or(u32::MAX)).collect();
    Ok(Boundary::encode(&values, shape, precision)?.with_lengths(lengths))
}

/// The engine of a stage.
pub struct StageEngine {
    device: Device,
    loaded: Option<Loaded>,
}

struct Loaded {
    assign: Assign,
    part: Part,
}

impl StageEngine {
    /// An engine without blocks.
    pub fn new(device: Device) -> Self {
        Self { device, loaded: None }
    }

    /// Runs a job. `files` are those that the assignment names; `on_progress` hears bytes of bytes while blocks load.
    ///
    /// # Errors
    ///
    /// In words, when it cannot.
    pub async fn run(
        &mut self,
        job: Job,
        files: Option<&impl Files>,
        environment: &impl Environment,
        on_progress: impl FnMut(u64, u64),
    ) -> Result<Done, EngineError> {
        match job {
            Job::Load(assign) => {
                let files = files.ok_or(EngineError::NotLoaded)?;
                environment.holding(measure::expected(&assign)?).await;
                self.load(*assign, files, on_progress).await?;
                Ok(Done::Load)
            }
            Job::Forward { micro_batch, tensor } => {
                let Loaded { assign, part } = self.loaded()?;
                let (h, lengths) = part.receive(&tensor)?;
                let h = part.forward(micro_batch.0, h, &lengths);
                Ok(Done::Forward(send(h, &lengths, assign.settings.boundary).await?))
            }
            Job::Backward { micro_batch, tensor, want_input_grad } => {
                let Loaded { assign, part } = self.loaded()?;
                let (grad, _) = part.receive(&tensor)?;
                Ok(Done::Backward(match part.backward(micro_batch.0, grad, want_input_grad)? {
                    Some(grad) => Some(send(grad, &[], assign.settings.boundary).await?),
                    None => None,
                }))
            }
            Job::GradNorm => Ok(Done::GradNorm(self.loaded()?.part.grad_sum_of_squares().await?)),
            Job::Apply { lr, scale } => Ok(Done::Apply(self.loaded()?.part.apply(lr, scale).await?)),
            Job::Infer { tensor, .. } => {
                let part = &self.loaded()?.part;
                let (h, lengths) = part.receive(&tensor)?;
                let h = part.infer(h, &lengths);
                Ok(Done::Infer(send(h, &lengths, Precision::F32).await?))
            }
            Job::Measure(measure) => {
                let config = ModelConfig::parse(measure.config.as_bytes())?;
                let held = self.loaded.as_ref().map_or(0, |loaded| loaded.part.held());
                let memory = environment.memory(measure.most, held).await;
                let (settings, device) = (&measure.settings, &self.device);
                let profile = measure::device(&config, settings, device, memory, environment).await?;
                Ok(Done::Measure(Box::new(profile)))
            }
        }
    }

    fn loaded(&mut self) -> Result<&mut Loaded, EngineError> {
        self.loaded.as_mut().ok_or(EngineError::NotLoaded)
    }

    async fn load(
        &mut self,
        assign: Assign,
        files: &impl Files,
        mut on_progress: impl FnMut(u64, u64),
    ) -> Result<(), EngineError> {
        let device = self.device.clone();
        let config = ModelConfig::parse(assign.config.as_bytes())?;
        let (settings, states) = (&assign.settings, &assign.states);
        // A new plan often leaves a device most of its blocks: they are not fetched again.
        let kept = self.loaded.take().filter(|old| {
            old.assign.source == assign.source
                && old.assign.config == assign.config
                && old.assign.manifest == assign.manifest
                && old.assign.settings.backbone == assign.settings.backbone
        });
        let kept = kept.map(|old| old.part.into_blocks().within(numbers(&assign.blocks)));
        let missing =
            |block: &u16| !kept.as_ref().is_some_and(|kept| kept.range().contains(&usize::from(*block)));
        let missing: Vec<u16> = assign.blocks.clone().filter(missing).collect();
        let part = match kept {
            Some(kept) if missing.is_empty() => {
                Part::with_adapters(kept, &config, settings, states, &device)?
            }
            kept => {
                let index = TensorIndex::open_model(files).await?;
                let total = Part::bytes(&index, &config, missing.into_iter());
                let mut loaded = 0;
                let on_bytes = |bytes| {
                    loaded += bytes;
                    on_progress(loaded, total);
                };
                let blocks = assign.blocks.clone();
                Part::load(files, &index, &config, blocks, settings, states, kept, &device, on_bytes).await?
            }
        };
        self.loaded = Some(Loaded { assign, part });
        Ok(())
    }
}

/// Reads the blocks of an assignment that are not in `own` and keeps nothing of them: where the files have a cache, they
/// are in it then.
///
/// # Errors
///
/// When the files cannot be read.
pub async fn fetch(assign: &Assign, own: Range<u16>, files: &impl Files) -> Result<(), EngineError> {
    let config = ModelConfig::parse(assign.config.as_bytes())?;
    let index = TensorIndex::open_model(files).await?;
    for block in assign.blocks.clone().filter(|block| !own.contains(block)) {
        let tensors = block_tensors(&config, block.into());
        let wanted: Vec<_> = tensors
            .iter()
            .filter_map(|tensor| Some((index.find(&tensor.names)?, tensor.shape.clone())))
            .collect();
        index.stream_many_f32(files, &wanted, &mut |_| (), &mut |_, _| Ok::<_, WeightsError>(())).await?;
    }
    Ok(())
}
