"""Times a step of training (loss, gradient, AdamW) in PyTorch, on the networks of `examples/train_step.rs`.

    python benches/peers/torch_train.py unet --batch 64 [--dtype bf16]
"""

import argparse
import json
import resource
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel


def unet(batch):
    model = UNet2DConditionModel(
        sample_size=16, block_out_channels=(64, 128, 256), layers_per_block=1, attention_head_dim=4,
        cross_attention_dim=128, use_linear_projection=True,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    latents, target = torch.randn(batch, 4, 16, 16), torch.randn(batch, 4, 16, 16)
    text, timesteps = torch.randn(batch, 77, 128), torch.arange(batch) * 37 % 1000
    return model, lambda: torch.nn.functional.mse_loss(model(latents, timesteps, text).sample, target)


def vae(batch):
    model = AutoencoderKL(
        block_out_channels=(32, 64, 128), layers_per_block=1, latent_channels=4, norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )
    images = torch.randn(batch, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    def loss():
        return torch.nn.functional.mse_loss(model.decode(model.encode(images).latent_dist.mean).sample, images)

    return model, loss


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=["unet", "vae"])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model, loss = {"unet": unet, "vae": vae}[options.network](options.batch)
    # The layout that PyTorch's convolutions are fastest in on CPUs.
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    wall, cpu = [], []
    for _ in range(options.repeat + 1):
        start, before = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bf16"):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - before)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"engine": f"torch {torch.__version__}", "wall": wall[1:], "cpu": cpu[1:], "peak_kb": peak}))


if __name__ == "__main__":
    main()
