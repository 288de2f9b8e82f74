"""Golden predictions and pictures of latent consistency models, which are told the scale of guidance.

Writes `lcm/unet/`: `config.json` and `golden.safetensors`; and `lcm/NAME/` for each pipeline, as `pipelines.py` has them: of
that UNet, and of Stable Diffusion with an adapter. Weights of the UNet are drawn as `conditioning.py` draws them; the tests
know names and shapes by what nadir asks for.

    python tests/golden/lcm.py
"""

import diffusers
import numpy
import pipelines
import torch
from common import HERE, PIPELINES, component, fill, nhwc, save_json, save_tensors
from conditioning import CROSS
from diffusers import AutoencoderKL, LatentConsistencyModelImg2ImgPipeline, LatentConsistencyModelPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

LCM = HERE / "lcm"
SIZE = dict(height=32, width=24)
PARTS = dict(text_encoder="clip_l", vae="vae", tokenizer="tokenizer")
SCALES = [8.5, 7.3, 1.0, 0.0, 1.5, 14.2, 3.7]


def unet():
    model = fill(UNet2DConditionModel(**CROSS, time_cond_proj_dim=15))
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    save_json(LCM / "unet/config.json", {"_class_name": "UNet2DConditionModel"} | config)
    generator = torch.Generator().manual_seed(1)
    tensors = {"scales": torch.tensor(SCALES)}
    for index, (batch, height, width) in enumerate([(7, 5, 3), (1, 4, 6)]):
        sample = torch.randn(batch, 4, height, width, generator=generator)
        text = torch.randn(batch, 5, model.config.cross_attention_dim, generator=generator)
        timesteps = torch.tensor([981.0, 12.625, 1.0, 501.0, 0.0, 999.0, 333.0][:batch])

        def predict(scales):
            told = [LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, torch.tensor([w - 1]), 15) for w in scales]
            return model(sample, timesteps, text, timestep_cond=torch.cat(told)).sample

        out, other = predict(SCALES[:batch]), predict(SCALES[-batch:][::-1])
        # What is told has to matter.
        assert (out - other).abs().max() > 0.01 * out.abs().max()
        print(f"unet {height}x{width}: std {out.std():.3f}, another scale {(out - other).std():.3f}")
        tensors |= {
            f"{index}.sample": nhwc(sample), f"{index}.timesteps": timesteps, f"{index}.text": text, f"{index}.out": nhwc(out),
        }  # fmt: skip
    save_tensors(LCM / "unet/golden.safetensors", tensors)
    return model


def picture(name, pipeline, call, components, seed, more={}):
    folder = LCM / name
    pipeline.set_progress_bar_config(disable=True)
    steps = []
    image = pipeline(
        **call | more,
        generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=lambda _pipeline, _step, _t, seen: steps.append(nhwc(seen["latents"]).clone()) or {},
        output_type="np",
    ).images
    image, latents = torch.from_numpy(image), torch.stack(steps)
    print(f"{name}: image mean {image.mean():.3f} std {image.std():.3f}, latents std {latents[-1].std():.2f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3, name
    tensors = {"image": image, "latents": latents}
    if "image" in more:
        tensors["init"] = torch.from_numpy(numpy.array(more["image"]))
    save_tensors(folder / "golden.safetensors", tensors)
    save_json(folder / "case.json", {"components": components, "seed": seed, "num_images_per_prompt": 1, "arguments": SIZE | call})
    pipeline.scheduler.save_config(folder / "scheduler")
    classes = dict(
        scheduler=["diffusers", "LCMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"], safety_checker=[None, None], feature_extractor=[None, None],
    )  # fmt: skip
    index = {"_class_name": type(pipeline).__name__, "_diffusers_version": diffusers.__version__, "requires_safety_checker": False}
    save_json(folder / "model_index.json", index | classes)


def main():
    diffusers.logging.set_verbosity_error()
    # As `pipelines.py` has it.
    CLIPTextModel.text_model = property(lambda self: self)
    model = unet()
    parts = dict(
        text_encoder=component(CLIPTextModel, "clip_l"),
        vae=component(AutoencoderKL, "vae"),
        tokenizer=CLIPTokenizer.from_pretrained(PIPELINES / "tokenizer"),
        unet=model, scheduler=diffusers.LCMScheduler(**pipelines.SD), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    call = dict(prompt="a satellite image of a river winding through farmland", num_inference_steps=4)
    # What the pipeline does of itself: 4 steps, a scale of 8.5.
    picture("text", LatentConsistencyModelPipeline(**parts), call | SIZE, PARTS | dict(unet="unet"), 3)
    pixels, _ = pipelines.inputs()
    init = dict(image=Image.fromarray(pixels).resize((24, 32), Image.Resampling.LANCZOS))
    arguments = call | dict(num_inference_steps=3, guidance_scale=7.3, strength=0.55)
    picture("image", LatentConsistencyModelImg2ImgPipeline(**parts), arguments, PARTS | dict(unet="unet"), 4, init)

    # LCM-LoRA: any model of Stable Diffusion, an adapter in kohya's names, few steps and little guidance.
    case = dict(pipeline="StableDiffusionPipeline", components=pipelines.SD1, scheduler=("LCMScheduler", pipelines.SD))
    pipeline = pipelines.build(case, torch.float32)
    pipeline.load_lora_weights(HERE / "lora", weight_name="kohya.safetensors")
    arguments = call | SIZE | dict(guidance_scale=1.5, negative_prompt="low quality")
    picture("lora", pipeline, arguments, pipelines.SD1, 5)


if __name__ == "__main__":
    main()
