"""Several processes: equal to one, and never left waiting for a rank that is gone. `tests/ranks.py` has the cases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

import picard
from tests.problems import pendulum, sde
from tests.ranks import RANKS, TOGETHER

ROOT = Path(__file__).parents[1]
# Sockets on this machine only; gloo would otherwise ask for the machine's name.
LOCAL = {**os.environ, "GLOO_SOCKET_IFNAME": "lo" if sys.platform == "linux" else "lo0", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@contextmanager
def running(case: str, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the ranks, and leave none behind."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", case, str(rank), str(tmp_path / "meeting")],
            cwd=ROOT,
            env=LOCAL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_two_ranks_equal_one_process_and_share_their_errors(tmp_path: Path) -> None:
    with running("together", tmp_path) as processes:
        for rank, process in enumerate(processes):
            output, _ = process.communicate(timeout=110)
            assert process.returncode == 0, f"rank {rank}:\n{output}"
            for case in TOGETHER:
                assert f"passed {case.__name__}" in output, f"rank {rank}:\n{output}"


@pytest.mark.parametrize("case", ["killed", "stuck"])
def test_a_lost_rank_ends_the_other_within_the_timeout(case: str, tmp_path: Path) -> None:
    with running(case, tmp_path) as processes:
        output, _ = processes[0].communicate(timeout=50)  # the group's timeout is 60 s for the killed rank, 3 s else
    assert "DistributedError after" in output, output
    assert "all ranks must stay until the solve ends" in output


def test_the_example_runs_under_torchrun() -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command.append(str(ROOT / "examples" / "distributed.py"))
    done = subprocess.run(command, env=LOCAL, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2" in done.stdout
    assert "rank 1 of 2" in done.stdout


def test_without_a_process_group_it_says_how_to_make_one() -> None:
    with pytest.raises(picard.InvalidProblemError, match="init_process_group"):
        picard.distributed.spread(pendulum())


@pytest.mark.parametrize("problem", [pendulum(), sde()], ids=["ode", "sde"])
def test_a_problem_is_spread_once(problem: picard.ODE | picard.SDE) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        with pytest.raises(picard.InvalidProblemError, match="spread already"):
            picard.distributed.spread(picard.distributed.spread(problem))
    finally:
        dist.destroy_process_group()


def test_only_problems_can_be_spread(unchecked: None) -> None:
    with pytest.raises(picard.InvalidProblemError, match="must be an ODE"):
        picard.distributed.spread(3)  # type: ignore[arg-type]
