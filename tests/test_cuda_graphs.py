"""Captured rounds: the same solve, with the model's Python run twice; on a tape where there is no GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import picard
from picard.adapters import diffusers, parallelize
from picard.graphs import fingerprint
from picard.progress import RoundInfo
from tests.compiled_solves import CASES
from tests.problems import F64, Counted, diffusion, network, pendulum, solve_failing, start, times
from tests.tape import recorded
from tests.test_policies import build, scheduler

LINEAR = picard.Schedule.linear()
OPTIONS: dict[str, Any] = {"method": "ddpm", "window": 8}


@pytest.fixture(autouse=True)
def taped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("picard.graphs.has_graphs", lambda device: True)
    monkeypatch.setattr("picard.captured._recorded", recorded)


class Net(nn.Module):
    """A denoiser with a parameter, conditioning and a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=F64), requires_grad=False)
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, gain: Tensor | None = None, power: float = 1.0, **more: Tensor) -> Tensor:
        self.rows.append(len(x))
        scale = torch.tanh(self.weight * x) * (0.5 if self.training else 0.6) ** power
        for number, value in enumerate(more.values()):
            scale = scale + (number + 1) * value[:, None]
        return scale if gain is None else scale * gain[:, None]


def sampling(net: Callable[..., Tensor], batch: int = 1, seed: int = 0, **options: Any) -> picard.Diffusion:
    """Make a problem of a network that predicts data; what is new in it follows from the seed."""
    guidance = options.pop("guidance", None)
    schedule = options.pop("schedule", LINEAR)
    denoiser = picard.Denoiser(net, schedule, prediction="sample", guidance=guidance)
    noise = picard.Noise.from_seed(seed)
    return picard.Diffusion(denoiser, start(batch, 3, seed=seed), noise=noise, cond=options)


def gains(batch: int, seed: int = 0) -> Tensor:
    return 0.5 + torch.rand(batch, generator=torch.Generator().manual_seed(seed), dtype=F64)


def agree(problem: picard.Diffusion, graphs: picard.CudaGraphs | bool, **more: Any) -> None:
    options = {**OPTIONS, **more}
    plain, captured = (picard.solve(problem, 24, **options, cuda_graph=given) for given in (False, graphs))
    torch.testing.assert_close(captured.ys, plain.ys, rtol=1e-12, atol=1e-12)
    assert captured.stats.rounds == plain.stats.rounds


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", [name for name in CASES if "newton" not in name])
def test_the_same_solve(name: str, count: int) -> None:
    make, grid, options = CASES[name]
    plain = picard.solve(make(), grid, **options)
    captured = picard.solve(make(), grid, **options, cuda_graph=True, sync_every=count)
    assert float((captured.ys - plain.ys).abs().max()) <= 1e-12 * float(plain.ys.abs().max())
    assert (captured.stats.rounds, captured.status) == (plain.stats.rounds, plain.status)
    assert captured.stats.host_syncs <= plain.stats.rounds / count + 1


@torch.no_grad()
def test_python_runs_the_model_twice() -> None:
    net = Net()
    solution = picard.solve(sampling(net, gain=gains(1)), 24, **OPTIONS, cuda_graph=True)
    assert solution.stats.rounds > 5
    assert net.rows == [8, 8]
    assert solution.stats.evaluations == 8 * solution.stats.rounds


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_later_solves_find_what_was_captured(batch: int) -> None:
    """Start, noise, conditioning and grid are new; nothing of the first solve is left."""
    net, graphs = Net(), picard.CudaGraphs()
    agree(sampling(net, batch, gain=gains(batch)), graphs, tolerance=0.0)
    known = len(graphs)
    for seed in (1, 2):
        schedule = picard.Schedule.linear(1000, 1e-4, 0.01 * (1 + seed))
        problem = sampling(net, batch, seed, gain=gains(batch, seed), schedule=schedule)
        net.rows.clear()
        picard.solve(problem, 24, **OPTIONS, tolerance=0.0, cuda_graph=graphs)
        assert len(net.rows) == 0 or batch > 1  # samples that are through may leave others behind
        agree(problem, graphs, tolerance=0.0)
    assert len(graphs) == known or batch > 1


