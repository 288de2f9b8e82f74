"""Golden activations of ResNet-18 and ResNet-50, narrow, in use and in training.

Writes `models/resnet18/` and `models/resnet50/`: `config.json` (ours: torchvision has none), f16 safetensors under
torchvision's names, and `golden.safetensors`: a batch, its logits and features, for training the loss, gradients and
running statistics after one step forward, computed in f64, and the losses of twenty steps, in bf16 by autocast too.
`training.rounding` is how far PyTorch's own f32 is from those in f64, at most, relative to the largest value of a tensor.
Images are [B, H, W, C].

    python tests/golden/resnet.py
"""

import torch
from common import MODELS, nhwc, save_json, save_tensors
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

CLASSES = 10


def narrow(block, layers, width):
    """torchvision's network with another width of its first stage, which its constructor fixes at 64."""
    model = ResNet.__new__(ResNet)
    nn.Module.__init__(model)
    model._norm_layer, model.inplanes, model.dilation = nn.BatchNorm2d, width, 1
    model.groups, model.base_width = 1, 64
    model.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.relu = nn.ReLU(inplace=True)
    model.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
    for number, count in enumerate(layers):
        stage = model._make_layer(block, width << number, count, stride=1 if number == 0 else 2)
        setattr(model, f"layer{number + 1}", stage)
    model.avgpool = nn.AdaptiveAvgPool2d(1)
    model.fc = nn.Linear(8 * width * block.expansion, CLASSES)
    return model


def randomize(model, seed):
    """Gives every parameter and running statistic a value that matters, rounded to f16, the dtype of the file, and kept in f32."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            new = 1 + 0.5 * noise.abs()
        elif value.ndim == 1:
            new = 1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise
        else:
            new = noise * (2 / value[0].numel()) ** 0.5
        value.copy_(new.half().float())
    return model


def losses(model, in_bf16=False):
    """Of twenty steps of AdamW; the batches are drawn on both sides."""
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=1e-3, weight_decay=1e-2)
    generator = torch.Generator().manual_seed(71)
    found = []
    for step in range(20):
        images = torch.randn(8, 3, 32, 32, generator=generator)
        targets = (3 * torch.arange(8) + step) % CLASSES
        with torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
                loss = cross_entropy(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def train(model, images, targets):
    """One pass forward and back in training: logits, loss, gradients, running statistics."""
    with torch.enable_grad():
        logits = model.train()(images)
        loss = cross_entropy(logits, targets, label_smoothing=0.1)
        loss.backward()
    tensors = {"training.logits": logits.detach(), "training.loss": loss.detach()}
    tensors |= {f"gradient.{key}": parameter.grad for key, parameter in model.named_parameters()}
    return tensors | {f"buffer.{key}": value for key, value in model.named_buffers()}


def is_kept(key):
    """Whether the golden file holds a tensor of `train`: one of each kind, at both ends of the network."""
    kind, _, name = key.partition(".")
    if kind == "buffer":
        return name.startswith(("bn1.", "layer4.1."))
    return kind == "training" or name.startswith(("conv1", "bn1", "fc")) or "downsample" in name or "layer4.0.bn" in name


def write(name, seed, block, layers, width):
    model = randomize(narrow(block, layers, width), seed).eval()
    folder = MODELS / name
    config = {"_class_name": "ResNet", "layers": layers, "bottleneck": block is Bottleneck}
    save_json(folder / "config.json", config | {"base_width": width, "num_classes": CLASSES})
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    weights = {k: v.long() if k.endswith("num_batches_tracked") else v for k, v in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    generator = torch.Generator().manual_seed(seed + 1)
    images = torch.randn(3, 3, 64, 48, generator=generator)
    targets = torch.tensor([3, 0, 9])
    seen = {}
    model.avgpool.register_forward_hook(lambda _, __, out: seen.update(features=out.flatten(1).clone()))
    tensors = {"images": nhwc(images), "targets": targets, "logits": model(images)}
    tensors["features"] = seen["features"]
    exact = train(randomize(narrow(block, layers, width), seed).double(), images.double(), targets)
    rounding = max(
        (value - exact[key]).abs().max() / exact[key].abs().max()
        for key, value in train(model, images, targets).items()
        if value.is_floating_point()
    )
    tensors |= {key: value for key, value in exact.items() if is_kept(key)}
    tensors["training.rounding"] = rounding
    tensors["steps.losses"] = torch.tensor(losses(randomize(narrow(block, layers, width), seed)))
    tensors["steps.losses.bfloat16"] = torch.tensor(losses(randomize(narrow(block, layers, width), seed), True))
    print(name, sum(v.numel() for v in weights.values()), "weights, loss", exact["training.loss"].item(), "rounding", rounding.item())
    save_tensors(folder / "golden.safetensors", tensors)


write("resnet18", 60, BasicBlock, [2, 2, 2, 2], width=4)
write("resnet50", 62, Bottleneck, [3, 4, 6, 3], width=4)
