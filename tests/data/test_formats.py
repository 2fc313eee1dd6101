"""Sources: every format becomes the samples it describes, and a bad row costs itself, never the run."""

import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from fusion.data.formats import BadSample, Captions, Chat, EditPairs, Fit, ImageFolder, Interleaved, PlainText
from fusion.data.formats.plain_text import cut
from fusion.sequence.images import open_image


def save_photo(path, seed, size=(16, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(values).save(path)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def same(image, path):
    return image.mode == "RGB" and image.tobytes() == open_image(path).tobytes()


def shape(messages):
    """(role, kinds of blocks) of each message."""
    return [(m["role"], [block["type"] for block in m["content"]]) for m in messages]


@pytest.fixture
def folder(tmp_path):
    for number in range(6):
        save_photo(tmp_path / "images" / f"{number}.png", number)
    write_rows(
        tmp_path / "metadata.jsonl", [{"file_name": f"images/{n}.png", "text": f" thing {n} "} for n in range(6)]
    )
    return tmp_path


# ---- captions
# -------------------------------------------------------------------------------------------------------------------


def test_a_caption_becomes_a_request_and_an_image(folder):
    sample = ImageFolder(folder)[3]
    assert shape(sample.messages) == [("user", ["text"]), ("assistant", ["image"])]
    assert sample.messages[0]["content"][0]["text"] == "draw thing 3"
    assert same(sample.messages[1]["content"][0]["image"], folder / "images/3.png")
    assert (sample.content, sample.source, sample.subject) == (None, folder.name, "3")
    assert sample.key == str(folder / "metadata.jsonl:4")


def test_described_the_other_way_round(folder):
    source = ImageFolder(folder, captions=Captions(describe=1.0, questions=("what is it?",)))
    sample = source[2]
    assert shape(sample.messages) == [("user", ["image", "text"]), ("assistant", ["text"])]
    assert [m["content"][-1]["text"] for m in sample.messages] == ["what is it?", "thing 2"]


def test_prompts_and_directions_are_drawn_at_their_rates(folder):
    source = ImageFolder(folder, captions=Captions(prompts=("paint {text}", "{text}"), describe=0.25))
    stream = source.stream()
    firsts = [next(stream).messages[0]["content"][0] for _ in range(600)]
    described = sum(block["type"] == "image" for block in firsts) / 600
    painted = sum(block.get("text", "").startswith("paint") for block in firsts) / 600
    assert described == pytest.approx(0.25, abs=0.06)
    assert painted == pytest.approx(0.375, abs=0.07)


def test_a_caption_is_only_text(folder):
    strange = "a {text} {0} <|image_start|>64x64<|image_patch|>"
    write_rows(folder / "metadata.jsonl", [{"file_name": "images/0.png", "text": strange}])
    assert ImageFolder(folder)[0].messages[0]["content"][0]["text"] == f"draw {strange}"


def test_jsonl_csv_and_parquet_hold_the_same(folder):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    expected = [sample_bytes(sample) for sample in ImageFolder(folder)]
    (folder / "metadata.jsonl").unlink()
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "text"])
        writer.writeheader()
        writer.writerows(rows)
    assert [sample_bytes(sample) for sample in ImageFolder(folder)] == expected
    (folder / "metadata.csv").unlink()
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "metadata.parquet")
    assert [sample_bytes(sample) for sample in ImageFolder(folder)] == expected


def sample_bytes(sample):
    """A sample as comparable values."""
    turns = sample.messages or [{"role": None, "content": sample.content}]
    return [
        (m["role"], [b["text"] if b["type"] == "text" else b["image"].tobytes() for b in m["content"]]) for m in turns
    ]


def test_columns_go_by_other_names(folder):
    write_rows(folder / "metadata.jsonl", [{"image": "images/0.png", "caption": "a", "title": "b"}])
    assert ImageFolder(folder)[0].messages[0]["content"][0]["text"] == "draw a"
    assert ImageFolder(folder, columns={"text": "title"})[0].messages[0]["content"][0]["text"] == "draw b"


def test_captions_in_text_files_beside_the_images(folder):
    (folder / "metadata.jsonl").unlink()
    (folder / "images" / "1.txt").write_text("a one\n")
    source = ImageFolder(folder)
    assert len(source) == 6
    assert source[1].messages[0]["content"][0]["text"] == "draw a one"
    with pytest.raises(BadSample, match=r"images/0\.png: its caption cannot be read .* write 0\.txt beside it"):
        source[0]


def test_images_are_fitted(folder):
    save_photo(folder / "images/0.png", 0, (100, 52))
    image = ImageFolder(folder, fit=Fit(stride=8, max_pixels=1024))[0].messages[1]["content"][0]["image"]
    assert (
        image.width % 8 == image.height % 8 == 0 and image.width * image.height <= 1024 and image.width > image.height
    )
    image = ImageFolder(folder, fit=Fit(stride=8, size=(24, 40)))[0].messages[1]["content"][0]["image"]
    assert image.size == (24, 40)
    with pytest.raises(ValueError, match="multiples of the stride"):
        Fit(stride=8, size=(20, 40))
    with pytest.raises(ValueError, match="leave no room"):
        Fit(stride=64, max_pixels=1024)


