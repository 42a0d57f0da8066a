"""What a round costs outside the model: `python -m benchmarks.overhead [--seconds] [--ops] [--compile] [--gpu]`.

The model returns its argument, which costs nothing. Counted per round are the bytes that operations read and write, in
units of one copy of the window's states (each read once and written once), and the bytes they allocate, in units of the
window's states. Counts do not depend on the machine. `--seconds` times rounds beside such a copy, on one thread, on a
machine that does nothing else, with 10 GB of memory for the largest size; `--compile` times compiled ones. `--ops`
lists the operations by traffic. `--gpu` times plain, compiled and captured rounds on a GPU.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import picard

SIZES = ((1_000, 16), (1_000, 128), (30_000, 64), (1_000_000, 16), (1_000_000, 128))
LOOKUPS = ("index", "gather", "index_select")  # read what they return, not what they choose from


class Traffic(TorchDispatchMode):
    """Counts bytes read, written and allocated by every operation that is no view.

    Attributes:
        moved: bytes read and written, by operation.
        allocated: bytes of new storages.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.moved: Counter[str] = Counter()
        self.allocated = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count."""
        out = function(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        storages = {leaf.untyped_storage().data_ptr() for leaf in given}
        name = function.__name__
        fresh = [leaf for leaf in made if leaf.untyped_storage().data_ptr() not in storages]
        self.allocated += sum(_bytes(leaf) for leaf in fresh)
        if fresh or name.split(".")[0].endswith("_") or name.endswith("out"):
            lookup = name.split(".")[0] in LOOKUPS
            read = sum(_bytes(leaf) for leaf in (made if lookup else given))
            self.moved[name] += read + sum(_bytes(leaf) for leaf in made)
        return out


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of what a tensor shows, repeated entries counted once."""
    shown = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        shown *= size if stride else 1
    return shown * tensor.element_size()


def nothing(_: Tensor, x: Tensor) -> Tensor:
    """Cost nothing, as a model."""
    return x


def solve(dims: int, window: int, rounds: int, note: Any, options: dict[str, Any], device: str = "cpu") -> None:
    """Solve for some rounds that keep the whole window busy: none converges at a tolerance of zero."""
    grid = torch.linspace(0, 1, 12 * window + 100, device="cpu")
    picard.solve(
        picard.ODE(nothing, torch.ones(1, dims, device=device)),
        grid,
        method="euler",
        window=window,
        tolerance=picard.FixedRounds(6),
        callback=note,
        max_rounds=rounds,
        throw=False,
        **options,
    )


def traffic(dims: int, window: int, options: dict[str, Any]) -> tuple[Counter[str], float]:
    """Count bytes moved, by operation, and allocated, in the second half of twelve rounds; the mean of a round."""
    meter, seen = Traffic(), []

    def note(info: picard.RoundInfo) -> None:
        if info.width[0] == window:
            seen.append((Counter(meter.moved), meter.allocated))

    with meter:
        solve(dims, window, 12, note, options)
    (moved, allocated), (after, in_all) = seen[len(seen) // 2], seen[-1]
    rounds = len(seen) - 1 - len(seen) // 2
    return Counter({name: (after[name] - moved[name]) // rounds for name in after}), (in_all - allocated) / rounds


def seconds(
    dims: int, window: int, options: dict[str, Any], *, device: str = "cpu", few: int = 4, many: int = 16
) -> float:
    """Time a round: what so many more take; the median of five."""

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def taken(rounds: int) -> float:
        wait()
        started = time.perf_counter()
        solve(dims, window, rounds, None, options, device)
        wait()
        return time.perf_counter() - started

    taken(few)  # warms up, compiles and captures
    return median((taken(many) - taken(few)) / (many - few) for _ in range(5))


def copy_seconds(dims: int, window: int) -> float:
    """Time one copy of the window's states; the median of twenty."""
    source, target, taken = torch.ones(window, dims), torch.empty(window, dims), []
    for _ in range(20):
        started = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - started)
    return median(taken)


def gpu_table(options: dict[str, Any]) -> None:
    """Print what rounds take on a GPU, beside one copy of the window's states."""
    ways: dict[str, dict[str, Any]] = {"plain": {}, "compiled": {"compile": True}}
    ways |= {f"{name}, captured": {**way, "cuda_graph": picard.CudaGraphs()} for name, way in ways.items()}
    ways["compiled, captured, read every 8 rounds"] = {**ways["compiled, captured"], "sync_every": 8}
    print(f"| numbers in a state | window | a copy | {' | '.join(ways)} |\n|{'---|' * (3 + len(ways))}")
    for dims, window in SIZES:
        source, target = torch.ones(window, dims, device="cuda"), torch.empty(window, dims, device="cuda")
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(100):
            target.copy_(source)
        torch.cuda.synchronize()
        copy = (time.perf_counter() - started) / 100
        rounds = [seconds(dims, window, {**options, **way}, device="cuda", few=8, many=40) for way in ways.values()]
        cells = " | ".join(f"{1e6 * each:.0f} us ({each / copy:.1f})" for each in rounds)
        print(f"| {dims:,} | {window} | {1e6 * copy:.1f} us | {cells} |", flush=True)


def main() -> None:
    """Parse the arguments and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", action="store_true", help="also time rounds")
    parser.add_argument("--ops", action="store_true", help="list operations by traffic, for the middle size")
    parser.add_argument("--linearization", default="secant")
    parser.add_argument("--guess", default="hold")
    parser.add_argument("--compile", action="store_true", help="time compiled rounds; implies --seconds")
    parser.add_argument("--gpu", action="store_true", help="time rounds on a GPU, and nothing else")
    given = parser.parse_args()
    options: dict[str, Any] = {"linearization": given.linearization, "guess": given.guess}
    given.seconds |= given.compile
    if given.gpu:
        gpu_table(options)
        return
    torch.set_num_threads(1)
    timed = " seconds of a round | in copies |" if given.seconds else ""
    print(f"| numbers in a state | window | moved, in copies | allocated, in windows |{timed}")
    print("|---|---|---|---|" + "---|---|" * given.seconds)
    for dims, window in SIZES:
        if dims * window > 2e7 and not given.seconds:
            continue  # the counts are those of the smaller ones
        whole = 4 * dims * window
        moved, new = traffic(dims, window, options)
        cells = f"{moved.total() / (2 * whole):.1f} | {new / whole:.1f}"
        if given.seconds:
            copy, taken = copy_seconds(dims, window), seconds(dims, window, {**options, "compile": given.compile})
            cells += f" | {taken:.5f} | {taken / copy:.1f}"
        print(f"| {dims:,} | {window} | {cells} |", flush=True)
        if given.ops and dims == 30_000:
            for name, count in moved.most_common(25):
                print(f"    {name:32} {count / (2 * whole):.2f}")


if __name__ == "__main__":
    with torch.no_grad():
        main()
