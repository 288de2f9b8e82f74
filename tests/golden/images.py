"""Golden pictures of diffusers' VaeImageProcessor: resizing (Pillow's Lanczos), scaling, masks.

Writes `images.safetensors`: a picture and a mask, u8 [H, W, 3], and for several sizes `image.HxW`, f32
[1, H, W, 3] in [-1, 1], and `mask.HxW`, f32 [1, H, W, 1], 0 or 1; `decoded`, f32 [1, H, W, 3], and the `u8`
picture made of it.

    python tests/golden/images.py
"""

import numpy
import torch
from common import HERE, nhwc
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from safetensors.torch import save_file

# As is; larger; smaller; one side each way; one side kept; very much smaller.
SIZES = [(47, 33), (96, 80), (24, 16), (64, 16), (47, 64), (32, 33), (8, 8)]


def main():
    random = numpy.random.default_rng(7)
    y, x = numpy.mgrid[0:47, 0:33]
    smooth = numpy.stack([x * 7.7, y * 5.4, 127 + 127 * numpy.sin(x * y / 40)], axis=-1)
    # Noise in one half and hard edges in the other: there, Lanczos overshoots and is clipped.
    noise = random.integers(0, 256, (47, 33, 3))
    edges = 255 * ((x // 5 + y // 3) % 2)[..., None]
    picture = numpy.where((y < 16)[..., None], noise, numpy.where((x < 16)[..., None], edges, smooth))
    picture = picture.astype(numpy.uint8)
    mask = numpy.where(((x - 16) ** 2 + (y - 20) ** 2 < 150)[..., None], (250, 255, 90), (5, 0, 127)).astype(numpy.uint8)
    mask[:6] = random.integers(100, 156, (6, 33, 3))

    image_processor = VaeImageProcessor(vae_scale_factor=1)
    mask_processor = VaeImageProcessor(
        vae_scale_factor=1, do_normalize=False, do_binarize=True, do_convert_grayscale=True
    )
    tensors = {"picture": torch.from_numpy(picture), "mask": torch.from_numpy(mask)}
    for h, w in SIZES:
        tensors[f"image.{h}x{w}"] = nhwc(image_processor.preprocess(Image.fromarray(picture), h, w))
        tensors[f"mask.{h}x{w}"] = nhwc(mask_processor.preprocess(Image.fromarray(mask), h, w))

    decoded = torch.randn(1, 3, 9, 7, generator=torch.Generator().manual_seed(3))
    tensors["decoded"] = nhwc(decoded)
    tensors["u8"] = torch.from_numpy(numpy.array(image_processor.postprocess(decoded)[0]))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, HERE / "images.safetensors")


if __name__ == "__main__":
    main()
