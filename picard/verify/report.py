"""What a check found: one finding a property, printed as a table, raised as an error with a reproducer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from picard.errors import PicardError
from picard.verify.case import Case, show


class VerificationError(PicardError, AssertionError):
    """A solver does not have a property it should have; `report` holds all findings."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class Outcome(Enum):
    """How a property fared."""

    PASSED = "passed"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True, eq=False)
class Reproducer:
    """The smallest case found in which a property fails.

    Attributes:
        case: the case; `case.problem`, `case.grid`, `case.method` and `case.options` can be handed to the solver.
        property: name of the property.
        solver: the solver's name, for printing.
        detail: what goes wrong in it.
    """

    case: Case
    property: str
    solver: str
    detail: str

    def __str__(self) -> str:
        """Print as the call that shows the failure."""
        case = self.case
        problem = "problem" if case.samples is None else f"picard.verify.select(problem, {list(case.samples)})"
        options = [f"    {name}={show(value)}," for name, value in case.options.items()]
        lines = [
            f"# {describe_problem(case.problem)}",
            "picard.verify.check(",
            f"    {problem},",
            f"    {show(case.grid)},",
            f"    method={case.method!r},",
            f"    solver={self.solver},",
            *options,
            f"    properties=[{self.property!r}],",
            ").raise_for_failures()",
            f"# {self.detail}",
        ]
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Finding:
    """One property of the report.

    Attributes:
        property: its name, as in `picard.verify.PROPERTIES`.
        outcome: passed, failed or skipped.
        detail: what was measured, went wrong, or is missing.
        reproducer: the smallest failing case, of a failure.
    """

    property: str
    outcome: Outcome
    detail: str
    reproducer: Reproducer | None = None


@dataclass(frozen=True, eq=False)
class Report:
    """The findings of a check.

    Attributes:
        case: what was solved.
        findings: one a property, in the order they were checked.
    """

    case: Case
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """Findings of the properties that failed."""
        return tuple(finding for finding in self.findings if finding.outcome is Outcome.FAILED)

    @property
    def passed(self) -> bool:
        """Whether no property failed; skipped ones do not count."""
        return not self.failures

    def __getitem__(self, name: str) -> Finding:
        """Return the finding of a property by its name."""
        return next(finding for finding in self.findings if finding.property == name)

    def raise_for_failures(self) -> None:
        """Raise if a property failed.

        Raises:
            VerificationError: it names the first failing property and holds the smallest failing case found.
        """
        if not self.failures:
            return
        first = self.failures[0]
        names = ", ".join(finding.property for finding in self.failures)
        message = f"the solver must be {first.property.replace('_', ' ')}: {first.detail} (failing: {names})"
        if first.reproducer is not None:
            message += f"\nsmallest failing case found:\n{first.reproducer}"
        raise VerificationError(message, self)

    def __str__(self) -> str:
        """Print a table of all findings and the reproducers of the failures."""
        width = max((len(finding.property) for finding in self.findings), default=0)
        rows = [f"  {one.outcome.value:<8} {one.property:<{width}}  {one.detail}" for one in self.findings]
        parts = [f"{self.case!r}", *rows]
        for finding in self.failures:
            parts += ["", f"smallest case in which {finding.property} fails:", str(finding.reproducer)]
        return "\n".join(parts)

    def __repr__(self) -> str:
        """Show the counts."""
        skipped = sum(finding.outcome is Outcome.SKIPPED for finding in self.findings)
        passed = len(self.findings) - len(self.failures) - skipped
        return f"Report(passed={passed}, failed={len(self.failures)}, skipped={skipped})"


def describe_problem(problem: Any) -> str:
    """Describe a problem for a reproducer: its kind, the shape of its start, and the seed of its noise."""
    x0 = getattr(problem, "x0", None)
    text = f"{type(problem).__name__}" if x0 is None else f"{type(problem).__name__}, x0 {tuple(x0.shape)} {x0.dtype}"
    noise = getattr(problem, "noise", None)
    streams, seed = getattr(noise, "streams", None), getattr(noise, "seed", None)
    if streams is not None:
        return f"{text}, noise streams (seed, sample) {list(streams)}"
    return text if seed is None else f"{text}, noise=Noise.from_seed({seed})"
