"""Writes noise.safetensors: words and normals of torch's CPU generator.

    python tests/golden/noise.py            (torch 2.15, x86 with AVX2)

Tensors:
    words/SEED        [700] i64    first 1400 words, more than two states of the twister, two a value, the high one first
    f32/SEED          [sum(SIZES)] draws of SIZES one after another from one generator
    bf16/SEED, f16/SEED            the same in 16 bits, widened to f32
    sizes             [n] i64
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

SEEDS = [0, 42, 2**32 + 5, 2**63, 2**64 - 1]
# Below one block of 16 (twice in a row: the cached half pair), at it, above it, with tails; and again below it after
# the block path, which must leave the cache alone.
SIZES = [1, 7, 15, 16, 17, 3, 100, 4 * 9 * 9, 1, 2, 31, 2048]

torch.set_num_threads(1)
assert torch.backends.cpu.get_cpu_capability() == "AVX2", "the f32 normals are those of torch's AVX2 path"


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


tensors = {"sizes": torch.tensor(SIZES)}
for seed in SEEDS:
    # Over the whole range of i64 random_ gives the bits of two words as they come.
    words = torch.empty(700, dtype=torch.int64)
    tensors[f"words/{seed}"] = words.random_(-(2**63), None, generator=generator(seed))
    for name, dtype in [("f32", torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)]:
        g = generator(seed)
        draws = [torch.randn(n, generator=g, dtype=dtype).float() for n in SIZES]
        tensors[f"{name}/{seed}"] = torch.cat(draws)

save_file(tensors, Path(__file__).with_name("noise.safetensors"))
