"""Benchmarks of single image files with official names: T2I-CompBench, WISE, GenEval 2 and OneIG.

Prompts are read from a copy of the official data, which is not part of this repository:

    t2i        a category's list, such as color_val.txt      samples/{prompt}_{image:06d}.png
    wise       its JSON files, one or the folder of them      {prompt_id}.png
    geneval2   geneval2_data.jsonl                            {prompt:05d}.png, and image_paths.json: {prompt: path}
    oneig      OneIG-Bench.csv                                {class}/{model}/{id}.webp, four images as 2 x 2

T2I-CompBench: Huang et al., arXiv 2307.06350; WISE: Niu et al., arXiv 2503.07265; GenEval 2: Kamath et al., arXiv
2512.16853; OneIG-Bench: Chang et al., arXiv 2506.07977.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from fusion.common.atomic import save
from fusion.evaluation.benchmarks.common.image_grid import complete, grid, save_png
from fusion.evaluation.benchmarks.common.input_files import text_in
from fusion.sequence.images import open_image

LONGEST = 255  # bytes of a file's name
CLASSES = {
    "Anime_Stylization": "anime",
    "Portrait": "human",
    "General_Object": "object",
    "Text_Rendering": "text",
    "Knowledge_Reasoning": "reasoning",
    "Multilingualism": "multilingualism",
}
N = {"t2i": 10, "wise": 1, "geneval2": 1, "oneig": 4}
"""Images of a prompt that the official code asks for."""


@dataclass(frozen=True)
class Named:
    """A prompt, and the names of its images below the benchmark's folder; a single name of several images is a
    grid's."""

    text: str
    names: tuple[str, ...]


class Folder:
    """Where drawings go: one file for each, or one for all four of a prompt where it has but one name."""

    def __init__(self, root: Path, asked: Sequence[Named], n: int, size: tuple[int, int]):
        self.root, self.asked, self.n, self.size = root, asked, n, size
        self.prompts = [one.text for one in asked]
        self._drawn: dict[int, list[Image.Image]] = {}

    def missing(self, number: int) -> list[int]:
        """Samples that are not there to their end. ValueError where one is there in another size."""
        names = self.asked[number].names
        if len(names) == self.n:
            return [sample for sample, name in enumerate(names) if not self._there(name, self.size)]
        return [] if self._there(names[0], (self.size[0] * 2, self.size[1] * 2)) else list(range(self.n))

    def _there(self, name: str, size: tuple[int, int]) -> bool:
        path = self.root / name
        return complete(path, size) if path.suffix == ".png" else _whole(path, size)

    def put(self, number: int, sample: int, image: Image.Image) -> None:
        """Keep an image; those of a grid come in their order."""
        names = self.asked[number].names
        if len(names) == self.n:
            return _write(image, self.root / names[sample])
        drawn = self._drawn.setdefault(number, [])
        drawn.append(image)
        if len(drawn) == self.n:
            _write(grid(self._drawn.pop(number)), self.root / names[0])
        return None

    def finish(self) -> None:
        """What lies beside the images when all are drawn; nothing here."""


class Listed(Folder):
    """GenEval 2's: a list says which image is of which prompt."""

    def finish(self) -> None:
        """image_paths.json, which the official evaluation.py takes as its --image_filepath_data: whole paths, as it may
        run anywhere."""
        listed = {one.text: str((self.root / one.names[0]).resolve()) for one in self.asked}
        save((json.dumps(listed, indent=1, ensure_ascii=False) + "\n").encode(), self.root / "image_paths.json")


