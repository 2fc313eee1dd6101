"""The grammar of image sizes: which token may come next in a size text, so that every size drawn is valid and bounded.

A size is text, `64x48` (width x height in pixels), in the tokenizer's own spelling. All allowed sizes form a trie over
their tokens. The size ends where `<|image_patch|>` is chosen, so that `64x64` and `64x640` are both reachable.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Next:
    """What may follow the tokens of a size so far: more tokens of the size, and, where it is complete,
    `<|image_patch|>`."""

    tokens: tuple[int, ...]
    complete: bool


class SizeGrammar:
    """The sizes whose sides are multiples of `stride` between `min_side` and `max_side` pixels, of at most
    `max_patches` patches.

    encode: text -> token ids. The trie is built when it is first asked for: one encoding per size.
    """

    def __init__(
        self, encode: Callable[[str], Iterable[int]], stride: int, min_side: int, max_side: int, max_patches: int
    ):
        self.encode, self.stride, self.min_side, self.max_side, self.max_patches = (
            encode,
            stride,
            min_side,
            max_side,
            max_patches,
        )
        least = -(-min_side // stride)
        if least < 1 or least * stride > max_side or least * least > max_patches:
            raise ValueError(
                f"no image size has sides that {stride} divides between {min_side} and {max_side} pixels and at most "
                f"{max_patches} patches: lower min_side or raise max_side and max_patches"
            )
        self._least, self._most = least, max_side // stride

    def __contains__(self, size: tuple[int, int]) -> bool:
        """Whether (width, height) in pixels is allowed."""
        columns, rows = (side // self.stride for side in size)
        divides = all(side % self.stride == 0 for side in size)
        return (
            divides
            and all(self._least <= n <= self._most for n in (columns, rows))
            and columns * rows <= self.max_patches
        )

    def next_tokens(self, prefix: Sequence[int]) -> Next:
        """What may follow; raises ValueError where no size begins with these tokens."""
        node = self._trie
        for index in prefix:
            if index not in node:
                raise ValueError(f"no allowed image size begins with the tokens {list(prefix)}")
            node = node[index]
        return Next(tuple(index for index in node if index != _END), _END in node)

    def parse(self, ids: Sequence[int]) -> tuple[int, int]:
        """The (width, height) that the tokens of a complete size spell; raises ValueError for any others."""
        size = self._sizes.get(tuple(ids))
        if size is None:
            raise ValueError(f"the tokens {list(ids)} are not an allowed image size")
        return size

    @cached_property
    def _sizes(self) -> dict[tuple[int, ...], tuple[int, int]]:
        sizes = {}
        for columns in range(self._least, self._most + 1):
            for rows in range(self._least, min(self._most, self.max_patches // columns) + 1):
                width, height = columns * self.stride, rows * self.stride
                sizes[tuple(self.encode(f"{width}x{height}"))] = (width, height)
        return sizes

    @cached_property
    def _trie(self) -> dict[int, dict]:
        root: dict[int, dict] = {}
        for ids in self._sizes:
            node = root
            for index in ids:
                node = node.setdefault(index, {})
            node[_END] = {}
        return root


_END = -1  # not a token: marks in the trie where a size is complete
