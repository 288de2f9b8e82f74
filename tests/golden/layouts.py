"""Folders as the projects publish them that researchers of satellite imagery draw with, at small sizes and with weights at random;
and the command that each project's page leads to.

Writes `layouts.json.gz`: for each repository its files but weights, and of weights the names and shapes as diffusers and transformers
have them (tests draw the values, `drawn.rs`); and the commands. Names of files and fields are as the projects' code and pages have
them and as releases of their time write them; sizes are not. With a folder named it writes the repositories there instead, whole, as a hub cache.

    python tests/golden/layouts.py
    python tests/golden/layouts.py FOLDER
    HF_HUB_CACHE=FOLDER nadir generate "Aerial view of Paris" -m stabilityai/stable-diffusion-2-1-base
"""

import gzip
import json
import pathlib
import sys

import diffusers
import torch
import transformers
from common import HERE, ROOT, draw
from safetensors.torch import save_file

TOKENIZER = ROOT / "weights/eurosat-64/tokenizer"
VOCABULARY = 1725

# 1. Networks, by the fields that are published.
DOWN = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
UP = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
SD15_UNET = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [16, 32, 32, 32], "center_input_sample": False, "cross_attention_dim": 32, "down_block_types": DOWN,
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 8, "out_channels": 4, "sample_size": 8, "up_block_types": UP,
}  # fmt: skip
SD2_UNET = SD15_UNET | {
    "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [1, 2, 4, 4], "cross_attention_dim": 48, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "upcast_attention": False, "use_linear_projection": True,
}  # fmt: skip
# All fields of releases since 0.20.
LATER = {
    "addition_embed_type": None, "addition_embed_type_num_heads": 64, "addition_time_embed_dim": None, "attention_type": "default",
    "class_embed_type": None, "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None,
    "dropout": 0.0, "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None, "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None,
    "num_class_embeds": None, "only_cross_attention": False, "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0, "resnet_skip_time_act": False, "resnet_time_scale_shift": "default",
    "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None, "time_embedding_act_fn": None, "time_embedding_dim": None,
    "time_embedding_type": "positional", "timestep_post_act": None, "transformer_layers_per_block": 1, "upcast_attention": False,
}  # fmt: skip
TEXT2EARTH = SD2_UNET | LATER | {
    "_diffusers_version": "0.30.0.dev0", "_name_or_path": "stabilityai/stable-diffusion-2-base", "class_embed_type": "timestep",
}  # fmt: skip
SAT_UNET = SD2_UNET | {
    "_class_name": "SatUNet", "_diffusers_version": "0.17.0.dev0", "class_embed_type": None, "num_metadata": 7,
    "projection_class_embeddings_input_dim": None, "resnet_time_scale_shift": "default", "use_metadata": True,
}  # fmt: skip
LCM = SD15_UNET | LATER | {"_diffusers_version": "0.22.0.dev0", "time_cond_proj_dim": 16, "use_linear_projection": False}
SDXL_UNET = SD2_UNET | LATER | {
    "_diffusers_version": "0.19.0.dev0", "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "attention_head_dim": [1, 2, 4], "block_out_channels": [16, 32, 32], "cross_attention_dim": 72, "down_block_types": DOWN[3:] + DOWN[:2],
    "projection_class_embeddings_input_dim": 88, "transformer_layers_per_block": [1, 2, 3], "up_block_types": UP[1:3] + UP[:1],
    "upcast_attention": None,
}  # fmt: skip
CONTROLNET = {
    name: value for name, value in SD15_UNET.items()
    if name not in ("center_input_sample", "out_channels", "sample_size", "up_block_types")
} | {
    "_class_name": "ControlNetModel", "_diffusers_version": "0.17.0.dev0", "class_embed_type": None,
    "conditioning_embedding_out_channels": [8, 16, 24, 32], "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False, "num_class_embeds": None, "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None, "resnet_time_scale_shift": "default", "upcast_attention": False,
    "use_linear_projection": False,
}  # fmt: skip
SD2_CONTROLNET = CONTROLNET | {
    "_diffusers_version": "0.21.0.dev0", "_name_or_path": "controlnet/checkpoint-50000", "addition_embed_type": None,
    "addition_embed_type_num_heads": 64, "addition_time_embed_dim": None, "attention_head_dim": [1, 2, 4, 4],
    "conditioning_channels": 3, "cross_attention_dim": 48, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "transformer_layers_per_block": 1,
    "use_linear_projection": True,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu", "block_out_channels": [8, 16, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 4, "in_channels": 3, "latent_channels": 4, "layers_per_block": 2,
    "norm_num_groups": 8, "out_channels": 3, "sample_size": 64, "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SDXL_VAE = VAE | {"_diffusers_version": "0.20.0.dev0", "force_upcast": True, "scaling_factor": 0.13025}
TAESD = {
    "_class_name": "AutoencoderTiny", "_diffusers_version": "0.20.0.dev0", "act_fn": "relu", "decoder_block_out_channels": [8] * 4,
    "encoder_block_out_channels": [8] * 4, "force_upcast": False, "in_channels": 3, "latent_channels": 4, "latent_magnitude": 3,
    "latent_shift": 0.5, "num_decoder_blocks": [3, 3, 3, 1], "num_encoder_blocks": [1, 3, 3, 3], "out_channels": 3, "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}  # fmt: skip
CLIP_L = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0, "bos_token_id": 0,
    "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 32, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 64, "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
    "num_attention_heads": 4, "num_hidden_layers": 3, "pad_token_id": 1, "projection_dim": 24, "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0", "vocab_size": VOCABULARY,
}  # fmt: skip
OPEN_CLIP = CLIP_L | {"_name_or_path": "hf-models/stable-diffusion-v2-768x768/text_encoder", "hidden_act": "gelu", "hidden_size": 48}
SDXL_TEXT = CLIP_L | {"torch_dtype": "float16", "transformers_version": "4.32.0.dev0"}
SDXL_TEXT_2 = SDXL_TEXT | {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 40, "projection_dim": 40}
VISION = {
    "_name_or_path": "./image_encoder", "architectures": ["CLIPVisionModelWithProjection"], "attention_dropout": 0.0, "dropout": 0.0,
    "hidden_act": "gelu", "hidden_size": 24, "image_size": 32, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 48, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model", "num_attention_heads": 2, "num_channels": 3,
    "num_hidden_layers": 2, "patch_size": 8, "projection_dim": 20, "torch_dtype": "float16", "transformers_version": "4.28.0.dev0",
}  # fmt: skip

# 2. Schedulers.
SD_SCHEDULER = {
    "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
PNDM = SD_SCHEDULER | {"_class_name": "PNDMScheduler"}
DDIM = SD_SCHEDULER | {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "epsilon"}
EULER = SD_SCHEDULER | {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "interpolation_type": "linear", "prediction_type": "epsilon",
    "sample_max_value": 1.0, "timestep_spacing": "leading", "use_karras_sigmas": False,
}  # fmt: skip
TURBO = EULER | {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
LCM_SCHEDULER = SD_SCHEDULER | {
    "_class_name": "LCMScheduler", "_diffusers_version": "0.22.0.dev0", "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995,
    "original_inference_steps": 50, "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "sample_max_value": 1.0,
    "set_alpha_to_one": True, "steps_offset": 0, "thresholding": False, "timestep_scaling": 10.0, "timestep_spacing": "leading",
}  # fmt: skip
FEATURES = {
    "crop_size": 224, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224,
}  # fmt: skip


# 3. Weights: names and shapes, as they are published.
def shapes(config):
    """Of the network of a configuration: what its class saves, under the names that files of its time have."""
    with torch.device("meta"):
        if "_class_name" not in config:
            kind = getattr(transformers, config["architectures"][0])
            model = kind(kind.config_class(**{name: value for name, value in config.items() if name[0] != "_"}))
        elif config["_class_name"] == "SatUNet":
            fields = {name: value for name, value in config.items() if name[0] != "_" and name not in ("use_metadata", "num_metadata")}
            model = diffusers.UNet2DConditionModel(**fields)
            first = model.time_embedding.linear_1.weight.shape
            embedding = diffusers.models.embeddings.TimestepEmbedding
            model.metadata_embedding = torch.nn.ModuleList(embedding(first[1], first[0]) for _ in range(7))
        else:
            model = getattr(diffusers, config["_class_name"]).from_config(config)
    found = {name: list(value.shape) for name, value in model.state_dict().items() if value.is_floating_point()}
    if config.get("model_type") == "clip_text_model":
        # transformers 5 leaves this out of one of its two classes.
        bare = {name.removeprefix("text_model."): shape for name, shape in found.items()}
        found = {(name if name.startswith("text_projection.") else f"text_model.{name}"): shape for name, shape in bare.items()}
    if config["_class_name" if "_class_name" in config else "model_type"] == "AutoencoderKL" and config["_diffusers_version"] == "0.6.0":
        # Its attention had other names then.
        for now, then in ("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"):
            found = {name.replace(f"attentions.0.{now}.", f"attentions.0.{then}."): shape for name, shape in found.items()}
    return found


def lora(layers):
    """kohya's names, in which LCM-LoRA is published."""
    found = {}
    for layer, (outputs, inputs) in layers.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        found |= {f"{name}.lora_down.weight": [4, inputs], f"{name}.lora_up.weight": [outputs, 4], f"{name}.alpha": []}
    return found


def ip_adapter(unet, width, projected, tokens=4):
    found = {"image_proj.proj.weight": [tokens * width, projected], "image_proj.proj.bias": [tokens * width]}
    found |= {"image_proj.norm.weight": [width], "image_proj.norm.bias": [width]}
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel.from_config(unet)
    number = 1
    for name in model.attn_processors:
        if name.endswith("attn2.processor"):
            channels = model.get_submodule(name.removesuffix(".processor")).to_q.weight.shape[0]
            found |= {f"ip_adapter.{number}.to_{kind}_ip.weight": [channels, width] for kind in "kv"}
            number += 2
    return found


# 4. Repositories: files, and what their weights are.
class Repository:
    def __init__(self):
        self.files, self.weights = {}, {}

    def json(self, path, value):
        self.files[path] = value
        return self

    def network(self, folder, config, variants=("",)):
        """`variants`: endings before `.safetensors`."""
        stem = "diffusion_pytorch_model" if "_class_name" in config else "model"
        at = f"{folder}/" if folder else ""
        self.json(f"{at}config.json", config)
        for variant in variants:
            self.weights[f"{at}{stem}{variant}.safetensors"] = shapes(config)
        return self

    def tokenizer(self, folder, pad):
        config = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
        self.json(f"{folder}/tokenizer_config.json", config | {"pad_token": pad, "add_prefix_space": False, "do_lower_case": True, "errors": "replace"})
        special = {name: config[name] for name in ("bos_token", "eos_token", "unk_token")}
        self.json(f"{folder}/special_tokens_map.json", special | {"pad_token": pad})
        for name in ("vocab.json", "merges.txt"):
            self.files[f"{folder}/{name}"] = {"copy": f"{TOKENIZER.relative_to(ROOT)}/{name}"}
        return self


def pipeline(kind, unet, vae, text, scheduler, components={}, index={}, variants=("",), version="0.6.0", unet_at="unet"):
    """`components` beside those of all, by `[library, class]`."""
    repository = Repository()
    pad = "<|endoftext|>" if text["hidden_act"] == "quick_gelu" else "!"
    unet_class = unet["_class_name"]
    classes = {
        "scheduler": ["diffusers", scheduler["_class_name"]], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers" if unet_class.startswith("UNet") else "sat_unet", unet_class], "vae": ["diffusers", vae["_class_name"]],
    } | components  # fmt: skip
    repository.json("model_index.json", {"_class_name": kind, "_diffusers_version": version} | index | classes)
    repository.json("scheduler/scheduler_config.json", scheduler)
    if classes["text_encoder"][0]:
        repository.network("text_encoder", text, variants).tokenizer("tokenizer", pad)
    if classes.get("feature_extractor", [None])[0]:
        repository.json("feature_extractor/preprocessor_config.json", FEATURES)
    if classes.get("safety_checker", [None])[0]:
        repository.json("safety_checker/config.json", {"architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip"})
    repository.network(unet_at, unet, variants).network("vae", vae, variants)
    return repository


JUDGES = {
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
}  # fmt: skip
NO_JUDGES = {"safety_checker": [None, None], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
XL = {"tokenizer_2": ["transformers", "CLIPTokenizer"], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}


def xl(kind="StableDiffusionXLPipeline", scheduler=EULER, variants=("", ".fp16"), components=XL, index={"force_zeros_for_empty_prompt": True}, unet=SDXL_UNET):
    repository = pipeline(kind, unet, SDXL_VAE, SDXL_TEXT, scheduler, components, index, variants, "0.19.0.dev0")
    return repository.network("text_encoder_2", SDXL_TEXT_2, variants).tokenizer("tokenizer_2", "!")


def alone(kind, **components):
    """A pipeline that is refused by its index, whatever is beside it."""
    return Repository().json("model_index.json", {"_class_name": kind, "_diffusers_version": "0.31.0", **components})


def repositories():
    diffusionsat = {"safety_checker": [None, None], "feature_extractor": [None, None]}
    sd15 = pipeline("StableDiffusionPipeline", SD15_UNET, VAE, CLIP_L, PNDM, JUDGES)
    both = pipeline(
        "StableDiffusionControlNetPipeline", SD15_UNET, VAE, CLIP_L, PNDM,
        {"safety_checker": [None, None], "feature_extractor": [None, None], "controlnet": ["diffusers", "MultiControlNetModel"]},
    ).network("controlnet", CONTROLNET).network("controlnet_1", CONTROLNET)  # fmt: skip
    texas = pipeline(
        "StableDiffusionControlNetPipeline", SAT_UNET, VAE, OPEN_CLIP, DDIM,
        diffusionsat | {"controlnet": ["diffusionsat", "ControlNetModel3D"]},
    ).json("controlnet/config.json", CONTROLNET | {"_class_name": "ControlNetModel3D", "use_metadata": True, "num_metadata": 7})  # fmt: skip
    attention = {
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (16, 16),
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (32, 32),
    }
    adapter = Repository()
    adapter.weights["pytorch_lora_weights.safetensors"] = lora(attention)
    adapters = Repository().network("models/image_encoder", VISION)
    adapters.weights["models/ip-adapter_sd15.safetensors"] = ip_adapter(SD15_UNET, 32, VISION["projection_dim"])
    refiner = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
    none = {"text_encoder": [None, None], "tokenizer": [None, None]}
    return {
        "runwayml/stable-diffusion-v1-5": sd15,
        "stabilityai/stable-diffusion-2-1-base": pipeline("StableDiffusionPipeline", SD2_UNET, VAE, OPEN_CLIP, PNDM, NO_JUDGES, version="0.10.0.dev0"),
        # The class comes with its file, as diffusers writes that down.
        "lcybuaa/Text2Earth": pipeline(
            "Text2EarthDiffusionPipeline", TEXT2EARTH, VAE, OPEN_CLIP, DDIM, NO_JUDGES, {"requires_safety_checker": False},
        ),
        "lcybuaa/Text2Earth-inpainting": pipeline(
            ["pipeline_text2earth_diffusion_inpaint", "Text2EarthDiffusionInpaintPipeline"], TEXT2EARTH | {"in_channels": 9}, VAE, OPEN_CLIP,
            DDIM, NO_JUDGES, {"requires_safety_checker": False},
        ),
        "BiliSakura/DiffusionSat-Single-512": pipeline(["pipeline", "DiffusionSatPipeline"], SAT_UNET, VAE, OPEN_CLIP, DDIM, diffusionsat),
        # As its authors publish it: the folder of a training, whose UNet is in a checkpoint.
        "finetune_sd21_sn-satlas-fmow_snr5_md7norm_bs64": pipeline(
            "StableDiffusionPipeline", SAT_UNET, VAE, OPEN_CLIP, DDIM, diffusionsat | {"unet": ["diffusers", "UNet2DConditionModel"]},
            unet_at="checkpoint-150000/unet",
        ),
        "controlnet3d-mixattn_sd21_md7norm_texas": texas,
        "MVRL/GeoSynth-OSM": Repository().network("", SD2_CONTROLNET),
        "MVRL/GeoSynth-Canny": Repository().network("", SD2_CONTROLNET),
        "rgres/Seg2Sat-sd-controlnet": Repository().network("", SD2_CONTROLNET),
        "mespinosami/controlearth": Repository().network("", CONTROLNET),
        "jaychempan/EarthSynth": Repository().network("", CONTROLNET),
        "models/osm-and-edges": both,
        "stabilityai/stable-diffusion-xl-base-1.0": xl(),
        "stabilityai/sdxl-turbo": xl(scheduler=TURBO),
        "stabilityai/stable-diffusion-xl-refiner-1.0": xl(
            "StableDiffusionXLImg2ImgPipeline", components=XL | none, index=refiner, variants=("",),
        ),
        "SimianLuo/LCM_Dreamshaper_v7": pipeline(
            "LatentConsistencyModelPipeline", LCM, VAE, CLIP_L, LCM_SCHEDULER,
            {"safety_checker": [None, None], "feature_extractor": ["transformers", "CLIPImageProcessor"]}, {"requires_safety_checker": True},
        ),
        "latent-consistency/lcm-lora-sdv1-5": adapter,
        "madebyollin/taesd": Repository().network("", TAESD),
        "h94/IP-Adapter": adapters,
        "black-forest-labs/FLUX.1-dev": alone("FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"]),
        "stabilityai/stable-diffusion-3-medium-diffusers": alone("StableDiffusion3Pipeline", transformer=["diffusers", "SD3Transformer2DModel"]),
        "PixArt-alpha/PixArt-XL-2-512x512": alone("PixArtAlphaPipeline", transformer=["diffusers", "Transformer2DModel"]),
        "facebook/DiT-XL-2-256": alone("DiTPipeline", transformer=["diffusers", "Transformer2DModel"]),
        "amused/amused-256": alone("AmusedPipeline", transformer=["diffusers", "UVit2DModel"]),
        "BiliSakura/ddpm-cd-pretrained-256": alone("DDPMPipeline", unet=["diffusers", "UNet2DModel"]),
        "stabilityai/stable-video-diffusion-img2vid": alone("StableVideoDiffusionPipeline", unet=["diffusers", "UNetSpatioTemporalConditionModel"]),
        "timbrooks/instruct-pix2pix": alone("StableDiffusionInstructPix2PixPipeline", unet=["diffusers", "UNet2DConditionModel"]),
    }  # fmt: skip


# 5. Commands. What is refused says so in these words.
SAT = '--gsd 1.2m --place 48.85,2.35 --date 2021-07-04 --cloud 0.1'
SD15, SD21 = "runwayml/stable-diffusion-v1-5", "stabilityai/stable-diffusion-2-1-base"
COMMANDS = [
    ("Text2Earth", '"16_GOOGLE_LEVEL_Seven green circular farmlands" -m lcybuaa/Text2Earth --scheduler euler --cfg-scale 4', []),
    ("Text2Earth-inpainting", '"There is one big green lake" -m lcybuaa/Text2Earth-inpainting --init-image chip.png --mask-image mask.png', []),
    ("DiffusionSat", f'"a fmow satellite image of a harbour" -m BiliSakura/DiffusionSat-Single-512 {SAT}', []),
    ("DiffusionSat, as its authors have it", f'"a fmow satellite image of a harbour" -m finetune_sd21_sn-satlas-fmow_snr5_md7norm_bs64 {SAT}', []),
    ("DiffusionSat's 3D ControlNet", '"houses" -m controlnet3d-mixattn_sd21_md7norm_texas --control-image chip.png', ["ControlNetModel3D", "SatUNet alone"]),
    ("GeoSynth", f'"Satellite image features a city neighborhood" -m {SD21} --controlnet MVRL/GeoSynth-OSM --control-image osm.png', []),
    ("GeoSynth-Canny", f'"a city" -m {SD21} --controlnet MVRL/GeoSynth-Canny --control-image chip.png --control-preprocessor canny', []),
    ("map-sat", f'"convert this openstreetmap into its satellite view" -m {SD15} --controlnet mespinosami/controlearth --control-image osm.png --scheduler unipc', []),
    ("EarthSynth", f'"A satellite image of storage tank" -m {SD15} --controlnet jaychempan/EarthSynth --control-image mask.png --scheduler unipc', []),
    ("Seg2Sat", f'"Aerial view of Paris" -m {SD21} --controlnet rgres/Seg2Sat-sd-controlnet --control-image mask.png --control-preprocessor palette:flair.json', []),
    ("several ControlNets in one folder", '"a city" -m models/osm-and-edges --control-image osm.png --control-image chip.png', []),
    ("a ControlNet for another model", f'"a city" -m {SD15} --controlnet MVRL/GeoSynth-OSM --control-image osm.png', ["cross_attention_dim", "SD 1.5's, SD 2.1's and SDXL's do not fit"]),
    ("a ControlNet as the model", '"a city" -m MVRL/GeoSynth-OSM', ["ControlNetModel alone", "--controlnet"]),
    ("Stable Diffusion 1.5", f'"a river" -m {SD15}', []),
    ("Stable Diffusion XL", '"a harbour" -m stabilityai/stable-diffusion-xl-base-1.0 --variant fp16', []),
    ("SDXL-Turbo", '"a harbour" -m stabilityai/sdxl-turbo --variant fp16 --steps 1 --cfg-scale 0', []),
    ("the refiner of SDXL", '"a harbour" -m stabilityai/stable-diffusion-xl-refiner-1.0', ["requires_aesthetics_score", "the base model alone"]),
    ("LCM", '"a harbour" -m SimianLuo/LCM_Dreamshaper_v7', []),
    ("LCM-LoRA", f'"a harbour" -m {SD15} --lora latent-consistency/lcm-lora-sdv1-5 --scheduler lcm --steps 4 --cfg-scale 1.5', []),
    ("TAESD", f'"a harbour" -m {SD15} --vae madebyollin/taesd', []),
    ("TAESD as the model", '"a harbour" -m madebyollin/taesd', ["AutoencoderTiny alone", "--vae"]),
    ("IP-Adapter", f'"a harbour in winter" -m {SD15} --ip-adapter h94/IP-Adapter/models/ip-adapter_sd15.safetensors --image-encoder h94/IP-Adapter/models/image_encoder --ip-image chip.png', []),
    ("Flux", '"a harbour" -m black-forest-labs/FLUX.1-dev', ["FluxPipeline", "Stable Diffusion 1.x, 2.x and XL"]),
    ("Stable Diffusion 3", '"a harbour" -m stabilityai/stable-diffusion-3-medium-diffusers', ["StableDiffusion3Pipeline", "Stable Diffusion 1.x, 2.x and XL"]),
    ("PixArt", '"a harbour" -m PixArt-alpha/PixArt-XL-2-512x512', ["PixArtAlphaPipeline", "Stable Diffusion 1.x, 2.x and XL"]),
    ("DiT", '"a harbour" -m facebook/DiT-XL-2-256', ["DiTPipeline", "Stable Diffusion 1.x, 2.x and XL"]),
    ("aMUSEd, a U-ViT", '"a harbour" -m amused/amused-256', ["AmusedPipeline", "Stable Diffusion 1.x, 2.x and XL"]),
    ("DDPM-CD", '"a harbour" -m BiliSakura/ddpm-cd-pretrained-256', ["DDPMPipeline", "Stable Diffusion 1.x, 2.x and XL"]),
    ("Stable Video Diffusion", '"a harbour" -m stabilityai/stable-video-diffusion-img2vid', ["StableVideoDiffusionPipeline", "Stable Diffusion 1.x, 2.x and XL"]),
    ("InstructPix2Pix", '"in winter" -m timbrooks/instruct-pix2pix --init-image chip.png', ["StableDiffusionInstructPix2PixPipeline", "Stable Diffusion 1.x, 2.x and XL"]),
]  # fmt: skip


def write_cache(folder, name, repository):
    """As the hub's cache has a repository; what has no owner is a folder of its own."""
    at = folder / name
    if "/" in name and not name.startswith("models/"):
        cached = folder / f"models--{name.replace('/', '--')}"
        at = cached / "snapshots/0"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs/main").write_text("0")
    for path, content in repository.files.items():
        (at / path).parent.mkdir(parents=True, exist_ok=True)
        copied = isinstance(content, dict) and content.get("copy")
        (at / path).write_text((ROOT / copied).read_text() if copied else json.dumps(content, indent=2) + "\n")
    for path, tensors in repository.weights.items():
        (at / path).parent.mkdir(parents=True, exist_ok=True)
        drawn = {key: torch.tensor(4.0) if key.endswith(".alpha") else draw(key, shape) for key, shape in tensors.items()}
        half = path.endswith(".fp16.safetensors")
        save_file({key: value.half() if half else value for key, value in drawn.items()}, at / path, {"format": "pt"})


def main():
    found = repositories()
    if sys.argv[1:]:
        for name, repository in found.items():
            write_cache(pathlib.Path(sys.argv[1]), name, repository)
        return
    commands = [{"what": what, "command": f"nadir generate {command}", "refused": refused} for what, command, refused in COMMANDS]
    content = {"repositories": {name: vars(repository) for name, repository in found.items()}, "commands": commands}
    (HERE / "layouts.json.gz").write_bytes(gzip.compress(json.dumps(content, sort_keys=True).encode(), mtime=0))
    print(f"{len(found)} repositories, {len(commands)} commands")


if __name__ == "__main__":
    main()
