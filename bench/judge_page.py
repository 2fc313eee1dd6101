"""Write the page on the judge of disturbed images: charts, table, recall by shape and colour, sample images."""

from collections.abc import Iterator
from html import escape

from PIL import Image

from bench.disturb import DISTURBANCES
from bench.judge_measure import Found, Tally
from fusion.common.charts import Line, chart
from fusion.common.contact_sheet import GAP, Cell, cell_width, contact_sheet
from fusion.common.html import Section, document, gallery, paragraph, table
from fusion.worlds.shapes import COLOURS, SHAPES

SHOWN = 64  # size of a sample on screen, in pixels
KEEPS = 0.95  # share of the scenes right undisturbed, from which on a strength counts as read


def page(found: Found) -> str:
    """Render the page as one string of HTML."""
    settings = found.settings
    lead = (
        f"{settings['scenes']} random scenes of {settings['size']} pixels, one to four objects, each disturbed in "
        "every way and strength."
    )
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd></div>"
        for name, value in settings.items()
    )
    header = f'<header><h1>The judge, disturbed</h1><p class="lead">{escape(lead)}</p><dl>{facts}</dl></header>'
    sections = [
        Section("What it stands", "".join(map(paragraph, stands(found)))),
        Section("Against strength", '<div class="charts">' + "".join(charts(found)) + "</div>"),
        Section("All strengths", paragraph(WORDS) + scores(found)),
        Section("Recall by shape and colour", by_kind(found)),
        Section("Taken for something else", misread(found)),
        Section(
            "Scenes, disturbed",
            paragraph("✓: every object with its shape, colour, size and place, the ground, and no dirt.")
            + samples(found),
        ),
    ]
    return document("The judge, disturbed", header, sections)


WORDS = (
    "Precision: of the objects that the judge names, shape and colour, those that are there. Recall: of those that are "
    "there, the named ones. Exact: "
    "scenes of which everything is read rightly. False passed: expectations with one attribute of one object changed "
    "that it lets pass. Intervals "
    "are at 95%; those of precision and recall allow for objects of one scene being read well or badly together."
)


def stands(found: Found) -> list[str]:
    """Return a sentence for each disturbance: the strength up to which scenes are read, and where most are not."""
    said = []
    for one in DISTURBANCES:
        shares = {strength: tally.scores["exact"].value for strength, tally in found.tallies[one.name].items()}
        read = [
            strength
            for strength in one.strengths
            if all(shares[s] >= KEEPS * shares[0.0] for s in one.strengths if s <= strength)
        ]
        lost = next((strength for strength in one.strengths if shares[strength] < 0.5), None)
        until = (
            f"up to {read[-1]:g} it keeps {KEEPS:.0%} of"
            if read
            else f"{one.strengths[0]:g} already loses more than {1 - KEEPS:.0%} of"
        )
        after = f"fewer than half of all at {lost:g}" if lost else "more than half of all throughout"
        said.append(f"{one.name} ({one.unit}): {until} the scenes that are read exactly undisturbed; {after}.")
    return said


def charts(found: Found) -> Iterator[str]:
    """Yield one chart for each disturbance, as HTML."""
    for one in DISTURBANCES:
        rows = [(strength, tally.scores) for strength, tally in found.tallies[one.name].items()]
        names = rows[0][1]
        yield chart(
            one.name,
            [Line(name, [(x, values[name].value) for x, values in rows if values[name]]) for name in names],
            "strength",
            one.unit,
            zero=True,
        )


def _rows(found: Found) -> Iterator[tuple[str, float, Tally]]:
    """Yield (disturbance, strength, tally): the undisturbed scenes once, then every strength."""
    for place, (name, by_strength) in enumerate(found.tallies.items()):
        for strength, tally in by_strength.items():
            if strength or not place:
                yield name if strength else "none", strength, tally


def scores(found: Found) -> str:
    """Render a table of precision, recall, exact scenes and passed false expectations as HTML, with intervals."""
    rows = []
    for name, strength, tally in _rows(found):
        cells = [f"{v.value:.3f} ({v.low:.3f}–{v.high:.3f})" if v else None for v in tally.scores.values()]
        rows.append([name, f"{strength:g}", *cells])
    return table(rows, ["disturbance", "strength", "precision", "recall", "exact", "false passed"])


def by_kind(found: Found) -> str:
    """Render a table of the judge's recall for objects of each shape and each colour, as HTML."""
    columns = [*SHAPES, *COLOURS]
    rows = []
    for name, strength, tally in _rows(found):
        rows.append(
            [
                name,
                f"{strength:g}",
                *(f"{sum(tally.found[c]) / len(tally.found[c]):.2f}" if tally.found[c] else None for c in columns),
            ]
        )
    return table(rows, ["disturbance", "strength", *columns])


def misread(found: Found) -> str:
    """Render a table of the most frequent confusions as HTML."""
    rows = [
        [
            name,
            f"{strength:g}",
            sum(tally.misread.values()),
            ", ".join(f"{what} ({times})" for what, times in tally.misread.most_common(4)),
        ]
        for name, strength, tally in _rows(found)
        if tally.misread
    ]
    return table(rows, ["disturbance", "strength", "times", "most often"]) if rows else paragraph("Nothing is.")


def samples(found: Found) -> str:
    """Render the same scenes at every strength as HTML."""
    parts = ""
    for name, by_strength in found.shown.items():
        scenes = zip(*by_strength.values(), strict=True)
        rows = (
            gallery(
                [(Image.fromarray(p), f"{s:g} {'✓' if ok else '✗'}") for s, (p, ok) in zip(by_strength, scene)], SHOWN
            )
            for scene in scenes
        )
        parts += f"<h3>{escape(name)}</h3>" + "".join(rows)
    return parts


def sheet(found: Found) -> Image.Image:
    """Draw a contact sheet: a scene of each disturbance at every strength.

    Scenes that are not read correctly are framed in red.
    """
    cells = []
    for index, (name, by_strength) in enumerate(found.shown.items()):
        shown = {strength: images[index % len(images)] for strength, images in by_strength.items()}
        said = [f"{name}, {strength:g}" if strength else "undisturbed" for strength in shown]
        cells += [
            Cell([Image.fromarray(pixels)], [words], ok)
            for words, (pixels, ok) in zip(said, shown.values(), strict=True)
        ]
    return contact_sheet(cells, len(shown) * (cell_width(1, framed=True) + GAP) + GAP)  # one row each
