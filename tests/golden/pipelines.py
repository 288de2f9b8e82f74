"""Whole images of diffusers' Stable Diffusion pipelines on the components of `models.py`.

Writes `pipelines/tokenizer*/` (a byte-level BPE of CLIP's kind with 640 entries) and, for each case, a
folder `pipelines/NAME/` that lacks only the components: `model_index.json`,
`scheduler/scheduler_config.json`, `case.json` (components, or a folder of this repository that has them
all; arguments of the call; torch's own errors in bf16 and f16) and `golden.safetensors`:

    image     [B, H, W, 3]         f32, 0 to 1
    latents   [steps, B, h, w, 4]  f32, after every call of the scheduler
    init      [H, W, 3], mask [H, W]   u8, what the call was given

    python tests/golden/pipelines.py
"""

import json
import sys
import warnings

import diffusers
import numpy as np
import torch
import transformers
from common import PIPELINES, ROOT, component, nhwc, save_json, save_tensors
from diffusers import AutoencoderKL, UNet2DConditionModel
from models import VOCABULARY
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextModel, CLIPTokenizer

HEIGHT, WIDTH = 64, 48

PROMPT = "a satellite image of a river winding through farmland"
NEGATIVE = "low quality, jpeg artifacts"
# Longer than 77 tokens with this vocabulary: the pipeline truncates it.
LONG = "an aerial view of " + ", ".join(
    f"{kind} {thing}"
    for kind in ("dense", "open", "green", "industrial")
    for thing in ("forests", "harbours", "orchards", "airports", "pastures")
)

# Errors in 16 bits are a matter of luck: each case is drawn with so many seeds.
SEEDS_IN_16_BITS = 4

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
SD1 = dict(text_encoder="clip_l", unet="unet_sd15", vae="vae", tokenizer="tokenizer")
SD2 = dict(text_encoder="openclip", unet="unet_sd21", vae="vae", tokenizer="tokenizer_sd2")
INPAINT = SD1 | dict(unet="unet_inpaint")


def case(name, components, scheduler=None, config=None, pipeline="StableDiffusionPipeline", seed=1, images=1, **call):
    call = dict(prompt=PROMPT, negative_prompt=NEGATIVE, guidance_scale=7.5, num_inference_steps=10) | call
    return dict(
        name=name, pipeline=pipeline, components=components, scheduler=scheduler and (scheduler, config), seed=seed,
        images=images, call=call,
    )


CASES = [
    # The scheduler of SD 1.5's folder.
    case("pndm", SD1, "PNDMScheduler", SD | dict(skip_prk_steps=True, steps_offset=1, set_alpha_to_one=False)),
    case(
        "ddim_v_zero_snr", SD2, "DDIMScheduler",
        SD | dict(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False),
        guidance_rescale=0.7,
    ),
    case("euler_karras", SD1, "EulerDiscreteScheduler", SD | dict(use_karras_sigmas=True, steps_offset=1)),
    case("dpmpp_2m_karras", SD1, "DPMSolverMultistepScheduler", SD | dict(use_karras_sigmas=True, steps_offset=1)),
    case("unipc_v", SD2, "UniPCMultistepScheduler", SD | dict(prediction_type="v_prediction", timestep_spacing="trailing")),
    case("heun", SD1, "HeunDiscreteScheduler", SD, num_inference_steps=6),
    # The configuration of an old folder (clip_sample, no steps_offset): the pipeline mends both.
    case("ddim_eta", SD1, "DDIMScheduler", SD, eta=0.6, images=2),
    case("euler_a_clip_skip", SD1, "EulerAncestralDiscreteScheduler", SD | dict(timestep_spacing="leading", steps_offset=1), prompt=LONG, clip_skip=1, seed=7, images=2),
    case("dpmpp_2m_sde", SD2, "DPMSolverMultistepScheduler", SD | dict(algorithm_type="sde-dpmsolver++", prediction_type="v_prediction"), guidance_scale=4.0, clip_skip=2, seed=3),
    # No guidance: one forward pass a step, no negative prompt.
    case("lcm", SD1, "LCMScheduler", SD, guidance_scale=1.0, negative_prompt=None, num_inference_steps=4, seed=5),
    case("img2img_pndm", SD1, "PNDMScheduler", SD | dict(skip_prk_steps=True, steps_offset=1), "StableDiffusionImg2ImgPipeline", strength=0.6),
    case("img2img_euler", SD1, "EulerDiscreteScheduler", SD | dict(steps_offset=1), "StableDiffusionImg2ImgPipeline", strength=0.45, images=2, seed=4),
    case("inpaint_ddim", SD1, "DDIMScheduler", SD | dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1), "StableDiffusionInpaintPipeline", strength=0.75),
    case("inpaint_euler_a", SD1, "EulerAncestralDiscreteScheduler", SD, "StableDiffusionInpaintPipeline", strength=1.0, seed=2),
    case("inpaint9_dpmpp", INPAINT, "DPMSolverMultistepScheduler", SD, "StableDiffusionInpaintPipeline", strength=1.0),
    case("inpaint9_unipc", INPAINT, "UniPCMultistepScheduler", SD, "StableDiffusionInpaintPipeline", strength=0.7, seed=6),
    # The model that ships: trained weights.
    case("eurosat", "weights/eurosat-64", prompt="a satellite image of a river", guidance_scale=3.0, num_inference_steps=20, height=64, width=64),
]  # fmt: skip


