"""What transformers and PEFT compute for a tiny random model of every family that Baton reads.

    python scripts/golden_families.py [NAME ...]

Needs (pip): torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0 numpy==2.4.6. CPU, f32, eager attention.

Writes for each family crates/model/tests/golden/families/<name>/:

- config.json, model.safetensors: the model as `save_pretrained` writes it (a few as the hub has them, see `COPIES` and
  `bert_hub`, `gpt2_hub`); config.hub.json: the same settings in the words of transformers 4, which most of the hub still
  uses (`rope_theta`, `rope_scaling`, `torch_dtype`); this script checks that transformers reads both to the same numbers;
- adapter/: a PEFT LoRA on every linear layer of the blocks (and the head, for classifiers), saved by PEFT;
- golden.json: versions, seed, rank, alpha, targets, lengths, the losses;
- golden.safetensors, T = the longest row:
    `ids`            [rows, T] i32, padded on the right; `lengths` [rows] i32
    `attention_mask`, `token_type_ids`  [rows, T] i32 (encoders only; two rows hold a pair of sentences)
    `labels`         [rows] i32, or f32 for regression (encoders only)
    `logits`         [rows, T, vocab] of the base model, or [rows, labels]; a padded position's values mean nothing
    `adapted_logits` the same of the base model with the adapter
    `merged_logits`  the first row's of the model with the adapter merged into its weights: [1, T, vocab] or [1, labels]
    `loss`           [1], with the adapter: mean over all next tokens of real positions (decoders), cross entropy or
                     squared error mean over the rows (encoders); `base_loss` [1], without it
    `grad.<name>`    d loss / d <name> for every tensor <name> of adapter/adapter_model.safetensors
    `head.<name>`    the head that the base model was given where its file has none (minilm, bert_hub)

`smollm2/adapter_pattern` and `pattern_logits` are an adapter with a regex for its targets, ranks and alphas of their own
for some layers, and rsLoRA's scale.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "crates/model/tests/golden/families"
VOCAB = 80
LENGTHS = [16, 11, 6]
RANK, ALPHA = 2, 6
SEED = 20
GATED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONV = ["c_attn", "c_proj", "c_fc"]
ENCODER = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]

# Every size differs from the others where the family lets it, to catch what is transposed or mixed up.
DECODER = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCAB,
    max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=None,
)
BERT = dict(
    hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCAB,
    max_position_embeddings=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)
LLAMA3 = {
    # Of the four wavelengths 6.3, 35, 199, 1117 the first is kept, the second blended, the others stretched.
    "rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def rope(theta):
    return {"rope_type": "default", "rope_theta": theta}


def llama(**changes):
    return LlamaForCausalLM(LlamaConfig(**(DECODER | {"tie_word_embeddings": False} | changes)))


# name -> (model, targets, what config.hub.json says otherwise)
DECODERS = {
    "llama2": lambda: (llama(rms_norm_eps=1e-5, rope_parameters=rope(10000.0)), GATED, {"rope_theta": 10000.0, "rope_scaling": None}),
    "llama3": lambda: (
        llama(num_key_value_heads=2, tie_word_embeddings=True, rope_parameters=LLAMA3, max_position_embeddings=512, eos_token_id=[2, 3]),
        GATED,
        {"rope_theta": 1000.0, "rope_scaling": {key: value for key, value in LLAMA3.items() if key != "rope_theta"}},
    ),
    "smollm2": lambda: (
        llama(num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=rope(100000.0)),
        GATED,
        {"rope_theta": 100000, "rope_scaling": None, "rope_interleaved": False, "is_llama_config": True},
    ),
    "tinyllama": lambda: (llama(num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=rope(10000.0)), GATED, {"rope_scaling": None}),
    "llama_linear": lambda: (
        llama(num_key_value_heads=2, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
        GATED,
        {"rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    ),
    "mistral": lambda: (
        MistralForCausalLM(MistralConfig(**DECODER, num_key_value_heads=2, sliding_window=6, tie_word_embeddings=False, rope_parameters=rope(10000.0))),
        GATED,
        {"rope_theta": 10000.0},
    ),
    "qwen2": lambda: (
        Qwen2ForCausalLM(Qwen2Config(**DECODER, num_key_value_heads=2, tie_word_embeddings=False, rope_parameters=rope(1000000.0))),
        GATED,
        {"rope_theta": 1000000.0, "sliding_window": 32, "use_sliding_window": False, "max_window_layers": 2},
    ),
    "qwen2_tied": lambda: (
        Qwen2ForCausalLM(Qwen2Config(**DECODER, num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=rope(1000000.0))),
        GATED,
        {"rope_theta": 1000000.0, "sliding_window": 32, "use_sliding_window": False, "max_window_layers": 2},
    ),
    "qwen3": lambda: (
        Qwen3ForCausalLM(Qwen3Config(**DECODER, num_key_value_heads=2, head_dim=12, tie_word_embeddings=True, rope_parameters=rope(1000000.0))),
        GATED,
        {"rope_theta": 1000000, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 3},
    ),
    "gemma3": lambda: (
        Gemma3ForCausalLM(Gemma3TextConfig(
            **(DECODER | {"num_hidden_layers": 4}), num_key_value_heads=1, head_dim=10, query_pre_attn_scalar=16, sliding_window=6,
            layer_types=["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
            rope_parameters={"full_attention": rope(1000000.0), "sliding_attention": rope(100.0)},
        )),
        GATED,
        {"rope_theta": 1000000.0, "rope_local_base_freq": 100.0, "rope_scaling": None, "sliding_window_pattern": 3, "layer_types": None},
    ),
    "gpt2": lambda: (
        GPT2LMHeadModel(GPT2Config(
            n_embd=32, n_inner=72, n_layer=3, n_head=4, n_positions=32, vocab_size=VOCAB, bos_token_id=1, eos_token_id=1,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )),
        CONV,
        {"n_ctx": 32},
    ),
}

ENCODERS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=3)),
    "bert_regression": lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=1, problem_type="regression")),
    "bert_hub": lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=2)),
    "minilm": lambda: BertForSequenceClassification(BertConfig(**BERT, num_labels=2)),
    # Positions are counted from padding_idx + 1, so that the table is two longer than the longest text.
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(
        **(BERT | {"max_position_embeddings": 34}), num_labels=2, type_vocab_size=1, layer_norm_eps=1e-5,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )),
}


def randomize(model, seed):
    """Every parameter matters: no gain left at 1 and no bias at 0."""
    generator = torch.Generator().manual_seed(seed)
    centred = type(model).__name__.startswith("Gemma")  # its norms multiply by 1 + weight
    done = set()
    for name, parameter in model.named_parameters():
        if parameter.data_ptr() in done:
            continue
        done.add(parameter.data_ptr())
        if parameter.ndim == 1 and name.endswith("weight"):
            low = -0.5 if centred else 0.5
            parameter.data.uniform_(low, low + 1.0, generator=generator)
        else:
            parameter.data.normal_(0.0, 0.2, generator=generator)
    return model.float().eval()


def save_model(model, folder):
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)


def write_hub_config(folder, changes, auto):
    """config.hub.json, proved to mean what config.json means."""
    config = json.loads((folder / "config.json").read_text())
    for key in ("rope_parameters", "dtype", "transformers_version"):
        config.pop(key, None)
    hub = config | changes | {"torch_dtype": "float32", "transformers_version": "4.49.0"}
    hub = {key: hub[key] for key in sorted(hub) if not (key == "layer_types" and hub[key] is None)}
    (folder / "config.hub.json").write_text(json.dumps(hub, indent=2) + "\n")
    with tempfile.TemporaryDirectory() as copy:
        shutil.copyfile(folder / "model.safetensors", Path(copy, "model.safetensors"))
        shutil.copyfile(folder / "config.hub.json", Path(copy, "config.json"))
        return auto.from_pretrained(copy, dtype=torch.float32, attn_implementation="eager").eval()


def with_adapter(model, folder, seed, **config):
    """The model with a random adapter, which PEFT saves to `folder`."""
    model = get_peft_model(model, LoraConfig(lora_dropout=0.0, **config)).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.data.normal_(0.0, 0.15, generator=generator)
    model.save_pretrained(folder, save_embedding_layers=False)
    Path(folder, "README.md").unlink()
    path = Path(folder, "adapter_config.json")
    saved = json.loads(path.read_text())
    saved["base_model_name_or_path"] = Path(folder).parent.name
    for key in ("target_modules", "modules_to_save"):
        if isinstance(saved[key], list):
            saved[key].sort()  # sets: PEFT writes them in another order each time
    path.write_text(json.dumps(saved, indent=2) + "\n")
    return model


def gradients(model, folder):
    """`grad.<name>` of all that the adapter's file holds."""
    names = set(load_file(Path(folder, "adapter_model.safetensors")))
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            saved = name.replace(".default", "").replace(".modules_to_save", "")
            assert saved in names and parameter.grad.abs().max() > 0, saved
            found[f"grad.{saved}"] = parameter.grad.detach().clone()
    assert len(found) == len(names), (len(found), len(names))
    return found


