"""The grammar of sizes: every size drawn is valid and bounded, every allowed size can be drawn, for any tokenizer."""

import random

import pytest

from fusion.sequence.sizes import SizeGrammar
from fusion.sequence.tokens import SafeTokenizer
from tests.support.spellings import TOKENIZERS


@pytest.fixture(scope="module", params=TOKENIZERS)
def text(request):
    tokenizer = TOKENIZERS[request.param]()
    return SafeTokenizer(tokenizer, {"<|image_patch|>": 1000}, "")


def draw(grammar: SizeGrammar, rng: random.Random) -> tuple[int, ...]:
    ids: tuple[int, ...] = ()
    while True:
        step = grammar.next_tokens(ids)
        choice = rng.choice([*step.tokens, *[None] * step.complete])
        if choice is None:
            return ids
        ids += (choice,)


def test_any_walk_ends_at_an_allowed_size(text):
    grammar, rng = SizeGrammar(text.plain, 8, 16, 128, 100), random.Random(0)
    for _ in range(200):
        width, height = size = grammar.parse(draw(grammar, rng))
        assert size in grammar
        assert width % 8 == height % 8 == 0 and min(size) >= 16 and max(size) <= 128 and width * height <= 100 * 64


def test_every_allowed_size_is_reached_by_its_own_spelling(text):
    grammar = SizeGrammar(text.plain, 16, 16, 160, 40)
    allowed = [(w * 16, h * 16) for w in range(1, 11) for h in range(1, 11) if w * h <= 40]
    for width, height in allowed:
        ids = text.plain(f"{width}x{height}")
        for end, following in enumerate(ids):
            assert following in grammar.next_tokens(ids[:end]).tokens
        assert grammar.next_tokens(ids).complete and grammar.parse(ids) == (width, height)


def test_64_ends_or_goes_on_to_640():
    text = SafeTokenizer(TOKENIZERS["byte_level"](), {"<|image_patch|>": 1000}, "")
    step = SizeGrammar(text.plain, 64, 64, 640, 100).next_tokens(text.plain("64x64"))
    assert step.complete and text.plain("0")[0] in step.tokens
    assert not SizeGrammar(text.plain, 64, 64, 640, 9).next_tokens(text.plain("64x64")).tokens, (
        "640 has too many patches here"
    )


def test_a_size_that_is_not_allowed_is_not_in_the_grammar(text):
    grammar = SizeGrammar(text.plain, 8, 16, 64, 32)
    for size in [(12, 16), (8, 16), (16, 72), (64, 64), (0, 16), (-16, 16)]:
        assert size not in grammar
        with pytest.raises(ValueError, match="are not an allowed image size"):
            grammar.parse(text.plain(f"{size[0]}x{size[1]}"))
    assert (32, 64) in grammar


def test_the_smallest_side_is_never_below_the_limit(text):
    """Of 20 pixels and a stride of 8 the smallest side is 24, in what is allowed and in what can be drawn."""
    grammar = SizeGrammar(text.plain, 8, 20, 40, 25)
    assert (24, 24) in grammar and grammar.parse(text.plain("24x40")) == (24, 40)
    for size in [(16, 24), (24, 16), (16, 16)]:
        assert size not in grammar
        with pytest.raises(ValueError, match="are not an allowed image size"):
            grammar.parse(text.plain(f"{size[0]}x{size[1]}"))


def test_half_a_size_is_no_size(text):
    grammar = SizeGrammar(text.plain, 8, 16, 64, 32)
    with pytest.raises(ValueError, match="are not an allowed image size"):
        grammar.parse(text.plain("16x"))
    assert not grammar.next_tokens(text.plain("16")).complete
    with pytest.raises(ValueError, match="no allowed image size begins with"):
        grammar.next_tokens(text.plain("cat"))


@pytest.mark.parametrize("limits", [(32, 16, 16, 100), (8, 64, 32, 100), (8, 64, 128, 63)])
def test_limits_that_allow_nothing_are_refused(limits):
    with pytest.raises(ValueError, match="no image size has sides that"):
        SizeGrammar(str.encode, *limits)


def test_large_limits_are_built_on_first_use_and_soon():
    asked = []

    def encode(size: str) -> bytes:
        asked.append(size)
        return size.encode()

    grammar = SizeGrammar(encode, 16, 16, 1024, 4096)
    assert (1024, 1024) in grammar and not asked
    assert grammar.next_tokens(()).tokens and len(asked) == len(set(asked)) == 64 * 64
    grammar.parse(b"1024x1024")
    assert len(asked) == 64 * 64
