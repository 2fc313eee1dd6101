"""Checked dataclasses: each field says once what it may hold; a mistake is one line naming field, value and choices.

The choices of a field are its type (`Literal`); its bounds and documentation are its metadata (`about`). Whoever reads
such settings, from keyword arguments, JSON or YAML, checks nothing itself.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, dataclass_transform, get_args, get_origin, get_type_hints

Function = TypeVar("Function", bound=Callable)
Made = TypeVar("Made", bound="Checked")
LONGEST = 80  # characters of a value in a message
NOUNS = {int: "an integer", float: "a number", str: "a string", bool: "true or false", dict: "a dict"}


class SettingError(ValueError):
    """A setting that cannot be; the message is one line that names the field, its value and what it may be."""


def about(
    doc: str, *, least: float | None = None, above: float | None = None, most: float | None = None
) -> dict[str, Any]:
    """The metadata of a field: one line of documentation, and bounds of a number: at least, above, at most."""
    return {"doc": doc, "least": least, "above": above, "most": most}


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def checked(cls: type[Made]) -> type[Made]:
    """Decorate a class that derives from Checked: it becomes a frozen dataclass of keyword arguments."""
    made = dataclass(frozen=True, kw_only=True)(cls)
    # Whoever checks types as functions are called would say less than we do.
    made.__init__.__no_type_check__ = True  # type: ignore[attr-defined]
    return made


class Checked:
    """Base of checked dataclasses, whose fields are built-in types, Literal, lists of these, other classes, or None.

    Construction raises SettingError for a value of another type, outside the choices, or out of bounds; a tuple
    becomes the list that is meant.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]  # those who derive are dataclasses

    def __post_init__(self):
        for name, kind in kinds(type(self)).items():  # type: ignore[arg-type]  # classes are hashable
            value = getattr(self, name)
            if isinstance(value, list | tuple):
                value = list(value)
                object.__setattr__(self, name, value)
            self._check(name, value, kind)

    def _check(self, name: str, value: Any, kind: Any) -> None:
        one = element(kind)
        if one is not None and isinstance(value, list):
            for place, item in enumerate(value):
                if not holds(item, one):
                    raise SettingError(f"{name}[{place}]={shown(item)}: {wanted_of(one)}")
        elif not holds(value, kind) or not within(value, field_of(type(self), name).metadata):
            raise SettingError(f"{name}={shown(value)}: {wanted(type(self), name)}")

    @classmethod
    def of(cls: type[Made], values: Mapping[str, Any]) -> Made:
        """An instance with these values, defaults elsewhere. SettingError as the class, and for an unknown name."""
        names = [one.name for one in fields(cls)]
        for name, value in values.items():
            if name not in names:
                raise SettingError(f"{name}={shown(value)}: there is no such setting; choose one of {', '.join(names)}")
        return cls(**values)

    def part(self, kind: type["Checked"]) -> dict[str, Any]:
        """The values of the fields that `kind`, a base of this class, declares or inherits, by name."""
        return {one.name: getattr(self, one.name) for one in fields(kind)}


@cache
def kinds(cls: type) -> dict[str, Any]:
    """The type of each field of a dataclass, by name."""
    hints = get_type_hints(cls)
    return {one.name: hints[one.name] for one in fields(cls)}


def field_of(cls: type[Checked], name: str):
    """The dataclass field of that name."""
    return cls.__dataclass_fields__[name]


def options(kind: Any) -> tuple[Any, ...]:
    """The members of a union; any other type alone."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def element(kind: Any) -> Any:
    """The type of the items of a list, of a type that allows one; None for any other."""
    return next((get_args(one)[0] for one in options(kind) if get_origin(one) is list), None)


def holds(value: Any, kind: Any) -> bool:
    """Whether a value is of a type: no bool is a number, every finite int is a float."""
    if kind is Any:
        return True
    if len(options(kind)) > 1:
        return any(holds(value, one) for one in options(kind))
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf < value < math.inf
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, get_origin(kind) or kind)


def within(value: Any, bounds: Mapping[str, Any]) -> bool:
    """Whether a number keeps to the bounds of its field; whatever is no number does."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return True
    least, above, most = (bounds.get(name) for name in ("least", "above", "most"))
    return (least is None or value >= least) and (above is None or value > above) and (most is None or value <= most)


def shown(value: Any) -> str:
    """A value in one short line."""
    line = " ".join(repr(value).split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."


def wanted(cls: type[Checked], name: str) -> str:
    """What a field may be, as in "choose one of axial, shared" or "give an integer from 1 to 256, or None"."""
    return wanted_of(kinds(cls)[name], field_of(cls, name).metadata)  # type: ignore[arg-type]  # classes are hashable


def wanted_of(kind: Any, bounds: Mapping[str, Any] | None = None) -> str:
    """The same of a type and the bounds of a field."""
    one = next(option for option in options(kind) if option is not NoneType)
    if get_origin(one) is Literal:
        said = f"choose one of {', '.join(map(str, get_args(one)))}"
    elif get_origin(one) is list:
        said = f"give a list; {wanted_of(get_args(one)[0])}"
    else:
        said = f"give {NOUNS.get(one) or f'a {one.__name__}'}{_range(bounds or {})}"
    return f"{said}, or None" if NoneType in options(kind) else said


def _range(bounds: Mapping[str, Any]) -> str:
    least, above, most = (bounds.get(name) for name in ("least", "above", "most"))
    if least is not None and most is not None:
        return f" from {least} to {most}"
    lower = f"of at least {least}" if least is not None else f"above {above}" if above is not None else ""
    upper = f"at most {most}" if most is not None else ""
    return " " + " and ".join(filter(None, (lower, upper))) if lower or upper else ""


# ---- what a function takes as **settings ----


def takes(cls: type[Checked]) -> Callable[[Function], Function]:
    """Decorate a function that ends in `**settings`: its signature and help() tell every field of `cls`."""

    def dressed(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        types = kinds(cls)  # type: ignore[arg-type]  # classes are hashable
        told = [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=default_of(one), annotation=types[one.name]
            )
            for one in fields(cls)
        ]
        function.__signature__ = signature.replace(parameters=[*own, *told])  # type: ignore[attr-defined]
        written = inspect.cleandoc(function.__doc__)  # type: ignore[arg-type]  # a public function has a docstring
        function.__doc__ = f"{written}\n\nSettings:\n\n{manual(cls)}"
        return function

    return dressed


def default_of(one) -> Any:
    """The default of a dataclass field."""
    return one.default if one.default_factory is MISSING else one.default_factory()


def manual(cls: type[Checked]) -> str:
    """A line for each field: name, documentation, what it may be, default."""
    return "\n".join(
        f"{one.name}: {one.metadata['doc']}; {wanted(cls, one.name)}; default {default_of(one)!r}"
        for one in fields(cls)
    )
