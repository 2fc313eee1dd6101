"""What official judges wrote, read into scores: values by hand, and one line where an answer is no score."""

import csv
import json

import pytest

from fusion.evaluation.benchmarks import edit_ratings as marks
from fusion.evaluation.benchmarks import official_scores as read
from tests.support.judges import error


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def scores(tmp_path, *words) -> dict:
    """By name: value and count."""
    out = tmp_path / "results.json"
    out.unlink(missing_ok=True)
    assert read.main([*map(str, words), "-o", str(out)]) == 0
    return {
        row["name"]: (pytest.approx(row["value"], abs=1e-12), row["count"])
        for row in json.loads(out.read_text())["scores"]
    }


def refused(capsys, tmp_path, *words) -> str:
    assert read.main([*map(str, words), "-o", str(tmp_path / "refused.json")]) == 1
    assert not (tmp_path / "refused.json").exists()
    return error(capsys)


# ---- T2I-CompBench ----


def test_answers_are_numbers_or_numbers_in_quotes(tmp_path):
    blip = save(
        tmp_path / "color/annotation_blip/vqa_result.json",
        [{"question_id": 0, "answer": "0.2500"}, {"question_id": 1, "answer": "0.7500"}],
    )
    unidet = save(
        tmp_path / "spatial/labels/annotation_obj_detection_2d/vqa_result.json", [{"question_id": 5, "answer": 0.1}]
    )
    assert scores(tmp_path, "t2i", blip, unidet) == {str(blip.parent): (0.5, 2), str(unidet.parent): (0.1, 1)}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question_id": 0, "answer": "yes"}], "answer 0: not one of vqa_result.json"),
        ([{"question_id": 0, "answer": 1}, {"question_id": 0, "answer": 0}], "image 0 is scored twice"),
        ([{"question_id": 0, "answer": "nan"}], "image 0 is scored nan"),
        ([], "0 images are scored"),
        ("[", "not JSON"),
    ],
)
def test_answers_that_are_no_scores_are_refused(rows, said, tmp_path, capsys):
    assert said in refused(capsys, tmp_path, "t2i", save(tmp_path / "vqa_result.json", rows))


def test_all_images_that_were_drawn_are_scored(tmp_path, capsys):
    file = save(tmp_path / "color/annotation_blip/vqa_result.json", [{"question_id": 0, "answer": 1}])
    save(tmp_path / "color.asked.json", {"count": 2, "n": 10})
    assert "1 images are scored, and 20 were drawn" in refused(capsys, tmp_path, "t2i", file)


# ---- WISE ----


def wise_lines(numbers, given) -> str:
    return "".join(
        json.dumps(dict(zip(("prompt_id", *read.ASPECTS), (number, *given(number)), strict=True))) + "\n"
        for number in numbers
    )


def test_wiscore_by_hand(tmp_path):
    file = save(
        tmp_path / "scores.jsonl",
        wise_lines([1, 400, 401, 567, 568, 700], lambda number: (2, 1, 0) if number == 1 else (0, 0, 1)),
    )
    low = 0.1 / 2
    assert scores(tmp_path, "wise", file) == {
        "culture": ((0.8 + low) / 2, 2),
        "time": (low, 2),
        "space": (low, 2),
    }  # and no overall


