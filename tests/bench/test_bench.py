"""The benchmarks measure what they say: passes counted, documents of the stated lengths, ratios within rounds."""

from dataclasses import replace

import pytest
import torch

from bench import attention, measure, mutations, sampling, training
from bench.tiny_model import subject
from fusion.sequence.packed import IGNORE


@pytest.fixture(scope="module")
def model():
    return subject()


def test_an_image_is_its_passes_and_nothing_more(model):
    seen = []
    hook = model.model.llm.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    prompt = sampling.prompt_of(model)
    patches = sampling.GRID[0] * sampling.GRID[1]
    for guidance, rows in ((1.0, 1), (3.0, 2)):
        seen.clear()
        model.draw(prompt, steps=3, guidance=guidance, image_size=(sampling.SIDE, sampling.SIDE))
        prefixes, passes = seen[:-3], seen[-3:]
        assert passes == [(rows, patches)] * 3
        assert prefixes[0] == (1, sampling.PREFIX) and len(prefixes) == rows
        assert all(length < sampling.PREFIX for _, length in prefixes[1:])  # without its text
    hook.remove()


@torch.inference_mode()
def test_the_pass_is_the_model_s_own(model):
    """The pass that drawing is divided by gives what a packed batch gives in training, at the same noise and time."""
    ids = sampling.prefix_rows(model, sampling.prompt_of(model))
    step = sampling.Pass(model, ids, 2)
    alone = sampling.Pass(model, ids, 1)
    alone.images = replace(alone.images, patches=step.images.patches[: len(alone.images.patches)])
    torch.testing.assert_close(step()[:1], alone(), atol=1e-5, rtol=0)
    step.images = replace(step.images, time=torch.tensor([0.1]))
    assert not torch.allclose(step()[:1], alone(), atol=1e-3)


def test_documents_have_the_stated_lengths(model):
    packed = training.documents(model).packed
    assert packed.documents == training.ROWS and int(packed.noised.sum()) == training.ROWS * training.PATCHES
    text = (packed.ids < model.model.config.vocab_base).sum(1)
    sizes = len(model.processor.size_ids(32, 32))
    assert text.tolist() == [training.TEXT + sizes] * training.ROWS
    assert not (packed.doc < 0).any() and (packed.labels != IGNORE).sum() >= training.ROWS * (training.TEXT - 1)


def test_turns_time_the_step_and_let_the_others_run():
    calls = []
    turns = training.Turns("batch", {"other": lambda: calls.append(1), "gemm fp32": lambda: None})
    for _ in range(training.WARM_UP + 3):
        assert next(turns) == "batch"
        sum(range(200_000))  # the step
    assert len(calls) == training.WARM_UP + 3 and len(turns.own) == training.WARM_UP + 2
    turns.own, turns.times["other"] = [9.0, 9.0, 1.0, 2.0], [0.0, 0.0, 3.0, 8.0, 0.0]
    turns.times["gemm fp32"] = [1.0] * 5
    figures = training.compared(turns)
    assert figures["step_ms"] == 1500 and figures["times faster than other"] == 3.5
    assert figures["gemm fp32, GFLOP/s"] == round(2 * measure.SIDE**3 / 1e9, 1)


def test_functions_run_in_turn():
    order = []
    times = measure.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=1)
    assert "".join(order) == "ab" * 4 and {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_results_say_how_they_came_about(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["sampling", "--rounds", "2"])
    text = measure.write("sampling", {"ratio": 1.1}).read_text()
    assert '"command": "python -m bench.sampling --rounds 2"' in text and '"ratio": 1.1' in text and '"device"' in text


def test_what_mutations_exchange_is_still_in_the_source(root):
    for mutation in mutations.MUTATIONS:
        source = (root / mutations.SOURCES[mutation.source]).read_text(encoding="utf-8")
        assert mutations.mutated(mutation, root) != source, mutation.name
        assert (root / mutations.TESTS[mutation.tests]).is_file(), mutation.name
    assert len({mutation.name for mutation in mutations.MUTATIONS}) == len(mutations.MUTATIONS)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A source file of one function, and tests of it that look at one side of its limit alone."""
    (tmp_path / "limit.py").write_text("def small(x):\n    return x <= 3\n")
    (tmp_path / "test_limit.py").write_text("import limit\n\n\ndef test_small():\n    assert limit.small(3)\n")
    monkeypatch.setattr(mutations, "SOURCES", {"limit": "limit.py"})
    monkeypatch.setattr(mutations, "TESTS", {"limit": "test_limit.py"})
    return tmp_path


def test_a_fault_that_a_test_sees_is_killed_and_any_other_survives(tree, capsys):
    before = (tree / "limit.py").read_text()
    lower, higher = (mutations.Mutation(to, "limit", "limit", "<= 3", f"<= {to}") for to in ("2", "4"))
    assert mutations.first_failure(tree, ["limit"]) is None
    found = mutations.try_all([lower, higher], tree)
    assert found == {"2": "test_limit.py::test_small", "4": None} and (tree / "limit.py").read_text() == before
    figures = mutations.record([lower, higher], found)
    assert (figures["tried"], figures["killed"], figures["survived"]) == (2, 1, ["4"])
    assert "SURVIVED" in capsys.readouterr().out


def test_a_fault_that_cannot_be_made_or_run_is_told(tree):
    for old, count in (("< 3", 0), ("small", 2)):
        (tree / "limit.py").write_text("def small(x):\n    return x <= 3\n\n\nsmall(1)\n")
        with pytest.raises(ValueError, match=f"^one: limit.py holds this {count} times instead of once: '{old}'"):
            mutations.mutated(mutations.Mutation("one", "limit", "limit", old, "large"), tree)
    with pytest.raises(RuntimeError, match="could not be run"):
        mutations.try_all([mutations.Mutation("one", "limit", "limit", "return", "return return")], tree)
    assert "return return" not in (tree / "limit.py").read_text()


def test_both_kinds_of_attention_are_run_and_counted():
    for kind in attention.KINDS:
        found = attention.one(kind, 16)
        assert found["seconds"] > 0 and found["peak MiB"] >= 0
    # four projections, and for softmax two products of all pairs; for linear two of 32 x 33 a row and head
    n, width = attention.rows(32), attention.WIDTH
    projections = 2 * 4 * n * width**2
    assert attention.counted("softmax", 32) * 1e9 == pytest.approx(projections + 4 * n**2 * width)
    assert attention.counted("linear", 32) * 1e9 == pytest.approx(projections + 4 * n * width * 33, rel=1e-3)
    assert attention.scores_gib(512) == 192
