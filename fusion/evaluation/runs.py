"""Runs of train.unified on one data set beside each other. `fusion runs OUT RUN RUN ...`

Writes OUT/results.json, OUT/samples.png and OUT/report.html: the settings in which the runs differ, validation curves,
text perplexity, and each model's images of the same held-out subjects: PSNR against the true image, and images side by
side.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from fusion.common.atomic import save
from fusion.common.charts import Line, chart
from fusion.common.contact_sheet import Cell, contact_sheet
from fusion.common.html import Section, document, figure, paragraph, png, table
from fusion.data.formats import Sample
from fusion.data.formats.config import DataConfig
from fusion.evaluation.emoji import COUNT, SAMPLING_PARAMETERS, Drawn, attempt, held_out, median, psnr
from fusion.generation import api
from fusion.generation.api import Fusion
from fusion.training.metrics import read
from fusion.training.perplexity import kept_texts

SHOWN = 6  # subjects of each kind on the page; half as many in the contact sheet
NOT_SETTINGS = ("run",)  # keys that always differ and say nothing about the comparison


@dataclass(frozen=True)
class Run:
    """A finished run: its folder and the folder's name, its config, and the rows of metrics.jsonl."""

    name: str
    folder: Path
    config: DictConfig
    rows: list[dict]

    @property
    def model(self) -> Path:
        """The folder of the trained model."""
        return self.folder / "model"

    def last(self, name: str) -> float | None:
        """Return the last logged value of a metric, None if it was never logged."""
        return next((row[name] for row in reversed(self.rows) if name in row), None)


def open_run(folder: str | Path) -> Run:
    """Open the run in a folder; ValueError where there is none, or it has not finished."""
    folder = Path(folder)
    for part in ("config.yaml", "metrics.jsonl", "model/config.json"):
        if not (folder / part).is_file():
            raise ValueError(f"{folder}: no {part}; give the folders of finished runs of train.unified")
    return Run(folder.name, folder, OmegaConf.load(folder / "config.yaml"), read(folder / "metrics.jsonl"))


def differences(runs: Sequence[Run]) -> dict[str, list]:
    """Return the settings in which the runs differ, by dotted key: the value of each run, None where it is not set."""
    flat = [_flat(OmegaConf.to_container(run.config)) for run in runs]
    keys = dict.fromkeys(key for settings in flat for key in settings if key not in NOT_SETTINGS)
    values = {key: [settings.get(key) for settings in flat] for key in keys}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _flat(settings: Any, before: str = "") -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        return {before: settings}
    return {
        key: value
        for name, part in settings.items()
        for key, value in _flat(part, f"{before}.{name}".strip(".")).items()
    }


def attempts(
    model: Fusion, asked: Mapping[str, list[Sample]], params: Mapping[str, Any], name: str
) -> dict[str, list[Drawn]]:
    """Generate one model's images for all samples, by kind of request; name: of the model, for the progress bar."""
    with tqdm(total=sum(map(len, asked.values())), desc=name, unit="images") as bar:

        def one(sample: Sample) -> Drawn:
            bar.update()
            return attempt(model, sample, params)

        return {kind: [one(sample) for sample in samples] for kind, samples in asked.items()}


# ---- the page
# -------------------------------------------------------------------------------------------------------------------


def figures(run: Run, model: Fusion, drawn: Mapping[str, Sequence[Drawn]]) -> dict[str, Any]:
    """Compute the figures of one run by label: parameters, training, validation losses, PSNR, and text perplexity."""
    trained = sum(p.numel() for p in model.model.parameters() if p.requires_grad)
    found = {
        "run": run.name,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "trained": trained,
        "documents": run.last("seen"),
        "minutes": round(run.last("time") / 60, 1),
        "validation error of x": run.last("val/x_error"),
        "validation loss of text": run.last("val/text"),
    }
    found |= {
        f"{kind}, median PSNR, dB": round(median([psnr(one.drawn, one.wanted) for one in many]), 2)
        for kind, many in drawn.items()
    }
    text = kept_texts(run.config.model.llm, run.model)
    return found | {
        "perplexity of prose, before": round(text["before"], 3),
        "after": round(text["after"], 3),
        "rise": round(text["rise"], 4),
    }