def test_the_overall_score_weighs_categories_by_their_prompts(tmp_path):
    parts = [range(1, 401), range(401, 701), range(701, 1001)]
    files = [
        save(tmp_path / f"{place}.jsonl", wise_lines(numbers, lambda number: (2, 2, 2) if number <= 567 else (0, 0, 0)))
        for place, numbers in enumerate(parts)
    ]
    found = scores(tmp_path, "wise", *files)
    assert found["overall"] == (0.4 * 1 + 0.167 * 1, 1000)
    assert [found[name][1] for name in read.WISE] == [400, 167, 133, 100, 100, 100]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (wise_lines([8], lambda _: (999, 999, 999)), "line 1: prompt 8 has 999.0, 999.0, 999.0, not marks from 0 to 2"),
        (wise_lines([8, 8], lambda _: (1, 1, 1)), "line 2: prompt 8 is scored twice"),
        (wise_lines([1001], lambda _: (1, 1, 1)), "prompt 1001"),
        ('{"prompt_id": 1}\n', "line 1: not what gpt_eval.py writes"),
        ("", "no scores in it"),
    ],
)
def test_marks_that_are_none_are_refused(lines, said, tmp_path, capsys):
    assert said in refused(capsys, tmp_path, "wise", save(tmp_path / "scores.jsonl", lines))


# ---- GenEval 2 ----


@pytest.fixture
def atoms(tmp_path):
    rows = [
        {
            "prompt": "two cats",
            "atom_count": 2,
            "vqa_list": [["How many cats?", "two"], ["Any cats?", "Yes"]],
            "skills": ["count", "object"],
        },
        {"prompt": "a cat", "atom_count": 1, "vqa_list": [["Any cat?", "Yes"]], "skills": ["object"]},
    ]
    return save(tmp_path / "geneval2_data.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_soft_tifa_by_hand(atoms, tmp_path):
    found = scores(tmp_path, "geneval2", save(tmp_path / "score_lists.json", [[0.25, 1.0], [0.5]]), "--data", atoms)
    assert found == {
        "Soft-TIFA GM": (0.5, 2),
        "Soft-TIFA AM": ((0.625 + 0.5) / 2, 2),
        "atoms: count": (0.25, 1),
        "atoms: object": (0.75, 2),
        "prompts of 1 atom": (0.5, 1),
        "prompts of 2 atoms": (0.5, 1),
    }
    nothing = scores(tmp_path, "geneval2", save(tmp_path / "score_lists.json", [[0.0, 1.0], [1]]), "--data", atoms)
    assert nothing["Soft-TIFA GM"] == (0.5, 2)


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ([[0.5, 0.5]], "not a list for each of the 2 prompts"),
        ([[0.5], [0.5]], "prompt 0: not 2 probabilities"),
        ([[0.5, 0.5], [1.5]], "prompt 1: not 1 probabilities"),
        ({"two cats": [1, 1]}, "not a list for each"),
    ],
)
def test_lists_that_do_not_fit_are_refused(lists, said, atoms, tmp_path, capsys):
    assert said in refused(capsys, tmp_path, "geneval2", save(tmp_path / "score_lists.json", lists), "--data", atoms)


def test_the_questions_are_needed(atoms, tmp_path, capsys):
    assert "--data geneval2_data.jsonl" in refused(
        capsys, tmp_path, "geneval2", save(tmp_path / "score_lists.json", [])
    )
    assert "--data is of geneval2 and imgedit" in refused(capsys, tmp_path, "wise", atoms, "--data", atoms)


# ---- edits ----


@pytest.fixture
def edits(tmp_path):
    rows = {
        "1": {"id": "a.jpg", "prompt": "Add a hat", "edit_type": "add"},
        "2": {"id": "b.jpg", "prompt": "Add a cat", "edit_type": "add"},
        "3": {"id": "c.jpg", "prompt": "Make it red", "edit_type": "style"},
    }
    return save(tmp_path / "basic_edit.json", rows)


