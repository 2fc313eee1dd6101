"""Describe what an image must show and what an edit must do: the terms shared by generator and judge."""

from dataclasses import dataclass

from fusion.worlds.shapes.constants import Kind


@dataclass(frozen=True)
class Wanted:
    """One required object; None leaves that attribute open. `place` is a named place such as "top left"."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Expectation:
    """What must be true of an image: exactly these objects, and these relations between them.

    relations: (index of the first object in `wanted`, relation, index of the second). `ground` and `image_size`
    (width, height) are open when None.
    """

    wanted: tuple[Wanted, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    ground: str | None = None
    image_size: tuple[int, int] | None = None

    @property
    def colours(self) -> frozenset[str]:
        """All colours that are required of objects."""
        return frozenset(wanted.colour for wanted in self.wanted if wanted.colour is not None)


@dataclass(frozen=True)
class Edit:
    """One requested change. `target` is the object it is about (for add: the new one); unused fields are None.

    kind: recolour (colour), reshape (shape), add (size, and place or relation to `other`), remove, move (direction of a
    single object, or place), swap (`other`), ground (ground).
    """

    kind: str
    target: Kind | None = None
    other: Kind | None = None
    colour: str | None = None
    shape: str | None = None
    ground: str | None = None
    size: str | None = None
    place: str | None = None
    relation: str | None = None
    direction: str | None = None


@dataclass(frozen=True)
class Question:
    """A question about an image: its kind (count, colour, shape, exists, where), text and correct answer."""

    kind: str
    text: str
    answer: str
