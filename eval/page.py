"""Sections of a self-contained HTML page: tables, pictures, edit triptychs, stories and scores, all as strings.

Pictures are tiny and would be a stamp on a modern screen: they are shown enlarged by a whole number, to about 128 pixels, with hard
edges. They travel inside the page as data URIs, in their own size.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image, ImageChops

from eval.charts import interval

SHOWN = 128  # pixels on screen of the longer side of a tiny picture

Picture = Image.Image


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, and its body as HTML from the builders of this file (joined with `+`)."""

    title: str
    html: str


@dataclass(frozen=True)
class Score:
    """A share of things done right: its confidence interval, of how many, and the target it is held against.

    value, low, high and target lie in [0, 1].
    """

    name: str
    value: float
    low: float
    high: float
    count: int | None = None
    target: float | None = None


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Text in a typewriter's hand: commands, configs."""
    return f"<pre>{escape(text.strip())}</pre>"


def table(rows: Iterable[Mapping | Sequence], columns: Sequence[str]) -> str:
    """Rows (mappings by column name, or sequences in the order of the columns) as a table; numbers have four digits and stand to the right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = ""
    for row in rows:
        values = [row.get(column) for column in columns] if isinstance(row, Mapping) else row
        body += "<tr>" + "".join(_cell(value) for value in values) + "</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value) -> str:
    if value is None:
        return '<td class="none">–</td>'
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td class="number">{shown}</td>'
    return f"<td>{escape(str(value))}</td>"


def score_table(scores: Iterable[Score]) -> str:
    """Scores as rows: the value, its interval as a small bar, of how many, and whether the target is met."""
    rows = ""
    for score in scores:
        verdict = "" if score.target is None else _verdict(score)
        count = "" if score.count is None else f"{score.count:,}"
        rows += (
            f'<tr><th scope="row">{escape(score.name)}</th><td class="number value">{score.value:.2f}</td>'
            f"<td>{interval(score.value, score.low, score.high, score.target)}</td>"
            f'<td class="number quiet">{score.low:.2f}–{score.high:.2f}</td><td class="number quiet">{count}</td><td>{verdict}</td></tr>'
        )
    head = (
        '<th>score</th><th></th><th>0 <span class="end">1</span></th>'
        '<th class="number">95% interval</th><th class="number">of</th><th>target</th>'
    )
    return f'<div class="wide"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _verdict(score: Score) -> str:
    met = score.value >= score.target
    return f'<span class="{"met" if met else "missed"}">{"✓" if met else "✗"} {score.target:.2f}</span>'


def png(image: Picture) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def picture(image: Picture | Path, shown: int = SHOWN, alt: str = "") -> str:
    """An image (or the PNG file of one) as an <img>, enlarged by the whole number that brings it nearest to `shown` pixels."""
    data = image.read_bytes() if isinstance(image, Path) else png(image)
    width, height = Image.open(io.BytesIO(data)).size
    scale = max(1, round(shown / max(width, height)))
    pixelated = ' class="tiny"' if scale > 1 else ""
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return f'<img{pixelated} src="{uri}" width="{width * scale}" height="{height * scale}" alt="{escape(alt)}">'


def figure(image: Picture | Path, caption: str = "", shown: int = SHOWN) -> str:
    """One picture and, under it, what it is."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{picture(image, shown, caption)}{words}</figure>"


def gallery(pictures: Iterable[tuple[Picture | Path, str]], shown: int = SHOWN) -> str:
    """Pictures side by side, each with its caption."""
    return '<div class="gallery">' + "".join(figure(image, caption, shown) for image, caption in pictures) + "</div>"


def amplified(before: Picture, after: Picture, gain: int = 4) -> Picture:
    """How much each pixel changed, times `gain`: black where nothing did. Both pictures have one size."""
    return ImageChops.difference(before.convert("RGB"), after.convert("RGB")).point(lambda value: min(255, value * gain))


def triptych(before: Picture, after: Picture, difference: Picture | None = None, caption: str = "") -> str:
    """An edit: the picture before and after it, and the difference between them (default: `amplified`)."""
    panels = {"before": before, "after": after, "difference × 4": difference or amplified(before, after)}
    figures = "".join(figure(image, name) for name, image in panels.items())
    return f'<div class="triptych"><p>{escape(caption)}</p><div>{figures}</div></div>'


def story(parts: Iterable[str | Picture]) -> str:
    """Text and pictures in reading order, as a strip: each picture stands under the words that lead to it."""
    cells, words = [], ""
    for part in parts:
        if isinstance(part, str):
            words += "".join(paragraph(line) for line in part.split("\n") if line.strip())
        else:
            cells.append(f"<div>{words}{picture(part)}</div>")
            words = ""
    if words:
        cells.append(f"<div>{words}</div>")
    return '<div class="story">' + "".join(cells) + "</div>"
