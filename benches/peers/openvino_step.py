"""Times one guidance step (UNet at batch 2) and the decoder of a diffusers folder in OpenVINO.

    python benches/peers/openvino_step.py FOLDER --inputs inputs.safetensors --decode

Conversion from PyTorch is not counted as loading: OpenVINO users convert once and keep the result.
`load_s` is the compilation. Peak memory includes the conversion and says nothing about OpenVINO alone.
"""

import gc
import time

import openvino as ov
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from measure import arguments, clock, read_inputs, report


class Unet(torch.nn.Module):
    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, latents, timestep, text):
        return self.unet(latents, timestep, text, return_dict=False)[0]


class Decoder(torch.nn.Module):
    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latents):
        return self.vae.decode(latents, return_dict=False)[0]


def convert(module, inputs):
    with torch.inference_mode():
        model = ov.convert_model(module, example_input=inputs, input=[tuple(x.shape) for x in inputs])
    gc.collect()
    return model


def main():
    options = arguments(__doc__.splitlines()[0])
    core = ov.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": options.threads,
        "INFERENCE_PRECISION_HINT": options.dtype,
    }
    inputs = read_inputs(options.inputs)
    latents, text, timestep = inputs
    unet = convert(Unet(UNet2DConditionModel.from_pretrained(options.folder / "unet").eval()), (latents, timestep, text))
    start = time.perf_counter()
    unet = core.compile_model(unet, "CPU", config)
    load = time.perf_counter() - start
    step, noise = clock(lambda: unet([latents, timestep, text])[0], options.repeat)
    decode, image = [], None
    if options.decode:
        del unet
        vae = convert(Decoder(AutoencoderKL.from_pretrained(options.folder / "vae").eval()), (latents[:1],))
        start = time.perf_counter()
        vae = core.compile_model(vae, "CPU", config)
        load += time.perf_counter() - start
        decode, image = clock(lambda: torch.from_numpy(vae([latents[:1]])[0]), options.repeat)
    report(f"openvino {ov.__version__.split('-')[0]}", options, load, step, decode, torch.from_numpy(noise), image)


if __name__ == "__main__":
    main()
