"""Sources read from a single file: interleaved pages, chat conversations, and plain text."""

from pathlib import Path

from fusion.data.formats.plain_text import FilePieces, RowPieces
from fusion.data.formats.row_parsers import NATIVE, Chats, Fit, Pages, Texts
from fusion.data.formats.split import Split
from fusion.data.formats.table_source import TableSource
from fusion.data.formats.tables import TABLES, open_table


class Interleaved(TableSource):
    """A source of interleaved text and images, from a table whose column `content` lists text and image blocks.

    path: the table, usually JSON lines; image paths are relative to its folder. split, fit, columns: as in TableSource.
    """

    def __init__(
        self,
        path: str | Path,
        split: Split | str = "all",
        fit: Fit = NATIVE,
        columns: dict[str, str] | None = None,
        name: str | None = None,
    ):
        path = Path(path)
        super().__init__(name or path.stem, open_table(path), Pages(), path.parent, columns, split, fit)


class Chat(TableSource):
    """A source of conversations, from a table whose column `messages` lists messages.

    Each message has a role and a content of text and image blocks. path: the table, usually JSON lines; image paths are
    relative to its folder. split, fit, columns: as in TableSource.
    """

    def __init__(
        self,
        path: str | Path,
        split: Split | str = "all",
        fit: Fit = NATIVE,
        columns: dict[str, str] | None = None,
        name: str | None = None,
    ):
        path = Path(path)
        super().__init__(name or path.stem, open_table(path), Chats(), path.parent, columns, split, fit)


class PlainText(TableSource):
    """A source of text without images, from a .txt file, a folder of them, or a table with a column `text`.

    Long texts are cut into pieces of at most `max_chars` characters; nothing is dropped. Raises ValueError if there is
    no text file, or `max_chars` is below 2.
    """

    def __init__(
        self,
        path: str | Path,
        split: Split | str = "all",
        columns: dict[str, str] | None = None,
        max_chars: int = 1000,
        name: str | None = None,
    ):
        path = Path(path)
        if max_chars < 2:
            raise ValueError(f"max_chars={max_chars}: a piece of text has at least 2 characters")
        root = path if path.is_dir() else path.parent
        if path.suffix in TABLES:
            rows = RowPieces(open_table(path), (columns or {}).get("text", "text"), max_chars)
        else:
            paths = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
            if not all(file.is_file() for file in paths) or not paths:
                raise ValueError(
                    f"{path}: no text file here; give a .txt file, a folder of them, or a table ({', '.join(TABLES)})"
                )
            rows = FilePieces(root, paths, max_chars)
        super().__init__(name or path.stem, rows, Texts(), root, columns, split)
