"""Golden activations and pictures of ControlNets.

Writes `controlnet/NAME/`: for each network `config.json`, `weights.json` (weights are drawn)
and `golden.safetensors`, what diffusers' UNet (`models/unet_sd15`, for `sd21` `models/unet_sd21`) predicts with it; for each
picture `case.json`, `model_index.json`, `scheduler/` and `golden.safetensors`, as `pipelines.py` has them, of
`StableDiffusionControlNetPipeline` and those for image to image and inpainting.
And `controlnet/edges.safetensors`: edges that OpenCV's Canny finds, where cv2 is installed.

    python tests/golden/controlnet.py
"""

import diffusers
import numpy as np
import pipelines
import torch
from common import HERE, PIPELINES, component, drawn, nhwc, save_json, save_tensors
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

CONTROLNET = HERE / "controlnet"

# Half of the pictures that are followed, which are resized.
HEIGHT, WIDTH = 32, 24

SHAPE = dict(
    norm_num_groups=8, layers_per_block=2, attention_head_dim=2, cross_attention_dim=32, block_out_channels=(16, 24, 32),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    conditioning_embedding_out_channels=(8, 8, 12, 16),
)  # fmt: skip
NETS = dict(
    plain={}, bgr=dict(controlnet_conditioning_channel_order="bgr"), five=dict(conditioning_channels=5),
    pooled=dict(global_pool_conditions=True),
    sd21=dict(attention_head_dim=(2, 3, 4), use_linear_projection=True, cross_attention_dim=48, layers_per_block=1),
)  # fmt: skip


def network(name):
    return drawn(ControlNetModel(**SHAPE | NETS[name]), CONTROLNET / name)


