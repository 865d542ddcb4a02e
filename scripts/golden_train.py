"""Makes crates/cli/tests/golden/train: a PEFT run that `baton train` is set against.

An adapter initialised by PEFT and a text, then torch.optim.AdamW with transformers' linear schedule and
clip_grad_norm_, exactly as the flags in crates/cli/tests/train.rs say. Run: python scripts/golden_train.py
(torch, transformers, peft; the model is ../shared/models/stories260k).
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, get_linear_schedule_with_warmup

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "../shared/models/stories260k"
OUT = ROOT / "crates/cli/tests/golden/train"
STEPS, BATCH, SEQ_LEN, WARMUP = 8, 4, 40, 2

torch.manual_seed(5)
torch.use_deterministic_algorithms(True)
lines = (ROOT / "../shared/data/e2e/valid.txt").read_text().splitlines()[: STEPS * BATCH]
shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, attn_implementation="eager")
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, lora_dropout=0.0, task_type="CAUSAL_LM"))
for name, parameter in model.named_parameters():
    if "lora_B" in name:  # so that A has a gradient from the first step on
        torch.nn.init.normal_(parameter, std=0.02)
model.save_pretrained(OUT / "init_adapter", save_embedding_layers=False)
(OUT / "init_adapter/README.md").unlink(missing_ok=True)

parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(parameters, lr=5e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
schedule = get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS)
losses, norms = [], []
for step in range(STEPS):
    rows = [
        (tokenizer(line)["input_ids"] + [model.config.eos_token_id])[:SEQ_LEN]
        for line in lines[step * BATCH : (step + 1) * BATCH]
    ]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for row in rows])
    mask = (labels != -100).long()
    logits = model(input_ids=ids, attention_mask=mask).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1))
    loss.backward()
    norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.5).item())
    optimizer.step()
    schedule.step()
    optimizer.zero_grad()
    losses.append(loss.item())
model.save_pretrained(OUT / "final_adapter", save_embedding_layers=False)
(OUT / "final_adapter/README.md").unlink(missing_ok=True)
(OUT / "run.json").write_text(json.dumps({"losses": losses, "grad_norms": norms}, indent=1) + "\n")
print(losses, norms)
