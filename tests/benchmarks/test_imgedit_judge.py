"""ImgEdit's edits before a judge: what it is shown, which answers are kept, scores, and one-line errors."""

import json

import pytest
import torch
from PIL import Image

from fusion.evaluation.benchmarks import imgedit
from tests.benchmarks.test_served_judge import Endpoint, endpoint  # noqa: F401 (a fixture)
from tests.support import judges
from tests.support.judges import error

ROWS = {
    "10": {"id": "animal/a.png", "prompt": "Add a hat", "edit_type": "add"},
    "11": {"id": "animal/b.png", "prompt": "Make it ink", "edit_type": "style"},
}


@pytest.fixture
def folder(tmp_path):
    for name, size in {
        "images/animal/a.png": (8, 6),
        "images/animal/b.png": (6, 6),
        "edits/10.png": (4, 2),
        "edits/11.png": (2, 2),
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(tmp_path / name)
    (tmp_path / "basic_edit.json").write_text(json.dumps(ROWS))
    (tmp_path / "prompts.json").write_text(
        json.dumps({"add": "Was <edit_prompt> done?", "style": "In style: <edit_prompt>?"})
    )
    return tmp_path


def scored(folder, *words) -> int:
    paths = {"--data": "basic_edit.json", "--images": "images", "--prompts": "prompts.json", "-o": "result.json"}
    return imgedit.main(
        [
            str(folder / "edits"),
            *(word for name, path in paths.items() for word in (name, str(folder / path))),
            *map(str, words),
        ]
    )


def answer(endpoint: Endpoint, marks: dict[str, str]):  # noqa: F811
    endpoint.reply = lambda text: (
        200,
        {"choices": [{"message": {"content": next(said for words, said in marks.items() if words in text)}}]},
    )


def test_a_server_sees_the_edit_and_its_marks_are_scored(folder, endpoint, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr("fusion.evaluation.benchmarks.judges.server.Server.at_once", 1)
    answer(endpoint, {"Add a hat": "Compliance: 5\nQuality: 4", "Make it ink": "Compliance: 2"})
    assert scored(folder, "--judge", endpoint.url) == 0
    told = capsys.readouterr().out
    assert "ImgEdit, judged by served seer: 2 edits" in told and "overall" in told and "3.2500" in told
    assert json.loads((folder / "result.json").read_text()) == {
        "10": "Compliance: 5\nQuality: 4",
        "11": "Compliance: 2",
    }
    content = endpoint.asked[0]["messages"][0]["content"]
    assert content[0]["text"] == "Was Add a hat done?" and [part["type"] for part in content] == [
        "text",
        "image_url",
        "image_url",
    ]
    assert endpoint.asked[0]["max_tokens"] == 512
    (folder / "result.json").unlink()
    Image.new("RGB", (2, 2), "red").save(folder / "edits/11.png")  # the other is not asked about again
    assert scored(folder, "--judge", endpoint.url) == 0 and len(endpoint.asked) == 3


def test_a_judge_without_marks_is_named_and_its_words_are_kept(folder, endpoint, capsys):  # noqa: F811
    answer_all = {"choices": [{"message": {"content": "I would rather not."}}]}
    endpoint.reply = lambda _: (200, answer_all)
    assert scored(
        folder, "--judge", endpoint.url
    ) == 1 and "edit 10 has no marks from 1 to 5 ('I would rather not.')" in error(capsys)
    assert (
        "I would rather not." in (folder / "result.answers.jsonl").read_text() and not (folder / "result.json").exists()
    )
    answer(endpoint, {"Add a hat": "Compliance: 5", "Make it ink": "Compliance: 2"})
    assert scored(folder, "--judge", endpoint.url) == 0 and len(endpoint.asked) == 4  # both again


def test_a_model_of_transformers_is_asked(folder, capsys):
    torch.manual_seed(0)
    judge = judges.save_vlm(folder / "llava")
    assert scored(folder, "--judge", judge, "--device", "cpu", "--length", 4) == 1 and "has no marks" in error(
        capsys
    )  # it talks nonsense
    assert len((folder / "result.answers.jsonl").read_text().splitlines()) == 2


def test_a_mistake_is_one_line(folder, endpoint, capsys):  # noqa: F811
    (folder / "prompts.json").write_text(json.dumps({"add": "Was it done?", "style": "<edit_prompt>"}))
    assert scored(folder, "--judge", endpoint.url) == 1 and "the instruction for add has no <edit_prompt>" in error(
        capsys
    )
    (folder / "prompts.json").write_text(json.dumps({"add": "<edit_prompt>"}))
    assert scored(folder, "--judge", endpoint.url) == 1 and "not the official prompts.json" in error(capsys)
    (folder / "prompts.json").write_text(json.dumps({"add": "<edit_prompt>", "style": "<edit_prompt>"}))
    (folder / "edits/11.png").unlink()
    assert scored(folder, "--judge", endpoint.url) == 1 and "11.png: not there, as 0 others" in error(capsys)
    assert not endpoint.asked and not (folder / "result.json").exists()
    Image.new("RGB", (2, 2)).save(folder / "edits/11.png")
    for text in ("[1]\n", '{"name": "a.png"}\n', "no JSON\n"):
        (folder / "result.answers.jsonl").write_text(text)
        assert scored(folder, "--judge", endpoint.url) == 1 and "not what a judge said" in error(capsys)
        assert (folder / "result.answers.jsonl").read_text() == text