def finish(name, tensors, facts):
    folder = OUT / name
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / "golden.safetensors")
    facts = {
        "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
        "seed": SEED, "rank": RANK, "alpha": ALPHA, "lengths": LENGTHS,
        "base_loss": tensors["base_loss"].item(), "loss": tensors["loss"].item(),
    } | facts
    (folder / "golden.json").write_text(json.dumps(facts, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{name:16} {size / 1000:6.1f} kB  loss {facts['base_loss']:.5f} with adapter {facts['loss']:.5f}", flush=True)


def token_loss(logits, ids):
    kept = [(logits[row, : length - 1], ids[row, 1:length]) for row, length in enumerate(LENGTHS)]
    return torch.nn.functional.cross_entropy(torch.cat([k[0] for k in kept]), torch.cat([k[1] for k in kept]))


def decoder(name):
    folder = OUT / name
    model, targets, hub = DECODERS[name]()
    save_model(randomize(model, SEED), folder)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(SEED + 1)
    ids = torch.randint(3, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = ids * mask
    with torch.no_grad():
        logits = base(input_ids=ids, attention_mask=mask).logits
        same = write_hub_config(folder, hub, AutoModelForCausalLM)(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(logits, same), f"{name}: config.hub.json is read to another model"
    tensors = {"ids": ids.int(), "lengths": torch.tensor(LENGTHS).int(), "logits": logits}
    tensors["base_loss"] = token_loss(logits, ids).reshape(1)
    if name == "smollm2":
        tensors["pattern_logits"] = pattern(folder, ids, mask)
    settings = dict(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type=TaskType.CAUSAL_LM, fan_in_fan_out=name.startswith("gpt2"))
    model = with_adapter(base, folder / "adapter", SEED + 2, **settings)
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = token_loss(logits, ids)
    loss.backward()
    tensors |= {"adapted_logits": logits.detach(), "loss": loss.detach().reshape(1)} | gradients(model, folder / "adapter")
    with torch.no_grad():
        merged = model.merge_and_unload()(input_ids=ids, attention_mask=mask).logits
    check_merged(name, logits, merged, mask.bool())
    tensors["merged_logits"] = merged[:1]
    finish(name, tensors, {"kind": "decoder", "targets": targets})
    if name == "gpt2":
        gpt2_hub(folder)


def check_merged(name, logits, merged, real):
    gap = (logits - merged)[real].abs().max().item()
    assert gap < 5e-5, f"{name}: merging changes the logits by {gap}"


def pattern(folder, ids, mask):
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model = with_adapter(
        base, folder / "adapter_pattern", SEED + 3, r=RANK, lora_alpha=ALPHA, task_type=TaskType.CAUSAL_LM, use_rslora=True,
        target_modules=r".*layers\.[02]\..*(q|v|down)_proj", rank_pattern={"down_proj": 5, r"layers\.2\..*q_proj": 3},
        alpha_pattern={r"^model\.layers\.0\.self_attn\.v_proj": 9},
    )
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


def gpt2_hub(folder):
    """gpt2_hub/: the same model as the hub's gpt2 names its tensors: no prefix, and the causal masks among them."""
    copy = OUT / "gpt2_hub"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(folder / "model.safetensors").items()}
    causal = torch.ones(32, 32).tril().reshape(1, 1, 32, 32)
    tensors |= {f"h.{block}.attn.bias": causal.clone() for block in range(3)}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(folder / "config.hub.json", copy / "config.json")
    (copy / "golden.json").write_text(json.dumps({"same_as": "gpt2"}) + "\n")
    read_alike(folder, copy)


def read_alike(first, second):
    """Both folders are the same model to transformers."""
    one, other = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).state_dict() for f in (first, second))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one), second


