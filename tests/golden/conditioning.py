"""Golden activations and pictures of models that are told more of a picture than a prompt.

Writes `conditioning/NAME/`: `config.json`, `weights.json` (the name and shape of every tensor that diffusers saves; no
weights are kept: both sides draw each of them, bit for bit, from its name) and `golden.safetensors`. And for each pipeline
`conditioning/NAME/` with `model_index.json`, `scheduler/` and `case.json`, as `pipelines.py` has them.

`sat` and `diffusionsat` are measured against a reference of ours, `SatUNet` below, on diffusers' UNet: DiffusionSat's own
code needs a diffusers of 2023.

    python tests/golden/conditioning.py
"""

import zlib

import diffusers
import pipelines
import torch
from common import HERE, PIPELINES, component, drawn, nhwc, save_json, save_tensors
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.embeddings import TimestepEmbedding
from transformers import CLIPTextModel, CLIPTokenizer

CONDITIONING = HERE / "conditioning"

CROSS = dict(
    sample_size=8, norm_num_groups=8, layers_per_block=1, attention_head_dim=2, cross_attention_dim=32,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 24),
)  # fmt: skip


class SatUNet(UNet2DConditionModel):
    """Ours: DiffusionSat's `sat_unet.py` as an addition to the embedding of labels, which stands at the same place."""

    def told(self, count=7):
        width = self.config.block_out_channels[0]
        layers = [TimestepEmbedding(width, 4 * width) for _ in range(count)]
        self.metadata_embedding = torch.nn.ModuleList(layers)
        return self

    def get_class_embed(self, sample, class_labels):
        """`class_labels`: the metadata [B, 7]."""
        embedded = [layers(self.time_proj(class_labels[:, i])) for i, layers in enumerate(self.metadata_embedding)]
        return sum(embedded)


def unet(name, labels, model=UNet2DConditionModel, prepare=lambda model: model, more={}, **config):
    """`labels`: [N, inputs], or [N] of a table and of `timestep`; a batch of each size of 1 and N."""
    model = drawn(prepare(model(**CROSS | config)), CONDITIONING / name, **more)
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    tensors = {"labels": labels.float().reshape(len(labels), -1)}
    for index, (batch, height, width) in enumerate([(len(labels), 9, 13), (1, 8, 5)]):
        sample = torch.randn(batch, 4, height, width, generator=generator)
        text = torch.randn(batch, 77, model.config.cross_attention_dim, generator=generator)
        timesteps = torch.tensor([981.0, 12.625, 1.0, 501.0, 0.0, 999.0, 333.0][:batch])
        out = model(sample, timesteps, text, class_labels=labels[:batch]).sample
        # What is told has to matter.
        other = model(sample, timesteps, text, class_labels=labels[1:].repeat(7, *[1] * (labels.ndim - 1))[:batch]).sample
        assert (out - other).abs().max() > 0.01 * out.abs().max(), name
        print(f"{name} {height}x{width}: std {out.std():.3f}, another label {(out - other).std():.3f}")
        tensors |= {
            f"{index}.sample": nhwc(sample), f"{index}.timesteps": timesteps, f"{index}.text": text, f"{index}.out": nhwc(out),
        }  # fmt: skip
    save_tensors(CONDITIONING / name / "golden.safetensors", tensors)


def metadata_normalize(longitude, latitude, gsd, cloud, year, month, day):
    """DiffusionSat's, of what its data sets give it: `*_numerical_metadata` and `metadata_normalize` of `data_util.py`."""
    longitude, latitude, year = longitude + 180, latitude + 90, year - 1980
    return [
        longitude / 360 * 1000, latitude / 180 * 1000, gsd * 1000, cloud * 1000,
        year / 120 * 1000, month / 12 * 1000, day / 31 * 1000,
    ]  # fmt: skip


