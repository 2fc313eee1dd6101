"""ImgEdit, GEdit-Bench and KRIS-Bench: edits get the official names, and only missing ones are made."""

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from fusion.evaluation.benchmarks import edit
from fusion.evaluation.subjects import Subject
from tests.support.judges import error, tree


def photo(size, value=0) -> Image.Image:
    return Image.new("RGB", size, (value, 200, 30))


class Editor(Subject):
    """Reads every image at half its size, answers with one colour for each seed, and remembers what it was asked."""

    can = frozenset({"edit"})

    def __init__(self):
        super().__init__("stub", {})
        self.asked = []

    def fitted(self, image):
        return image.width // 2, image.height // 2

    def compose(self, sources, instructions, seeds):
        rows = zip(instructions, sources, seeds, strict=True)
        self.asked.append([(words, [image.size for image in images], seed) for words, images, seed in rows])
        return [Image.new("RGB", self.fitted(sources[0][-1]), (0, 0, seed)) for seed in seeds]


@pytest.fixture
def editor(monkeypatch):
    stub = Editor()
    monkeypatch.setattr(edit, "load_subject", lambda model, params, device: stub)
    return stub


def imgedit(tmp_path):
    (tmp_path / "images/animal").mkdir(parents=True)
    rows = {}
    for number, size in enumerate([(16, 8), (16, 8), (8, 8)]):
        photo(size, number).save(tmp_path / f"images/animal/{number}.jpg")
        rows[str(1082 + number)] = {"id": f"animal/{number}.jpg", "prompt": f"Edit {number}", "edit_type": "add"}
    (tmp_path / "basic_edit.json").write_text(json.dumps(rows))
    return ["imgedit", "--data", str(tmp_path / "basic_edit.json"), "--images", str(tmp_path / "images")]


def gedit(tmp_path):
    rows = {
        "task_type": ["ps_human", "subject-add"],
        "key": ["k1", "k2"],
        "instruction": ["Smile", "Add a cat"],
        "instruction_language": ["en", "cn"],
        "input_image_raw": [],
    }
    for value in range(2):
        data = io.BytesIO()
        photo((12, 8), value).save(data, "PNG")
        rows["input_image_raw"].append({"bytes": data.getvalue(), "path": None})
    table = datasets.Dataset.from_dict(rows).cast_column("input_image_raw", datasets.Image())
    (tmp_path / "set/data").mkdir(parents=True)
    table.to_parquet(tmp_path / "set/data/train-00000.parquet")
    table.save_to_disk(tmp_path / "saved")
    return ["gedit", "--data", str(tmp_path / "set")]


def kris(tmp_path):
    rows = {
        "color_change": {"ori_img": "1.jpg", "ins_en": "Make it red"},
        "compose": {"ori_img": ["1.jpg", "2.jpg"], "ins_en": "Join them"},
    }
    for category, row in rows.items():
        folder = tmp_path / "KRIS_Bench" / category
        folder.mkdir(parents=True)
        (folder / "annotation.json").write_text(json.dumps({"1": row}))
        for name, size in {"1.jpg": (16, 16), "2.jpg": (8, 16)}.items():
            photo(size).save(folder / name)
    return ["kris", "--data", str(tmp_path / "KRIS_Bench")]


NAMES = {
    imgedit: ["1082.png", "1083.png", "1084.png"],
    gedit: [
        f"stub/fullset/{name}.png"
        for name in ("ps_human/en/k1", "ps_human/en/k1_SRCIMG", "subject-add/cn/k2", "subject-add/cn/k2_SRCIMG")
    ],
    kris: ["stub/color_change/1.jpg", "stub/compose/1.jpg"],
}


def made(words, out, *more) -> int:
    return edit.main(["some/stub", *words, "-o", str(out), *more])


@pytest.mark.parametrize("benchmark", NAMES)
def test_edits_have_the_official_names_and_their_sources_size(benchmark, editor, tmp_path):
    out = tmp_path / "out"
    assert made(benchmark(tmp_path), out) == 0
    assert sorted(tree(out)) == NAMES[benchmark]
    sizes = {imgedit: [(16, 8), (16, 8), (8, 8)], gedit: [(12, 8)] * 4, kris: [(16, 16), (8, 16)]}
    assert [Image.open(out / name).size for name in NAMES[benchmark]] == sizes[benchmark]


