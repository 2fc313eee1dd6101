"""The report of a run: self-contained, complete for whole and correct for partial runs, charts to scale."""

import json
import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageDraw

from fusion.common import charts
from fusion.common import html as page
from fusion.common.scores_html import amplified, score_table, triptych
from fusion.common.statistics import Score
from fusion.training import report

VOID = {"img", "meta", "br"}
COLOURS = ["#d62728", "#2e9e4f", "#2f5fd0", "#e8c11c", "#e8892b", "#7b3fb0", "#222222", "#33b6c9"]


def scene(seed: int, size: tuple[int, int] = (32, 32), noise: float = 0.0) -> Image.Image:
    """An image like those of the built-in world, more or less noisy."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, ["#ffffff", "#dddddd", "#f0e6d0"][seed % 3])
    draw = ImageDraw.Draw(image)
    for left in (2, size[0] // 2 + 1):
        box = (left, 9, left + size[0] // 2 - 4, 9 + size[0] // 2 - 4)
        (draw.ellipse if rng.integers(2) else draw.rectangle)(box, fill=COLOURS[rng.integers(8)])
    pixels = np.asarray(image) * (1 - noise) + rng.uniform(0, 255, (size[1], size[0], 3)) * noise
    return Image.fromarray(pixels.astype(np.uint8))


def sheet(step: int) -> Image.Image:
    """Sixteen images, enlarged, as the trainer's sampler draws them."""
    image = Image.new("RGB", (8 * 118 + 6, 2 * 118 + 6), "white")
    for i in range(16):
        large = scene(i, noise=0.9 * math.exp(-step / 600)).resize((112, 112), Image.Resampling.NEAREST)
        image.paste(large, (6 + 118 * (i % 8), 6 + 118 * (i // 8)))
    return image


def metrics(steps: int = 2000) -> list[dict]:
    rng = np.random.default_rng(0)
    rows = []
    for step in range(10, steps + 1, 10):
        fade = math.exp(-step / 400)
        row = {
            "step": step,
            "seen": step * 128,
            "time": step * 0.33,
            "lr": 3e-4 * min(1, step / 100) * (1 + math.cos(math.pi * step / steps)) / 2,
        }
        row |= {
            "loss/text": (0.3 + 2 * fade) * rng.uniform(0.8, 1.2),
            "loss/flow": (0.08 + 0.9 * fade) * rng.uniform(0.8, 1.2),
        }
        row |= {
            "loss/control": 0.05 + fade * rng.uniform(0.9, 1.1),
            "grad_norm": rng.lognormal(),
            "skipped": 0.0,
            "padding": 0.03,
        }
        row |= {
            "per_second/documents": 390 * rng.uniform(0.95, 1.03),
            "per_second/tokens": 9000 * rng.uniform(0.95, 1.03),
        }
        if step % 200 == 0:
            row |= {"val/text": 0.32 + 2 * fade, "val/x_error": 0.09 + 0.9 * fade}
            row |= {"val/text_of/world": 0.3 + 2 * fade, "val/x_error_of/world": 0.1, "val/x_error_of/stories": 0.2}
            row |= {f"val/x_error/{i / 5:.1f}–{(i + 1) / 5:.1f}": (0.002 + 0.02 * i) * (1 + 5 * fade) for i in range(5)}
        rows.append(row)
    return rows


def write_run(folder, steps: int = 2000):
    """A synthetic run folder, as the trainer leaves it."""
    folder.mkdir(parents=True)
    facts = {
        "title": "fusion demo",
        "started": "2026-05-04 14:03",
        "device": "cpu, 2 cores, torch 2.13.0",
        "commit": "4b3110f",
        "command": "python -m train.demo configs/demo.yaml",
    }
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "config.yaml").write_text(
        "model:\n  width: 256\n  layers: 4\n  time: adaln\ndata:\n  kind: shapes\noptimizer:\n  lr: 0.0003\n"
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics(steps)))
    for step in range(200, steps + 1, 200):
        (folder / f"samples/step_{step}").mkdir(parents=True)
        sheet(step).save(folder / f"samples/step_{step}/text_to_image.png")
    return folder


def extra_sections() -> list[page.Section]:
    scores = [
        Score("all asked colours present", 0.93, 0.91, 0.95, 800, 0.90),
        Score("overall, seen combinations", 0.47, 0.43, 0.51, 800, 0.40),
        Score("overall, held-out combinations", 0.38, 0.31, 0.46, 160),
        Score("edits done", 0.36, 0.30, 0.43, 200, 0.40),
        Score("questions", 0.84, 0.80, 0.88, 400, 0.80),
        Score("draws when asked, and only then", 0.99, 0.97, 1.0, 200, 0.98),
    ]
    names = ["a red circle", "two blue squares", "a green cross above a black circle", "four triangles"]
    words = [
        "Once there were two friends.",
        "They met on a grey morning.",
        "Then one changed its colour.",
        "In the end they stood side by side.",
    ]
    perplexity = [
        {"model": "LLM", "before": 12.31, "after": None},
        {"model": "fusion", "before": 12.31, "after": 12.44},
    ]
    return [
        page.Section("Scores", score_table(scores)),
        page.Section(
            "Drawn from words",
            page.gallery([(scene(i), name) for i, name in enumerate(names)] + [(scene(9, (48, 32)), "wide")]),
        ),
        page.Section("Edits", "".join(triptych(scene(i), scene(i + 3), None, "Make it green.") for i in (1, 2))),
        page.Section("A story", page.story([part for i, text in enumerate(words) for part in (text, scene(i + 20))])),
        page.Section("Text", page.table(perplexity, ["model", "before", "after"])),
        page.Section("Go on", page.code('fusion generate out/demo/model "Draw a red circle."')),
    ]


class Checker(HTMLParser):
    """Fails on tags that do not close in order; gathers what a page refers to."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("circle", "line", "path"):
            assert self.open.pop() == tag
        else:
            self.open.remove(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def svgs(html: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.S)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    return report.write(write_run(tmp_path_factory.mktemp("runs") / "demo"), extra_sections()).read_text(
        encoding="utf-8"
    )


def test_the_page_needs_nothing_but_itself(whole):
    checker = check(whole)
    assert checker.sources and all(source.startswith("data:image/png;base64,") for source in checker.sources)
    assert "script" not in checker.tags and "link" not in checker.tags
    assert "http" not in whole and "url(" not in whole and "@import" not in whole


def test_the_page_says_what_when_how_and_shows_every_part(whole):
    for words in (
        "fusion demo",
        "2026-05-04",
        "python -m train.demo",
        "4b3110f",
        "2 cores",
        "256,000 documents in 2,000 steps and 11 min 0 s",
    ):
        assert words in whole
    for title in ("Samples on the way", "Scores", "Edits", "A story", "Curves", "Configuration"):
        assert f"<h2>{title}</h2>" in whole
    names = re.findall("</i>([^<]+) <b>", whole.partition("<b>Validation loss</b>")[2].partition("</figure>")[0])
    assert names == [
        "text",
        "x error",
    ]  # the mean over all times stands with the losses, its bins in a chart of their own
    for title in (
        "Training loss",
        "Validation loss",
        "Validation error by time",
        "Learning rate",
        "Gradient norm",
        "Padding",
    ):
        assert whole.count(f"<b>{title}</b>") == 1
    assert whole.count("<b>Throughput</b>") == 2 and whole.count("documents seen") == whole.count('class="chart"')
    assert "error of images by source" in whole and "loss of text by source" not in whole  # there is one source of text
    assert "Not in this run folder" not in whole
    assert whole.index("step 200<") < whole.index("step 1,800<")  # the strip of earlier samples, in order


def test_a_run_without_files_is_still_a_page(tmp_path):
    html = report.write(tmp_path).read_text(encoding="utf-8")
    check(html)
    assert tmp_path.name in html and "Nothing was logged yet." in html
    for name in ("config.yaml", "run.json", "metrics.jsonl", "samples/step_N"):
        assert name in html.partition("Not in this run folder")[2]
    assert list(tmp_path.iterdir()) == [tmp_path / "report.html"]  # no temporary file stays behind


def test_a_run_cut_off_in_a_line_keeps_the_rest(tmp_path):
    folder = write_run(tmp_path / "cut", steps=200)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 210, "se')
    html = report.write(folder).read_text(encoding="utf-8")
    assert "line 21 of metrics.jsonl" in html and "25,600 documents in 200 steps" in html


def test_an_llm_counts_tokens():
    html = report.curves(
        [{"step": i, "seen": 1000 * i, "time": i, "loss": 5 / i, "tokens_per_second": 1000} for i in (1, 2)]
    )
    assert "tokens seen" in html and "<b>Training loss</b>" in html and "documents" not in html


def test_a_metric_that_is_only_nan_leaves_its_chart_out():
    rows = [{"step": 1, "seen": 8, "time": 1.0, "loss/text": math.nan, "lr": 0.1}]
    html = report.curves(rows)
    assert "Training loss" not in html and "Learning rate" in html


def test_text_from_outside_is_escaped(tmp_path):
    evil = "<b>&\"'"
    html = report.write(
        tmp_path, [page.Section(evil, page.story([evil]) + page.table([[evil]], [evil]) + page.code(evil))]
    ).read_text()
    check(html)
    assert "<b>" not in html.partition("<body>")[2]


def test_main_writes_and_refuses(tmp_path, capsys):
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_tiny_images_grow_by_whole_numbers_and_large_ones_stay():
    assert 'class="tiny"' in page.img(scene(0)) and 'width="128" height="128"' in page.img(scene(0))
    assert 'width="144" height="96"' in page.img(scene(0, (48, 32)))
    assert 'width="300" height="200"' in page.img(scene(0, (300, 200)))


def test_difference_is_amplified_and_clipped():
    before, after = Image.new("RGB", (2, 1), (10, 0, 0)), Image.new("RGB", (2, 1), (10, 20, 200))
    assert amplified(before, after).getpixel((0, 0)) == (0, 80, 255)


def test_score_table_says_which_targets_are_met():
    html = score_table([Score("a", 0.5, 0.4, 0.6, 10, 0.4), Score("b", 0.3, 0.2, 0.4, 10, 0.4)])
    assert '<span class="met">✓ 0.40' in html and '<span class="missed">✗ 0.40' in html


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (0.0012, 0.0043), (1e5, 9.3e5)])
def test_ticks_are_round_and_inside(low, high):
    values = charts.ticks(low, high, 5)
    step = values[1] - values[0]
    assert 3 <= len(values) <= 7 and low - 1e-9 <= values[0] and values[-1] <= high + step * 1e-6
    assert any(math.isclose(step / 10 ** math.floor(math.log10(step) + 1e-9), digit) for digit in (1, 2, 5))


def test_a_short_log_axis_has_numbers_all_the_same():
    (svg,) = svgs(charts.chart("t", [charts.Line("a", [(0, 5.6), (1, 6.1)])], "x", log=True))
    heights = [
        float(text.text) for text in svg.iter("text") if text.get("text-anchor") == "end" and text.get("class") is None
    ]
    assert len(heights) >= 3 and all(5 < height < 7 for height in heights)


def test_log_ticks_cover_decades():
    assert charts.log_ticks(0.09, 1.3) == pytest.approx([0.1, 0.2, 0.5, 1.0])
    assert charts.log_ticks(1e-4, 1e3) == pytest.approx([10.0**p for p in range(-4, 4)])


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0"), (0.5, "0.5"), (3e-4, "3e-4"), (12345, "12.3k"), (2.5e6, "2.5M"), (-1500, "-1.5k")]
)
def test_compact_numbers(value, shown):
    assert charts.compact(value) == shown


def test_a_curve_is_drawn_to_scale():
    (svg,) = svgs(charts.chart("t", [charts.Line("a", [(0, 0.0), (5, 10.0), (10, 5.0)])], "x"))
    (path,) = (node for node in svg.iter("path") if node.get("class") == "curve")
    places = [tuple(map(float, place.split())) for place in path.get("d").lstrip("M").split(" L")]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2) and y0 > y2 > y1  # up is more
    assert (y0 - y2) == pytest.approx((y0 - y1) / 2, abs=0.2)


def test_a_log_axis_puts_equal_ratios_at_equal_distances():
    (svg,) = svgs(charts.chart("t", [charts.Line("a", [(0, 0.01), (1, 0.1), (2, 1.0)])], "x", log=True))
    heights = [float(dot.get("cy")) for dot in svg.iter("circle")]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.2)


@pytest.mark.parametrize("count", [charts.DENSE, 1000])
def test_smoothing_keeps_a_straight_line_and_calms_noise(count):
    points = [(float(i), 3.0 * i) for i in range(count)]
    smoothed = charts.smooth(points)
    assert all(y == pytest.approx(3 * x) for x, y in smoothed) and len(smoothed) < 200
    assert smoothed[0][0] < 0.02 * count and smoothed[-1][0] > 0.98 * count - 1.5
    noise = [(float(i), float(np.random.default_rng(i).normal())) for i in range(count)]
    assert np.std([y for _, y in charts.smooth(noise)]) < 0.7 * np.std([y for _, y in noise])


def test_a_chart_without_points_says_so():
    with pytest.raises(ValueError, match="no finite point"):
        charts.chart("empty", [charts.Line("a", [(0, math.nan)])], "x")


def test_points_stand_where_they_are_and_steps_join_the_front():
    judged = charts.Dots("judged", [(1, 0.0, "one"), (10, 1.0, "two"), (100, 0.5, "three <&>")])
    dots = [judged, charts.Dots("searched", [(10, 0.2, "four")], faint=True)]
    html = charts.scatter(
        "Quality", dots, "passes", [(1, 0.0), (10, 1.0)], {"fast": (1, 0.0), "balanced": (10, 1.0), "best": (10, 1.0)}
    )
    (svg,) = svgs(html)
    circles = [one for one in svg.iter() if one.tag.endswith("circle") and one.get("class") == "dot"]
    x, y = ([float(one.get(name)) for one in circles] for name in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.2) and x[3] == x[1]  # a logarithmic axis
    assert y[1] < y[2] < y[3] < y[0] and (y[0] + y[1]) / 2 == pytest.approx(y[2], abs=0.1)
    marks = [one.text for one in svg.iter() if one.get("class") == "mark"]
    assert marks == ["fast", "balanced, best"]
    (path,) = [one.get("d") for one in svg.iter() if one.tag.endswith("path")]
    assert path.startswith(f"M{x[0]} {y[0]} H{x[1]} V{y[1]} H")
    with pytest.raises(ValueError, match="no point to draw"):
        charts.scatter("t", [], "x")
