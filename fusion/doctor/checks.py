"""Runs all checks of a run in turn, and marks the faults that may be entirely due to another one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from fusion.common.statistics import TooFew
from fusion.doctor import image_checks as images
from fusion.doctor import run_checks as course
from fusion.doctor import text_checks as words
from fusion.doctor.finding import Finding, Missing, Rule
from fusion.doctor.run_data import Patient

CHECKS: list[tuple[Rule, Callable[[Patient], Finding]]] = [
    (course.LEAKING, course.leaking),
    (course.GREEN, course.undertrained),
    (words.DEAF, words.deaf),
    (words.SILENT, words.silent),
    (words.FORGETFUL, words.forgetful),
    (images.COPY, images.copying),
    (images.COLLAPSED, images.collapsed),
    (images.OVER, images.over_guided),
    (images.NOISE, images.blurred),
]
"""Causes before what may come of them."""

BRINGS = {
    # An undertrained model has learned too little yet to show what else would be wrong with it.
    course.GREEN.illness: {rule.illness for rule, _ in CHECKS} - {course.LEAKING.illness, course.GREEN.illness},
    # A model that is not conditioned on the instruction changes nothing.
    words.DEAF.illness: {images.COPY.illness},
    # Images with half of the detail have half of what differs between seeds.
    images.NOISE.illness: {images.COLLAPSED.illness},
}


def examine(patient: Patient) -> Iterator[Finding]:
    """Run all checks and yield their findings; that of a check that lacks what it needs says so."""
    for rule, check in CHECKS:
        try:
            yield check(patient)
        except (Missing, TooFew) as missing:
            yield rule.unknown(str(missing))


def in_context(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, where `follows` names another illness that was found and may be the whole cause."""
    ill = [finding.illness for finding in findings if finding.ill]

    def cause(finding: Finding) -> str | None:
        return next((name for name in ill if finding.ill and finding.illness in BRINGS.get(name, ())), None)

    return [replace(finding, follows=cause(finding)) for finding in findings]
