"""Papers' figures, counted again: all are confirmed, and docs/claims.md says what the program finds."""

from eval import claims


def test_the_page_is_what_the_program_finds_and_all_is_confirmed(root):
    text, found = claims.page()
    assert found == len(claims.CLAIMS) > 10
    assert (root / "docs" / "claims.md").read_text(encoding="utf-8") == text


def test_a_figure_that_is_wrong_is_not_confirmed():
    claim = claims.Claim("a network", "a paper", 100.0, lambda: 110.0, "counted", "M", digit=1)
    line, found = claims.row(claim)
    assert not found and line.endswith("| no |") and "110" in line
    assert claim.confirmed(101.9) and not claim.confirmed(102.1)
