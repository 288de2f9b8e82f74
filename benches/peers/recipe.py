"""One update of `--recipe rsicd-sd15` by nadir and by PyTorch, one after the other, on a model of Stable Diffusion 1.5's
shape: loss and length of the gradient within 1e-4 of each other, nadir's memory at most 1.1 times PyTorch's.

Weights, gradients, moments and average in f32 alone are 17 GB.

    python benches/peers/make_sd15_folder.py MODEL
    python benches/peers/recipe.py MODEL
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy
from PIL import Image

HERE = pathlib.Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--binary", type=pathlib.Path, help="the example recipe_update, where it is built already")
    options = parser.parse_args()
    build = ["cargo", "run", "--quiet", "--release", "--example", "recipe_update", "--"]
    engines = [[options.binary.resolve()] if options.binary else build, [sys.executable, HERE / "torch_recipe.py"]]
    found = []
    with tempfile.TemporaryDirectory() as folder:
        pixels = numpy.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC).save(f"{folder}/0.png")
        line = {"file_name": "0.png", "text": "a satellite image of a crop field"}
        pathlib.Path(folder, "metadata.jsonl").write_text(json.dumps(line) + "\n")
        for engine in engines:
            command = [*engine, options.model.resolve(), folder, "--threads", str(options.threads)]
            out = subprocess.run(command, cwd=HERE.parents[1], check=True, stdout=subprocess.PIPE, text=True).stdout
            found.append(json.loads(out.splitlines()[-1]))
            print(found[-1], flush=True)
    ours, theirs = found
    errors = {name: abs(ours[name] / theirs[name] - 1) for name in ["loss", "norm"]}
    memory = ours["peak_kb"] / theirs["peak_kb"]
    print(f"off by {errors['loss']:.1e} (loss) and {errors['norm']:.1e} (gradient); {memory:.2f} times the memory")
    # Written so that what is no number fails.
    if not (max(errors.values()) <= 1e-4 and memory <= 1.1):
        sys.exit(1)


if __name__ == "__main__":
    main()
