"""Golden training runs of a causal language model: twenty steps of AdamW of the whole model, and of low-rank adapters of peft.

Writes `language/model/`, a small GPT-2 in f16; `language/peft/`, adapters of it as peft saves them; and
`language/golden.safetensors`: batches whose rows are filled up behind their end, the loss of every step, a weight and its
average behind the last, and logits of the model with the adapters as they began; and the losses of a Phi and a Llama,
whose weights are those of `decoder.py`.

    python tests/golden/language.py
"""

import json

import torch
from common import HERE, save_json, save_tensors
from decoder import DECODER, draw
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

OUT = HERE / "language"
VOCABULARY = 320
STEPS = 20
EMA_DECAY = 0.9
FILLING = -100
WATCHED = "transformer.h.1.mlp.c_fc.weight"


def fill(name, parameter, seed):
    """Values that matter, which f16 holds: initialisers leave norms at (1, 0), biases and B at 0."""
    noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    if parameter.ndim == 1:
        value = 1 + 0.2 * noise if name.endswith("weight") else 0.1 * noise
    else:
        value = 0.05 * noise
    parameter.copy_(value.half().float())


def model():
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=48, n_layer=3, n_head=4, n_positions=64, bos_token_id=0,
                        eos_token_id=0, pad_token_id=0, attn_implementation="eager")
    model = GPT2LMHeadModel(config).eval()  # no dropout
    for seed, (name, parameter) in enumerate(model.named_parameters()):
        fill(name, parameter, seed)
    return model


def drawn(name):
    """The model of that name in `decoder.py`."""
    folder = DECODER / name
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval()
    weights = json.loads((folder / "weights.json").read_text())
    for key, value in model.state_dict().items():
        if key in weights:
            value.copy_(draw(key, weights[key]))
    return model


def batches():
    """Of 3 rows each, the ids of a filled place being 0 and its target `FILLING`."""
    generator = torch.Generator().manual_seed(3)
    made = []
    for lengths in [[11, 4, 9], [1, 7, 7], [16, 16, 2], [5, 3, 13]]:
        ids = torch.zeros(3, max(lengths), dtype=torch.long)
        targets = torch.full_like(ids, FILLING)
        for row, length in enumerate(lengths):
            tokens = torch.randint(1, VOCABULARY, (length + 1,), generator=generator)
            ids[row, :length], targets[row, :length] = tokens[:-1], tokens[1:]
        made.append((ids, targets))
    return made


def train(model, parameters, rate):
    torch.set_grad_enabled(True)
    optimizer = torch.optim.AdamW(parameters.values(), lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)
    average = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    losses, norms = [], []
    made = batches()
    for number in range(1, STEPS + 1):
        ids, targets = made[(number - 1) % len(made)]
        optimizer.zero_grad()
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=FILLING)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0))
        optimizer.step()
        decay = min(EMA_DECAY, number / (9 + number))
        for name, parameter in parameters.items():
            average[name].lerp_(parameter.detach(), 1 - decay)
        losses.append(loss.detach())
    torch.set_grad_enabled(False)
    return {"losses": torch.stack(losses), "norms": torch.stack(norms)}, average


def main():
    tensors = {}
    for i, (ids, targets) in enumerate(batches()):
        tensors |= {f"ids.{i}": ids, f"targets.{i}": targets}

    whole = model()
    folder = OUT / "model"
    folder.mkdir(parents=True, exist_ok=True)
    whole.config.architectures, whole.config.dtype = ["GPT2LMHeadModel"], "float16"
    whole.config.save_pretrained(folder)
    weights = {name: value.half().contiguous() for name, value in whole.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    parameters = dict(whole.named_parameters())
    result, average = train(whole, parameters, 1e-3)
    # GPT-2's files have these matrices as [inputs, outputs].
    result |= {"weight": parameters[WATCHED].detach().T, "average": average[WATCHED].T}
    tensors |= {f"full.{key}": value for key, value in result.items()}

    base = model()
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
                        fan_in_fan_out=True, task_type="CAUSAL_LM")
    adapted = get_peft_model(base, config).eval()
    for seed, (name, parameter) in enumerate(adapted.named_parameters()):
        if "lora_" in name:
            fill(name, parameter, seed)
    own = {key: value.clone() for key, value in get_peft_model_state_dict(adapted).items()}
    (OUT / "peft").mkdir(parents=True, exist_ok=True)
    save_file(own, OUT / "peft" / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = config.to_dict()
    kept = ["bias", "fan_in_fan_out", "lora_alpha", "lora_dropout", "peft_type", "r", "task_type"]
    settings = {key: getattr(settings[key], "value", settings[key]) for key in kept}
    settings["target_modules"] = sorted(config.target_modules)
    save_json(OUT / "peft" / "adapter_config.json", settings)
    tensors["lora.logits"] = adapted(input_ids=batches()[0][0], attention_mask=torch.ones(3, 11)).logits
    parameters = {name: parameter for name, parameter in adapted.named_parameters() if "lora_" in name}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    result, _ = train(adapted, parameters, 1e-2)
    watched = "base_model.model.transformer.h.1.mlp.c_fc.lora_B.default.weight"
    result["weight"] = parameters[watched].detach()
    tensors |= {f"lora.{key}": value for key, value in result.items()}
    for name in ["phi", "llama3"]:
        whole = drawn(name)
        result, _ = train(whole, dict(whole.named_parameters()), 1e-3)
        tensors |= {f"{name}.{key}": value for key, value in result.items()}
    for key in ["full", "lora", "phi", "llama3"]:
        print(key, [round(float(x), 4) for x in tensors[f"{key}.losses"]])
    save_tensors(OUT / "golden.safetensors", tensors)


if __name__ == "__main__":
    main()
