"""Output of the doctor: a short table for a terminal, and an HTML page with the evidence."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from fusion.common.html import Section, document, paragraph, table
from fusion.doctor.finding import ORDER, UNCLEAR, UNKNOWN, Finding


def by_weight(findings: Sequence[Finding]) -> list[Finding]:
    """Sort findings, the worst first, causes before what may be due to them."""
    return sorted(findings, key=lambda finding: (finding.follows is not None, ORDER.index(finding.verdict)))


def summary(findings: Sequence[Finding]) -> str:
    """Summarize the findings in one sentence."""
    ill = [
        f"{finding.illness} ({finding.verdict})"
        for finding in by_weight(findings)
        if finding.ill and not finding.follows
    ]
    unclear = [finding.illness for finding in by_weight(findings) if finding.verdict == UNCLEAR]
    judged = sum(finding.verdict != UNKNOWN for finding in findings)
    parts = [", ".join(ill) or ("nothing is surely wrong" if unclear else "nothing is wrong")]
    if unclear:
        parts.append(f"unclear: {', '.join(unclear)} (a larger --count takes more held-out documents)")
    return "; ".join([*parts, f"{judged} of {len(findings)} checks could be judged"])


def as_text(findings: Sequence[Finding]) -> str:
    """Format the findings for a terminal: a line each, and under each illness what to do."""
    lines = []
    for finding in by_weight(findings):
        lines.append(f"{finding.verdict:<11}{finding.illness:<29}{finding.said}")
        if finding.follows:
            lines.append(f"{'':<11}may come of this alone: {finding.follows}")
        elif finding.ill:
            lines.append(f"{'':<11}do: {finding.rule.advice}")
    return "\n".join([*lines, "", summary(findings)])


def render(run: Path, model: Path | None, findings: Sequence[Finding]) -> str:
    """Render the findings as an HTML page; run, model: their folders."""
    facts = {"run": run, "model": model or "none yet"}
    listed = "".join(
        f"<div><dt>{name}</dt><dd><code>{escape(str(value))}</code></dd></div>" for name, value in facts.items()
    )
    header = (
        f"<header><h1>{escape(run.resolve().name)}, examined</h1><p "
        f'class="lead">{escape(summary(findings))}.</p><dl>{listed}</dl></header>'
    )
    ordered = by_weight(findings)
    return document(
        f"{run.resolve().name}, examined", header, [Section("Findings", _table(ordered)), *map(_section, ordered)]
    )


def _table(findings: Sequence[Finding]) -> str:
    rows = [
        [finding.illness, finding.verdict, *_numbers(finding), finding.rule.mild, finding.rule.severe, finding.said]
        for finding in findings
    ]
    return table(rows, ["illness", "verdict", "measured", "95% interval", "mild from", "severe from", "in words"])


def _numbers(finding: Finding) -> tuple[float | None, str | None]:
    found = finding.measured
    if found is None:
        return None, None
    return round(found.value, 4), None if found.low is None else f"{found.low:.3g} to {found.high:.3g}"


def _section(finding: Finding) -> Section:
    """Render one finding: the measurement, the advice, the reason for the limits, and the evidence."""
    title = finding.illness.capitalize()
    if finding.measured is None:
        return Section(title, "")
    rule, body = finding.rule, paragraph(f"{finding.verdict.capitalize()}: {finding.said}.")
    if finding.follows:
        body += paragraph(f"May come of this alone: {finding.follows}.")
    elif finding.ill:
        body += paragraph(f"What to do: {rule.advice}.")
    limits = f"Measured: {rule.statistic}. Mild from {rule.mild:g}, severe from {rule.severe:g}: {rule.reason}."
    return Section(title, body + f'<p class="quiet">{escape(limits)}</p>' + finding.evidence)
