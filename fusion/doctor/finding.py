"""What a check says: an illness, what was measured of it, where its limits lie and why, and what to do."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fusion.common.statistics import Measured

SEVERE, MILD, UNCLEAR, WELL, UNKNOWN = "severe", "mild", "unclear", "well", "not judged"
ORDER = (SEVERE, MILD, UNCLEAR, WELL, UNKNOWN)


class Missing(ValueError):
    """What a check needs is not there, or too little of it; one line."""


@dataclass(frozen=True)
class Rule:
    """How an illness is judged. statistic: what is measured, in words. mild, severe: limits of the statistic; ill is
    what lies beyond, which is above them, or below them where `mild` is above `severe`. reason: why the limits stand
    there. advice: what to do."""

    illness: str
    statistic: str
    mild: float
    severe: float
    reason: str
    advice: str

    def verdict(self, found: Measured) -> str:
        """Ill only where the whole interval lies beyond a limit; unclear where the value alone does."""
        sign = 1 if self.severe >= self.mild else -1
        measured = found if sign > 0 else -found
        if measured.least > sign * self.severe:
            return SEVERE
        if measured.least > sign * self.mild:
            return MILD
        return UNCLEAR if measured.value > sign * self.mild else WELL

    def judge(self, found: Measured, said: str, evidence: str = "", **figures: float | str) -> "Finding":
        """said: one sentence with the figures. evidence: HTML. figures: what else was measured, by name."""
        return Finding(self, self.verdict(found), found, said, evidence, figures)

    def unknown(self, why: str) -> "Finding":
        """Nothing could be measured."""
        return Finding(self, UNKNOWN, None, why)


@dataclass(frozen=True)
class Finding:
    """What a check found. follows: the illness that may be all the reason of this one."""

    rule: Rule
    verdict: str
    measured: Measured | None
    said: str
    evidence: str = ""
    figures: Mapping[str, float | str] = field(default_factory=dict)
    follows: str | None = None

    @property
    def illness(self) -> str:
        """Its name."""
        return self.rule.illness

    @property
    def ill(self) -> bool:
        """Whether it is one."""
        return self.verdict in (SEVERE, MILD)

    def as_json(self) -> dict:
        """All but the evidence."""
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
    """Of two findings on one illness the worse, with the evidence and the figures of both."""
    first, second = sorted((one, other), key=lambda finding: ORDER.index(finding.verdict))
    return replace(first, evidence=first.evidence + second.evidence, figures={**second.figures, **first.figures})
