"""Which code ran: its commit, and whether files differed from it."""

import shutil
import subprocess
from pathlib import Path


def commit() -> str:
    """Return the short hash of the clone that this package is run from; empty outside a clone, and without git.

    A package that is installed inside another project's clone is not that project: its own files have to be tracked
    there.
    """
    return _git("rev-parse", "--short", "HEAD") if _git("ls-files", "--", Path(__file__).name) else ""


def dirty() -> bool | None:
    """Return whether any tracked file differs from the commit; None where there is no commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no")) if commit() else None


def _git(*words: str) -> str:
    """Run git in the package's folder and return what it prints; empty where it fails or is not installed."""
    git = shutil.which("git")
    if git is None:
        return ""
    asked = subprocess.run([git, *words], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return asked.stdout.strip() if asked.returncode == 0 else ""