def test_imgedit_by_hand(edits, tmp_path):
    said = {
        "1": "Brief reasoning: a hat is there.\nPrompt Compliance: 5\nVisual Naturalness: 4\nPhysical Integrity: 4",
        "2": "A: 1\nB: 1\nC: 2",
        "3": "Style: 3 \nNote: at 12: 30, rated",
    }
    found = scores(tmp_path, "imgedit", save(tmp_path / "result.json", said), "--data", edits)
    add = (13 / 3 + 4 / 3) / 2
    assert found == {"add": (add, 2), "style": (3.0, 1), "overall": ((add + 3) / 2, 3)}


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ({"1": "A: 5", "2": "I cannot see it.", "3": "A: 5"}, "edit 2 has no marks from 1 to 5 ('I cannot see it.')"),
        ({"1": "A: 5", "2": {"error": "timeout"}, "3": "A: 5"}, "edit 2 has no marks"),
        ({"1": "A: 6", "2": "A: 5", "3": "A: 5"}, "edit 1 has no marks"),
        ({"1": "A: 5"}, "2 of 3 edits are not judged, 2 among them"),
    ],
)
def test_edits_without_marks_are_named(said, line, edits, tmp_path, capsys):
    assert line in refused(capsys, tmp_path, "imgedit", save(tmp_path / "result.json", said), "--data", edits)


def gedit_file(path, rows, column="sementics_score"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                "key",
                "edited_image",
                "instruction",
                column,
                "quality_score",
                "intersection_exist",
                "instruction_language",
            ]
        )
        writer.writerows(
            [
                ["k", "k.png", "Make it, red", semantics, quality, both, language]
                for semantics, quality, both, language in rows
            ]
        )
    return path


def test_gedit_by_hand(tmp_path):
    colour = gedit_file(
        tmp_path / "it_color_alter_all_vie_score.csv", [(9, 4, True, "en"), (1, 4, False, "en"), (5, 5, False, "cn")]
    )
    removed = gedit_file(tmp_path / "it_subject-remove_all_vie_score.csv", [(0, 8, True, "en")], "semantics_score")
    found = scores(tmp_path, "gedit", colour, removed)
    assert found["en, all, color_alter: overall"] == ((6 + 2) / 2, 2) and found["en, all, subject-remove: overall"] == (
        0.0,
        1,
    )
    assert found["en, all: semantics"] == ((5 + 0) / 2, 3) and found["en, all: quality"] == ((4 + 8) / 2, 3)
    assert found["en, all: overall"] == ((4 + 0) / 2, 3)
    assert found["en, intersection: overall"] == ((6 + 0) / 2, 2) and found["cn, all: overall"] == (5.0, 1)


def test_rows_without_group_language_or_marks_are_refused(tmp_path, capsys):
    assert "row 1" in refused(capsys, tmp_path, "gedit", gedit_file(tmp_path / "scores.csv", [(1, 1, True, "en")]))
    half = [(1, 1, True, "en"), ("", 1, True, "en")]
    assert "row 2" in refused(capsys, tmp_path, "gedit", gedit_file(tmp_path / "it_ps_human_all_vie_score.csv", half))
    assert "row 1" in refused(
        capsys, tmp_path, "gedit", gedit_file(tmp_path / "it_ps_human_en_vie_score.csv", [(1, 11, True, "en")])
    )


def test_nothing_is_written_over(edits, tmp_path, capsys):
    out = save(tmp_path / "there.json", "{}")
    assert (
        read.main(["wise", str(edits), "-o", str(out)]) == 1
        and "is there already" in error(capsys)
        and out.read_text() == "{}"
    )


def kris_file(tmp_path, category, marks, kinds=("consistency", "quality", "instruction")):
    rows = {
        str(place): {f"{kind}_score": mark for kind, mark in zip(kinds, one, strict=True)}
        for place, one in enumerate(marks)
    }
    return save(
        tmp_path / category / "metrics.json", {key: {"instruction": "Do it", **row} for key, row in rows.items()}
    )


def test_kris_by_hand(tmp_path):
    colour = kris_file(tmp_path, "color_change", [(5, 2, 1), (4, 1, 1)])
    biology = kris_file(tmp_path, "biology", [(5, 5, 5, 1)], marks.KINDS)
    found = scores(tmp_path, "kris", colour, biology)
    assert found["attribute perception: consistency"] == (90.0, 2) and found["attribute perception"] == (20 * 14 / 6, 6)
    assert (
        found["natural science: knowledge"] == (20.0, 1)
        and found["natural science"] == (80.0, 4)
        and "overall" not in found
    )


