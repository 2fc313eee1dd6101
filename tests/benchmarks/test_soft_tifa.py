"""Soft-TIFA: spellings of an answer, probabilities equal to the judge's own, resuming, and one-line errors."""

import json

import pytest
import torch
from PIL import Image

from fusion.evaluation.benchmarks import draw
from fusion.evaluation.benchmarks import official_scores as read
from fusion.evaluation.benchmarks import soft_tifa as tifa
from fusion.evaluation.benchmarks.judges.vqa import VisionLanguageModel, first_tokens, load_judge
from fusion.evaluation.benchmarks.soft_tifa import probabilities, spellings
from tests.support import judges
from tests.support.judges import error

ROWS = [
    {
        "prompt": "two cats",
        "atom_count": 2,
        "vqa_list": [["How many cats?", "two"], ["Any cats?", "Yes"]],
        "skills": ["count", "object"],
    },
    {"prompt": "a hat", "atom_count": 1, "vqa_list": [["Any hat?", "Yes"]], "skills": ["object"]},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "geneval2_data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def images(data, subject, tmp_path):
    draw.main(["stub", "geneval2", "--prompts", str(data), "-o", str(tmp_path / "out"), "--size", "16"])
    return tmp_path / "out" / "image_paths.json"


@pytest.fixture
def judge(tmp_path):
    torch.manual_seed(0)
    return str(judges.save_vlm(tmp_path / "llava"))


def scored(images, data, judge, tmp_path) -> int:
    return tifa.main(
        [
            str(images),
            "--data",
            str(data),
            "--judge",
            judge,
            "-o",
            str(tmp_path / "score_lists.json"),
            "--device",
            "cpu",
        ]
    )


def test_an_answer_is_spelled_in_several_ways():
    assert spellings("Yes") == [" Yes", " yes", "Yes", "yes"]
    assert spellings("three") == [" 3", " Three", " three", "3", "Three", "three"]


def test_probabilities_are_the_judge_s_own(images, judge):
    model = load_judge(judge, "cpu")
    path = images.parent / "00000.png"
    found = probabilities(model, path, ROWS[0]["vqa_list"])
    for (question, answer), probability in zip(ROWS[0]["vqa_list"], found, strict=True):
        row = model.beginnings(Image.open(path), [f"{question} Answer in one word."])[0]
        ids = first_tokens(model.processor.tokenizer, spellings(answer))
        assert len(ids) == len(set(ids)) and not set(ids) & set(model.processor.tokenizer.all_special_ids)
        assert probability == pytest.approx(sum(row[one].item() for one in ids), rel=1e-4)  # alone as beside others
        assert 0 < probability < 1


def test_what_is_written_is_what_the_official_analysis_reads(images, data, judge, tmp_path, capsys):
    assert scored(images, data, judge, tmp_path) == 0
    lists = json.loads((tmp_path / "score_lists.json").read_text())
    assert [len(one) for one in lists] == [2, 1]
    assert read.geneval2([tmp_path / "score_lists.json"], data)[0].value == pytest.approx(
        ((lists[0][0] * lists[0][1]) ** 0.5 + lists[1][0]) / 2
    )
    assert "Soft-TIFA GM" in capsys.readouterr().out


def test_what_was_judged_is_not_judged_again(images, data, judge, tmp_path, monkeypatch):
    scored(images, data, judge, tmp_path)
    whole = (tmp_path / "score_lists.json").read_text()
    asked = []
    beginnings = VisionLanguageModel.beginnings
    monkeypatch.setattr(
        VisionLanguageModel,
        "beginnings",
        lambda self, image, texts: asked.append(texts) or beginnings(self, image, texts),
    )
    (tmp_path / "score_lists.json").unlink()
    assert (
        scored(images, data, judge, tmp_path) == 0
        and asked == []
        and (tmp_path / "score_lists.json").read_text() == whole
    )
    (tmp_path / "score_lists.json").unlink()
    Image.new("RGB", (16, 16)).save(images.parent / "00001.png")  # another image
    assert scored(images, data, judge, tmp_path) == 0 and asked == [["Any hat? Answer in one word."]]


def test_a_mistake_is_one_line(images, data, judge, tmp_path, capsys):
    assert scored(data, data, judge, tmp_path) == 1 and "give image_paths.json" in error(capsys)
    assert scored(images, data, str(tmp_path / "none"), tmp_path) == 1 and "no judge there" in error(capsys)
    (images.parent / "00001.png").unlink()
    assert scored(images, data, judge, tmp_path) == 1 and "1 of 2 prompts have no image, 'a hat'" in error(capsys)
    data.write_text(json.dumps(ROWS[0] | {"vqa_list": [["How many cats?"], ["Any cats?", "Yes"]]}) + "\n")
    assert scored(images, data, judge, tmp_path) == 1 and "line 1: not one of geneval2_data.jsonl" in error(capsys)
    assert not (tmp_path / "score_lists.json").exists()
