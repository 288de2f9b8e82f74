"""Writes a random model of GPT-2's shape (124M parameters): a transformers folder, f32, about 0.5 GB.

    python benches/peers/make_gpt2_folder.py FOLDER

Speed and memory do not depend on what the weights say, only on their shapes, so no download is needed. The tokenizer is a
byte-level BPE of GPT-2's size whose merges are pairs of bytes.
"""

import argparse
import itertools
import pathlib

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def tokenizer(size):
    end = "<|endoftext|>"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(itertools.islice(itertools.product(letters, letters), size - len(letters) - 1))
    vocabulary = [*letters, *(a + b for a, b in merges), end]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=end, eos_token=end)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    model = GPT2LMHeadModel(GPT2Config())
    model.save_pretrained(arguments.folder)
    tokenizer(model.config.vocab_size).save_pretrained(arguments.folder)


if __name__ == "__main__":
    main()
