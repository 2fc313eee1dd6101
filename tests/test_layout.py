"""The tree keeps its shape: reading order, small files, short functions, documented names, nothing unsafe, nothing private."""

import ast
import re
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("train", "eval", "bench", "tests")
SOURCES = sorted(path.relative_to(ROOT) for top in ("fusion", *PROGRAMS) for path in (ROOT / top).rglob("*.py"))
LIBRARY = [path for path in SOURCES if path.parts[0] == "fusion"]

LONGEST_FILE = 450
LONGEST_FUNCTION = 60

# A file of fusion/ imports only from files above it. `fusion/__init__.py` gathers the public names and stands outside.
READING_ORDER = [
    "checked",
    "settings",
    "document",
    "files",
    "images",
    "patches",
    "sequence",
    "mask",
    "layers",
    "conv",
    "flow",
    "solvers",
    "cache",
    "autoencoder",
    "codec",
    "modality",
    "prefix_cache",
    "deep",
    "lora",
    "backbone",
    "loading",
    "model",
    "objective",
    "tokens",
    "sizes",
    "processor",
    "sampling",
    "presets",
    "prefix",
    "drawing",
    "generate",
    "api",
    "architectures",
    "data.shapes",
    "data.sources",
    "data.loader",
    "data.batches",
    "data.pairs",
    "data.check",
    "data",
    "page",
    "conversation",
    "show",
    "picture",
    "data.preview",
    "chat",
    "cli",
]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def nodes(path: Path, *kinds: type) -> list:
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


def module(path: Path) -> str:
    """fusion/data/shapes.py -> data.shapes; fusion/data/__init__.py -> data."""
    return ".".join(path.with_suffix("").parts[1:]).removesuffix(".__init__")


def imported(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything that a file imports, wherever in the file the import stands."""
    package = path.parts[:-1]
    for node in nodes(path, ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        else:
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def place(name: str) -> int | None:
    """Place of a dotted module (below `fusion.`) in the reading order: that of its longest listed prefix."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((READING_ORDER.index(prefix) for prefix in prefixes if prefix in READING_ORDER), None)


def test_the_tree_is_there():
    assert len(LIBRARY) > 5
    assert place("data.shapes.render") == READING_ORDER.index("data.shapes")
    assert place("nowhere") is None


def refuse(offenders: Iterable[str]) -> None:
    """Fail with all offenders of a rule at once."""
    if lines := list(offenders):
        pytest.fail("\n".join(lines), pytrace=False)


def test_imports_point_upwards_in_the_reading_order():
    refuse(line for path in LIBRARY for line in downward(path))


def downward(path: Path) -> Iterator[str]:
    """What a file of the library imports from below it."""
    if below := [name for name in imported(path) if name.split(".")[0] in PROGRAMS]:
        yield f"{path} imports {below}: the library does not know its programs"
    if path.name == "__init__.py":
        return
    here = place(module(path))
    if here is None:
        yield f"{path} has no place in READING_ORDER of {Path(__file__).name}"
        return
    for name in imported(path):
        if name.startswith("fusion."):
            there = place(name.removeprefix("fusion."))
            if there is not None and there > here:
                yield f"{path} imports {name}, which comes after it"


def test_no_imports_go_in_circles():
    modules = {module(path): path for path in LIBRARY if len(path.parts) > 2 or path.name != "__init__.py"}

    def owner(name: str) -> str | None:
        parts = name.removeprefix("fusion.").split(".")
        return next((known for end in range(len(parts), 0, -1) if (known := ".".join(parts[:end])) in modules), None)

    graph = {
        name: {owner(needed) for needed in imported(path) if needed.startswith("fusion.")} - {None, name}
        for name, path in modules.items()
    }
    assert set(TopologicalSorter(graph).static_order()) == set(modules)  # a circle raises CycleError, which shows it


def test_files_are_short():
    lines = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    refuse(f"{path} has {count} lines" for path, count in lines.items() if count > LONGEST_FILE)


def test_functions_are_short():
    refuse(
        f"{path}: {node.name} has {length} lines"
        for path in SOURCES
        for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
        if (length := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION
    )


def test_a_file_begins_with_its_purpose_in_one_line():
    refuse(line for path in SOURCES for line in unclear_purpose(path))


def unclear_purpose(path: Path) -> Iterator[str]:
    """What is wrong with the first line of a file's docstring."""
    docstring = ast.get_docstring(tree(path)) or ""
    first, *rest = docstring.splitlines() or [""]
    if len(first) <= 10 or (rest and rest[0].strip()):
        yield f"{path}: say in the docstring's first line what the file is"
    if len(first) > 150:
        yield f"{path}: the first line has {len(first)} characters"


def public(body: list[ast.stmt]) -> list:
    return [
        node
        for node in body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]


def test_public_names_have_docstrings():
    bare = ((path, node.name) for path in LIBRARY for node in public(tree(path).body) if not ast.get_docstring(node))
    refuse(f"{path}: no docstring on {name}" for path, name in bare)


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "eval", "exec", "os.system"}


def test_nothing_is_unpickled_or_evaluated():
    refuse(f"{path} uses {unsafe(path)}; weights are safetensors, state is JSON" for path in SOURCES if unsafe(path))


def unsafe(path: Path) -> list[str]:
    """Modules and functions of a file that run what they read."""
    modules = {name.split(".")[0] for name in imported(path)} & UNSAFE_MODULES
    calls = {ast.unparse(node.func) for node in nodes(path, ast.Call)} & UNSAFE_CALLS
    return sorted(modules | calls)


def test_annotations_stay_readable_to_the_shape_checker():
    refuse(line for path in LIBRARY for line in unreadable(path))


def unreadable(path: Path) -> Iterator[str]:
    """What keeps jaxtyping from a file's annotations."""
    if "__future__.annotations" in set(imported(path)):
        yield f"{path}: postponed annotations hide shapes from jaxtyping"
    decorators = [ast.unparse(mark) for node in nodes(path, ast.FunctionDef, ast.ClassDef) for mark in node.decorator_list]
    if any("jaxtyped" in mark for mark in decorators):
        yield f"{path}: shapes are checked by the tests' import hook, not by a decorator"


# Paths of one machine, put together here so that this file does not match itself.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers", "mn" + "t"]) + r")/\w")
PROSE = [
    path.relative_to(ROOT)
    for pattern in ("*.md", "*.toml", "*.cff", "Makefile", "constraints.txt", ".ci/*", "configs/**/*.yaml", "docs/**/*.md", "bench/**/*.md")
    for path in sorted(ROOT.glob(pattern))
]


def test_no_path_of_somebodys_machine():
    texts = ((path, (ROOT / path).read_text(encoding="utf-8")) for path in (*SOURCES, *PROSE))
    refuse(f"{path} names {found}" for path, text in texts if (found := MACHINE_PATHS.findall(text)))
