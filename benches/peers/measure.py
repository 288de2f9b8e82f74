"""What the peers' measurements share: arguments, inputs, clocks and the JSON line they print."""

import argparse
import json
import pathlib
import resource
import time

import torch
from safetensors.torch import load_file, save_file

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--inputs", type=pathlib.Path, required=True, help="written by compare.py")
    parser.add_argument("--output", type=pathlib.Path, help="predicted noise and decoded image, as safetensors")
    parser.add_argument("--dtype", choices=DTYPES, default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3, help="timed calls of each; 0 times loading alone")
    parser.add_argument("--decode", action="store_true", help="time the decoder too")
    return parser.parse_args()


def write_inputs(path, size):
    """latents [2, 4, h, w], twice the same as guidance has it; text [2, 77, 768]; timestep [1]."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, size // 8, size // 8, generator=generator).repeat(2, 1, 1, 1)
    text = torch.randn(2, 77, 768, generator=generator)
    save_file({"latents": latents, "text": text, "timestep": torch.tensor([501.0])}, path)


def read_inputs(path):
    tensors = load_file(path)
    return tensors["latents"], tensors["text"], tensors["timestep"]


def clock(call, repeat):
    """Seconds of each call, and the last one's value."""
    seconds, value = [], None
    for _ in range(repeat):
        start = time.perf_counter()
        value = call()
        seconds.append(round(time.perf_counter() - start, 3))
    return seconds, value


def report(engine, options, load, step, decode, noise, image):
    if options.output:
        tensors = {"noise": noise, "image": image}
        save_file({k: v.float().contiguous() for k, v in tensors.items() if v is not None}, options.output)
    line = {
        "engine": engine,
        "dtype": options.dtype,
        "threads": options.threads,
        "load_s": round(load, 3),
        "step_s": step,
        "decode_s": decode,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    print(json.dumps(line))
