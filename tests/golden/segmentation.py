"""Golden logits, gradients and losses of segmentation-models-pytorch.

Writes `segmentation/NAME/`: `config.json` as `save_pretrained` writes it, `weights.json` (the name and shape of every tensor
that goes with it) and `golden.safetensors`: logits [B, H, W, classes]; of some models the loss and two gradients of a step of
training without dropout, in f64. No weights or images are kept: both sides draw each, bit for bit, from its name (`draw`).
And `segmentation/losses.safetensors`: logits, masks and what the library's losses make of them.

    python tests/golden/segmentation.py
"""

import json
import math
import tempfile
import zlib
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from common import HERE, nhwc, save_json, save_tensors

FOLDER = HERE / "segmentation"
IGNORED = 255


def uniform(name, count):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    words = torch.randint(0, 1 << 24, (count,), generator=generator)
    return words.double() / (1 << 23) - 1  # [-1, 1)


def draw(name, shape):
    """Uniform values from the words of torch's generator, the same bits wherever they are drawn."""
    values = uniform(name, math.prod(shape))
    if len(shape) == 1:
        values = 1 + 0.3 * values if name.endswith(("weight", "running_var")) else 0.2 * values
    else:
        values = values * math.sqrt(6 / math.prod(shape[1:]))
    return values.float().reshape(shape)


def mask(shape, classes):
    """Classes, and a fifth of them ignored."""
    values = ((uniform("mask", math.prod(shape)) + 1) / 2 * (classes * 1.25)).long()
    return torch.where(values >= classes, IGNORED, values).reshape(shape)


def write(name, model, size, classes, bands, training=False):
    model = model.eval()
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        save_json(folder / "config.json", json.loads((Path(saved) / "config.json").read_text()))
    weights = {k: list(v.shape) for k, v in model.state_dict().items() if v.is_floating_point()}
    for key, value in model.state_dict().items():
        if key in weights:
            value.copy_(draw(key, weights[key]))
    (folder / "weights.json").write_text(json.dumps(weights) + "\n")

    images = draw("images", [2, bands, *size])
    tensors = {"logits": nhwc(model(images))}
    if training:
        model = model.double().train()
        for layer in model.modules():
            if isinstance(layer, (torch.nn.Dropout, torch.nn.Dropout2d)):
                layer.p = 0.0
        with torch.enable_grad():
            logits = model(images.double())
            loss = torch.nn.functional.cross_entropy(logits, mask([2, *size], classes), ignore_index=IGNORED)
            loss.backward()
        gradients = dict(model.named_parameters())
        tensors["training.loss"] = loss.detach()
        for key in ("encoder.conv1.weight", "segmentation_head.0.weight"):
            tensors[f"gradient.{key}"] = gradients[key].grad
    logits = tensors["logits"]
    print(name, sum(math.prod(s) for s in weights.values()), "weights, logits", logits.shape, logits.abs().max().item())
    save_tensors(folder / "golden.safetensors", tensors)


def losses():
    logits = 3 * draw("logits", [2, 3, 5, 7])
    masks = mask([2, 5, 7], 3)
    whole = torch.where(masks == IGNORED, 0, masks)
    missing = torch.where(masks == 1, 0, masks)  # no pixel of class 1
    tensors = {"logits": nhwc(logits), "mask": masks, "whole": whole, "missing": missing}
    for kind, target in (("mask", masks), ("whole", whole), ("missing", missing)):
        ignored = None if kind == "whole" else IGNORED
        found = {
            "dice": smp.losses.DiceLoss("multiclass", ignore_index=ignored),
            "dice_smooth": smp.losses.DiceLoss("multiclass", ignore_index=ignored, smooth=1.0),
            "focal": smp.losses.FocalLoss("multiclass", ignore_index=ignored),
            "focal_balanced": smp.losses.FocalLoss("multiclass", ignore_index=ignored, alpha=0.25, gamma=1.5),
        }
        for loss, function in found.items():
            with torch.enable_grad():
                of = logits.double().requires_grad_()
                value = function(of, target)
                value.backward()
            tensors[f"{loss}.{kind}"] = value.detach()
            tensors[f"{loss}.{kind}.gradient"] = nhwc(of.grad)
    save_tensors(FOLDER / "losses.safetensors", tensors)


none = {"encoder_weights": None}
write("unet_resnet18", smp.Unet("resnet18", **none, in_channels=4, classes=3), (33, 47), 3, 4, training=True)
write(
    "unet_resnet34",
    smp.Unet("resnet34", **none, encoder_depth=3, decoder_channels=(32, 16, 8), classes=2),
    (20, 36), 2, 3,
)
write(
    "unet_resnet50",
    smp.Unet("resnet50", **none, encoder_depth=4, decoder_channels=(32, 24, 16, 8), classes=2),
    (40, 24), 2, 3,
)
write("deeplab_resnet34", smp.DeepLabV3Plus("resnet34", **none, in_channels=4, classes=3), (48, 80), 3, 4, training=True)
write(
    "deeplab_resnet50",
    smp.DeepLabV3Plus(
        "resnet50", **none, encoder_output_stride=8, decoder_channels=32, decoder_aspp_separable=False,
        decoder_atrous_rates=(2, 4, 6),
    ),
    (40, 24), 1, 3,
)
write("fpn_resnet18", smp.FPN("resnet18", **none, in_channels=4, classes=3), (64, 32), 3, 4, training=True)
write("fpn_resnet34", smp.FPN("resnet34", **none, decoder_merge_policy="cat", classes=2), (32, 64), 2, 3)
losses()
