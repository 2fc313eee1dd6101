"""Check a data set by reading it as training does: report its contents, bad samples and train/validation leaks."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tqdm import tqdm

from fusion.data.formats import (
    BadSample,
    Chat,
    DataConfig,
    EditPairs,
    ImageFolder,
    Interleaved,
    PlainText,
    Sample,
    SourceConfig,
    Split,
    open_sources,
)
from fusion.data.formats.row_parsers import Edits
from fusion.data.formats.split import SUFFIXES
from fusion.data.formats.table_source import TableSource
from fusion.data.formats.tables import TABLES, open_table, scan
from fusion.data.packing import Packing, documents
from fusion.sequence.packed import Layout
from fusion.sequence.processor import FusionProcessor

SHOWN = 20
# The kinds of SourceConfig that `open_as` opens (their rows can be counted), with their readable names.
FORMATS = {
    "images": "captioned images",
    "edits": "edit pairs",
    "pages": "interleaved pages",
    "chats": "conversations",
    "text": "plain text",
}
NO_LIMIT = 2**40  # tokens: more than any document has


@dataclass
class Report:
    """Statistics and problems of one source, as collected by `check`.

    rows: number of samples, good and bad. sizes: count of images by (width, height). texts: length of each text block
    in characters. lengths: length of each document in tokens, clean and noised patches included. text_tokens: number of
    tokens over all documents that are not patches. reader: name of the model whose processor made the tokens. samples:
    number of good samples by side of the split. subjects: subjects of the good samples by side of the split. repeats:
    number of samples equal to an earlier one in every pixel and character. image_repeats, text_repeats: (key, key of
    the first occurrence) of each image or text that occurred in an earlier sample. bad: (key, reason) of each sample
    that cannot be used. good: indices of the good samples in the source.
    """

    name: str
    format: str = ""
    rows: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    texts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    text_tokens: int = 0
    reader: str = ""
    samples: Counter[str] = field(default_factory=Counter)
    subjects: dict[str, set[str]] = field(default_factory=lambda: {"train": set(), "validation": set()})
    repeats: int = 0
    image_repeats: list[tuple[str, str]] = field(default_factory=list)
    text_repeats: list[tuple[str, str]] = field(default_factory=list)
    bad: list[tuple[str, str]] = field(default_factory=list)
    good: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Findings:
    """Reports on sources that belong to one data set, and their leaks across the split.

    leaks: (key of a training sample, key of a validation sample) that hold the same image under different subjects.
    """

    reports: list[Report]
    leaks: list[tuple[str, str]]

    @property
    def flawed(self) -> bool:
        """True if any sample is bad or leaks across the split."""
        return bool(self.leaks) or any(report.bad for report in self.reports)


@dataclass(frozen=True)
class Reader:
    """Convert samples to laid-out documents as training does.

    name: name of the model whose processor this is. length: training's row length in tokens, which a conversation has
    to fit; None for no limit. Raises ValueError if `length` is below 1.
    """

    processor: FusionProcessor
    name: str = "the model"
    length: int | None = None

    def __post_init__(self):
        if self.length is not None and self.length < 1:
            raise ValueError(f"length={self.length}: a row of training has at least one token")

    def __call__(self, sample: Sample) -> list[Layout]:
        """Return the laid-out documents of a sample at their greatest length; raises BadSample.

        Nothing is dropped for guidance, and the clean copy of the last image is kept.
        """
        packing = Packing(length=self.length or NO_LIMIT, tail=1.0)
        return documents(sample, self.processor, packing, random.Random(0), guidance=False)


def check(sources: Sequence[TableSource], split: Split | None = None, reader: Reader | None = None) -> Findings:
    """Read every sample of the given sources and report counts, repeats, bad samples and leaks across the split.

    sources: opened with split="all". split: assigns the subjects to training and validation (default `Split()`).
    reader: also lay every sample out as training does, count the tokens, and report samples that cannot be laid out as
    bad.
    """
    split = split or Split()
    validation = Split("validation", split.held_out, split.seed, split.variant)
    owners: dict[bytes, dict[str, str]] = {}
    reports = []
    for source in sources:
        report = Report(source.name, _format(source), len(source), reader=reader.name if reader else "")
        held, seen = validation.chosen(source.subjects), _Seen()
        reports.append(report)
        for index in tqdm(range(len(source)), desc=source.name, unit=" samples", leave=False, disable=None):
            try:
                sample = source[index]
                laid_out = reader(sample) if reader else []
            except BadSample as bad:
                report.bad.append((bad.key, bad.reason))
                continue
            side = "validation" if sample.subject in held else "train"
            report.good.append(index)
            report.samples[side] += 1
            report.subjects[side].add(sample.subject)
            report.lengths += map(len, laid_out)
            report.text_tokens += sum(int((document.rows.image_index < 0).sum()) for document in laid_out)
            for image in _measure(sample, report, seen):
                owners.setdefault(image, {}).setdefault(side, sample.key)
    return Findings(reports, [(keys["train"], keys["validation"]) for keys in owners.values() if len(keys) == 2])


@dataclass(frozen=True)
class _Seen:
    """Fingerprints of the images, texts and samples read so far.

    Images and texts map to the key of the sample in which they occurred first.
    """

    images: dict[bytes, str] = field(default_factory=dict)
    texts: dict[bytes, str] = field(default_factory=dict)
    samples: set[bytes] = field(default_factory=set)


def _measure(sample: Sample, report: Report, seen: _Seen) -> list[bytes]:
    """Count a sample's images, texts and repeats in `report` and `seen`; return the fingerprints of its images."""
    images, whole = [], hashlib.blake2b(digest_size=16)
    turns = sample.messages or [{"role": "", "content": sample.content}]
    for block in (block for turn in turns for block in turn["content"]):
        if block["type"] == "text":
            report.texts.append(len(block["text"]))
            mark = _fingerprint(block["text"].encode())
            first, repeats = seen.texts.setdefault(mark, sample.key), report.text_repeats
        else:
            image = block["image"]
            report.sizes[image.size] += 1
            mark = _fingerprint(f"{image.size}".encode() + image.tobytes())
            images.append(mark)
            first, repeats = seen.images.setdefault(mark, sample.key), report.image_repeats
        if first != sample.key:
            repeats.append((sample.key, first))
        whole.update(block["type"].encode() + mark)
    report.repeats += whole.digest() in seen.samples
    seen.samples.add(whole.digest())
    return images


