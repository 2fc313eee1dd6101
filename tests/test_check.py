"""The data check: counts what is there, names what is broken, and finds pictures on both sides of the split."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fusion.data.check import check, main, recognise, render
from fusion.data.sources import Chat, EditPairs, ImageFolder, Interleaved, PlainText, Split, split_of


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    """Twenty captioned pictures, two of them wide; number 3 is broken, and 5 has no caption."""
    for number in range(20):
        size = (8, 16) if number in (7, 8) else (8, 8)
        values = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    write_rows(tmp_path / "metadata.jsonl", [{"file_name": f"{n}.png", "text": "x" * (n + 1) if n != 5 else ""} for n in range(20)])
    return tmp_path


def test_the_report_counts_what_is_there(folder):
    split = Split(held_out=0.25)
    findings = check(recognise(folder), split)
    (report,) = findings.reports
    good = [n for n in range(20) if n not in (3, 5)]
    assert report.sizes == {(8, 8): 16, (16, 8): 2}
    assert sorted(report.texts) == [len("draw ") + n + 1 for n in good]
    assert dict(report.bad).keys() == {str(folder / "metadata.jsonl:4"), str(folder / "metadata.jsonl:6")}
    expected = {side: {str(n) for n in good if split_of(str(n), held_out=0.25) == side} for side in ("train", "validation")}
    assert report.subjects == expected and expected["validation"]
    assert report.samples == {side: len(subjects) for side, subjects in expected.items()}
    assert findings.leaks == [] and report.repeats == 0


def test_the_same_picture_on_both_sides_is_a_leak(folder):
    train = next(n for n in range(9, 20) if split_of(str(n)) == "train")
    validation = next(n for n in range(100, 999) if split_of(str(n)) == "validation")
    shutil.copy(folder / f"{train}.png", folder / f"{validation}.png")
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": f"{validation}.png", "text": "y"}) + "\n")
    findings = check(recognise(folder))
    assert findings.leaks == [(str(folder / f"metadata.jsonl:{train + 1}"), str(folder / "metadata.jsonl:21"))]
    assert "leak: " in render(findings)


def test_repeated_samples_are_counted(folder):
    lines = (folder / "metadata.jsonl").read_text().splitlines(keepends=True)
    (folder / "metadata.jsonl").write_text("".join(lines + lines[:2]))
    assert check(recognise(folder)).reports[0].repeats == 2


def test_the_command_prints_a_table_and_tells_by_its_code_whether_all_is_well(folder, capsys):
    assert main([str(folder), "--held-out", "0.25"]) == 1
    printed = capsys.readouterr().out
    assert "18 good samples, 2 bad" in printed
    assert "images    18: 8x8 (16), 16x8 (2)" in printed
    assert "1.00 narrowest, 1.00 median, 2.00 widest" in printed
    assert f"bad       {folder / 'metadata.jsonl:4'}: {folder / '3.png'}: is not an image" in printed
    write_rows(folder / "metadata.jsonl", [{"file_name": f"{n}.png", "text": "x"} for n in (0, 1, 2)])
    assert main([str(folder)]) == 0
    assert main([str(folder / "nowhere")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_long_lists_are_cut_short(folder):
    write_rows(folder / "metadata.jsonl", [{"file_name": f"{n}.png", "text": "x"} for n in (0, *range(100, 130))])
    printed = render(check(recognise(folder)))
    assert printed.count("no such file") == 20 and "... and 10 more" in printed


def test_what_a_path_holds_is_recognised(folder, tmp_path_factory):
    edits = [{"input_image": "0.png", "edit_prompt": "x", "edited_image": "1.png"}]
    write_rows(folder / "pairs.jsonl", edits)
    assert [type(source) for source in recognise(folder)] == [ImageFolder, EditPairs]
    other = tmp_path_factory.mktemp("other")
    write_rows(other / "a.jsonl", [{"content": [{"type": "text", "text": "x"}]}])
    write_rows(other / "b.jsonl", [{"messages": [{"role": "assistant", "content": "x"}]}])
    write_rows(other / "c.jsonl", [{"text": "x"}])
    assert [type(source) for source in recognise(other)] == [Interleaved, Chat, PlainText]
    texts = tmp_path_factory.mktemp("texts")
    (texts / "a.txt").write_text("x")
    assert type(recognise(texts)[0]) is PlainText
    shutil.copy(folder / "0.png", texts / "a.png")
    assert type(recognise(texts)[0]) is ImageFolder
