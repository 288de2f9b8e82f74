"""Writes samplers.safetensors: whole trajectories of diffusers' schedulers with a model made of a formula.

    python tests/golden/samplers.py         (diffusers 0.42.1, torch 2.15)

The cases are in the file's metadata under "cases", a JSON list of

    name, config     the scheduler's configuration as it would be saved
    steps, eta, seed
    start            index of the first evaluation (image to image), else null
    precise          whether the samples were computed in f64; the schedule's tables are in f32 all the same

and its tensors are

    NAME/timesteps   what the model is told at each evaluation from `start` on
    NAME/scales      [evaluations]  model input over sample
    NAME/samples     [evaluations + 1, 1, 4, 3, 5]  the first sample, then the one after each step

The first sample is init_noise_sigma times noise, or in image to image what `add_noise` makes of an image of a formula;
noise comes from torch.Generator(seed), first that of the first sample, then that of the steps.
"""

import inspect
import json
import math
import sys
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

SHAPE = (1, 4, 3, 5)
SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
V = dict(prediction_type="v_prediction")
X0 = dict(prediction_type="sample")
LINSPACE, LEADING, TRAILING = (dict(timestep_spacing=s) for s in ("linspace", "leading", "trailing"))
ZERO_SNR = dict(rescale_betas_zero_snr=True)
KARRAS, EXPONENTIAL, BETA = (dict([(f"use_{r}_sigmas", True)]) for r in ("karras", "exponential", "beta"))
OFFSET = dict(steps_offset=1)
THRESHOLD = dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5)

cases = []


def case(scheduler, *configs, steps=7, eta=0.0, start=None, precise=False):
    config = {}
    for part in configs:
        config |= part
    cases.append(dict(scheduler=scheduler, config=config, steps=steps, eta=eta, start=start, precise=precise))


# Every class at its defaults, which differ.
for scheduler in """DDPM DDIM PNDM LMSDiscrete HeunDiscrete EulerDiscrete EulerAncestralDiscrete DPMSolverMultistep
    UniPCMultistep LCM""".split():
    case(scheduler)
    case(scheduler, SD, steps=20)
    for spacing in (LINSPACE, LEADING | OFFSET, TRAILING):
        if scheduler != "LCM":
            case(scheduler, SD, V, spacing)
    case(scheduler, SD, dict(beta_schedule="squaredcos_cap_v2"), V | LEADING | OFFSET)
    case(scheduler, dict(trained_betas=[0.001 + 0.0002 * i for i in range(100)], num_train_timesteps=100, original_inference_steps=20), steps=5)
    case(scheduler, SD, LEADING | OFFSET | dict(skip_prk_steps=True), steps=10, start=4)

for scheduler in "DDPM DDIM LMSDiscrete HeunDiscrete EulerDiscrete DPMSolverMultistep UniPCMultistep LCM".split():
    case(scheduler, SD, X0, TRAILING)

for scheduler in "DDPM DDIM EulerDiscrete EulerAncestralDiscrete DPMSolverMultistep UniPCMultistep LCM".split():
    # From a sigma of 4096 Euler's steps in f32 are themselves 2e-5 away from what they stand for.
    case(scheduler, SD, V, TRAILING, ZERO_SNR, precise=scheduler.startswith("Euler"))

for scheduler in "LMSDiscrete HeunDiscrete EulerDiscrete DPMSolverMultistep UniPCMultistep".split():
    for ramp in (KARRAS, EXPONENTIAL, BETA):
        case(scheduler, SD, ramp)
    case(scheduler, SD, KARRAS, V, LEADING | OFFSET, steps=20)
    case(scheduler, SD, KARRAS, dict(sigma_min=0.1, sigma_max=10.0))
    case(scheduler, SD, EXPONENTIAL, dict(sigma_min=0.1, sigma_max=10.0))

case("DDPM", SD, dict(clip_sample=False))
case("DDPM", SD, dict(clip_sample=False, variance_type="fixed_large"))
case("DDPM", SD, dict(clip_sample=False, variance_type="fixed_small_log"))
case("DDPM", SD, dict(clip_sample_range=0.5), V)
case("DDPM", SD, THRESHOLD, V)
case("DDPM", SD, dict(beta_schedule="sigmoid"), V)
case("DDPM", SD, dict(beta_schedule="laplace"), V)
case("DDIM", SD, dict(clip_sample=False, set_alpha_to_one=False))
case("DDIM", SD, dict(clip_sample=False), eta=0.6)
case("DDIM", SD, V, eta=1.0, steps=20)
case("DDIM", SD, THRESHOLD, V)
case("PNDM", SD, OFFSET, dict(skip_prk_steps=True, set_alpha_to_one=False))
case("PNDM", SD, OFFSET, dict(skip_prk_steps=True, set_alpha_to_one=False), steps=20)
case("PNDM", SD, OFFSET, dict(skip_prk_steps=True, set_alpha_to_one=True), V, steps=20)
case("PNDM", SD, dict(skip_prk_steps=True), steps=1)
case("PNDM", SD, dict(skip_prk_steps=True), steps=2)
case("PNDM", SD, OFFSET, steps=10, start=3)
case("HeunDiscrete", SD, dict(clip_sample=True), V)
case("HeunDiscrete", SD, dict(beta_schedule="exp"), V)
case("EulerDiscrete", SD, dict(interpolation_type="log_linear"))
case("EulerDiscrete", SD, dict(timestep_type="continuous"), V, KARRAS)
case("EulerDiscrete", SD, dict(final_sigmas_type="sigma_min"))
case("EulerDiscrete", SD, X0 | dict(prediction_type="original_sample"))
case("LCM", SD, dict(clip_sample=True), V)
case("LCM", SD, THRESHOLD, V, steps=4)
case("LCM", SD, dict(timestep_scaling=3.0, original_inference_steps=100), steps=9)

