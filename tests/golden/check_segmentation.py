"""Loads a folder that nadir exported by segmentation-models-pytorch's `from_pretrained`, and writes what it makes of an image that
both sides draw. Called by `tests/segmentation.rs`, where the library is there.

    python check_segmentation.py FOLDER LOGITS.safetensors
"""

import math
import sys
import zlib

import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

folder, found = sys.argv[1:]
model = smp.from_pretrained(folder, strict=True).eval()
shape = [1, 4, 33, 47]
generator = torch.Generator().manual_seed(zlib.crc32(b"images"))
words = torch.randint(0, 1 << 24, (math.prod(shape),), generator=generator)
images = ((words.double() / (1 << 23) - 1) * math.sqrt(6 / math.prod(shape[1:]))).float().reshape(shape)
with torch.no_grad():
    logits = model(images)
save_file({"logits": logits.permute(0, 2, 3, 1).contiguous()}, found)
