//! The seven linear maps of a Llama block: what LoRA can be put on.

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;

/// One of the seven projections of a block, in the order in which the block applies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Projection {
    /// Queries.
    #[serde(rename = "q_proj")]
    Q,
    /// Keys.
    #[serde(rename = "k_proj")]
    K,
    /// Values.
    #[serde(rename = "v_proj")]
    V,
    /// The attention's output.
    #[serde(rename = "o_proj")]
    O,
    /// The gate of SwiGLU.
    #[serde(rename = "gate_proj")]
    Gate,
    /// The linear half of SwiGLU.
    #[serde(rename = "up_proj")]
    Up,
    /// Back from the intermediate size to the hidden size.
    #[serde(rename = "down_proj")]
    Down,
}

impl Projection {
    /// All seven.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// The name that Hugging Face gives it, as in PEFT's `target_modules`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q_proj",
            Self::K => "k_proj",
            Self::V => "v_proj",
            Self::O => "o_proj",
            Self::Gate => "gate_proj",
            Self::Up => "up_proj",
            Self::Down => "down_proj",
        }
    }

    /// The projection of that name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|projection| projection.name() == name)
    }

    /// The module that it belongs to.
    pub fn parent(self) -> &'static str {
        match self {
            Self::Q | Self::K | Self::V | Self::O => "self_attn",
            Self::Gate | Self::Up | Self::Down => "mlp",
        }
    }

    /// Its path in the model, `model.layers.3.self_attn.q_proj`: a tensor's name without `.weight`.
    pub fn path(self, block: usize) -> String {
        format!("model.layers.{block}.{}.{}", self.parent(), self.name())
    }

    /// `(out, in)`, the order of PyTorch's `Linear.weight`.
    pub fn shape(self, model: &ModelConfig) -> (usize, usize) {
        let hidden = model.hidden_size;
        let queries = model.num_attention_heads * model.head_dim;
        let keys = model.num_key_value_heads * model.head_dim;
        match self {
            Self::Q => (queries, hidden),
            Self::K | Self::V => (keys, hidden),
            Self::O => (hidden, queries),
            Self::Gate | Self::Up => (model.intermediate_size, hidden),
            Self::Down => (hidden, model.intermediate_size),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_leads_back_to_its_projection() {
        for projection in Projection::ALL {
            assert_eq!(Projection::from_name(projection.name()), Some(projection));
            let json = serde_json::to_string(&projection).unwrap();
            assert_eq!(json, format!("\"{}\"", projection.name()));
        }
        assert_eq!(Projection::from_name("lm_head"), None);
    }
}
