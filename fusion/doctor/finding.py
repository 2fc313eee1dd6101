"""Findings of the doctor's checks: a fault, its measurement, its limits with their reasons, and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fusion.common.statistics import Measured

SEVERE, MILD, UNCLEAR, WELL, UNKNOWN = "severe", "mild", "unclear", "well", "not judged"
ORDER = (SEVERE, MILD, UNCLEAR, WELL, UNKNOWN)


class Missing(ValueError):
    """Raised where what a check needs is missing, or there is too little of it; the message is one line."""


@dataclass(frozen=True)
class Rule:
    """How one illness, a fault of a run, is judged.

    statistic: what is measured, in words. mild, severe: limits of the statistic; a run is ill beyond them, which is
    above them, or below them where `mild` is above `severe`. reason: why the limits are there. advice: what to do.
    """

    illness: str
    statistic: str
    mild: float
    severe: float
    reason: str
    advice: str

    def verdict(self, found: Measured) -> str:
        """Return the verdict: ill only where the whole interval is beyond a limit, unclear where the value alone is."""
        sign = 1 if self.severe >= self.mild else -1
        measured = found if sign > 0 else -found
        if measured.least > sign * self.severe:
            return SEVERE
        if measured.least > sign * self.mild:
            return MILD
        return UNCLEAR if measured.value > sign * self.mild else WELL

    def judge(self, found: Measured, said: str, evidence: str = "", **figures: float | str) -> "Finding":
        """Build the finding of a measurement.

        said: one sentence with the figures. evidence: HTML. figures: what else was measured, by name.
        """
        return Finding(self, self.verdict(found), found, said, evidence, figures)

    def unknown(self, why: str) -> "Finding":
        """Build the finding that nothing could be measured; why: the reason."""
        return Finding(self, UNKNOWN, None, why)


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    said: one sentence. evidence: HTML. figures: what else was measured, by name. follows: the illness that may be the
    whole cause of this one.
    """

    rule: Rule
    verdict: str
    measured: Measured | None
    said: str
    evidence: str = ""
    figures: Mapping[str, float | str] = field(default_factory=dict)
    follows: str | None = None

    @property
    def illness(self) -> str:
        """The name of the illness."""
        return self.rule.illness

    @property
    def ill(self) -> bool:
        """Whether the verdict is mild or severe."""
        return self.verdict in (SEVERE, MILD)

    def as_json(self) -> dict:
        """Return all but the evidence, for doctor.json."""
        numbers = (
            {}
            if self.measured is None
            else {"value": self.measured.value, "low": self.measured.low, "high": self.measured.high}
        )
        rule = {name: getattr(self.rule, name) for name in ("statistic", "mild", "severe", "reason", "advice")}
        return (
            {"illness": self.illness, "verdict": self.verdict}
            | numbers
            | {"said": self.said, "follows": self.follows, **rule, **self.figures}
        )


def worse(one: Finding, other: Finding) -> Finding:
    """Merge two findings on one illness: the worse verdict, with the evidence and the figures of both."""
    first, second = sorted((one, other), key=lambda finding: ORDER.index(finding.verdict))
    return replace(first, evidence=first.evidence + second.evidence, figures={**second.figures, **first.figures})
