"""What the golden generators share: drawn weights, component folders, tensor files."""

import json
import math
import pathlib
import zlib

import diffusers
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE / "models"
PIPELINES = HERE / "pipelines"
ROOT = HERE.parents[1]

# One thread: torch's summation order, and so the last bits written here, follow the thread count.
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def draw(name, shape, bias=0.2, largest=lambda inputs: math.sqrt(3 / inputs)):
    """The weight `name`: uniform values from the words of torch's generator, the same bits wherever they are drawn.

    Every one matters: weights of norms lie around 1, other vectors within `bias`, matrices and convolutions within `largest` of
    the number of their inputs, by default so that outputs are about as large as inputs.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    words = torch.randint(0, 1 << 24, (math.prod(shape),), generator=generator)
    uniform = words.double() / (1 << 23) - 1  # [-1, 1)
    if len(shape) == 1:
        values = 1 + 0.3 * uniform if name.endswith("weight") else bias * uniform
    else:
        values = largest(math.prod(shape[1:])) * uniform
    return values.float().reshape(shape)


def fill(model, half=False):
    """Draws every weight of `model`; with `half` those of an f16 file, kept in f32: what a reader of the file finds."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            drawn = draw(name, value.shape)
            value.copy_(drawn.half() if half else drawn)
    return model.eval()


def save_shapes(model, folder):
    """Writes `weights.json`, the name and shape of every weight: what tests draw them by."""
    weights = {name: list(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in weights.items())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.json").write_text("{" + lines + "}\n")


def drawn(model, folder, class_name=None, **more):
    """Draws the weights of `model`, of diffusers, and writes what says so; `more` are fields of the configuration."""
    fill(model)
    save_shapes(model, folder)
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    config = {"_class_name": class_name or type(model).__name__, "_diffusers_version": diffusers.__version__} | config
    save_json(folder / "config.json", config | more)
    return model


def save_component(model, name):
    """Draws the weights of the component `models/NAME`, which are f16 in its file, and writes what says so."""
    folder = MODELS / name
    fill(model, half=True)
    save_shapes(model, folder)
    if hasattr(model, "save_config"):
        model.save_config(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = "float16"
        model.config.save_pretrained(folder)
    return model


def component(kind, name, dtype=torch.float32):
    """The component `models/NAME`, which `models.py` has written, of the class `kind`."""
    folder = MODELS / name
    if issubclass(kind, diffusers.ModelMixin):
        model = kind.from_config(kind.load_config(folder))
    else:
        model = kind(kind.config_class.from_pretrained(folder))
    model = fill(model, half=True)
    return model if dtype == torch.float32 else model.to(dtype)


def save_tensors(path, tensors):
    """Writes activations: floating point as f32, anything else as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
    for name, tensor in tensors.items():
        assert torch.isfinite(tensor.float()).all(), f"{path.name}: {name} is not finite"
    save_file(tensors, path)


def save_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")


def nhwc(tensor):
    """[B, C, H, W] -> [B, H, W, C], the layout the goldens hold images in."""
    return tensor.permute(0, 2, 3, 1).contiguous()
