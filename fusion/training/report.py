"""A run folder -> report.html: one self-contained page with samples, scores, curves and the config.

Usage: `python -m fusion.training.report RUN`

Only the run folder is read: `config.yaml`, `run.json` (what the program knew when it started: title, started, command,
commit, device), `metrics.jsonl` and `samples/step_N/*.png`. Whatever is missing is left out and said, so a run can be
looked at while it goes.

Metrics are grouped by their names: what stands before the last slash is one chart (`loss/text` and `loss/flow` share
`loss`).
"""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from html import escape
from pathlib import Path

from PIL import Image

from fusion.common.atomic import save
from fusion.common.charts import Line, chart, compact, side_by_side
from fusion.common.html import SHOWN, Section, code, document, figure, gallery

AXES = ("step", "seen", "time")  # columns of a row of metrics that say when, not what
EARLIER = 8  # sheets of earlier samples in a strip
AS_IT_IS = 1  # a sheet has words in it, and its images were enlarged when it was made


# What a run counts, by the rate that it logs; the first one found names the x axis.
RATES = {"per_second/documents": "documents", "tokens_per_second": "tokens", "images_per_second": "images"}


@dataclass(frozen=True)
class Look:
    """How the chart of a group of metrics is titled and drawn; see charts.chart."""

    title: str
    unit: str = ""
    log: bool = False
    zero: bool = False
    ramp: bool = False
    noisy: bool = True


# Metrics with a chart of their own, whatever stands before their last slash.
ALONE = {*RATES, "per_second/tokens", "per_second/teraflop", "per_second/share_of_peak", "val/psnr"}
# Groups in the order of the page.
LOOKS = {
    "loss": Look("Training loss", log=True),
    "val": Look("Validation loss", "held-out documents, fixed noise", log=True),
    "val/x_error": Look("Validation error by time", "mean squared error of x; t = 1 is noise", log=True, ramp=True),
    "val/psnr": Look("Reconstruction", "PSNR of held-out images, dB"),
    "val/draws": Look("Drawing", "share; where an image was asked for, and where it would have drawn"),
    "val/edits": Look("Copying", "how far edits stay at their source: 0 what was wanted, 1 the source", zero=True),
    "perplexity": Look("Perplexity of plain text", "beside that of the LLM as it came", log=True),
    "forgetting": Look("Forgetting", "by which share the perplexity rose", zero=True),
    "val/text_of": Look("Validation loss of text by source", log=True),
    "val/x_error_of": Look("Validation error of images by source", log=True),
    "lr": Look("Learning rate", zero=True, noisy=False),
    **{rate: Look("Throughput", f"{unit} per second", zero=True) for rate, unit in RATES.items()},
    "per_second/tokens": Look("Throughput", "tokens per second", zero=True),
    "per_second/teraflop": Look("Throughput", "trillions of operations per second", zero=True),
    "per_second/share_of_peak": Look("Utilisation", "share of the operations that the device promises", zero=True),
    "grad_norm": Look("Gradient norm", "before clipping", log=True),
    "memory_gib": Look("Memory", "GiB at most so far", zero=True, noisy=False),
    "padding": Look("Padding", "share of tokens", zero=True),
    "skipped": Look("Bad samples left out", "so far, each once", zero=True),
}


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    folder: Path
    facts: dict = field(default_factory=dict)
    config: str = ""
    rows: list[dict] = field(default_factory=list)
    samples: dict[int, list[Path]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)