# ---- edits, pages, chats, text
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names", [("input_file_name", "instruction", "edited_file_name"), ("input_image", "edit_prompt", "edited_image")]
)
def test_edit_pairs(folder, names):
    values = ("images/0.png", "make it five", "images/5.png")
    write_rows(folder / "edits.jsonl", [dict(zip(names, values, strict=True))])
    sample = EditPairs(folder)[0]
    assert shape(sample.messages) == [("user", ["image", "text"]), ("assistant", ["image"])]
    (before, instruction), (after,) = (m["content"] for m in sample.messages)
    assert same(before["image"], folder / "images/0.png") and same(after["image"], folder / "images/5.png")
    assert instruction["text"] == "make it five"


def test_edit_pairs_from_another_table_with_other_columns(folder):
    write_rows(folder / "pairs.jsonl", [{"a": "images/0.png", "say": "x", "b": "images/1.png"}])
    columns = {"input_file_name": "a", "instruction": "say", "edited_file_name": "b"}
    assert len(EditPairs(folder, file="pairs.jsonl", columns=columns)) == 1


def test_pages(folder):
    blocks = [
        {"type": "text", "text": "x"},
        {"type": "image", "image": "images/1.png", "alt": "y"},
        {"type": "text", "text": "z"},
    ]
    sample = Interleaved(write_rows(folder / "pages.jsonl", [{"content": blocks}]))[0]
    assert sample.messages is None
    assert [block["type"] for block in sample.content] == ["text", "image", "text"]
    assert same(sample.content[1]["image"], folder / "images/1.png")


def test_chats(folder):
    rows = [
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "ho"},
            ]
        },
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "again"}]},
                {"role": "assistant", "content": [{"type": "image", "image": None}]},
            ],
            "images": ["images/2.png", "images/3.png"],
        },
    ]
    plain, drawn = Chat(write_rows(folder / "chats.jsonl", rows))
    assert [m["content"] for m in plain.messages] == [
        [{"type": "text", "text": text}] for text in ("be brief", "hi", "ho")
    ]
    assert same(drawn.messages[0]["content"][0]["image"], folder / "images/2.png")
    assert same(drawn.messages[1]["content"][0]["image"], folder / "images/3.png")


TEXT = (
    "One day. Another, longer day!\n\nA new paragraph, quite long: "
    + "word " * 60
    + "\nä line — with ünicode.\n"
    + "x" * 150
)


@pytest.mark.parametrize("max_chars", [20, 64, 1000])
def test_cut_text_loses_nothing(max_chars):
    spans = list(cut(TEXT, max_chars))
    assert "".join(TEXT[a:b] for a, b in spans) == TEXT
    assert all(0 < b - a <= max_chars for a, b in spans)


def test_text_is_cut_at_the_best_break_there_is():
    pieces = [TEXT[a:b] for a, b in cut(TEXT, 50)]
    assert pieces[0] == "One day. Another, longer day!\n\n"
    inside_a_word = [a[-1] + b[0] for a, b in itertools.pairwise(pieces) if a[-1].isalnum() and b[0].isalnum()]
    assert set(inside_a_word) == {"xx"}  # the one word that is longer than a piece


def test_text_from_a_file_a_folder_and_a_table_is_the_same(tmp_path):
    words = " ".join(TEXT.split())
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.txt").write_text("another")
    write_rows(tmp_path / "table.jsonl", [{"text": TEXT}])

    def read(source):
        return " ".join(" ".join(sample.content[0]["text"] for sample in source).split())

    assert read(PlainText(tmp_path / "a.txt", max_chars=80)).replace(" ", "") == words.replace(" ", "")
    assert read(PlainText(tmp_path / "table.jsonl", max_chars=80)).replace(" ", "") == words.replace(" ", "")
    both = PlainText(tmp_path, max_chars=80)
    assert read(both).replace(" ", "") == (words + "another").replace(" ", "")
    assert {sample.subject for sample in both} == {"a.txt", "more/b.txt"}  # a file stays on one side


# ---- bad input
# ------------------------------------------------------------------------------------------------------------------


def truncated(path):
    path.write_bytes((path.parent / "5.png").read_bytes()[:200])


