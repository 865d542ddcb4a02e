//! Writes an adapter for a model, the same at every run: what scripts/golden_adapter.py shows to PEFT.
//!
//! ```text
//! cargo run --release -p baton-model --example write_adapter -- MODEL_DIR ADAPTER_DIR
//! ```

use std::error::Error;

use baton_formats::{Adapter, AdapterConfig, ModelConfig, Projection, peft};
use baton_model::{Lora, LoraSpec, ModelError};

#[allow(dead_code, reason = "the test that includes this file needs the adapter alone")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(out)) = (arguments.next(), arguments.next()) else {
        return Err("give a model's directory and the adapter's".into());
    };
    let config = ModelConfig::parse(&std::fs::read(format!("{model}/config.json"))?)?;
    let adapter = futures::executor::block_on(adapter(&config))?;
    let (json, weights) = adapter.to_files(&config)?;
    std::fs::create_dir_all(&out)?;
    std::fs::write(format!("{out}/{}", peft::CONFIG_FILE), json)?;
    std::fs::write(format!("{out}/{}", peft::WEIGHTS_FILE), weights)?;
    Ok(())
}

/// An initial adapter on some of the projections, B filled with a wave: as it is 0, no logit would change.
pub(crate) async fn adapter(config: &ModelConfig) -> Result<Adapter, ModelError> {
    let targets = vec![Projection::Down, Projection::Q, Projection::V, Projection::O];
    let spec = LoraSpec::new(4, 10.0, targets);
    let blocks = 0..config.num_hidden_layers;
    let mut weights = Lora::init(config, &spec, blocks, 7, &baton_model::cpu())?.to_pairs().await?;
    for pair in weights.values_mut() {
        for (i, b) in pair.b.iter_mut().enumerate() {
            *b = 0.1 * (i as f32).sin();
        }
    }
    let names = config.target_names(&spec.targets);
    let settings = AdapterConfig::new(spec.rank, spec.alpha, names);
    Ok(Adapter { config: settings, weights, head: Default::default() })
}
