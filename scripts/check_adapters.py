"""Checks what Baton writes of PEFT's adapters against PEFT, transformers and llama.cpp's own reader of GGUF.

    cargo run --release -p baton-formats --example adapters -- FOLDER
    python scripts/check_adapters.py FOLDER

Needs (pip): torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 gguf==0.19.0 numpy==2.4.6. The example takes
the adapter of every family in crates/model/tests/golden/families (scripts/golden_families.py) and writes

- FOLDER/<family>/<adapter>/          read and written again: its tensors must be the same bits and its settings mean the
                                      same, and PEFT must load it without a word and compute the golden's logits;
- FOLDER/<family>/<adapter>-merged/   the merged model: transformers must load it without a word, to the golden's logits;
- FOLDER/<family>/<adapter>.gguf      (decoders) every product B·A times llama.cpp's scale must be PEFT's update of the
                                      matrix, its rows in the order that convert_hf_to_gguf.py gives the model's.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

GOLDEN = Path(__file__).resolve().parent.parent / "crates/model/tests/golden/families"
# What is not a matter of the adapter's meaning.
IGNORED = {"peft_version", "inference_mode", "base_model_name_or_path", "task_type"}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3", "gpt2": "gpt2"}


def base_model(folder, golden, classifier):
    if not classifier:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    labels = golden["logits"].shape[1]
    return AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", num_labels=labels).eval()


def logits_of(model, golden):
    ids = golden["ids"].long()
    mask = (torch.arange(ids.shape[1]) < golden["lengths"][:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if "token_type_ids" in golden:
        batch["token_type_ids"] = golden["token_type_ids"].long()
    with torch.no_grad():
        logits = model(**batch).logits
    return logits[mask.bool()] if logits.ndim == 3 else logits, mask.bool()


def gap(model, golden, wanted):
    logits, real = logits_of(model, golden)
    wanted = golden[wanted]
    return (logits - (wanted[real] if wanted.ndim == 3 else wanted)).abs().max().item()


def settings(folder):
    config = LoraConfig.from_pretrained(folder).to_dict()
    config = {key: value for key, value in config.items() if key not in IGNORED}
    for key, value in config.items():
        if isinstance(value, (set, list)):
            config[key] = sorted(value)
        if value in ({}, []):
            config[key] = None
    return config


def check_round_trip(theirs, ours):
    one, other = load_file(theirs / "adapter_model.safetensors"), load_file(ours / "adapter_model.safetensors")
    assert one.keys() == other.keys(), set(one) ^ set(other)
    for name in one:
        assert one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]), name
    one, other = settings(theirs), settings(ours)
    different = {key: (one.get(key), other.get(key)) for key in one.keys() | other.keys() if one.get(key) != other.get(key)}
    assert not different, different
    task = [json.loads((folder / "adapter_config.json").read_text())["task_type"] for folder in (theirs, ours)]
    assert task[0] == task[1], task


def check_gguf(path, model, config, adapter):
    """`model` is PEFT's, which knows each matrix's update."""
    reader = GGUFReader(path)
    field = {key: value.contents() for key, value in reader.fields.items()}
    assert field["general.type"] == "adapter" and field["adapter.type"] == "lora", field
    assert field["general.architecture"] == ARCHITECTURES[config.model_type], field
    alpha = field["adapter.lora.alpha"]
    found = {tensor.name: tensor for tensor in reader.tensors}
    expected = set()
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A") or not len(module.lora_A):
            continue
        parts = name.removeprefix("base_model.model.").split(".")
        at = next(index for index, part in enumerate(parts) if part.isdigit())
        target = f"blk.{parts[at]}.{NAMES['.'.join(parts[at + 1:])]}.weight"
        expected |= {f"{target}.lora_a", f"{target}.lora_b"}
        a, b = (np.array(found[f"{target}.{factor}"].data) for factor in ("lora_a", "lora_b"))
        update = module.get_delta_weight("default").detach().numpy()
        if config.model_type == "gpt2":  # a Conv1D's matrix is [in, out], and llama.cpp's [out, in]
            update = update.T
        if ARCHITECTURES[config.model_type] == "llama" and parts[-1] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if parts[-1] == "q_proj" else config.num_key_value_heads
            rows, columns = update.shape
            update = update.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        assert a.shape == (b.shape[1], update.shape[1]) and b.shape[0] == update.shape[0], (target, a.shape, b.shape)
        # llama.cpp: alpha / rank, the rank being the pair's own (llama_adapter_lora_weight::get_scale).
        difference = np.abs(b @ a * (alpha / a.shape[0]) - update).max()
        assert difference < 1e-5 * max(1.0, np.abs(update).max()), (target, difference)
    assert set(found) == expected, set(found) ^ expected
    return len(found)


def main():
    out = Path(sys.argv[1])
    warnings.simplefilter("error")  # PEFT says by a warning what an adapter lacks
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    checked = 0
    for theirs in sorted(GOLDEN.glob("*/adapter*/")):
        folder, name = theirs.parent, theirs.name
        golden = load_file(folder / "golden.safetensors")
        wanted = "adapted_logits" if name == "adapter" else "pattern_logits"
        classifier = "labels" in golden
        ours = out / folder.name / name
        check_round_trip(theirs, ours)
        base = base_model(folder, golden, classifier)
        model = PeftModel.from_pretrained(base, ours).eval()
        loaded = gap(model, golden, wanted)
        merged_folder = out / folder.name / f"{name}-merged"
        kind = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
        merged, report = kind.from_pretrained(merged_folder, dtype="auto", attn_implementation="eager", output_loading_info=True)
        unexpected = [key for key in report["unexpected_keys"] if not key.startswith("cls.")]
        assert not report["missing_keys"] and not unexpected, (report["missing_keys"], unexpected)
        merged_gap = gap(merged.eval(), golden, wanted)
        tensors = 0
        if not classifier:
            tensors = check_gguf(out / folder.name / f"{name}.gguf", model, base.config, theirs)
        assert loaded == 0 or loaded < 1e-6, (folder.name, loaded)
        assert merged_gap < 5e-5, (folder.name, merged_gap)
        print(f"{folder.name + '/' + name:28} logits by PEFT {loaded:.1e}, merged {merged_gap:.1e}, {tensors} GGUF tensors", flush=True)
        checked += 1
    assert checked >= 17, checked
    print(checked, "adapters are right")


if __name__ == "__main__":
    main()
