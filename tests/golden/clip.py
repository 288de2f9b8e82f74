"""Golden embeddings and scores of CLIP: transformers' CLIPModel, its Pillow image processor, torchmetrics' CLIP score.

Writes `clip/NAME/`: `config.json` and `preprocessor_config.json` as `save_pretrained` writes them, `weights.json` (the name and
shape of every tensor that goes with them) and `golden.safetensors`. No weights are kept: both sides draw each, bit for bit,
from its name (`draw`). References compute in f64. Texts are in `texts.json`, in the vocabulary of `pipelines/tokenizer`.

    python tests/golden/clip.py
"""

import json
import math

import common
import torch
from common import HERE, PIPELINES, nhwc, save_json, save_tensors
from torchmetrics.functional.multimodal import clip_score
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

FOLDER = HERE / "clip"
VOCABULARY = 640
TEXTS = [
    "a satellite image of a river",
    "many buildings, and some trees beside a road; it is an industrial area of the town",
    "",
]


def draw(name, shape):
    return common.draw(name, shape, largest=lambda inputs: math.sqrt(6 / inputs))


def picture(name, height, width):
    """Levels [3, height, width]: smooth with some noise."""
    small = draw(f"{name}.smooth", (1, 3, 5, 6))
    smooth = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")[0]
    noisy = 0.5 + 0.3 * smooth + 0.1 * draw(f"{name}.grain", (3, height, width))
    return (255 * noisy.clamp(0, 1)).round().byte()


class Features:
    """A CLIPModel as torchmetrics expects it: of transformers before 5."""

    def __init__(self, model):
        self.model, self.config = model, model.config

    def to(self, _device):
        return self

    def get_image_features(self, pixel_values):
        return self.model.get_image_features(pixel_values.double()).pooler_output

    def get_text_features(self, input_ids, attention_mask):
        return self.model.get_text_features(input_ids, attention_mask).pooler_output


def write(name, size, eos_token_id, projection_dim, text, vision, **preprocessor):
    folder = FOLDER / name
    text = dict(text, vocab_size=VOCABULARY, bos_token_id=VOCABULARY - 2, eos_token_id=eos_token_id, pad_token_id=0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection_dim)).eval()
    state = {k: v for k, v in model.state_dict().items() if k != "logit_scale"}
    for key, value in state.items():
        value.copy_(draw(key, value.shape))
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = ["CLIPModel"]
    model.config.save_pretrained(folder)
    save_json(folder / "weights.json", {k: list(v.shape) for k, v in state.items()})
    images = CLIPImageProcessorPil(size=size, crop_size=vision["image_size"], **preprocessor)
    images.save_pretrained(folder)

    tokenizer = CLIPTokenizerFast.from_pretrained(PIPELINES / "tokenizer")
    model = model.double()
    pictures = [picture(f"picture.{i}", h, w) for i, (h, w) in enumerate([(23, 41), (64, 64), (90, 37)])]
    pixels = images(pictures, return_tensors="pt")["pixel_values"]
    ids = tokenizer(TEXTS, return_tensors="pt", padding="max_length", max_length=77)["input_ids"]
    seen = model.vision_model(pixels.double())
    features = Features(model)
    tensors = {f"picture.{i}": x.permute(1, 2, 0) for i, x in enumerate(pictures)} | {
        "pixels": nhwc(pixels),
        "ids": ids,
        "states": seen.last_hidden_state,
        "pooled": seen.pooler_output,
        "images": features.get_image_features(pixels),
        "texts": features.get_text_features(ids, None),
    }
    processor = CLIPProcessor(image_processor=images, tokenizer=tokenizer)
    pair = lambda i: clip_score(pictures[i], TEXTS[i], lambda: (features, processor))
    tensors["mean"] = clip_score(pictures, TEXTS, lambda: (features, processor))[None]
    tensors["scores"] = torch.stack([pair(i) for i in range(3)])
    # torchvision's antialiased resize of levels, which transformers takes where it is installed, is not Pillow's to the level.
    other = CLIPProcessor(image_processor=CLIPImageProcessor.from_pretrained(folder), tokenizer=tokenizer)
    print(name, tensors["mean"], clip_score(pictures, TEXTS, lambda: (features, other)), tensors["scores"])
    save_tensors(folder / "golden.safetensors", tensors)


FOLDER.mkdir(exist_ok=True)
(FOLDER / "texts.json").write_text(json.dumps(TEXTS) + "\n")
# 30 pixels are four patches of 7, and two that are not seen.
write(
    "quick_gelu", {"shortest_edge": 30}, 2, 20,
    dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
    dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, image_size=30, patch_size=7),
)
# Resized beyond what is cut out, normalised otherwise.
write(
    "gelu", {"shortest_edge": 37}, VOCABULARY - 1, 24,
    dict(hidden_size=40, intermediate_size=56, num_hidden_layers=3, num_attention_heads=5, hidden_act="gelu"),
    dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
         hidden_act="gelu", layer_norm_eps=1e-6),
    image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4],
)