def curves(runs: Sequence[Run]) -> str:
    """Render the validation losses of all runs over documents seen, as HTML."""
    html = ""
    for name, title in (("val/x_error", "Validation error of x"), ("val/text", "Validation loss of text")):
        lines = [Line(run.name, [(row["seen"], row[name]) for row in run.rows if name in row]) for run in runs]
        html += chart(title, [line for line in lines if line.points], "documents", log=True)
    return f'<div class="charts">{html}</div>'


def panels(names: Sequence[str], drawn: Sequence[Mapping[str, Sequence[Drawn]]], kind: str) -> str:
    """Render the first requests of one kind with every run's image, as HTML; names: of the runs."""
    html = ""
    for same in list(zip(*(one[kind] for one in drawn), strict=True))[:SHOWN]:
        images = {"before": same[0].before, "wanted": same[0].wanted} | {
            name: one.drawn for name, one in zip(names, same, strict=True)
        }
        shown = "".join(figure(image, name) for name, image in images.items() if image)
        html += f'<div class="triptych"><p>{escape(same[0].words)}</p><div>{shown}</div></div>'
    return html


def sheet(names: Sequence[str], drawn: Sequence[Mapping[str, Sequence[Drawn]]]) -> Image.Image:
    """Build a contact sheet of a few requests of each kind: the source, the true image, then each run's image."""
    cells = []
    for kind in drawn[0]:
        for same in list(zip(*(one[kind] for one in drawn), strict=True))[: SHOWN // 2]:
            before = {"before": same[0].before} if same[0].before else {}
            shown = (
                before | {"wanted": same[0].wanted} | {name: one.drawn for name, one in zip(names, same, strict=True)}
            )
            cells.append(Cell(list(shown.values()), [same[0].words], labels=list(shown)))
    return contact_sheet(cells)


def compare(out: Path, runs: Sequence[Run], count: int, device: str | None) -> list[dict]:
    """Evaluate the runs, write the report to `out`, and return each run's figures; ValueError if their data differ."""
    first = runs[0]
    if any(
        run.config.data.sources != first.config.data.sources or run.config.data.path != first.config.data.path
        for run in runs
    ):
        raise ValueError("the runs have other data: give runs of the same data.path and data.sources")
    data = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DataConfig), first.config.data))
    params = {name: first.config.samples[name] for name in SAMPLING_PARAMETERS}
    asked, told, drawn = {}, [], []
    for run in runs:
        model = api.load(run.model, dtype=torch.float32, device=device)
        asked = asked or dict(held_out(data, model.processor.stride, count))
        drawn.append(attempts(model, asked, params, run.name))
        told.append(figures(run, model, drawn[-1]))
    names = [run.name for run in runs]
    differs = differences(runs)
    sections = [
        Section(
            "Figures", table([(name, *(one[name] for one in told)) for name in told[0] if name != "run"], ["", *names])
        ),
        Section(
            "Settings in which they differ",
            table([(key, *map(str, values)) for key, values in differs.items()], ["setting", *names]),
        ),
        Section("Curves", curves(runs)),
        *(Section(f"Never trained on: {kind}", panels(names, drawn, kind)) for kind in asked),
    ]
    out.mkdir(parents=True, exist_ok=True)
    results = {"count": count, "params": params, "differences": differs, "runs": told}
    save((json.dumps(results, indent=1, default=str) + "\n").encode(), out / "results.json")
    save(png(sheet(names, drawn)), out / "samples.png")
    header = f"<h1>{escape(' · '.join(names))}</h1>" + paragraph(
        f"{count} subjects of each kind, at most; the same noise for all."
    )
    save(document("Runs compared", header, sections).encode(), out / "report.html")
    return told


def main(arguments: Sequence[str]) -> int:
    """Run the program: return 0, or print one line on stderr and return 1."""
    parser = argparse.ArgumentParser(prog="fusion runs", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for results.json, samples.png and report.html")
    parser.add_argument("runs", nargs="+", help="folders of finished runs")
    parser.add_argument("--count", type=int, default=COUNT, help="subjects of each kind of request")
    parser.add_argument("--device", help="cuda, cpu, ...")
    options = parser.parse_args(arguments)
    try:
        for told in compare(options.out, [open_run(run) for run in options.runs], options.count, options.device):
            print(", ".join(f"{name} {value}" for name, value in told.items()))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(options.out / "report.html")
    return 0
