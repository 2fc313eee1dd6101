"""Goes through a data set and says what is in it, what is broken and what leaks: `python -m fusion.data.check PATH`."""

import argparse
import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tqdm import tqdm

from fusion.data.sources import BadSample, Chat, EditPairs, ImageFolder, Interleaved, PlainText, Sample, Split
from fusion.data.sources.forms import Edits
from fusion.data.sources.rows import TABLES, open_table, scan
from fusion.data.sources.split import SUFFIXES
from fusion.data.sources.table import TableSource

SHOWN = 20


@dataclass
class Report:
    """What one source holds.

    sizes: of its images, (width, height). texts: the length of each text block in characters. samples: good ones by side of the
    split; subjects: those of good ones by side. repeats: samples equal to an earlier one in every pixel and letter.
    bad: (key, reason) of what cannot be used.
    """

    name: str
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    texts: list[int] = field(default_factory=list)
    samples: Counter[str] = field(default_factory=Counter)
    subjects: dict[str, set[str]] = field(default_factory=lambda: {"train": set(), "validation": set()})
    repeats: int = 0
    bad: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """Reports on sources that belong together, and what they share across the split.

    leaks: keys of a training and of a validation sample that hold the same picture under different subjects.
    """

    reports: list[Report]
    leaks: list[tuple[str, str]]


def check(sources: Sequence[TableSource], split: Split | None = None) -> Findings:
    """Read every sample of some sources, opened with split="all", and report on them as `split` would part them."""
    split = split or Split()
    validation = Split("validation", split.held_out, split.seed, split.variant)
    owners: dict[bytes, dict[str, str]] = {}
    reports = []
    for source in sources:
        report, held, seen = Report(source.name), validation.chosen(source.subjects), set()
        reports.append(report)
        for index in tqdm(range(len(source)), desc=source.name, unit=" samples", leave=False, disable=None):
            try:
                sample = source[index]
            except BadSample as bad:
                report.bad.append((bad.key, bad.reason))
                continue
            side = "validation" if sample.subject in held else "train"
            pictures, whole = _measure(sample, report)
            report.repeats += whole in seen
            seen.add(whole)
            report.samples[side] += 1
            report.subjects[side].add(sample.subject)
            for picture in pictures:
                owners.setdefault(picture, {}).setdefault(side, sample.key)
    return Findings(reports, [(keys["train"], keys["validation"]) for keys in owners.values() if len(keys) == 2])


def _measure(sample: Sample, report: Report) -> tuple[list[bytes], bytes]:
    """Count a sample's images and texts; return the fingerprints of its images and of the whole."""
    pictures, whole = [], hashlib.blake2b(digest_size=16)
    turns = sample.messages or [{"role": "", "content": sample.content}]
    for block in (block for turn in turns for block in turn["content"]):
        if block["type"] == "text":
            report.texts.append(len(block["text"]))
            whole.update(block["text"].encode() + b"\0")
        else:
            image = block["image"]
            report.sizes[image.size] += 1
            pictures.append(hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest())
            whole.update(pictures[-1])
    return pictures, whole.digest()


def render(findings: Findings) -> str:
    """The findings as a short table for a terminal."""
    lines = []
    for report in findings.reports:
        lines += _describe(report)
    for train, validation in findings.leaks[:SHOWN]:
        lines.append(f"leak: {train} (train) and {validation} (validation) hold the same picture; give both one subject")
    if len(findings.leaks) > SHOWN:
        lines.append(f"      ... and {len(findings.leaks) - SHOWN:,} more leaks")
    return "\n".join(lines)


def _describe(report: Report) -> list[str]:
    lines = [f"{report.name}: {report.samples.total():,} good samples, {len(report.bad):,} bad"]
    if report.sizes:
        common = ", ".join(f"{w}x{h} ({count:,})" for (w, h), count in report.sizes.most_common(4))
        others = len(report.sizes) - 4
        lines.append(f"  images    {report.sizes.total():,}: {common}" + (f", and {others:,} other sizes" if others > 0 else ""))
        aspects = sorted(w / h for w, h in report.sizes.elements())
        lines.append(f"  aspect    {aspects[0]:.2f} narrowest, {median(aspects):.2f} median, {aspects[-1]:.2f} widest (width / height)")
    if report.texts:
        shortest, middle, longest = min(report.texts), median(report.texts), max(report.texts)
        lines.append(f"  texts     {len(report.texts):,}: {shortest:,} shortest, {middle:,.0f} median, {longest:,} longest (characters)")
    sides = (f"{report.samples[side]:,} {side} ({len(subjects):,} subjects)" for side, subjects in report.subjects.items())
    lines.append(f"  split     {', '.join(sides)}")
    if report.repeats:
        lines.append(f"  repeats   {report.repeats:,} samples equal an earlier one")
    lines += [f"  bad       {key}: {reason}" for key, reason in report.bad[:SHOWN]]
    if len(report.bad) > SHOWN:
        lines.append(f"  bad       ... and {len(report.bad) - SHOWN:,} more")
    return lines


def recognise(path: str | Path) -> list[TableSource]:
    """The sources that a path holds: a table, a folder of tables, of images with captions beside them, or of texts."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    if tables := [file for file in files if file.suffix in TABLES and file.parent == (path if path.is_dir() else path.parent)]:
        return [_recognise_table(table) for table in tables]
    if any(file.suffix.lower() in SUFFIXES for file in files):
        return [ImageFolder(path)]
    return [PlainText(path)]


def _recognise_table(path: Path) -> TableSource:
    """The source for a table, by its columns."""
    columns = next((set(row.values) for row in scan(open_table(path)) if row.values), set())
    if path.stem == "metadata":
        return ImageFolder(path.parent)
    if columns & set(Edits.names["instruction"]):
        return EditPairs(path.parent, file=path.name)
    if "content" in columns:
        return Interleaved(path)
    return Chat(path) if "messages" in columns else PlainText(path)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns 1 if a sample is bad or leaks, else 0."""
    parser = argparse.ArgumentParser(prog="python -m fusion.data.check", description=__doc__.partition(":")[0])
    parser.add_argument("path", help="a folder of images, edit pairs or texts, or a .jsonl, .csv, .parquet or .txt file")
    parser.add_argument("--held-out", type=float, default=Split.held_out, help="share of subjects for validation (%(default)s)")
    parser.add_argument("--seed", type=int, default=Split.seed, help="chooses which subjects (%(default)s)")
    arguments = parser.parse_args(argv)
    try:
        findings = check(recognise(arguments.path), Split(held_out=arguments.held_out, seed=arguments.seed))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(render(findings))
    return int(bool(findings.leaks) or any(report.bad for report in findings.reports))


if __name__ == "__main__":
    sys.exit(main())
