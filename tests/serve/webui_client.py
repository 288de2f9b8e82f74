"""What a user of PyPI's webuiapi does, against the server on the port that is given."""

import sys

import webuiapi
from PIL import Image

api = webuiapi.WebUIApi(host="127.0.0.1", port=int(sys.argv[1]), sampler="Euler a", steps=2)

assert "DPM++ 2M Karras" in [sampler["name"] for sampler in api.get_samplers()]
assert api.util_get_current_model().startswith("eurosat-64")

asked = dict(prompt="a river", negative_prompt="snow", seed=7, cfg_scale=4, width=64, height=64)
first, again = api.txt2img(**asked), api.txt2img(**asked)
assert first.image.size == (64, 64) and first.image.tobytes() == again.image.tobytes()
assert first.info["all_seeds"] == [7], first.info

several = api.txt2img(**{**asked, "batch_size": 2, "n_iter": 2})
assert len(several.images) == 4 and several.images[0].tobytes() == first.image.tobytes()

started = api.img2img(images=[first.image], prompt="a forest", seed=1, steps=4, denoising_strength=0.5, width=64, height=64)
assert started.image.tobytes() != first.image.tobytes()

mask = Image.new("RGB", (64, 64))
mask.paste((255, 255, 255), (0, 0, 32, 64))
painted = api.img2img(
    images=[first.image], mask_image=mask, prompt="a forest", seed=1, steps=2, width=64, height=64, inpainting_fill=1,
    inpaint_full_res=False,
)
assert painted.image.tobytes() != first.image.tobytes()

assert api.get_progress()["progress"] == 0
api.interrupt()