def activations(name, model, unet):
    generator = torch.Generator().manual_seed(len(name))
    sample = torch.randn(2, 4, 5, 3, generator=generator)
    text = torch.randn(2, 77, model.config.cross_attention_dim, generator=generator)
    picture = torch.rand(2, model.config.conditioning_channels, 40, 24, generator=generator)
    timesteps = torch.tensor([981, 12])
    tensors = {"sample": nhwc(sample), "text": text, "picture": nhwc(picture), "timesteps": timesteps.float()}
    plain = unet(sample, timesteps, text).sample
    for guess in False, True:
        down, mid = model(sample, timesteps, text, picture, conditioning_scale=0.7, guess_mode=guess, return_dict=False)
        out = unet(sample, timesteps, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        assert (out - plain).abs().max() > 0.01 * plain.abs().max(), name
        tensors["guess" if guess else "out"] = nhwc(out)
    print(f"{name}: std {plain.std():.3f}, controlled {(out - plain).std():.3f}")
    save_tensors(CONTROLNET / name / "golden.safetensors", tensors)


def picture(name, nets, images, controls, guess_mode=False, init=None, mask=None, **call):
    """`controls`: (scale, start, end) of each of `nets`; `init`, `mask`: arrays to start from."""
    loaders = dict(text_encoder=CLIPTextModel, unet=UNet2DConditionModel, vae=AutoencoderKL)
    parts = {part: pipelines.SD1[part] for part in loaders}
    components = {part: component(loaders[part], parts[part]) for part in loaders}
    scheduler = diffusers.DDIMScheduler(**pipelines.SD, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    models = [network(net) for net in nets]
    kind = "" if init is None else "Img2Img" if mask is None else "Inpaint"
    pipeline = getattr(diffusers, f"StableDiffusionControlNet{kind}Pipeline")(
        **components, tokenizer=CLIPTokenizer.from_pretrained(PIPELINES / "tokenizer"), scheduler=scheduler,
        controlnet=models if len(models) > 1 else models[0], safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    call = dict(prompt=pipelines.PROMPT, negative_prompt=pipelines.NEGATIVE, guidance_scale=7.5, num_inference_steps=10) | call
    scales, starts, ends = zip(*controls)
    many = lambda values: list(values) if len(models) > 1 else values[0]  # noqa: E731
    steps = []
    given = {"control_image" if kind else "image": many(images)}
    if kind:
        given["image"] = Image.fromarray(init)
    if mask is not None:
        given["mask_image"] = Image.fromarray(mask)
    image = pipeline(
        **call, **given, height=HEIGHT, width=WIDTH, guess_mode=guess_mode,
        controlnet_conditioning_scale=many(scales), control_guidance_start=many(starts), control_guidance_end=many(ends),
        generator=torch.Generator().manual_seed(2),
        callback_on_step_end=lambda _pipeline, _step, _t, seen: steps.append(nhwc(seen["latents"]).clone()) or {},
        output_type="np",
    ).images  # fmt: skip
    image, latents = torch.from_numpy(image), torch.stack(steps)
    print(f"{name}: image mean {image.mean():.3f} std {image.std():.3f}, latents std {latents[-1].std():.2f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3, name
    folder = CONTROLNET / name
    starts_from = {part: torch.from_numpy(levels) for part, levels in (("init", init), ("mask", mask)) if levels is not None}
    save_tensors(folder / "golden.safetensors", {"image": image, "latents": latents, **starts_from})
    scheduler.save_config(folder / "scheduler")
    # The layout of GeoSynth: one network, a component of the pipeline. Several are given beside the pipeline.
    classes = dict(
        scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"], safety_checker=[None, None], feature_extractor=[None, None],
    )  # fmt: skip
    own = len(nets) == 1
    if own:
        classes["controlnet"] = ["diffusers", "ControlNetModel"]
    index = "StableDiffusionControlNetPipeline" if own else "StableDiffusionPipeline"
    save_json(folder / "model_index.json", {"_class_name": index, "_diffusers_version": diffusers.__version__, **classes})
    save_json(
        folder / "case.json",
        {
            "components": pipelines.SD1 | ({"controlnet": f"controlnet/{nets[0]}"} if own else {}), "nets": nets,
            "controls": controls, "guess_mode": guess_mode, "seed": 2, "num_images_per_prompt": 1,
            "arguments": call | dict(height=HEIGHT, width=WIDTH),
        },
    )  # fmt: skip


def edges(chip):
    try:
        import cv2
    except ImportError:
        print("no cv2: edges are left as they are")
        return
    noise = np.random.default_rng(0).integers(0, 128, chip.shape)
    chip = (chip // 2 + noise).astype(np.uint8)
    tensors = {"picture": torch.from_numpy(chip)}
    for low, high in (300, 500), (100, 200), (20, 600):
        tensors[f"{low}.{high}"] = torch.from_numpy(cv2.Canny(chip, low, high))
        print(f"edges from {low} and {high}: {(tensors[f'{low}.{high}'] > 0).float().mean():.3f} of pixels")
    save_tensors(CONTROLNET / "edges.safetensors", tensors)


def main():
    diffusers.logging.set_verbosity_error()
    # As `pipelines.py` has it.
    CLIPTextModel.text_model = property(lambda self: self)
    for name in NETS:
        unet = component(UNet2DConditionModel, "unet_sd21" if name == "sd21" else "unet_sd15")
        activations(name, network(name), unet)
    chip, mask = pipelines.inputs()
    first, second = Image.fromarray(chip), Image.fromarray(mask).convert("RGB")
    picture("one", ["plain"], [first], [(0.8, 0.2, 0.75)])
    picture("two", ["plain", "bgr"], [first, second], [(0.6, 0.0, 1.0), (0.9, 0.0, 0.5)])
    picture("guess", ["plain"], [first], [(1.0, 0.0, 1.0)], guess_mode=True, guidance_scale=4.0)
    picture("pool", ["pooled"], [second], [(1.0, 0.0, 1.0)], guidance_scale=4.0)
    small = [np.array(Image.fromarray(levels).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)) for levels in (chip, mask)]
    picture("image", ["plain"], [second], [(0.8, 0.2, 0.75)], init=small[0], strength=0.6)
    picture("paint", ["plain"], [first], [(0.8, 0.0, 1.0)], init=small[0], mask=small[1], strength=0.75)
    edges(chip)


if __name__ == "__main__":
    main()
