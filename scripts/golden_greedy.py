"""Greedy decoding of stories260k by transformers: crates/model/tests/golden/greedy.json.

    python scripts/golden_greedy.py            (needs torch, transformers)

`ids` are the begin token and the 200 tokens that follow it, `text` is their decoding without special tokens.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT.parent / "shared/models/stories260k"
OUT = ROOT / "crates/model/tests/golden/greedy.json"
TOKENS = 200


def main():
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    begin = torch.tensor([[model.config.bos_token_id]])
    # The end token is an ordinary one here: the golden has its 200 tokens whatever the model says.
    ids = model.generate(
        begin,
        attention_mask=torch.ones_like(begin),
        do_sample=False,
        min_new_tokens=TOKENS,
        max_new_tokens=TOKENS,
        eos_token_id=None,
        pad_token_id=0,
    )[0].tolist()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    OUT.write_text(json.dumps({"ids": ids, "text": text}) + "\n")
    print(len(ids), "tokens:", text[:80], "...")


if __name__ == "__main__":
    main()
