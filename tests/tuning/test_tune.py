"""eval.tune: rules on given tables, a search with a known answer, exact resume, and a run on a tiny model."""

import json
import math
from itertools import product

import numpy as np
import pytest
import torch

import fusion
from fusion.evaluation import partial_credit as quality
from fusion.evaluation.suite import SPLITS, Row, Suite
from fusion.flow.solvers import SOLVERS
from fusion.generation.sampling import Sampling
from fusion.testing import tiny_runs as training
from fusion.tuning import pareto_front as front
from fusion.tuning import search, tune
from fusion.tuning.pareto_front import Judged, chosen, gain
from fusion.tuning.search import PARTS, Budget, Ledger, Part, Search
from fusion.worlds.shapes import evaluation_edits, evaluation_prompts, judge, render
from tests.evaluation.test_eval_shapes import as_asked

# ---- rules ----


def judged(cost: float, *values: float, **suites) -> Judged:
    found = suites or {"drawing": values}
    return Judged(Sampling(steps=max(1, round(cost))), cost, found, found)


def test_gains_are_paired_and_suites_count_the_same():
    one, other = judged(1, drawing=[1, 1, 0, 0], edits=[1, 1]), judged(1, drawing=[0, 1, 0, 0], edits=[0, 0])
    difference, half = gain(one, other)
    assert difference == pytest.approx((0.25 + 1) / 2)
    assert half == pytest.approx(front.Z * math.sqrt(0.25 / 4 + 0) / 2)  # of 1, 0, 0, 0 the variance is a quarter
    assert gain(other, one) == (-difference, half) and gain(one, one) == (0, 0)


EVEN, ODD = [0.6, 0.4] * 20, [0.4, 0.6] * 20


def test_best_is_the_highest_and_the_cheaper_of_two():
    table = [judged(40, *[0.5] * 40), judged(80, *[0.8] * 40), judged(60, *[0.8] * 40), judged(4, *[0.1] * 40)]
    assert chosen(table, 40)["best"] is table[2]


def test_balanced_is_the_cheapest_that_is_not_significantly_worse():
    best, noise, worse = judged(80, *EVEN), judged(20, *[v - 0.01 for v in ODD]), judged(10, *[v - 0.01 for v in EVEN])
    named = chosen([best, noise, worse], 40)
    assert (
        named["best"] is best and named["balanced"] is noise
    )  # 0.01 less on every single item is seen, however little it is
    assert named["fast"] is worse
    assert chosen([best, noise, judged(10, *ODD)], 40)["balanced"].cost == 10


def test_fast_takes_a_quarter_at_most_and_no_more_than_balanced():
    best, cheap, cheaper = judged(40, *[0.8] * 40), judged(10, *[0.5] * 40), judged(5, *[0.4] * 40)
    over = judged(10.5, *[0.7] * 40)
    assert chosen([best, over, cheap, cheaper], 40) == {"best": best, "balanced": best, "fast": cheap}
    better, same = judged(10, *EVEN), judged(6, *ODD)
    assert chosen([better, same, cheaper], 40) == {"best": same, "balanced": same, "fast": same}
    with pytest.raises(
        ValueError, match="nothing that was tried takes 10 forward passes or less: give a larger --budget"
    ):
        chosen([best, over], 40)


def test_the_front_has_what_nothing_cheaper_reaches():
    table = [judged(10, 0.5), judged(5, 0.3), judged(10, 0.6), judged(20, 0.55), judged(40, 0.6), judged(80, 0.7)]
    assert [(one.cost, one.mean) for one in front.front(table)] == [(5, 0.3), (10, 0.6), (80, 0.7)]


# ---- quality ----


def test_quality_is_one_where_all_is_right_and_nothing_for_blanks_and_copies():
    for item in evaluation_prompts(24, 1):
        right, other = as_asked(item.expectation), evaluation_prompts(1, 5)[0]
        assert quality.of_drawing(judge.check(right, item.expectation), item.expectation) == 1
        blank = np.full((32, 32, 3), 255, dtype=np.uint8)
        assert quality.of_drawing(judge.check(blank, item.expectation), item.expectation) == 0
        assert 0 <= quality.of_drawing(judge.check(right, other.expectation), other.expectation) <= 1
    for item in evaluation_edits(28, 1):
        assert quality.of_edit(judge.edit_done(item.image, render(item.after), item.edit)) == 1
        assert quality.of_edit(judge.edit_done(item.image, item.image, item.edit)) == 0


OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def test_quality_rises_with_every_property():
    item = next(
        one for one in evaluation_prompts(48, 1) if one.category == "position" and len(one.expectation.wanted) == 2
    )
    asked = item.expectation
    swapped = type(asked)(asked.wanted, tuple((one, OPPOSITE[how], two) for one, how, two in asked.relations))
    assert (
        quality.of_drawing(judge.check(as_asked(swapped), asked), asked) == 3 / 5
    )  # all but the relation, and so not all of it
    one = type(asked)(asked.wanted[:1])
    assert quality.of_drawing(judge.check(as_asked(one), asked), asked) == 0


# ---- a search whose answer is known ----

SMALL = {
    "steps": (2, 4, 8, 16, 32),
    "solver": tuple(SOLVERS),
    "shift": (1.0, 2.0),
    "guidance": (1.0, 3.0, 5.0),
    "guidance_interval": ((0.0, 1.0), (0.4, 1.0)),
}


def true(setting: Sampling) -> float:
    """More evaluations are better, those of dpmpp_2m most, and there is one best guidance, shift and interval."""
    work = (
        SOLVERS[setting.solver].evaluations(setting.steps)
        * {"euler": 1.0, "heun": 0.9, "dpmpp_2m": 1.5}[setting.solver]
    )
    return (
        0.9 * (1 - 0.85**work)
        - 0.1 * abs(setting.guidance - 3.0) / 2
        - 0.05 * (setting.shift != 2)
        - 0.05 * (setting.guidance_interval[0] != 0)
    )


class Known(Suite):
    """Items are numbers, and an answer is as good as its subject: exactly, or right with that chance from the item's
    own noise."""

    name, needs, words = "drawing", frozenset({"draw"}), {}

    def __init__(self, noisy: bool):
        self.noisy, self.asked, self.stop = noisy, 0, math.inf

    def items(self, count, seed):
        return list(range(count))

    def text(self, item):
        return str(item)

    def ask(self, subject, batch):
        if self.asked >= self.stop:
            raise KeyboardInterrupt
        self.asked += 1
        found = [float(np.random.default_rng(one.seed).random() < subject) if self.noisy else subject for one in batch]
        return [
            (Row(self.name, one.number, "", [], {"quality": value, "right": value}), [])
            for one, value in zip(batch, found)
        ]


@pytest.fixture
def known(monkeypatch):
    """`known(noisy, ledger, amount, ...)`: a search in a small space, and its suite."""
    monkeypatch.setattr(search, "OPTIONS", SMALL)
    monkeypatch.setattr(search, "ATTEMPTS", 60)

    def make(noisy: bool, file, amount: float, unit: str = "images") -> tuple[Search, Known]:
        suite = Known(noisy)
        part = Part("drawing", suite, 24)
        return Search(lambda params: true(Sampling(**params)), [part], Ledger(file), Budget(amount, unit), 1), suite

    return make


def space(finder: Search) -> list[Sampling]:
    return list(
        dict.fromkeys(search.plain(Sampling(**dict(zip(SMALL, values)))) for values in product(*SMALL.values()))
    )


def test_without_noise_it_finds_the_front_and_the_presets(known, tmp_path):
    finder, _ = known(False, tmp_path / "tried.jsonl", 40_000)
    named = chosen(finder.run(), finder.cost(finder.default))
    costs = {one: finder.cost(one) for one in space(finder)}
    assert finder.cost(finder.default) == 40 and len(finder.results) > 0.8 * sum(cost <= 80 for cost in costs.values())
    for place, (least, most) in enumerate(zip((0, *search.CLASSES), search.CLASSES)):
        members = [one for one, cost in costs.items() if 40 * least < cost <= 40 * most]
        assert true(finder.best(place)[0]) == max(map(true, members))
    assert true(named["best"].setting) == max(true(one) for one, cost in costs.items() if cost <= 80)
    assert true(named["fast"].setting) == max(true(one) for one, cost in costs.items() if cost <= 10)


