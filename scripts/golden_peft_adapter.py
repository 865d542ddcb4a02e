"""Writes tests/golden/peft_adapter/: an adapter that PEFT itself saved, which baton-formats must read.

    python scripts/golden_peft_adapter.py      (needs torch, transformers, peft, and ../shared beside the repository)

The factors hold n / 64 for n = (7 * position + 3 * block + 1) mod 129 - 64, so that the test can tell every value.
"""

import json
import shutil
import tempfile
from pathlib import Path

import peft
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


def main():
    model = AutoModelForCausalLM.from_pretrained(SHARED / "models/stories260k")
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            block = int(name.split(".layers.")[1].split(".")[0])
            position = torch.arange(parameter.numel())
            values = ((7 * position + 3 * block + 1) % 129 - 64) / 64
            parameter.data = values.reshape(parameter.shape).float()
    out = ROOT / "tests/golden/peft_adapter"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = json.loads(Path(folder, "adapter_config.json").read_text())
        saved["base_model_name_or_path"] = "stories260k"
        saved["target_modules"].sort()
        Path(out, "adapter_config.json").write_text(json.dumps(saved, indent=2) + "\n")
        shutil.copyfile(Path(folder, "adapter_model.safetensors"), out / "adapter_model.safetensors")
    print(f"{out}, by PEFT {peft.__version__}")


if __name__ == "__main__":
    main()
