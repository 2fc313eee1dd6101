"""GenEval: official folders and files, resuming, tiny networks or given detections as judge, one-line errors."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers.models.mask2former import modeling_mask2former

from fusion.evaluation.benchmarks import draw, geneval
from fusion.evaluation.benchmarks.common.detections import (
    Detections,
    Found,
    digest_of,
    read_detections,
    write_detections,
)
from fusion.evaluation.benchmarks.judges import detector
from fusion.evaluation.benchmarks.judges.detector import (
    Judge,
    Mask2Former,
    clip_pixels,
    coloured,
    cut_out,
    detector_pixels,
    instances,
    load_judge,
)
from fusion.evaluation.benchmarks.judges.geneval_rules import CLASSES, COLOURS, Rules
from tests.support import judges
from tests.support.judges import error, tree

SIZE = 16
PROMPTS = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
    {
        "tag": "counting",
        "include": [{"class": "cow", "count": 2}],
        "exclude": [{"class": "cow", "count": 3}],
        "prompt": "a photo of two cows",
    },
    {"tag": "colors", "include": [{"class": "cake", "count": 1, "color": "red"}], "prompt": "a photo of a red cake"},
]


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(asked) + "\n" for asked in PROMPTS))
    return file


def drawn(prompts, out, *words) -> int:
    return draw.main(["stub", "geneval", "--prompts", str(prompts), "-o", str(out), "--size", str(SIZE), *words])


# ---- drawing ----


def test_the_layout_is_the_official_one(prompts, subject, tmp_path):
    out = tmp_path / "out"
    assert drawn(prompts, out) == 0
    expected = [
        f"{n:05}/{name}" for n in range(3) for name in ("metadata.jsonl", *(f"samples/{k:05}.png" for k in range(4)))
    ]
    assert list(tree(out)) == expected
    assert [json.loads((out / f"{n:05}" / "metadata.jsonl").read_text()) for n in range(3)] == PROMPTS
    samples = geneval.read_folder(out)
    assert [sample.name for sample in samples] == [name for name in expected if name.endswith("png")]
    assert [sample.metadata for sample in samples] == [asked for asked in PROMPTS for _ in range(4)]
    assert subject.asked == [(PROMPTS[place // 4]["prompt"], place) for place in range(12)]


def test_images_depend_on_neither_batches_nor_shards(prompts, subject, tmp_path, capsys):
    drawn(prompts, tmp_path / "whole", "--n", "3")
    for words in (["--batch", "1"], ["--shard", "0/2"], ["--shard", "1/2", "--batch", "5"]):
        drawn(prompts, tmp_path / "parts", "--n", "3", *words)
        if words == ["--batch", "1"]:
            (tmp_path / "parts").rename(tmp_path / "one by one")
            (tmp_path / "parts.asked.json").unlink()
    assert "3 images drawn; 6 of 9 are missing" in capsys.readouterr().out
    assert tree(tmp_path / "whole") == tree(tmp_path / "one by one") == tree(tmp_path / "parts")


def test_a_half_finished_folder_goes_on(prompts, subject, tmp_path):
    out = tmp_path / "out"
    drawn(prompts, out)
    whole = tree(out)
    gone, cut = out / "00000/samples/00002.png", out / "00002/samples/00003.png"
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-5])
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path != cut}
    subject.asked.clear()
    assert drawn(prompts, out) == 0
    assert [seed for _, seed in subject.asked] == [2, 11]
    assert tree(out) == whole and all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_grids_are_drawn_when_asked_for(prompts, subject, tmp_path):
    drawn(prompts, tmp_path / "out")
    assert not list(tmp_path.rglob("grid.png"))
    drawn(prompts, tmp_path / "out", "--grid")
    assert len(list(tmp_path.rglob("grid.png"))) == 3 and len(subject.asked) == 12
    grid = np.asarray(Image.open(tmp_path / "out/00001/grid.png"))
    parts = [np.asarray(Image.open(tmp_path / f"out/00001/samples/{k:05}.png")) for k in range(4)]
    assert (grid == np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])).all()


def test_a_mistake_in_drawing_is_one_line(prompts, subject, tmp_path, capsys):
    out = tmp_path / "out"
    drawn(prompts, out)
    before = tree(out)
    for words, said in [
        (["--seed", "1"], "drawn with another seed"),
        (["--n", "2"], "drawn with another n"),
        (["steps=3"], "drawn with another params"),
        (["--n", "0"], "are at least 1"),
        (["--shard", "2/2"], "give i/n"),
        (["steps"], "name=value"),
    ]:
        assert drawn(prompts, out, *words) == 1 and said in error(capsys)
    prompts.write_text(json.dumps(PROMPTS[1]) + "\n")
    assert drawn(prompts, out) == 1 and "another count and prompts" in error(capsys)
    assert drawn(prompts, tmp_path / "empty", "--size", "24") == 0
    for path in (tmp_path / "empty").iterdir():
        shutil.rmtree(path)
    assert drawn(prompts, tmp_path / "empty") == 0  # nothing was there that another size could harm
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    assert drawn(prompts, tmp_path / "mine") == 1 and "holds something else" in error(capsys)
    assert drawn(tmp_path / "none", tmp_path / "new") == 1 and "cannot be read" in error(capsys)
    assert tree(out) == before and not (tmp_path / "new").exists()


def test_an_image_of_another_size_is_not_gone_on_with(prompts, subject, tmp_path, capsys):
    out = tmp_path / "out"
    drawn(prompts, out)
    Image.new("RGB", (8, 8)).save(out / "00001/samples/00001.png")
    assert drawn(prompts, out) == 1 and "00001.png is 8x8, not 16x16" in error(capsys)
    subject.draw = lambda prompts, seeds, size: [Image.new("RGB", (8, 8))] * len(prompts)
    assert drawn(prompts, tmp_path / "small") == 1 and "drew 8x8 for 16x16" in error(capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: not a prompt of GenEval"),
        ('{"tag": "colors", "prompt": "a"}', "KeyError('include')"),
        ('{"tag": "x", "prompt": "a", "include": [{"class": "unicorn", "count": 1}]}', "of COCO's classes"),
        ('{"tag": "x", "prompt": "a", "include": [{"class": "cow", "count": 0}]}', "counts above 0"),
        (
            '{"tag": "x", "prompt": "a", "include": [{"class": "cow", "count": 1, "position": ["above", 0]}]}',
            "relative to an earlier object",
        ),
    ],
)
def test_a_bad_prompt_is_named_by_its_line(tmp_path, line, said):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(PROMPTS[0]) + "\n" + line + "\n")
    with pytest.raises(ValueError, match="line 2") as caught:
        geneval.read_prompts(file)
    assert said in str(caught.value)


# ---- scoring what was found ----


@pytest.fixture
def folder(prompts, subject, tmp_path):
    """Two images of each prompt."""
    drawn(prompts, tmp_path / "images", "--n", "2")
    return tmp_path / "images"


def box(score: float, colour: str | None = None) -> Found:
    return Found((1, 1, 9, 9), score, colour)


FOUND = {  # the bench in both images, the cows in one, a red cake in none
    "00000/samples/00000.png": {"bench": [box(0.9)]},
    "00000/samples/00001.png": {"bench": [box(0.4), box(0.2)], "cow": [box(0.5)]},
    "00001/samples/00000.png": {"cow": [box(0.92), box(0.95), box(0.5)]},
    "00001/samples/00001.png": {"cow": [box(0.92), box(0.95), box(0.91)]},
    "00002/samples/00000.png": {"cake": [box(0.9, "blue")]},
    "00002/samples/00001.png": {},
}


def scored(folder, *words) -> int:
    return geneval.main([str(folder), "-o", str(folder.parent / "results.jsonl"), *map(str, words)])


def test_anybodys_detections_are_scored(folder, tmp_path, capsys):
    write_detections([Detections(name, objects) for name, objects in FOUND.items()], tmp_path / "found.jsonl")
    assert scored(folder, "--detections", tmp_path / "found.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, True, True, False, False, False]
    assert list(rows[0]) == ["filename", "tag", "prompt", "correct", "reason", "metadata", "details"]
    assert (
        rows[0]["filename"] == str(folder / "00000/samples/00000.png") and json.loads(rows[2]["metadata"]) == PROMPTS[1]
    )
    assert (
        rows[3]["reason"] == "expected cow<3, found 3"
        and rows[4]["reason"] == "expected red cake>=1, found 0 red; and 1 blue"
    )
    assert json.loads(rows[1]["details"]) == {"bench": [[1, 1, 9, 9, 0.4]], "cow": [[1, 1, 9, 9, 0.5]]}
    assert [one[-1] for one in json.loads(rows[2]["details"])["cow"]] == [0.95, 0.92]
    summary = json.loads((tmp_path / "results.summary.json").read_text())
    assert [score["value"] for score in summary["scores"]] == [pytest.approx(0.5), 1, 0.5, 0]
    assert summary["correct images"] == 0.5 and summary["prompts with a correct image"] == pytest.approx(2 / 3)
    assert all(score["low"] <= score["value"] <= score["high"] for score in summary["scores"])
    assert [score["count"] for score in summary["scores"]] == [3, 1, 1, 1]  # prompts
    said = capsys.readouterr().out
    assert "judged by another detector: 6 images of 3 prompts" in said and "overall" in said


def test_the_official_summary_reads_the_results(folder, tmp_path):
    write_detections([Detections(name, objects) for name, objects in FOUND.items()], tmp_path / "found.jsonl")
    scored(folder, "--detections", tmp_path / "found.jsonl")
    table = pd.read_json(tmp_path / "results.jsonl", orient="records", lines=True)
    by_tag = table.groupby("tag", sort=False)["correct"].mean()
    assert by_tag.to_dict() == {"single_object": 1, "counting": 0.5, "colors": 0} and by_tag.mean() == pytest.approx(
        0.5
    )
    assert len(table.groupby("metadata")) == 3


def test_the_overall_score_is_the_mean_over_tags_not_over_images():
    rows = [
        {"tag": tag, "metadata": str(number), "correct": right}
        for number, (tag, right) in enumerate([("a", True), *[("b", False)] * 9])
    ]
    overall, a, b = geneval.scores(rows)
    assert (overall.value, a.value, b.value) == (0.5, 1, 0)


def test_options_of_the_official_code_change_what_counts(folder, tmp_path):
    write_detections([Detections(name, objects) for name, objects in FOUND.items()], tmp_path / "found.jsonl")
    assert scored(folder, "--detections", tmp_path / "found.jsonl", "threshold=0.5", "counting_threshold=0.915") == 0
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, False, True, True, False, False]


def break_name(folder):
    (folder / "00001/samples/00001.png").rename(folder / "00001/samples/cow.jpg")


def break_image(folder):
    (folder / "00001/samples/00001.png").write_bytes(b"not an image")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "00001/samples/00001.png").unlink(), "00001 has 1 samples and others 2"),
        (
            lambda folder: [path.unlink() for path in (folder / "00002/samples").iterdir()],
            "00002 has 0 samples and others 2",
        ),
        (lambda folder: (folder / "00001").rename(folder.parent / "away"), "00001 has 0 samples"),
        (lambda folder: (folder / "00002").rename(folder.parent / "away"), "00002 has 0 samples"),
        (break_name, "cow.jpg: samples are PNGs named by numbers"),
        (lambda folder: (folder / "00001/metadata.jsonl").unlink(), "metadata.jsonl is missing"),
        (lambda folder: (folder / "00001/metadata.jsonl").write_text("{}"), "not a prompt of GenEval"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder, tmp_path, capsys, damage, said):
    write_detections([Detections(name, objects) for name, objects in FOUND.items()], tmp_path / "found.jsonl")
    damage(folder)
    assert scored(folder, "--detections", tmp_path / "found.jsonl") == 1 and said in error(capsys)
    assert not (tmp_path / "results.jsonl").exists()


def test_detections_that_cannot_be_used_are_refused(folder, tmp_path, capsys):
    file, out = tmp_path / "found.jsonl", tmp_path / "results.jsonl"
    assert scored(folder) == 1 and "give --detector and --clip" in error(capsys)
    assert scored(folder, "--detector", "somewhere") == 1 and "go together" in error(capsys)
    for line in ("[]", '{"filename": "a"}', '{"filename": "a", "objects": {"cow": [{"box": [1, 2, 3], "score": 1}]}}'):
        file.write_text(line)
        assert scored(folder, "--detections", file) == 1 and "line 1: not detections of an image" in error(capsys)
    write_detections([Detections("00000/samples/00000.png", {"cow": [Found((5, 5, 1, 1), 0.5)]})], file)
    assert scored(folder, "--detections", file) == 1 and "line 1: not detections of an image" in error(capsys)
    write_detections([Detections(name, objects) for name, objects in list(FOUND.items())[1:]], file)
    assert scored(folder, "--detections", file) == 1 and "00000/samples/00000.png: no detections of it" in error(capsys)
    write_detections([Detections(name, {"cake": [box(0.9)]}) for name in FOUND], file)
    assert scored(
        folder, "--detections", file
    ) == 1 and "00002/samples/00000.png: nobody looked at the colour" in error(capsys)
    write_detections([Detections(name, objects, digest="0123") for name, objects in FOUND.items()], file)
    assert scored(folder, "--detections", file) == 1 and "another image since" in error(capsys)
    assert scored(folder, "--detections", file, "treshold=1") == 1 and "treshold" in error(capsys)
    out.write_text("mine")
    assert (
        scored(folder, "--detections", file) == 1 and "is there already" in error(capsys) and out.read_text() == "mine"
    )


# ---- the judge ----


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    root = tmp_path_factory.mktemp("judges")
    torch.manual_seed(0)
    return judges.save_detector(root / "mask2former"), judges.save_clip(root / "clip")


@pytest.fixture
def small(monkeypatch):
    """Images are not enlarged to what the real detector sees."""
    monkeypatch.setattr(detector, "SHORT", 64)
    monkeypatch.setattr(detector, "LONG", 128)


def test_the_whole_command_offline_and_on_again(folder, networks, small, tmp_path, capsys, monkeypatch):
    words = ["--detector", networks[0], "--clip", networks[1]]
    assert scored(folder, *words) == 0
    assert "judged by HF detector mask2former, clip" in capsys.readouterr().out
    found = read_detections(tmp_path / "results.detections.jsonl")
    assert list(found) == list(FOUND) and all(one.digest == digest_of(folder / name) for name, one in found.items())
    first = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").unlink()

    looked, call = [], Judge.__call__
    monkeypatch.setattr(
        Judge, "__call__", lambda self, image, *rest: (looked.append(image.size), call(self, image, *rest))[1]
    )
    assert scored(folder, *words) == 0 and not looked and (tmp_path / "results.jsonl").read_text() == first
    (tmp_path / "results.jsonl").unlink()
    Image.new("RGB", (SIZE, SIZE + 4), "red").save(folder / "00001/samples/00000.png")
    assert scored(folder, *words) == 0 and looked == [(SIZE, SIZE + 4)]
    (tmp_path / "results.jsonl").unlink()
    assert scored(folder, *words, "bgcolor=original") == 0 and len(looked) == 7  # another judge


def test_a_broken_image_is_named(folder, networks, small, capsys):
    break_image(folder)
    assert scored(
        folder, "--detector", networks[0], "--clip", networks[1]
    ) == 1 and "00001.png: is not an image" in error(capsys)


def test_missing_and_wrong_weights_are_one_line(folder, networks, tmp_path, capsys):
    mask2former, clip = networks
    for words, said in [
        (["--detector", tmp_path / "none", "--clip", clip], "not weights of a Mask2Former"),
        (["--detector", mask2former, "--clip", tmp_path / "none"], "not weights of a CLIP"),
        (["--detector", clip, "--clip", clip], "a clip is there"),
        (["--detector", judges.save_detector(tmp_path / "six", labels=6), "--clip", clip], "knows 6 classes"),
    ]:
        assert scored(folder, *words) == 1 and said in error(capsys)
    assert not (tmp_path / "results.jsonl").exists()


def test_the_detector_is_transformers_own(tmp_path, monkeypatch):
    monkeypatch.setattr(
        modeling_mask2former, "requires_backends", lambda *_: None
    )  # scipy, for a loss that is not computed
    theirs = modeling_mask2former.Mask2FormerForUniversalSegmentation(judges.detector_config()).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Mask2Former.from_pretrained(tmp_path / "theirs").eval()
    pixels = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected, (classes, masks) = theirs(pixels), ours(pixels)
    assert torch.equal(classes, expected.class_queries_logits[0]) and torch.equal(
        masks, expected.masks_queries_logits[0]
    )


def test_objects_come_from_classes_and_masks():
    masks = torch.full((2, 6, 8), -5.0)
    masks[0, 1:3, 2:5] = torch.tensor([1.0, 2.0, 3.0])
    classes = torch.full((2, 5), -20.0)  # four classes and none
    classes[0, 1], classes[0, 3], classes[1, 2] = 2.0, 1.0, 5.0
    found = instances(classes, masks)
    share, inside = torch.softmax(torch.tensor([2.0, 1.0]), 0), torch.sigmoid(torch.tensor([1.0, 2.0, 3.0])).mean()
    pairs = zip(found.queries, found.labels, found.scores, found.boxes, strict=True)
    by_pair = {(query, label): (score, box) for query, label, score, box in pairs}
    assert len(by_pair) == 8 and by_pair[0, 1] == (pytest.approx(float(share[0] * inside), abs=1e-5), (2, 1, 5, 3))
    assert by_pair[0, 3] == (pytest.approx(float(share[1] * inside), abs=1e-5), (2, 1, 5, 3))
    assert by_pair[1, 2] == (0, (0, 0, 0, 0))  # sure of the class, but its mask has no pixel
    assert found.masks[0].sum() == 6 and not found.masks[1].any()


def test_the_detector_sees_what_mmdet_shows_it():
    pixels, size = detector_pixels(Image.new("RGB", (512, 512), (124, 116, 104)))
    assert (
        pixels.shape == (1, 3, 800, 800) and size == (800, 800) and pixels.abs().max() < 0.01
    )  # ImageNet's mean colour
    pixels, size = detector_pixels(Image.new("RGB", (300, 100), "white"))
    assert size == (444, 1333) and pixels.shape == (1, 3, 448, 1344)  # the longer side ends at 1333; padded to 32
    assert (
        (pixels[..., 444:, :] == 0).all() and (pixels[..., 1333:] == 0).all() and (pixels[..., :444, :1333] > 2).all()
    )


def test_clip_sees_an_object_by_itself():
    image = Image.new("RGB", (20, 12), "red")
    mask = np.zeros((12, 20), dtype=bool)
    mask[2:8, 4:10] = True
    alone = np.asarray(cut_out(image, (4.2, 2.0, 12.0, 8.0), mask, Rules()))
    assert alone.shape == (6, 8, 3) and (alone[:, :6] == (255, 0, 0)).all() and (alone[:, 6:] == 0x99).all()
    assert (np.asarray(cut_out(image, (4, 2, 12, 8), mask, Rules(bgcolor="original"))) == (255, 0, 0)).all()
    assert cut_out(image, (4, 2, 12, 8), mask, Rules(crop=False)).size == (20, 12)
    wide = Image.fromarray(
        np.hstack([np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8), np.zeros((8, 8, 3), np.uint8)])
    )
    assert clip_pixels(wide, 4).shape == (3, 4, 4) and (clip_pixels(wide, 4) > 1).all()  # the middle alone


def test_colours_are_asked_for_in_the_official_words(networks, monkeypatch):
    judge, said = load_judge(*map(str, networks), "cpu"), []
    tokenizer = judge.tokenizer
    monkeypatch.setattr(judge, "tokenizer", lambda words, **how: (said.append(words), tokenizer(words, **how))[1])
    weights = judge.classifier("cake")
    assert weights.shape == (8, len(COLOURS)) and torch.allclose(weights.norm(dim=0), torch.ones(len(COLOURS)))
    assert said[0] == ["a photo of a red cake", "a photo of a red-colored cake", "a photo of a red object"]
    assert [words[2].split()[4] for words in said] == list(COLOURS)
    judge.classifier("cake")
    assert len(said) == len(COLOURS)  # once for a class


def test_only_what_is_asked_for_has_a_colour(networks, small):
    judge = load_judge(*map(str, networks), "cpu")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8))
    seen = judge(image, PROMPTS[0], Rules())
    assert seen and all(one.colour is None for several in seen.values() for one in several)
    name = max(seen, key=lambda name: len(seen[name]))
    asked = {"tag": "colors", "include": [{"class": name, "count": 1, "color": "red"}], "prompt": ""}
    most = max(one.score for one in seen[name])
    for other, several in judge(image, asked, Rules()).items():
        assert all((one.colour in COLOURS) == (other == name and one.score == most) for one in several)
    assert set(seen) <= set(CLASSES)
    same = {
        "include": [
            {"class": "cow", "count": 1, "color": "red"},
            {"class": "cow", "count": 2, "color": "blue"},
            {"class": "cat", "count": 1},
        ]
    }
    assert coloured(same) == {"cow": 2}
