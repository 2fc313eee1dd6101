"""Names of keys that have changed: files and commands of before go on being read, and configs say the new name once."""

import warnings
from collections.abc import Mapping
from typing import Any

RENAMED = {"knobs": "params", "painter": "text_to_image"}
"""Old keys of configs and records, and what they are called now."""


def renamed(values: Any) -> Any:
    """Return nested dicts with today's keys in place of old ones; everything else is as it was."""
    if isinstance(values, Mapping):
        return {RENAMED.get(key, key): renamed(value) for key, value in values.items()}
    return values


def renamed_config(values: Any, where: str) -> Any:
    """Do the same for a config, and warn in one line that names the new key. where: the file or command-line word."""
    new = renamed(values)
    for old in sorted(_keys(values) & RENAMED.keys()):
        warnings.warn(f"{where}: {old}: is called {RENAMED[old]}: now", UserWarning, stacklevel=2)
    return new


def _keys(values: Any) -> set:
    if not isinstance(values, Mapping):
        return set()
    return set(values).union(*map(_keys, values.values()))
