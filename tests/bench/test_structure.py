"""docs/structure.md is what was measured, and what can be measured at once still holds."""

import json

from bench import structure


def record() -> dict[str, str]:
    newest = max((structure.ROOT / "bench" / "results").glob("structure_*.json"))
    return json.loads(newest.read_text(encoding="utf-8"))["figures"]


def test_the_page_is_the_record():
    assert (structure.ROOT / structure.PAGE).read_text(encoding="utf-8") == structure.page(record())


def test_what_the_page_promises_holds(monkeypatch):
    monkeypatch.setattr(structure, "type_errors", lambda root: 0)  # the types have a command of their own
    monkeypatch.setattr(structure, "help_seconds", lambda root: 0.0)  # and time is no test
    now, before = structure.measured(structure.ROOT), record()
    for name in ("lines wider than 120 columns", "`fmt: skip`"):
        assert now[name] == before[name] == "0"
    assert before["type errors"] == "0" and int(now["most files in a folder"]) <= int(before["most files in a folder"])


def test_functions_are_measured_with_their_heads():
    assert structure.functions("def f(\n    x,\n):\n    return x\n\n\nclass A:\n    def g(self): ...\n") == [4, 1]
