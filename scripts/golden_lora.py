"""What PEFT computes for a LoRA of all seven projections: losses, logits, gradients, and a few optimizer steps.

    python scripts/golden_lora.py              (needs torch, transformers, peft; after golden_greedy.py)

Writes to crates/model/tests/golden/:

- tiny/: a random Llama with untied embeddings, one key-value head and a head_dim that is not hidden/heads;
- tiny.safetensors, stories260k.safetensors: for each model
    `lora.<block>.<projection>.{A,B}`  the adapter, A [r, in] and B [out, r], both non-zero,
    `grad.<block>.<projection>.{A,B}`  d loss / d A and d loss / d B,
    `ids`, `mask`, `lengths`           the batch [3, time], right-padded; mask[b, t] = 1 where token t is a target,
    `loss` [1]                         mean over the unmasked targets,
    `logits` [sum of lengths, vocab]   of the real positions, row after row,
    `after.<block>.<projection>.{A,B}` the adapter after the training below (tiny only),
    `losses`, `norms`, `lrs`           one number a step of that training (tiny only);
- adamw.safetensors: `param`, `grads` [steps, ...], `lrs`, `scales`, `after` [steps, ...] of torch.optim.AdamW alone.
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "crates/model/tests/golden"
STORIES = ROOT.parent / "shared/models/stories260k"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ALPHA = 2, 6
LENGTHS = [12, 17, 9]
PROMPTS = [4, 0, 5]  # targets before this position are masked
STEPS, LR, WEIGHT_DECAY, CLIP = 5, 1e-2, 0.1, 0.5


def tiny():
    """A shape that catches transposed and mixed-up dimensions: every size is different."""
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=56,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=12,
        vocab_size=80,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_theta=500000.0,
        tie_word_embeddings=False,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).float().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 1.5)
    model.save_pretrained(GOLDEN / "tiny")
    (GOLDEN / "tiny/generation_config.json").unlink(missing_ok=True)
    # Read back from disk, as the test will.
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "tiny", dtype=torch.float32).eval()


def batch(text):
    """Three rows out of `text`, the first token of each replaced by the begin token."""
    time = max(LENGTHS)
    ids = torch.zeros(len(LENGTHS), time, dtype=torch.int64)
    mask = torch.zeros(len(LENGTHS), time)
    for row, (length, prompt) in enumerate(zip(LENGTHS, PROMPTS)):
        ids[row, :length] = text[row * time:row * time + length]
        ids[row, 0] = 1
        mask[row, max(prompt, 1):length] = 1
    return ids, mask


def loss_of(model, ids, mask):
    attention = (torch.arange(ids.shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    logits = model(input_ids=ids, attention_mask=attention).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return (nll * mask[:, 1:]).sum() / mask[:, 1:].sum(), logits


def pairs(model, of):
    """`<block>.<projection>.{A,B}` -> tensor, in PEFT's own orientation."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parts = name.split(".")
            block, projection = parts[parts.index("layers") + 1], parts[-4]
            found[f"{block}.{projection}.{parts[-3][-1]}"] = of(parameter).detach().clone().contiguous()
    return found


def golden(base, text, out, train):
    torch.manual_seed(2)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.05)
    ids, mask = batch(text)
    tensors = {"ids": ids.to(torch.int32), "mask": mask, "lengths": torch.tensor(LENGTHS, dtype=torch.int32)}
    tensors |= {f"lora.{key}": value for key, value in pairs(model, lambda p: p).items()}
    loss, logits = loss_of(model, ids, mask)
    loss.backward()
    tensors["loss"] = loss.detach().reshape(1)
    tensors["logits"] = torch.cat([logits[row, :length] for row, length in enumerate(LENGTHS)]).detach()
    tensors |= {f"grad.{key}": value for key, value in pairs(model, lambda p: p.grad).items()}
    if train:
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=LR, weight_decay=WEIGHT_DECAY)
        losses, norms, lrs = [], [], []
        for step in range(STEPS):
            lr = LR * min(1.0, (step + 1) / 2) * (1 - step / 10)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            loss, _ = loss_of(model, ids, mask)
            loss.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(trainable, CLIP).item())
            optimizer.step()
            losses.append(loss.item())
            lrs.append(lr)
        tensors |= {f"after.{key}": value for key, value in pairs(model, lambda p: p).items()}
        tensors |= {"losses": torch.tensor(losses), "norms": torch.tensor(norms)}
        tensors["lrs"] = torch.tensor(lrs, dtype=torch.float64)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out)
    print(out.name, "loss", tensors["loss"].item(), tensors.get("losses"), tensors.get("norms"))


def adamw(out):
    torch.manual_seed(3)
    steps, shape = 8, (3, 5)
    param = torch.nn.Parameter(torch.randn(shape))
    grads = torch.randn(steps, *shape) * torch.logspace(-4, 1, steps)[:, None, None]
    lrs = [0.05 * (1 - step / 10) for step in range(steps)]
    scales = [1.0, 0.5, 1.0, 0.1, 0.7, 1.0, 0.01, 0.3]
    tensors = {"param": param.detach().clone(), "grads": grads, "lrs": torch.tensor(lrs, dtype=torch.float64)}
    tensors["scales"] = torch.tensor(scales, dtype=torch.float64)
    optimizer = torch.optim.AdamW([param], lr=1.0, weight_decay=WEIGHT_DECAY)
    after = []
    for grad, lr, scale in zip(grads, lrs, scales):
        optimizer.param_groups[0]["lr"] = lr
        param.grad = grad * scale
        optimizer.step()
        after.append(param.detach().clone())
    tensors["after"] = torch.stack(after)
    save_file(tensors, out)


def main():
    GOLDEN.mkdir(parents=True, exist_ok=True)
    base = tiny()
    golden(base, torch.randint(3, base.config.vocab_size, (64,)), GOLDEN / "tiny.safetensors", train=True)
    stories = AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32).eval()
    text = torch.tensor(json.loads((GOLDEN / "greedy.json").read_text())["ids"])
    golden(stories, text, GOLDEN / "stories260k.safetensors", train=False)
    adamw(GOLDEN / "adamw.safetensors")


if __name__ == "__main__":
    main()
