"""Writes tests/golden/tokens.json: token ids by transformers, which baton-formats must give too.

    python scripts/golden_tokens.py            (needs transformers, and ../shared beside the repository)
"""

import hashlib
import json
import struct
from pathlib import Path

import tokenizers
import transformers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

TRICKY = [
    "",
    " ",
    "  two  spaces  ",
    "\ttab\nnewline\r\n",
    "Once upon a time, there was a little girl named Lily.",
    "name : The Punter | food : English | price range : £20-25",
    "naïve café, Ærøskøbing, e\u0301 is not \u00e9",
    "日本語 и русский עברית",
    "👩‍👩‍👧 🇩🇪 \U0001f9ff",
    "1234567890 3.14159",
    "<s>inside</s> and <|endoftext|> and <|im_start|>user",
    "def f(x):\n    return x ** 2  # square",
    "▁ the mark itself",
    "\u0000\u200b\ufeff control",
    "don't I'll we've",
    "a" * 60,
]


def main():
    lines = (SHARED / "data/e2e/valid.txt").read_text().split("\n")
    lines = [line.removesuffix("\r") for line in lines if line.strip()]
    golden = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__, "models": {}}
    for name in ["stories260k", "smollm2-135m-tokenizer"]:
        file = SHARED / "models" / name / "tokenizer.json"
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file))
        digest = hashlib.sha256()
        for line in lines:
            ids = tokenizer(line)["input_ids"]
            digest.update(struct.pack(f"<{len(ids) + 1}I", len(ids), *ids))
        golden["models"][name] = {
            "vocab_size": len(tokenizer),
            # Of each line of valid.txt: its number of ids and its ids, as little-endian u32.
            "valid_txt_sha256": digest.hexdigest(),
            "samples": [
                {
                    "text": text,
                    "ids": tokenizer(text)["input_ids"],
                    "plain": tokenizer(text, add_special_tokens=False)["input_ids"],
                    "decoded": tokenizer.decode(
                        tokenizer(text)["input_ids"], skip_special_tokens=True, clean_up_tokenization_spaces=False
                    ),
                }
                for text in TRICKY
            ],
        }
    out = ROOT / "tests/golden/tokens.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    body = json.dumps(golden, ensure_ascii=True, separators=(",", ":")).replace('{"text"', '\n{"text"')
    out.write_text(body + "\n")
    print(f"{out}: {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
