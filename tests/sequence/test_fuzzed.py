"""Fuzzed data: training on half-bad data ends well, lists every bad row once, and keeps every good row as is."""

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fusion.data.check import Reader, check, recognise
from fusion.data.formats import Chat, EditPairs, ImageFolder, Interleaved, Mixture, PlainText
from fusion.data.loader import Loader
from fusion.data.packing import PackedBatches, Packing
from fusion.sequence.images import to_image
from fusion.sequence.processor import FusionProcessor
from fusion.testing import tiny_llms as families
from fusion.testing import tiny_runs as training
from fusion.training.log import LeftOut
from tests.support import fuzzing
from tests.support.fuzzing import CAPTIONS, INJECTED, NO_IMAGE, NO_ROW, NO_TEXT, Bad, Good

PACKING = Packing(length=256, rows=8, drop_text=0.0, drop_all=0.0, tail=0.0, lookahead=32)


@pytest.fixture(scope="module")
def processor() -> FusionProcessor:
    return FusionProcessor.from_tokenizer(families.tiny_tokenizer(), families.VOCAB, stride=8)


def line_of(key: str) -> int:
    return int(key.rpartition(":")[2])


def assert_all_told(told: list[tuple[str, str]], fates: dict[int, Good | Bad]) -> None:
    """Every bad row, each once, none beside them, and each for its own reason."""
    assert sorted(line_of(key) for key, _ in told) == sorted(
        line for line, fate in fates.items() if isinstance(fate, Bad)
    )
    wrong = {key: reason for key, reason in told if fates[line_of(key)].reason not in reason}
    assert not wrong
    assert all(text.isprintable() for pair in told for text in pair)


class Watched:
    """A loader that remembers its batches."""

    def __init__(self, loader: Loader):
        self.loader, self.batches, self.seen = loader, loader.batches, []

    def __next__(self):
        self.seen.append(next(self.loader))
        return self.seen[-1]

    def state_dict(self) -> dict:
        return self.loader.state_dict()

    def close(self) -> None:
        self.loader.close()


def arrived(batch, processor):
    """(key, text with the size text behind it, number of control tokens, values of the image) of each document of a
    batch."""
    packed, keys = batch.packed, iter(batch.keys)
    for row in range(len(packed.ids)):
        for document in range(int(packed.doc[row].max()) + 1):
            here = packed.doc[row] == document
            ids = packed.ids[row][here & (packed.image_index[row] < 0)].tolist()
            (image_index,) = packed.image_index[row][here & (packed.image_index[row] >= 0)].unique().tolist()
            values = np.asarray(to_image(packed.pixels[packed.source[image_index]]))
            control = sum(index in processor.text.special for index in ids)
            yield next(keys), processor.decode(ids, skip_special_tokens=True), control, values


def test_training_over_a_thousand_fuzzed_rows(processor, tmp_path):
    fates = fuzzing.captioned(tmp_path, 1000)
    good = {line: fate for line, fate in fates.items() if isinstance(fate, Good)}
    llm = training.save_llm(tmp_path / "llm")
    source = ImageFolder(tmp_path)
    batches = PackedBatches(
        lambda shard, shards: Mixture([source], seed=1, shard=shard, shards=shards), processor, PACKING
    )
    loader = Watched(Loader(batches))
    trainer = training.make(
        llm, tmp_path / "run", loader, validate=False, documents=len(good) + 130, save_every=0, sample_every=0
    )
    summary = trainer.fit()
    assert summary.interrupted is None and summary.seen >= len(good) + 130

    told = [tuple(line.split(": ", 1)) for line in (tmp_path / "run" / "skipped.txt").read_text().splitlines()]
    assert_all_told(told, fates)
    assert trainer.skipped == len(told)

    found = [document for batch in loader.seen for document in arrived(batch, processor)]
    times = Counter(line_of(key) for key, *_ in found)
    assert set(times) == set(good) and set(times.values()) == {1, 2}, "an epoch and a bit"
    for key, text, control, values in found:
        fate = good[line_of(key)]
        height, width = fate.pixels.shape[:2]
        assert text == f"draw {fate.text}{width}x{height}"
        assert control == 4, "user, end, assistant and image-start, and what was typed is none"
        assert np.array_equal(values, fate.pixels), key


