"""Sources read from folders of images: ImageFolder with captions, EditPairs with instructions."""

from pathlib import Path

from fusion.data.formats.row_parsers import DRAW, NATIVE, Captions, Edits, Fit
from fusion.data.formats.sample import BadSample
from fusion.data.formats.split import SUFFIXES, Split
from fusion.data.formats.table_source import TableSource
from fusion.data.formats.tables import TABLES, Row, Rows, find_table, open_table


class ImageFolder(TableSource):
    """A source of captioned images in a folder.

    The captions are in `metadata.jsonl`, `.csv` or `.parquet` (columns `file_name` and `text`; `columns` maps these to
    others) or, without such a table, in a text file beside each image (`cat.png`, `cat.txt`). captions: how an image
    and its caption become a conversation. split, fit: as in TableSource. Raises ValueError if the folder or the
    captions are missing.
    """

    def __init__(
        self,
        path: str | Path,
        split: Split | str = "all",
        fit: Fit = NATIVE,
        columns: dict[str, str] | None = None,
        captions: Captions = DRAW,
        name: str | None = None,
    ):
        root = _folder(path)
        table = find_table(root, "metadata")
        rows = open_table(table) if table else SidecarRows(root)
        super().__init__(name or root.name, rows, captions, root, columns, split, fit, _others(root, table))


class EditPairs(TableSource):
    """A source of image pairs with an edit instruction, from a table in their folder.

    The table is `edits.jsonl`, `.csv` or `.parquet`, or the one named by `file`. Columns: `input_file_name`,
    `instruction`, `edited_file_name`, or `input_image`, `edit_prompt`, `edited_image`; `columns` maps these to others.
    Raises ValueError if the folder or the table is missing.
    """

    def __init__(
        self,
        path: str | Path,
        split: Split | str = "all",
        fit: Fit = NATIVE,
        columns: dict[str, str] | None = None,
        file: str | None = None,
        name: str | None = None,
    ):
        root = _folder(path)
        table = root / file if file else find_table(root, "edits")
        if table is None:
            raise ValueError(
                f"{root}: no edits.jsonl, .csv or .parquet with the edit pairs; write one, or name it with file=..."
            )
        super().__init__(
            name or f"{root.name}-edits", open_table(table), Edits(), root, columns, split, fit, _others(root, table)
        )


class SidecarRows:
    """The images under a folder as rows (`file_name`, `text`), each with the .txt file beside it as its caption.

    Raises ValueError if no image has one; a row whose caption cannot be read raises BadSample.
    """

    def __init__(self, root: Path):
        self._root = root
        self._paths = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not any(path.with_suffix(".txt").is_file() for path in self._paths):
            raise ValueError(
                f'{root}: no captions; write metadata.jsonl with lines {{"file_name": "cat.png", "text": "a cat"}}, or '
                "cat.txt beside cat.png"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Row:
        path = self._paths[index]
        key = path.relative_to(self._root).as_posix()
        try:
            text = path.with_suffix(".txt").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadSample(key, f"its caption cannot be read ({error}); write {path.stem}.txt beside it") from None
        return Row(key, {"file_name": key, "text": text})


def _folder(path: str | Path) -> Path:
    if not Path(path).is_dir():
        raise ValueError(f"{path}: no such folder; check the path")
    return Path(path).resolve()


def _others(root: Path, table: Path | None) -> list[Rows]:
    """Return the other tables in a folder, whose rows may show that files of `table` belong to one subject."""
    return [open_table(path) for path in sorted(root.iterdir()) if path.suffix in TABLES and path != table]
