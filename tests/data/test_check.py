"""The data check: counts what is there, names what is broken, and finds images on both sides of the split."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from fusion.cli import main as cli
from fusion.data.check import Reader, check, open_as, recognise, render
from fusion.data.check_page import write
from fusion.data.formats import Chat, EditPairs, ImageFolder, Interleaved, PlainText, Split, split_of
from fusion.sequence.processor import FusionProcessor
from fusion.testing import tiny_llms as families


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def folder(tmp_path):
    """Twenty captioned images, two of them wide; number 3 is broken, and 5 has no caption."""
    for number in range(20):
        size = (8, 16) if number in (7, 8) else (8, 8)
        values = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    write_rows(
        tmp_path / "metadata.jsonl",
        [{"file_name": f"{n}.png", "text": "x" * (n + 1) if n != 5 else ""} for n in range(20)],
    )
    return tmp_path


def test_the_report_counts_what_is_there(folder):
    split = Split(held_out=0.25)
    findings = check(recognise(folder), split)
    (report,) = findings.reports
    good = [n for n in range(20) if n not in (3, 5)]
    assert report.sizes == {(8, 8): 16, (16, 8): 2}
    assert sorted(report.texts) == [len("draw ") + n + 1 for n in good]
    assert dict(report.bad).keys() == {str(folder / "metadata.jsonl:4"), str(folder / "metadata.jsonl:6")}
    expected = {
        side: {str(n) for n in good if split_of(str(n), held_out=0.25) == side} for side in ("train", "validation")
    }
    assert report.subjects == expected and expected["validation"]
    assert report.samples == {side: len(subjects) for side, subjects in expected.items()}
    assert findings.leaks == [] and report.repeats == 0


def test_the_same_image_on_both_sides_is_a_leak(folder):
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


def test_repeated_images_and_texts_name_the_first(folder):
    shutil.copy(folder / "9.png", folder / "10.png")
    rows = [{"file_name": f"{n}.png", "text": text} for n, text in ((9, "a"), (10, "b"), (11, "a"), (9, "c"))]
    (report,) = check(recognise(write_rows(folder / "metadata.jsonl", rows))).reports
    first, second, third, fourth = (str(folder / f"metadata.jsonl:{line}") for line in (1, 2, 3, 4))
    assert (
        report.image_repeats == [(second, first), (fourth, first)]
        and report.text_repeats == [(third, first)]
        and report.repeats == 0
    )


@pytest.fixture(scope="module")
def processor():
    return FusionProcessor.from_tokenizer(families.tiny_tokenizer(), families.VOCAB, stride=8)


def test_tokens_are_those_that_training_packs(folder, processor):
    rows = [{"file_name": "7.png", "text": "<|image_patch|>"}, {"file_name": "0.png", "text": "x" * 50}]
    write_rows(folder / "metadata.jsonl", rows)
    (report,) = check(recognise(folder), reader=Reader(processor)).reports
    # Clean and noised, an image of 16x8 has two patches each.
    texts = [len(processor.text.plain(f"draw {row['text']}")) for row in rows]
    assert sum(report.lengths) - report.text_tokens == 2 * 2 + 2 * 1
    assert report.lengths[1] - report.lengths[0] == texts[1] - texts[0] - 2 + len(processor.size_ids(8, 8)) - len(
        processor.size_ids(16, 8)
    )
    (short,) = check(recognise(folder), reader=Reader(processor, length=report.lengths[0])).reports
    assert short.good == [0] and short.bad[0][0].endswith("metadata.jsonl:2") and "do not fit a row" in short.bad[0][1]


def test_what_only_the_processor_refuses_is_bad_too(tmp_path, processor):
    turns = [[("user", "hi"), ("assistant", "ho")], [("user", " "), ("assistant", "ho")]]
    path = write_rows(
        tmp_path / "chats.jsonl", [{"messages": [{"role": r, "content": c} for r, c in chat]} for chat in turns]
    )
    (report,) = check(recognise(path), reader=Reader(processor)).reports
    assert report.good == [0] and report.bad == [
        (f"{path}:2", "the user message is empty: write some text or add an image")
    ]


def test_the_page_holds_counts_bad_rows_and_samples_and_nothing_from_outside(folder, processor):
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "<script>.png", "text": "x"}) + "\n")
    sources, reader = recognise(folder), Reader(processor, "tiny")
    page = write(check(sources, Split(held_out=0.25), reader), sources, reader, folder)
    assert (
        page == folder / "check.html"
        and write(check(sources, reader=reader), sources, reader, page) == folder / "check-2.html"
    )
    html = page.read_text()
    assert (
        "21 samples, 3 of them bad" in html
        and "metadata.jsonl:4" in html
        and "<script" not in html
        and "&lt;script&gt;" in html
    )
    assert html.count("data:image/png;base64,") == 1 + 8 and "http" not in html
    assert ">16x8<" in html or ">8x16<" in html
    assert "16–31</th>" in html and "as tiny reads them" in html


def test_the_command_prints_writes_and_tells_by_its_status_whether_all_is_well(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    assert cli.main(["data", "check", str(folder), "--held-out", "0.25"]) == 1
    printed = capsys.readouterr().out
    assert "18 good samples, 2 bad" in printed
    assert "images    18: 8x8 (16), 16x8 (2)" in printed
    assert "1.00 narrowest, 1.00 median, 2.00 widest" in printed
    assert f"bad       {folder / 'metadata.jsonl:4'}: {folder / '3.png'}: is not an image" in printed
    assert printed.endswith("\ncheck.html\n") and (folder / "check.html").stat().st_size > 10_000
    write_rows(folder / "metadata.jsonl", [{"file_name": f"{n}.png", "words": "x"} for n in (0, 1, 2)])
    assert cli.main(["data", "check", ".", "--format", "images", "--column", "text=words", "-o", "good.html"]) == 0
    assert (folder / "good.html").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "no such file or folder"),
        (["0.png"], "not a data set"),
        (["other.csv"], "no column text"),
        (["."], "no column text or caption"),
        ([".", "--column", "text=words"], "goes with --format"),
        ([".", "--format", "images", "--column", "words"], "write NAME=COLUMN"),
        (
            [".", "--format", "images", "--column", "text=words", "--tokenizer", "nowhere"],
            "neither a fusion model nor an LLM",
        ),
        ([".", "--format", "images", "--column", "text=words", "--length", "0"], "at least one token"),
        ([".", "--format", "images", "--column", "text=words", "--held-out", "1"], "held_out=1.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_no_data_set_is_one_line_and_status_2(words, told, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    write_rows(folder / "metadata.jsonl", [{"file_name": "0.png", "words": "x"}])
    (folder / "other.csv").write_text("a,b\n1,2\n")
    assert cli.main(["data", "check", *words]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and told in said.err and not list(folder.glob("*.html"))


def test_a_format_that_is_given_is_opened_as_a_config_would(folder):
    write_rows(folder / "pairs.jsonl", [{"a": "0.png", "say": "x", "b": "1.png"}])
    columns = {"input_file_name": "a", "instruction": "say", "edited_file_name": "b"}
    (source,) = open_as(folder / "pairs.jsonl", "edits", columns)
    assert type(source) is EditPairs and len(source[0].messages) == 2
    assert type(open_as(folder, "images")[0]) is ImageFolder


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
