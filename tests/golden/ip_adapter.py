"""Golden tokens and pictures of IP-Adapters, as diffusers loads them.

Writes `ip_adapter/NAME/` for an adapter of each kind: `weights.json` (weights are drawn), `golden.safetensors`, what its projection
makes of nothing and of a picture, that picture, and what is drawn by it, as `pipelines.py` has it; and `ip_adapter/encoder/`, the
encoder of them all.

    python tests/golden/ip_adapter.py
"""

import tempfile

import diffusers
import numpy as np
import pipelines
import torch
from common import HERE, draw, fill, save_json, save_shapes, save_tensors
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IP = HERE / "ip_adapter"
SIDE, PATCH, WIDTH, PROJECTED = 32, 8, 24, 20
CROSS = 32


def base(cross=CROSS):
    shapes = {"image_proj.proj.weight": (4 * cross, PROJECTED), "image_proj.proj.bias": (4 * cross,)}
    return shapes | {"image_proj.norm.weight": (cross,), "image_proj.norm.bias": (cross,)}


def plus(queries=3, width=40, heads=2, depth=4):
    inner = 64 * heads
    shapes = {"latents": (1, queries, width)}
    for name, inputs, outputs in [("proj_in", WIDTH, width), ("proj_out", width, CROSS)]:
        shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
    shapes |= {"norm_out.weight": (CROSS,), "norm_out.bias": (CROSS,)}
    for i in range(depth):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            shapes |= {f"layers.{i}.{norm}.weight": (width,), f"layers.{i}.{norm}.bias": (width,)}
        shapes |= {
            f"layers.{i}.0.to_q.weight": (inner, width), f"layers.{i}.0.to_kv.weight": (2 * inner, width),
            f"layers.{i}.0.to_out.weight": (width, inner), f"layers.{i}.1.1.weight": (4 * width, width),
            f"layers.{i}.1.3.weight": (width, 4 * width),
        }  # fmt: skip
    return {f"image_proj.{name}": shape for name, shape in shapes.items()}


def encoder():
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=PATCH,
        projection_dim=PROJECTED, hidden_act="gelu",
    )  # fmt: skip
    model = fill(CLIPVisionModelWithProjection(config))
    save_shapes(model, IP / "encoder")
    model.config.architectures = ["CLIPVisionModelWithProjection"]
    model.config.save_pretrained(IP / "encoder")
    return model


def adapter(unet, shapes, cross=CROSS):
    """The file's tensors: keys and values of every cross attention, as diffusers numbers them."""
    number = 1
    for name in unet.attn_processors:
        if name.endswith("attn2.processor"):
            channels = unet.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
            shapes = shapes | {f"ip_adapter.{number}.to_{kind}_ip.weight": (channels, cross) for kind in "kv"}
            number += 2
    return {name: draw(name, shape) for name, shape in shapes.items()}


def write(name, shapes, picture, seed, scale):
    folder = IP / name
    scheduler = pipelines.SD | dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    case = pipelines.case(name, pipelines.SD1, "DDIMScheduler", scheduler, num_inference_steps=6, seed=seed)
    vision = encoder()
    kept = {}

    def change(pipeline):
        # As `clip.py` has it: Pillow's resize, not torchvision's.
        pipeline.register_modules(image_encoder=vision, feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE))
        tensors = adapter(pipeline.unet, shapes)
        lines = {key: list(value.shape) for key, value in tensors.items()}
        save_json(folder / "weights.json", lines)
        with tempfile.TemporaryDirectory() as scratch:
            save_file(tensors, f"{scratch}/adapter.safetensors")
            pipeline.load_ip_adapter(scratch, subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
        pipeline.set_ip_adapter_scale(scale)
        embeds = pipeline.prepare_ip_adapter_image_embeds(picture, None, "cpu", 1, True)
        tokens = pipeline.unet.encoder_hid_proj(embeds)[0][:, 0]
        kept.update(unseen=tokens[:1], seen=tokens[1:])
        own = pipeline.__class__.__call__
        pipeline.__class__ = type("Shown", (pipeline.__class__,), {"__call__": lambda self, **call: own(self, ip_adapter_image=picture, **call)})

    image, latents = pipelines.run(case, torch.float32, change)
    plain, _ = pipelines.run(case, torch.float32)
    print(f"{name}: image mean {image.mean():.3f} std {image.std():.3f}, without {(image - plain).std():.3f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3 and (image - plain).std() > 0.02, name
    save_tensors(folder / "golden.safetensors", {"image": image, "latents": latents, "picture": torch.from_numpy(np.array(picture))} | kept)
    pipelines.write_folder(case, folder)
    save_json(
        folder / "case.json",
        {
            "components": pipelines.SD1, "seed": seed, "num_images_per_prompt": 1, "scale": scale,
            "arguments": {"height": pipelines.HEIGHT, "width": pipelines.WIDTH} | case["call"],
        },
    )  # fmt: skip


def main():
    diffusers.logging.set_verbosity_error()
    # As `pipelines.py` has it.
    CLIPTextModel.text_model = property(lambda self: self)
    # Wider than high: the middle is seen.
    pixels = np.ascontiguousarray(pipelines.inputs()[0].transpose(1, 0, 2)[:, ::-1])
    picture = Image.fromarray(pixels)
    write("base", base(), picture, 2, 0.8)
    write("plus", plus(), picture, 3, 0.6)


if __name__ == "__main__":
    main()
