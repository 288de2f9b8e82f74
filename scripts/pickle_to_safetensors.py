"""Writes the tensors of a PyTorch pickle (.ckpt, .pt, .pth, .bin) as safetensors, under the same names.

    python pickle_to_safetensors.py IN OUT.safetensors

Needs torch and safetensors. Nothing in the file is run: it is read with weights_only=True, and what is neither a tensor nor
plain data, such as the callbacks that PyTorch Lightning keeps beside the weights, becomes an empty object.
"""

import sys

import torch
from safetensors.torch import save_file


def load(path):
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:  # a bare pickle, as before PyTorch 1.6
        named = []
    # A class of its own for each name: none of them does anything.
    nothing = {"__init__": lambda self, *_: None, "__setstate__": lambda self, _: None}
    empty = [(type(name.rsplit(".", 1)[-1], (), nothing), name) for name in named]
    with torch.serialization.safe_globals(empty):
        return torch.load(path, map_location="cpu", weights_only=True)


def tensors_of(state):
    state = state.get("state_dict", state)
    found = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not found:
        sys.exit(f"no tensors at the top of this file, but {', '.join(map(str, list(state)[:8]))}")
    # safetensors holds each tensor once; clones share nothing.
    return {name: value.clone().contiguous() for name, value in found.items()}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    save_file(tensors_of(load(sys.argv[1])), sys.argv[2], metadata={"format": "pt"})