for order in (1, 3):
    for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
        # The third-order SDE divides by h^2: at 20 steps an ulp of torch's logarithm, which follows the processor, is
        # worth 1e-5 of the sample.
        steps = 12 if order == 3 and "sde" in algorithm else 20
        case("DPMSolverMultistep", SD, dict(algorithm_type=algorithm, solver_order=order), steps=steps)
    case("UniPCMultistep", SD, dict(solver_order=order), steps=20)
MIN = dict(final_sigmas_type="sigma_min")
for algorithm in ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"):
    for solver in ("midpoint", "heun"):
        case("DPMSolverMultistep", SD, dict(algorithm_type=algorithm, solver_type=solver), MIN)
case("DPMSolverMultistep", SD, dict(algorithm_type="dpmsolver", solver_order=3), MIN, V, steps=20)
case("DPMSolverMultistep", SD, dict(algorithm_type="dpmsolver"), MIN, X0)
case("DPMSolverMultistep", SD, dict(algorithm_type="dpmsolver"), MIN, V, THRESHOLD)
case("DPMSolverMultistep", SD, THRESHOLD, V)
case("DPMSolverMultistep", SD, dict(solver_order=3))
case("DPMSolverMultistep", SD, dict(lower_order_final=False))
case("DPMSolverMultistep", SD, dict(euler_at_final=True), MIN, steps=20)
case("DPMSolverMultistep", SD, dict(use_lu_lambdas=True))
case("DPMSolverMultistep", SD, dict(use_lu_lambdas=True, beta_schedule="squaredcos_cap_v2"), V)
case("DPMSolverMultistep", SD, KARRAS, dict(beta_schedule="squaredcos_cap_v2"), V)
case("DPMSolverMultistep", SD, dict(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1))
case("DPMSolverMultistep", SD, dict(lambda_min_clipped=-2.0), TRAILING)
case("DPMSolverMultistep", SD, KARRAS, MIN)
case("DPMSolverMultistep", SD, dict(algorithm_type="sde-dpmsolver++"), KARRAS, steps=20)
case("UniPCMultistep", SD, dict(solver_type="bh1"), MIN)
case("UniPCMultistep", SD, dict(solver_type="bh1", solver_order=3), MIN)
case("UniPCMultistep", SD, dict(predict_x0=False), MIN)
case("UniPCMultistep", SD, dict(predict_x0=False, solver_order=3), MIN, V)
# The noise by (sample - alpha x0) / sigma: at the last sigma f32 loses 30 times its precision.
case("UniPCMultistep", SD, dict(predict_x0=False), MIN, X0, precise=True)
case("UniPCMultistep", SD, dict(disable_corrector=[0, 2]))
case("UniPCMultistep", SD, dict(lower_order_final=False), MIN)
case("UniPCMultistep", SD, KARRAS, MIN)
case("UniPCMultistep", SD, THRESHOLD, V)


def model(x, t):
    return 0.8 * torch.sin(1.5 * x + 0.3) + 0.2 * math.cos(float(t) / 400)


def image():
    return torch.sin(torch.arange(math.prod(SHAPE), dtype=torch.float32)).reshape(SHAPE)


class InF64:
    """torch, but that what a scheduler casts to f32 goes to f64, and its noise is the f32 one widened."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def draw_in_f32(shape, generator=None, device=None, dtype=None):
    return torch.randn(shape, generator=generator).double()


def run(case):
    cls = getattr(diffusers, case["scheduler"] + "Scheduler")
    # As from_config: fields of other classes are dropped, sigma_min and sigma_max stay.
    scheduler = cls.from_config({"_class_name": cls.__name__, **case["config"]})
    scheduler.set_timesteps(case["steps"])
    timesteps, start = scheduler.timesteps, case["start"]
    # Else a schedule whose first two timesteps are equal once they are whole starts at the second, and runs out.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start or 0)
    generator = torch.Generator().manual_seed(case["seed"])
    noise = torch.randn(SHAPE, generator=generator)
    if start is None:
        x = noise * scheduler.init_noise_sigma
    else:
        timesteps = timesteps[start:]
        x = scheduler.add_noise(image(), noise, timesteps[:1])
    accepted = inspect.signature(scheduler.step).parameters
    extra = {}
    if "generator" in accepted:
        extra["generator"] = generator
    if "eta" in accepted:
        extra["eta"] = case["eta"]
    samples, scales = [x], []
    module = sys.modules[cls.__module__]
    before = dict(vars(module))
    if case["precise"]:
        x = x.double()
        vars(module).update(torch=InF64(), randn_tensor=draw_in_f32)
    for t in timesteps:
        scales.append(scheduler.scale_model_input(torch.ones(1), t)[0].float())
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x, **extra).prev_sample
        samples.append(x.float())
    vars(module).update(before)
    return dict(timesteps=timesteps.float(), scales=torch.stack(scales), samples=torch.stack(samples))


torch.set_num_threads(1)
torch.set_grad_enabled(False)
tensors, listed = {}, []
for index, case in enumerate(cases):
    scheduler = case.pop("scheduler")
    case |= dict(name=f"{index:03}", seed=index)
    case["scheduler"] = scheduler
    for name, tensor in run(case).items():
        assert torch.isfinite(tensor).all(), case
        tensors[f"{case['name']}/{name}"] = tensor.float().contiguous()
    del case["scheduler"]
    listed.append(case | dict(config={"_class_name": scheduler + "Scheduler", **case["config"]}))

save_file(tensors, Path(__file__).with_name("samplers.safetensors"), metadata={"cases": json.dumps(listed)})
print(len(cases), "cases")
