"""T2I-CompBench, WISE, GenEval 2 and OneIG: images get the official names, and only missing ones are drawn."""

import csv
import json

import pytest
from PIL import Image

from fusion.evaluation.benchmarks import draw
from fusion.evaluation.benchmarks.named_files import read_oneig, read_t2i, read_wise
from tests.support.judges import error, tree

SIZE = 8
ATOM = {"atom_count": 2, "vqa_list": [["How many cats?", "two"], ["Any cats?", "Yes"]], "skills": ["count", "object"]}


def data(tmp_path, benchmark):
    """Two prompts as the official data has them."""
    if benchmark == "t2i":
        path = tmp_path / "color_val.txt"
        path.write_text("a red cat. A.\ta category\nblue and green: two hats\n")
    elif benchmark == "wise":
        path = tmp_path / "data"
        path.mkdir()
        rows = {
            "science": [(702, "A plant without light")],
            "culture": [(3, "The flower of Mother's Day")],
            "culture_rewrite": [(3, "Carnation")],
        }
        for name, prompts in rows.items():
            (path / f"{name}.json").write_text(
                json.dumps([{"prompt_id": number, "Prompt": text, "Explanation": ""} for number, text in prompts])
            )
    elif benchmark == "geneval2":
        path = tmp_path / "geneval2_data.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": text, **ATOM}) + "\n" for text in ("two cats", "two wooden cats"))
        )
    else:
        path = tmp_path / "OneIG-Bench.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["category", "id", "prompt_en", "type", "prompt_length", "class"])
            writer.writerows(
                [
                    ["Anime_Stylization", "000", "a girl, ink", "T", "short", "None"],
                    ["Portrait", "000", "a man", "NP", "short", "None"],
                ]
            )
    return path


def drawn(benchmark, path, out, *words) -> int:
    return draw.main(["some/stub", benchmark, "--prompts", str(path), "-o", str(out), "--size", str(SIZE), *words])


NAMES = {
    "t2i": [f"samples/{name}.png" for name in ("a red cat. A._000000", "a red cat. A._000001")]
    + [f"samples/blue and green: two hats_{number}.png" for number in ("000002", "000003")],
    "wise": ["3.png", "702.png"],
    "geneval2": ["00000.png", "00001.png", "image_paths.json"],
    "oneig": ["anime/stub/000.webp", "human/stub/000.webp"],
}


@pytest.mark.parametrize("benchmark", NAMES)
def test_images_have_the_official_names(benchmark, subject, tmp_path):
    words = ["--n", "2"] if benchmark == "t2i" else []
    assert drawn(benchmark, data(tmp_path, benchmark), tmp_path / "out", *words) == 0
    assert sorted(tree(tmp_path / "out")) == NAMES[benchmark]
    assert [seed for _, seed in subject.asked] == list(range({"t2i": 4, "oneig": 8}.get(benchmark, 2)))


@pytest.mark.parametrize("benchmark", NAMES)
def test_only_what_is_missing_is_drawn_again(benchmark, subject, tmp_path):
    path, out, words = data(tmp_path, benchmark), tmp_path / "out", ["--n", "2"] if benchmark == "t2i" else []
    drawn(benchmark, path, out, *words)
    whole, last = tree(out), NAMES[benchmark][1]
    (out / last).write_bytes(whole[last][:-3])
    subject.asked.clear()
    assert drawn(benchmark, path, out, *words) == 0
    assert [seed for _, seed in subject.asked] == ([4, 5, 6, 7] if benchmark == "oneig" else [1])
    assert tree(out) == whole


def test_t2i_has_ten_images_of_a_prompt_where_nobody_says(subject, tmp_path):
    drawn("t2i", data(tmp_path, "t2i"), tmp_path / "out")
    names = [path.name for path in (tmp_path / "out" / "samples").iterdir()]
    # as the official judges take a name apart
    order = sorted(names, key=lambda name: int(name.split("_")[-1].split(".")[0]))
    assert [name.split("_")[0] for name in order] == ["a red cat. A."] * 10 + ["blue and green: two hats"] * 10


