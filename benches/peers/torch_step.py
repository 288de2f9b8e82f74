"""Times one guidance step (UNet at batch 2) and the decoder of a diffusers folder in PyTorch.

    python benches/peers/torch_step.py FOLDER --inputs inputs.safetensors --decode
"""

import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from measure import DTYPES, arguments, clock, read_inputs, report
from transformers import CLIPTextModel


def main():
    options = arguments(__doc__.splitlines()[0])
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype]
    start = time.perf_counter()
    unet = UNet2DConditionModel.from_pretrained(options.folder / "unet", dtype=dtype).eval()
    vae = AutoencoderKL.from_pretrained(options.folder / "vae", dtype=dtype).eval()
    # Held as a pipeline holds it, so that memory compares.
    text_encoder = CLIPTextModel.from_pretrained(options.folder / "text_encoder", dtype=dtype).eval()
    load = time.perf_counter() - start
    latents, text, timestep = read_inputs(options.inputs)
    latents, text = latents.to(dtype), text.to(dtype)
    decode, image = [], None
    with torch.inference_mode():
        step, noise = clock(lambda: unet(latents, timestep, text).sample, options.repeat)
        if options.decode:
            decode, image = clock(lambda: vae.decode(latents[:1]).sample, options.repeat)
    del text_encoder
    report(f"torch {torch.__version__}", options, load, step, decode, noise, image)


if __name__ == "__main__":
    main()
