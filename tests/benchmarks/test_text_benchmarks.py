"""Text benchmarks: a fusion model answers as its LLM, intervals are of paired items, nothing is asked twice."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import GenerationConfig

import fusion
from fusion.evaluation.benchmarks.text import text
from fusion.evaluation.benchmarks.text.before_after import (
    Figure,
    as_text,
    from_json,
    paired,
    render,
    stderr_of,
    to_json,
    value_of,
)
from fusion.testing import tiny_llms as families

KINDS = {"choice": "multiple_choice", "prose": "loglikelihood_rolling", "answer": "generate_until"}

# ---- figures; these need no lm_eval ----

NUMBERS = (1.0, 0.0, 1.0, 1.0, 0.0, 1.0)
TEXTS = ((-30.0, 12.0), (-8.0, 5.0), (-55.0, 20.0), (-21.0, 9.0), (-2.0, 1.0), (-14.0, 8.0))


def by_hand(kind, items):
    if kind == "mean":
        return float(np.mean(items))
    if kind == "perplexity":
        return math.exp(-np.mean(items))
    rate = sum(one for one, _ in items) / sum(weight for _, weight in items)
    return math.exp(-rate) if kind == "weighted_perplexity" else -rate / math.log(2)


@pytest.mark.parametrize(
    ("kind", "items"),
    [
        ("mean", NUMBERS),
        ("perplexity", [-1.0, -0.2, -2.1, -0.9]),
        ("weighted_perplexity", TEXTS),
        ("bits_per_byte", TEXTS),
    ],
)
def test_values_and_their_spread(kind, items):
    value, moves = value_of(kind, items)
    assert value == pytest.approx(by_hand(kind, items), rel=1e-12) and moves.mean() == pytest.approx(0, abs=1e-12)
    many, rng = [items[i] for i in np.random.default_rng(0).integers(len(items), size=400)], np.random.default_rng(1)
    drawn = [value_of(kind, [many[i] for i in rng.integers(400, size=400)])[0] for _ in range(600)]
    assert stderr_of(value_of(kind, many)[1]) == pytest.approx(np.std(drawn), rel=0.12)  # the bootstrap's
    assert stderr_of(value_of(kind, items[:1])[1]) is None


def figure(items, kind="mean", higher=True, **changes) -> Figure:
    value, moves = value_of(kind, items)
    made = {
        "task": "t",
        "metric": "m",
        "filter": "none",
        "value": value,
        "stderr": stderr_of(moves),
        "count": len(items),
        "higher": higher,
    }
    return Figure(**(made | {"kind": kind, "items": tuple(items)} | changes))


def pair(before: Figure, after: Figure):
    return paired([before], [after])[0]


def test_a_difference_is_that_of_the_same_items():
    rng = np.random.default_rng(0)
    items = [tuple(row) for row in zip(-rng.uniform(10, 200, 50), rng.integers(5, 60, 50).astype(float))]
    worse = [(likelihood * (1.04 + 0.01 * rng.standard_normal()), weight) for likelihood, weight in items]
    one = pair(figure(items, "bits_per_byte", False), figure(worse, "bits_per_byte", False))
    assert (
        one.verdict == "worse" and 0 < one.half < one.difference < one.before.bounds[1] - one.before.value
    )  # less than either is known by itself
    assert pair(one.after, one.before).verdict == "better"


def test_verdicts():
    same, other = figure(NUMBERS), figure((1.0, 0.0, 1.0, 0.0, 1.0, 1.0))
    assert pair(same, same).verdict == "the same" and pair(figure((1.0,)), figure((0.0,))).verdict == "too few"
    assert pair(same, other).verdict == "no difference seen"  # of equal values, but not the same answers
    low, high = figure((0.0, 0.0, 0.0, 0.1)), figure((1.0, 1.0, 0.9, 1.0))
    assert pair(low, high).verdict == "better" and pair(high, low).verdict == "worse"
    unknown = [figure(one.items, higher=None) for one in (low, high)]
    assert pair(*unknown).verdict == "differs"
    bleu = [Figure("t", "bleu", "none", value, 1.0, 9, True) for value in (20.0, 21.0)]
    assert pair(*bleu).verdict == "not paired" and pair(*bleu).half is None
    assert pair(*bleu).told()["after"]["low"] == pytest.approx(21 - 1.96, abs=1e-3)
    assert pair(bleu[0], bleu[0]).verdict == "not paired"  # equal values, of which nobody knows whether the answers are
    with pytest.raises(ValueError, match="not asked the same"):
        paired([same], [same, figure(NUMBERS, metric="n")])


def test_shares_have_wilsons_intervals_and_perplexities_symmetric_ones():
    assert figure((1.0,) * 6).bounds == pytest.approx((0.61, 1.0), abs=1e-3)  # of 6 of 6: not ± 0
    texts = figure(TEXTS, "weighted_perplexity", False)
    assert sum(texts.bounds) / 2 == pytest.approx(texts.value) and texts.bounds[1] - texts.value == pytest.approx(
        1.96 * texts.stderr, rel=1e-4
    )


def test_figures_are_read_as_they_were_written():
    figures = [
        figure(NUMBERS),
        figure(TEXTS, "weighted_perplexity", False),
        Figure("t", "bleu", "strict", 1.0, None, 3, None),
    ]
    assert from_json(json.loads(json.dumps(to_json(figures)))) == figures


def test_the_table_and_the_page():
    pairs = paired([figure(NUMBERS)], [figure((0.0,) * 6)])
    lines = as_text(pairs).splitlines()
    assert (
        lines[0].split() == ["task", "metric", "before", "after", "difference", "of"]
        and "m ↑" in lines[1]
        and "worse" in lines[1]
    )
    alone = as_text(paired([], [figure(NUMBERS, filter="strict")]))
    assert "before" not in alone and "m (strict) ↑" in alone and "0.6667 (0.3–0.9032)" in alone
    page = render(pairs, "<model>", "llm", {"commit": "abc"}, ["Mind <this>."])
    assert "&lt;model&gt;" in page and "Mind &lt;this&gt;." in page and "worse" in page and "abc" in page
    assert "<script" not in page and "http" not in page.split("</style>")[1]


# ---- the command without lm_eval ----


def run(*words) -> int:
    return text.main([str(word) for word in words])


def test_without_lm_eval_it_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert run("shapes", "--tasks", "a", "-o", tmp_path / "out") == 1
    assert "pip install lm_eval" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- lm_eval itself ----


@pytest.fixture
def harness():
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install lm_eval")
    from fusion.evaluation.benchmarks.text import harness

    return harness


TEXTS_READ = [
    "a red circle stands left of a blue square.",
    "write words about a small cat.",
    "the naïve cross is above 640x480 words.",
    "red",
]


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of each kind of output, all tagged `tiny`."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [
        {"text": one, "head": one.rsplit(" ", 1)[0], "last": one.rsplit(" ", 1)[-1], "choices": ["cat", one[:5], "a b"]}
        for one in TEXTS_READ
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    extra = {
        "choice": 'doc_to_text: "{{head}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: 1\nmetric_list: [{metric: '
        "acc}, {metric: acc_norm}]\n",
        "prose": 'doc_to_text: ""\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: byte_perplexity}, {metric: '
        "bits_per_byte}]\n",
        "answer": 'doc_to_text: "{{head}}"\ndoc_to_target: "{{last}}"\ngeneration_kwargs: {until: ["zz"], '
        "max_gen_toks: 9}\nmetric_list: "
        "[{metric: exact_match}]\n",
    }
    for name, kind in KINDS.items():
        head = (
            f"task: tiny_{name}\ntag: tiny\ndataset_path: json\ndataset_kwargs: {{data_files: "
            f"{folder / 'rows.jsonl'}}}\ntest_split: train\n"
        )
        (folder / f"{name}.yaml").write_text(f"{head}output_type: {kind}\n{extra[name]}metadata: {{version: 3.0}}\n")
    return folder


def save_llm(folder, family="llama", begins=False, chat=False):
    """A tiny LLM that, as many do, has several ends of text and a penalty in its generation_config.json. begins: its
    tokenizer begins all texts; chat: it has a template of turns."""
    tokenizer = families.tiny_tokenizer()
    if chat:
        turns = "{% for one in messages %}[{{ one.role }}] {{ one.content }}\n{% endfor %}"
        tokenizer.chat_template = turns + "{% if add_generation_prompt %}[a]{% endif %}"
    if begins:
        tokenizer.add_special_tokens({"bos_token": "<|endoftext|>"})
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
        )
    families.tiny_llm(family).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    GenerationConfig(eos_token_id=[0, 40], repetition_penalty=1.5, do_sample=True, temperature=0.7).save_pretrained(
        folder
    )
    return folder


def said(lm, manager, chat=False) -> dict:
    """All that a model answered, by task."""
    from lm_eval import simple_evaluate

    found = simple_evaluate(lm, tasks=["tiny"], task_manager=manager, bootstrap_iters=0, apply_chat_template=chat)
    return {task: [one["resps"] for one in samples] for task, samples in found["samples"].items()}


@pytest.mark.parametrize(
    ("family", "begins", "chat"), [("llama", True, False), ("gemma2", False, True), ("gpt2", False, False)]
)
def test_a_new_fusion_model_answers_as_lm_evals_own_model_of_the_llm(harness, tasks, tmp_path, family, begins, chat):
    from lm_eval.models.huggingface import HFLM

    llm, manager = save_llm(tmp_path / "llm", family, begins, chat), harness.tasks_in(["tiny"], tasks)
    theirs = HFLM(pretrained=str(llm), device="cpu", batch_size=3)
    fusion.from_llm(llm, patch_size=4).save_pretrained(tmp_path / "new")
    model = fusion.load(tmp_path / "new")
    ours = harness.speaker(model.model, model.processor.tokenizer, 3, text.generation_of(str(llm)))
    assert theirs.max_length == ours.max_length and theirs.prefix_token_id == ours.prefix_token_id
    before, after = said(theirs, manager, chat), said(ours, manager, chat)
    assert before == after and set(before) == {f"tiny_{name}" for name in KINDS}  # bit for bit
    assert len({str(one) for one in before["tiny_answer"]}) > 1 and all(one[0][0] < 0 for one in before["tiny_prose"])


def test_before_and_after(harness, tasks, tmp_path, capsys):
    llm = save_llm(tmp_path / "llm")
    model = fusion.from_llm(llm, patch_size=4)
    model.save_pretrained(tmp_path / "same")
    asked = ["--tasks", "tiny", "--include-path", tasks, "--against", llm, "--batch-size", 3, "--device", "cpu"]
    assert run(tmp_path / "same", *asked, "-o", tmp_path / "out") == 0
    told = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["verdict"] for one in told["figures"]] == ["the same"] * 5 and {
        one["difference"] for one in told["figures"]
    } == {0}
    assert (
        told["tasks"]["tiny_prose"] == {"version": 3.0, "shots": 0}
        and told["versions"]["lm_eval"]
        and told["notes"] == []
    )
    prose = next(one for one in told["figures"] if one["metric"] == "bits_per_byte")
    assert (
        prose["count"] == len(TEXTS_READ) and prose["after"]["low"] < prose["after"]["value"] < prose["after"]["high"]
    )
    assert "the same" in capsys.readouterr().out and "bits_per_byte" in (tmp_path / "out" / "report.html").read_text()

    # One that forgot is told apart; of a run that was stopped behind the LLM's part, the rest is asked, and what is
    # there stays.
    with torch.no_grad():
        for weights in model.model.llm.model.layers.parameters():
            weights.mul_(1 + 0.5 * torch.randn_like(weights))
    model.save_pretrained(tmp_path / "same")
    kept = tmp_path / "out" / "asked" / "before" / "tiny.json"
    shutil.rmtree(tmp_path / "out" / "asked" / "after")
    (tmp_path / "llm" / "model.safetensors").unlink()  # it is not read again
    when = kept.stat().st_mtime_ns
    assert run(tmp_path / "same", *asked, "-o", tmp_path / "out") == 0 and kept.stat().st_mtime_ns == when
    spoiled = json.loads((tmp_path / "out" / "results.json").read_text())["figures"]
    assert {one["difference"] != 0 for one in spoiled if one["task"] == "tiny_prose"} == {True}
    assert [one["before"] for one in spoiled] == [one["before"] for one in told["figures"]]

    # Nothing is written over, and what cannot be asked is one line.
    for words, line in (
        ([*asked, "--limit", 2, "-o", tmp_path / "out"], "holds results of another model or other settings"),
        (["--tasks", "tinny", "--include-path", tasks, "-o", tmp_path / "no"], "tinny: no such task"),
        (["--tasks", "tiny", "--include-path", tmp_path / "no", "-o", tmp_path / "no"], "not a folder"),
        (["--tasks", ",", "-o", tmp_path / "no"], "name at least one"),
        (["--tasks", "tiny", "--limit", 0, "-o", tmp_path / "no"], "give 1 or more"),
        ([*asked, "--apply-chat-template", "-o", tmp_path / "no"], "has no chat template"),
    ):
        assert run(tmp_path / "same", *words) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and line in error
    assert not (tmp_path / "no").exists()
