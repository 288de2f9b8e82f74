"""Golden outputs of networks with low-rank adapters, as diffusers and peft load them.

Writes `lora/`: adapters with small random matrices for `models/unet_sd15` and `models/clip_l` in each convention, and
`golden.safetensors`, inputs and f32 outputs at two weights, of two adapters together, and in bf16.

    python tests/golden/lora.py
"""

import json
import re
import shutil
import warnings

import torch
from common import HERE, PIPELINES, component, nhwc, save_tensors
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

OUT = HERE / "lora"
WEIGHTS = [1.0, -0.6]

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
LAYERS = ATTENTION + ["ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"]
# Layers that have a rank and an alpha of their own.
RANKS = {"mid_block.attentions.0.proj_in": 3, "up_blocks.1.resnets.0.conv1": 4}
ALPHAS = {"mid_block.attentions.0.proj_in": 4.5, "up_blocks.1.resnets.0.conv1": 1.0}
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def pipeline(dtype=torch.float32):
    """Each time anew: adapters leave traces in a network."""
    part = lambda kind, name: component(kind, name, dtype)
    return StableDiffusionPipeline(
        vae=part(AutoencoderKL, "vae"),
        text_encoder=part(CLIPTextModel, "clip_l"),
        tokenizer=CLIPTokenizer.from_pretrained(PIPELINES / "tokenizer"),
        unet=part(UNet2DConditionModel, "unet_sd15"),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def fill(model, seed):
    """Matrices that matter: fresh ones have B = 0. Rounded to f16, the dtype of the files."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            noise = torch.randn(parameter.shape, generator=generator)
            width = parameter[0].numel() if "lora_A" in name else 2
            parameter.copy_((0.5 * noise / width**0.5).half().float())


def half(tensors):
    return {key: value.half().contiguous() for key, value in tensors.items()}


def settings(model):
    """What a file is to say: the whole configuration names this machine's folders."""
    config = model.peft_config["default"].to_dict()
    kept = {key: config[key] for key in ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "use_rslora"]}
    return kept | {"target_modules": sorted(config["target_modules"])}


def write_diffusers(path, unet_layers, text_layers, seed, **config):
    pipe = pipeline()
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=unet_layers, **config))
    fill(pipe.unet, seed)
    layers = {"unet_lora_layers": half(get_peft_model_state_dict(pipe.unet))}
    layers["unet_lora_adapter_metadata"] = settings(pipe.unet)
    if text_layers:
        pipe.text_encoder.add_adapter(LoraConfig(r=3, lora_alpha=2, target_modules=text_layers))
        fill(pipe.text_encoder, seed + 1)
        layers["text_encoder_lora_layers"] = half(get_peft_model_state_dict(pipe.text_encoder))
        layers["text_encoder_lora_adapter_metadata"] = settings(pipe.text_encoder)
    StableDiffusionPipeline.save_lora_weights(path.parent, weight_name=path.name, **layers)
    # One entry: the order of several changes from run to run.
    with safe_open(path, "pt") as file:
        metadata = {"lora_adapter_metadata": file.metadata()["lora_adapter_metadata"]}
    save_file(load_file(path), path, metadata=metadata)


def write_kohya(path, source):
    """The diffusers file's matrices, with scales of their own."""
    tensors = convert_state_dict_to_kohya(load_file(source))
    # diffusers names the text encoder as SDXL's first.
    tensors = {key.replace("lora_te1_", "lora_te_").replace("lora_unet.", "lora_unet_"): value for key, value in tensors.items()}
    for index, key in enumerate(sorted(tensors)):
        if key.endswith(".alpha"):
            tensors[key] = torch.tensor(1.0 + index % 3)
    save_file(tensors, path)


def write_old(path):
    """As diffusers wrote before it had peft: attention processors hold the matrices."""
    generator = torch.Generator().manual_seed(7)
    pipe = pipeline()
    tensors = {}
    for part, model in [("unet", pipe.unet), ("text_encoder", pipe.text_encoder)]:
        for name, module in model.named_modules():
            match = re.fullmatch(r"(.*attn\d?)\.(to_q|to_k|to_v|to_out|q_proj|out_proj)(?:\.0)?", name)
            if not match or not isinstance(module, torch.nn.Linear):
                continue
            parent, layer = match.groups()
            if part == "unet":
                key = f"unet.{parent}.processor.{layer}_lora"
            else:
                key = f"text_encoder.text_model.{parent.removeprefix('text_model.')}.{layer}.lora_linear_layer"
            random = lambda *shape: (0.3 * torch.randn(shape, generator=generator)).half()
            tensors[f"{key}.down.weight"] = random(2, module.in_features)
            tensors[f"{key}.up.weight"] = random(module.out_features, 2)
    save_file(tensors, path)


