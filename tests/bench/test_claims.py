"""Papers' figures, counted again: all are confirmed, and docs/claims.md says what the program finds."""

import json

from bench import claims


def test_the_page_is_what_the_program_finds_and_all_is_confirmed(root):
    text, found = claims.page()
    assert found == len(claims.CLAIMS) > 10
    assert (root / "docs" / "claims.md").read_text(encoding="utf-8") == text


def test_a_figure_that_is_wrong_is_not_confirmed():
    claim = claims.Claim("a network", "a paper", 100.0, lambda: 110.0, "counted", "M", digit=1)
    line, found = claims.row(claim)
    assert not found and line.endswith("| no |") and "110" in line
    assert claim.confirmed(101.9) and not claim.confirmed(102.1)


def test_the_newest_measurement_of_attention_is_shown_and_none_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "MEASURED", tmp_path)
    assert claims.attention() == []
    one = {
        "latent": "16 x 64 x 64",
        "rows": 1024,
        "kind": "softmax",
        "seconds": 0.2,
        "peak MiB": 31.4,
        "GFLOP": 25.8,
        "scores in 16 bits, GiB": 0.05,
    }
    record = {"command": "c", "commit": "abc", "device": "a CPU, 2 thread", "torch": "2", "width": 1536}
    for day, figures in (("01", []), ("02", [one, {**one, "kind": "linear", "scores in 16 bits, GiB": None}])):
        (tmp_path / f"attention_2026-01-{day}_cpu.json").write_text(json.dumps(record | {"figures": figures}))
    lines = claims.attention()
    assert "| 16 x 64 x 64 | 1,024 | softmax | 0.2 s | 31 MiB | 26 | 0.05 GiB |" in lines
    assert "| 16 x 64 x 64 | 1,024 | linear | 0.2 s | 31 MiB | 26 |  |" in lines