def test_in_noise_it_comes_near(known, tmp_path):
    finder, _ = known(True, tmp_path / "tried.jsonl", 12_000)
    found = finder.run()
    named = chosen(found, 40)
    tops = {limit: max(true(one) for one in space(finder) if finder.cost(one) <= limit) for limit in (10, 80)}
    assert tops[80] - true(named["best"].setting) < 0.06 and tops[10] - true(named["fast"].setting) < 0.1
    assert named["balanced"].cost < named["best"].cost or named["balanced"] is named["best"]
    assert named["fast"].cost <= min(10, named["balanced"].cost) and found[0].setting == Sampling()
    assert {len(one.quality["drawing"]) for one in found} == {24 * search.FRESH}  # all on the same items
    searched = max(len(chunks) for chunks in finder.results.values())
    assert searched <= search.DEPTHS[-1]  # and none of those that chose them


def test_stopped_anywhere_it_ends_as_if_it_never_was(known, tmp_path):
    whole, _ = known(True, tmp_path / "whole.jsonl", 4000)
    expected, lines = whole.run(), [json.loads(line) for line in (tmp_path / "whole.jsonl").read_text().splitlines()]
    for stop in (1, 37, len(lines) - 2):
        file = tmp_path / f"{stop}.jsonl"
        first, suite = known(True, file, 4000)
        suite.stop = stop
        with pytest.raises(KeyboardInterrupt):
            first.run()
        with file.open("a") as torn:
            torn.write('{"params": {"steps"')  # a line that was being written
        second, suite = known(True, file, 4000)
        assert second.run() == expected and suite.asked == len(lines) - stop
        assert [one | {"seconds": 0} for one in map(json.loads, file.read_text().splitlines())] == [
            one | {"seconds": 0} for one in lines
        ]
    again, suite = known(True, tmp_path / "whole.jsonl", 4000)
    assert again.run() == expected and suite.asked == 0
    more, suite = known(True, tmp_path / "whole.jsonl", 6000)
    more.run()
    assert len(more.results) > len(whole.results) and set(whole.results) <= set(more.results)


def test_a_budget_of_time_ends_the_same_when_it_is_run_again(known, tmp_path):
    first, _ = known(True, tmp_path / "tried.jsonl", 0.05, "seconds")
    expected = first.run()
    second, suite = known(True, tmp_path / "tried.jsonl", 0.05, "seconds")
    assert second.run() == expected and suite.asked == 0 and second.budget.spent == first.budget.spent


def test_the_smallest_budget_still_gives_three_presets(known, tmp_path):
    finder, suite = known(False, tmp_path / "tried.jsonl", 1)
    assert set(chosen(finder.run(), 40)) == {"fast", "balanced", "best"} and len(finder.results) == 1
    assert suite.asked == 1 + 2 * search.LEAST


def test_nothing_is_tried_under_two_names():
    assert search.plain(Sampling(steps=1, solver="heun", shift=2.0)) == search.plain(Sampling(steps=1))
    assert search.plain(Sampling(guidance=1.0, guidance_interval=(0.2, 0.8))) == Sampling(guidance=1.0)
    kept = Sampling(guidance=1.0, image_guidance=1.5, guidance_interval=(0.2, 0.8))
    assert search.plain(kept) == kept


def test_chunks_have_every_category_as_often():
    drawing, edits = ([one.item for one in search.chunk(PARTS[name], 3, 1)] for name in ("draw", "edits"))
    assert len({one.category for one in drawing}) == 6 and sum(one.held_out for one in drawing) == 4
    assert len({one.kind for one in edits}) == 7 and sum(one.held_out for one in edits) == 14
    assert drawing == list(evaluation_prompts(96, 1)[72:])
    assert [(one.number, one.seed) for one in search.chunk(PARTS["edits"], 3, 1)] == [
        (n, 1 + n) for n in range(84, 112)
    ]


