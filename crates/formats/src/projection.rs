//! The linear maps of a transformer block by what they do: what LoRA can be put on.

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// One of the linear maps of a block. Which of them a model has, [`ModelConfig::projections`] says; what its files call
/// them, [`crate::layout::module`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// The attention's output.
    O,
    /// The gate of a gated MLP.
    Gate,
    /// From the hidden size to the MLP's.
    Up,
    /// Back from the MLP's size to the hidden size.
    Down,
    /// Queries, keys and values as one map.
    Qkv,
}

impl Projection {
    /// All that there are.
    pub const ALL: [Self; 8] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down, Self::Qkv];

    /// `(out, in)`, the order of PyTorch's `Linear.weight`.
    pub fn shape(self, model: &ModelConfig) -> (usize, usize) {
        let hidden = model.hidden_size;
        let queries = model.num_attention_heads * model.head_dim;
        let keys = model.num_key_value_heads * model.head_dim;
        match self {
            Self::Q => (queries, hidden),
            Self::K | Self::V => (keys, hidden),
            Self::Qkv => (queries + 2 * keys, hidden),
            Self::O => (hidden, queries),
            Self::Gate | Self::Up => (model.intermediate_size, hidden),
            Self::Down => (hidden, model.intermediate_size),
        }
    }
}
