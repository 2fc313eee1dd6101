"""Says what is wrong with a run, and shows why. `fusion doctor RUN [key=value ...]`

Reads the folder that train.unified, train.demo or train.diffusion wrote, finished or not, and writes doctor.json and
doctor.html into it.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from transformers.utils import logging

from fusion.common.atomic import save
from fusion.doctor.checks import examine, in_context
from fusion.doctor.finding import Finding
from fusion.doctor.page import as_text, render, summary
from fusion.doctor.run_data import Patient

COUNT = 96  # held-out documents of each source


def diagnose(
    run: Path, words: Sequence[str] = (), count: int = COUNT, device: str | None = None, out: Path | None = None
) -> list[Finding]:
    """Run all checks on a run, write doctor.json and doctor.html to `out`, and return the findings.

    words: key=value of the run's config that hold here. count: held-out documents of each source. out: the run's folder
    if None. Raises ValueError, in one line, where the run cannot be examined.
    """
    patient, out = Patient(run, words, count, device), out or run
    findings = in_context(list(examine(patient)))
    figures = {"run": str(run), "model": str(patient.folder), "count": count, "summary": summary(findings)}
    figures["findings"] = [finding.as_json() for finding in findings]
    out.mkdir(parents=True, exist_ok=True)
    save((json.dumps(figures, indent=1) + "\n").encode(), out / "doctor.json")
    save(render(run, patient.folder, findings).encode(), out / "doctor.html")
    return findings


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="fusion doctor", description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run of train.unified, train.demo or train.diffusion")
    parser.add_argument("--count", type=int, default=COUNT, help="held-out documents of each source that are looked at")
    parser.add_argument(
        "-o", "--out", type=Path, help="the folder that gets doctor.json and doctor.html; the run's own unless given"
    )
    parser.add_argument("--device", help="cuda, cpu, ...")
    parser.add_argument(
        "words",
        nargs="*",
        metavar="key=value",
        help="of the run's config, where it does not hold any more: data.path=FOLDER",
    )
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the program: return 0 where nothing is wrong, 1 where something is, 2 where the run cannot be examined.

    In the last case one line on stderr says why.
    """
    options = parsed(argv)
    logging.disable_progress_bar()  # of loading weights
    try:
        if options.count < 1:
            raise ValueError(f"--count {options.count}: give at least 1")
        findings = diagnose(options.run, options.words, options.count, options.device, options.out)
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(as_text(findings))
    print((options.out or options.run) / "doctor.html")
    return 1 if any(finding.ill for finding in findings) else 0