def test_geneval2_lists_where_each_prompt_s_image_is(subject, tmp_path):
    out = tmp_path / "out"
    drawn("geneval2", data(tmp_path, "geneval2"), out, "--shard", "0/2")
    assert not (out / "image_paths.json").exists()  # half of the images
    drawn("geneval2", data(tmp_path, "geneval2"), out, "--shard", "1/2")
    listed = json.loads((out / "image_paths.json").read_text())
    assert {prompt: Image.open(path).size for prompt, path in listed.items()} == {
        "two cats": (SIZE, SIZE),
        "two wooden cats": (SIZE, SIZE),
    }
    assert listed["two wooden cats"] == str(out.resolve() / "00001.png")


def test_oneig_s_images_are_grids_without_loss(subject, tmp_path):
    out = tmp_path / "out"
    drawn("oneig", data(tmp_path, "oneig"), out)
    grid = Image.open(out / "human" / "stub" / "000.webp").convert("RGB")
    alone = subject.draw(["a man"] * 4, range(4, 8), (SIZE, SIZE))
    assert grid.size == (16, 16) and [grid.getpixel(at) for at in ((0, 0), (15, 0), (0, 15), (15, 15))] == [
        one.getpixel((0, 0)) for one in alone
    ]


@pytest.mark.parametrize("benchmark", ["wise", "oneig", "t2i"])
def test_a_folder_of_another_size_is_refused(benchmark, subject, tmp_path, capsys):
    path, out = data(tmp_path, benchmark), tmp_path / "out"
    drawn(benchmark, path, out)
    (tmp_path / "out.asked.json").write_text(
        (tmp_path / "out.asked.json").read_text().replace('"size": 8', '"size": 16')
    )
    assert draw.main(["some/stub", benchmark, "--prompts", str(path), "-o", str(out), "--size", "16"]) == 1
    assert "give another folder with -o" in error(capsys)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a cat\na snake_case hat\n", "line 2: images are named by their prompts, and 'a snake_case hat'"),
        ("a cat/dog\n", "line 1: images are named by their prompts"),
        ("a" * 250 + "\n", "line 1: images are named by their prompts"),
    ],
)
def test_prompts_that_cannot_be_names_are_refused(text, said, tmp_path):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_t2i(tmp_path / "list.txt", 10)


def test_prompts_of_another_kind_are_refused(subject, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_text('{"id": 1}\n')
    for benchmark, said in {
        "wise": "not WISE's prompts",
        "geneval2": "line 1: not one of geneval2_data.jsonl",
        "oneig": "no prompts in it",
    }.items():
        assert drawn(benchmark, bad, tmp_path / "out") == 1 and said in error(capsys)
    for benchmark in ("t2i", "wise", "geneval2", "oneig"):
        assert drawn(benchmark, tmp_path / "nowhere", tmp_path / "out") == 1
        error(capsys)
    assert not (tmp_path / "out").exists()


def test_the_same_prompt_or_number_twice_is_refused(subject, tmp_path, capsys):
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("a", "b"):
        (twice / f"{name}.json").write_text('[{"prompt_id": 7, "Prompt": "a cat"}]')
    with pytest.raises(ValueError, match=r"b\.json: prompt 7 is in another file, too"):
        read_wise(twice, 1)
    path = tmp_path / "data.jsonl"
    path.write_text(
        json.dumps({"prompt": "two cats", **ATOM}) + "\n" + json.dumps({"prompt": "two cats", **ATOM}) + "\n"
    )
    assert drawn("geneval2", path, tmp_path / "out") == 1 and "two prompts are the same" in error(capsys)
    rows = tmp_path / "rows.csv"
    rows.write_text("category,id,prompt_en\nPortrait,../up,a man\n")
    with pytest.raises(ValueError, match="row 1: not one of OneIG-Bench"):
        read_oneig(rows, 4, "stub")
    rows.write_text("category,id,prompt_en\nPortrait,001,a man\nPortrait,001,a woman\n")
    assert drawn(
        "oneig", rows, tmp_path / "out"
    ) == 1 and "two images would have one name, human/stub/001.webp" in error(capsys)


def test_counts_that_a_benchmark_cannot_have_are_refused(subject, tmp_path, capsys):
    for benchmark, n in {"wise": 2, "geneval2": 4, "oneig": 3}.items():
        assert drawn(
            benchmark, data(tmp_path, benchmark), tmp_path / "out", "--n", str(n)
        ) == 1 and f"--n {n}" in error(capsys)
