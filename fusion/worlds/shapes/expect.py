"""What a picture is asked to show, and what an edit is asked to do: the shared terms of generator and judge."""

from dataclasses import dataclass

from fusion.worlds.shapes.constants import Kind


@dataclass(frozen=True)
class Wanted:
    """One asked-for object; None leaves that attribute open. `place` is a named place such as "top left"."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True)
class Expectation:
    """What must be true of a picture: exactly these objects, and these relations between them by index.

    `ground` and `picture_size` (width, height) are open when None.
    """

    wanted: tuple[Wanted, ...]
    relations: tuple[tuple[int, str, int], ...] = ()
    ground: str | None = None
    picture_size: tuple[int, int] | None = None

    @property
    def colours(self) -> frozenset[str]:
        """All colours asked for."""
        return frozenset(wanted.colour for wanted in self.wanted if wanted.colour is not None)


@dataclass(frozen=True)
class Edit:
    """One asked change. `target` is the object it is about (for add: the new one); unused fields are None.

    kind: recolour (colour), reshape (shape), add (size, and place or relation to `other`), remove,
    move (direction of a single object, or place), swap (`other`), ground (ground).
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
    """A question about a picture: its kind (count, colour, shape, exists, where), text and right answer."""

    kind: str
    text: str
    answer: str