def test_kris_is_scored_as_a_whole_when_all_categories_are_judged(tmp_path):
    files = []
    for dimension, categories in marks.KRIS.items():
        kinds = marks.KINDS if dimension in marks.KNOWING else marks.KINDS[:3]
        files += [
            kris_file(tmp_path, category, [(5 if dimension in marks.KNOWING else 1,) * len(kinds)], kinds)
            for category in categories
        ]
    assert len(files) == 20
    assert scores(tmp_path, "kris", *files)["overall"] == ((10 * 4 * 100 + 10 * 3 * 20) / 70, 70)


def test_kris_without_a_mark_or_a_category_is_refused(tmp_path, capsys):
    assert "edit 0 has knowledge_score None" in refused(
        capsys, tmp_path, "kris", kris_file(tmp_path, "physics", [(5, 5, 5)])
    )
    assert "not a category" in refused(capsys, tmp_path, "kris", kris_file(tmp_path, "colours", [(5, 5, 5)]))
    assert "not metrics.json" in refused(capsys, tmp_path, "kris", save(tmp_path / "humanities/metrics.json", []))


# ---- OneIG-Bench ----

ALIGNED = ",ours,theirs\nanime_000,0.5,1.0\nanime_001,1.0,0.25\nhuman_000,0.0,0.5\n"


def test_oneig_by_hand(tmp_path):
    aligned = save(tmp_path / "alignment_prompt_score_EN_2025-06-01_10-00-00.csv", ALIGNED)
    style = save(tmp_path / "style_prompt_score_ZH_2025-06-01_10-00-00.csv", ",ours\n000,0.25\n001,0.75\n")
    text = save(
        tmp_path / "text_score_EN_2025-06-01_10-00-00.csv",
        ",ED,CR,WAC,text score\nours,40,0.25,0.5,0.85\nfar,250.0,0.0,0.5,0.5\n",
    )
    found = scores(tmp_path, "oneig", aligned, style, text)
    assert found == {
        "alignment, EN, ours": (0.5, 3),
        "alignment, EN, ours: anime": (0.75, 2),
        "alignment, EN, ours: human": (0.0, 1),
        "alignment, EN, theirs": (1.75 / 3, 3),
        "alignment, EN, theirs: anime": (0.625, 2),
        "alignment, EN, theirs: human": (0.5, 1),
        "style, ZH, ours": (0.5, 2),
        "text, EN, ours": (1 - 0.4 * 0.75 * 0.5, None),
        "text, EN, far": (0.5, None),
    }
    nearer = save(tmp_path / "text_score_ZH_2025.csv", ",ED,CR,WAC,text score\nours,40,0.25,0.5,0.7\n")
    assert scores(tmp_path, "oneig", nearer) == {"text, ZH, ours": (1 - 0.8 * 0.75 * 0.5, None)}


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("alignment_prompt_score_EN_1.csv", ",ours\nanime_000,\n", "prompt anime_000 of ours has no score"),
        ("alignment_prompt_score_EN_1.csv", ",ours\nanime_000,nan\n", "prompt anime_000 of ours has no score"),
        ("alignment_prompt_score_EN_1.csv", "", "not a table"),
        ("alignment_prompt_score_EN_1.csv", ",ours\nanime_000,1,2\n", "not a table"),
        ("alignment_score_EN_1.csv", ",alignment\nours,0.5\n", "not a file of scores"),
        ("text_score_EN_1.csv", ",ED,CR\nours,1,0\n", "has no column WAC"),
    ],
)
def test_tables_that_do_not_say_all_are_refused(name, table, said, tmp_path, capsys):
    assert said in refused(capsys, tmp_path, "oneig", save(tmp_path / name, table))
