"""One update of nadir's `--recipe rsicd-sd15` in PyTorch, on the numbers that `examples/recipe_update.rs` draws.

    python benches/peers/torch_recipe.py MODEL PICTURES
"""

import argparse
import json
import pathlib
import resource
import time

import numpy
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from PIL import Image
from transformers import AutoTokenizer, CLIPTextModel

BATCHES = 4


class Random:
    """nadir's numbers of a step: Philox4x32-10, the seed as key, the address in the counter."""

    def __init__(self, seed, step):
        self.key, self.address = (seed & 0xFFFFFFFF, seed >> 32), (step & 0xFFFFFFFF, step >> 32, 2)
        self.blocks, self.words = 0, []

    def block(self):
        counter, key = [self.blocks, *self.address], list(self.key)
        for _ in range(10):
            a, b = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
            counter = [(b >> 32) ^ counter[1] ^ key[0], b & 0xFFFFFFFF, (a >> 32) ^ counter[3] ^ key[1], a & 0xFFFFFFFF]
            key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
        self.blocks += 1
        return counter

    def word(self):
        if not self.words:
            self.words = self.block()
        return self.words.pop(0)

    def normal(self, *shape):
        values = []
        while len(values) < numpy.prod(shape):
            radius, angle = (-2 * numpy.log(1 - self.word() / 2**32)) ** 0.5, 2 * numpy.pi * self.word() / 2**32
            values += [radius * numpy.cos(angle), radius * numpy.sin(angle)]
        values = numpy.array(values[: numpy.prod(shape)]).reshape(shape)
        return torch.tensor(values, dtype=torch.float32).permute(0, 3, 1, 2)

    def below(self, n):
        return self.word() * n >> 32


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("pictures", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    line = json.loads((options.pictures / "metadata.jsonl").read_text().splitlines()[0])
    image = numpy.asarray(Image.open(options.pictures / line["file_name"]).convert("RGB"))
    image = torch.tensor(image).permute(2, 0, 1)[None].float() / 127.5 - 1

    f32 = {"torch_dtype": torch.float32}
    unet = UNet2DConditionModel.from_pretrained(options.model / "unet", **f32).train()
    unet.enable_gradient_checkpointing()
    vae = AutoencoderKL.from_pretrained(options.model / "vae", **f32).requires_grad_(False)
    text_encoder = CLIPTextModel.from_pretrained(options.model / "text_encoder", **f32).requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(options.model / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(options.model / "scheduler")
    average = EMAModel(unet.parameters(), decay=0.9999)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-6, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    ids = tokenizer(line["text"], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids

    start, random, total = time.perf_counter(), Random(0, 0), 0.0
    for _ in range(BATCHES):
        with torch.no_grad():
            posterior = vae.encode(image).latent_dist
            size = posterior.mean.shape[2:]
            clean = (posterior.mean + posterior.std * random.normal(1, *size, 4)) * vae.config.scaling_factor
            text = text_encoder(ids)[0]
        noise = random.normal(1, *size, 4)
        timestep = torch.tensor([random.below(1000)])
        random.word()  # whether the prompt is left empty
        noisy = scheduler.add_noise(clean, noise, timestep)
        loss = torch.nn.functional.mse_loss(unet(noisy, timestep, text).sample, noise)
        (loss / BATCHES).backward()
        total += loss.item() / BATCHES
    # PyTorch's own length, which clips, is summed in f32: 1.6e-3 too short for the largest weight's gradient alone.
    length = sum(float((p.grad.double() ** 2).sum()) for p in unet.parameters()) ** 0.5
    torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
    optimizer.step()
    average.step(unet.parameters())
    wall, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = {"engine": f"torch {torch.__version__}", "loss": total, "norm": length, "wall": wall, "peak_kb": peak}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
