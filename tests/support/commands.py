"""Commands of `fusion`, run in the process of a test."""

from fusion.cli import main as cli


def planned(capsys, *words: str) -> tuple[int, str, list[str]]:
    """Exit status, output and errors of `fusion plan`."""
    status = cli.main(["plan", *words])
    said = capsys.readouterr()
    return status, said.out, said.err.splitlines()
