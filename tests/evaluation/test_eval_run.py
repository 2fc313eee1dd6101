"""eval.run: perfect subjects score 1, ignorant ones 0; it resumes, is sharded, and overwrites nothing."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fusion
from fusion.evaluation import run, suite, suites
from fusion.evaluation.results import read_result
from fusion.evaluation.subjects import Subject, load_subject
from fusion.evaluation.suite import SPLITS, Row
from fusion.evaluation.suites import SUITES, Edits, copied, kinds_in, overlap
from fusion.testing import tiny_runs as training
from fusion.worlds.shapes import render, scene_image
from fusion.worlds.shapes.vision import read
from tests.evaluation.test_eval_shapes import as_asked
from tests.support import pipelines

COUNT = 24
UNTOLD = (
    "rules done without examples",
    "rules done from examples of another",
)  # nobody can know a rule that is not shown


@pytest.fixture(autouse=True)
def few(monkeypatch, unchecked):
    """Small suites, in several batches, drawn without shape checks: they are drawn many times."""
    monkeypatch.setitem(run.COUNTS, "quick", lambda suite: COUNT)
    monkeypatch.setattr(suite, "BATCH", 10)


def key(pairs, source):
    """Images as bytes, scenes rendered."""
    shown = [one for pair in pairs for one in pair] + [source]
    return tuple((one if isinstance(one, Image.Image) else scene_image(one)).tobytes() for one in shown)


class Perfect(Subject):
    """Has seen every item and its answer; reads images as the judge does."""

    can = frozenset({"draw", "edit", "follow", "answer", "decide", "describe", "tell"})

    def __init__(self, seed: int = 0):
        super().__init__("perfect", {})
        drawing, edits, questions, intents, _, trip, chains, stories, examples = (
            suite.items(COUNT, seed) for suite in SUITES
        )
        self.drawn = {item.prompt: as_asked(item.expectation) for item in [*drawing, *trip]}
        self.edited = {(item.image.tobytes(), item.instruction): render(item.after) for item in edits}
        steps = ((chain, turn) for chain in chains for turn in range(len(chain.edits)))
        self.edited |= {
            (render(c.scenes[turn]).tobytes(), c.instructions[turn]): render(c.scenes[turn + 1]) for c, turn in steps
        }
        self.stories = {
            item.prompt: [part if isinstance(part, str) else Image.fromarray(part) for part in item.told]
            for item in stories
        }
        self.followed = {
            key(shown.pairs, shown.source): scene_image(shown.after)
            for one in examples
            for shown in (one.shown, one.other)
        }
        self.replies = {(item.image.tobytes(), item.question.text): item.question.answer for item in questions}
        self.draws = {suites.said(item.message): item.draw for item in intents}

    def draw(self, prompts, seeds, size):
        return [self.drawn[prompt] for prompt in prompts]

    def edit(self, images, instructions, seeds):
        pairs = zip(images, instructions, strict=True)
        return [Image.fromarray(self.edited[image.tobytes(), words]) for image, words in pairs]

    def follow(self, examples, images, seeds):
        return [self.followed.get(key(pairs, image), image) for pairs, image in zip(examples, images, strict=True)]

    def answer(self, images, questions, seeds):
        return [self.replies[image.tobytes(), words] for image, words in zip(images, questions, strict=True)]

    def describe(self, images, seeds):
        return [", ".join(f"a {one.colour} {one.shape}" for one in read(image).objects) for image in images]

    def tell(self, prompts, seeds):
        return [self.stories[prompt] for prompt in prompts]

    def decide(self, messages, seeds, size):
        return [self.draws[suites.said(message)] for message in messages]


class Ignorant(Perfect):
    """Draws nothing, copies what is to be edited, always says the same, and draws when it should not."""

    def draw(self, prompts, seeds, size):
        return [Image.new("RGB", size, "white") for _ in prompts]

    def edit(self, images, instructions, seeds):
        return list(images)

    def answer(self, images, questions, seeds):
        return ["perhaps"] * len(images)

    def follow(self, examples, images, seeds):
        return list(images)

    def tell(self, prompts, seeds):
        return [["once", Image.new("RGB", (32, 32), "white")] for _ in prompts]

    def describe(self, images, seeds):
        return ["a white circle"] * len(images)

    def decide(self, messages, seeds, size):
        return [not self.draws[suites.said(message)] for message in messages]


def evaluated(monkeypatch, out, subject, **how):
    monkeypatch.setattr(run, "load_subject", lambda model, params, device: subject)
    return run.evaluate(subject.kind, out, **how)


def test_what_knows_everything_scores_one_and_what_knows_nothing_zero(monkeypatch, tmp_path):
    best = evaluated(monkeypatch, tmp_path / "best", Perfect())
    worst = evaluated(monkeypatch, tmp_path / "worst", Ignorant(), other=tmp_path / "best")
    assert set(best.scores) == {suite.name for suite in SUITES}
    values = {score.name: score.value for found in best.scores.values() for score in found}
    for name in ("edits that copy the source", "answers to examples that copy the source", *UNTOLD):
        assert values.pop(name) == 0
    assert set(values.values()) == {1.0}
    values = {score.name: score.value for found in worst.scores.values() for score in found}
    for name in ("edits that copy the source", "answers to examples that copy the source"):
        assert values.pop(name) == 1
    for name in ("pixels kept in edits", "pixels kept in the fifth edit"):
        assert 0.8 < values.pop(name) < 1  # where the ground was to change, nothing that had to stay did
    assert set(values.values()) == {0.0}
    paired = json.loads((tmp_path / "worst" / "results.json").read_text())["paired"]
    assert len(paired) == len(SUITES) and all(
        one["difference"] == -1 and one["worse"] == COUNT and one["better"] == 0 for one in paired
    )
    page = (tmp_path / "worst" / "report.html").read_text()
    assert "Against perfect" in page and "worse" in page and page.count("<img") > 6 * COUNT


def test_what_a_story_does_not_speak_of_has_to_stay():
    (item, *_) = [one for one in suites.Stories().items(COUNT, 0) if one.first.wanted[0].shape]
    images = [Image.fromarray(part) for part in item.told if not isinstance(part, str)]
    blank = Image.new("RGB", images[0].size, "white")
    words = [part for part in item.told if isinstance(part, str)]

    def values(*parts):
        row, _ = suites.Stories()._answer(suite.Numbered(0, 0, item), parts)
        return row.values

    assert values(words[0], images[0], "and then", images[0])["right"] == 1
    assert values(words[0], images[0], "and then", blank) == {"first": 1, "several": 1, "kept": 0, "right": 0}
    assert values(words[0], blank, "and then", images[0])["first"] == 0
    assert values(words[0], images[0])["several"] == values(words[0])["first"] == 0
    seen = {kind[0] for kind in (one.kind for one in read(images[0]).objects)}
    gone = " ".join(f"the {shape} leaves," for shape in seen)
    assert values(words[0], images[0], gone, blank)["right"] == 1


def test_what_does_not_look_at_examples_cannot_follow_two_rules_at_once():
    examples = suites.Examples()
    items = examples.numbered(COUNT, 0)
    subject = Guessing([one.item for one in items])
    rows, shown = zip(*(answer for batch in examples.answers(subject, items) for answer in batch))
    scores = examples.scores(rows)
    assert {score.value for score in scores[:2]} == {1.0, 0.0} and scores[0].name == examples.words["right"]
    assert all(row.values == {"right": 1, "both": 0, "other": 1, "without": 1, "apart": 0, "copied": 0} for row in rows)
    assert {len(images) for images in shown} == {8} and {group for row in rows for group in row.groups} >= {
        "seen",
        "held out",
        "add",
        "swap",
    }


def test_blank_images_follow_no_rule():
    examples, blank = suites.Examples(), Perfect()
    blank.follow = lambda examples, images, seeds: [Image.new("RGB", image.size, "white") for image in images]
    rows = [row for batch in examples.answers(blank, examples.numbered(COUNT, 0)) for row, _ in batch]
    assert len(rows) == COUNT and not any(any(row.values.values()) for row in rows)


class Guessing(Subject):
    """Knows which rule will be asked for, and does it whatever is shown."""

    def __init__(self, items):
        super().__init__("guessing", {})
        self.after = {key((), item.shown.source): scene_image(item.shown.after) for item in items}

    def follow(self, examples, images, seeds):
        return [self.after[key((), image)] for image in images]


def test_it_goes_on_where_it_was_stopped_and_shares_its_work(monkeypatch, tmp_path):
    whole = evaluated(monkeypatch, tmp_path / "whole", Perfect())

    class Breaks(Perfect):
        def answer(self, images, questions, seeds):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluated(monkeypatch, tmp_path / "parts", Breaks())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*.jsonl")}
    assert before and not (tmp_path / "parts" / "results.json").exists()
    assert evaluated(monkeypatch, tmp_path / "parts", Perfect(), shard=(0, 2)) is None
    with pytest.raises(ValueError, match=r"of 24 items of .* are there; run the other shards"):
        run.result(Perfect(), run.settings_of("perfect", "quick", "scored", {}), tmp_path / "parts", None)
    assert evaluated(monkeypatch, tmp_path / "parts", Perfect(), shard=(1, 2)) is None
    together = evaluated(monkeypatch, tmp_path / "parts", Perfect())
    assert together.scores == whole.scores and together.rows == whole.rows
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_nothing_is_written_over(monkeypatch, tmp_path):
    evaluated(monkeypatch, tmp_path / "out", Perfect())
    with pytest.raises(ValueError, match="results of another model or other settings"):
        evaluated(monkeypatch, tmp_path / "out", Perfect(), params={"steps": 3})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="holds something else"):
        evaluated(monkeypatch, tmp_path / "notes", Perfect())
    with pytest.raises(ValueError, match="no finished evaluation there"):
        read_result(tmp_path / "notes")
    with pytest.raises(ValueError, match="asked for nothing that"):
        evaluated(
            monkeypatch, tmp_path / "other", Perfect(SPLITS["development"]), split="development", other=tmp_path / "out"
        )


def test_results_say_all_that_they_depend_on(monkeypatch, tmp_path):
    evaluated(monkeypatch, tmp_path / "out", Perfect(), params={"guidance": 2.0})
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {"model", "kind", "commit", "versions", "prompts", "seed", "split", "device"} <= found.keys()
    assert (
        found["params"] == {"steps": 20, "guidance": 2.0}
        and {"low", "high", "count", "suite"} <= found["figures"][0].keys()
    )
    assert found["prompts"] != run.settings_of("perfect", "quick", "development", {}).prompts
    again = read_result(tmp_path / "out")
    assert again.scores["edits"][0].value == 1 and len(again.rows["edits"]) == COUNT


def test_batches_have_images_of_one_size_and_every_item_once():
    items = Edits().numbered(COUNT, 0)
    batches = list(Edits().batches(items))
    assert all(len({one.item.image.shape for one in batch}) == 1 for batch in batches) and len(batches) > 3
    assert sorted(one.number for batch in batches for one in batch) == list(range(COUNT))
    assert all(one.seed == one.number for one in items)


def test_kinds_are_found_in_words_and_copies_in_pixels():
    assert kinds_in("Two red circles and a small Blue square on white.") == {("circle", "red"), ("square", "blue")}
    assert kinds_in("three crosses; a redcircle") == set() and overlap(set(), set()) == 1
    assert overlap({1, 2}, {2, 3}) == pytest.approx(1 / 3)
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    other = grey.copy()
    assert copied(grey, other)
    other.putpixel((3, 3), (140, 100, 100))
    assert not copied(grey, other) and not copied(grey, grey.resize((9, 8)))


# ---- real subjects ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Never trained: a unified model, and a pipeline."""
    root = tmp_path_factory.mktemp("subjects")
    model = fusion.from_llm(training.save_llm(root / "llm"), dtype=torch.float32, max_side=64)
    torch.nn.init.normal_(model.model.flow_head.out.weight, std=0.2)
    model.save_pretrained(root / "model")
    pipelines.pixart().save_pretrained(root / "pixart")
    return root


