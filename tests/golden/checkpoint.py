"""Small models under the names of original checkpoints, and what diffusers draws with them.

Writes, for each model, `checkpoint/NAME/`: what a diffusers folder holds but for its weights and tokenizer, `names.json.gz` (every
tensor of an original checkpoint: component, names and shape in the folder), `case.json` and `image.png`, the picture that
diffusers draws of that single file. No weights are kept: both sides draw each of them, bit for bit, from its name (`draw`).

The names are diffusers' own: its `convert_ldm_unet_checkpoint` and the like, which know them the other way round, must make of
them exactly the tensors of the folder.

    python tests/golden/checkpoint.py
"""

import gzip
import json
import tempfile
from pathlib import Path

import common
import diffusers
import torch
import transformers
from common import HERE, PIPELINES, save_json
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as theirs
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FOLDER = HERE / "checkpoint"
VOCABULARY = 640
HEIGHT, WIDTH = 40, 56
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=False, steps_offset=1)
PROMPT = "a satellite image of a river winding through farmland"


def draw(name, shape):
    if "embeddings" in name and len(shape) > 1:
        return common.draw(name, shape, largest=lambda _: 0.5)
    return common.draw(name, shape, bias=0.1)


def fill(component, model):
    """Draws every weight; returns the state, without the `text_model` that one of two text encoders has."""
    state = {}
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            bare = name.removeprefix("text_model.")
            state[bare] = draw(f"{component}.{bare}", value.shape)
            value.copy_(state[bare])
    model.eval()
    return state


RESNET = dict(norm1="in_layers.0", conv1="in_layers.2", time_emb_proj="emb_layers.1", norm2="out_layers.0", conv2="out_layers.3", conv_shortcut="skip_connection")
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OUTER = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0", "conv_out": "out.2", "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_in": "input_hint_block.0", "controlnet_cond_embedding.conv_out": "input_hint_block.14",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip


def unet_key(name, layers, attention):
    """`layers` of a block; `attention[i]` of block i on the way up."""
    module, kind = name.rsplit(".", 1)
    parts = name.split(".")
    if module in OUTER:
        return f"{OUTER[module]}.{kind}"
    if parts[0] == "controlnet_cond_embedding":
        return f"input_hint_block.{2 * int(parts[2]) + 2}.{kind}"
    if parts[0] == "controlnet_down_blocks":
        return f"zero_convs.{parts[1]}.0.{kind}"
    if parts[0] == "mid_block":
        at, inner = f"middle_block.{1 if parts[1] == 'attentions' else 2 * int(parts[2])}", parts[3:]
    else:
        block, inner = int(parts[1]), parts[4:]
        first, side = ("input_blocks", 1) if parts[0] == "down_blocks" else ("output_blocks", 0)
        at = side + block * (layers + 1) + int(parts[3])
        if parts[2] == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{kind}"
        if parts[2] == "upsamplers":
            return f"output_blocks.{block * (layers + 1) + layers}.{1 + attention[block]}.conv.{kind}"
        at = f"{first}.{at}.{int(parts[2] == 'attentions')}"
    if "resnets" in parts[:3]:
        inner = [RESNET[inner[0]], *inner[1:]]
    return ".".join([at, *inner])


def vae_key(name, levels):
    parts = name.split(".")
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if parts[1] == "mid_block":
        if parts[2] == "resnets":
            return name.replace(f"mid_block.resnets.{parts[3]}", f"mid.block_{int(parts[3]) + 1}")
        inner = ".".join(parts[4:-1])
        return f"{parts[0]}.mid.attn_1.{ATTENTION[inner]}.{parts[-1]}"
    if parts[1] in ("down_blocks", "up_blocks"):
        way, block = parts[1].split("_")[0], int(parts[2])
        name = name.replace(f"{parts[1]}.{block}", f"{way}.{block if way == 'down' else levels - 1 - block}")
        return name.replace("resnets", "block").replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
    return name


def open_clip_key(name):
    fixed = {
        "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding.weight": "token_embedding.weight",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
        "text_projection.weight": "text_projection",
    }  # fmt: skip
    if name in fixed:
        return fixed[name]
    name = name.replace("encoder.layers", "transformer.resblocks").replace("layer_norm", "ln_").replace("self_attn", "attn")
    name = name.replace("mlp.fc1", "mlp.c_fc").replace("mlp.fc2", "mlp.c_proj")
    for projection in "qkv":
        name = name.replace(f"{projection}_proj.weight", "in_proj_weight").replace(f"{projection}_proj.bias", "in_proj_bias")
    return name