def test_the_check_finds_what_training_leaves_out(processor, tmp_path):
    fates = fuzzing.captioned(tmp_path, 250, seed=1)
    (report,) = check(recognise(tmp_path), reader=Reader(processor, length=PACKING.length)).reports
    assert_all_told(report.bad, fates)
    assert report.rows == 250 == len(report.good) + len(report.bad)
    assert report.sizes == {(16, 8): len(report.good)}


def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path):
    """No prefix of an image's file becomes another image."""
    rng = np.random.default_rng(3)
    for number, make in enumerate(fuzzing.IMAGES):
        data, suffix, values = make(rng)
        places = sorted({0, 1, len(data) - 1, *rng.integers(0, len(data), 25).tolist()})
        rows = []
        for place in places:
            (tmp_path / f"{number}-{place}{suffix}").write_bytes(data[:place])
            rows.append({"file_name": f"{number}-{place}{suffix}", "text": "a"})
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        source, refused = ImageFolder(tmp_path), 0
        for index in range(len(source)):
            try:
                image = source[index].messages[1]["content"][0]["image"]
            except ValueError:
                refused += 1
            else:
                assert np.array_equal(np.asarray(image), values), (
                    f"image {number}, cut at {places[index]} of {len(data)}"
                )
        assert refused >= len(places) // 8, "of an animation, the first frame may be whole"


# ---- the other formats
# ----------------------------------------------------------------------------------------------------------


def epoch(source) -> tuple[list, list[tuple[str, str]]]:
    """The samples of one epoch and what was left out of it."""
    mixture = Mixture([source])
    samples = []
    while mixture.state_dict()["streams"][source.name]["epoch"] == 0:
        samples.append(next(mixture))
    met = len(samples) + mixture.skipped_count
    # The last draw may have gone on into the next epoch: what it found there is told already, or comes again.
    assert met >= len(source)
    return samples, mixture.skipped


def assert_fates(source, fates: list[list | str]) -> None:
    """Each row of a source arrives as its blocks, or is told for its reason."""
    samples, told = epoch(source)
    arrived = {}
    for sample in samples:
        turns = sample.messages or [{"content": sample.content}]
        blocks = [
            b["text"] if b["type"] == "text" else np.asarray(b["image"]).tolist()
            for turn in turns
            for b in turn["content"]
        ]
        arrived[sample.key] = blocks
    keys = [key for key, _ in told]
    assert len(set(keys)) == len(keys) and not set(keys) & set(arrived)
    assert len(arrived) == sum(isinstance(fate, list) for fate in fates) and len(keys) == sum(
        isinstance(fate, str) for fate in fates
    )
    by_line = {line_of(key): value for key, value in [*arrived.items(), *told]}
    for line, fate in zip(sorted(by_line), fates, strict=True):
        assert by_line[line] == fate if isinstance(fate, list) else fate in by_line[line], (line, by_line[line], fate)
    assert sorted(check([source]).reports[0].bad) == sorted(told)


def write_lines(path: Path, rows: list) -> Path:
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


@pytest.fixture
def drawn(tmp_path):
    """`drawn()`: the name of an image, and its values as lists."""
    stream = fuzzing.images(tmp_path, np.random.default_rng(1))
    return lambda: (lambda name, values: (name, values.tolist()))(*next(stream))


def test_fuzzed_edits(tmp_path, drawn):
    rows, fates = [], []
    good, _ = drawn()
    for text in CAPTIONS:
        (before, first), (after, second) = drawn(), drawn()
        rows.append({"input_image": before, "edit_prompt": text, "edited_image": after})
        fates.append([first, text, second])
    for value, reason in NO_IMAGE:
        for column in ("input_image", "edited_image"):
            rows.append({"input_image": good, "edit_prompt": "a", "edited_image": good} | {column: value})
            fates.append(reason.replace("metadata", "edits"))
    rows += [{"input_image": good, "edit_prompt": text, "edited_image": good} for text, _ in NO_TEXT]
    fates += [reason for _, reason in NO_TEXT]
    (tmp_path / "metadata.jsonl").write_text("{}")
    write_lines(tmp_path / "edits.jsonl", rows)
    assert_fates(EditPairs(tmp_path), fates)


