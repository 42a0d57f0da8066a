"""What a check found: one finding a property, printed as a table, raised as an error with a reproducer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from picard.errors import PicardError, close_match
from picard.verify.case import Case
from picard.verify.reproducer import Reproducer


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
class Finding:
    """One property of the report.

    Attributes:
        property: its name, as in `picard.verify.PROPERTIES`.
        outcome: passed, failed or skipped.
        detail: what was measured, went wrong, or is missing.
        reproducer: the smallest failing case, of a failure.
        error: what the solver raised, if that is the failure, with its traceback.
    """

    property: str
    outcome: Outcome
    detail: str
    reproducer: Reproducer | None = None
    error: Exception | None = None


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
        """Return the finding of a property by its name.

        Raises:
            KeyError: if it was not checked.
        """
        found = {finding.property: finding for finding in self.findings}
        if name not in found:
            msg = f"{name!r} was not checked: {close_match(name, found)}"
            raise KeyError(msg)
        return found[name]

    def raise_for_failures(self) -> None:
        """Raise if a property failed.

        Raises:
            VerificationError: it names the first failing property and holds the smallest failing case found; its cause
                is what the solver raised, if that is the failure.
        """
        if not self.failures:
            return
        first = self.failures[0]
        names = ", ".join(finding.property for finding in self.failures)
        message = f"the solver must be {first.property.replace('_', ' ')}: {first.detail} (failing: {names})"
        if first.reproducer is not None:
            message += f"\nsmallest failing case found:\n{first.reproducer}"
        raise VerificationError(message, self) from first.error

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
