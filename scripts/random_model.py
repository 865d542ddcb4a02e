"""Makes a model of a real one's shape with random weights, to measure what a run of it takes.

    python scripts/random_model.py --like DIR --out DIR [--dtype bfloat16] [--seed 0]

Needs torch and transformers. `--like` holds the real config.json and tokenizer (SmolLM2-135M:
../shared/models/smollm2-135m-tokenizer); its weights are not needed. What comes out is a folder as from the hub, of the
real size; it is not for committing.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--like", type=Path, required=True, help="folder with config.json and the tokenizer")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    torch.manual_seed(arguments.seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(arguments.like))
    model = model.to(getattr(torch, arguments.dtype))
    model.save_pretrained(arguments.out)

    # The config as it was, but for what the model is: a shared config may name a classifier made of it.
    config = json.loads((arguments.like / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    config["torch_dtype"] = arguments.dtype
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    for name in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]:
        if (arguments.like / name).exists():
            shutil.copyfile(arguments.like / name, arguments.out / name)
    size = (arguments.out / "model.safetensors").stat().st_size
    print(f"{sum(p.numel() for p in model.parameters())} parameters, model.safetensors {size} bytes, in {arguments.out}")


if __name__ == "__main__":
    main()