def test_fuzzed_pages_and_chats(tmp_path, drawn):
    good, values = drawn()
    (tmp_path / "metadata.jsonl").write_text("{}")

    def image(value):
        return {"type": "image", "image": value}

    def text(value):
        return {"type": "text", "text": value}

    contents, fates = [], []
    for caption in CAPTIONS:
        name, pixels = drawn()
        contents.append([text(caption), image(name), text(INJECTED)])
        fates.append([caption, pixels, INJECTED])
    wrong = [([text(value)], "") for value, _ in NO_TEXT if not isinstance(value, str)]
    wrong += [
        ([text("a\ud800")], "Unicode"),
        ([image(None)], "names no image"),
        ([{"type": "video"}], "a block is"),
        ([7], "a block is"),
    ]
    wrong += [(7, "int"), ({"type": "text"}, "dict"), (None, "")]
    wrong += [
        ([text("a"), image(value)], reason if value else "is a folder")
        for value, reason in NO_IMAGE
        if value is not None
    ]
    rows = [{"content": content} for content in contents + [content for content, _ in wrong]] + list(NO_ROW)
    rows += [{"content": [{"type": "image"}], "images": images} for images in (5, "good.png", {"a": 1}, [])] + [
        {"content": []},
        {"other": 1},
    ]
    fates_of_pages = (
        fates + [reason for _, reason in wrong] + ["JSON"] * len(NO_ROW) + ["list"] * 3 + ["no more", "", "no column"]
    )
    assert_fates(Interleaved(write_lines(tmp_path / "pages.jsonl", rows)), fates_of_pages)

    def chat(content, role="assistant"):
        return {"messages": [{"role": "user", "content": INJECTED}, {"role": role, "content": content}]}

    rows = [chat(content) for content in contents + [content for content, _ in wrong]] + list(NO_ROW)
    rows += [chat("a", role) for role in ("robot", 5, None, ["user"], "user")] + [
        {"messages": m} for m in (5, "a", [], [5], [{}], None)
    ]
    rows += [
        chat([{"type": "image"}]) | {"images": [good]},
        chat("a") | {"images": [good]},
        chat([{"type": "image"}]) | {"images": 5},
    ]
    fates_of_chats = [[INJECTED, *fate] for fate in fates] + [reason for _, reason in wrong] + ["JSON"] * len(NO_ROW)
    fates_of_chats += (
        ["role"] * 4
        + ["nothing to learn"]
        + [""] * 6
        + [[INJECTED, values], "more than the messages use", "not a list"]
    )
    assert_fates(Chat(write_lines(tmp_path / "chats.jsonl", rows)), fates_of_chats)


def test_fuzzed_text(tmp_path):
    rows = [{"text": text} for text in CAPTIONS] + [{"text": text} for text, _ in NO_TEXT] + [*NO_ROW, {"other": 1}, {}]
    fates = (
        [[text] for text in CAPTIONS]
        + [reason for _, reason in NO_TEXT]
        + ["JSON"] * len(NO_ROW)
        + ["no column", "no column"]
    )
    assert_fates(PlainText(write_lines(tmp_path / "texts.jsonl", rows)), fates)


def test_fuzzed_csv(tmp_path, drawn):
    """A row of CSV with a cell too many would lose the end of its caption: it is told instead, as all that costs a row
    is."""
    name, values = drawn()
    good = [text for text in CAPTIONS if "\n" not in text and "\r" not in text]
    with (tmp_path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), *((name, text) for text in good)])
    lines = [
        b"%s,a cat, sitting",
        b"%s",
        b'%s,"a" cat',
        b"%s,caf\xe9",
        b"%s,",
        b",a",
        b"%s,   ",
        b"nowhere.png,a",
        b"%s," + b"x" * 200_000,
    ]
    reasons = ["3 cells", "1 cells", "CSV", "Unicode", "empty", "empty", "spaces", "no such file", "CSV"]
    with (tmp_path / "metadata.csv").open("ab") as file:
        file.write(b"\r\n".join(line.replace(b"%s", name.encode()) for line in lines) + b"\r\n\r\n")
        file.write(f'{name},"two\r\nlines"\r\n{name},after\r\n{name},"never closed\r\n{name},lost\r\n'.encode())
    fates = (
        [["draw " + text, values] for text in good]
        + reasons
        + [["draw two\r\nlines", values], ["draw after", values], "CSV"]
    )
    assert_fates(ImageFolder(tmp_path), fates)
    last = len(good) + 1 + len(lines)
    assert {line_of(key) for key, _ in epoch(ImageFolder(tmp_path))[1]} >= {last + 5}, (
        "blank lines and lines in quotes are counted too"
    )


