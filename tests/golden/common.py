"""What the golden generators share: random weights, component folders, tensor files."""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
MODELS = HERE / "models"
PIPELINES = HERE / "pipelines"
ROOT = HERE.parents[1]

# One thread: torch's summation order, and so the last bits written here, follow the thread count.
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def randomize(model, seed):
    """Gives every parameter a value that matters.

    Initialisers leave norms at (1, 0) and biases at 0 or nearly so, and a loader that forgets
    them would go unnoticed. Values are rounded to f16, the dtype of the file, and kept in f32:
    the reference is then computed from exactly what a reader of the file finds.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            value = 1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise
        elif "embedding" in name and "time" not in name:
            value = 0.5 * noise
        else:
            value = noise / math.sqrt(parameter[0].numel())
        parameter.copy_(value.half().float())
    return model.eval()


def save_component(model, folder):
    """Writes `config.json` and f16 safetensors as diffusers and transformers lay them out."""
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save_config"):
        model.save_config(folder)
        file = "diffusion_pytorch_model.safetensors"
    else:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = "float16"
        model.config.save_pretrained(folder)
        file = "model.safetensors"
    tensors = {k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    save_file(tensors, folder / file, metadata={"format": "pt"})


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
