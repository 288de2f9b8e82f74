"""Golden predictions and pictures of Stable Diffusion XL.

Writes `sdxl/unet/` and `sdxl/uneven/` (`config.json`, `golden.safetensors`), `sdxl/text_encoder_2/config.json`, and
`sdxl/NAME/` for each pipeline, as `pipelines.py` has them. Weights of these networks are drawn as `conditioning.py` draws
them; the tests know names and shapes by what nadir asks for.

    python tests/golden/sdxl.py
"""

import tempfile

import diffusers
import ip_adapter
import numpy
import pipelines
import torch
from common import HERE, PIPELINES, component, draw, fill, nhwc, save_json, save_tensors
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from models import END, START, VOCABULARY
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

SDXL = HERE / "sdxl"
SIZE = dict(height=32, width=24)
PARTS = dict(
    text_encoder="clip_l", text_encoder_2="text_encoder_2", unet="unet", vae="vae", tokenizer="tokenizer",
    tokenizer_2="tokenizer_sd2",
)  # fmt: skip
PROMPT = "a satellite image of a river winding through farmland"

# As the published model has it: no attention where latents are finest, more layers where they are coarser.
UNET = dict(
    sample_size=4, norm_num_groups=8, layers_per_block=2, block_out_channels=(16, 24, 32), use_linear_projection=True,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 3), attention_head_dim=(2, 3, 4), cross_attention_dim=72,
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=72,
)  # fmt: skip
# As distilled ones have it: another number of layers in each block.
UNEVEN = UNET | dict(
    transformer_layers_per_block=[1, [1, 2], [2, 1]], reverse_transformer_layers_per_block=[[2, 1, 3], [1, 2, 1], 1],
)  # fmt: skip
TEXT = dict(
    vocab_size=VOCABULARY, hidden_size=40, intermediate_size=96, num_hidden_layers=4, num_attention_heads=5,
    max_position_embeddings=77, hidden_act="gelu", projection_dim=24, bos_token_id=START, pad_token_id=1,
    # Which is not the end token: it is found at the largest id.
    eos_token_id=2,
)  # fmt: skip
# A second way down of the same shape.
CONTROLNET = {name: value for name, value in UNET.items() if name not in ("sample_size", "up_block_types")} | dict(
    conditioning_embedding_out_channels=(8, 8, 12, 16),
)  # fmt: skip
# Of two vectors for each text encoder.
WORD = {"clip_l": (2, 32), "clip_g": (2, 40)}
EULER = pipelines.SD | dict(timestep_spacing="leading", steps_offset=1)
TURBO = pipelines.SD | dict(timestep_spacing="trailing", steps_offset=1)


def unet(name, config):
    model = fill(UNet2DConditionModel(**config))
    kept = {field: value for field, value in model.config.items() if not field.startswith("_")}
    save_json(SDXL / name / "config.json", {"_class_name": "UNet2DConditionModel"} | kept)
    generator = torch.Generator().manual_seed(1)
    sizes = torch.tensor([[32.0, 24, 0, 0, 32, 24], [1024, 768, 10, 20, 512, 640], [0, 4096, 7, 0, 8, 9]])
    sizes = sizes.repeat(3, 1)[:7]
    pooled = torch.randn(7, 24, generator=generator)
    tensors = {"sizes": sizes, "pooled": pooled}
    for index, (batch, height, width) in enumerate([(7, 5, 3), (1, 4, 6)]):
        sample = torch.randn(batch, 4, height, width, generator=generator)
        text = torch.randn(batch, 3, 72, generator=generator)
        timesteps = torch.tensor([981.0, 12.625, 1.0, 501.0, 0.0, 999.0, 333.0][:batch])

        def predict(sizes, pooled):
            added = {"text_embeds": pooled[:batch], "time_ids": sizes[:batch]}
            return model(sample, timesteps, text, added_cond_kwargs=added).sample

        out = predict(sizes, pooled)
        # What is told has to matter.
        for other in predict(sizes.flip(1), pooled), predict(sizes, pooled.flip(1)):
            assert (out - other).abs().max() > 0.01 * out.abs().max(), name
        print(f"{name} {height}x{width}: std {out.std():.3f}")
        tensors |= {
            f"{index}.sample": nhwc(sample), f"{index}.timesteps": timesteps, f"{index}.text": text, f"{index}.out": nhwc(out),
        }  # fmt: skip
    save_tensors(SDXL / name / "golden.safetensors", tensors)
    return model


def text_encoder():
    config = CLIPTextConfig(**TEXT)
    config._attn_implementation = "eager"
    model = CLIPTextModelWithProjection(config).eval()
    for name, value in model.state_dict().items():
        # transformers 5 has a `text_model` here alone, and nadir in no text encoder.
        value.copy_(draw(name.removeprefix("text_model."), value.shape))
    published = {"architectures": ["CLIPTextModelWithProjection"], "model_type": "clip_text_model", "torch_dtype": "float16"}
    save_json(SDXL / "text_encoder_2/config.json", published | TEXT)
    return model