def read(folder: str | Path) -> Run:
    """Read a run folder; raises ValueError if there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the folder of a run")
    missing = []
    facts, config = _facts(folder / "run.json", missing), _config(folder / "config.yaml", missing)
    return Run(
        folder, facts, config, _rows(folder / "metrics.jsonl", missing), _samples(folder / "samples", missing), missing
    )


def _facts(path: Path, missing: list[str]) -> dict:
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    missing.append(f"{path.name} (command, commit and device)")
    return {}


def _config(path: Path, missing: list[str]) -> str:
    if path.is_file():
        return path.read_text(encoding="utf-8")
    missing.append(path.name)
    return ""


def _rows(path: Path, missing: list[str]) -> list[dict]:
    """The rows of metrics.jsonl. A run that was cut off may have left half a line at the end: it is left out, and
    said."""
    if not path.is_file():
        missing.append(f"{path.name} (curves)")
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            missing.append(f"line {number} of {path.name}, which is not JSON")
    return rows


def _samples(folder: Path, missing: list[str]) -> dict[int, list[Path]]:
    found = {int(step.name.removeprefix("step_")): sorted(step.glob("*.png")) for step in folder.glob("step_*")}
    found = {step: found[step] for step in sorted(found) if found[step]}
    if not found:
        missing.append("samples/step_N/*.png (images)")
    return found


def lines(rows: Sequence[dict], group: str) -> list[Line]:
    """The curves of a group of metrics, over what was seen."""
    names = dict.fromkeys(name for row in rows for name in row if _group(name) == group)
    return [
        Line(
            name.removeprefix(group).strip("/").replace("_", " ") or "now",
            [(r["seen"], r[name]) for r in rows if _is_number(r.get(name))],
        )
        for name in names
    ]


def _group(name: str) -> str:
    return name if name in ALONE else name.rpartition("/")[0] or name


def _unit(rows: Sequence[dict]) -> str:
    """What the run counts as seen."""
    return next((unit for rate, unit in RATES.items() if any(rate in row for row in rows)), "samples")


def _readable(group: str) -> str:
    return group.replace("/", ", ").replace("_", " ").capitalize()


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def curves(rows: Sequence[dict]) -> str:
    """Every group of metrics as a chart, those in LOOKS first and in their order."""
    found = dict.fromkeys(_group(name) for row in rows for name in row if name not in AXES and _is_number(row[name]))
    charts = []
    for group in sorted(found, key=lambda g: (list(LOOKS).index(g) if g in LOOKS else len(LOOKS), g)):
        look, curves_of_group = LOOKS.get(group) or Look(_readable(group)), lines(rows, group)
        if (
            group.endswith("_of") and len(curves_of_group) < 2
        ):  # by source, where there is one: that is the chart before
            continue
        try:
            charts.append(chart(look.title, curves_of_group, f"{_unit(rows)} seen", *astuple(look)[1:]))
        except ValueError:  # nothing but NaN so far: there is no curve to show
            continue
    return side_by_side(*charts) if charts else ""


def samples(found: dict[int, list[Path]]) -> str:
    """The latest samples large; under each sheet the same sheet of earlier steps, small."""
    *earlier, latest = found
    if all(_size(path) <= SHOWN for path in found[latest]):
        return gallery([(path, _caption(path, latest)) for path in found[latest]])
    sheets = ""
    for path in found[latest]:
        before = [(step, other) for step in earlier for other in found[step] if other.name == path.name]
        strip = "".join(figure(other, f"step {step:,}", AS_IT_IS) for step, other in _spread(before, EARLIER))
        sheets += figure(path, _caption(path, latest), AS_IT_IS) + (
            f'<div class="strip">{strip}</div>' if strip else ""
        )
    return f'<div class="sheets">{sheets}</div>'


def _size(path: Path) -> int:
    with Image.open(path) as image:
        return max(image.size)


def _caption(path: Path, step: int) -> str:
    return f"{path.stem.replace('_', ' ')}, step {step:,}"


def _spread(items: Sequence, most: int) -> list:
    """At most `most` of the items, evenly spread from the first to the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def span(seconds: float) -> str:
    """A length of time as people say it: 42 s, 9 min 5 s, 2 h 3 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _lead(run: Run) -> str:
    """One sentence of what was done, from the last row of metrics."""
    if not run.rows:
        return "Nothing was logged yet."
    last = run.rows[-1]
    rate = f", {compact(last['seen'] / last['time'])} a second" if last["time"] > 0 else ""
    return f"{last['seen']:,} {_unit(run.rows)} in {last['step']:,} steps and {span(last['time'])}{rate}."


def _header(run: Run) -> str:
    entries = ""
    for name, value in run.facts.items():
        if name == "title" or value is None:
            continue
        shown = f"<code>{escape(str(value))}</code>" if name in ("command", "commit") else escape(str(value))
        entries += f"<div{' class=long' if name == 'command' else ''}><dt>{escape(name)}</dt><dd>{shown}</dd></div>"
    title = escape(str(run.facts.get("title") or run.folder.resolve().name))
    return (
        f'<header><h1>{title}</h1><p class="lead">{escape(_lead(run))}</p>'
        + (f"<dl>{entries}</dl>" if entries else "")
        + "</header>"
    )


def render(run: Run, extra: Iterable[Section] = ()) -> str:
    """The whole report as one string of HTML."""
    sections = [
        *extra,
        Section("Samples on the way", samples(run.samples) if run.samples else ""),
        Section("Curves", curves(run.rows)),
        Section(
            "Configuration",
            f"<details><summary>config.yaml</summary>{code(run.config)}</details>" if run.config else "",
        ),
    ]
    missing = f'<p class="missing">Not in this run folder: {escape("; ".join(run.missing))}.</p>' if run.missing else ""
    return document(str(run.facts.get("title") or run.folder.resolve().name), _header(run), sections, missing)


def write(run_folder: str | Path, extra: Iterable[Section] = ()) -> Path:
    """Write `report.html` into a run folder, atomically, and return its path.

    extra: sections of the caller, shown first: what came of the run stands above how it went. Raises ValueError if
    there is no such folder.
    """
    run = read(run_folder)
    path = run.folder / "report.html"
    save(render(run, extra).encode(), path)
    return path


def main(arguments: Sequence[str]) -> int:
    """`python -m fusion.training.report RUN`: write the report of a run folder and print its path."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m fusion.training.report RUN    writes RUN/report.html", file=sys.stderr)
        return 2
    try:
        print(write(arguments[0]))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
