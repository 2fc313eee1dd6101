"""The tree's structure: one dependency order, short files and functions, docstrings, nothing unsafe or private."""

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("train", "eval", "bench", "tests")
SOURCES = sorted(path.relative_to(ROOT) for top in ("fusion", *PROGRAMS) for path in (ROOT / top).rglob("*.py"))
LIBRARY = [path for path in SOURCES if path.parts[0] == "fusion"]

LONGEST_LINE = 120
LONGEST_FILE = 450
LONGEST_FUNCTION = 60
MOST_FILES = 25

# The order stands once, in README's tree: its lines are `  FOLDER/   what is in it`.
LAYOUT = [
    match[1].rstrip("/").replace("/", ".")
    for match in re.finditer(r"^  ([a-z_/]+/)  +\S", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
]
OUTSIDE = {"", "__main__"}  # fusion/__init__.py gathers the public names, fusion/__main__.py is the command
# What imports by name: public names of the package when they are first used, and a package that not everybody has.
LAZY = {
    Path("fusion/__init__.py"),
    Path("fusion/evaluation/benchmarks/distribution/distances.py"),
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), filename=str(path))


def nodes(path: Path, *kinds: type) -> list:
    return [node for node in ast.walk(tree(path)) if isinstance(node, kinds)]


def module(path: Path) -> str:
    """fusion/worlds/shapes/render.py -> worlds.shapes.render; fusion/data/__init__.py -> data."""
    return ".".join(path.with_suffix("").parts[1:]).removesuffix("__init__").rstrip(".")


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
    """Place of a dotted module (below `fusion.`) in the layout: that of its longest listed prefix."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((LAYOUT.index(prefix) for prefix in prefixes if prefix in LAYOUT), None)


def offenders(paths: list[Path], fault: Callable[[Path], object]) -> str:
    """One line for every file with a fault."""
    return "\n".join(f"{path}: {found}" for path in paths if (found := fault(path)))


def test_the_layout_of_the_readme_is_that_of_the_tree():
    assert len(LAYOUT) == len(set(LAYOUT)) > 15
    assert not [name for name in LAYOUT if not (ROOT / "fusion" / name.replace(".", "/") / "__init__.py").is_file()]
    assert place("worlds.shapes.render") == LAYOUT.index("worlds") and place("nowhere") is None
    lost = [str(path) for path in LIBRARY if module(path) not in OUTSIDE and place(module(path)) is None]
    assert not lost, f"not in README's tree: {lost}"


def upward(path: Path) -> list[str]:
    here = place(module(path))
    names = [name.removeprefix("fusion.") for name in imported(path) if name.startswith("fusion.")]
    return [name for name in names if (there := place(name)) is not None and there > here]


def test_imports_point_to_folders_above():
    assert not (found := offenders([path for path in LIBRARY if module(path) not in OUTSIDE], upward)), found


def test_the_library_knows_neither_its_programs_nor_its_tests():
    def fault(path: Path) -> list[str]:
        return [name for name in imported(path) if name.split(".")[0] in PROGRAMS or name == "fusion"]

    assert not (found := offenders(LIBRARY, fault)), found


def test_nothing_but_tests_imports_tests():
    def fault(path: Path) -> list[str]:
        return [name for name in imported(path) if name.split(".")[0] == "tests"]

    assert not (found := offenders([path for path in SOURCES if path.parts[0] != "tests"], fault)), found


def test_nothing_is_imported_by_a_string_or_by_another_path():
    def fault(path: Path) -> list[str]:
        calls = {ast.unparse(node.func) for node in nodes(path, ast.Call)}
        return sorted({"importlib.import_module", "import_module", "__import__"} & calls) + [
            ast.unparse(node) for node in nodes(path, ast.Attribute) if ast.unparse(node) == "sys.path"
        ]

    assert not (
        found := offenders([path for path in SOURCES if path.parts[0] != "tests" and path not in LAZY], fault)
    ), found


@pytest.mark.parametrize("top", ["fusion", "bench"])
def test_no_imports_go_in_circles(top):
    files = {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path for path in SOURCES if path.parts[0] == top
    }
    files.pop("fusion", None)

    def owner(name: str) -> str | None:
        parts = name.split(".")
        return next((known for end in range(len(parts), 0, -1) if (known := ".".join(parts[:end])) in files), None)

    graph = {name: {owner(needed) for needed in imported(path)} - {None, name} for name, path in files.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(files)  # a circle raises CycleError, which shows it


def test_programs_are_short_and_lie_in_train_and_eval():
    programs = [path for path in SOURCES if path.parts[0] in ("train", "eval")]
    long = [str(path) for path in programs if len((ROOT / path).read_text(encoding="utf-8").splitlines()) > 45]
    assert not long, f"programs whose code belongs in fusion/: {long}"
    started = {
        Path("fusion/recipes/demo_worker.py"),
        Path("fusion/testing/killed_runs.py"),
    }  # what other processes are started as
    found = [path for path in LIBRARY if "\nif __name__ ==" in (ROOT / path).read_text(encoding="utf-8")]
    assert set(found) <= started, found


def test_folders_are_small_enough_to_hold_in_the_head():
    folders = {path.parent for path in SOURCES}
    large = {
        str(folder): count
        for folder in folders
        if (count := sum(path.parent == folder for path in SOURCES)) > MOST_FILES
    }
    assert not large, large


def test_files_and_functions_are_short():
    def fault(path: Path) -> list[str]:
        lines = len((ROOT / path).read_text(encoding="utf-8").splitlines())
        functions = [
            (node.name, node.end_lineno - node.lineno + 1)
            for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
        ]
        return [f"{lines} lines"] * (lines > LONGEST_FILE) + [
            f"{name} has {length}" for name, length in functions if length > LONGEST_FUNCTION
        ]

    assert not (found := offenders(SOURCES, fault)), found


def test_lines_are_short():
    def fault(path: Path) -> list[int]:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        return [number for number, line in enumerate(lines, 1) if len(line) > LONGEST_LINE]

    assert not (found := offenders(SOURCES, fault)), found


def test_a_file_begins_with_its_purpose_in_one_line():
    def fault(path: Path) -> str:
        first, *rest = (ast.get_docstring(tree(path)) or "").splitlines() or [""]
        return (
            ""
            if 10 < len(first) <= LONGEST_LINE - len('"""') and not (rest and rest[0].strip())
            else f"say in the docstring's first line what the file is ({len(first)})"
        )

    assert not (found := offenders(SOURCES, fault)), found


