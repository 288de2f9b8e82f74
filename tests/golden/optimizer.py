"""Golden steps of the optimiser and of what watches a run.

Writes `training/optimizer.safetensors`: a step of torch's AdamW and of its moving average from given gradients and moments,
with and without weight decay, the gradients shortened to a length of 1 or left as they are; and the learning rates of
torch's ReduceLROnPlateau over a sequence of losses.

    python tests/golden/optimizer.py
"""

import torch
from common import HERE, save_tensors

SHAPES = [(7, 33), (65,), (3, 3, 2, 5)]


def step(generator, weight_decay, clip):
    """One step, the fourth of its run."""
    draw = lambda: [torch.randn(shape, generator=generator) for shape in SHAPES]
    parameters = [torch.nn.Parameter(x) for x in draw()]
    averages, gradients, first = draw(), draw(), draw()
    second = [x**2 for x in draw()]
    result = {}
    for i in range(len(SHAPES)):
        tensors = {"weight": parameters[i], "average": averages[i], "gradient": gradients[i]}
        tensors |= {"first": first[i], "second": second[i]}
        result |= {f"{key}.{i}": x.detach().clone() for key, x in tensors.items()}
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)
    for p, g, m, v in zip(parameters, gradients, first, second):
        p.grad = g.clone()
        optimizer.state[p] = {"step": torch.tensor(3.0), "exp_avg": m.clone(), "exp_avg_sq": v.clone()}
    if clip:
        result["length"] = torch.nn.utils.clip_grad_norm_(parameters, 1.0).reshape(1)
    optimizer.step()
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    with torch.no_grad():
        average(averages, parameters, 1)
    for i, p in enumerate(parameters):
        state = optimizer.state[p]
        tensors = {"weight": p, "average": averages[i], "first": state["exp_avg"], "second": state["exp_avg_sq"]}
        result |= {f"new_{key}.{i}": x.detach().clone() for key, x in tensors.items()}
    return result


def plateau(losses, **settings):
    """The rate behind each loss."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **settings)
    rates = []
    for loss in losses.tolist():
        scheduler.step(loss)
        rates.append(optimizer.param_groups[0]["lr"])
    return torch.tensor(rates, dtype=torch.float64)


def main():
    tensors = {}
    generator = torch.Generator().manual_seed(11)
    for decay in [0.0, 1e-2]:
        for clip in [False, True]:
            name = f"step.{'decay' if decay else 'plain'}.{'clipped' if clip else 'whole'}"
            tensors |= {f"{name}.{key}": x for key, x in step(generator, decay, clip).items()}
    # Falls, stays, and shakes: improvements around the threshold, patience and cooldown all come to pass.
    falling = 1.0 / torch.arange(1, 61, dtype=torch.float64).sqrt()
    shaking = 1e-2 * torch.randn(60, generator=generator, dtype=torch.float64)
    losses = torch.cat([falling + shaking, torch.full((20,), falling[-1].item(), dtype=torch.float64)])
    # As the file holds them.
    losses = losses.float().double()
    tensors["plateau.losses"] = losses
    tensors["plateau.default"] = plateau(losses, patience=4)
    tensors["plateau.cooldown"] = plateau(losses, factor=0.5, patience=1, threshold=1e-2, cooldown=3, min_lr=2e-4)
    tensors["plateau.floor"] = plateau(losses, factor=0.1, patience=0, threshold=0.0, min_lr=1e-9)
    save_tensors(HERE / "training" / "optimizer.safetensors", tensors)
    print({name: len(set(tensors[f"plateau.{name}"].tolist())) for name in ["default", "cooldown", "floor"]})


if __name__ == "__main__":
    main()