BAD_ROWS = {
    "no file": ({"file_name": "images/9.png", "text": "a"}, r"images/9\.png: no such file"),
    "not an image": ({"file_name": "metadata.jsonl", "text": "a"}, "is not an image"),
    "truncated": ({"file_name": "images/cut.png", "text": "a"}, r"images/cut\.png"),
    "empty caption": ({"file_name": "images/0.png", "text": ""}, "column 'text' is empty"),
    "blank caption": ({"file_name": "images/0.png", "text": " \n"}, "nothing but spaces"),
    "null caption": ({"file_name": "images/0.png", "text": None}, "column 'text' is empty"),
    "number caption": ({"file_name": "images/0.png", "text": 7}, "column 'text' holds a int, not a string"),
    "list caption": ({"file_name": "images/0.png", "text": ["a"]}, "holds a list, not a string"),
    "no caption": ({"file_name": "images/0.png"}, "has no column 'text'"),
    "no image": ({"text": "a"}, "has no column 'file_name'"),
    "a list": (["images/0.png", "a"], "holds a list, not a JSON object"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_says_in_one_line_where_and_why(folder, case):
    row, reason = BAD_ROWS[case]
    truncated(folder / "images/cut.png")
    write_rows(folder / "metadata.jsonl", [{"file_name": "images/0.png", "text": "good"}, row])
    source = ImageFolder(folder)
    assert len(source[0].messages) == 2
    with pytest.raises(BadSample, match=reason) as caught:
        source[1]
    assert caught.value.key == str(folder / "metadata.jsonl:2")
    assert "\n" not in str(caught.value)


def test_a_broken_line_is_one_bad_sample(folder):
    with (folder / "metadata.jsonl").open("ab") as file:
        file.write(b'\n{"file_name": "images/0.png", "te\n\xff\xfe\n')
    source = ImageFolder(folder)
    assert len(source) == 8
    for index, line in ((6, 8), (7, 9)):
        with pytest.raises(BadSample, match=rf"metadata\.jsonl:{line}: is not a JSON object"):
            source[index]


BAD_CHATS = {
    "no assistant": ([{"role": "user", "content": "hi"}], "nothing to learn"),
    "role": ([{"role": "robot", "content": "hi"}], "role 'robot'"),
    "missing image": ([{"role": "assistant", "content": [{"type": "image"}]}], "names no image"),
    "block": ([{"role": "assistant", "content": [{"type": "video", "video": "x"}]}], "a block is"),
    "not a list": ("hi", "not a list of messages"),
}


@pytest.mark.parametrize("case", BAD_CHATS)
def test_a_bad_chat_says_why(tmp_path, case):
    messages, reason = BAD_CHATS[case]
    with pytest.raises(BadSample, match=reason):
        Chat(write_rows(tmp_path / "chats.jsonl", [{"messages": messages}]))[0]


def test_text_that_is_not_utf8_is_one_bad_sample(tmp_path):
    (tmp_path / "good.txt").write_text("fine")
    (tmp_path / "latin.txt").write_bytes("grün".encode("latin-1"))
    source = PlainText(tmp_path)
    assert source[0].content[0]["text"] == "fine"
    with pytest.raises(BadSample, match=r"latin\.txt:0: is not readable as UTF-8"):
        source[1]


def test_what_can_never_work_is_refused_at_once(folder):
    with pytest.raises(ValueError, match="no such folder"):
        ImageFolder(folder / "elsewhere")
    with pytest.raises(ValueError, match="no such file"):
        Interleaved(folder / "pages.jsonl")
    with pytest.raises(ValueError, match=r"no column title .*it has: file_name, text.*; set columns\.text"):
        ImageFolder(folder, columns={"text": "title"})
    with pytest.raises(ValueError, match="columns has no entry 'caption'; it maps file_name, text"):
        ImageFolder(folder, columns={"caption": "title"})
    with pytest.raises(ValueError, match="no edits"):
        EditPairs(folder)
    with pytest.raises(ValueError, match=r"metadata\.jsonl and metadata\.csv; keep one"):
        (folder / "metadata.csv").write_text("file_name,text\n")
        ImageFolder(folder)
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="its table is empty"):
        ImageFolder(folder)
    (folder / "metadata.jsonl").write_text("{\n{\n")
    with pytest.raises(ValueError, match="none of its 2 rows can be read"):
        ImageFolder(folder)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="no captions; write metadata"):
        ImageFolder(folder)
    with pytest.raises(ValueError, match=r"describe=2\.0 is a probability"):
        Captions(describe=2.0)
    with pytest.raises(ValueError, match=r"each needs \{text\}"):
        Captions(prompts=("draw",))


# ---- the real data
# --------------------------------------------------------------------------------------------------------------


def test_the_real_book_opens(shared_data):
    book = Interleaved(shared_data / "alice" / "documents.jsonl", fit=Fit(stride=16, max_pixels=128 * 128))
    pages = [book[index] for index in range(len(book))]
    images = [block["image"] for page in pages for block in page.content if block["type"] == "image"]
    assert (len(pages), len(images)) == (89, 30)
    assert all(image.mode == "RGB" and image.width % 16 == image.height % 16 == 0 for image in images)
    assert "Down the Rabbit-Hole" in pages[0].content[0]["text"]