SAT = metadata_normalize(2.35, 48.85, 1.2, 0.1, 2021, 7, 4)
PARTS = dict(text_encoder="clip_l", vae="vae", tokenizer="tokenizer")
SCHEDULER = pipelines.SD | dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def picture(name, unet, label, call, settings, **kwargs):
    """A whole picture, whose unconditional half is told zeros. `settings` are what nadir is asked for."""
    seed = 3
    loaders = dict(text_encoder=CLIPTextModel, vae=AutoencoderKL)
    components = {part: component(loaders[part], PARTS[part]) for part in loaders}
    components["tokenizer"] = CLIPTokenizer.from_pretrained(PIPELINES / PARTS["tokenizer"])
    scheduler = diffusers.DDIMScheduler(**SCHEDULER)
    pipeline = StableDiffusionPipeline(
        **components, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    labels = torch.tensor(label).float()
    labels = torch.stack([torch.zeros_like(labels), labels])
    own = unet.forward
    unet.forward = lambda *args, **kwargs: own(*args, class_labels=labels, **kwargs)
    steps = []
    image = pipeline(
        **call,
        generator=torch.Generator().manual_seed(seed),
        callback_on_step_end=lambda _pipeline, _step, _t, seen: steps.append(nhwc(seen["latents"]).clone()) or {},
        output_type="np",
    ).images
    unet.forward = own
    image, latents = torch.from_numpy(image), torch.stack(steps)
    print(f"{name}: image mean {image.mean():.3f} std {image.std():.3f}, latents std {latents[-1].std():.2f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3, name
    save_tensors(CONDITIONING / name / "golden.safetensors", {"image": image, "latents": latents})
    save_json(
        CONDITIONING / name / "case.json",
        {
            "components": PARTS | {"unet": f"conditioning/{name}/unet"}, "seed": seed, "num_images_per_prompt": 1,
            "arguments": call | settings,
        },
    )  # fmt: skip


def index(name, pipeline, unet):
    """What the project publishes beside its components."""
    folder = CONDITIONING / name
    diffusers.DDIMScheduler(**SCHEDULER).save_config(folder / "scheduler")
    classes = dict(
        scheduler=["diffusers", "DDIMScheduler"], text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"], unet=unet, vae=["diffusers", "AutoencoderKL"],
        safety_checker=[None, None], feature_extractor=[None, None],
    )  # fmt: skip
    save_json(folder / "model_index.json", {"_class_name": pipeline, "_diffusers_version": "0.17.0.dev0", **classes})


def main():
    diffusers.logging.set_verbosity_error()
    # As `pipelines.py` has it.
    CLIPTextModel.text_model = property(lambda self: self)
    generator = torch.Generator().manual_seed(7)
    unet("table", torch.tensor([0, 6, 3]), num_class_embeds=7)
    unet("timestep", torch.tensor([0.0, 10.0, 16.0, 18.0, 11.0, 12.0, 17.0]), class_embed_type="timestep")
    unet("identity", torch.randn(3, 64, generator=generator), class_embed_type="identity")
    unet("projection", torch.randn(3, 5, generator=generator), class_embed_type="projection", projection_class_embeddings_input_dim=5)
    unet("simple_projection", torch.randn(3, 5, generator=generator), class_embed_type="simple_projection", projection_class_embeddings_input_dim=5)
    metadata = [SAT, [0.0] * 7, metadata_normalize(-58.4, -34.6, 0.31, 1.0, 1999, 12, 31)]
    sat = dict(model=SatUNet, prepare=SatUNet.told)
    unet("sat", torch.tensor(metadata), more=dict(class_name="SatUNet", use_metadata=True, num_metadata=7), **sat)

    call = dict(negative_prompt="", num_inference_steps=10, height=64, width=48)
    # Text2Earth's README: the level is the beginning of the prompt.
    model = UNet2DConditionModel(**CROSS, class_embed_type="timestep")
    model = drawn(model, CONDITIONING / "text2earth/unet")
    words = "Seven green circular farmlands are neatly arranged on the ground"
    picture("text2earth", model, 16.0, call | dict(prompt=words, guidance_scale=4.0), dict(prompt=f"16_GOOGLE_LEVEL_{words}"))
    index("text2earth", "StableDiffusionPipeline", ["diffusers", "UNet2DConditionModel"])
    model = SatUNet(**CROSS).told()
    model = drawn(model, CONDITIONING / "diffusionsat/unet", use_metadata=True, num_metadata=7)
    settings = dict(place="48.85,2.35", gsd=1.2, cloud=0.1, date="2021-07-04")
    picture("diffusionsat", model, SAT, call | dict(prompt="a fmow satellite image of a harbour", guidance_scale=7.5), settings)
    index("diffusionsat", "StableDiffusionPipeline", ["diffusionsat", "SatUNet"])


if __name__ == "__main__":
    main()
