"""One line that makes a pipeline or a policy sample parallel in time, and one that undoes it."""

from __future__ import annotations

from typing import Any

from .pipelines import parallelize as parallelize_pipeline
from .pipelines import restore as restore_pipeline
from .policies import owner_of, parallelize_policy, restore_policy


def parallelize(sampler: Any, **options: Any) -> Any:
    """Make a Diffusers pipeline or a robot policy sample parallel in time: same call, same arguments, same result.

    The object itself is changed, by a subclass of its class; `restore(sampler)` undoes it, and so does the end of a
    `with parallelize(sampler, ...):` block. What the last call cost is at `sampler.picard.stats`.

    Args:
        sampler: a Diffusers pipeline, or a policy of DiffusionPolicy or LeRobot, recognised by what it has: a method
            `conditional_sample`, a `noise_scheduler` and a network.
        **options: those of `parallelize_pipeline` or of `parallelize_policy`; both take `window`, `tolerance`,
            `max_rows` and `mode`.

    Returns:
        The same object.

    Raises:
        NotSupportedError: if it is neither, or a later call finds that it cannot be parallelized.
        InvalidProblemError: if an option has the wrong form.
        TypeError: if an option is unknown.
    """
    policy = owner_of(sampler) is not None or hasattr(sampler, "conditional_sample")  # the latter may lack something
    return (parallelize_policy if policy else parallelize_pipeline)(sampler, **options)


def restore(sampler: Any) -> Any:
    """Make a parallel pipeline or policy sequential again.

    Args:
        sampler: what `parallelize` was given; anything else is left as it is.

    Returns:
        The same object.
    """
    return sampler if restore_policy(sampler) else restore_pipeline(sampler)
