"""Golden activations and pictures of LDSR-S2, the super-resolution of Sentinel-2 of opensr-model.

Writes `ldsr/`: `config.json` (the fields of opensr-model's `config_10m.yaml`, written by hand, small), `weights.json` (weights
are drawn), `networks/golden.safetensors`, inputs and f32 outputs of its UNet and its autoencoder, and `pictures/golden.safetensors`,
what the whole makes of an image, with the schedule of the model.

    python tests/golden/ldsr.py
"""

import json

import opensr_model.srmodel as srmodel
import torch
from common import HERE, draw, nhwc, save_json, save_tensors
from omegaconf import OmegaConf

LDSR = HERE / "ldsr"

CONFIG = dict(
    apply_normalization=False,
    encode_conditioning=True,
    denoiser_settings=dict(
        linear_start=0.0001, linear_end=0.015, timesteps=1000, parameterization="eps", sampling_eta=0.0,
        sampling_temperature=1.0, sampling_steps=10,
    ),
    first_stage_config=dict(
        embed_dim=4, double_z=True, z_channels=4, resolution=64, in_channels=4, out_ch=4, ch=32, ch_mult=[1, 2, 2],
        num_res_blocks=1, attn_resolutions=[], dropout=0.0,
    ),
    cond_stage_config=dict(
        image_size=16, in_channels=8, model_channels=32, out_channels=4, num_res_blocks=1, attention_resolutions=[4, 2],
        channel_mult=[1, 2, 2], num_head_channels=16,
    ),
    other=dict(concat_mode=True, cond_stage_trainable=False, first_stage_key="image", cond_stage_key="LR_image"),
)  # fmt: skip

# How pictures are made: seed, steps, eta, temperature, whether histograms are matched.
PICTURES = dict(plain=(3, 10, 0.0, 1.0, False), matched=(4, 8, 0.5, 0.8, True))


def model():
    """The model, its weights drawn from their names; averages over a training are no part of it."""
    net = srmodel.SRLatentDiffusion(OmegaConf.create(CONFIG), device="cpu")
    weights = {name: value for name, value in net.model.named_parameters()}
    for name, value in weights.items():
        value.copy_(draw(name, value.shape))
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(list(value.shape))}" for name, value in weights.items())
    save_json(LDSR / "config.json", CONFIG)
    (LDSR / "weights.json").write_text("{" + lines + "}\n")
    return net


def networks(net):
    generator = torch.Generator().manual_seed(1)
    first, unet = net.model.first_stage_model, net.model.model
    image = torch.rand(2, 4, 16, 24, generator=generator)
    posterior = first.encode(image)
    latents, condition, noisy = (torch.randn(2, 4, 4, 8, generator=generator) for _ in range(3))
    timesteps = torch.tensor([901, 12])
    out = unet(noisy, timesteps, c_concat=[condition])
    decoded = first.decode(latents)
    for name, tensor in [("mean", posterior.mean), ("logvar", posterior.logvar), ("unet", out), ("decoded", decoded)]:
        print(f"{name}: mean {tensor.mean():.3f} std {tensor.std():.3f}")
    tensors = dict(
        image=nhwc(image), mean=nhwc(posterior.mean), logvar=nhwc(posterior.logvar), latents=nhwc(latents),
        decoded=nhwc(decoded), noisy=nhwc(noisy), condition=nhwc(condition), out=nhwc(out), timesteps=timesteps.float(),
    )  # fmt: skip
    save_tensors(LDSR / "networks" / "golden.safetensors", tensors)


def pictures(net):
    # Its images are made 128 pixels wide at least; the networks take smaller ones.
    srmodel.assert_tensor_validity = lambda image: (image, (0, 0, 0, 0))
    generator = torch.Generator().manual_seed(2)
    coarse = 0.05 + 0.35 * torch.rand(1, 4, 3, 3, generator=generator)
    image = torch.nn.functional.interpolate(coarse, size=(12, 12), mode="bicubic").clamp(0.01)
    image += 0.02 * torch.rand(image.shape, generator=generator)
    tensors = dict(image=nhwc(image), betas=net.model.betas)
    for name, (seed, steps, eta, temperature, matches) in PICTURES.items():
        kept = []
        decode = net._tensor_decode
        net._tensor_decode = lambda latents, spe_cor: (kept.append(latents), decode(latents, spe_cor))[1]
        torch.manual_seed(seed)
        large = net(
            image, sampling_eta=eta, sampling_steps=steps, sampling_temperature=temperature, histogram_matching=matches
        )
        net._tensor_decode = decode
        print(f"{name}: latents std {kept[0].std():.2f}, mean {large.mean():.3f} std {large.std():.3f}")
        assert large.std() > 0.05 and (large == 0).float().mean() < 0.7, name
        tensors |= {f"{name}.latents": nhwc(kept[0]), f"{name}.image": nhwc(large)}
        tensors[f"{name}.condition"] = nhwc(condition(net, image, seed))
    save_tensors(LDSR / "pictures" / "golden.safetensors", tensors)


def condition(net, image, seed):
    torch.manual_seed(seed)
    return net._tensor_encode(image.clone())


if __name__ == "__main__":
    net = model()
    networks(net)
    pictures(net)
