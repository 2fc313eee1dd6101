"""The split: stable, close to its share, and no subject on both sides, whatever names it."""

import json
import re
from pathlib import PurePosixPath

import pytest
from PIL import Image

from fusion.data.formats import EditPairs, ImageFolder, Split, split_of
from fusion.data.formats.split import Subjects, fraction

SUBJECTS = [f"subject {n}" for n in range(4000)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_split_is_the_same_on_every_machine():
    # Written down once: a change of these would move images that somebody trained on into validation.
    assert [n for n in range(100) if split_of(str(n)) == "validation"] == [4, 13, 28, 41]
    assert fraction("split", 0, "cat") == pytest.approx(0.635146, abs=1e-6)


def test_the_share_held_out_is_the_one_asked_for():
    for held_out in (0.05, 0.3):
        share = sum(split_of(s, held_out=held_out) == "validation" for s in SUBJECTS) / len(SUBJECTS)
        assert share == pytest.approx(held_out, abs=0.015)


def test_another_seed_holds_out_others():
    held = [{s for s in SUBJECTS if split_of(s, seed) == "validation"} for seed in (0, 1)]
    assert len(held[0] & held[1]) < 0.2 * len(held[0])


def test_the_sides_are_disjoint_and_complete():
    train, validation = (Split(side).chosen(SUBJECTS) for side in ("train", "validation"))
    assert not train & validation
    assert train | validation == set(SUBJECTS) == Split("all").chosen(SUBJECTS)


def test_a_small_set_has_a_validation_too():
    few = ["a", "b", "c"]
    assert all(split_of(subject) == "train" for subject in few)
    assert len(Split("validation").chosen(few)) == 1
    assert len(Split("train").chosen(few)) == 2
    assert Split("train", held_out=0.0).chosen(few) == set(few)
    assert Split("train").chosen(["only"]) == {"only"}


@pytest.mark.parametrize("wrong", [{"side": "test"}, {"held_out": 1.0}, {"held_out": -0.1}, {"variant": "("}])
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "side" not in wrong else "split='test'"):
        Split(**wrong)


def subjects_of(*rows, variant=Split.variant):
    subjects = Subjects(variant)
    names = [subjects.add(row, f"row {n}") for n, row in enumerate(rows)]
    return [subjects.of(name) for name in names]


def test_skin_tones_and_styles_of_one_base_are_one_subject():
    rows = [
        {"file_name": f"images/{name}.png"}
        for name in ("noto/1f487", "fluent/1f487_1f3fb", "fluent/1f487-1f3ff", "noto/1f488")
    ]
    assert subjects_of(*rows) == ["1f487", "1f487", "1f487", "1f488"]


def test_the_variant_is_configurable():
    rows = [{"file_name": "cat_01.jpg"}, {"file_name": "cat_02.jpg"}]
    assert subjects_of(*rows) == ["cat_01", "cat_02"]
    assert subjects_of(*rows, variant=r"_\d+") == ["cat", "cat"]


def test_a_row_ties_its_files_and_its_subject_together():
    captions = {"file_name": "b.png", "text": "x"}
    edit = {"input_file_name": "a.png", "edited_file_name": "b.png", "instruction": "x", "subject": "zebra"}
    other = {"file_name": "c.png", "subject": "zebra"}
    assert subjects_of(captions, edit, other) == ["a", "a", "a"]


def test_images_deep_in_a_row_count_and_rows_without_any_are_their_own():
    page = {"content": [{"type": "text", "text": "x"}, {"type": "image", "image": "images/7.PNG"}]}
    embedded = {"image": {"path": "7.png", "bytes": b""}}
    assert subjects_of(page, embedded, {"text": "a"}, {"text": "a"}) == ["7", "7", "row 2", "row 3"]


def test_captions_and_edits_of_one_folder_split_alike_though_only_the_edits_have_a_subject_column(tmp_path):
    names = [f"{n}.png" for n in range(60)]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": name, "text": "a"} for name in names])
    pairs = [
        {"input_file_name": f"{n}.png", "edited_file_name": f"{n + 1}.png", "instruction": "b", "subject": f"thing {n}"}
        for n in range(0, 60, 2)
    ]
    write_rows(tmp_path / "edits.jsonl", pairs)
    sides = {}
    for side in ("train", "validation"):
        split = Split(side, held_out=0.3)
        sources = ImageFolder(tmp_path, split), EditPairs(tmp_path, split)
        captions, edits = ({source[i].subject for i in range(len(source))} for source in sources)
        assert captions == edits
        assert len(sources[0]) == 2 * len(sources[1])
        sides[side] = captions
    assert sides["validation"] and not sides["train"] & sides["validation"]


@pytest.fixture(scope="module")
def emoji(shared_data):
    """The real captions and edits, on both sides of the split."""
    return ImageFolder(shared_data / "emoji"), EditPairs(shared_data / "emoji")


def test_no_base_emoji_is_on_both_sides(emoji):
    captions, edits = emoji
    assert (len(captions), len(edits)) == (3486, 7103)
    assert captions.subjects == edits.subjects
    sides = {side: Split(side).chosen(captions.subjects) for side in ("train", "validation")}
    bases = {side: set() for side in sides}
    for source, table in ((captions, "metadata.jsonl"), (edits, "edits.jsonl")):
        lines = (source.root / table).read_text().splitlines()
        for number, subject in source.chosen:
            files = [value for column, value in json.loads(lines[number]).items() if column.endswith("file_name")]
            side = "train" if subject in sides["train"] else "validation"
            bases[side] |= {re.split("[_-]", PurePosixPath(file).stem)[0] for file in files}
    assert not bases["train"] & bases["validation"]
    assert 0.03 < len(bases["validation"]) / len(bases["train"] | bases["validation"]) < 0.07


def test_the_real_emoji_open(emoji):
    captions, edits = (source[0] for source in emoji)
    assert captions.messages[0]["content"][0]["text"] == "draw haircut, flat style"
    assert edits.messages[0]["content"][1]["text"] == "redraw it in 3d style"
    assert captions.messages[1]["content"][0]["image"] == edits.messages[0]["content"][0]["image"]
    assert captions.subject == edits.subject == "1f487"
