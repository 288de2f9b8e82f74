"""Golden token ids of transformers' CLIPTokenizer.

Reads caption files (JSON lines with a list `captions`) and CLIP's vocabulary. Writes `tokenizer.json`:
200 captions with their ids, and awkward texts with theirs under several folders' configurations.

    python tests/golden/tokenizer.py CAPTIONS.jsonl...
"""

import json
import pathlib
import random
import sys
import tempfile

from common import HERE
from transformers import CLIPTokenizer

VOCABULARY = HERE.parent.parent / "tests/clip-tokenizer/tokenizer.json"
CAPTIONS = 200
START, END = "<|startoftext|>", "<|endoftext|>"


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, **flags}


def config(pad):
    """As SD 1.x and 2.x have them on the hub: the kind of quote is what differs between versions."""
    tokens = {"bos_token": token(START), "eos_token": token(END), "unk_token": token(END)}
    marked = {name: {"__type": "AddedToken", **value} for name, value in tokens.items()}
    common = {"model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    return {
        "tokenizer_config.json": {**marked, **common, "do_lower_case": True, "errors": "replace"},
        "special_tokens_map.json": {**tokens, "pad_token": pad},
    }


NUMBERED = {
    "0": token("!", normalized=False, special=True),
    "49406": token(START, special=True),
    "49407": token(END, normalized=False, special=True),
}
FOLDERS = {
    "bare": {},
    "sd1": config(END),
    "sd2": config("!"),
    "numbered": {"tokenizer_config.json": {**config("!")["tokenizer_config.json"], "added_tokens_decoder": NUMBERED}},
    "added": {**config(END), "added_tokens.json": {"<chip>": 49408, "Zebra crossing": 49409}},
}
TEXTS = [
    "",
    " ",
    "A photo of a farm, 3 barns & 12 silos (red) in 2024.",
    "  many   spaces\tand\nlines\r\n\u00a0and\u3000wide ones ",
    "don't it's we'll I'm you're they've he'd 'S 'T rock'n'roll",
    "Hello! wow !! a!b !",
    "UPPER Lower İstanbul STRASSE straße ΣΑΣ ΟΔΟΣ Ǆ ﬁ",
    "cafe\u0301 café naïve ångström \u212b e\u0323\u0302",
    "日本の衛星写真、東京湾。 위성 이미지 спутник الصورة תמונה ภาพ",
    "🛰️ 👩‍🌾 🇳🇱 emoji ♥ ½ ² ٣ ५ Ⅳ ①",
    "zero\u200bwidth \ufeffbom \u00adsoft \u202eright\u202c joined\u2060word",
    "control\x01\x02\x1b[31mred\x7f",
    "<|startoftext|> x <|endoftext|> y <|ENDOFTEXT|> <|Start oftext|>",
    "a <chip> of <CHIP> zebra crossing Zebra Crossings",
    "https://example.org/a_b?c=d&e=%20f#g --flag=1.5e-3 [x](y) {z} \\n $5 50% #1 @me ~^`",
    "____ ---- ==== .... ,,,, ;;;; !!!!",
    "a" * 200,
    "supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopic",
    " ".join(f"field {i}," for i in range(60)),
    " ".join(["river"] * 75),
    " ".join(["river"] * 76) + " Bank!",
    "\U0010fffd\ue000\ufffe private",
]


def folder(root, files):
    """A folder of vocab.json, merges.txt and `files`."""
    model = json.loads(VOCABULARY.read_text(encoding="utf-8"))["model"]
    root.mkdir()
    (root / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(m if isinstance(m, str) else " ".join(m) for m in model["merges"])
    (root / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    for name, content in files.items():
        (root / name).write_text(json.dumps(content), encoding="utf-8")
    return root


def encode(tokenizer, text):
    """Ids and removed text, as StableDiffusionPipeline.encode_prompt computes them."""
    ids = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
    whole = tokenizer(text).input_ids
    removed = tokenizer.decode(whole[76:-1]) if len(whole) > 77 else None
    return {"text": text, "ids": ids, "removed": removed}


def short(tokenizer, text):
    return {"text": text, "ids": tokenizer(text, max_length=77, truncation=True).input_ids}


def main(paths):
    lines = [json.loads(line) for path in paths for line in open(path, encoding="utf-8")]
    captions = sorted({caption for line in lines for caption in line["captions"]})
    chosen = random.Random(2).sample(captions, CAPTIONS)
    golden = {"folders": {}}
    with tempfile.TemporaryDirectory() as root:
        for name, files in FOLDERS.items():
            tokenizer = CLIPTokenizer.from_pretrained(folder(pathlib.Path(root) / name, files))
            texts = [encode(tokenizer, text) for text in TEXTS]
            golden["folders"][name] = {"files": files, "texts": texts}
            if name == "sd1":
                golden["captions"] = [short(tokenizer, caption) for caption in chosen]
    text = json.dumps(golden, ensure_ascii=True, separators=(",", ":"))
    # A line an entry: a changed id then shows as a changed line.
    text = text.replace('{"text":', '\n{"text":').replace('"captions":', '\n"captions":')
    (HERE / "tokenizer.json").write_text(text + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
