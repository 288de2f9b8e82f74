"""Times reading a prompt and writing an answer in PyTorch, as `nadir bench lm` does. Prints one JSON line.

    python benches/peers/torch_lm.py FOLDER --prompt 512 --tokens 64
"""

import argparse
import json
import pathlib
import statistics
import time

import torch
from measure import DTYPES
from transformers import AutoModelForCausalLM, StaticCache


def answer(model, options):
    """Seconds of the prompt, and of each token."""
    shape = (options.batch, options.prompt)
    ids = torch.arange(options.batch * options.prompt).reshape(shape) * 7919 % model.config.vocab_size
    cache = None
    if options.cache == "static":
        cache = StaticCache(model.config, max_cache_len=options.prompt + options.tokens)
    start = time.perf_counter()
    # `logits_to_keep`: the vocabulary's scores behind the last token alone, as nadir computes them.
    out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    prefill, decode = time.perf_counter() - start, []
    for _ in range(options.tokens):
        start = time.perf_counter()
        out = model(token, past_key_values=out.past_key_values, use_cache=True)
        token = out.logits[:, -1:].argmax(-1)
        decode.append(time.perf_counter() - start)
    return prefill, decode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=DTYPES[options.dtype]).eval()
    prefill, decode = [], []
    with torch.inference_mode():
        answer(model, options)
        for _ in range(options.repeat):
            first, steps = answer(model, options)
            prefill.append(first)
            decode += steps
    print(
        json.dumps(
            {
                "engine": f"torch {torch.__version__}",
                "batch": options.batch,
                "prefill_s": statistics.median(prefill),
                "decode_s": statistics.median(decode),
                "decode_tokens_per_s": options.batch / statistics.median(decode),
            }
        )
    )


if __name__ == "__main__":
    main()