def same(found, expected):
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


TEXT = {
    "sd1": {"text_encoder": ("cond_stage_model.transformer.text_model.", str)},
    "sd2": {"text_encoder": ("cond_stage_model.model.", open_clip_key)},
    "sdxl": {
        "text_encoder": ("conditioner.embedders.0.transformer.text_model.", str),
        "text_encoder_2": ("conditioner.embedders.1.model.", open_clip_key),
    },
}


def checkpoint(kind, states, unet, vae):
    """The tensors of a single file, and where each comes from."""
    layers, attention = unet.config.layers_per_block, [kind.startswith("Cross") for kind in unet.config.up_block_types]
    keys = {
        "unet": lambda name: "model.diffusion_model." + unet_key(name, layers, attention),
        "vae": lambda name: "first_stage_model." + vae_key(name, len(vae.config.block_out_channels)),
        "controlnet": lambda name: "control_model." + unet_key(name, layers, attention),
    }
    for component, (root, name_of) in TEXT[kind].items():
        keys[component] = lambda name, root=root, name_of=name_of: root + name_of(name)
    tensors, names = {}, {}
    for component, state in states.items():
        for name, value in state.items():
            key = keys[component](name)
            if component == "vae" and ".attn_1." in key and value.ndim == 2:
                value = value[:, :, None, None]
            if key.endswith(".text_projection"):
                value = value.T
            names.setdefault(key, [component, [], list(state[name].shape)])[1].append(name)
            tensors.setdefault(key, []).append(value)
    for key, (_, parts, _) in names.items():
        # torch's order in a joint projection.
        order = sorted(range(len(parts)), key=lambda i: "qkv".index(parts[i].rsplit(".", 2)[1][0]) if len(parts) > 1 else 0)
        names[key][1] = [parts[i] for i in order]
        tensors[key] = torch.cat([tensors[key][i] for i in order])
    return tensors, names


def check(kind, tensors, states, unet, vae, text_encoders):
    """diffusers' converters make the folder's tensors of ours."""
    same(theirs.convert_ldm_unet_checkpoint(tensors, unet.config), states["unet"])
    same(theirs.convert_ldm_vae_checkpoint(tensors, vae.config), states["vae"])
    for component, (root, name_of) in TEXT[kind].items():
        if name_of is open_clip_key:
            found = theirs.convert_open_clip_checkpoint(text_encoders[component], tensors, root)
        else:
            found = theirs.convert_ldm_clip_checkpoint(tensors)
        same({name.removeprefix("text_model."): value for name, value in found.items()}, states[component])
    if "controlnet" in states:
        found = theirs.convert_controlnet_checkpoint(tensors, unet.config)
        if kind == "sdxl":
            # diffusers has names for what XL is told, and its converter passes them over.
            told = theirs.DIFFUSERS_TO_LDM_MAPPING["controlnet"]["addition_embed_type"]
            found |= {name: tensors["control_model." + key] for name, key in told.items()}
        same(found, states["controlnet"])


def text_encoder(kind, config):
    kind_of = CLIPTextModelWithProjection if "projection_dim" in config else CLIPTextModel
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, max_position_embeddings=77, bos_token_id=VOCABULARY - 2, num_attention_heads=config["hidden_size"] // 64,
        # Published files of XL have 2 in both, which stands for the largest id.
        eos_token_id=2 if kind == "sdxl" else VOCABULARY - 1, **config,
    )  # fmt: skip
    return kind_of(config)


