"""Golden activations and pictures of AutoencoderTiny, which TAESD is.

Writes `tiny/NAME/`: for each network `config.json`, `weights.json` (weights are drawn) and `golden.safetensors`, inputs and
f32 outputs of diffusers; for each picture what `pipelines.py` writes, of a pipeline that has such a network as its vae.

    python tests/golden/tiny.py
"""

import diffusers
import pipelines
import torch
from common import HERE, drawn, nhwc, save_json, save_tensors
from diffusers import AutoencoderTiny
from transformers import CLIPTextModel

TINY = HERE / "tiny"

# The levels and blocks of TAESD.
TAESD = dict(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(16,) * 4)
OTHER = dict(
    encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(16,) * 3, num_encoder_blocks=(1, 0, 2),
    num_decoder_blocks=(2, 1, 0), act_fn="silu", latent_channels=16, scaling_factor=0.7, latent_magnitude=2, latent_shift=0.25,
)  # fmt: skip
# Magnified by four, once.
WIDE = dict(
    encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 2, num_encoder_blocks=(1, 1, 1),
    num_decoder_blocks=(1, 1), upsampling_scaling_factor=4, act_fn="gelu",
)  # fmt: skip


def network(name, config):
    return drawn(AutoencoderTiny(**config), TINY / name)


def activations(name, config):
    model = network(name, config)
    generator = torch.Generator().manual_seed(len(name))
    tensors = {}
    for index, (batch, height, width) in enumerate([(2, 33, 18), (1, 8, 24)]):
        image = torch.rand(batch, 3, height, width, generator=generator) * 2 - 1
        tensors |= {f"encode.{index}.image": nhwc(image), f"encode.{index}.latents": nhwc(model.encode(image).latents)}
    for index, (batch, height, width) in enumerate([(2, 3, 5), (1, 1, 2)]):
        latents = 2 * torch.randn(batch, model.config.latent_channels, height, width, generator=generator)
        image = model.decode(latents).sample
        print(f"{name} decode: mean {image.mean():.3f} std {image.std():.3f}")
        tensors |= {f"decode.{index}.latents": nhwc(latents), f"decode.{index}.image": nhwc(image)}
    save_tensors(TINY / name / "golden.safetensors", tensors)


def picture(name, pipeline, **call):
    scheduler = pipelines.SD | dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    case = pipelines.case(name, pipelines.SD1, "DDIMScheduler", scheduler, pipeline, num_inference_steps=6, **call)
    vae = network("taesd", TAESD)
    image, latents = pipelines.run(case, torch.float32, lambda pipeline: setattr(pipeline, "vae", vae))
    print(f"{name}: image mean {image.mean():.3f} std {image.std():.3f}, latents std {latents[-1].std():.2f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.5, name
    tensors = {"image": image, "latents": latents}
    if "Img2Img" in pipeline:
        tensors["init"] = torch.from_numpy(pipelines.inputs()[0])
    folder = TINY / name
    save_tensors(folder / "golden.safetensors", tensors)
    pipelines.write_folder(case, folder, vae="AutoencoderTiny")
    save_json(
        folder / "case.json",
        {
            "components": pipelines.SD1 | {"vae": "tiny/taesd"}, "seed": case["seed"], "num_images_per_prompt": 1,
            "arguments": {"height": pipelines.HEIGHT, "width": pipelines.WIDTH} | case["call"],
        },
    )  # fmt: skip


def main():
    diffusers.logging.set_verbosity_error()
    # As `pipelines.py` has it.
    CLIPTextModel.text_model = property(lambda self: self)
    for name, config in [("taesd", TAESD), ("other", OTHER), ("wide", WIDE)]:
        activations(name, config)
    picture("drawn", "StableDiffusionPipeline")
    picture("redrawn", "StableDiffusionImg2ImgPipeline", strength=0.6, seed=4)


if __name__ == "__main__":
    main()