def controlnet():
    model = fill(ControlNetModel(**CONTROLNET))
    kept = {field: value for field, value in model.config.items() if not field.startswith("_")}
    save_json(SDXL / "controlnet" / "config.json", {"_class_name": "ControlNetModel"} | kept)
    return model


def learn(pipeline):
    """A word of both text encoders."""
    for key, text_encoder, tokenizer in (
        ("clip_l", pipeline.text_encoder, pipeline.tokenizer), ("clip_g", pipeline.text_encoder_2, pipeline.tokenizer_2),
    ):
        pipeline.load_textual_inversion(draw(key, WORD[key]), token="<river>", text_encoder=text_encoder, tokenizer=tokenizer)
    return {}


def see(pipeline, picture, scale):
    """A picture as a prompt."""
    pipeline.register_modules(
        image_encoder=ip_adapter.encoder(), feature_extractor=CLIPImageProcessorPil(size=ip_adapter.SIDE, crop_size=ip_adapter.SIDE)
    )
    tensors = ip_adapter.adapter(pipeline.unet, ip_adapter.base(72), 72)
    save_json(SDXL / "adapter/weights.json", {key: list(value.shape) for key, value in tensors.items()})
    with tempfile.TemporaryDirectory() as scratch:
        save_file(tensors, f"{scratch}/adapter.safetensors")
        pipeline.load_ip_adapter(scratch, subfolder="", weight_name="adapter.safetensors", image_encoder_folder=None)
    pipeline.set_ip_adapter_scale(scale)
    return dict(ip_adapter_image=picture)


