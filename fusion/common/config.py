"""Typed config dataclasses from a YAML file and `key=value` words; an error is one line naming file and key."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fusion.common.atomic import save
from fusion.common.checked import Checked, element, kinds, shown, wanted, wanted_of
from fusion.common.renamed import RENAMED, renamed_config

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A config that cannot be used; the message is one line: file or word, key, what is wrong."""


def load(cls: type[Config], argv: Sequence[str]) -> Config:
    """The config of a program from its command line: `[file.yaml] [key=value ...]`.

    A mistake ends the program with one line on stderr, as a person at a terminal wants it; code calls `load_config`.
    """
    words = list(argv)
    path = words.pop(0) if words and "=" not in words[0] else None
    try:
        return load_config(cls, path, words)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def load_config(cls: type[Config], path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """An instance of the dataclass `cls`: its defaults, then the YAML file at `path`, then each `key.key=value` of
    `overrides`. A file may say `base: another.yaml`, beside it, of which it then tells the differences.

    Raises ConfigError for an unknown key, a wrong type, a value left at "???", a file that is not there or not YAML,
    and whatever the dataclass's own __post_init__ refuses with a ValueError.
    """
    where = str(path or cls.__name__)
    try:
        merged = OmegaConf.structured(cls)
        if path is not None:
            merged = OmegaConf.merge(merged, _read_yaml(path))
        for word in overrides:
            where = f"command line, {word}"
            merged = OmegaConf.merge(merged, _read_word(word))
        where = str(path or cls.__name__)
        return cast(Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from None


def keys(path: str | Path, overrides: Sequence[str] = ()) -> set[str]:
    """The sections that a YAML file, or those it is based on, and `overrides` speak of. Raises ConfigError for what
    cannot be read."""
    try:
        words = {word.partition("=")[0].partition(".")[0] for word in overrides}
        return {str(key) for key in _read_yaml(path)} | {RENAMED.get(word, word) for word in words}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def save_config(config: Any, path: str | Path) -> None:
    """Write a config dataclass as YAML, atomically; `load_config` reads it back to an equal one."""
    save(OmegaConf.to_yaml(OmegaConf.structured(config)), path)


def _read_yaml(path: str | Path) -> Any:
    try:
        values: Any = OmegaConf.load(path)
    except OSError as error:
        raise ConfigError(f"{error.strerror or error}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"is not YAML ({error})") from None
    if not OmegaConf.is_dict(values):
        raise ConfigError("must hold `key: value` lines, not a list")
    values = OmegaConf.create(renamed_config(OmegaConf.to_container(values), str(path)))
    base = values.pop("base", None)
    return values if base is None else OmegaConf.merge(_read_base(Path(path).parent / str(base)), values)


def _read_base(path: Path) -> Any:
    try:
        return _read_yaml(path)
    except RecursionError:
        raise ConfigError(f"base: {path} leads back to itself") from None
    except ConfigError as error:
        raise ConfigError(f"base: {path}: {error}") from None


def _read_word(word: str) -> Any:
    if "=" not in word:
        raise ConfigError("is not of the form key=value")
    try:
        values = OmegaConf.to_container(OmegaConf.from_dotlist([word]))
    except yaml.YAMLError as error:
        raise ConfigError(f"is not a YAML value ({error}); quote it") from None
    return OmegaConf.create(renamed_config(values, word))


def _one_line(error: Exception) -> str:
    """OmegaConf appends lines about its own types; keep the key and first line, or say what a checked field may be."""
    if not isinstance(error, OmegaConfBaseException):
        return " ".join(str(error).split())
    kind = error.object_type
    if isinstance(kind, type) and issubclass(kind, Checked) and error.key in kinds(kind):  # type: ignore[arg-type]
        return f"{error.full_key}={shown(error.value)}: {wanted(kind, error.key)}"
    if (one := element(error.ref_type)) is not None and get_origin(one) is Literal:
        return f"{error.full_key}={shown(error.value)}: {wanted_of(one)}"
    problem = str(error).partition("\n")[0]
    return f"{error.full_key}: {problem}" if error.full_key else problem
