"""What a forecast is of: the model of a run, imagined, and a few batches of what it learns from."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor, nn

from fusion.codecs.codec import Codec
from fusion.planning.fake_step import Imagined

BATCHES = 4  # that are looked at


@dataclass(frozen=True)
class Shares:
    """Tokens of a batch by what they are, and its documents; means over several batches."""

    text: float
    clean: float
    noised: float
    padding: float
    documents: float

    @classmethod
    def mean(cls, counts: Sequence[tuple[int, int, int, int, int]]) -> "Shares":
        """Over batches, each as text, clean, noised, padding and documents."""
        return cls(*(sum(column) / len(counts) for column in zip(*counts, strict=True)))

    @property
    def rows(self) -> float:
        """All tokens."""
        return self.text + self.clean + self.noised + self.padding


class Subject(ABC):
    """The model of a run without contents. model: what is trained; codec: its autoencoder; shares: of its batches, and
    source: where those are from."""

    model: nn.Module
    codec: Codec
    imagined: Imagined
    shares: Shares
    source: str

    def embody(self) -> None:
        """Give weights on "meta" shapes that can be computed with."""
        self.imagined = Imagined()
        for module in (self.model, self.codec):
            self.imagined.embody(module)
        self.model.train()

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, for the first line of a table."""

    @abstractmethod
    def step(self) -> tuple[list[Tensor], Callable[[], Tensor]]:
        """The batch that takes most memory: its tensors, and the forward pass to its loss, which is called inside
        `imagined`."""

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """What is computed again, and shared out, one at a time."""

    def whole(self) -> int:
        """Bytes of weights that every device has whole, where the others are shared out."""
        return 0

    @abstractmethod
    def parts(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter, with the part that it belongs to; in the order in which parts are shown."""

    @abstractmethod
    def drawing(self) -> Image.Image:
        """The first batch as an image. ValueError where there is nothing to draw."""

    def reading(self) -> Callable[[], object] | None:
        """The forward pass of what is read once and then kept, of all of a batch; None where nothing is."""
        return None