def _write(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        save_png(image, path)
    else:
        data = io.BytesIO()
        image.save(data, "WEBP", lossless=True)
        save(data.getvalue(), path)


def _whole(path: Path, size: tuple[int, int]) -> bool:
    """`complete` of a WebP, which says in its head how long it is: bytes 4 to 7, without the first eight."""
    data = path.read_bytes() if path.is_file() else b""
    if data[:4] != b"RIFF" or len(data) < int.from_bytes(data[4:8], "little") + 8:
        return False
    found = open_image(path).size
    if found != size:
        raise ValueError(
            f"{path} is {found[0]}x{found[1]}, not {size[0]}x{size[1]}: give another folder with -o, or the --size it "
            "was drawn with"
        )
    return True


# ---- prompts ----


def read_t2i(path: Path, n: int) -> list[Named]:
    """A prompt a line, what follows a tab left out. The official judges read the prompt out of the name up to its first
    `_`, so none may have one. Images are numbered through all prompts."""
    texts = [
        line.split("\t")[0]
        for line in text_in(path, "T2I-CompBench's lists, such as color_val.txt").splitlines()
        if line.strip()
    ]
    found = []
    for number, text in enumerate(texts):
        names = tuple(f"samples/{text}_{number * n + sample:06d}.png" for sample in range(n))
        if "_" in text or "/" in text or len(Path(names[0]).name.encode()) > LONGEST:
            raise ValueError(
                f"{path}, line {number + 1}: images are named by their prompts, and {text[:60]!r} cannot be part of "
                "a file's name"
            )
        found.append(Named(text, names))
    return found


def read_wise(path: Path, n: int) -> list[Named]:
    """Lists of {"prompt_id", "Prompt", ...}: one file, or all of a folder without those of rewritten prompts, which
    have the same numbers."""
    if n != 1:
        raise ValueError(f"--n {n}: WISE has one image of each prompt")
    files = (
        [file for file in sorted(path.glob("*.json")) if not file.stem.endswith("_rewrite")]
        if path.is_dir()
        else [path]
    )
    found = {}
    for file in files:
        try:
            rows = [
                (int(row["prompt_id"]), str(row["Prompt"])) for row in json.loads(text_in(file, "WISE's JSON files"))
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: not WISE's prompts ({error!r:.80}); give one of its JSON files, or the folder of them"
            ) from None
        if twice := [number for number, _ in rows if number in found]:
            raise ValueError(f"{file}: prompt {twice[0]} is in another file, too; give one of them")
        found.update(dict(rows))
    return [Named(text, (f"{number}.png",)) for number, text in sorted(found.items())]


def read_geneval2(path: Path, n: int) -> list[Named]:
    """JSON lines with a "prompt" each, no two the same, since images are told apart by it."""
    if n != 1:
        raise ValueError(f"--n {n}: GenEval 2 has one image of each prompt")
    texts = [row["prompt"] for row in read_atoms(path)]
    if twice := [text for number, text in enumerate(texts) if text in texts[:number]]:
        raise ValueError(f"{path}: two prompts are the same, {twice[0][:60]!r}")
    return [Named(text, (f"{number:05d}.png",)) for number, text in enumerate(texts)]


def read_atoms(path: Path) -> list[dict]:
    """The lines of geneval2_data.jsonl: prompt, atom_count, vqa_list and skills. ValueError naming the line that cannot
    be used."""
    found = []
    for number, line in enumerate(text_in(path, "geneval2_data.jsonl").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            usable = (
                isinstance(row["prompt"], str)
                and len(row["vqa_list"]) == len(row["skills"]) > 0
                and int(row["atom_count"]) > 0
            )
            usable = usable and all(
                len(pair) == 2 and all(isinstance(one, str) and one for one in pair) for pair in row["vqa_list"]
            )
        except (ValueError, KeyError, TypeError):
            usable = False
        if not usable:
            raise ValueError(f"{path}, line {number}: not one of geneval2_data.jsonl")
        found.append(row)
    return found


def read_oneig(path: Path, n: int, model: str) -> list[Named]:
    """Rows of category, id and prompt_en, or prompt_cn in the Chinese file."""
    if n not in (1, 4):
        raise ValueError(f"--n {n}: OneIG's images are of one drawing, or of four as 2 x 2")
    found = []
    for number, row in enumerate(csv.DictReader(io.StringIO(text_in(path, "OneIG-Bench.csv"))), 1):
        text = row.get("prompt_en") or row.get("prompt_cn")
        name = row.get("id") or ""
        if row.get("category") not in CLASSES or not text or not name.isalnum():
            raise ValueError(f"{path}, row {number}: not one of OneIG-Bench.csv (category, id, prompt_en)")
        found.append(Named(text, (f"{CLASSES[row['category']]}/{model}/{name}.webp",)))
    return found


def layout(benchmark: str, path: Path, root: Path, n: int, size: tuple[int, int], model: str) -> Folder:
    """A benchmark's folder, its prompts read. model: the name OneIG's folders have for it. ValueError in one line for
    what cannot be read."""
    readers: dict[str, Callable[[], list[Named]]] = {
        "t2i": lambda: read_t2i(path, n),
        "wise": lambda: read_wise(path, n),
        "geneval2": lambda: read_geneval2(path, n),
        "oneig": lambda: read_oneig(path, n, model),
    }
    asked = readers[benchmark]()
    if not asked:
        raise ValueError(f"{path}: no prompts in it")
    names = [name for one in asked for name in one.names]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{path}: two images would have one name, {next(name for name in names if names.count(name) > 1)}"
        )
    return (Listed if benchmark == "geneval2" else Folder)(root, asked, n, size)
