"""Distances between stored features, by torch-fidelity and prdc, and likeness of pictures, by scikit-image.

Writes `metrics/golden.safetensors`. Features are correlated, since independent ones hide what a covariance does;
`few` has fewer pictures than numbers, so that its covariance has no full rank.

    python tests/golden/metrics.py
"""

import numpy as np
import torch
from common import HERE, save_tensors
from prdc import compute_prdc
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric


def features(generator, count, width=24, shift=0.0, scale=1.0):
    mixed = torch.randn(width, width, generator=torch.Generator().manual_seed(80)) / width**0.5
    return (torch.randn(count, width, generator=generator) * scale) @ mixed + shift


def distances(a, b, subset):
    statistics = [fid_features_to_statistics(x.double()) for x in (a, b)]
    found = fid_statistics_to_metric(*statistics, verbose=False)
    kernel = dict(kid_subsets=20, kid_subset_size=subset, kid_kernel="poly", kid_kernel_poly_degree=3,
                  kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1.0, rng_seed=2020, verbose=False)
    found |= kid_features_to_metric(a.double(), b.double(), **kernel)
    found |= prc_features_to_metric(a.double(), b.double(), prc_neighborhood=3, prc_batch_size=10000,
                                    save_cpu_ram=False, verbose=False)
    nearest = compute_prdc(b.double().numpy(), a.double().numpy(), nearest_k=5)
    found |= {key: nearest[key] for key in ("density", "coverage")}
    return {key: torch.tensor(float(value)) for key, value in found.items()}


def likeness(a, b):
    """`a`, `b` [H, W, C] of levels."""
    gaussian = dict(gaussian_weights=True, sigma=1.5)
    scaled = [x.astype(np.float64) / 255 for x in (a, b)]
    found = {
        "psnr": peak_signal_noise_ratio(a, b, data_range=255),
        "ssim.uniform": structural_similarity(a, b, channel_axis=-1, data_range=255),
        "ssim.uniform5": structural_similarity(a, b, channel_axis=-1, data_range=255, win_size=5),
        "ssim.gaussian": structural_similarity(a, b, channel_axis=-1, data_range=255, **gaussian),
        "ssim.paper": structural_similarity(*scaled, channel_axis=-1, data_range=1.0, use_sample_covariance=False, **gaussian),
    }
    return {key: torch.tensor(float(value)) for key, value in found.items()}


generator = torch.Generator().manual_seed(81)
sets = {
    "a": features(generator, 120),
    "b": features(generator, 100, shift=0.2, scale=1.2),
    "few": features(generator, 17, shift=-0.1),
}
tensors = dict(sets)
for first, second, subset in (("a", "b", 60), ("few", "b", 15), ("a", "few", 17)):
    found = distances(sets[first], sets[second], subset)
    tensors |= {f"{first}-{second}.{key}": value for key, value in found.items()}

logits = 3 * torch.randn(53, 7, generator=generator)
score = isc_features_to_metric(logits, splits=5)
tensors |= {"logits": logits} | {key: torch.tensor(value) for key, value in score.items()}

smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 6, generator=generator), (29, 34), mode="bicubic")[0]
noisy = smooth + 0.05 * torch.randn(3, 29, 34, generator=generator)
pictures = [(255 * x.clamp(0, 1)).round().byte().permute(1, 2, 0).contiguous() for x in (smooth, noisy)]
tensors |= {"picture.a": pictures[0], "picture.b": pictures[1]}
tensors |= likeness(*(x.numpy() for x in pictures))

for name, value in tensors.items():
    print(name, value.item() if value.numel() == 1 else tuple(value.shape))
save_tensors(HERE / "metrics" / "golden.safetensors", tensors)
