"""nadir beside PyTorch and OpenVINO on one machine, in one run, as a Markdown table.

    python benches/peers/make_sd15_folder.py FOLDER
    python benches/peers/compare.py FOLDER --decode

Every engine runs in a process of its own, one after the other, `--rounds` times in turn, so that a
machine whose speed drifts drifts for all of them. The fastest time of each engine counts.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from measure import write_inputs
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENGINES = ("nadir", "torch", "openvino")


def command(engine):
    if engine == "nadir":
        return ["cargo", "run", "--quiet", "--release", "--example", "step", "--"]
    return [sys.executable, str(HERE / f"{engine}_step.py")]


def run(engine, options, inputs, output):
    line = command(engine) + [str(options.folder.resolve()), "--inputs", str(inputs), "--output", str(output)]
    line += ["--dtype", options.dtype, "--threads", str(options.threads), "--repeat", str(options.repeat)]
    line += ["--decode"] * options.decode
    done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def difference(output, reference):
    """Largest difference, as a share of the reference's largest value."""
    ours, theirs = load_file(output), load_file(reference)
    return max(((ours[k] - theirs[k]).abs().max() / theirs[k].abs().max()).item() for k in theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["nadir", "torch"])
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int, default=512, help="pixels a side")
    parser.add_argument("--repeat", type=int, default=2, help="timed calls in one process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--decode", action="store_true")
    options = parser.parse_args()
    if "nadir" in options.engines:
        subprocess.run(["cargo", "build", "--quiet", "--release", "--example", "step"], cwd=ROOT, check=True)

    best = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = pathlib.Path(folder) / "inputs.safetensors"
        write_inputs(inputs, options.size)
        outputs = {engine: pathlib.Path(folder) / f"{engine}.safetensors" for engine in options.engines}
        for _ in range(options.rounds):
            for engine in options.engines:
                line = run(engine, options, inputs, outputs[engine])
                print(json.dumps(line), file=sys.stderr, flush=True)
                seen = best.setdefault(engine, line | {"step_s": [], "decode_s": []})
                seen["load_s"] = min(seen["load_s"], line["load_s"])
                seen["peak_rss_bytes"] = max(seen["peak_rss_bytes"], line["peak_rss_bytes"])
                seen["step_s"] += line["step_s"]
                seen["decode_s"] += line["decode_s"]
        reference = "torch" if "torch" in best else options.engines[-1]
        shown = min(best[reference]["step_s"])

        print(f"{options.size}x{options.size}, {options.dtype}, {options.threads} threads\n")
        print(f"| engine | load | guidance step | / {reference} | decode | peak memory | largest difference |")
        print("|---|---|---|---|---|---|---|")
        for engine, line in best.items():
            decode = f"{min(line['decode_s']):.2f} s" if line["decode_s"] else ""
            error = "" if engine == reference else f"{difference(outputs[engine], outputs[reference]):.1e}"
            step = min(line["step_s"])
            print(
                f"| {line['engine']} | {line['load_s']:.1f} s | {step:.2f} s | {step / shown:.2f} | {decode}"
                f" | {line['peak_rss_bytes'] / 1e9:.2f} GB | {error} |"
            )


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
