"""Questions about images: checked first, answered in text, resumed where stopped; and asked by lmms-eval."""

import json
import sys

import pytest
from PIL import Image

import fusion
from fusion.evaluation.benchmarks.understanding import lmms, understanding
from fusion.evaluation.benchmarks.understanding.asking import cut, prompt_of, together, wanted
from fusion.worlds.shapes import evaluation_questions

A, B, C = (Image.new("RGB", (32, 32), colour) for colour in ("red", "green", "blue"))

# ---- prompts ----


@pytest.mark.parametrize(
    ("text", "images", "prompt"),
    [
        ("What is it?", [], ["What is it?"]),
        ("What is it?", [A, B], [A, B, "What is it?"]),
        ("<image>\nWhat is it?", [A], [A, "\nWhat is it?"]),
        ("Is <image> like <image>?", [A, B], ["Is ", A, " like ", B, "?"]),
        ("Is <image 2> like <image 1>? In <image 2> ...", [A, B], ["Is ", B, " like ", A, "? In <image 2> ..."]),
        ("Is <image> it?", [A, B, C], [B, C, "Is ", A, " it?"]),
        ("What does <image 3> or <image 0> mean?", [A], [A, "What does <image 3> or <image 0> mean?"]),
        ("What does <image> mean?", [], ["What does <image> mean?"]),
    ],
)
def test_images_stand_where_the_text_names_them(text, images, prompt):
    assert prompt_of(text, images) == prompt


def test_a_text_is_cut_at_the_first_of_its_ends():
    assert (
        cut("one\ntwo. three", ["three", "\n", "."]) == "one"
        and cut("one", ["", "x"]) == "one"
        and cut("x one", ["x"]) == ""
    )


# ---- the program ----

COUNT = 16


@pytest.fixture
def asked(tmp_path):
    """A file of questions of the built-in world with their answers, and its images in a folder beside it."""
    (tmp_path / "images").mkdir()
    rows = []
    for number, one in enumerate(evaluation_questions(COUNT)):
        Image.fromarray(one.image).save(tmp_path / "images" / f"{number}.png")
        rows.append(
            {
                "id": number,
                "text": one.question.text,
                "images": [f"images/{number}.png"],
                "answer": one.question.answer,
            }
        )
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(file, *words) -> int:
    return understanding.main(
        ["shapes", str(file), "-o", str(file.parent / "out" / "answers.jsonl"), "--dtype", "fp32", *map(str, words)]
    )


def test_questions_are_answered_and_gone_on_with(asked, tmp_path, capsys):
    words, out = ("max_new_tokens=12", "--batch", 5), tmp_path / "out" / "answers.jsonl"
    assert run(asked, *words) == 0 and f"{COUNT} of {COUNT} questions answered" in capsys.readouterr().out
    whole = out.read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert [{name: value for name, value in row.items() if name != "response"} for row in rows] == list(
        map(json.loads, asked.open())
    )
    assert sum(row["response"] == row["answer"] for row in rows) >= 0.8 * COUNT
    one = evaluation_questions(COUNT)[3]
    assert (
        fusion.load("shapes", dtype="fp32").describe(one.image, one.question.text, max_new_tokens=12)
        == rows[3]["response"]
    )

    lines = whole.splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:7]) + lines[7][:9])  # a process was killed while it wrote
    assert (
        run(asked, *words) == 0
        and f"{COUNT - 7} of {COUNT} questions answered; 7 were there" in capsys.readouterr().out
    )
    assert out.read_bytes() == whole
    assert run(asked, *words) == 0 and "0 of 16 questions answered; 16 were" in capsys.readouterr().out

    # Nothing of another model, other sampling parameters, other questions or another program is written over.
    assert run(asked, "max_new_tokens=11", "--batch", 5) == 1 and "another params" in capsys.readouterr().err
    asked.write_text(asked.read_text().replace('"id": 4', '"id": 40'))
    assert run(asked, *words) == 1 and "another questions" in capsys.readouterr().err
    asked.write_text(asked.read_text().replace('"id": 40', '"id": 4'))
    out.write_bytes(b"".join([*lines[:2], lines[3]]))
    assert run(asked, *words) == 1 and "line 3: not the answer to that question" in capsys.readouterr().err
    (tmp_path / "out" / "answers.jsonl.asked.json").unlink()
    assert run(asked, *words) == 1 and "holds something else" in capsys.readouterr().err
    assert out.read_bytes() == b"".join([*lines[:2], lines[3]])


BAD = {
    '{"images": []}': 'has no "text"',
    "{": "is not JSON",
    '["text"]': 'has no "text"',
    '{"text": "a", "images": "b.png"}': 'has "images" that are no list of paths',
    '{"text": "a", "images": ["no.png"]}': "names no.png",
    '{"text": "a", "response": "b"}': 'has a "response" already',
}


