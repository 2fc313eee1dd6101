"""DPG-Bench: grids, dependent questions, averages by hand, bugs of the official code, judges, one-line errors."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from fusion.evaluation.benchmarks import dpg, draw
from fusion.evaluation.benchmarks.dpg import Answers, images, read_prompts, scores
from fusion.evaluation.benchmarks.dpg_questions import Question, read_questions, share, verdict
from fusion.evaluation.benchmarks.judges import vqa
from fusion.evaluation.benchmarks.judges.vqa import ASKED, yes
from tests.support import judges
from tests.support.judges import error, tree

SIZE = 8
COLUMNS = [
    "item_id",
    "text",
    "keywords",
    "proposition_id",
    "dependency",
    "category_broad",
    "category_detailed",
    "tuple",
    "question_natural_language",
]
CAT, RED, HAT = (
    ("entity - whole (cat)", "Is there a cat?"),
    ("attribute - color (cat, red)", "Is it red?"),
    ("entity - part (hat)", "A hat on it?"),
)
QUESTIONS = [
    ("a", 1, "0", *CAT),
    ("a", 2, "1", *RED),
    ("a", 3, "1, 2", *HAT),
    ("b-2", 1, "0", *CAT),
    ("b-2", 2, "0", *RED),
]


def save_questions(path, rows=QUESTIONS):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(
            [name, "text, with a comma", "", number, parents, "", "", said, words]
            for name, number, parents, said, words in rows
        )
    return path


@pytest.fixture
def questions(tmp_path):
    return save_questions(tmp_path / "questions.csv")


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a", "prompt": "a red cat in a hat"}\n{"id": "b-2", "prompt": "a red cat"}\n')
    return file


def drawn(prompts, out, *words) -> int:
    return draw.main(["stub", "dpg", "--prompts", str(prompts), "-o", str(out), "--size", str(SIZE), *words])


@pytest.fixture
def folder(prompts, subject, tmp_path):
    drawn(prompts, tmp_path / "images")
    return tmp_path / "images"


# ---- prompts and images ----


def test_grids_are_named_by_prompts_and_read_in_order(folder, subject):
    assert list(tree(folder)) == ["a.png", "b-2.png"]
    assert subject.asked == [("a red cat in a hat", seed) for seed in range(4)] + [
        ("a red cat", seed) for seed in range(4, 8)
    ]
    parts = images(folder / "b-2.png", 4)
    alone = judges.Stub().draw(["a red cat"] * 4, range(4, 8), (SIZE, SIZE))
    assert [np.asarray(part).tolist() for part in parts] == [np.asarray(one).tolist() for one in alone]
    grid = Image.open(folder / "b-2.png")
    assert grid.size == (16, 16) and [grid.getpixel(at) for at in ((0, 0), (15, 0), (0, 15), (15, 15))] == [
        one.getpixel((0, 0)) for one in alone
    ]


def test_drawing_goes_on_and_is_shared(folder, prompts, subject, tmp_path):
    whole = tree(folder)
    kept = (folder / "a.png").stat().st_mtime_ns
    (folder / "b-2.png").write_bytes(whole["b-2.png"][:-1])
    subject.asked.clear()
    assert drawn(prompts, folder) == 0 and [seed for _, seed in subject.asked] == [4, 5, 6, 7]
    assert tree(folder) == whole and (folder / "a.png").stat().st_mtime_ns == kept
    for words in (["--shard", "1/2", "--batch", "3"], ["--shard", "0/2"]):
        drawn(prompts, tmp_path / "parts", *words)
    assert tree(tmp_path / "parts") == whole


def test_one_image_a_prompt_is_no_grid(prompts, subject, tmp_path, capsys):
    assert drawn(prompts, tmp_path / "one", "--n", "1") == 0
    assert Image.open(tmp_path / "one/a.png").size == (SIZE, SIZE) and len(images(tmp_path / "one/a.png", 1)) == 1
    assert drawn(prompts, tmp_path / "two", "--n", "2") == 1 and "of one drawing, or of four" in error(capsys)


def test_prompts_are_texts_in_a_folder_too(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/b-2.txt").write_text("a red cat\n")
    (tmp_path / "texts/a.txt").write_text("a hat")
    assert [(one.id, one.text) for one in read_prompts(tmp_path / "texts")] == [("a", "a hat"), ("b-2", "a red cat")]


@pytest.mark.parametrize(
    "lines",
    [
        "",
        "[]",
        '{"id": "a"}',
        '{"id": "../a", "prompt": "x"}',
        '{"id": "a.b", "prompt": "x"}',
        '{"id": 1, "prompt": "x"}\n' * 2,
    ],
)
def test_bad_prompts_are_refused(tmp_path, lines):
    (tmp_path / "prompts.jsonl").write_text(lines)
    with pytest.raises(ValueError, match=r"prompts.jsonl: (not DPG's prompts|no prompts|an image is named)"):
        read_prompts(tmp_path / "prompts.jsonl")


def test_the_official_prompts_are_read(shared_data):
    file = shared_data / "benchmarks" / "dpg" / "prompts.jsonl"
    if not file.is_file():
        pytest.skip(f"no prompts of DPG-Bench at {file}")
    assert len(read_prompts(file)) == 1065


# ---- the rules ----

THREE = {
    1: Question("", (), "entity - whole"),
    2: Question("", (1,), "attribute - color"),
    3: Question("", (1, 2), "entity - part"),
}


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ((1, 1, 1), 3),
        ((0, 1, 1), 0),
        ((1, 0, 1), 1),
        ((1, 1, 0), 2),
        ((0, 0, 0), 0),
        ((1, 0, 0), 1),
        ((0, 1, 0), 0),
        ((0, 0, 1), 0),
    ],
)
def test_a_child_counts_if_all_its_parents_do(said, right):
    assert share(THREE, dict(zip(THREE, map(bool, said), strict=True))) == right / 3


def test_a_grandchild_falls_with_its_grandparent_and_order_is_the_files():
    chain = {1: Question("", (), ""), 2: Question("", (1,), ""), 3: Question("", (2,), "")}
    assert share(chain, {1: False, 2: True, 3: True}) == 0
    backwards = {
        3: chain[3],
        2: chain[2],
        1: chain[1],
    }  # the official code asks whether 2 was yes before 1 makes it none
    assert share(backwards, {1: False, 2: True, 3: True}) == 1 / 3


@pytest.mark.parametrize(
    ("answer", "right"),
    [("yes", 1), ("Yes.", 1), (" YES, it is", 1), ("no", 0), ("yesterday", 0), ("No, yes", 0), ("", 0), ("**Yes**", 1)],
)
def test_an_answer_is_yes_by_its_first_word(answer, right):
    assert yes(answer) == bool(right)


def say(*images: str) -> list[dict[int, str]]:
    """Answers about images, a letter a question."""
    return [
        {number: "yes" if letter == "y" else "no" for number, letter in enumerate(letters, 1)} for letters in images
    ]


def test_averages_by_hand(questions):
    asked = read_questions(questions)
    verdicts = {
        "a": verdict(asked["a"], say("yyy", "nyy", "yny", "yyn")),
        "b-2": verdict(asked["b-2"], say("yy", "yn", "ny", "nn")),
    }
    assert verdicts["a"].images == [1, 0, 1 / 3, 2 / 3] and verdicts["b-2"].images == [1, 0.5, 0.5, 0]
    found = {score.name: score for score in scores(verdicts, asked, official=False)}
    assert found["DPG-Bench"].value == pytest.approx(0.5) and found["DPG-Bench"].count == 2
    # cat: 3 of 4 and 2 of 4; red: 3 of 4 and 2 of 4; hat: 3 of 4; whether parents count is left aside
    expected = {
        "entity": 8 / 12,
        "attribute": 5 / 8,
        "entity - whole": 5 / 8,
        "entity - part": 3 / 4,
        "attribute - color": 5 / 8,
    }
    assert {name: score.value for name, score in found.items() if name != "DPG-Bench"} == pytest.approx(expected)
    official = {score.name: score.value for score in scores(verdicts, asked, official=True)}
    assert official["DPG-Bench"] == pytest.approx(0.5)
    assert (
        official["entity - whole"] == 1 / 2 and official["entity - part"] == 0 and official["entity"] == 1 / 3
    )  # of the last images: yyn and nn


def test_the_official_code_skips_the_first_question(tmp_path):
    independent = save_questions(
        tmp_path / "questions.csv", [("a", 1, "0", *CAT), ("a", 2, "0", *RED), ("b-2", 1, "0", *CAT)]
    )
    assert [list(one) for one in read_questions(independent).values()] == [[1, 2], [1]]
    assert [list(one) for one in read_questions(independent, official=True).values()] == [[2], [1]]
    assert share(read_questions(independent, official=True)["a"], {1: False, 2: True}) == 1


def test_the_official_code_begins_a_prompt_anew(tmp_path):
    apart = save_questions(
        tmp_path / "questions.csv", [("b", 1, "0", *CAT), ("a", 1, "0", *CAT), ("b", 2, "0", *RED), ("a", 2, "0", *RED)]
    )
    assert {name: list(one) for name, one in read_questions(apart).items()} == {"b": [1, 2], "a": [1, 2]}
    assert {name: list(one) for name, one in read_questions(apart, official=True).items()} == {"b": [2], "a": [2]}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no questions in it"),
        ([("a", "first", "0", *CAT)], "question 1: not one of dpg_bench.csv"),
        ([("a", 1, "0", *CAT), ("a", 2, "", *CAT)], "question 2: not one of dpg_bench.csv"),
        ([("a", 1, "0", *CAT), ("a", 2, "7", *RED)], "depends on one that is not there: Is it red"),
    ],
)
def test_bad_questions_are_refused(tmp_path, rows, said):
    with pytest.raises(ValueError, match=said):
        read_questions(save_questions(tmp_path / "questions.csv", rows))


# ---- the command ----


def scored(folder, *words) -> int:
    where = [
        str(folder),
        "--questions",
        str(folder.parent / "questions.csv"),
        "-o",
        str(folder.parent / "results.json"),
    ]
    return dpg.main([*where, *map(str, words)])


def save_answers(path):
    all_yes = Answers("a.png", say("yyy", "yyy", "yyy", "yyy"))
    dpg.write_answers([all_yes, Answers("b-2.png", say("yy", "yn", "ny", "nn"))], path)
    return path


def test_anybodys_answers_are_scored(folder, questions, tmp_path, capsys):
    answers = save_answers(tmp_path / "answers.jsonl")
    assert scored(folder, "--answers", answers) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["scores"][0] | {"low": 0, "high": 0} == {
        "name": "DPG-Bench",
        "value": 0.75,
        "low": 0,
        "high": 0,
        "count": 2,
        "target": None,
    }
    assert found["prompts"]["b-2"] == {"value": 0.5, "images": [1, 0.5, 0.5, 0]} and not found["official"]
    assert "judged by another judge: 2 prompts" in capsys.readouterr().out


def test_official_leaves_out_a_prompt_whose_first_question_is_missed(folder, questions, tmp_path, capsys):
    answers = save_answers(tmp_path / "answers.jsonl")
    assert scored(folder, "--answers", answers, "--official") == 0
    found = json.loads((tmp_path / "results.json").read_text())
    assert list(found["prompts"]) == ["b-2"] and found["scores"][0]["value"] == 0.5
    assert "official slips" in capsys.readouterr().out


class Parrot:
    """Says yes about reddish images, and remembers what it was asked."""

    name = "parrot"

    def __init__(self):
        self.asked = []

    def answers(self, image, questions):
        self.asked.append((image.size, list(questions)))
        return ["Yes." if image.getpixel((0, 0))[0] > 127 else "no"] * len(questions)


def test_a_judge_is_asked_once_about_an_image(folder, questions, tmp_path, monkeypatch):
    parrot = Parrot()
    monkeypatch.setattr(dpg, "judge_of", lambda name, served, device: parrot)
    assert scored(folder, "--judge", "parrot") == 0
    words = [CAT[1], RED[1], HAT[1]]
    assert parrot.asked == [((SIZE, SIZE), words)] * 4 + [((SIZE, SIZE), words[:2])] * 4
    first = json.loads((tmp_path / "results.json").read_text())
    red = [one.getpixel((0, 0))[0] > 127 for one in judges.Stub().draw([""] * 8, range(8), (1, 1))]
    assert (
        first["prompts"]["a"]["images"] == red[:4] and first["prompts"]["b-2"]["images"] == red[4:] and 0 < sum(red) < 8
    )
    (tmp_path / "results.json").unlink()
    assert scored(folder, "--judge", "parrot") == 0 and len(parrot.asked) == 8
    assert json.loads((tmp_path / "results.json").read_text()) == first
    (tmp_path / "results.json").unlink()
    Image.new("RGB", (16, 16), "red").save(folder / "a.png")
    assert scored(folder, "--judge", "parrot") == 0 and len(parrot.asked) == 12
    kept = dpg.read_answers(tmp_path / "results.answers.jsonl")
    assert kept["a.png"].answers == [{1: "Yes.", 2: "Yes.", 3: "Yes."}] * 4 and kept["a.png"].judge == "parrot"
    (tmp_path / "results.json").unlink()
    save_questions(questions, [*QUESTIONS[:-1], ("b-2", 2, "0", *HAT)])
    assert scored(folder, "--answers", tmp_path / "results.answers.jsonl") == 1  # another question than was asked
    assert scored(folder, "--judge", "parrot") == 0 and parrot.asked[12:] == [((SIZE, SIZE), [CAT[1], HAT[1]])] * 4


def test_a_model_of_transformers_is_the_judge(folder, questions, tmp_path, capsys):
    torch.manual_seed(0)
    assert scored(folder, "--judge", judges.save_vlm(tmp_path / "llava"), "--device", "cpu") == 0
    assert "judged by HF llava: 2 prompts" in capsys.readouterr().out
    kept = dpg.read_answers(tmp_path / "results.answers.jsonl")
    assert [len(one.answers) for one in kept.values()] == [4, 4] and all(
        set(said) == {1, 2, 3} for said in kept["a.png"].answers
    )
    judge = vqa.load_judge(str(tmp_path / "llava"), "cpu")
    image = images(folder / "a.png", 4)[0]
    assert judge.answers(image, [CAT[1]]) + judge.answers(image, [RED[1]]) == judge.answers(image, [CAT[1], RED[1]])
    likely = judge.beginnings(image, [ASKED.format(question=CAT[1]), "Is it?"])
    first = judge.processor.tokenizer.decode(likely[0].argmax(), skip_special_tokens=True)
    assert judge.answers(image, [CAT[1]])[0].startswith(first) and likely.sum(1).tolist() == pytest.approx(
        [1, 1], abs=1e-5
    )


def test_a_mistake_is_one_line(folder, questions, tmp_path, capsys):
    answers = save_answers(tmp_path / "answers.jsonl")
    assert scored(folder) == 1 and "give --judge" in error(capsys)
    assert scored(folder, "--judge", tmp_path / "none") == 1 and "no judge there" in error(capsys)
    assert scored(folder, "--judge", judges.save_clip(tmp_path / "clip")) == 1 and "no judge there" in error(capsys)
    assert scored(folder, "--answers", questions) == 1 and "line 1: no answers" in error(capsys)
    assert scored(folder, "--answers", answers, "--n", "1") == 1 and "no answers about 1 images" in error(capsys)
    dpg.write_answers([Answers("a.png", say("yyy", "yyy", "yyy", "yy")), Answers("b-2.png", say(*["yy"] * 4))], answers)
    assert scored(folder, "--answers", answers) == 1 and "a.png: question 3 was not answered" in error(capsys)
    dpg.write_answers([Answers("a.png", say(*["yyy"] * 4), digest="01")], answers)
    assert scored(folder, "--answers", answers) == 1 and "another image, or other questions" in error(capsys)
    (folder / "cat.png").write_bytes(b"")
    assert scored(folder, "--answers", answers) == 1 and "cat.png: no question is about it" in error(capsys)
    (folder / "cat.png").unlink()
    (folder / "b-2.png").rename(folder / "b-2.jpg")
    assert scored(folder, "--answers", answers) == 1 and "b-2.jpg: no question is about it" in error(capsys)
    (folder / "b-2.jpg").unlink()
    assert scored(folder, "--answers", answers) == 1 and "1 of 2 images are missing, b-2.png" in error(capsys)
    assert not (tmp_path / "results.json").exists()


@pytest.mark.parametrize("size", [(16, 12), (15, 15)])
def test_an_image_that_is_no_grid_is_refused(folder, questions, tmp_path, capsys, monkeypatch, size):
    monkeypatch.setattr(dpg, "judge_of", lambda name, served, device: Parrot())
    Image.new("RGB", size).save(folder / "a.png")
    assert scored(folder, "--judge", "parrot") == 1 and f"a.png is {size[0]}x{size[1]}" in error(capsys)