# ---- the program ----


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Never trained."""
    folder = tmp_path_factory.mktemp("tune")
    made = fusion.from_llm(training.save_llm(folder / "llm"), dtype=torch.float32, max_side=64, patch_size=16)
    made.presets = {"mine": {"steps": 3}, "fast": {"steps": 4}}
    made.save_pretrained(folder / "model")
    return folder / "model"


@pytest.fixture
def few(monkeypatch):
    """Small chunks of few steps, in two classes, judged once."""
    for name, size in (("draw", 6), ("edits", 7)):
        monkeypatch.setitem(PARTS, name, Part(PARTS[name].name, PARTS[name].suite, size))
    for name, value in (("LEAST", 1), ("FINALISTS", 1), ("CLASSES", (0.1, 0.25))):
        monkeypatch.setattr(search, name, value)
    monkeypatch.setitem(search.OPTIONS, "steps", (1, 2, 3))


def test_a_whole_run_saves_presets_that_draw(model, few, tmp_path, capsys):
    words = [str(model), "--budget", "60", "-o", str(tmp_path / "out")]
    before = (model / "generation_config.json").read_bytes()
    assert tune.main(words) == 0 and (model / "generation_config.json").read_bytes() == before
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said] == [
        "default",
        "fast",
        "balanced",
        "best",
        str(tmp_path / "out" / "tune.html"),
    ]
    page, tried = (tmp_path / "out" / "tune.html").read_text(), (tmp_path / "out" / "tried.jsonl").read_bytes()
    assert tune.main([*words, "--save"]) == 0 and (tmp_path / "out" / "tried.jsonl").read_bytes() == tried
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["split"] == "development" and found["seed"] == SPLITS["development"] != SPLITS["scored"]
    assert {"quality", "passes", "GenEval", "edits done", "quality of edits"} <= found["judged"][0].keys()
    loaded = fusion.load(model)
    assert set(loaded.presets) == {"mine", "fast", "balanced", "best"} and loaded.presets["mine"] == {"steps": 3}
    assert (
        json.loads(json.dumps(loaded.presets["fast"])) == found["presets"]["fast"]
        and len(found["presets"]["fast"]) == 6
    )
    assert loaded.draw("draw a red circle", preset="fast", image_size=(32, 32))[0].size == (32, 32)
    assert (
        'class="ring"' in page
        and front.RULE.split(".")[0] in page
        and "://" not in page
        and page.count("<img") == 4 * 6 + 5 * 6
    )


def test_another_models_results_are_not_gone_on_with(model, few, tmp_path, capsys):
    (tmp_path / "settings.json").write_text("{}")
    assert tune.main([str(model), "--budget", "1", "-o", str(tmp_path)]) == 1
    assert "holds results of another model or other settings" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_weights_that_changed_are_another_model(model):
    loaded = fusion.load(model, dtype=torch.float32)
    one = tune.settings_of("m", loaded, "draw")
    assert one == tune.settings_of("m", loaded, "draw") and set(one.prompts) == {"drawing"}
    with torch.no_grad():
        next(loaded.model.flow_head.parameters()).add_(1e-3)
    assert one.weights != tune.settings_of("m", loaded, "draw").weights


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere"], "no fusion model there"),
        (["nowhere", "--budget", "soon"], "--budget soon: give minutes (20m) or a number of images (3000)"),
        (["nowhere", "--budget", "-3m"], "--budget -3m: give"),
        (["nowhere", "--budget", "nanm"], "--budget nanm: give"),
    ],
)
def test_a_mistake_is_one_line(words, line, tmp_path, capsys):
    option = [f"{words[1]}={words[2]}"] if len(words) > 1 else []
    assert tune.main([words[0], *option, "-o", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: ") and line in said and not (tmp_path / "out").exists()


def test_budgets_are_minutes_or_images():
    assert tune.budget_of("1.5m") == Budget(90.0, "seconds") and tune.budget_of("3000") == Budget(3000, "images")


def test_a_ledger_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "tried.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match="is not what this program writes there"):
        Ledger(tmp_path / "tried.jsonl")
    assert (tmp_path / "tried.jsonl").read_text() == '{"step": 1}\n'
