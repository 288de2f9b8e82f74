"""Golden logits, continuations and perplexities of transformers' causal language models.

Writes `decoder/NAME/`: `config.json`, `weights.json` (the name and shape of every tensor that transformers saves) and
`golden.safetensors`. No weights are kept: both sides draw each of them, bit for bit, from its name (`draw`).
And `decoder/tokenizer/`: a byte-level tokenizer of a few hundred tokens, with a chat template.

    python tests/golden/decoder.py
"""

import math

import common
import torch
from common import HERE, ROOT, save_json, save_tensors
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PhiConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

DECODER = HERE / "decoder"
VOCABULARY = 320
CONTEXT = 128
END = 0
TEXT = "You may reproduce and distribute copies of the Work or Derivative Works thereof in any medium, 24 of them at once. "

TEMPLATE = """{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}
        {{- raise_exception('Unknown role: ' + message['role']) }}
    {%- endif %}
    {{- '<|' + message['role'] + '|>\\n' + message['content'] | trim + eos_token + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
{%- endif %}
"""


def draw(name, shape):
    return common.draw(name, shape, largest=lambda _: 0.3)


def tokenizer():
    text = (ROOT / "LICENSE-APACHE").read_text()
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([text], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False)
    whole = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>")
    whole.chat_template = TEMPLATE
    whole.save_pretrained(DECODER / "tokenizer")
    template = DECODER / "tokenizer" / "chat_template.jinja"
    assert template.is_file()
    messages = [
        {"role": "system", "content": " Answer briefly. "},
        {"role": "user", "content": "What is a sampler?"},
    ]
    texts = ["", "a", TEXT, "naïve — 4,000 km²\n\n  indented\ttabs 🛰 <|endoftext|>done", "'s 're  it's 12345"]
    save_json(
        DECODER / "tokenizer" / "golden.json",
        {
            "texts": [{"text": text, "ids": whole(text)["input_ids"]} for text in texts],
            "messages": messages,
            "chat": whole.apply_chat_template(messages, tokenize=False, add_generation_prompt=True),
        },
    )
    return whole


def perplexity(model, ids, context, stride):
    """As transformers' page on the perplexity of models of fixed length: windows of `context` tokens, `stride` apart,
    each token scored once."""
    total, count, last = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + context, len(ids))
        window = torch.tensor([ids[begin:end]])
        scored = min(end - last, end - begin - 1)
        logits = model(window).logits[0, -scored - 1 : -1].double()
        targets = window[0, -scored:]
        total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        count += scored
        last = end
        if end == len(ids):
            break
    return math.exp(total / count)


def write(name, config, text):
    config.vocab_size, config.eos_token_id, config.bos_token_id, config.pad_token_id = VOCABULARY, END, END, END
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    weights = {name: list(value.shape) for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del weights["lm_head.weight"]
    for key, value in model.state_dict().items():
        if key in weights:
            value.copy_(draw(key, weights[key]))
    folder = DECODER / name
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    save_json(folder / "weights.json", weights)

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, VOCABULARY, (2, 19), generator=generator)
    tensors = {"ids": ids, "logits": model(ids).logits}

    # Prompts of unequal lengths, padded on the left, continued greedily; no token ends them.
    lengths = [3, 19, 1, 11]
    prompts = torch.full((len(lengths), max(lengths)), END)
    mask = torch.zeros_like(prompts)
    for row, length in enumerate(lengths):
        prompts[row, -length:] = torch.randint(1, VOCABULARY, (length,), generator=generator)
        mask[row, -length:] = 1
    continued = model.generate(
        prompts, attention_mask=mask, max_new_tokens=64, min_new_tokens=64, do_sample=False,
        eos_token_id=None, pad_token_id=END,
    )[:, prompts.shape[1] :]
    # Greedy choices that hang on rounding would make no test.
    margins = []
    for row, length in enumerate(lengths):
        whole = torch.cat([prompts[row, -length:], continued[row]])[None]
        top = model(whole).logits[0, length - 1 : -1].topk(2).values
        margins.append((top[:, 0] - top[:, 1]).min().item())
        assert (model(whole).logits[0, length - 1 : -1].argmax(-1) == continued[row]).all()
    print(f"{name}: logits {tensors['logits'].std():.2f}, least margin {min(margins):.5f}")
    tensors |= {"prompts": prompts, "lengths": torch.tensor(lengths), "continued": continued}
    tensors |= {"text": torch.tensor(text)}
    perplexities = {
        f"{context}.{stride}": perplexity(model, text, context, stride)
        for context, stride in [(CONTEXT, CONTEXT), (32, 16), (64, 7)]
    }
    save_tensors(folder / "golden.safetensors", tensors)
    save_json(folder / "perplexity.json", perplexities)


def main():
    text = tokenizer()(TEXT * 3)["input_ids"]
    text = [token % VOCABULARY for token in text]
    print(f"{len(text)} tokens of text")
    write("gpt2", GPT2Config(n_embd=48, n_layer=3, n_head=4, n_positions=CONTEXT, n_inner=80), text)
    shape = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4)
    shape |= dict(max_position_embeddings=CONTEXT)
    # Half of 12 channels are turned.
    write("phi", PhiConfig(**shape), text)
    write("llama2", LlamaConfig(**shape), text)
    # Two heads share keys; angles of every band: high, between, low.
    llama3 = dict(rope_type="llama3", rope_theta=1000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
    llama3 |= dict(original_max_position_embeddings=64)
    write("llama3", LlamaConfig(num_key_value_heads=2, rope_parameters=llama3, tie_word_embeddings=True, **shape), text)
    linear = dict(rope_type="linear", rope_theta=10000.0, factor=2.5)
    write("qwen2", Qwen2Config(num_key_value_heads=1, rope_parameters=linear, **shape), text)
    # Heads that are wider than their share of the model.
    write("qwen3", Qwen3Config(num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, **shape), text)


if __name__ == "__main__":
    main()
