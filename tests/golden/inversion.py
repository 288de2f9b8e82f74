"""Golden prompts and pictures with textual inversions, as diffusers loads them.

Writes `inversion/weights.json` (the embeddings, which are drawn), `inversion/golden.safetensors`, what diffusers makes of prompts
with them (`pipelines.py`'s SD 1.x), and `inversion/drawn/`, a picture as `pipelines.py` has them.

    python tests/golden/inversion.py
"""

import diffusers
import pipelines
import torch
from common import HERE, draw, save_json, save_tensors
from transformers import CLIPTextModel

INVERSION = HERE / "inversion"

# Of three vectors, and of one without a row of its own.
EMBEDDINGS = {"<river>": (3, 32), "<haze>": (32,)}
PROMPT = "a satellite image of a <river>, <River> winding through farmland"
NEGATIVE = "<haze> low quality"


def teach(pipeline):
    for token, shape in EMBEDDINGS.items():
        pipeline.load_textual_inversion({token: draw(token, shape)})


def main():
    diffusers.logging.set_verbosity_error()
    # As `pipelines.py` has it.
    CLIPTextModel.text_model = property(lambda self: self)
    save_json(INVERSION / "weights.json", {token: list(shape) for token, shape in EMBEDDINGS.items()})
    scheduler = pipelines.SD | dict(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    case = pipelines.case(
        "drawn", pipelines.SD1, "DDIMScheduler", scheduler, prompt=PROMPT, negative_prompt=NEGATIVE, num_inference_steps=6, seed=3
    )
    pipeline = pipelines.build(case, torch.float32)
    teach(pipeline)
    tensors = dict(zip(("prompt", "negative_prompt"), pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE)))
    save_tensors(INVERSION / "golden.safetensors", tensors)
    image, latents = pipelines.run(case, torch.float32, teach)
    print(f"image mean {image.mean():.3f} std {image.std():.3f}, latents std {latents[-1].std():.2f}")
    assert image.std() > 0.1 and ((image <= 0) | (image >= 1)).float().mean() < 0.3
    folder = INVERSION / "drawn"
    save_tensors(folder / "golden.safetensors", {"image": image, "latents": latents})
    pipelines.write_folder(case, folder)
    save_json(
        folder / "case.json",
        {
            "components": pipelines.SD1, "seed": case["seed"], "num_images_per_prompt": 1,
            "arguments": {"height": pipelines.HEIGHT, "width": pipelines.WIDTH} | case["call"],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