def picture(name, kind, parts, scheduler, call, seed, images=1, given={}, more=lambda _: {}, stored={}, **config):
    """`given`: pictures, which are stored with what comes of them, and so is what is `stored`; `more` of a pipeline changes it, and
    says what its call is given besides."""
    folder = SDXL / name
    pipeline = getattr(diffusers, kind)(**parts, scheduler=scheduler, add_watermarker=False, **config)
    pipeline.set_progress_bar_config(disable=True)
    steps = []
    image = pipeline(
        **call | given | more(pipeline),
        num_images_per_prompt=images,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(images)],
        callback_on_step_end=lambda _pipeline, _step, _t, seen: steps.append(nhwc(seen["latents"]).clone()) or {},
        output_type="np",
    ).images
    image, latents = torch.from_numpy(image), torch.stack(steps)
    print(f"{name}: image mean {image.mean():.3f} std {image.std():.3f}, latents std {latents[-1].std():.2f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3, name
    tensors = {"image": image, "latents": latents}
    for key, field in ("init", "image"), ("mask", "mask_image"):
        if field in given:
            tensors[key] = torch.from_numpy(numpy.array(given[field]))
    tensors |= {key: torch.from_numpy(numpy.array(picture)) for key, picture in stored.items()}
    save_tensors(folder / "golden.safetensors", tensors)
    components = PARTS | ({"controlnet": "controlnet"} if "controlnet" in parts else {})
    save_json(folder / "case.json", {"components": components, "seed": seed, "num_images_per_prompt": images, "arguments": SIZE | call})
    scheduler.save_config(folder / "scheduler")
    classes = dict(
        scheduler=["diffusers", type(scheduler).__name__], text_encoder=["transformers", "CLIPTextModel"],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"], tokenizer=["transformers", "CLIPTokenizer"],
        tokenizer_2=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"], image_encoder=[None, None], feature_extractor=[None, None],
    )  # fmt: skip
    if "controlnet" in parts:
        classes["controlnet"] = ["diffusers", "ControlNetModel"]
    index = {"_class_name": kind, "_diffusers_version": diffusers.__version__, "force_zeros_for_empty_prompt": True}
    save_json(folder / "model_index.json", index | config | classes)


def main():
    diffusers.logging.set_verbosity_error()
    # As `pipelines.py` has it.
    CLIPTextModel.text_model = property(lambda self: self)
    unet("uneven", UNEVEN)
    tokenizer = lambda name: CLIPTokenizer.from_pretrained(PIPELINES / name)
    parts = dict(
        unet=unet("unet", UNET), text_encoder_2=text_encoder(),
        text_encoder=component(CLIPTextModel, "clip_l"), vae=component(AutoencoderKL, "vae"),
        tokenizer=tokenizer("tokenizer"), tokenizer_2=tokenizer("tokenizer_sd2"),
    )  # fmt: skip
    euler = diffusers.EulerDiscreteScheduler(**EULER)
    # No negative prompt: zeros stand for it.
    call = dict(prompt=PROMPT, num_inference_steps=6)
    picture("base", "StableDiffusionXLPipeline", parts, euler, call | SIZE, 3)
    told = dict(
        negative_prompt="low quality, jpeg artifacts", guidance_scale=7.5, clip_skip=1, original_size=(1024, 768),
        crops_coords_top_left=(10, 20), target_size=(512, 640), negative_original_size=(256, 128),
        negative_crops_coords_top_left=(5, 6), negative_target_size=(64, 48),
    )  # fmt: skip
    ddim = diffusers.DDIMScheduler(**pipelines.SD | dict(clip_sample=False, steps_offset=1, prediction_type="v_prediction"))
    # One alone: diffusers tells pictures of a batch what is for the other half.
    picture("told", "StableDiffusionXLPipeline", parts, ddim, call | SIZE | told | dict(num_inference_steps=4), 4)
    # An empty negative prompt that is read.
    read = dict(force_zeros_for_empty_prompt=False)
    picture("read", "StableDiffusionXLPipeline", parts, euler, call | SIZE | dict(num_inference_steps=2), 5, 2, **read)
    turbo = diffusers.EulerAncestralDiscreteScheduler(**TURBO)
    once = dict(prompt=PROMPT, num_inference_steps=1, guidance_scale=0.0)
    picture("turbo", "StableDiffusionXLPipeline", parts, turbo, once | SIZE, 6)
    # Words for each text encoder; and for one alone, where zeros stand for a negative prompt that is not given.
    apart = dict(
        prompt_2="a harbour at low tide", negative_prompt="low quality, jpeg artifacts", negative_prompt_2="clouds and haze",
        num_inference_steps=4,
    )  # fmt: skip
    picture("apart", "StableDiffusionXLPipeline", parts, euler, call | SIZE | apart, 15)
    half = dict(negative_prompt="", negative_prompt_2="clouds and haze", num_inference_steps=2)
    picture("half", "StableDiffusionXLPipeline", parts, euler, call | SIZE | half, 16)
    pixels, mask = pipelines.inputs()
    small = lambda levels: Image.fromarray(levels).resize((24, 32), Image.Resampling.LANCZOS)
    # What strength and sizes the pipeline takes of itself.
    given = dict(image=small(pixels))
    picture("image", "StableDiffusionXLImg2ImgPipeline", parts, euler, dict(prompt=PROMPT, num_inference_steps=10), 7, given=given)
    given |= dict(mask_image=small(mask).point(lambda level: 255 * (level > 127)))
    call = dict(prompt=PROMPT, num_inference_steps=5, strength=0.8, guidance_scale=6.0) | SIZE
    picture("mask", "StableDiffusionXLInpaintPipeline", parts, euler, call, 8, given=given)
    # What strength it takes of itself: a step less than all.
    painted = dict(prompt=PROMPT, num_inference_steps=5, guidance_scale=5.0) | SIZE
    picture("painted", "StableDiffusionXLInpaintPipeline", parts, euler, painted, 13, given=given)
    # A picture that is followed, for a part of the steps.
    chip = small(pixels)
    follows = dict(controlnet_conditioning_scale=0.8, control_guidance_start=0.2, control_guidance_end=0.75)
    call = dict(prompt=PROMPT, negative_prompt="low quality", num_inference_steps=6) | SIZE
    net = dict(controlnet=controlnet())
    picture(
        "followed", "StableDiffusionXLControlNetPipeline", parts | net, euler, call, 9, more=lambda _: dict(image=chip) | follows,
        stored={"followed": chip},
    )  # fmt: skip
    picture(
        "guessed", "StableDiffusionXLControlNetPipeline", parts | net, euler, call | dict(num_inference_steps=3), 10,
        more=lambda _: dict(image=chip, guess_mode=True), stored={"followed": chip},
    )  # fmt: skip
    # Another strength of itself than without a ControlNet.
    picture(
        "steered", "StableDiffusionXLControlNetImg2ImgPipeline", parts | net, euler, call | dict(num_inference_steps=5), 14,
        given=dict(image=chip), more=lambda _: dict(control_image=chip, controlnet_conditioning_scale=1.0),
        stored={"followed": chip},
    )  # fmt: skip
    # A word that both text encoders are taught: parts are never the same again.
    words = dict(prompt="a satellite image of a <river>, winding through farmland", num_inference_steps=4) | SIZE
    picture("learned", "StableDiffusionXLPipeline", parts, euler, words, 11, more=learn)
    # A picture as a prompt, of the model without that word.
    parts |= dict(
        text_encoder_2=text_encoder(), text_encoder=component(CLIPTextModel, "clip_l"), tokenizer=tokenizer("tokenizer"),
        tokenizer_2=tokenizer("tokenizer_sd2"),
    )  # fmt: skip
    picture("seen", "StableDiffusionXLPipeline", parts, euler, call, 12, more=lambda pipeline: see(pipeline, chip, 0.7), stored={"seen": chip})


if __name__ == "__main__":
    main()