def test_public_names_have_docstrings():
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)

    def fault(path: Path) -> list[str]:
        public = [node for node in tree(path).body if isinstance(node, kinds) and not node.name.startswith("_")]
        return [node.name for node in public if not ast.get_docstring(node)]

    assert not (found := offenders(LIBRARY, fault)), found


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"torch.load", "torch.save", "eval", "exec", "os.system"}


def test_nothing_is_unpickled_or_evaluated():
    def fault(path: Path) -> list[str]:
        modules = {name.split(".")[0] for name in imported(path)} & UNSAFE_MODULES
        calls = {ast.unparse(node.func) for node in nodes(path, ast.Call)} & UNSAFE_CALLS
        return sorted(modules | calls)  # weights are safetensors, state is JSON

    assert not (found := offenders(SOURCES, fault)), found


def test_annotations_stay_readable_to_the_shape_checker():
    def fault(path: Path) -> list[str]:
        postponed = (
            ["__future__.annotations"] if "__future__.annotations" in set(imported(path)) else []
        )  # hides shapes from jaxtyping
        marks = [
            ast.unparse(mark) for node in nodes(path, ast.FunctionDef, ast.ClassDef) for mark in node.decorator_list
        ]
        return postponed + [
            mark for mark in marks if "jaxtyped" in mark
        ]  # the tests' import hook checks shapes, not a decorator

    assert not (found := offenders(LIBRARY, fault)), found


# Paths of one machine, put together here so that this file does not match itself.
MACHINE_PATHS = re.compile(
    r"(?<![\w.])/(?:" + "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers", "mn" + "t"]) + r")/\w"
)
PROSE = [
    path.relative_to(ROOT)
    for pattern in (
        "*.md",
        "*.toml",
        "*.cff",
        "Makefile",
        "constraints.txt",
        ".ci/*",
        "configs/**/*.yaml",
        "docs/**/*.md",
        "bench/**/*.md",
    )
    for path in sorted(ROOT.glob(pattern))
]


def test_no_path_of_somebodys_machine():
    def fault(path: Path) -> list[str]:
        return MACHINE_PATHS.findall((ROOT / path).read_text(encoding="utf-8"))

    assert not (found := offenders([*SOURCES, *PROSE], fault)), found


def test_files_and_folders_take_their_names_in_one_module():
    """Whoever writes a file or folder whole calls `fusion.common.atomic`: nobody else renames temporary ones."""

    def by_hand(path: Path) -> set[str]:
        calls = {f"{ast.unparse(call.func)}" for call in nodes(path, ast.Call)}
        return calls & {"os.replace", "os.rename", "shutil.move", "tempfile.NamedTemporaryFile", "tempfile.mkstemp"}

    paths = [path for path in SOURCES if path.parts[0] != "tests" and path != Path("fusion/common/atomic.py")]
    assert by_hand(Path("fusion/common/atomic.py")) and not offenders(paths, by_hand)
