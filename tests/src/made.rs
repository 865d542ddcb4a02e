//! Models of a given shape with made-up weights and another model's tokenizer: for measurements, never kept.

use anyhow::Result;
use baton_formats::{ModelConfig, NumberFormat, SafetensorsWriter, block_tensors, end_tensors, head_tensors};
use std::path::Path;

/// Writes the model that `config` (a config.json) describes, in bf16, and a real tokenizer, whose tokens are few.
pub fn make(folder: &Path, config: &str) -> Result<()> {
    std::fs::write(folder.join("config.json"), config)?;
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(crate::model_folder()?.join(name), folder.join(name))?;
    }
    let config = ModelConfig::parse(config.as_bytes())?;
    let ends = end_tensors(&config).into_iter().map(|spec| (spec.name().to_owned(), spec.file_shape()));
    let blocks = (0..config.num_hidden_layers).flat_map(|block| block_tensors(&config, block));
    let blocks = blocks.map(|spec| (spec.name().to_owned(), spec.file_shape()));
    let head = head_tensors(&config).into_iter().map(|spec| (spec.name().to_owned(), spec.file_shape()));
    let parts: Vec<_> =
        ends.chain(blocks).chain(head).map(|(name, shape)| (name, NumberFormat::Bf16, shape)).collect();
    let file = std::fs::File::create(folder.join("model.safetensors"))?;
    let mut writer =
        SafetensorsWriter::new(std::io::BufWriter::new(file), parts.clone(), &Default::default())?;
    let mut state = 1u32;
    for (name, _, shape) in parts {
        let mut left: usize = shape.iter().product();
        while left > 0 {
            let piece: Vec<f32> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (f64::from(state >> 8) / f64::from(1 << 24) * 0.08 - 0.04) as f32
            })
            .take(left.min(1 << 16))
            .collect();
            left -= piece.len();
            writer.write(&name, &piece)?;
        }
    }
    writer.finish()?;
    Ok(())
}
