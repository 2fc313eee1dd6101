"""The data section of a config: the sources, their weights, the train/validation split, and the image sizes."""

from dataclasses import dataclass, field
from pathlib import Path

from fusion.data.formats.documents import Chat, Interleaved, PlainText
from fusion.data.formats.hub import FORMS, Hub
from fusion.data.formats.image_folders import EditPairs, ImageFolder
from fusion.data.formats.mixture import Mixture, Source
from fusion.data.formats.row_parsers import Captions, Fit
from fusion.data.formats.split import Split

# The options of each kind of source, besides path, weight and name. A hub source of form "images" has CAPTIONS too.
CAPTIONS = {"prompts", "questions", "describe"}
KINDS = {
    "images": {"columns"} | CAPTIONS,
    "edits": {"columns", "file"},
    "pages": {"columns"},
    "chats": {"columns"},
    "text": {"columns", "max_chars"},
    "hub": {"columns", "form", "hub_split", "subset", "data_files", "buffer"},
}


@dataclass
class SourceConfig:
    """The configuration of one source of a mixture.

    kind: images (a folder with metadata.jsonl), edits (a folder with edits.jsonl), pages (interleaved JSON lines),
    chats, text, or hub. path: relative to the config's `data.path`; for hub the dataset's name. weight: its share of
    the mixture. The other fields are options of the source's class; None leaves an option at its default. Raises
    ValueError for an unknown kind, or an option that the kind does not have.
    """

    kind: str
    path: str = ""
    weight: float = 1.0
    name: str | None = None
    columns: dict[str, str] | None = None
    prompts: list[str] | None = None
    questions: list[str] | None = None
    describe: float | None = None
    file: str | None = None
    max_chars: int | None = None
    form: str | None = None
    hub_split: str | None = None
    subset: str | None = None
    data_files: list[str] | None = None
    buffer: int | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of source {self.kind!r}; choose one of {', '.join(KINDS)}")
        if self.kind == "hub" and self.form not in FORMS:
            raise ValueError(f"a hub source needs form: what its rows are, one of {', '.join(FORMS)}")
        known = KINDS[self.kind] | (CAPTIONS if self.form == "images" else set())
        if unknown := sorted(set(self.options()) - known):
            raise ValueError(
                f"a source of kind {self.kind} has no option {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )

    def options(self) -> dict:
        """Return the options that are set, as keyword arguments for the source's class."""
        everything = {option for options in KINDS.values() for option in options}
        return {option: value for option in sorted(everything) if (value := getattr(self, option)) is not None}


@dataclass
class DataConfig:
    """The configuration of all sources and the settings they share.

    path: the folder that the sources' paths are relative to. held_out: share of the subjects kept for validation,
    chosen by split_seed; variant: see Split. max_pixels, max_side, size (width, height): see Fit; images keep their
    sizes if none is set.
    """

    path: str = "."
    sources: list[SourceConfig] = field(default_factory=list)
    held_out: float = Split.held_out
    split_seed: int = Split.seed
    variant: str = Split.variant
    max_pixels: int | None = None
    max_side: int | None = None
    size: list[int] | None = None


def open_sources(config: DataConfig, side: str, stride: int) -> list[Source]:
    """Open the sources of a config on one side of the split.

    side: "train", "validation" or "all". stride: the sides of images are fitted to multiples of it. Raises ValueError
    if the config has no sources.
    """
    if not config.sources:
        raise ValueError("data.sources is empty; give at least one source, such as {kind: images}")
    split = Split(side, config.held_out, config.split_seed, config.variant)
    fit = Fit(stride, config.max_pixels, config.max_side, tuple(config.size) if config.size else None)
    return [_open(source, Path(config.path), split, fit) for source in config.sources]


def open_mixture(config: DataConfig, side: str, stride: int, seed: int = 0, shard: int = 0, shards: int = 1) -> Mixture:
    """Open the sources of a config, mixed by their weights, as one endless stream.

    side, stride: as in `open_sources`. seed, shard, shards: as in Mixture.
    """
    return Mixture(
        open_sources(config, side, stride), [source.weight for source in config.sources], seed, shard, shards
    )


def _open(source: SourceConfig, root: Path, split: Split, fit: Fit) -> Source:
    options = source.options()
    said = {key: options.pop(key) for key in ("prompts", "questions", "describe") if key in options}
    captions = Captions(**{key: tuple(value) if isinstance(value, list) else value for key, value in said.items()})
    path = root / source.path
    match source.kind:
        case "images":
            return ImageFolder(path, split, fit, captions=captions, name=source.name, **options)
        case "edits":
            return EditPairs(path, split, fit, name=source.name, **options)
        case "pages":
            return Interleaved(path, split, fit, name=source.name, **options)
        case "chats":
            return Chat(path, split, fit, name=source.name, **options)
        case "text":
            return PlainText(path, split, name=source.name, **options)
        case "hub":
            form = captions if options["form"] == "images" else options["form"]
            return Hub(
                source.path,
                form,
                split=split,
                fit=fit,
                name=source.name,
                **{k: v for k, v in options.items() if k != "form"},
            )
