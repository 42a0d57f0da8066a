"""The backward pass: the adjoint solve, and the gradients by parameters summed up as it goes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from picard.adjoint import AdjointProblem, FieldAtNodes, adjoint_plan
from picard.conditioning import Conditioning
from picard.device import send
from picard.entering import Guess
from picard.extrapolate import Extrapolate
from picard.hold import Hold
from picard.plan import Plan
from picard.prepare import Prepared
from picard.progress import Progress
from picard.recall import Recall
from picard.run import Run
from picard.shapes import Float
from picard.tables import Tables
from picard.tolerance import NoiseRatio, RelAbs, Tolerance
from picard.trajectory import Trajectory
from picard.transforms import asking

logger = logging.getLogger("picard")
_TIGHT = 1e-8  # where no relative accuracy is asked for: below any error the states leave, for a few rounds more


def solve_backward(
    field_at: FieldAtNodes,
    states: Recall,
    start: Float[Tensor, "batch *state"],
    direct: Mapping[int, Tensor],
    wanted: Sequence[Tensor],
) -> tuple[Float[Tensor, "batch *state"], list[Tensor | None]]:
    """Solve the adjoint recurrence, and sum the gradients of all nodes by the inputs.

    Args:
        field_at: the field along the forward trajectory.
        states: the trajectory.
        start: gradient by the last state.
        direct: gradient by the saved states before it, by node.
        wanted: tensors of the field to differentiate by.

    Returns:
        The gradient by the initial state, and those by the tensors wanted, `None` for those without influence.
    """
    forward, batch = field_at.setup, len(start)
    plan = adjoint_plan(forward.plan, list(direct))
    tables = Tables.of(plan, start, torch.int64)
    sample = {"sample": torch.arange(batch, device=start.device)}
    problem = forward.problem.like(AdjointProblem(field_at, states, start, sample))
    setup = replace(
        forward,
        problem=problem,
        plan=plan,
        tables=tables,
        conditioning=Conditioning(sample, batch),
        tolerance=_tolerance(forward.tolerance),
        guess=_guess(forward.guess, tables, tuple(start.shape[1:])),
        certifier=None,
        thinning=None,
        functions=None,
        sync_every=1,
        graphs=None,
    )
    nothing = torch.zeros_like(start[0])

    def draw(samples: Sequence[int], nodes: Sequence[int]) -> Tensor:
        found = ((direct.get(plan.nodes - 1 - node), sample) for sample, node in zip(samples, nodes, strict=True))
        return torch.stack([nothing if one is None else one[sample].to(start.dtype) for one, sample in found])

    nodes = list(range(plan.nodes + 1))
    prepared = Prepared(
        problem, plan, tables, start.dtype, torch.tensor(nodes, device="cpu").double(), draw if direct else None, nodes
    )
    costates = Costates(plan, tables, start, field_at, states, wanted)
    with Progress(0, enabled=False) as bar:
        solution = Run(setup, prepared, start, costates, None, None).finish(bar, throw=True)
    logger.info("backward: %r", solution)
    costates.flush()
    return costates.final, costates.total


class Costates(Trajectory):
    """The gradients by the states, of which only the latest are kept, and what they add to those by the inputs.

    Nodes whose gradient is known wait until a sample has a window of them; then they make one call of the model.

    Attributes:
        total: the gradients by the inputs so far.
    """

    def __init__(
        self,
        plan: Plan,
        tables: Tables,
        start: Float[Tensor, "batch *state"],
        field_at: FieldAtNodes,
        states: Recall,
        wanted: Sequence[Tensor],
    ) -> None:
        """Start at the last state; see `solve_backward`."""
        super().__init__(plan, start, "last")
        self._plan, self._tables, self._field_at, self._states, self._wanted = plan, tables, field_at, states, wanted
        self.total: list[Tensor | None] = [None] * len(wanted)
        self._window, batch = field_at.setup.window, len(start)
        self._room = 2 * self._window + plan.order  # a window that waits, one that comes, and those before them
        self._latest = start.new_zeros(self._room if wanted else 0, *start.shape)
        self._latest[:1] = start
        self._known, self._done = [0] * batch, [0] * batch  # last state known, and nodes accounted for
        self._cover()

    def store(self, samples: Sequence[int], begin: Sequence[int], stride: Sequence[int], states: Tensor) -> None:
        """Take in the accepted gradients."""
        super().store(samples, begin, stride, states)
        for sample, first, count in zip(samples, begin, stride, strict=True):
            self._known[sample] = first + count
        if self._wanted:
            pairs = [(i, j) for i, count in enumerate(stride) for j in range(count)]
            places = [((begin[i] + 1 + j) % self._room, samples[i], i, j) for i, j in pairs]
            if places:
                slots, chosen, rows, nodes = send(torch.tensor(places, device="cpu"), states).unbind(1)
                self._latest[slots, chosen] = states[rows, nodes].unflatten(1, self._latest.shape[2:])
            waiting = max(known - done for known, done in zip(self._known, self._done, strict=True))
            if waiting >= self._window:
                self.flush()
        else:
            self._done = list(self._known)
        self._cover()

    def flush(self) -> None:
        """Add the gradients by the inputs of all nodes that wait, in calls of at most a window a sample."""
        spans = enumerate(zip(self._done, self._known, strict=True))
        pairs = [(node, sample) for sample, (done, known) in spans for node in range(done, known)]
        self._done = list(self._known)
        size = self._window * len(self._done)
        for first in range(0, len(pairs) if self._wanted else 0, size):
            self._add(*send(torch.tensor(pairs[first : first + size], device="cpu"), self._latest).unbind(1))

    def _add(self, node: Tensor, sample: Tensor) -> None:
        """Add the gradients of some nodes, given by their adjoint's index."""
        inputs = self._tables.inputs
        vector = torch.zeros_like(self._latest[0, sample])
        for p in range(self._plan.order if inputs is not None else 0):
            weight = inputs[node, p] if inputs is not None else node
            earlier = self._latest[(node - p) % self._room, sample]
            vector += torch.where(node >= p, weight, 0).reshape(-1, *[1] * (vector.ndim - 1)) * earlier
        forward = self._plan.nodes - 1 - node
        with torch.enable_grad():
            value = self._field_at(forward, sample, asking(self._states(forward, sample)))  # as that of the adjoint
        if not value.requires_grad:
            return
        part = torch.autograd.grad(
            value, list(self._wanted), vector.to(value.dtype), allow_unused=True, retain_graph=True
        )
        for i, new in enumerate(part):
            if new is not None:
                old = self.total[i]
                self.total[i] = new if old is None else old + new

    def _cover(self) -> None:
        """Recall the trajectory where it is needed next: at nodes that wait, and at those of the next window."""
        last = self._plan.nodes - 1
        going = [known for known in self._known if known <= last]
        waiting = [done for done, known in zip(self._done, self._known, strict=True) if done < known]
        if going or waiting:
            high = min(max(going) + self._window - 1, last) if going else last
            self._states.cover(last - high, last - min([*going, *waiting]))


def _guess(forward: Guess, tables: Tables, state: tuple[int, ...]) -> Guess:
    """Extrapolate backward in time if the forward solve does so forward; hold otherwise."""
    if isinstance(forward, Extrapolate):
        instants = forward.tables.instants.flip(0).to(tables.a.dtype)  # those of the adjoint plan are nodes
        return replace(forward, tables=replace(tables, instants=instants))
    return Hold(tables, state)


def _tolerance(forward: Tolerance) -> RelAbs:
    """Ask of the gradient, whose scale is the loss's, the relative accuracy asked of the states.

    An absolute tolerance has the states' unit and says nothing of the gradient; nor does a rule of another kind.
    """
    if isinstance(forward, RelAbs):
        return RelAbs(forward.rtol or min(forward.atol, _TIGHT), 0.0)
    if isinstance(forward, NoiseRatio):
        return RelAbs(1e-2 * forward.tau, 0.0)
    return RelAbs(_TIGHT, 0.0)
