"""The default model in transformers: it loads, and writes what Baton writes.

    python scripts/check_default_model.py           (needs torch, transformers)

AutoTokenizer and AutoModelForCausalLM read static/model as any model of the hub. Greedy decoding from the begin token
must give crates/stories/tests/golden/greedy.txt, which Baton's own test holds Baton to, and every line of the sample
text must come back from its tokens.
"""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "static/model"
GOLDEN = ROOT / "crates/stories/tests/golden/greedy.txt"
TOKENS = 128


def main():
    model, loading = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32, output_loading_info=True)
    problems = {what: names for what, names in loading.items() if names}
    assert not problems, problems
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    begin = tokenizer("", return_tensors="pt")
    assert begin.input_ids.tolist() == [[model.config.bos_token_id]], begin
    ids = model.eval().generate(**begin, do_sample=False, max_new_tokens=TOKENS)[0]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == GOLDEN.read_text().rstrip("\n"), text

    lines = (ROOT / "static/sample.txt").read_text().splitlines()
    for line in lines:
        assert tokenizer.decode(tokenizer(line).input_ids, skip_special_tokens=True) == line, line
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters} parameters, {len(ids)} tokens as Baton's, {len(lines)} lines there and back: {text}")


if __name__ == "__main__":
    main()
