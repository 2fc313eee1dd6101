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
    """A prompt, and the paths of its images below the benchmark's folder; one path for several images is a grid's."""

    text: str
    names: tuple[str, ...]


class Folder:
    """A benchmark's folder of images: one file for each image, or one grid for the four of a prompt with one name.

    n: images for each prompt. size: (width, height) of one image in pixels.
    """

    def __init__(self, root: Path, asked: Sequence[Named], n: int, size: tuple[int, int]):
        self.root, self.asked, self.n, self.size = root, asked, n, size
        self.prompts = [one.text for one in asked]
        self._drawn: dict[int, list[Image.Image]] = {}

    def missing(self, number: int) -> list[int]:
        """Return the samples of a prompt that are missing or incomplete; ValueError for a file of another size."""
        names = self.asked[number].names
        if len(names) == self.n:
            return [sample for sample, name in enumerate(names) if not self._there(name, self.size)]
        return [] if self._there(names[0], (self.size[0] * 2, self.size[1] * 2)) else list(range(self.n))

    def _there(self, name: str, size: tuple[int, int]) -> bool:
        path = self.root / name
        return complete(path, size) if path.suffix == ".png" else _whole(path, size)

    def put(self, number: int, sample: int, image: Image.Image) -> None:
        """Save an image; those of a grid have to come in their order, and are saved when it is complete."""
        names = self.asked[number].names
        if len(names) == self.n:
            return _write(image, self.root / names[sample])
        drawn = self._drawn.setdefault(number, [])
        drawn.append(image)
        if len(drawn) == self.n:
            _write(grid(self._drawn.pop(number)), self.root / names[0])
        return None

    def finish(self) -> None:
        """Write the benchmark's other files, when all images are drawn; there are none here."""


class Listed(Folder):
    """GenEval 2's folder, with a list that maps prompts to images."""

    def finish(self) -> None:
        """Write image_paths.json, which the official evaluation.py takes as its --image_filepath_data.

        Its paths are absolute, as evaluation.py may run anywhere.
        """
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
    """Return whether a complete WebP is at the path, as `complete` does for PNG.

    Its header has its length at bytes 4 to 7, not counting the first eight. Raises ValueError for another size.
    """
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
    """Load T2I-CompBench's prompts, one a line, without what follows a tab; n: images for each.

    The official judges read the prompt out of the file's name up to its first `_`, so that no prompt may have one
    (ValueError). Images are numbered through all prompts.
    """
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
    """Load WISE's prompts from JSON lists of {"prompt_id", "Prompt", ...}; n has to be 1.

    path: one file, or a folder, of which the files of rewritten prompts are left out, since they have the same numbers.
    Raises ValueError for anything else.
    """
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
    """Load GenEval 2's prompts from JSON lines with a "prompt" each; n has to be 1.

    Raises ValueError where two prompts are the same, since images are identified by them.
    """
    if n != 1:
        raise ValueError(f"--n {n}: GenEval 2 has one image of each prompt")
    texts = [row["prompt"] for row in read_atoms(path)]
    if twice := [text for number, text in enumerate(texts) if text in texts[:number]]:
        raise ValueError(f"{path}: two prompts are the same, {twice[0][:60]!r}")
    return [Named(text, (f"{number:05d}.png",)) for number, text in enumerate(texts)]


def read_atoms(path: Path) -> list[dict]:
    """Load the lines of geneval2_data.jsonl: prompt, atom_count, vqa_list and skills.

    Raises ValueError that names the line that cannot be used.
    """
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
    """Load OneIG-Bench's prompts from CSV rows of category, id and prompt_en, or prompt_cn in the Chinese file.

    n: images for each prompt, 1 or 4. model: its name in the images' paths. Raises ValueError for anything else.
    """
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
    """Load a benchmark's prompts from `path`, and return its folder at `root`.

    n: images for each prompt. size: (width, height) of one image in pixels. model: its name in OneIG's paths. Raises
    ValueError, in one line, for what cannot be read.
    """
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
