"""The README prints the records of bench/results/, rounded, and every record states how it was measured."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDS = sorted((ROOT / "bench" / "results").glob("*.json"))
README = (ROOT / "README.md").read_text(encoding="utf-8")

SCORED, DEMO = "scored_2026-12-01_cpu", "demo_2026-12-01_cpu"
SCORES = {  # row of the README's table -> names of the figures in the records
    "GenEval in miniature, overall": ["GenEval in miniature"],
    "of it, held-out pairs of kinds": ["GenEval in miniature, held-out pairs"],
    "all asked colours present": ["all asked colours present"],
    "edits done (share of the other pixels kept)": ["edits done", "pixels kept in edits"],
    "questions": ["questions"],
    "draws when asked and only then": ["draws when asked and only then"],
}
RATIOS = {  # row -> record, and the paths of its figures
    "training step in bf16 against transfusion-pytorch 0.20.0 in fp32: compiled, eager": (
        "training_2026-11-27_cpu",
        [(kind, "times faster than transfusion-pytorch fp32") for kind in ("compiled bf16", "eager bf16")],
    ),
    "the same against transfusion-pytorch in bf16 autocast": (
        "training_2026-11-27_cpu",
        [(kind, "times faster than transfusion-pytorch bf16") for kind in ("compiled bf16", "eager bf16")],
    ),
    "one drawn image against its own forward passes: without, with guidance": (
        "sampling_2026-11-23_cpu",
        [(kind, "ratio") for kind in ("without guidance", "with guidance")],
    ),
    "against the class of diffusers: DiT, PixArt, SANA, SD3's MMDiT": (
        "architectures_2026-11-27_cpu",
        [(name, "ratio") for name in ("dit", "pixart", "sana", "mmdit")],
    ),
    "the same: Flux.1, Flux.2, Lumina 2, HiDream": (
        "architectures_2026-11-27_cpu",
        [(name, "ratio") for name in ("flux", "flux2", "lumina2", "hidream")],
    ),
}


def figures(record: str) -> dict:
    return json.loads((ROOT / "bench" / "results" / f"{record}.json").read_text(encoding="utf-8"))["figures"]


def cells(row: str) -> list[str]:
    """The cells of the README's table row that begins with a label."""
    lines = [line for line in README.splitlines() if line.startswith(f"| {row} |")]
    assert len(lines) == 1, f"{row}: {len(lines)} rows in the README"
    return [cell.strip() for cell in lines[0].strip("|").split(" | ")]


def assert_printed(cell: str, values: list[float]) -> None:
    """The numbers of a cell, each as exact as it is printed."""
    printed = re.findall(r"\d+\.\d+", re.sub(r"`[^`]*`", "", cell))
    assert len(printed) == len(values), f"{cell} has not {len(values)} figures"
    wrong = [
        (text, value) for text, value in zip(printed, values) if text != f"{value:.{len(text.partition('.')[2])}f}"
    ]
    assert not wrong, f"printed and recorded: {wrong}"


@pytest.mark.parametrize("row", SCORES)
def test_scores_of_the_bundled_model_are_those_recorded(row):
    assert_printed(cells(row)[3], [figures(SCORED)[name]["value"] for name in SCORES[row]])


@pytest.mark.parametrize("row", SCORES)
def test_scores_of_the_demo_on_a_busy_machine_are_those_recorded(row):
    assert_printed(cells(row)[2], [figures(DEMO)[name]["value"] for name in SCORES[row]])


@pytest.mark.parametrize("row", RATIOS)
def test_ratios_are_those_recorded(row):
    record, paths = RATIOS[row]
    assert_printed(cells(row)[1], [figures(record)[first][second] for first, second in paths])


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("overlap_demo_59841", "{} occur verbatim among the texts of the second column"),
        ("overlap_demo_174008", "{} among those of the first"),
        ("overlap_world", "{} among 52,000 documents"),
    ],
)
def test_prompts_that_training_had_are_as_many_as_recorded(record, words):
    found = figures(f"{record}_2026-12-01_cpu")["prompts"]
    assert words.format(found["all"]["seen"]) in " ".join(README.split())
    assert [found[f"{name}, held out"]["seen"] for name in ("position", "attribute binding")] == [0, 0]


def test_the_page_of_figures_prints_the_same_scores():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").splitlines()
    for row in SCORES:
        (line,) = (line for line in page if line.startswith(f"| {row} |"))
        here, there = line.split(" | ")[2], cells(row)[3]
        assert re.findall(r"\d+\.\d+", here) == re.findall(r"\d+\.\d+", re.sub(r"`[^`]*`", "", there)), row


def test_a_figure_that_differs_is_noticed():
    with pytest.raises(AssertionError, match="printed and recorded"):
        assert_printed("0.97 (0.969)", [0.96, 0.9694])
    with pytest.raises(AssertionError, match="has not 2"):
        assert_printed("0.96", [0.96, 0.9694])


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_every_record_says_how_it_came_about(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["command"].strip() and re.match(r"[0-9a-f]{7,40}\b", record["commit"]), path.name
    assert re.search(r"_\d{4}-\d{2}-\d{2}_\w+$", path.stem), f"{path.name}: its name ends with date and device"