def test_conditioning_is_repeated_once_and_renewed() -> None:
    """Also in calls of some of the rows, and beside tensors that are not repeated."""
    net, graphs = Net(), picard.CudaGraphs()
    for seed in range(3):
        problem = sampling(net, 2, seed, gain=gains(2, seed), power=torch.tensor(1.0 + seed, dtype=F64))
        agree(problem, graphs, max_rows=5)


def changes() -> dict[str, Callable[[Net], picard.Diffusion]]:
    """List what a captured round must not be found for; each makes a problem after what is changed."""

    def moved(net: Net) -> picard.Diffusion:
        net.weight.data = torch.tensor(0.2, dtype=F64)
        return sampling(net, gain=gains(1))

    guidance = picard.Guidance(3.0, uncond={"gain": gains(1, 5)})
    return {
        "mode": lambda net: sampling(net.eval(), gain=gains(1)),
        "parameters": moved,
        "closure": lambda net: sampling(lambda x, t, gain: 1.0 * net(x, t, gain), gain=gains(1)),
        "number": lambda net: sampling(net, gain=gains(1), power=2.0),
        "name": lambda net: sampling(net, offset=gains(1)),
        "guidance": lambda net: sampling(net, gain=gains(1), guidance=guidance),
        "scale": lambda net: sampling(net, gain=gains(1), guidance=replace(guidance, scale=2.0)),
        "clip": lambda net: replace(
            sampling(net, gain=gains(1)),
            denoiser=picard.Denoiser(net, LINEAR, prediction="sample", clip=0.1),
        ),
    }


@pytest.mark.parametrize("change", changes())
def test_what_changes_the_code_is_captured_anew(change: str) -> None:
    net, graphs = Net().train(), picard.CudaGraphs()
    agree(sampling(net, gain=gains(1)), graphs)
    agree(sampling(net, gain=gains(1), guidance=picard.Guidance(3.0, uncond={"gain": gains(1, 5)})), graphs)
    agree(changes()[change](net), graphs)
    assert len(graphs) == 2 + (change != "guidance")


