"""GGUF files as llama.cpp's converter writes them, and the numbers that they stand for.

    python scripts/golden_gguf.py

Needs (pip): gguf==0.19.0 torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 numpy==2.4.6.

Writes crates/formats/tests/golden/gguf/:

- quants.gguf, quants.safetensors: a tensor of every number format, its blocks of random bytes, and what gguf's own
  `dequantize` makes of them;
- <family>.gguf, <family>.safetensors, <family>.json: a tiny random model. The safetensors file and the config are
  transformers' own; the GGUF file is what llama.cpp's convert_hf_to_gguf.py makes of them: names by gguf's
  `TensorNameMap`; q and k of a Llama permuted (`LlamaModel.permute`), one added to the norms of Gemma 3
  (`Gemma3Model.norm_shift`), the weights of GPT-2's Conv1D transposed (`GPT2Model.modify_tensors`), Llama 3's rotary
  scaling as `rope_freqs.weight` (`LlamaModel.generate_extra_tensors`).
  `llama_q8.safetensors` has the numbers after their way through Q8_0.
"""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as hf
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

OUT = Path(__file__).parent.parent / "crates/formats/tests/golden/gguf"


def write(path, arch, metadata, tensors):
    """tensors: (name, array, type or None)"""
    writer = gguf.GGUFWriter(path, arch)
    metadata(writer)
    for name, array, kind in tensors:
        writer.add_tensor(name, np.ascontiguousarray(array), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quants():
    random = np.random.default_rng(0)
    tensors, expected = [], {}
    # Where the f16 scales of a block are: random bytes there could be infinite, or not a number.
    scales = {
        Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2],
        Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208],
    }
    for kind, places in scales.items():
        numbers, width = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = 2, 256
        blocks = random.integers(0, 256, (rows * columns // numbers, width), dtype=np.uint8)
        for place in places:
            values = random.normal(0, 0.05, len(blocks)).astype(np.float16)
            blocks[:, place : place + 2] = values.view(np.uint8).reshape(-1, 2)
        blocks = blocks.reshape(rows, -1)
        tensors.append((kind.name, blocks, kind))
        expected[kind.name] = gguf.quants.dequantize(blocks, kind).astype(np.float32).reshape(rows, columns)
    values = random.normal(0, 1, (3, 5)).astype(np.float32)
    tensors.append(("F32", values, None))
    expected["F32"] = values
    half = values.astype(np.float16)
    tensors.append(("F16", half, None))
    expected["F16"] = half.astype(np.float32)
    brain = gguf.quants.quantize(values, Type.BF16)
    tensors.append(("BF16", brain, Type.BF16))
    expected["BF16"] = gguf.quants.dequantize(brain, Type.BF16).reshape(values.shape)
    write(OUT / "quants.gguf", "none", lambda writer: writer.add_bool("a.flag", True), tensors)
    save_file(expected, OUT / "quants.safetensors")
    (OUT / "quants.safetensors").chmod(0o644)


def permute(weights, heads):
    shape = weights.shape
    return weights.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def llama3_factors(config):
    rope = config.rope_parameters
    dim, base = config.head_dim, rope["rope_theta"]
    freqs = 1.0 / (base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    factor, low, high = rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"]
    old = rope["original_max_position_embeddings"]
    factors = []
    for freq in freqs:
        wavelen = 2 * math.pi / freq
        if wavelen < old / high:
            factors.append(1)
        elif wavelen > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelen - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    assert any(1 < f < factor for f in factors), "one of the factors lies between"
    return np.array(factors, dtype=np.float32)


def decoder_metadata(config, theta, head=True):
    def add(writer):
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(theta)
        if head:
            writer.add_key_length(config.head_dim)
            writer.add_value_length(config.head_dim)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    return add


def model(name, arch, config, cls, metadata, change=lambda path, array: array, extra=(), kind=None):
    torch.manual_seed(sum(map(ord, name)))
    made = cls(config)
    with torch.no_grad():
        # Norms and biases too: transformers starts them at one and zero, which would hide what is done to them.
        for parameter in made.parameters():
            parameter.normal_(0, 0.5)
    state = {path: array.numpy() for path, array in made.state_dict().items()}
    tied = getattr(config, "tie_word_embeddings", False)
    state = {path: array for path, array in state.items() if not (tied and path == "lm_head.weight")}
    state = {path: array for path, array in state.items() if not path.endswith("position_ids")}
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    tensors, expected = [], dict(state)
    for path, array in state.items():
        ours = names.get_name(path, try_suffixes=(".weight", ".bias"))
        assert ours is not None, path
        array = change(path, array)
        if kind is not None and array.ndim == 2:
            packed = gguf.quants.quantize(array, kind)
            tensors.append((ours, packed, kind))
            restored = gguf.quants.dequantize(packed, kind).astype(np.float32).reshape(array.shape)
            # As no order of rows mixes two rows, the same rows of the original pass the same way.
            straight = gguf.quants.dequantize(gguf.quants.quantize(state[path], kind), kind)
            expected[path] = straight.astype(np.float32).reshape(state[path].shape)
            assert restored.shape == array.shape
        else:
            tensors.append((ours, array, None))
    write(OUT / f"{name}.gguf", gguf.MODEL_ARCH_NAMES[arch], metadata, list(extra) + tensors)
    file = OUT / f"{name}.safetensors"
    save_file({path: np.ascontiguousarray(array) for path, array in expected.items()}, file)
    file.chmod(0o644)
    text = json.loads(made.config.to_json_string(use_diff=False))
    text["architectures"] = [cls.__name__]
    (OUT / f"{name}.json").write_text(json.dumps(text, indent=1, sort_keys=True) + "\n")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    quants()
    Arch = gguf.MODEL_ARCH
    common = dict(vocab_size=24, num_hidden_layers=1, max_position_embeddings=64, bos_token_id=1, eos_token_id=2)

    def rotary(config):
        def change(path, array):
            if path.endswith(("q_proj.weight", "q_proj.bias")):
                return permute(array, config.num_attention_heads)
            if path.endswith(("k_proj.weight", "k_proj.bias")):
                return permute(array, config.num_key_value_heads)
            return array

        return change

    scaling = dict(rope_type="llama3", rope_theta=500000.0, factor=32.0, low_freq_factor=1.0,
                   high_freq_factor=4.0, original_max_position_embeddings=8192)
    config = hf.LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2,
                            head_dim=16, rope_parameters=scaling, attention_bias=True,
                            **{**common, "num_hidden_layers": 2})
    model("llama", Arch.LLAMA, config, hf.LlamaForCausalLM, decoder_metadata(config, 500000.0), rotary(config),
          extra=[("rope_freqs.weight", llama3_factors(config), None)])

    config = hf.LlamaConfig(hidden_size=32, intermediate_size=32, num_attention_heads=4, num_key_value_heads=2,
                            tie_word_embeddings=True, rope_theta=10000.0, **common)
    model("llama_q8", Arch.LLAMA, config, hf.LlamaForCausalLM, decoder_metadata(config, 10000.0, head=False),
          rotary(config), kind=Type.Q8_0)

    config = hf.Qwen2Config(hidden_size=8, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2,
                            rope_theta=1000000.0, **common)
    model("qwen2", Arch.QWEN2, config, hf.Qwen2ForCausalLM, decoder_metadata(config, 1000000.0, head=False))

    config = hf.Qwen3Config(hidden_size=8, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2,
                            head_dim=8, rope_theta=1000000.0, tie_word_embeddings=True, **common)
    model("qwen3", Arch.QWEN3, config, hf.Qwen3ForCausalLM, decoder_metadata(config, 1000000.0))

    config = hf.Gemma3TextConfig(hidden_size=8, intermediate_size=12, num_attention_heads=4, num_key_value_heads=2,
                                 head_dim=8, query_pre_attn_scalar=8, sliding_window=16, **common)

    def gemma(writer):
        decoder_metadata(config, 1000000.0)(writer)
        writer.add_sliding_window(16)

    model("gemma3", Arch.GEMMA3, config, hf.Gemma3ForCausalLM, gemma,
          lambda path, array: array + np.float32(1) if path.endswith("norm.weight") else array)

    config = hf.GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=32, vocab_size=24, bos_token_id=1,
                           eos_token_id=2)

    def gpt2(writer):
        writer.add_block_count(1)
        writer.add_context_length(32)
        writer.add_embedding_length(8)
        writer.add_feed_forward_length(32)
        writer.add_head_count(2)
        writer.add_layer_norm_eps(1e-5)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)

    conv = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    model("gpt2", Arch.GPT2, config, hf.GPT2LMHeadModel, gpt2,
          lambda path, array: array.T if path.endswith(conv) else array)

    config = hf.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
                           vocab_size=24, max_position_embeddings=32)

    def bert(writer):
        writer.add_block_count(1)
        writer.add_context_length(32)
        writer.add_embedding_length(8)
        writer.add_feed_forward_length(12)
        writer.add_head_count(2)
        writer.add_layer_norm_eps(1e-12)
        writer.add_causal_attention(False)

    class BertModel(hf.BertModel):
        def __init__(self, config):
            super().__init__(config, add_pooling_layer=False)

    model("bert", Arch.BERT, config, BertModel, bert)


if __name__ == "__main__":
    main()