def test_fuzzed_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rng = np.random.default_rng(2)
    made = [make(rng) for make in fuzzing.IMAGES]
    cells = [({"bytes": data, "path": None}, "a") for data, _, _ in made]
    cells += [({"bytes": make(rng), "path": f"{name}.png"}, "a") for name, make in fuzzing.BROKEN.items()]
    cells += [({"bytes": None, "path": None}, "a"), (None, "a"), (cells[0][0], ""), (cells[0][0], None)]
    table = pyarrow.Table.from_pylist([{"image": image, "text": text} for image, text in cells])
    parquet.write_table(table, tmp_path / "metadata.parquet")
    fates = [["draw a", values.tolist()] for _, _, values in made] + [
        f"{name}.png" for name in fuzzing.BROKEN if name != "empty"
    ]
    fates.insert(len(made) + list(fuzzing.BROKEN).index("empty"), "no such file")
    assert_fates(ImageFolder(tmp_path), [*fates, "not an image", "empty", "empty", "empty"])


def test_captions_beside_images_that_cannot_be_read(tmp_path):
    (tmp_path / "good.png").write_bytes(fuzzing.encoded(fuzzing.Image.new("RGB", (8, 8)), "PNG"))
    beside = {"a": b"fine", "b": b"caf\xe9", "c": b"", "d": None, "e": INJECTED.encode()}
    for name, words in beside.items():
        (tmp_path / f"{name}.png").write_bytes((tmp_path / "good.png").read_bytes())
        if words is not None:
            (tmp_path / f"{name}.txt").write_bytes(words)
    (tmp_path / "good.png").unlink()
    samples, told = epoch(ImageFolder(tmp_path))
    assert {Path(sample.key).name: sample.messages[0]["content"][0]["text"] for sample in samples} == {
        "a.png": "draw fine",
        "e.png": f"draw {INJECTED}",
    }
    assert sorted(Path(key).name for key, _ in told) == ["b.png", "c.png", "d.png"]


# ---- told once
# ------------------------------------------------------------------------------------------------------------------


def test_what_workers_epochs_and_resumed_runs_meet_again_is_listed_once(tmp_path):
    path = tmp_path / "skipped.txt"
    pairs = [(f"folder: old/metadata.jsonl:{n}", "is bad: very") for n in range(1, 5)]
    left_out = LeftOut(path)
    assert [left_out.add(pairs[:2]), left_out.add(pairs[:2]), left_out.add([pairs[1], pairs[2], pairs[2]])] == [2, 2, 3]
    again = LeftOut(path, count=2)  # a checkpoint from before the third
    assert again.count == 2 and again.add(pairs) == 4
    assert path.read_text().splitlines() == [f"{key}: {reason}" for key, reason in pairs]
    LeftOut(path)
    assert not path.exists(), "a run that begins has left out nothing"


def test_what_is_too_long_is_told_once_in_many_epochs(tmp_path, processor):
    rows = [{"text": "a"}] * 3 + [{"messages": [{"role": "assistant", "content": "long " * 500}]}]
    write_lines(
        tmp_path / "chats.jsonl",
        [{"messages": [{"role": "assistant", "content": row["text"]}]} if "text" in row else row for row in rows],
    )
    source = Chat(tmp_path / "chats.jsonl")
    stream = Loader(
        PackedBatches(
            lambda shard, shards: Mixture([source], shard=shard, shards=shards), processor, Packing(64, 2, lookahead=4)
        )
    )
    told = list(itertools.chain(*(next(stream).skipped for _ in range(20))))
    assert [line_of(key) for key, _ in told] == [4]
