//! What llama.cpp calls a tensor, and what Hugging Face does; and what llama.cpp's converter does to its numbers.
//!
//! The names are those of gguf-py's `tensor_mapping.py`, the changes those of `convert_hf_to_gguf.py`:
//! `LlamaModel.permute` reorders the rows of q and k, `Gemma3Model.norm_shift` adds one to the norms, and `GPT2Model`
//! transposes the weights of `Conv1D`.

/// A tensor in Hugging Face's words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) change: Change,
}

/// What the converter did to a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Nothing,
    RotaryQuery,
    RotaryKey,
    PlusOne,
    Transpose,
}

/// The architectures that are known, for error messages.
pub(super) const KNOWN: &str = "llama, qwen2, qwen3, gemma3, gpt2 and bert";

/// Pairs of names: llama.cpp's, Hugging Face's.
type Table = &'static [(&'static str, &'static str)];

struct Names {
    /// Hugging Face's name of the blocks.
    blocks: &'static str,
    block: Table,
    ends: Table,
}

const LLAMA: Names = Names {
    blocks: "model.layers",
    block: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
    ends: &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")],
};

const GEMMA3: Names = Names {
    blocks: LLAMA.blocks,
    block: &[
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_norm", "pre_feedforward_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ],
    ends: LLAMA.ends,
};

const GPT2: Names = Names {
    blocks: "transformer.h",
    block: &[
        ("attn_norm", "ln_1"),
        ("attn_qkv", "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    ends: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
};

const BERT: Names = Names {
    blocks: "encoder.layer",
    block: &[
        ("attn_q", "attention.self.query"),
        ("attn_k", "attention.self.key"),
        ("attn_v", "attention.self.value"),
        ("attn_output", "attention.output.dense"),
        ("attn_output_norm", "attention.output.LayerNorm"),
        ("ffn_up", "intermediate.dense"),
        ("ffn_down", "output.dense"),
        ("layer_output_norm", "output.LayerNorm"),
    ],
    ends: &[
        ("token_embd", "embeddings.word_embeddings"),
        ("position_embd", "embeddings.position_embeddings"),
        ("token_types", "embeddings.token_type_embeddings"),
        ("token_embd_norm", "embeddings.LayerNorm"),
    ],
};

fn names(architecture: &str) -> Option<&'static Names> {
    match architecture {
        "llama" | "qwen2" | "qwen3" => Some(&LLAMA),
        "gemma3" => Some(&GEMMA3),
        "gpt2" => Some(&GPT2),
        "bert" => Some(&BERT),
        _ => None,
    }
}

/// Hugging Face's name of a tensor, and what to undo; `None` for one that only llama.cpp has.
pub(super) fn place(architecture: &str, name: &str) -> Option<Place> {
    let names = names(architecture)?;
    let (path, kind) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let find =
        |table: Table, part: &str| table.iter().find(|(ours, _)| *ours == part).map(|(_, theirs)| *theirs);
    let (part, path) = match path.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((block, part)) => {
            let plain =
                !block.is_empty() && block.len() < 5 && block.bytes().all(|byte| byte.is_ascii_digit());
            let theirs = find(names.block, part).filter(|_| plain)?;
            (part, format!("{}.{block}.{theirs}", names.blocks))
        }
        None => (path, find(names.ends, path)?.to_owned()),
    };
    let change = match (architecture, part, kind) {
        ("llama", "attn_q", _) => Change::RotaryQuery,
        ("llama", "attn_k", _) => Change::RotaryKey,
        ("gemma3", part, "weight") if part.ends_with("norm") => Change::PlusOne,
        ("gpt2", "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down", "weight") => Change::Transpose,
        _ => Change::Nothing,
    };
    Some(Place { name: format!("{path}.{kind}"), change })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(architecture: &str, name: &str) -> Option<(String, Change)> {
        place(architecture, name).map(|place| (place.name, place.change))
    }

    #[test]
    fn names_are_those_of_hugging_face() {
        for (architecture, name, theirs, change) in [
            ("llama", "blk.11.attn_q.weight", "model.layers.11.self_attn.q_proj.weight", Change::RotaryQuery),
            ("llama", "blk.0.attn_k.bias", "model.layers.0.self_attn.k_proj.bias", Change::RotaryKey),
            (
                "llama",
                "blk.0.ffn_norm.weight",
                "model.layers.0.post_attention_layernorm.weight",
                Change::Nothing,
            ),
            ("llama", "output.weight", "lm_head.weight", Change::Nothing),
            ("qwen2", "blk.0.attn_k.weight", "model.layers.0.self_attn.k_proj.weight", Change::Nothing),
            ("qwen3", "blk.0.attn_q_norm.weight", "model.layers.0.self_attn.q_norm.weight", Change::Nothing),
            ("gemma3", "output_norm.weight", "model.norm.weight", Change::PlusOne),
            (
                "gemma3",
                "blk.2.ffn_norm.weight",
                "model.layers.2.pre_feedforward_layernorm.weight",
                Change::PlusOne,
            ),
            ("gemma3", "blk.2.attn_k_norm.weight", "model.layers.2.self_attn.k_norm.weight", Change::PlusOne),
            ("gemma3", "blk.2.attn_output.weight", "model.layers.2.self_attn.o_proj.weight", Change::Nothing),
            ("gpt2", "blk.3.attn_qkv.weight", "transformer.h.3.attn.c_attn.weight", Change::Transpose),
            ("gpt2", "blk.3.attn_qkv.bias", "transformer.h.3.attn.c_attn.bias", Change::Nothing),
            ("gpt2", "position_embd.weight", "transformer.wpe.weight", Change::Nothing),
            ("bert", "blk.5.attn_q.weight", "encoder.layer.5.attention.self.query.weight", Change::Nothing),
            ("bert", "token_embd_norm.bias", "embeddings.LayerNorm.bias", Change::Nothing),
        ] {
            assert_eq!(found(architecture, name), Some((theirs.to_owned(), change)), "{architecture} {name}");
        }
    }

    #[test]
    fn what_only_llama_cpp_has_keeps_its_name() {
        for (architecture, name) in [
            ("llama", "rope_freqs.weight"),
            ("llama", "blk.0.attn_q.weight.lora_a"),
            ("llama", "blk.0.ffn_gate_exps.weight"),
            ("llama", "blk.x.attn_q.weight"),
            ("llama", "blk..attn_q.weight"),
            ("llama", "blk.99999999999.attn_q.weight"),
            ("llama", "attn_q.weight"),
            ("mamba", "token_embd.weight"),
            ("llama", "weight"),
            ("llama", ""),
        ] {
            assert_eq!(found(architecture, name), None, "{architecture} {name}");
        }
    }
}