def write_tokenizers():
    """CLIP's order of entries: bytes, bytes that end a word, merges, start and end."""
    things = "river lake forest farmland residential industrial harbour airport orchard pasture crop field".split()
    corpus = [f"a satellite image of a {a} beside the {b}" for a in things for b in things]
    corpus += [f"an aerial view of {a}s, green and dense" for a in things] + [NEGATIVE] * 40
    trainee = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainee.normalizer = normalizers.Lowercase()
    trainee.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    trainee.decoder = decoders.ByteLevel()
    trainee.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(pair) for pair in json.loads(trainee.to_str())["model"]["merges"]][: VOCABULARY - 2 - 512]
    entries = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges]
    entries += ["<|startoftext|>", "<|endoftext|>"]
    assert len(entries) == len(set(entries)) == VOCABULARY
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    # SD 2.x pads with token 0, SD 1.x with the end token.
    for folder, pad in ("tokenizer", "<|endoftext|>"), ("tokenizer_sd2", entries[0]):
        tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=77)
        tokenizer.save_pretrained(PIPELINES / folder)


def inputs():
    """A smooth picture and a mask whose edges fall between the latents."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / 48.0
    picture = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y * x), np.sin(9 * y - 4 * x)], -1)
    picture = np.round(127.5 + 127.5 * picture).astype(np.uint8)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[11:45, 7:37] = 255
    return picture, mask


def draw_in_f32(shape, generator=None, device=None, dtype=None, layout=None):
    """`randn_tensor` whose 16-bit noise is the rounded f32 noise.

    torch draws bf16 normals from bf16 uniforms, another and coarser sequence: images in the two
    dtypes would then differ by their noise, and say nothing about arithmetic.
    """
    generators = generator if isinstance(generator, list) else [generator]
    each = (shape[0] // len(generators), *shape[1:])
    return torch.cat([torch.randn(each, generator=g) for g in generators]).to(dtype or torch.float32)


def build(case, dtype):
    """The pipeline of a case, from its components or from a whole model of this repository."""
    pipeline = getattr(diffusers, case["pipeline"])
    if isinstance(case["components"], str):
        return pipeline.from_pretrained(ROOT / case["components"], dtype=dtype, safety_checker=None)
    loaders = dict(text_encoder=CLIPTextModel, unet=UNet2DConditionModel, vae=AutoencoderKL)
    components = {
        part: CLIPTokenizer.from_pretrained(PIPELINES / folder)
        if part == "tokenizer"
        else component(loaders[part], folder, dtype)
        for part, folder in case["components"].items()
    }
    scheduler, config = case["scheduler"]
    scheduler = getattr(diffusers, scheduler)(**config)
    unused = dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return pipeline(**components, scheduler=scheduler, **unused)


def run(case, dtype, change=lambda pipeline: None):
    pipeline = build(case, dtype)
    change(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    picture, mask = inputs()
    call = dict(case["call"])
    if "Img2Img" in case["pipeline"]:
        call |= dict(image=Image.fromarray(picture))
    elif "Inpaint" in case["pipeline"]:
        call |= dict(image=Image.fromarray(picture), mask_image=Image.fromarray(mask), height=HEIGHT, width=WIDTH)
    else:
        call = dict(height=HEIGHT, width=WIDTH) | call
    steps = []
    image = pipeline(
        **call,
        num_images_per_prompt=case["images"],
        generator=[torch.Generator().manual_seed(case["seed"] + i) for i in range(case["images"])],
        callback_on_step_end=lambda _pipeline, _step, _t, seen: steps.append(nhwc(seen["latents"]).clone()) or {},
        output_type="np",
    ).images
    return torch.from_numpy(image), torch.stack(steps)


def write_folder(case, folder, vae="AutoencoderKL"):
    """What `save_pretrained` would write, without the components."""
    scheduler, config = case["scheduler"]
    getattr(diffusers, scheduler)(**config).save_config(folder / "scheduler")
    classes = dict(
        scheduler=["diffusers", scheduler], text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"], unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", vae], safety_checker=[None, None], feature_extractor=[None, None],
    )  # fmt: skip
    save_json(
        folder / "model_index.json",
        {"_class_name": case["pipeline"], "_diffusers_version": diffusers.__version__, **classes},
    )


def psnr(a, b):
    return float(-10 * torch.log10(torch.mean((a.double() - b.double()) ** 2)))


def errors_in_16_bits(case):
    """PSNR of torch's pictures in bf16 and f16 against its own in f32, for each seed."""
    errors = {"bf16_psnr": [], "f16_psnr": []}
    for seed in range(case["seed"], case["seed"] + SEEDS_IN_16_BITS):
        one = case | dict(seed=seed, images=1)
        exact = run(one, torch.float32)[0]
        for name, dtype in zip(errors, (torch.bfloat16, torch.float16)):
            errors[name].append(round(psnr(run(one, dtype)[0].float(), exact), 2))
    return errors