def _fingerprint(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def render(findings: Findings) -> str:
    """Format the findings as a plain-text summary for a terminal, with at most `SHOWN` bad samples and leaks listed."""
    lines = []
    for report in findings.reports:
        lines += _describe(report)
    for train, validation in findings.leaks[:SHOWN]:
        lines.append(f"leak: {train} (train) and {validation} (validation) hold the same image; give both one subject")
    if len(findings.leaks) > SHOWN:
        lines.append(f"      ... and {len(findings.leaks) - SHOWN:,} more leaks")
    return "\n".join(lines)


def facts(report: Report) -> dict[str, str]:
    """Summarise the counts of a report as label -> readable text; labels without data are left out."""
    said = {}
    if report.sizes:
        common = ", ".join(f"{w}x{h} ({count:,})" for (w, h), count in report.sizes.most_common(4))
        others = len(report.sizes) - 4
        said["images"] = f"{report.sizes.total():,}: {common}" + (f", and {others:,} other sizes" if others > 0 else "")
        aspects = sorted(w / h for w, h in report.sizes.elements())
        said["aspect"] = (
            f"{aspects[0]:.2f} narrowest, {median(aspects):.2f} median, {aspects[-1]:.2f} widest (width / height)"
        )
    if report.texts:
        said["texts"] = f"{len(report.texts):,}: {_spread(report.texts)} (characters)"
    if report.lengths:
        patches = sum(report.lengths) - report.text_tokens
        said["documents"] = (
            f"{len(report.lengths):,}: {_spread(report.lengths)} (tokens, as {report.reader} reads them)"
        )
        said["tokens"] = (
            f"{sum(report.lengths):,}: {report.text_tokens:,} of text and control, {patches:,} of patches, clean "
            "and noised"
        )
    said["split"] = ", ".join(
        f"{report.samples[side]:,} {side} ({len(subjects):,} subjects)" for side, subjects in report.subjects.items()
    )
    if report.image_repeats or report.text_repeats:
        images, texts = len(report.image_repeats), len(report.text_repeats)
        said["repeats"] = (
            f"equal to an earlier one: {report.repeats:,} of the samples, {images:,} of the images, {texts:,} of "
            "the texts"
        )
    return said


def _spread(lengths: list[int]) -> str:
    return f"{min(lengths):,} shortest, {median(lengths):,.0f} median, {max(lengths):,} longest"


def _describe(report: Report) -> list[str]:
    lines = [f"{report.name}: {report.format}, {report.samples.total():,} good samples, {len(report.bad):,} bad"]
    lines += [f"  {name:9} {words}" for name, words in facts(report).items()]
    lines += [f"  bad       {key}: {reason}" for key, reason in report.bad[:SHOWN]]
    if len(report.bad) > SHOWN:
        lines.append(f"  bad       ... and {len(report.bad) - SHOWN:,} more")
    return lines


def recognise(path: str | Path) -> list[TableSource]:
    """Detect and open the sources at a path: a table, or a folder of tables, captioned images or text files.

    Raises ValueError if the path does not exist or is none of these.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder; check the path")
    if path.is_file() and path.suffix not in (*TABLES, ".txt"):
        raise ValueError(f"{path}: not a data set; give a folder, a table ({', '.join(TABLES)}) or a .txt file")
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    if tables := [
        file for file in files if file.suffix in TABLES and file.parent == (path if path.is_dir() else path.parent)
    ]:
        return [_recognise_table(table) for table in tables]
    if any(file.suffix.lower() in SUFFIXES for file in files):
        return [ImageFolder(path)]
    return [PlainText(path)]


def _recognise_table(path: Path) -> TableSource:
    """Open a table as the kind of source that its file name and columns indicate."""
    columns = {column for row in scan(open_table(path)) for column in row.values}
    if path.stem == "metadata":
        return ImageFolder(path.parent)
    if columns & set(Edits.names["instruction"]):
        return EditPairs(path.parent, file=path.name)
    if "content" in columns:
        return Interleaved(path)
    return Chat(path) if "messages" in columns else PlainText(path)


def open_as(path: str | Path, format: str, columns: dict[str, str] | None = None) -> list[TableSource]:
    """Open a path as `data.sources` of a config would, with this kind (`format`) and these columns, without a split."""
    path = Path(path)
    file = path.name if format == "edits" and path.is_file() else None
    source = SourceConfig(
        format, str(path.resolve().parent if file else path.resolve()), columns=columns or None, file=file
    )
    return open_sources(DataConfig(sources=[source]), "all", stride=1)


def _format(source: TableSource) -> str:
    """Return the readable name of a source's kind, such as "captioned images"."""
    kinds = {ImageFolder: "images", EditPairs: "edits", Interleaved: "pages", Chat: "chats", PlainText: "text"}
    return FORMATS[kinds[type(source)]]
