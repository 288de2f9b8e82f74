"""The UNet of Stable Diffusion XL's shape, nadir beside PyTorch: one prediction in f32, one engine after the other.

    cargo build --release --example sdxl_step
    python benches/peers/sdxl.py --side 64

Weights are made while each engine is loaded, the same on both sides, so that nothing is stored. PyTorch computes the
embeddings, the keys and values of the text and the prediction with each call; nadir the text's once a picture, which it times
by itself. Prints a JSON line of each, the ratios of a picture's first prediction and of those behind it, and the largest
difference of their predictions.
"""

import argparse
import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
import zlib

import numpy
import torch
from diffusers import UNet2DConditionModel
from measure import clock
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "target/release/examples/sdxl_step"
BLOCK = 1_000_003


def block():
    """As `examples/sdxl_step.rs`: a mixed counter, from -1 to 1."""
    x = numpy.arange(BLOCK, dtype=numpy.uint32)
    x = (x ^ (x >> 16)) * numpy.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * numpy.uint32(0x846CA68B)
    x ^= x >> 16
    return (x >> 8).astype(numpy.float32) / numpy.float32(1 << 23) - numpy.float32(1)


VALUES = torch.from_numpy(block())


def draw(name, shape):
    count = math.prod(shape)
    values = VALUES.roll(-(zlib.crc32(name.encode()) % BLOCK)).repeat(-(-count // BLOCK))[:count]
    if len(shape) == 1:
        values = 1 + numpy.float32(0.3) * values if name.endswith("weight") else numpy.float32(0.2) * values
    else:
        values = float(numpy.float32(math.sqrt(3 / math.prod(shape[1:])))) * values
    return values.reshape(shape)


def predict(options):
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    start = time.perf_counter()
    config = json.loads((HERE / "sdxl_unet.json").read_text())
    with torch.device("meta"):
        unet = UNet2DConditionModel(**{k: v for k, v in config.items() if not k.startswith("_")})
    unet = unet.to_empty(device="cpu").eval()
    for name, parameter in unet.named_parameters():
        parameter.copy_(draw(name, parameter.shape))
    load = time.perf_counter() - start
    # Matrices' numbers reach 1.7 by the number of their inputs.
    sample, text = draw("sample", (1, 4, options.side, options.side)), draw("text", (77, 2048))[None]
    sample, text = sample * math.sqrt(4 * options.side**2), text * math.sqrt(2048)
    sizes = torch.tensor([[8.0 * options.side, 8.0 * options.side, 0, 0, 8.0 * options.side, 8.0 * options.side]])
    added = {"text_embeds": draw("pooled", (1, 1280)) * math.sqrt(1280), "time_ids": sizes}
    timestep = torch.tensor([501.0])
    call = lambda: unet(sample, timestep, text, added_cond_kwargs=added).sample
    step, noise = clock(call, options.repeat)
    save_file({"noise": noise.contiguous()}, options.output)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    engine = f"torch {torch.__version__}"
    print(json.dumps({"engine": engine, "load_s": round(load, 1), "step_s": step, "peak_rss_bytes": memory}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=64, help="latents along a side: 128 for 1024 pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=2, help="timed calls of each")
    parser.add_argument("--torch", action="store_true", help="PyTorch alone, which writes its prediction to --output")
    parser.add_argument("--output", type=pathlib.Path)
    parser.add_argument("--example", type=pathlib.Path, default=EXAMPLE, help="nadir's side")
    options = parser.parse_args()
    if options.torch:
        predict(options)
        return
    arguments = [f"--side={options.side}", f"--threads={options.threads}", f"--repeat={options.repeat}"]
    best, noise, context = {}, {}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, command in [("nadir", [options.example]), ("torch", [sys.executable, __file__, "--torch"])]:
            output = pathlib.Path(folder) / f"{name}.safetensors"
            line = [*command, *arguments, "--output", output]
            done = subprocess.run(list(map(str, line)), stdout=subprocess.PIPE, text=True, check=True)
            print(done.stdout.strip(), flush=True)
            times = json.loads(done.stdout.splitlines()[-1])
            best[name] = min(times["step_s"])
            context += min(times.get("context_s", [0.0]))
            noise[name] = load_file(output)["noise"]
    difference = ((noise["nadir"] - noise["torch"]).abs().max() / noise["torch"].abs().max()).item()
    first, later = (best["nadir"] + context) / best["torch"], best["nadir"] / best["torch"]
    print(f"nadir / torch: {first:.3f} first, {later:.3f} later; largest difference {difference:.1e} of the largest value")
    assert difference < 1e-3, "the predictions differ"


if __name__ == "__main__":
    main()
