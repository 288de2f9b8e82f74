"""Golden training runs: twenty steps of AdamW, with a moving average of the weights, on one batch.

Starts from the networks that `models.py` wrote. Writes `training/golden.safetensors`: for each network the batch, the loss of
every step, and a weight with its average behind the last; and how far losses in bf16 and fp16 by autocast are from these.

    python tests/golden/training.py
"""

import torch
from common import HERE, component, nhwc, save_tensors
from diffusers import AutoencoderKL, UNet2DConditionModel

STEPS = 20
EMA_DECAY = 0.9
# Twenty steps make much of little: of runs in 16 bits from weights that differ by a hundred-thousandth the losses are off by
# once to three times as much as each other's.
RUNS = 8


def train(model, loss, watched, dtype, seed):
    """`loss()` is minimised, from weights that `seed` moves a little. Returns losses, and the watched weight with its average."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters() if seed else []:
        parameter.mul_(1 + 1e-5 * torch.randn(parameter.shape, generator=generator))
    torch.set_grad_enabled(True)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    model.train()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    average = parameters[watched].detach().clone()
    losses, norms = [], []
    for number in range(1, STEPS + 1):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            value = loss()
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0))
        scaler.step(optimizer)
        scaler.update()
        decay = min(EMA_DECAY, number / (9 + number))
        average.lerp_(parameters[watched].detach(), 1 - decay)
        losses.append(value.detach())
    torch.set_grad_enabled(False)
    return {
        "losses": torch.stack(losses),
        "norms": torch.stack(norms),
        "weight": parameters[watched].detach().clone(),
        "average": average,
    }


def unet(dtype=torch.float32, seed=0):
    model = component(UNet2DConditionModel, "unet_sd21")
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(3, 4, 8, 12, generator=generator)
    text = torch.randn(3, 77, 48, generator=generator)
    target = torch.randn(3, 4, 8, 12, generator=generator)
    timesteps = torch.tensor([981.0, 12.0, 501.0])

    def loss():
        return torch.nn.functional.mse_loss(model(sample, timesteps, text).sample, target)

    result = train(model, loss, "mid_block.resnets.0.conv1.weight", dtype, seed)
    return result | {"sample": nhwc(sample), "text": text, "target": nhwc(target), "timesteps": timesteps}


def vae(dtype=torch.float32, seed=0):
    model = component(AutoencoderKL, "vae_plain")
    generator = torch.Generator().manual_seed(11)
    image = torch.rand(2, 3, 20, 16, generator=generator) * 2 - 1
    noise = torch.randn(2, 4, 5, 4, generator=generator)

    def loss():
        posterior = model.encode(image).latent_dist
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        off = (decoded - image).abs()
        # Slopes that hang on rounding would make no test: those of pixels that are all but right.
        assert seed or dtype != torch.float32 or off.min() > 1e-5
        return off.mean() + 1e-3 * posterior.kl().mean()

    result = train(model, loss, "decoder.conv_in.weight", dtype, seed)
    return result | {"image": nhwc(image), "noise": nhwc(noise)}


def off(losses, exact):
    """The largest difference; behind a step that was skipped the next loss is the same again, and is left out."""
    again = torch.cat([torch.tensor([False]), losses[1:] == losses[:-1]])
    losses = losses[~again]
    return (losses - exact[: len(losses)]).abs().max()


def main():
    tensors = {}
    for name, run in [("unet", unet), ("vae", vae)]:
        result = run()
        print(name, [round(float(x), 4) for x in result["losses"]])
        for dtype in [torch.bfloat16, torch.float16]:
            found = [off(run(dtype, seed)["losses"], result["losses"]) for seed in range(RUNS)]
            print(name, dtype, "off by", [f"{x:.1e}" for x in found])
            result[f"off.{dtype}".replace("torch.", "")] = torch.stack(found).max()
        tensors |= {f"{name}.{key}": value for key, value in result.items()}
    save_tensors(HERE / "training" / "golden.safetensors", tensors)


if __name__ == "__main__":
    main()
