"""Times torch-fidelity's InceptionV3 over chips of 64x64, as `examples/inception.rs` does. Prints one JSON line.

    python benches/peers/torch_inception.py FILE --make     # random weights; speed follows the shapes alone
    python benches/peers/torch_inception.py FILE --chips 256
"""

import argparse
import json
import pathlib
import time

import torch
from safetensors.torch import load_file, save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


def extractor(state):
    """The network with the weights in a dict; its constructor takes a pickle."""
    kind = FeatureExtractorInceptionV3
    load, kind.load_state_dict = kind.load_state_dict, lambda self, _: None
    torch_load, torch.load = torch.load, lambda *_, **__: None
    model = kind("peer", ["2048"], "none")
    kind.load_state_dict, torch.load = load, torch_load
    if state is not None:
        model.load_state_dict(state, strict=False)
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--chips", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.make:
        torch.manual_seed(0)
        state = extractor(None).state_dict()
        save_file({k: v.contiguous() for k, v in state.items() if v.is_floating_point()}, options.file)
        return
    model = extractor(load_file(options.file))
    # The same levels as the example's.
    levels = torch.arange(options.chips * 3 * 64 * 64, dtype=torch.int64) * 7919 // 64 % 251
    chips = levels.byte().reshape(options.chips, 64, 64, 3).permute(0, 3, 1, 2).contiguous()
    with torch.inference_mode():
        model(chips[: min(8, options.batch)])
        start = time.perf_counter()
        for batch in chips.split(options.batch):
            features = model(batch)[0]
        seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "engine": f"torch-fidelity on torch {torch.__version__}",
                "chips": options.chips,
                "seconds": seconds,
                "chips_per_s": options.chips / seconds,
                "last": features[-1, :4].tolist(),
            }
        )
    )


main()