def write_peft(folder):
    model = get_peft_model(pipeline().unet, LoraConfig(r=2, lora_alpha=3, use_rslora=True, target_modules=LAYERS + CONVOLUTIONS))
    fill(model, 9)
    model.save_pretrained(folder)
    file = folder / "adapter_model.safetensors"
    save_file(half(load_file(file)), file, metadata={"format": "pt"})
    # What names this machine, or says nothing.
    config = json.loads((folder / "adapter_config.json").read_text())
    kept = {key: config[key] for key in ["peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "alpha_pattern"]}
    kept["target_modules"] = sorted(kept["target_modules"])
    (folder / "adapter_config.json").write_text(json.dumps(kept, indent=2) + "\n")
    for path in folder.iterdir():
        if path.name not in ("adapter_model.safetensors", "adapter_config.json"):
            path.unlink()


class Inputs:
    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.sample = torch.randn(2, 4, 9, 13, generator=generator)
        self.timesteps = torch.tensor([981.0, 12.0])
        self.text = torch.randn(2, 11, 32, generator=generator)
        self.ids = torch.randint(1, 600, (2, 11), generator=generator)

    def outputs(self, pipe):
        dtype = pipe.unet.dtype
        out = pipe.unet(self.sample.to(dtype), self.timesteps, self.text.to(dtype)).sample
        return {"unet": nhwc(out), "text": pipe.text_encoder(self.ids).last_hidden_state}


def main():
    # What nadir wrote stays: NADIR_WRITE_GOLDEN=1 cargo nextest run --test lora adapters_that_were_trained
    ours = OUT / "nadir.safetensors"
    written = ours.read_bytes()
    shutil.rmtree(OUT)
    OUT.mkdir()
    ours.write_bytes(written)
    inputs = Inputs()
    tensors = {
        "sample": nhwc(inputs.sample), "timesteps": inputs.timesteps, "text": inputs.text, "ids": inputs.ids,
    }
    plain = inputs.outputs(pipeline())

    def keep(name, pipe):
        for part, out in inputs.outputs(pipe).items():
            moved = (out.float() - plain[part]).abs().max() / plain[part].abs().max()
            print(f"{name}.{part}: moved by {moved:.3f}")
            tensors[f"{name}.{part}"] = out

    config = dict(lora_alpha=3, rank_pattern=RANKS, alpha_pattern=ALPHAS)
    write_diffusers(OUT / "diffusers.safetensors", LAYERS + CONVOLUTIONS, TEXT, 5, **config)
    write_diffusers(OUT / "attention.safetensors", ATTENTION, None, 6)
    write_kohya(OUT / "kohya.safetensors", OUT / "diffusers.safetensors")
    write_old(OUT / "old.safetensors")
    write_peft(OUT / "peft")

    for name in ["diffusers", "kohya", "old"]:
        for index, weight in enumerate(WEIGHTS):
            pipe = pipeline()
            pipe.load_lora_weights(OUT / f"{name}.safetensors", adapter_name="a")
            pipe.set_adapters(["a"], [weight])
            keep(f"{name}.{index}", pipe)
    for index, weight in enumerate(WEIGHTS):
        pipe = pipeline()
        model = PeftModel.from_pretrained(pipe.unet, OUT / "peft")
        for module in model.modules():
            if hasattr(module, "set_scale"):
                module.set_scale("default", weight)
        keep(f"peft.{index}", pipe)
    pipe = pipeline()
    pipe.load_lora_weights(OUT / "diffusers.safetensors", adapter_name="a")
    pipe.load_lora_weights(OUT / "attention.safetensors", adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.8, 0.5])
    keep("stacked", pipe)
    # Trained by nadir, loaded by diffusers and, each part's keys alone, by peft.
    pipe = pipeline()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_lora_weights(ours, adapter_name="a")
    loaded = {key for key, _ in [*pipe.unet.named_parameters(), *pipe.text_encoder.named_parameters()] if "lora_" in key}
    tensors_of_ours = load_file(ours)
    assert len(loaded) == len(tensors_of_ours), f"{len(loaded)} of {len(tensors_of_ours)} matrices were taken"
    keep("nadir", pipe)
    pipe = pipeline()
    for part, prefix in [("unet", "unet."), ("text_encoder", "text_encoder.text_model.")]:
        state = {key.removeprefix(prefix): value for key, value in tensors_of_ours.items() if key.startswith(prefix)}
        layers = sorted({key.rsplit(".lora_", 1)[0] for key in state})
        ranks = {key.rsplit(".lora_", 1)[0]: value.shape[0] for key, value in state.items() if "lora_A" in key}
        (rank,) = set(ranks.values())
        network = getattr(pipe, part)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), network)
        result = set_peft_model_state_dict(network, state)
        assert not result.unexpected_keys and not [key for key in result.missing_keys if "lora_" in key], result
    keep("nadir_by_peft", pipe)
    # Merged in bf16, as fuse_lora does it.
    pipe = pipeline(torch.bfloat16)
    pipe.load_lora_weights(OUT / "diffusers.safetensors", adapter_name="a")
    pipe.fuse_lora(lora_scale=1.0)
    keep("fused_bf16", pipe)
    save_tensors(OUT / "golden.safetensors", tensors)


if __name__ == "__main__":
    main()
