"""The documentation builds as a site without a warning: pages, links, anchors and the docstrings that it quotes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent


def build(config: Path, folder: Path) -> subprocess.CompletedProcess:
    """Build a site; any warning is an error. (With -q mkdocs would count none.)"""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_built(site):
    pages = {page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")}
    built = {page.parent.relative_to(site) for page in site.rglob("index.html")}
    assert len(pages) > 20 and {page for page in pages if page.name != "index"} <= built


def test_the_reference_quotes_signatures_and_docstrings(site):
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        html = (site / "reference" / page.stem / "index.html").read_text(encoding="utf-8")
        modules = re.findall(r"^::: (\S+)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert modules and all(f'id="{module}"' in html for module in modules), page.name
    html = (site / "reference" / "generation" / "index.html").read_text(encoding="utf-8")
    assert 'id="fusion.generation.api.Fusion.draw"' in html


def test_a_broken_link_ends_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n[lost](lost.md)\n")
    checks = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["validation"]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump({"site_name": "small", "validation": checks}))
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode != 0 and "lost.md" in done.stderr + done.stdout
