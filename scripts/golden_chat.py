"""Writes crates/formats/tests/golden/chat/rendered.json: the templates beside it, rendered by transformers.

    python scripts/golden_chat.py            (needs transformers)
"""

import datetime
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

FOLDER = Path(__file__).resolve().parent.parent / "crates/formats/tests/golden/chat"

LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>"}
TEMPLATES = {
    "llama-3.1": LLAMA3,
    "llama-3.2": LLAMA3,
    "llama-3-generation": LLAMA3,
    "qwen2.5": CHATML,
    "qwen2.5-generation": CHATML,
    "qwen3": CHATML,
    "smollm2": CHATML | {"bos_token": "<|im_start|>"},
    "zephyr": LLAMA2,
    "mistral-7b-v0.1": LLAMA2,
    "mistral-nemo": LLAMA2,
    "gemma": GEMMA,
    "gemma-3": GEMMA,
}

USER = {"role": "user", "content": "What is 2 < 3 & \"4\"?"}
ANSWER = {"role": "assistant", "content": "It is 'true' — wörld 日本."}
CONVERSATIONS = [
    [USER],
    [USER, ANSWER],
    [{"role": "system", "content": " Be brief. "}, USER, ANSWER],
    [USER, ANSWER, {"role": "user", "content": "  And\n\nthen?  "}, {"role": "assistant", "content": "\n Nothing.\n"}],
    [
        {"role": "system", "content": "Think."},
        USER,
        {"role": "assistant", "content": "<think>\nTwo is less.\n</think>\n\nYes."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "<think>\nAgain: yes.\n</think>\n\nSure."},
    ],
    [ANSWER, USER],
]


class Today(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def main():
    chat_template_utils.datetime = Today
    result = {"transformers": transformers.__version__, "templates": {}}
    for name, special in TEMPLATES.items():
        template = (FOLDER / f"{name}.jinja").read_text()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), chat_template=template, **special
        )
        cases = []
        for messages in CONVERSATIONS:
            for prompt in [False, True]:
                case = {"messages": messages, "add_generation_prompt": prompt}
                try:
                    case["text"] = tokenizer.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=prompt
                    )
                except Exception as error:
                    case["error"] = str(error)
                if "generation" in name and not prompt and "text" in case:
                    _, spans = chat_template_utils.render_jinja_template(
                        [messages], chat_template=template, return_assistant_tokens_mask=True, **special
                    )
                    case["generated"] = [case["text"][start:end] for start, end in spans[0]]
                cases.append(case)
        result["templates"][name] = {"special": special, "cases": cases}
    body = json.dumps(result, ensure_ascii=True, separators=(",", ":")).replace('{"messages"', '\n{"messages"')
    (FOLDER / "rendered.json").write_text(body + "\n")
    print(f"{len(body)} bytes")


if __name__ == "__main__":
    main()
