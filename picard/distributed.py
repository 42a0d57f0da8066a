"""Several processes: the rows of every model call spread over the ranks of a process group.

Every rank runs the same solve. Of each batched model call it evaluates its share of the rows, and one all-gather brings
the outputs of all ranks to each of them. So all ranks go on from the same numbers and take the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from operator import attrgetter
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from picard.errors import DistributedError, InvalidProblemError, NotSupportedError, describe
from picard.memory import out_of_memory
from picard.problem import Problem, Result
from picard.ranks import Ranks, digest
from picard.rows import Rows, checked
from picard.sde import SDE, AbsorbedSDE

_RAISED, _OUT_OF_MEMORY = 1, 2


def spread(problem: Problem | SDE, group: dist.ProcessGroup | DeviceMesh | None = None) -> Problem | SDE:
    """Spread the rows of a problem's model calls over the ranks of a process group.

    Every rank must hold a replica of the model, build the same problem, and call the solver with the same arguments;
    the solver checks that they agree. The result is the same on every rank. A rank whose model raises makes every rank
    raise; a rank that dies ends the others within the group's timeout. `max_rows` counts the rows of all ranks.

    Args:
        problem: `ODE`, `SDE` or `Diffusion`.
        group: process group, or a device mesh of one dimension; the default group if not given.

    Returns:
        A problem for `solve` and `sequential`, for example `solve(spread(problem), grid, method="euler")`.

    Raises:
        InvalidProblemError: if the problem or the group has the wrong form, or no group has been initialized.
    """
    if not isinstance(problem, (Problem, SDE)):
        msg = f"the problem must be an ODE, an SDE or a Diffusion; given {describe(problem)}"
        raise InvalidProblemError(msg)
    if isinstance(problem, (SpreadProblem, SpreadSDE)):
        msg = "the problem is spread already: spread(problem, group) once, over all ranks that are to share its rows"
        raise InvalidProblemError(msg)
    if not (dist.is_available() and dist.is_initialized()):
        msg = (
            "spreading needs a process group, and none is initialized: start the script with torchrun and write "
            'torch.distributed.init_process_group("gloo"), or "nccl" on GPUs, first'
        )
        raise InvalidProblemError(msg)
    if isinstance(group, DeviceMesh):
        if group.ndim != 1:
            msg = f"the mesh must have one dimension; given one with {group.ndim}: name the one to use, mesh['rows']"
            raise InvalidProblemError(msg)
        group = group.get_group()
    if group is not None and not isinstance(group, dist.ProcessGroup):
        msg = f"group must be a process group or a device mesh that this rank is in; given {describe(group)}"
        raise InvalidProblemError(msg)
    ranks = Ranks(dist.group.WORLD if group is None else group)
    if isinstance(problem, SDE):
        given = {one.name: getattr(problem, one.name) for one in fields(problem)}
        return SpreadSDE(**given, ranks=ranks)
    return _spread(problem, ranks)


def _spread(problem: Problem, ranks: Ranks) -> SpreadProblem:
    if not isinstance(problem, AbsorbedSDE):
        return SpreadProblem(problem, ranks)
    state = tuple(problem.x0.shape[1:])
    diagonal = problem.sde.noise_type == "diagonal"
    return SpreadProblem(problem, ranks, state if diagonal else (*state, *problem.noise_shape))


def _forwarded(name: str) -> Any:
    """Make a property that is the same property, or method, of the problem inside."""
    return property(attrgetter(f"problem.{name}"))


@dataclass(frozen=True, eq=False)
class SpreadProblem(Problem):
    """A problem whose field is evaluated by all ranks together.

    Attributes:
        problem: the problem, as one process would solve it.
        ranks: who shares the rows.
        diffusion: shape of the diffusion of one row, if the field has any.
    """

    problem: Problem
    ranks: Ranks
    diffusion: tuple[int, ...] | None = None

    x0 = _forwarded("x0")
    cond = _forwarded("cond")
    noise = _forwarded("noise")
    noise_shape = _forwarded("noise_shape")  # pyright: ignore[reportIncompatibleMethodOverride]  # it is one
    noise_in_field = _forwarded("noise_in_field")  # pyright: ignore[reportIncompatibleMethodOverride]  # it is one
    callee = _forwarded("callee")  # pyright: ignore[reportIncompatibleMethodOverride]  # it is one
    points = _forwarded("points")
    time_dtype = _forwarded("time_dtype")
    conditioning = _forwarded("conditioning")

    @property
    def alone(self) -> Problem:
        """The problem as this process would evaluate it alone."""
        return self.problem

    def like(self, other: Problem) -> SpreadProblem:
        """Spread another problem over the same ranks."""
        return SpreadProblem(other, self.ranks)

    def share(self, value: Any) -> list[Any]:
        """Return the values that all ranks have."""
        return self.ranks.gather_objects(value)

    def agree(self, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Check that all ranks are about to solve the same problem in the same way.

        Raises:
            DistributedError: if they are not; it names what differs.
        """
        problem = {"problem": type(self.problem).__qualname__, "x0": self.x0, "cond": self.conditioning()}
        mine = {name: digest(value) for name, value in {**problem, **facts()}.items()}
        every = self.ranks.gather_objects(mine)
        differ = [name for name in mine if any(other.get(name) != mine[name] for other in every)]
        if differ:
            drawn = {"x0", "cond", "noise", "guess"} & set(differ)
            mend = "seed every rank alike, and give noise=Noise.from_seed(...)" if drawn else "give them alike"
            named = ", ".join(differ)
            msg = f"all ranks must solve the same problem with the same options; they differ in {named}: {mend}"
            raise DistributedError(msg)

    def together(self, look: Callable[[], Result]) -> Result:
        """Call a function that calls the model of this rank.

        Raises:
            DistributedError: if it raises on another rank.
        """
        found, error = None, None
        try:
            found = look()
        except Exception as raised:  # noqa: BLE001  # whatever it is, the other ranks must hear of it
            error = raised
        texts = self.ranks.gather_objects(None if error is None else _told(error))
        self._raise_told(texts, error)
        return cast("Result", found)

    def field(self, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Evaluate this rank's share of the rows, and gather what the others found.

        Raises:
            DistributedError: if another rank's model raised, or a rank is lost.
            NotSupportedError: if the values ask for a gradient, whose graph does not reach the other ranks.
        """
        bounds, x = self.ranks.shares(len(rows.x)), rows.x
        sizes = [stop - start for start, stop in pairwise(bounds)]
        size = x[0].numel()
        kick = 0 if self.diffusion is None else self.diffusion_size
        room = max(sizes) * size
        mine = x.new_zeros(max(sizes) * (size + kick) + 1)  # values, then diffusions, then a flag
        error: Exception | None = None
        try:
            part = rows.part(bounds[self.ranks.rank], bounds[self.ranks.rank + 1])
            if len(part.x):
                value, diffusion = checked(*self.problem.field(part), part.x)
                _refuse_graph(value)
                mine[: value.numel()] = value.detach().flatten()
                if diffusion is not None:
                    mine[room : room + diffusion.numel()] = diffusion.detach().flatten()
        except Exception as raised:  # noqa: BLE001  # whatever it is, the other ranks must hear of it
            error = raised
            mine[-1] = _OUT_OF_MEMORY if out_of_memory(raised) else _RAISED
        every = self.ranks.gather(mine)
        self._raise(every[:, -1].tolist(), error)
        value = torch.cat([one[: count * size] for one, count in zip(every, sizes, strict=True)]).view_as(x)
        if self.diffusion is None:
            return value, None
        kicks = [one[room : room + count * kick] for one, count in zip(every, sizes, strict=True)]
        return value, torch.cat(kicks).view(len(x), *self.diffusion)

    @property
    def diffusion_size(self) -> int:
        """Numbers in the diffusion of one row."""
        return torch.Size(self.diffusion or ()).numel()

    def _raise(self, flags: list[float], error: Exception | None) -> None:
        """Raise on every rank if the model failed on one."""
        if not any(flags):
            return
        if _RAISED not in flags:
            msg = f"out of memory on rank {flags.index(_OUT_OF_MEMORY)}"
            raise torch.OutOfMemoryError(msg) from error  # the same on all ranks, which then split the call alike
        self._raise_told(self.ranks.gather_objects(None if error is None else _told(error)), error)

    @staticmethod
    def _raise_told(texts: list[str | None], error: Exception | None) -> None:
        """Raise if the model failed on a rank, by what every rank has told of its own."""
        if error is not None:
            raise error
        rank = next((i for i, text in enumerate(texts) if text is not None), None)
        if rank is not None:
            msg = f"the model must not raise; it did on rank {rank} of {len(texts)}: {texts[rank]}"
            raise DistributedError(msg)


@dataclass(frozen=True, eq=False)
class SpreadSDE(SDE):
    """An SDE whose drift and diffusion are evaluated by all ranks together.

    Attributes:
        ranks: who shares the rows.
    """

    ranks: Ranks = field(kw_only=True)

    def absorb(self, grid: Tensor) -> Problem:
        """Absorb the noise on a grid, and spread the result."""
        return _spread(super().absorb(grid), self.ranks)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _refuse_graph(value: Tensor) -> None:
    if value.requires_grad:  # not in `solve`, which differentiates the solution and not the calls
        msg = "gradients through several processes are offered by `solve`, not `sequential`: write torch.no_grad()"
        raise NotSupportedError(msg)