HOLDERS: dict[str, Callable[[Net], Any]] = {
    "module": lambda net: net,
    "method": lambda net: net.forward,
    "closure": lambda net: lambda x, t: 2 * net(x, t),
    "partial": lambda net: partial(torch.nn.Module.__call__, net),
    "object": lambda net: SimpleNamespace(net=net),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_parameters_that_move_are_noticed(holder: str) -> None:
    net = Net()
    part = HOLDERS[holder](net)
    before = fingerprint(part)
    net.weight.mul_(2)
    assert fingerprint(part) == before
    held, net.weight.data = net.weight.data, net.weight.data.clone()
    assert fingerprint(part) != before, held
    net.weight.data = held
    net.eval()
    assert fingerprint(part) != before


def test_a_tensor_of_the_host_is_read_while_recording() -> None:
    """So its numbers are part of the code, and those of a tensor of the device are not."""
    graphs, made = picard.CudaGraphs(), []
    carried = torch.zeros(1, device="meta")
    for host, device in ((1.0, 0), (2.0, 0), (2.0, 1)):
        constants = (torch.tensor(host), torch.tensor(device, device="meta"))
        made.append(graphs.find((), constants, carried, 2, lambda _: Nothing()))
    assert made[0] is not made[1]
    assert made[1] is made[2]


class Nothing:
    """A function that shows and carries on nothing."""

    def __call__(self, carried: Any) -> tuple[Any, Any]:
        return carried, ()

    def renew(self) -> None:
        pass


def test_attributes_are_what_they_were_until_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit that the documentation states."""
    net, graphs = Net(), picard.CudaGraphs()
    before = picard.solve(sampling(net), 24, **OPTIONS, cuda_graph=graphs)
    monkeypatch.setattr(net, "forward", lambda x, t: 0.1 * x)
    assert torch.equal(picard.solve(sampling(net), 24, **OPTIONS, cuda_graph=graphs).ys, before.ys)
    graphs.clear()
    assert len(graphs) == 0
    agree(sampling(net), graphs)


@torch.no_grad()
def test_the_oldest_goes_first() -> None:
    net, graphs = Net(), picard.CudaGraphs(most=2)
    for power in (1.0, 2.0, 3.0, 1.0):
        net.rows.clear()
        picard.solve(sampling(net, power=power), 24, **OPTIONS, cuda_graph=graphs)
        assert len(net.rows) == 2
        assert len(graphs) <= 2


def test_a_callback_may_keep_what_it_is_shown() -> None:
    found: list[list[RoundInfo]] = [[], []]
    for kept, given in zip(found, (False, True), strict=True):
        picard.solve(sampling(Net()), 24, **OPTIONS, cuda_graph=given, callback=kept.append)
    plain, captured = found
    for one, other in zip(plain, captured, strict=True):
        width = one.width[0]
        torch.testing.assert_close(other.states[:, :width], one.states[:, :width], rtol=1e-12, atol=1e-12)
        assert other.stride == one.stride


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_rounds_are_not_exceeded(count: int, most: int) -> None:
    def solve(**options: Any) -> picard.Solution:
        return picard.solve(sampling(Net(), 2), 24, **OPTIONS, max_rounds=most, throw=False, save="all", **options)

    plain, captured = solve(), solve(cuda_graph=True, sync_every=count)
    assert captured.stats.rounds == most
    assert captured.converged == plain.converged
    torch.testing.assert_close(captured.ys, plain.ys, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("throw", [True, False])
def test_a_failing_model_is_named_as_ever(throw: bool, count: int) -> None:
    plain = solve_failing(throw=throw)
    captured = solve_failing(throw=throw, cuda_graph=True, sync_every=count)
    assert captured.status == plain.status
    assert picard.Status.NON_FINITE in plain.status
    assert captured.converged == plain.converged
    torch.testing.assert_close(captured.final, plain.final, rtol=1e-12, atol=1e-12)


def test_slots_past_the_first_window_may_have_no_field() -> None:
    """Under "hold" it has one node; the model is asked for all, and 1/x says nothing sensible of the rest."""
    problem = picard.ODE(lambda t, x: 1 / x, torch.tensor([[1.0], [2.0]], dtype=F64))
    options: dict[str, Any] = {"method": "euler", "window": 8, "guess": "hold"}
    plain, captured = (picard.solve(problem, times(30), **options, cuda_graph=given) for given in (False, True))
    torch.testing.assert_close(captured.ys, plain.ys, rtol=1e-12, atol=1e-12)


def test_gradients_go_through_a_captured_solve() -> None:
    found = []
    for given in (False, True):
        x0 = start(2, 2).requires_grad_()
        problem = picard.ODE(lambda t, x: torch.sin(x), x0)
        solution = picard.solve(
            problem, times(30), method="heun", window=8, guess="hold", tolerance=1e-10, cuda_graph=given
        )
        solution.final.sum().backward()
        found.append(x0.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


def test_a_model_that_waits_for_the_gpu_is_refused() -> None:
    def predict(x: Tensor, t: Tensor) -> Tensor:
        return x * float(t.amax() > 0)

    with pytest.raises(picard.NotSupportedError, match="must not wait for the GPU"):
        picard.solve(sampling(predict), 24, **OPTIONS, cuda_graph=True)


@pytest.mark.parametrize("failures", [1, 2])
def test_without_memory_for_a_graph_the_solve_goes_on(
    failures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once more after the caches were emptied, then without a graph."""
    tries = []

    def scarce(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
        tries.append(work)
        if len(tries) <= failures:
            msg = "CUDA out of memory. Tried to allocate 2.00 GiB."
            raise torch.cuda.OutOfMemoryError(msg)
        return recorded(work, device)

    monkeypatch.setattr("picard.captured._recorded", scarce)
    net = Net()
    agree(sampling(net), True)
    assert len(tries) == 2
    assert ("no memory is left" in caplog.text) == (failures == 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "auto"}, "give the window as a number"),
        ({"max_rows": "auto"}, "give the window as a number"),
        ({"certify": True}, "cuda_graph=True leaves decisions to the device"),
        ({"tolerance": 0.3}, "or leave cuda_graph out"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((picard.NotSupportedError, picard.InvalidProblemError), match=message):
        picard.solve(sampling(Net()), 24, **{**OPTIONS, "cuda_graph": True, **options})


@pytest.mark.usefixtures("unchecked")
def test_other_values_are_refused() -> None:
    with pytest.raises(picard.InvalidProblemError, match="must be True, False or a picard"):
        picard.solve(sampling(Net()), 24, **OPTIONS, cuda_graph="yes")  # type: ignore[arg-type]


def test_guesses_of_the_host_are_refused() -> None:
    trajectory = torch.zeros(21, *pendulum().x0.shape, dtype=F64)
    with pytest.raises(picard.NotSupportedError, match="with guesses given by name"):
        picard.solve(pendulum(), times(20), method="rk4", guess=trajectory, cuda_graph=True)


def test_newtons_method_is_refused() -> None:
    with pytest.raises(picard.NotSupportedError, match="leave cuda_graph out"):
        picard.solve(pendulum(), times(20), method="rk4", linearization="newton", cuda_graph=True)


def test_there_must_be_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with pytest.raises(picard.NotSupportedError, match="needs states on a CUDA device; they are on cpu"):
        picard.solve(sampling(Net()), 24, **OPTIONS, cuda_graph=True)


def test_windows_of_a_few_nodes_are_not_captured() -> None:
    agree(sampling(Net()), True, window=3)


def test_networks_of_other_kinds() -> None:
    model = Counted(network(LINEAR, "epsilon"))
    denoiser = picard.Denoiser(model, LINEAR, clip=1.0)
    agree(picard.Diffusion(denoiser, start(2, 3), noise=picard.Noise.from_seed(0)), True)
    agree(diffusion(prediction="v_prediction"), True, sync_every=2)


@torch.no_grad()
def test_schedulers_of_diffusers() -> None:
    """A scheduler is traced anew for every sample; what is captured is found again."""
    net, graphs = Net(), picard.CudaGraphs()
    levels = scheduler("ddim")
    options: dict[str, Any] = {"num_inference_steps": 20, "window": 8, "tolerance": 0.01}
    for seed in range(2):
        latents = start(1, 3, seed=seed)
        plain, captured = (
            diffusers.sample(net, levels, latents, **options, cuda_graph=given).final for given in (False, graphs)
        )
        torch.testing.assert_close(captured, plain, rtol=1e-9, atol=1e-9)
    assert len(graphs) == 1


@torch.no_grad()
@pytest.mark.parametrize("family", ["lerobot", "unet-global", "unet-inpaint", "transformer-cond"])
def test_a_policy_captures_at_its_first_call(family: str) -> None:
    """Later observations and noise are new, and so are known actions."""
    found: list[list[Tensor]] = []
    calls: list[int] = []
    for given in (False, True):
        torch.manual_seed(0)
        policy, draw = build(family, scheduler(), 20)
        owner = getattr(policy, "diffusion", policy)
        network = getattr(owner, "unet", None) or owner.model
        network.register_forward_pre_hook(lambda *_: calls.append(1))
        parallelize(policy, window=8, cuda_graph=given)
        found.append([])
        for seed in range(3):
            calls.clear()
            found[-1].append(draw(2 - seed % 2, torch.Generator().manual_seed(seed)))
        assert (len(calls) < 3) == given
    for plain, captured in zip(*found, strict=True):
        torch.testing.assert_close(captured, plain, rtol=1e-4, atol=1e-4)
    assert len(copy.deepcopy(policy).picard._graphs) == 0


def test_a_policys_guesses_of_the_host_are_refused() -> None:
    policy, _ = build("lerobot", scheduler(), 20)
    with pytest.raises(picard.NotSupportedError, match="leave one of them out"):
        parallelize(policy, cuda_graph=True, warm_start="shift")
    parallelize(policy, cuda_graph=True)
    with pytest.raises(picard.NotSupportedError, match="planned ahead"), policy.picard.ahead():
        pass
