"""Writes a random model of Stable Diffusion 1.5's shape: a diffusers folder, f16, about 2.1 GB.

    python benches/peers/make_sd15_folder.py FOLDER [--tokenizer TOKENIZER_FOLDER]

Speed and memory do not depend on what the weights say, only on their shapes, so no download is
needed. Values keep activations of order one (normal, variance 1 / fan-in). Tensors are drawn and
written one by one: the script needs a few hundred MB of memory, not the model's size.
"""

import argparse
import json
import math
import pathlib
import shutil
import struct

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

ROOT = pathlib.Path(__file__).resolve().parents[2]


def components():
    """The three networks of SD 1.5 without storage behind their weights."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        vae = AutoencoderKL(
            sample_size=512,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                architectures=["CLIPTextModel"],
            )
        )
    return {"unet": unet, "vae": vae, "text_encoder": text_encoder}


def draw(name, shape, generator):
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise
    if "embedding" in name and "time" not in name:
        return 0.02 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def write_safetensors(path, shapes, generator):
    """The format by hand, since the library wants every tensor in memory at once."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        end = offset + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    header = json.dumps(header).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, shape in shapes.items():
            file.write(draw(name, shape, generator).half().numpy().tobytes())
    return offset


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, default=ROOT / "tests/golden/pipelines/tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    generator = torch.Generator().manual_seed(arguments.seed)
    total = 0
    for name, model in components().items():
        folder = arguments.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if name == "text_encoder":
            model.config.save_pretrained(folder)
            file = "model.safetensors"
        else:
            model.save_config(folder)
            file = "diffusion_pytorch_model.safetensors"
        shapes = {key: tuple(value.shape) for key, value in model.state_dict().items() if value.is_floating_point()}
        total += write_safetensors(folder / file, shapes, generator)

    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    ).save_config(arguments.folder / "scheduler")
    shutil.copytree(arguments.tokenizer, arguments.folder / "tokenizer", dirs_exist_ok=True)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (arguments.folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    print(f"{arguments.folder}: {total / 1e9:.2f} GB of weights")


if __name__ == "__main__":
    main()
