"""Write a self-contained HTML page of a data check: counts, histograms, every bad sample, and samples as tokenised."""

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from fusion.common.atomic import save
from fusion.common.files import claim
from fusion.common.html import Section, bars, document, figure, paragraph, table
from fusion.data.check import Findings, Reader, Report, facts
from fusion.data.formats.table_source import TableSource
from fusion.sequence.inspect import draw_legend, draw_sequence, spans
from fusion.sequence.packed import pack

DRAWN = 8  # samples drawn of each source
SIZES = 12  # image sizes with a bar of their own
REPEATS = 50  # repeats listed, of images and of texts each
SPANS = 160  # tokens and images drawn of each sample
AS_IT_IS = 1
# Upper bounds of the bins of aspect ratios (width / height), with their labels.
ASPECTS = {
    0.4: "below 2:5",
    0.58: "1:2",
    0.71: "2:3",
    0.87: "3:4",
    1.15: "1:1",
    1.41: "4:3",
    1.73: "3:2",
    2.5: "2:1",
    float("inf"): "above 5:2",
}


def write(findings: Findings, sources: Sequence[TableSource], reader: Reader, out: str | Path) -> Path:
    """Write the check page as HTML and return its path, the first free name based on `out`.

    sources: those that were checked, in the order of `findings.reports`; a few of their samples are read again to be
    drawn. out: a file, or a folder, in which the page is called `check.html`.
    """
    out = Path(out)
    html = render(findings, sources, reader).encode()
    path = claim(out / "check.html" if out.is_dir() or not out.suffix else out)
    save(html, path)
    return path


def render(findings: Findings, sources: Sequence[TableSource], reader: Reader) -> str:
    """Render the check page as an HTML string; parameters as in `write`."""
    sections = []
    for report, source in zip(findings.reports, sources, strict=True):
        sections += _sections(report, source, reader)
    sections.append(Section("Leaks", _leaks(findings)))
    title = f"Data check: {', '.join(report.name for report in findings.reports)}"
    return document(
        title, f'<header><h1>{escape(title)}</h1><p class="lead">{escape(_lead(findings))}</p></header>', sections
    )


def _lead(findings: Findings) -> str:
    bad, rows = sum(len(report.bad) for report in findings.reports), sum(report.rows for report in findings.reports)
    said = f"{rows:,} samples, " + (f"{bad:,} of them bad: training leaves these out." if bad else "none of them bad.")
    return said + (f" {len(findings.leaks):,} images stand on both sides of the split." if findings.leaks else "")


def _sections(report: Report, source: TableSource, reader: Reader) -> Iterable[Section]:
    entries = {"format": report.format, "samples": f"{report.rows:,}", "bad": f"{len(report.bad):,}"} | facts(report)
    said = (
        "<dl>"
        + "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(words)}</dd></div>" for name, words in entries.items())
        + "</dl>"
    )
    yield Section(report.name, said)
    yield Section("How many of what", _histograms(report))
    yield Section("Bad samples", table(report.bad, ("where", "why")) if report.bad else "")
    yield Section("Repeated", _repeated(report))
    yield Section("As the model reads them", _samples(report, source, reader))


def _histograms(report: Report) -> str:
    charts = []
    if report.sizes:
        common = dict(report.sizes.most_common(SIZES))
        named = {f"{width}x{height}": count for (width, height), count in common.items()}
        others = report.sizes.total() - sum(common.values())
        charts.append(
            bars("Image sizes", named | ({f"{len(report.sizes) - SIZES:,} others": others} if others else {}))
        )
        charts.append(bars("Aspect ratios, width : height", _aspects(report.sizes)))
    lengths = {"Texts, characters": report.texts, "Documents, tokens with patches": report.lengths}
    charts += [bars(title, _doubling(values)) for title, values in lengths.items() if values]
    return f'<div class="charts">{"".join(charts)}</div>'


def _aspects(sizes: Counter[tuple[int, int]]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for (width, height), count in sizes.items():
        counts[next(name for end, name in ASPECTS.items() if width / height <= end)] += count
    return {name: counts[name] for name in ASPECTS.values() if counts[name]}


def _doubling(lengths: Sequence[int]) -> dict[str, int]:
    """Count the lengths in the bins [1, 1], [2, 3], [4, 7], ..., from the first non-empty bin to the last."""
    counts = Counter(length.bit_length() for length in lengths)
    return {f"{2**bits // 2:,}–{2**bits - 1:,}": counts[bits] for bits in range(min(counts), max(counts) + 1)}


def _repeated(report: Report) -> str:
    """List, as HTML, the images and texts that occurred in an earlier sample, each with its first occurrence."""
    parts = ""
    for what, repeats in (("image", report.image_repeats), ("text", report.text_repeats)):
        if repeats:
            listed = table(repeats[:REPEATS], (f"the {what} of", "is that of"))
            more = paragraph(f"... and {len(repeats) - REPEATS:,} more.") if len(repeats) > REPEATS else ""
            parts += f"<details><summary>{what}s: {len(repeats):,}</summary>{listed}{more}</details>"
    return parts


def _leaks(findings: Findings) -> str:
    return table(findings.leaks, ("training", "validation, with the same image")) if findings.leaks else ""


def _samples(report: Report, source: TableSource, reader: Reader) -> str:
    """Draw evenly spaced good samples as HTML: tokens and images in reading order, a bar under all that has a loss."""
    if not report.good:
        return ""
    chosen = report.good[:: max(1, len(report.good) // DRAWN)][:DRAWN]
    processor = reader.processor
    words = (
        f"Tokens and patches of {processor.stride} pixels as {reader.name} reads them, images within "
        f"{processor.max_side} pixels a side."
    )
    figures = [figure(draw_legend(), words, AS_IT_IS)]
    for index in chosen:
        sample = source[index]
        for number, laid_out in enumerate(reader(sample)[:2]):
            packed = pack([[laid_out]])
            part = f", document {number + 1}" if number else ""
            rest = ", of which this is the beginning" if len(spans(packed, processor)) > SPANS else ""
            words = f"{sample.key}{part}: {len(laid_out):,} tokens{rest}"
            figures.append(figure(draw_sequence(packed, processor, most=SPANS), words, AS_IT_IS))
    return f'<div class="sheets">{"".join(figures)}</div>'