def main():
    diffusers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Configurations that the pipeline mends are part of the test.
    warnings.filterwarnings("ignore", category=FutureWarning, message="The configuration file of this scheduler")
    # diffusers 0.42 looks for the final norm behind `text_model`, which transformers 5 has removed.
    CLIPTextModel.text_model = property(lambda self: self)
    import diffusers.pipelines.stable_diffusion as _  # noqa: F401  loads the modules patched below

    for case in CASES:
        getattr(diffusers, case["pipeline"]), case["scheduler"] and getattr(diffusers, case["scheduler"][0])
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.") and "randn_tensor" in vars(module):
            module.randn_tensor = draw_in_f32

    write_tokenizers()
    for case in CASES:
        image, latents = run(case, torch.float32)
        errors = errors_in_16_bits(case)
        print(
            f"{case['name']:20} image mean {image.mean():.3f} std {image.std():.3f}, latents std {latents[-1].std():.2f},"
            f" {errors} dB",
            flush=True,
        )
        # A flat or blown-out picture would make every PSNR look good.
        assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3, case["name"]
        tensors = {"image": image, "latents": latents}
        if case["pipeline"] != "StableDiffusionPipeline":
            picture, mask = inputs()
            tensors["init"] = torch.from_numpy(picture)
            if "Inpaint" in case["pipeline"]:
                tensors["mask"] = torch.from_numpy(mask)
        folder = PIPELINES / case["name"]
        if case["scheduler"]:
            write_folder(case, folder)
        save_tensors(folder / "golden.safetensors", tensors)
        save_json(
            folder / "case.json",
            {
                "components": case["components"],
                "seed": case["seed"],
                "num_images_per_prompt": case["images"],
                "arguments": {"height": HEIGHT, "width": WIDTH} | case["call"],
            }
            | errors,
        )


if __name__ == "__main__":
    main()