def test_bad_lines_are_named_before_anything_is_asked(asked, tmp_path, capsys):
    good = asked.read_text().splitlines()
    first, *others = BAD
    asked.write_text("\n".join([good[0], "", first, good[1], *others]))
    assert run(asked) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and 'lines 3, 5, 6, 7, 8, 9 cannot be used: line 3 has no "text"' in error
    for line, said in BAD.items():
        asked.write_text(f"{good[0]}\n{line}\n")
        assert run(asked) == 1 and f"line 2 cannot be used: line 2 {said}" in capsys.readouterr().err
    asked.write_text("\n \n")
    assert run(asked) == 1 and "no questions in it" in capsys.readouterr().err
    assert run(tmp_path / "no.jsonl") == 1 and "cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_image_is_named_with_its_line_and_what_came_before_stays(asked, tmp_path, capsys):
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    rows = asked.read_text().splitlines(keepends=True)
    asked.write_text("\n" + "".join(rows[:4]))
    assert run(asked, "max_new_tokens=2", "--batch", 1) == 1
    assert "line 4: " in (error := capsys.readouterr().err.splitlines()[-1]) and "2.png: is not an image" in error
    Image.fromarray(evaluation_questions(3)[2].image).save(tmp_path / "images" / "2.png")
    assert run(asked, "max_new_tokens=2") == 0 and "2 of 4 questions answered; 2 were there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["guidance=2"], "answers are words"),
        (["temperature=hot"], "sampling parameters of words are numbers"),
        (["top_p=0"], "top_p"),
        (["--batch", 0], "--batch"),
    ],
)
def test_params_of_images_and_bad_ones_are_refused(asked, words, said, capsys):
    assert run(asked, *words) == 1 and said in capsys.readouterr().err


# ---- lmms-eval ----


def test_what_a_task_wants():
    assert wanted({}) == ({"max_new_tokens": 256, "temperature": 0.0, "top_p": 1.0}, ())
    asked = {"max_new_tokens": 16, "temperature": 0.7, "top_p": None, "num_beams": 1, "until": ["\n\n", "Q:"]}
    assert wanted(asked) == ({"max_new_tokens": 16, "temperature": 0.7, "top_p": 1.0}, ("Q:",))
    assert wanted(asked | {"do_sample": False, "until": "Q:"})[0]["temperature"] == 0 and wanted({"until": "Q:"})[
        1
    ] == ("Q:",)
    with pytest.raises(ValueError, match="num_beams=3"):
        wanted({"num_beams": 3})
    assert [list(one) for one in together("aaabaa", 2)] == [[0, 1], [2], [3], [4, 5]] and not list(together("", 2))


TASK = """task: tiny_shapes
dataset_path: json
dataset_kwargs: {{data_files: {file}}}
test_split: train
output_type: generate_until
doc_to_visual: !function utils.visuals
doc_to_text: !function utils.text
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 12}}
process_results: !function utils.results
metric_list: [{{metric: right, aggregation: mean, higher_is_better: true}}]
"""
UTILS = """from pathlib import Path

from PIL import Image


def visuals(doc):
    return [Image.open(Path(__file__).parents[2] / path) for path in doc["images"]]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]


def results(doc, results):
    return {"right": float(results[0] == doc["answer"])}
"""


def test_without_lmms_eval_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    assert lmms.main(["--model", "fusion"]) == 1 and "pip install lmms_eval" in capsys.readouterr().err


def test_lmms_eval_asks_it(asked, tmp_path):
    pytest.importorskip("lmms_eval", reason="lmms_eval is not installed: pip install lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    from fusion.evaluation.benchmarks.understanding import lmms_model as looker

    looker.register()
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(TASK.format(file=asked))
    (folder / "utils.py").write_text(UTILS)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    how = {"batch_size": 5, "device": "cpu", "task_manager": manager, "log_samples": True, "bootstrap_iters": 0}
    found = simple_evaluate("fusion", "pretrained=shapes,dtype=fp32", tasks=["tiny_shapes"], **how)
    assert run(asked, "max_new_tokens=12") == 0
    alone = [json.loads(line)["response"] for line in (tmp_path / "out" / "answers.jsonl").open()]
    assert [one["filtered_resps"] for one in found["samples"]["tiny_shapes"]] == [[text] for text in alone]
    right = [said == one.question.answer for said, one in zip(alone, evaluation_questions(COUNT), strict=True)]
    assert found["results"]["tiny_shapes"]["right,none"] == sum(right) / COUNT >= 0.8
