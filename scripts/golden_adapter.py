"""What PEFT makes of an adapter that Baton wrote: crates/model/tests/golden/adapter.safetensors.

    python scripts/golden_adapter.py           (needs torch, transformers, peft, cargo; after golden_greedy.py)

Writes the adapter of crates/model/examples/write_adapter.rs, loads it with PEFT onto stories260k, and keeps the `ids`
[1, time] and `logits` [time, vocab] that the adapted model gives. That Baton's own logits are these is a test.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "crates/model/tests/golden"
MODEL = ROOT.parent / "shared/models/stories260k"


def main():
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    ids = torch.tensor([json.loads((GOLDEN / "greedy.json").read_text())["ids"][:16]])
    with torch.no_grad(), tempfile.TemporaryDirectory() as adapter:
        example = ["cargo", "run", "--release", "-p", "baton-model", "--example", "write_adapter", "--"]
        subprocess.run([*example, str(MODEL), adapter], check=True, cwd=ROOT)
        plain = base(input_ids=ids).logits[0]
        adapted = PeftModel.from_pretrained(base, adapter).eval()(input_ids=ids).logits[0]
    change = (adapted - plain).abs().max().item()
    assert change > 0.1, f"the adapter changes the logits by {change} only"
    save_file({"ids": ids.to(torch.int32), "logits": adapted.contiguous()}, GOLDEN / "adapter.safetensors")
    print(f"the adapter changes the logits by up to {change:.2f}")


if __name__ == "__main__":
    main()