def test_a_unified_model_from_the_command_line(folders, tmp_path, capsys):
    words = [
        str(folders / "model"),
        "-o",
        str(tmp_path / "out"),
        "--split",
        "development",
        "--llm",
        str(folders / "llm"),
        "steps=1",
    ]
    assert run.main(words) == 0
    said = capsys.readouterr().out
    assert (
        "GenEval in miniature" in said and "text perplexity" in said and str(tmp_path / "out" / "report.html") in said
    )
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["kind"] == "unified model" and found["text"]["rise"] == pytest.approx(0, abs=1e-5)
    rows = read_result(tmp_path / "out").rows
    assert len({(tmp_path / "out" / row.images[-1]).read_bytes() for row in rows["drawing"]}) == COUNT
    assert all(isinstance(row, Row) and row.said is not None for row in rows["questions"])


def test_a_pipeline_draws_and_does_no_more(folders, tmp_path):
    found = run.evaluate(str(folders / "pixart"), tmp_path / "out", params={"steps": 1})
    assert set(found.scores) == {"drawing"} and found.facts["kind"] == "PixArtAlphaPipeline"
    assert Image.open(tmp_path / "out" / found.rows["drawing"][0].images[0]).size == (32, 32)


def test_rows_draw_with_seeds_of_their_own(folders):
    subject = load_subject(folders / "model", {"steps": 2})
    many, one = subject.draw(["a cat"] * 3, [5, 6, 7], (32, 32)), subject.draw(["a cat"], [7], (32, 32))
    assert abs(np.asarray(many[2], dtype=int) - np.asarray(one[0], dtype=int)).max() <= 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere", "-o", "OUT"], "nor is it a text-to-image model's folder"),
        (["MODEL", "-o", "OUT", "steps"], "sampling parameters are given as name=value"),
        (["MODEL", "-o", "OUT", "stepz=3"], "stepz: no such sampling parameter"),
        (["MODEL", "-o", "OUT", "preset=fast"], "this model has no presets"),
        (["MODEL", "-o", "OUT", "--shard", "2/2"], "give i/n with i from 0 to n - 1"),
        (["MODEL", "-o", "OUT", "--against", "nowhere"], "no finished evaluation there"),
    ],
)
def test_a_mistake_is_one_line(folders, tmp_path, capsys, words, line):
    places = {"OUT": str(tmp_path / "out"), "MODEL": str(folders / "model")}
    assert run.main([places.get(word, word) for word in words]) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ") and line in last