def save_encoder(name, model, folder):
    """The base model's files; returns the head where they hold none."""
    if name == "minilm":  # as sentence-transformers saves: the encoder alone, its names without a prefix
        save_model(model.bert, folder)
    elif name == "bert_hub":  # as bert-base-uncased is: a masked language model with the names of TensorFlow's norms
        save_model(randomize(BertForMaskedLM(BertConfig(**BERT)), SEED), folder)
        path = folder / "model.safetensors"
        tensors = {key: value for key, value in load_file(path).items() if not key.startswith("bert.")}
        for key, value in model.bert.state_dict().items():
            key = f"bert.{key}"
            if "LayerNorm" in key:
                key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[key] = value.clone()
        tensors["bert.embeddings.position_ids"] = torch.arange(40)[None]
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        save_model(model, folder)
        return {}
    return {f"head.classifier.{key}": value.clone() for key, value in model.classifier.state_dict().items()}


def encoder(name):
    folder = OUT / name
    model = randomize(ENCODERS[name](), SEED)
    head = save_encoder(name, model, folder)
    base = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", num_labels=model.config.num_labels,
    ).eval()
    base.load_state_dict({key.removeprefix("head."): value for key, value in head.items()}, strict=False)
    generator = torch.Generator().manual_seed(SEED + 1)
    pad = base.config.pad_token_id
    ids = torch.randint(5, VOCAB, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    ids = torch.where(mask.bool(), ids, pad)
    types = torch.zeros_like(ids)
    if base.config.type_vocab_size > 1:
        types[0, 9:] = 1
        types[1, 5:11] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    regression = base.config.num_labels == 1
    labels = torch.tensor([0.5, -1.25, 2.0]) if regression else torch.tensor([1, 0, base.config.num_labels - 1])

    def loss_of(logits):
        return torch.nn.functional.mse_loss(logits[:, 0], labels) if regression else torch.nn.functional.cross_entropy(logits, labels)

    with torch.no_grad():
        plain, logits = model(**batch).logits, base(**batch).logits
    assert torch.allclose(plain, logits, atol=1e-6), f"{name}: the saved model is another one"
    tensors = {"ids": ids.int(), "lengths": torch.tensor(LENGTHS).int(), "attention_mask": mask.int(), "token_type_ids": types.int()}
    tensors |= {"labels": labels if regression else labels.int(), "logits": logits, "base_loss": loss_of(logits).reshape(1)} | head
    model = with_adapter(base, folder / "adapter", SEED + 2, r=RANK, lora_alpha=ALPHA, target_modules=ENCODER, task_type=TaskType.SEQ_CLS)
    output = model(**batch, labels=labels)
    loss = loss_of(output.logits)
    assert torch.allclose(loss, output.loss), f"{name}: transformers has another loss"
    loss.backward()
    tensors |= {"adapted_logits": output.logits.detach(), "loss": loss.detach().reshape(1)} | gradients(model, folder / "adapter")
    with torch.no_grad():
        merged = model.merge_and_unload()(**batch).logits
    check_merged(name, output.logits, merged, torch.ones(len(LENGTHS), dtype=torch.bool))
    tensors["merged_logits"] = merged[:1]
    finish(name, tensors, {"kind": "encoder", "targets": ENCODER, "labels": base.config.num_labels})


def copies():
    """llama_bf16/ (its own logits) and llama_sharded/ (the same model), of tinyllama, for the readers."""
    folder = OUT / "tinyllama"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    save_model(model, OUT / "llama_bf16")
    model = AutoModelForCausalLM.from_pretrained(OUT / "llama_bf16", dtype=torch.float32, attn_implementation="eager").eval()
    ids = load_file(folder / "golden.safetensors")["ids"][:1]
    with torch.no_grad():
        logits = model(input_ids=ids.long()).logits
    save_file({"ids": ids, "logits": logits.contiguous()}, OUT / "llama_bf16/golden.safetensors")
    (OUT / "llama_bf16/golden.json").write_text(json.dumps({"logits": "of the bf16 weights, computed in f32"}) + "\n")
    sharded = OUT / "llama_sharded"
    shutil.rmtree(sharded, ignore_errors=True)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).save_pretrained(sharded, max_shard_size="30KB")
    (sharded / "generation_config.json").unlink(missing_ok=True)
    (sharded / "golden.json").write_text(json.dumps({"same_as": "tinyllama"}) + "\n")
    read_alike(folder, sharded)
    print("shards", len(list(sharded.glob("*.safetensors"))))


def main():
    names = sys.argv[1:] or [*DECODERS, *ENCODERS]
    torch.use_deterministic_algorithms(True)
    for name in names:
        torch.manual_seed(SEED)
        decoder(name) if name in DECODERS else encoder(name)
    if "tinyllama" in names:
        copies()


if __name__ == "__main__":
    main()
