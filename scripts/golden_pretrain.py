"""Full training of stories260k by torch: crates/model/tests/golden/pretrain.json.

    python scripts/golden_pretrain.py          (needs torch, transformers; after golden_greedy.py)

A few steps of AdamW on all weights (norms not decayed, gradients clipped to a norm of 1) from the trained model: the
losses, one a step, on two rows of unequal length.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "crates/model/tests/golden"
STEPS, LR, WEIGHT_DECAY = 6, 2e-3, 0.1


def main():
    model = AutoModelForCausalLM.from_pretrained(
        ROOT.parent / "shared/models/stories260k", dtype=torch.float32
    ).eval()
    text = json.loads((GOLDEN / "greedy.json").read_text())["ids"]
    # Backwards, the story is new to the model: its losses have far to fall.
    rows = [text[40:10:-1], text[90:60:-1][:21]]
    norms = [p for name, p in model.named_parameters() if "norm" in name]
    others = [p for name, p in model.named_parameters() if "norm" not in name]
    optimizer = torch.optim.AdamW([{"params": others}, {"params": norms, "weight_decay": 0.0}], weight_decay=WEIGHT_DECAY)
    losses = []
    for step in range(STEPS):
        lr = LR * (step + 1) / STEPS
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad()
        total = 0.0
        for row in rows:
            ids = torch.tensor([row])
            logits = model(input_ids=ids).logits[0, :-1]
            total = total + torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        loss = total / sum(len(row) - 1 for row in rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    out = {"rows": rows, "lr": LR, "weight_decay": WEIGHT_DECAY, "losses": losses}
    (GOLDEN / "pretrain.json").write_text(json.dumps(out) + "\n")
    print(losses)


if __name__ == "__main__":
    main()
