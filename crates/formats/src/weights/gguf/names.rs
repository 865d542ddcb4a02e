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

/// A tensor in llama.cpp's words, for what is written for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InGguf {
    /// Its name.
    pub name: String,
    /// Whether llama.cpp has the rows of each head in another order: [`interleave_heads`].
    pub interleaved: bool,
}

/// What llama.cpp calls the tensor that Hugging Face calls `name` in a model of `architecture` (llama.cpp's word, as in
/// `llama` or `qwen2`); `None` for one that it does not have.
///
/// `bert.` before the names of a BERT, and a missing `transformer.` before those of a GPT-2, make no difference.
pub fn in_gguf(architecture: &str, name: &str) -> Option<InGguf> {
    let names = names(architecture)?;
    let (path, kind) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    let path = path.strip_prefix("bert.").unwrap_or(path);
    let find =
        |table: Table, part: &str| table.iter().find(|(_, theirs)| *theirs == part).map(|(ours, _)| *ours);
    let whole = ["", "transformer."].map(|prefix| format!("{prefix}{path}"));
    let in_block = whole.iter().find_map(|path| {
        let (block, part) = path.strip_prefix(names.blocks)?.strip_prefix('.')?.split_once('.')?;
        Some(format!("blk.{block}.{}", find(names.block, part)?))
    });
    let ours =
        in_block.or_else(|| whole.iter().find_map(|path| find(names.ends, path).map(str::to_owned)))?;
    let name = format!("{ours}.{kind}");
    let change = place(architecture, &name)?.change;
    Some(InGguf { name, interleaved: matches!(change, Change::RotaryQuery | Change::RotaryKey) })
}

/// The rows of q or k (or of a LoRA's B for it) in llama.cpp's order: `values` is `[heads * head, columns]`, and within
/// each head the row `j` of the first half comes to `2j`, that of the second half to `2j + 1` (`LlamaModel.permute`).
///
/// Values that make no heads of whole pairs of rows come back as they are.
pub fn interleave_heads(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let columns = values.len().checked_div(rows).unwrap_or(0);
    let head = rows.checked_div(heads).unwrap_or(0);
    if columns == 0
        || head < 2
        || !head.is_multiple_of(2)
        || head * heads != rows
        || columns * rows != values.len()
    {
        return values.to_vec();
    }
    let mut ordered = Vec::with_capacity(values.len());
    for head_values in values.chunks_exact(head * columns) {
        let (first, second) = head_values.split_at(head / 2 * columns);
        for (one, other) in first.chunks_exact(columns).zip(second.chunks_exact(columns)) {
            ordered.extend_from_slice(one);
            ordered.extend_from_slice(other);
        }
    }
    ordered
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
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
    fn a_name_comes_back_from_both_directions() {
        for architecture in ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "bert"] {
            let names = names(architecture).unwrap();
            let blocks = names.block.iter().map(|(ours, _)| format!("blk.17.{ours}.weight"));
            for ours in blocks.chain(names.ends.iter().map(|(ours, _)| format!("{ours}.weight"))) {
                let place = place(architecture, &ours).unwrap();
                let back = in_gguf(architecture, &place.name).unwrap();
                assert_eq!(back.name, ours);
                assert_eq!(
                    back.interleaved,
                    architecture == "llama" && ours.contains("attn_") && {
                        ours.ends_with("_q.weight") || ours.ends_with("_k.weight")
                    }
                );
            }
        }
        let short = in_gguf("gpt2", "h.0.attn.c_attn.weight").unwrap();
        assert_eq!(short.name, "blk.0.attn_qkv.weight");
        let long = in_gguf("bert", "bert.encoder.layer.1.attention.self.key.bias").unwrap();
        assert_eq!(long.name, "blk.1.attn_k.bias");
        for name in ["model.layers.0.weight", "model.layers.0.mlp.weight", "weight", "", "lm_head"] {
            assert_eq!(in_gguf("llama", name), None);
        }
    }

    #[test]
    fn the_halves_of_each_head_are_interleaved() {
        // Two heads of four rows of two columns.
        let values: Vec<f32> = (0..16u8).map(f32::from).collect();
        let rows = [0, 2, 1, 3, 4, 6, 5, 7];
        let expected: Vec<f32> = rows.iter().flat_map(|row| [values[2 * row], values[2 * row + 1]]).collect();
        assert_eq!(interleave_heads(&values, 8, 2), expected);
        for (rows, heads) in [(8, 0), (0, 2), (8, 3), (8, 8), (5, 1), (16, 32)] {
            assert_eq!(interleave_heads(&values, rows, heads), values);
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
