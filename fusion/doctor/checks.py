"""All checks of a run in turn, and which illness may be all the reason of which other."""

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
    # What has not been trained long enough has learned nothing yet, whatever else would be wrong with it.
    course.GREEN.illness: {rule.illness for rule, _ in CHECKS} - {course.LEAKING.illness, course.GREEN.illness},
    # Who does not hear what is to change changes nothing.
    words.DEAF.illness: {images.COPY.illness},
    # Half of the detail is half of what differs between seeds.
    images.NOISE.illness: {images.COLLAPSED.illness},
}


def examine(patient: Patient) -> Iterator[Finding]:
    """What each check finds, as it comes. A check that lacks what it needs says so."""
    for rule, check in CHECKS:
        try:
            yield check(patient)
        except (Missing, TooFew) as missing:
            yield rule.unknown(str(missing))


def in_context(findings: Sequence[Finding]) -> list[Finding]:
    """The same, where those that may come of another illness that was found say of which."""
    ill = [finding.illness for finding in findings if finding.ill]

    def cause(finding: Finding) -> str | None:
        return next((name for name in ill if finding.ill and finding.illness in BRINGS.get(name, ())), None)

    return [replace(finding, follows=cause(finding)) for finding in findings]
