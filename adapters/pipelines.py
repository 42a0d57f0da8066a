"""One line that makes a pipeline sample parallel in time, and one that undoes it."""

from __future__ import annotations

from typing import Any, get_args

from picard.errors import InvalidProblemError, check_choice
from picard.number import check_limit, number

from .pipeline import Options, change
from .stats import Mode

_WINDOW = 64
_TOLERANCE = 1e-4


def parallelize(
    pipeline: Any,
    *,
    window: int | None = None,
    tolerance: float | None = None,
    max_rows: int | None = None,
    mode: Mode = "auto",
    denoiser: str | None = None,
) -> Any:
    """Make a Diffusers pipeline sample parallel in time: same call, same arguments, same images.

    The pipeline itself is changed, by a subclass of its class; `restore(pipeline)` undoes it, and so does the end of a
    `with parallelize(pipeline, ...):` block. What the last call cost is at `pipeline.picard.stats`.

    Args:
        pipeline: a pipeline whose loop is "for every timestep: denoiser, guidance, `scheduler.step`".
        window: denoiser calls in flight, 64 by default. Choose the number of calls your device evaluates together in
            about the time of one.
        tolerance: largest relative error (root mean square over a row) of a denoiser output that counts as right; 0
            asks for the sequential result up to rounding. 1e-4 by default, or where the denoiser rounds by more, as in
            half precision, that.
        max_rows: rows one evaluation of the denoiser may hold; guidance counts two rows a sample.
        mode: `"plan"` solves the loop by its scheduler's plan, without the pipeline's Python in every round, and
            refuses a call that does something no plan can say; `"replay"` runs the pipeline's own loop again and again
            until every output is right, whatever it does; `"auto"` takes the plan where it applies, else replay, and
            `stats.mode` and `stats.reason` say which and why.
        denoiser: name of the component to evaluate in parallel, if it is not found by itself.

    Returns:
        The same pipeline.

    Raises:
        NotSupportedError: if the pipeline has no denoiser or scheduler, or a later call finds that it cannot be run so.
        InvalidProblemError: if an option has the wrong form.
    """
    check_choice("mode", mode, get_args(Mode))
    nodes, most = check_limit("window", window), check_limit("max_rows", max_rows)
    relative = _TOLERANCE if tolerance is None else number("tolerance", tolerance)
    if not 0 <= relative < 1:
        msg = f"tolerance must be in [0, 1), relative to the denoiser's output; given {relative:g}"
        raise InvalidProblemError(msg)
    restore(pipeline)
    return change(pipeline, Options(mode, nodes or _WINDOW, relative, tolerance is not None, most), denoiser)


def restore(pipeline: Any) -> Any:
    """Make what `parallelize` changed sequential again; anything else is returned as it is."""
    handle: Any = getattr(pipeline, "__dict__", {}).get("picard")
    if hasattr(handle, "undo"):
        del pipeline.picard
        handle.undo(pipeline)
    return pipeline
