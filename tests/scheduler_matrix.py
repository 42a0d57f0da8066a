"""Every scheduler of Diffusers with the settings that are tested: which ones, and why some are refused."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from typing import Any

Axes = Mapping[str, tuple[Any, ...]]

SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
NOISY = ("epsilon", "v_prediction")
FOUR = (*PREDICTIONS, "flow_prediction")
BOTH = (False, True)
SHAPE = {"timestep_spacing": SPACINGS, "use_karras_sigmas": BOTH}
FINAL = {"final_sigmas_type": ("zero", "sigma_min")}
DPM = {
    "solver_order": (1, 2, 3),
    "solver_type": ("midpoint", "heun"),
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
    "prediction_type": (*PREDICTIONS, "flow_prediction"),
    "lower_order_final": BOTH,
    "use_karras_sigmas": BOTH,
    "thresholding": (False, False, True),
    **FINAL,
}

# The number of combinations tested, and the settings they combine. A key that begins with a dot is no setting of the
# class but an argument of `set_timesteps` or `step`.
AXES: dict[str, tuple[int, Axes]] = {
    "DDIMScheduler": (45, {
        "prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS, "set_alpha_to_one": BOTH, "steps_offset": (0, 1),
        "rescale_betas_zero_snr": BOTH, "clip_sample": BOTH, "thresholding": (False, False, True),
        ".eta": (0.0, 0.5, 1.0),
        ".use_clipped_model_output": (False, False, True),
    }),
    "DDIMParallelScheduler": (6, {
        "prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS, "set_alpha_to_one": BOTH, ".eta": (0.0, 1.0),
    }),
    "DDPMScheduler": (30, {
        "prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS, "steps_offset": (0, 1), "clip_sample": BOTH,
        "variance_type": ("fixed_small", "fixed_small_log", "fixed_large"),
        "rescale_betas_zero_snr": BOTH, "thresholding": (False, False, True),
    }),
    "DDPMParallelScheduler": (6, {
        "prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS, "variance_type": ("fixed_small", "fixed_large"),
    }),
    "DPMSolverMultistepScheduler": (56, {
        **DPM, "timestep_spacing": SPACINGS, "euler_at_final": BOTH, "steps_offset": (0, 1),
        "rescale_betas_zero_snr": BOTH,
    }),
    "DPMSolverMultistepInverseScheduler": (6, {
        "solver_order": (1, 2, 3), "solver_type": ("midpoint", "heun"), "prediction_type": PREDICTIONS,
    }),
    "DPMSolverSinglestepScheduler": (20, DPM),
    "UniPCMultistepScheduler": (24, {
        "solver_order": (1, 2, 3), "solver_type": ("bh1", "bh2"), "predict_x0": BOTH, "lower_order_final": BOTH,
        "prediction_type": (*PREDICTIONS, "flow_prediction"), **SHAPE, **FINAL, "rescale_betas_zero_snr": BOTH,
        "disable_corrector": ((), (0, 2)),
    }),
    "DEISMultistepScheduler": (12, {
        "solver_order": (1, 2, 3), "lower_order_final": BOTH, "prediction_type": FOUR, **SHAPE,
    }),
    "SASolverScheduler": (12, {
        "predictor_order": (1, 2, 3), "corrector_order": (1, 2, 3), "prediction_type": FOUR,
        "algorithm_type": ("data_prediction", "noise_prediction"), "lower_order_final": BOTH, **SHAPE,
    }),
    "EulerDiscreteScheduler": (24, {
        "prediction_type": NOISY, **SHAPE, **FINAL, "steps_offset": (0, 1), "rescale_betas_zero_snr": BOTH,
        "timestep_type": ("discrete", "continuous"), "interpolation_type": ("linear", "log_linear"),
        ".s_churn": (0.0, 0.0, 2.0),
    }),
    "EulerAncestralDiscreteScheduler": (10, {
        "prediction_type": NOISY, "timestep_spacing": SPACINGS, "steps_offset": (0, 1), "rescale_betas_zero_snr": BOTH,
    }),
    "HeunDiscreteScheduler": (12, {
        "prediction_type": (*NOISY, "sample"), **SHAPE, "steps_offset": (0, 1), "clip_sample": BOTH,
    }),
    "LMSDiscreteScheduler": (10, {"prediction_type": PREDICTIONS, **SHAPE, ".order": (2, 4)}),
    "KDPM2DiscreteScheduler": (8, {"prediction_type": NOISY, **SHAPE}),
    "KDPM2AncestralDiscreteScheduler": (8, {"prediction_type": NOISY, **SHAPE}),
    "DPMSolverSDEScheduler": (6, {"prediction_type": NOISY, **SHAPE}),
    "PNDMScheduler": (8, {
        "prediction_type": NOISY, "timestep_spacing": SPACINGS, "set_alpha_to_one": BOTH, "steps_offset": (0, 1),
        "skip_prk_steps": (True,),
    }),
    "IPNDMScheduler": (1, {}),
    "LCMScheduler": (6, {"prediction_type": PREDICTIONS, "clip_sample": BOTH, "set_alpha_to_one": BOTH}),
    "TCDScheduler": (6, {"prediction_type": PREDICTIONS, "clip_sample": BOTH, ".eta": (0.0, 0.3)}),
    "CogVideoXDDIMScheduler": (8, {
        "prediction_type": PREDICTIONS, "timestep_spacing": SPACINGS, "set_alpha_to_one": BOTH,
        "rescale_betas_zero_snr": BOTH,
    }),
    "DDIMInverseScheduler": (4, {
        "prediction_type": PREDICTIONS, "timestep_spacing": ("leading", "trailing"), "clip_sample": (False,),
    }),
    "EDMEulerScheduler": (6, {
        "prediction_type": NOISY, "sigma_schedule": ("karras", "exponential"), **FINAL, ".s_churn": (0.0, 2.0),
    }),
    "EDMDPMSolverMultistepScheduler": (8, {
        "prediction_type": NOISY, "solver_order": (1, 2, 3), "solver_type": ("midpoint", "heun"), **FINAL,
        "algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "thresholding": BOTH,
    }),
    "CosineDPMSolverMultistepScheduler": (4, {
        "solver_order": (1, 2), "solver_type": ("midpoint", "heun"), "prediction_type": NOISY,
    }),
    "FlowMatchEulerDiscreteScheduler": (8, {
        "shift": (1.0, 3.0), "use_karras_sigmas": BOTH, "stochastic_sampling": BOTH, "invert_sigmas": BOTH,
        "shift_terminal": (None, 0.1),
    }),
    "FlowMatchHeunDiscreteScheduler": (2, {"shift": (1.0, 3.0)}),
    "FlowMatchLCMScheduler": (2, {"shift": (1.0, 3.0)}),
    "FlowMapEulerDiscreteScheduler": (2, {"shift": (1.0, 3.0)}),
    "LTXEulerAncestralRFScheduler": (2, {"eta": (0.0, 1.0)}),
    "MiniMaxH3Scheduler": (1, {}),
    "SCMScheduler": (1, {}),
    "CMStochasticIterativeScheduler": (2, {"clip_denoised": BOTH}),
    "UnCLIPScheduler": (4, {"prediction_type": ("epsilon", "sample"), "clip_sample": BOTH}),
    "DDPMWuerstchenScheduler": (1, {}),
}  # fmt: skip

# Settings under which a class has no plan, with a part of what the error says.
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("DDPMScheduler", {"variance_type": "learned_range"}, "variance_type='learned_range'"),
    ("DDPMScheduler", {"variance_type": "learned"}, "variance_type='learned'"),
    ("UnCLIPScheduler", {"variance_type": "learned_range"}, "variance_type='learned_range'"),
    ("PNDMScheduler", {}, "skip_prk_steps=True"),
    ("DDIMInverseScheduler", {"clip_sample": True}, "clip_sample=True"),
    ("CogVideoXDPMScheduler", {}, "old_pred_original_sample"),
    ("RePaintScheduler", {}, "mask"),
    (
        "RFD4ProteinaScheduler",
        {"schedule_mode": "log", "noise_mode": "1/t", "tsr_k": 1.0, "tsr_sigma": 1.0},
        "emit_mask",
    ),
    ("PiflowScheduler", {}, "not divisible"),
    ("HeliosScheduler", {}, "loop fails"),
    ("HeliosDMDScheduler", {}, "loop fails"),
    ("ScoreSdeVeScheduler", {}, "no `set_timesteps` and `step`"),
    ("AmusedScheduler", {"mask_token_id": 0}, "loop fails"),
    ("BlockRefinementScheduler", {}, "loop fails"),
    ("DiscreteDDIMScheduler", {}, "not affine"),
    ("EntropyBoundScheduler", {}, "clips something else"),
    ("VQDiffusionScheduler", {"num_vec_classes": 4}, "loop fails"),
]

# Why, in the words of the table in the docs.
_TOKENS = "its states are tokens, which no affine step moves"
_STAGES = "its pipeline resets it between the stages of a video"
REASONS: dict[str, str] = {
    "DDPMScheduler": '`variance_type="learned"` or `"learned_range"`',
    "UnCLIPScheduler": '`variance_type="learned_range"`',
    "PNDMScheduler": "`skip_prk_steps=False`",
    "DDIMInverseScheduler": "`clip_sample=True`",
    "CogVideoXDPMScheduler": "its step needs what the pipeline's loop keeps",
    "RePaintScheduler": "its step needs the image and the mask",
    "RFD4ProteinaScheduler": "its step needs a mask",
    "PiflowScheduler": "its model returns a policy, not a prediction",
    "HeliosScheduler": _STAGES,
    "HeliosDMDScheduler": _STAGES,
    "ScoreSdeVeScheduler": "it has two step methods of its own",
    "KarrasVeScheduler": "its step needs what the pipeline's loop keeps",
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
}


def valid(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether Diffusers itself can run these settings to finite samples."""
    get = settings.get
    kind, order, algorithm = get("prediction_type"), get("solver_order", 2), get("algorithm_type", "")
    snr, karras, lower = get("rescale_betas_zero_snr"), get("use_karras_sigmas"), get("lower_order_final")
    noise = algorithm in {"dpmsolver", "sde-dpmsolver"} or get("predict_x0") is False
    to_zero = get("final_sigmas_type") == "zero"
    divides_by_zero = {"DDIMScheduler", "DDPMScheduler", "CogVideoXDDIMScheduler"}
    no_length = karras and not to_zero and not lower and not get("euler_at_final")  # of the last step
    broken = (
        (snr and kind == "epsilon" and name in divides_by_zero)
        or (noise and (to_zero or kind == "flow_prediction"))
        or (noise and get("thresholding"))
        or (name == "DDIMScheduler" and snr and get(".eta") == 1.0)
        or (name == "DDIMInverseScheduler" and kind == "sample")
        or (get("thresholding") and get("clip_sample"))
        or (algorithm == "sde-dpmsolver" and (order == 3 or name == "DPMSolverSinglestepScheduler"))
        or (name == "EDMDPMSolverMultistepScheduler" and algorithm == "sde-dpmsolver++" and order == 3)
        or (name in {"DPMSolverMultistepScheduler", "UniPCMultistepScheduler"} and no_length)
    )
    if name == "UniPCMultistepScheduler":  # an infinite last step, or infinite first levels
        broken = broken or (to_zero and (not lower or get("solver_type") == "bh1")) or (snr and (karras or noise))
        if kind == "flow_prediction" and not to_zero:  # a last step of no length, by which order 3 divides
            broken = broken or (order == 3 and not lower)
    if name == "SASolverScheduler" and algorithm == "noise_prediction":  # raises: it is not written there
        broken = broken or kind == "flow_prediction"
    return not broken


def settings_of(name: str, quota: int | None) -> list[dict[str, Any]]:
    """List the settings of a class to test: at most `quota` of all combinations, always the same ones."""
    usual, axes = AXES[name]
    flow = {"prediction_type": "flow_prediction"}
    found: list[dict[str, Any]] = []
    for values in itertools.product(*(tuple(dict.fromkeys(choices)) for choices in axes.values())):
        settings = dict(zip(axes, values, strict=True))
        if flow.items() <= settings.items():
            settings |= {"use_flow_sigmas": True, "flow_shift": 3.0, "use_karras_sigmas": False}
        if valid(name, settings) and settings not in found[-2:]:
            found.append(settings)
    most = usual if quota is None else quota
    return found if len(found) <= most else random.Random(name).sample(found, most)


def matrix(quota: int | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Go through all settings of all classes."""
    for name in AXES:
        for settings in settings_of(name, quota):
            yield name, settings