def test_those_of_one_size_are_made_together_each_with_its_seed(editor, tmp_path):
    made(imgedit(tmp_path), tmp_path / "out", "--seed", "7")
    assert editor.asked == [[("Edit 0", [(16, 8)], 7), ("Edit 1", [(16, 8)], 8)], [("Edit 2", [(8, 8)], 9)]]
    assert np.asarray(Image.open(tmp_path / "out/1083.png"))[0, 0].tolist() == [0, 0, 8]
    editor.asked.clear()
    made(imgedit_again(tmp_path), tmp_path / "alone", "--seed", "7", "--batch", "1")
    assert len(editor.asked) == 3 and tree(tmp_path / "alone") == tree(tmp_path / "out")


def imgedit_again(tmp_path):
    return ["imgedit", "--data", str(tmp_path / "basic_edit.json"), "--images", str(tmp_path / "images")]


def test_only_what_is_missing_is_made_again_and_shards_share(editor, tmp_path):
    words, out = imgedit(tmp_path), tmp_path / "out"
    made(words, out)
    whole = tree(out)
    (out / "1083.png").unlink()
    editor.asked.clear()
    assert made(words, out) == 0 and editor.asked == [[("Edit 1", [(16, 8)], 1)]] and tree(out) == whole
    for shard in ("1/2", "0/2"):
        made(words, tmp_path / "parts", "--shard", shard)
    assert tree(tmp_path / "parts") == whole


def test_gedit_s_sources_lie_beside_as_they_were(editor, tmp_path):
    words = gedit(tmp_path)
    made(words, tmp_path / "out")
    source = Image.open(tmp_path / "out/stub/fullset/subject-add/cn/k2_SRCIMG.png")
    assert np.array_equal(np.asarray(source), np.asarray(photo((12, 8), 1)))
    made(["gedit", "--data", str(tmp_path / "saved")], tmp_path / "other")
    assert tree(tmp_path / "other") == tree(tmp_path / "out")


def test_several_sources_are_all_shown(editor, tmp_path):
    made(kris(tmp_path), tmp_path / "out")
    assert editor.asked == [[("Make it red", [(16, 16)], 0)], [("Join them", [(16, 16), (8, 16)], 1)]]


def test_a_mistake_is_one_line(editor, tmp_path, capsys):
    words, out = imgedit(tmp_path), tmp_path / "out"
    wrong = {
        "--images": words[:3],
        "not basic_edit.json": ["imgedit", "--data", str(tmp_path), "--images", str(tmp_path)],
        "no data set there": ["gedit", "--data", str(tmp_path / "images")],
        "no CATEGORY/annotation.json": ["kris", "--data", str(tmp_path / "images")],
        "--images is of ImgEdit": ["kris", "--data", str(tmp_path), "--images", str(tmp_path)],
        "--batch is at least 1": [*words, "--batch", "0"],
    }
    for said, line in wrong.items():
        assert made(line, out) == 1 and said in error(capsys)
    assert not out.exists()
    (tmp_path / "images/animal/2.jpg").write_bytes(b"no image")
    assert made(words, out) == 1 and "2.jpg" in error(capsys)
    (tmp_path / "basic_edit.json").write_text(json.dumps({"../up": {"id": "animal/0.jpg", "prompt": "Up"}}))
    assert made(words, tmp_path / "elsewhere") == 1 and "outside" in error(capsys)
    editor.can = frozenset({"draw"})
    assert made(kris(tmp_path), tmp_path / "text_to_image") == 1 and "cannot edit" in error(capsys)


def test_a_folder_of_another_run_is_refused(editor, tmp_path, capsys):
    words = imgedit(tmp_path)
    made(words, tmp_path / "out")
    assert made(words, tmp_path / "out", "--seed", "1") == 1 and "another seed" in error(capsys)


def test_the_bundled_model_edits_an_image_of_any_size(tmp_path):
    folder = tmp_path / "KRIS_Bench/compose"
    folder.mkdir(parents=True)
    (folder / "annotation.json").write_text(
        json.dumps({"1": {"ori_img": ["1.png", "2.png"], "ins_en": "Make it blue."}})
    )
    for name, size in {"1.png": (64, 64), "2.png": (130, 50)}.items():
        photo(size).save(folder / name)
    assert edit.main(["shapes", "kris", "--data", str(folder.parent), "-o", str(tmp_path / "out"), "steps=1"]) == 0
    assert Image.open(tmp_path / "out/shapes/compose/1.jpg").size == (130, 50)
