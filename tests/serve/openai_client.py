"""What a user of PyPI's openai does, against the server on the port that is given."""

import base64
import io
import sys

from openai import BadRequestError, NotFoundError, OpenAI
from PIL import Image

client = OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="unused", max_retries=0)


def picture(reply, index=0):
    return Image.open(io.BytesIO(base64.b64decode(reply.data[index].b64_json)))


def png(image):
    file = io.BytesIO()
    image.save(file, "png")
    return ("picture.png", file.getvalue(), "image/png")


names = [model.id for model in client.models.list()]
assert names == ["eurosat-64", "rsicd-lm"], names

asked = dict(prompt="a river", n=2, size="64x64", model="eurosat-64", extra_body={"seed": 7, "steps": 2})
first, again = client.images.generate(**asked), client.images.generate(**asked)
assert len(first.data) == 2 and picture(first).size == (64, 64)
assert first.data[0].b64_json == again.data[0].b64_json != first.data[1].b64_json

mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
edited = client.images.edit(
    image=png(picture(first)), mask=png(mask), prompt="a forest", model="eurosat-64", extra_body={"steps": 2, "seed": 1}
)
assert picture(edited).size == (64, 64)

whole = client.completions.create(model="rsicd-lm", prompt="river:", max_tokens=8, seed=3, temperature=0.5)
pieces = client.completions.create(model="rsicd-lm", prompt="river:", max_tokens=8, seed=3, temperature=0.5, stream=True)
assert whole.choices[0].text == "".join(piece.choices[0].text for piece in pieces)
assert whole.usage.completion_tokens <= 8

try:
    client.images.generate(prompt="x", size="63x64", model="eurosat-64")
    raise SystemExit("a size that cannot be was taken")
except BadRequestError as error:
    assert "multiple of 8" in str(error), error
try:
    client.images.generate(prompt="x", model="dall-e-3")
    raise SystemExit("a model that is not there was taken")
except NotFoundError as error:
    assert "eurosat-64" in str(error), error
