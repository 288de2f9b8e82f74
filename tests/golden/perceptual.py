"""What torch-fidelity's InceptionV3 and the lpips package see in pictures, with weights that are drawn.

Writes `perceptual/golden.safetensors`. No weights are kept: both sides draw each of them, bit for bit, from its name
(`draw`); `perceptual/weights.json` has names and shapes. References compute in f64. Resized pictures are kept at every
37th row and 23rd column alone.

    python tests/golden/perceptual.py
"""

import json
import math
import zlib

import lpips
import numpy as np
import torch
import torchvision
from cleanfid.resize import build_resizer
from common import HERE, nhwc, save_tensors
from torch_fidelity import feature_extractor_inceptionv3 as inception
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

FOLDER = HERE / "perceptual"
SHAPES = {}


def draw(name, shape):
    """Uniform values from the words of torch's generator, the same bits wherever they are drawn."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    words = torch.randint(0, 1 << 24, (math.prod(shape),), generator=generator)
    uniform = words.double() / (1 << 23) - 1  # [-1, 1)
    if name.endswith("running_var"):
        values = 1.25 + 0.75 * uniform
    elif name.startswith("lin"):
        values = 0.5 * (uniform + 1)
    elif len(shape) == 1:
        values = 1 + 0.3 * uniform if name.endswith("weight") else 0.1 * uniform
    else:
        values = uniform * math.sqrt(6 / math.prod(shape[1:]))
    return values.float().reshape(shape)


def drawn(kind, state):
    state = {k: v for k, v in state.items() if v.is_floating_point()}
    SHAPES[kind] = {k: list(v.shape) for k, v in state.items()}
    return {k: draw(k, v.shape) for k, v in state.items()}


def chips(generator):
    """Levels [3, H, W] of two sizes: smooth with some noise."""
    found = []
    for height, width in ((64, 64), (64, 64), (47, 350)):
        small = torch.rand(1, 3, 6, 7, generator=generator)
        smooth = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")[0]
        noisy = smooth + 0.05 * torch.randn(3, height, width, generator=generator)
        found.append((255 * noisy.clamp(0, 1)).round().byte())
    return found


def extractor():
    kind = inception.FeatureExtractorInceptionV3
    load, kind.load_state_dict = kind.load_state_dict, lambda self, _: None
    torch_load, torch.load = torch.load, lambda *_, **__: None
    model = kind("drawn", ["2048", "logits_unbiased"], "drawn")
    kind.load_state_dict, torch.load = load, torch_load
    model.load_state_dict(drawn("inception", model.state_dict()), strict=False)
    # Asked for "float64", torch-fidelity 0.4.0 takes f32.
    model.feature_extractor_internal_dtype = torch.float64
    return model.double()


def through(model, levels):
    """Features and logits of levels [B, 3, 299, 299] that are resized already."""
    original = inception.interpolate_bilinear_2d_like_tensorflow1x
    inception.interpolate_bilinear_2d_like_tensorflow1x = lambda x, **_: levels.double()
    found = model(torch.zeros(len(levels), 3, 1, 1, dtype=torch.uint8))
    inception.interpolate_bilinear_2d_like_tensorflow1x = original
    return found


generator = torch.Generator().manual_seed(90)
pictures = chips(generator)
tensors = {f"picture.{i}": picture.permute(1, 2, 0) for i, picture in enumerate(pictures)}
model = extractor()
features, logits = zip(*(model(picture[None]) for picture in pictures))
tensors |= {"tensorflow.features": torch.cat(features), "tensorflow.logits": torch.cat(logits)}
resize = build_resizer("clean")
clean = [torch.from_numpy(resize(x.permute(1, 2, 0).numpy())).permute(2, 0, 1)[None] for x in pictures]
tensors["clean.features"] = torch.cat([through(model, x)[0] for x in clean])
tensors["clean.resized"] = nhwc(torch.cat(clean))[:, ::37, ::23]
tf = [interpolate_bilinear_2d_like_tensorflow1x(x[None].float(), (299, 299), align_corners=False) for x in pictures]
tensors["tensorflow.resized"] = nhwc(torch.cat(tf))[:, ::37, ::23]

torchvision.models.alexnet = (lambda make: lambda pretrained: make(weights=None))(torchvision.models.alexnet)
torchvision.models.vgg16 = (lambda make: lambda pretrained: make(weights=None))(torchvision.models.vgg16)
pairs = [2 * x.float() / 255 - 1 for x in pictures]
first = torch.stack(pairs[:2])
second = (first + first.flip(0)) / 2
for net in ("alex", "vgg"):
    measure = lpips.LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    state = {k: v for k, v in measure.state_dict().items() if not k.startswith(("scaling_layer", "lins."))}
    measure.load_state_dict(drawn(net, state), strict=False)
    measure = measure.double()
    tensors[net] = measure(first.double(), second.double()).flatten()

for name, value in tensors.items():
    print(name, tuple(value.shape), value.double().abs().mean().item())
FOLDER.mkdir(exist_ok=True)
(FOLDER / "weights.json").write_text(json.dumps(SHAPES, indent=0) + "\n")
save_tensors(FOLDER / "golden.safetensors", tensors)
