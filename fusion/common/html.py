"""A self-contained HTML page: paragraphs, tables, bars, images and stories as strings, and the document around them.

Images are tiny and would be a stamp on a modern screen: they are shown enlarged by a whole number, to about 128
pixels, with hard edges. They travel inside the page as data URIs, in their own size.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

STYLE = Path(__file__).with_name("html.css")
SHOWN = 128  # pixels on screen of the longer side of a tiny image

PILImage = Image.Image


@dataclass(frozen=True)
class Section:
    """A part of a page: its heading, and its body as HTML from the builders of this file (joined with `+`)."""

    title: str
    html: str


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def code(text: str) -> str:
    """Text in a typewriter's hand: commands, configs."""
    return f"<pre>{escape(text.strip())}</pre>"


def table(rows: Iterable[Mapping | Sequence], columns: Sequence[str]) -> str:
    """Rows (mappings by column name, or sequences in the order of the columns) as a table; numbers have four digits and
    stand to the right."""
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


def bars(title: str, counts: Mapping[str, int]) -> str:
    """How often each of some things comes, as bars under each other, in the order given."""
    most = max(counts.values(), default=1)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td><i style="width:{100 * count / most:.1f}%"></i></td><td '
        f'class="number">{count:,}</td></tr>'
        for name, count in counts.items()
    )
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b></figcaption><table '
        f'class="bars">{rows}</table></figure>'
    )


def png(image: PILImage) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def img(image: PILImage | Path, shown: int = SHOWN, alt: str = "") -> str:
    """An image (or the PNG file of one) as an <img>, enlarged by the whole number that brings it nearest to `shown`
    pixels."""
    data = image.read_bytes() if isinstance(image, Path) else png(image)
    width, height = Image.open(io.BytesIO(data)).size
    scale = max(1, round(shown / max(width, height)))
    pixelated = ' class="tiny"' if scale > 1 else ""
    uri = "data:image/png;base64," + base64.b64encode(data).decode()
    return f'<img{pixelated} src="{uri}" width="{width * scale}" height="{height * scale}" alt="{escape(alt)}">'


def figure(image: PILImage | Path, caption: str = "", shown: int = SHOWN) -> str:
    """One image and, under it, what it is."""
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{img(image, shown, caption)}{words}</figure>"


def gallery(images: Iterable[tuple[PILImage | Path, str]], shown: int = SHOWN) -> str:
    """Images side by side, each with its caption."""
    return '<div class="gallery">' + "".join(figure(image, caption, shown) for image, caption in images) + "</div>"


def story(parts: Iterable[str | PILImage]) -> str:
    """Text and images in reading order, as a strip: each image stands under the words that lead to it."""
    cells, words = [], ""
    for part in parts:
        if isinstance(part, str):
            words += "".join(paragraph(line) for line in part.split("\n") if line.strip())
        else:
            cells.append(f"<div>{words}{img(part)}</div>")
            words = ""
    if words:
        cells.append(f"<div>{words}</div>")
    return '<div class="story">' + "".join(cells) + "</div>"


def document(title: str, header: str, sections: Iterable[Section], end: str = "") -> str:
    """A whole self-contained page: header and end are HTML; sections without a body are left out."""
    body = "".join(f"<section><h2>{escape(part.title)}</h2>{part.html}</section>" for part in sections if part.html)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        'content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f"<body><main>{header}{body}{end}</main></body></html>\n"
    )
