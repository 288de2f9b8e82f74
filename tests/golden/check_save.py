"""Loads two folders with diffusers and asks that they are one model: equal configurations, and weights equal
bit for bit. Called by `cargo xtask golden --check` with a folder and what nadir saved of it."""

import sys

import torch
from diffusers import StableDiffusionPipeline

COMPONENTS = ("text_encoder", "unet", "vae")


def load(folder):
    return StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, torch_dtype="auto")


def main(original, *copies):
    theirs = load(original)
    for copy in copies:
        ours = load(copy)
        if dict(ours.scheduler.config) != dict(theirs.scheduler.config):
            sys.exit(f"{copy}: the scheduler's configuration differs")
        count = 0
        for name in COMPONENTS:
            a, b = getattr(theirs, name).state_dict(), getattr(ours, name).state_dict()
            if a.keys() != b.keys():
                sys.exit(f"{copy}: {name} has other weights: {sorted(a.keys() ^ b.keys())[:5]}")
            for key, tensor in a.items():
                same = tensor.dtype == b[key].dtype and tensor.shape == b[key].shape
                as_bytes = [t.contiguous().view(torch.uint8) for t in (tensor, b[key])]
                if not (same and torch.equal(*as_bytes)):
                    sys.exit(f"{copy}: {name}.{key} differs")
                count += 1
        print(f"{copy}: {count} tensors equal {original}'s bit for bit")


if __name__ == "__main__":
    main(*sys.argv[1:])
