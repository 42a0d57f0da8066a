"""An SDE as torchsde takes it, an object with types and methods: what it says, and its functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from picard.errors import InvalidProblemError, NotSupportedError, close_match, describe
from picard.noted import called
from picard.problem import check_callable
from picard.stepped import Diffusion, Field

_NOISE_TYPES = ("diagonal", "scalar", "additive", "general")
_SDE_TYPES = ("ito", "stratonovich")
_NAMES = ("drift", "diffusion", "drift_and_diffusion")


def types_of(sde: Any) -> tuple[str, str]:
    """Return the noise type and the SDE type.

    Raises:
        InvalidProblemError: if there is no such type.
    """
    for name, known in (("noise_type", _NOISE_TYPES), ("sde_type", _SDE_TYPES)):
        given = getattr(sde, name, None)
        if not isinstance(given, str) or given not in known:
            msg = f"sde.{name} must be one of {', '.join(known)}; given {given!r}: {close_match(given, known)}"
            raise InvalidProblemError(msg)
    return str(sde.noise_type), str(sde.sde_type)


def functions_of(sde: Any, names: Mapping[str, str]) -> tuple[Field, Diffusion]:
    """Find drift and diffusion, as one function, and the diffusion alone.

    Raises:
        TypeError: if a key of the names is unknown.
        NotSupportedError: if there are no such methods.
    """
    for name in names:
        if name not in _NAMES:
            msg = f"names has no key {name!r}: {close_match(name, _NAMES)}"
            raise TypeError(msg)
    drift: Any = getattr(sde, names.get("drift", "f"), None)
    diffusion: Any = getattr(sde, names.get("diffusion", "g"), None)
    both: Any = getattr(sde, names.get("drift_and_diffusion", "f_and_g"), None)
    if both is None and (drift is None or diffusion is None):
        wanted = {"drift": "f", "diffusion": "g", **names}
        lost = [f"no {name} for its {key}" for key, name in wanted.items() if getattr(sde, name, None) is None]
        msg = (
            "sde must have f(t, y) and g(t, y), or f_and_g(t, y); products such as g_prod are not used; "
            f"{type(sde).__name__} has {' and '.join(lost)}: "
            'write them, or names={"drift": ..., "diffusion": ...} with the names they have'
        )
        raise NotSupportedError(msg)

    for name, function in (("f", drift), ("g", diffusion), ("f_and_g", both)):
        if function is not None:
            check_callable(f"sde.{name}", function, "t, y")

    def evaluate(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        given = {"t": t, "y": y}
        first, second = called(both, given) if both is not None else (called(drift, given), called(diffusion, given))
        return _typed(first, y), _typed(second, y)

    def alone(t: Tensor, y: Tensor) -> Tensor:
        return evaluate(t, y)[1] if diffusion is None else _typed(called(diffusion, {"t": t, "y": y}), y)

    return evaluate, alone


def _typed(value: Any, y: Tensor) -> Tensor:
    """Give a value the dtype of y, as adding it to y does: lifted, some operations take that of a scalar time."""
    if not isinstance(value, Tensor):
        msg = f"f and g must return tensors; one returned {describe(value)}"
        raise InvalidProblemError(msg)
    return value.to(y.dtype)


def channels_of(evaluate: Field, ts: Tensor, y0: Tensor, noise_type: str, *, rows: bool) -> int:
    """Evaluate both functions at the start, check their shapes, and count the channels of the noise.

    Raises:
        InvalidProblemError: if a shape is not what the noise type asks for.
    """
    drift, diffusion = evaluate(ts[:1].expand(len(y0)) if rows else ts[0], y0)
    channels = {"diagonal": (), "scalar": (1,)}.get(noise_type, tuple(diffusion.shape[2:3]) or (1,))
    if drift.shape != y0.shape or tuple(diffusion.shape) != (*y0.shape, *channels):
        wanted = {"diagonal": "(batch, d)", "scalar": "(batch, d, 1)"}.get(noise_type, "(batch, d, channels)")
        short = channels and diffusion.shape == y0.shape
        fix = ': write g[..., None] for one channel, or noise_type = "diagonal" for one a number' if short else ""
        msg = (
            f"f must return (batch, d) and g {wanted} for {noise_type} noise, y being {describe(y0)}; "
            f"f returned {describe(drift)}, g {describe(diffusion)}{fix}"
        )
        raise InvalidProblemError(msg)
    return int(diffusion.shape[-1])
