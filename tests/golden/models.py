"""Golden activations of the text encoder, the UNet and the autoencoder.

Writes `models/NAME/`: `config.json`, `weights.json` (names and shapes: weights are drawn) and `golden.safetensors`, inputs and
f32 outputs of transformers / diffusers.
Images are [B, H, W, C].

    python tests/golden/models.py
"""

import torch
from common import MODELS, nhwc, save_component, save_tensors
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

# The vocabulary of `pipelines.py`: 256 bytes, 256 bytes that end a word, merges, start and end.
VOCABULARY = 640
START, END = VOCABULARY - 2, VOCABULARY - 1


def text_encoder(name, seed, **config):
    config = CLIPTextConfig(vocab_size=VOCABULARY, max_position_embeddings=77, bos_token_id=START, **config)
    config._attn_implementation = "eager"
    model = save_component(CLIPTextModel(config), name)

    # Two prompts of different length, as the tokenizer pads them: CLIP-L with its end token,
    # OpenCLIP with token 0. Position 76 of the second is the end token, nothing is padded.
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(1, START, (2, 77), generator=generator)
    ids[:, 0] = START
    ids[0, 9] = END
    ids[0, 10:] = END if config.hidden_act == "quick_gelu" else 0
    ids[1, 76] = END
    out = model(ids, output_hidden_states=True)
    norm = getattr(model, "text_model", model).final_layer_norm
    save_tensors(
        MODELS / name / "golden.safetensors",
        {
            "ids": ids,
            "last_hidden_state": out.last_hidden_state,
            "clip_skip_1": norm(out.hidden_states[-2]),
            "clip_skip_2": norm(out.hidden_states[-3]),
            "pooler_output": out.pooler_output,
        },
    )


def unet(name, seed, sizes, **config):
    """`sizes`: [(height, width, timesteps)], one batch each."""
    model = save_component(UNet2DConditionModel(norm_num_groups=8, sample_size=8, **config), name)

    seen = {}
    model.time_embedding.register_forward_hook(lambda _module, _inputs, out: seen.update(time_embedding=out))
    generator = torch.Generator().manual_seed(seed + 1)
    tensors = {}
    for index, (height, width, timesteps) in enumerate(sizes):
        batch = len(timesteps)
        sample = torch.randn(batch, model.config.in_channels, height, width, generator=generator)
        text = torch.randn(batch, 77, model.config.cross_attention_dim, generator=generator)
        timesteps = torch.tensor(timesteps)
        out = model(sample, timesteps, text).sample
        print(f"{name} {height}x{width}: std {out.std():.3f}")
        tensors |= {
            f"{index}.sample": nhwc(sample),
            f"{index}.timesteps": timesteps,
            f"{index}.text": text,
            f"{index}.time_embedding": seen["time_embedding"],
            f"{index}.out": nhwc(out),
        }
    save_tensors(MODELS / name / "golden.safetensors", tensors)


def vae(name, seed, images, latents, **config):
    """`images`, `latents`: [(height, width)], what is encoded and what is decoded."""
    model = save_component(AutoencoderKL(norm_num_groups=8, latent_channels=4, **config), name)
    bands = model.config.in_channels
    generator = torch.Generator().manual_seed(seed + 1)
    tensors = {}
    for index, (height, width) in enumerate(images):
        image = torch.rand(2 - index, bands, height, width, generator=generator) * 2 - 1
        posterior = model.encode(image).latent_dist
        tensors |= {
            f"encode.{index}.image": nhwc(image),
            f"encode.{index}.mean": nhwc(posterior.mean),
            f"encode.{index}.logvar": nhwc(posterior.logvar),
        }
    for index, (height, width) in enumerate(latents):
        latent = torch.randn(2 - index, 4, height, width, generator=generator)
        image = model.decode(latent).sample
        print(f"{name} decode: mean {image.mean():.3f} std {image.std():.3f}")
        tensors |= {f"decode.{index}.latent": nhwc(latent), f"decode.{index}.image": nhwc(image)}
    # Tiles of 4 x 4 latents: four rows of three, the last of each cut short.
    latent = torch.randn(1, 4, 10, 7, generator=generator)
    model.enable_tiling()
    tensors |= {"tiled.latent": nhwc(latent), "tiled.image": nhwc(model.decode(latent).sample)}
    save_tensors(MODELS / name / "golden.safetensors", tensors)


def main():
    # SD 1.x: quick GELU. Its folders say eos_token_id 2, which is not the end token: the pooled
    # state is then found at the largest id.
    text_encoder(
        "clip_l", 10, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        hidden_act="quick_gelu", eos_token_id=2, pad_token_id=1,
    )
    # SD 2.x: GELU, an end token that the configuration names.
    text_encoder(
        "openclip", 20, hidden_size=48, intermediate_size=112, num_hidden_layers=4, num_attention_heads=3,
        hidden_act="gelu", eos_token_id=END, pad_token_id=0,
    )

    cross = dict(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(16, 24, 32),
    )
    # 9x13 and 11x6 do not divide by 4: up blocks resize to their skip connection.
    sizes = [(9, 13, [981.0, 12.625]), (8, 12, [501.0]), (11, 6, [1.0, 0.0, 999.0])]
    # `attention_head_dim` 2 means two heads of 8, 12 and 16 channels.
    unet("unet_sd15", 30, sizes, layers_per_block=2, attention_head_dim=2, cross_attention_dim=32, **cross)
    # Heads of 8 channels each, linear projections, attention scores in f32.
    unet(
        "unet_sd21", 40, sizes, layers_per_block=1, attention_head_dim=(2, 3, 4), cross_attention_dim=48,
        use_linear_projection=True, upcast_attention=True, **cross,
    )
    # Latents, mask, masked latents.
    unet(
        "unet_inpaint", 50, sizes[:2], layers_per_block=1, in_channels=9, attention_head_dim=2,
        cross_attention_dim=32, **cross,
    )

    # 8 pixels a latent; 50x37 leaves odd sizes at every level.
    vae(
        "vae", 60, [(50, 37), (32, 48)], [(5, 7), (6, 4)], layers_per_block=2, scaling_factor=0.5,
        block_out_channels=(8, 16, 16, 24), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    # 4 pixels a latent, no attention.
    vae(
        "vae_plain", 70, [(21, 30)], [(7, 5)], layers_per_block=1, block_out_channels=(8, 16, 24),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )
    # Four bands, as a Sentinel-2 scene of 10 m.
    vae(
        "vae_bands", 80, [(14, 19), (8, 12)], [(5, 3), (4, 6)], layers_per_block=1, block_out_channels=(8, 16, 24),
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        in_channels=4, out_channels=4,
    )


if __name__ == "__main__":
    main()