def write(kind, tokenizers, scheduler, unet, vae, texts, prediction):
    """`tokenizers` and `texts`: one of each text encoder."""
    unet, vae = UNet2DConditionModel(**unet), AutoencoderKL(**vae)
    text_encoders = {component: text_encoder(kind, text) for component, text in zip(TEXT[kind], texts)}
    models = {"unet": unet, "vae": vae} | text_encoders
    if kind != "sd2":
        models["controlnet"] = ControlNetModel.from_unet(unet)
    states = {component: fill(component, model) for component, model in models.items()}
    tensors, names = checkpoint(kind, states, unet, vae)
    check(kind, tensors, states, unet, vae, text_encoders)

    out = FOLDER / kind
    out.mkdir(parents=True, exist_ok=True)
    pipeline, more = StableDiffusionPipeline, dict(safety_checker=None, requires_safety_checker=False)
    single = dict(more)
    more |= dict(feature_extractor=None)
    if kind == "sdxl":
        pipeline, more, single = StableDiffusionXLPipeline, dict(add_watermarker=False), dict(add_watermarker=False)
    tokenizers = dict(zip(("tokenizer", "tokenizer_2"), tokenizers))
    loaded = {part: CLIPTokenizer.from_pretrained(PIPELINES / tokenizer) for part, tokenizer in tokenizers.items()}
    whole = pipeline(vae=vae, unet=unet, scheduler=scheduler, **text_encoders, **loaded, **more)
    call = dict(
        prompt=PROMPT, negative_prompt="low quality", guidance_scale=5.0, num_inference_steps=6, height=HEIGHT, width=WIDTH,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        folder, file = Path(scratch) / "folder", Path(scratch) / "file.safetensors"
        whole.save_pretrained(folder)
        save_file({key: value.contiguous() for key, value in tensors.items()}, file)
        single = pipeline.from_single_file(str(file), config=str(folder), local_files_only=True, **single)
        image = {}
        for name, pipe in (("single", single), ("folder", whole)):
            pipe.set_progress_bar_config(disable=True)
            image[name] = torch.from_numpy(pipe(**call, generator=torch.Generator().manual_seed(1), output_type="np").images)
        # Projections that were cut out of one matrix lie otherwise in memory, and are multiplied in another order.
        assert (image["single"] - image["folder"]).abs().max() < 1e-4
        for part in ("unet", "vae", *text_encoders):
            (out / part).mkdir(exist_ok=True)
            (out / part / "config.json").write_bytes((folder / part / "config.json").read_bytes())
        (out / "scheduler").mkdir(exist_ok=True)
        for part in ("scheduler/scheduler_config.json", "model_index.json"):
            (out / part).write_bytes((folder / part).read_bytes())
        if "controlnet" in models:
            models["controlnet"].save_config(out / "controlnet")
    image = image["single"]
    print(f"{kind}: image mean {image.mean():.3f} std {image.std():.3f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3
    Image.fromarray((image[0] * 255).round().byte().numpy()).save(out / "image.png")
    save_json(out / "case.json", {**tokenizers, "prediction": prediction, "seed": 1, "arguments": call})
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(names.items()))
    text = "{\n" + lines + "\n}\n"
    (out / "names.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def main():
    diffusers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    vae = dict(
        block_out_channels=(32, 32, 64), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, sample_size=512,
    )  # fmt: skip
    # Eight heads everywhere, projections that are convolutions, CLIP; blocks with and without attention on the way up.
    write(
        "sd1", ["tokenizer"], PNDMScheduler(**SD, skip_prk_steps=True),
        dict(
            sample_size=64, block_out_channels=(32, 64, 64), layers_per_block=1, attention_head_dim=8, cross_attention_dim=128,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        ),
        vae, [dict(hidden_size=128, intermediate_size=256, num_hidden_layers=2, hidden_act="quick_gelu")], "epsilon",
    )  # fmt: skip
    # Heads of 64 channels, linear projections, OpenCLIP; two layers a block.
    write(
        "sd2", ["tokenizer_sd2"], DDIMScheduler(**SD, prediction_type="v_prediction", clip_sample=False),
        dict(
            sample_size=96, block_out_channels=(64, 128), layers_per_block=2, attention_head_dim=(1, 2), cross_attention_dim=128,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            use_linear_projection=True,
        ),
        vae | dict(sample_size=768), [dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, hidden_act="gelu")], "v",
    )  # fmt: skip
    # Both text encoders, sizes that the UNet is told; no attention where latents are finest, more layers where they are coarser.
    write(
        "sdxl", ["tokenizer", "tokenizer_sd2"],
        EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, timestep_spacing="leading"),
        dict(
            sample_size=128, block_out_channels=(64, 64, 128), layers_per_block=1, attention_head_dim=(1, 1, 2), cross_attention_dim=192,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), use_linear_projection=True,
            transformer_layers_per_block=(1, 2, 3), addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=112,
        ),
        vae | dict(sample_size=1024, scaling_factor=0.13025),
        [
            dict(hidden_size=64, intermediate_size=256, num_hidden_layers=2, hidden_act="quick_gelu"),
            dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, hidden_act="gelu", projection_dim=64),
        ],
        "epsilon",
    )  # fmt: skip


if __name__ == "__main__":
    main()
