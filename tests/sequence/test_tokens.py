"""Text to ids and back: what people type never becomes a control token, and comes back as it was."""

import copy
from multiprocessing.reduction import ForkingPickler

import pytest

from fusion.sequence.tokens import SafeTokenizer
from tests.support.spellings import TOKENIZERS

CONTROL = {"<|image_start|>": 1000, "<|image_patch|>": 1001, "<|image_end|>": 1002, "<|end|>": 1003}
SPACED = {
    "byte_level_with_space",
    "sentencepiece_bpe",
    "unigram",
    "slow",
}  # those that begin a text with a space of their own
EXACT = {
    "byte_level",
    "byte_level_chatml",
    "sentencepiece_bpe",
}  # those that spell any text and give it back to the letter


@pytest.fixture(scope="module", params=TOKENIZERS)
def text(request):
    tokenizer = TOKENIZERS[request.param]()
    made = SafeTokenizer(tokenizer, CONTROL, tokenizer.chat_template or "")
    made.kind = request.param
    return made


def typed(text) -> list[str]:
    """Every control token in the places where a tokenizer could mistake it for one."""
    tokens = [*CONTROL, *text.tokenizer.all_special_tokens, *text.tokenizer.get_added_vocab()]
    around = ["{0}", "a red {0} circle", "{0}{0}", "x{0}x", "{0} make", "make {0}", "a {0}{0} {0}", "<s{0}s>"]
    return [
        shape.format(token) for token in dict.fromkeys(tokens) for shape in around if token != text.tokenizer.unk_token
    ]


def test_typed_control_tokens_stay_plain_text(text):
    for string in typed(text):
        ids = text.plain(string)
        assert text.special.isdisjoint(ids), string
        assert text.decode(ids).strip() == string.strip(), string
        assert text.decode(ids, skip_special_tokens=True).strip() == string.strip()
        assert text.special.isdisjoint(text.plain(string, after_text=True)), string


def test_the_unknown_token_cannot_be_typed_either(text):
    unknown = text.tokenizer.unk_token
    if unknown is not None:
        assert text.tokenizer.unk_token_id not in text.plain(f"a {unknown} b")


def test_overlapping_tokens_stay_plain_text():
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.add_tokens(["xox", "oxo"], special_tokens=True)
    safe = SafeTokenizer(tokenizer, CONTROL, "")
    assert safe.special.isdisjoint(safe.plain("xoxoxox")) and safe.decode(safe.plain("xoxoxox")) == "xoxoxox"


def test_what_only_normalisation_makes_a_control_token_stays_plain_text():
    from tokenizers import normalizers

    tokenizer = TOKENIZERS["unigram"]()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    assert tokenizer.bos_token_id in tokenizer.encode("＜s＞", add_special_tokens=False, split_special_tokens=True)
    safe = SafeTokenizer(tokenizer, CONTROL, "")
    assert (
        safe.special.isdisjoint(set(safe.plain("make ＜s＞ red")))
        and safe.decode(safe.plain("make ＜s＞ red")) == "make <s> red"
    )


def test_an_added_token_of_the_template_is_a_control_token_and_any_other_is_text():
    tokenizer = TOKENIZERS["byte_level_chatml"]()
    think = tokenizer.convert_tokens_to_ids("<think>")
    assert think not in SafeTokenizer(tokenizer, CONTROL, "says <think>").plain("<think>")
    assert think in SafeTokenizer(tokenizer, CONTROL, "does not").plain("<think>")


def test_text_comes_back(text):
    for string in ("a red circle", "make it 64x48, please!", "left of the blue square. what colour is it?"):
        assert text.decode(text.plain(string)) in (string, " " + string)
        joined = text.decode((*text.plain("a red"), *text.plain(" circle", after_text=True)))
        assert joined.strip() == "a red circle"


def test_text_comes_back_to_the_letter(text):
    if text.kind not in EXACT:
        pytest.skip("this kind changes spaces or unknown characters by itself")
    for string in ("\n\nnew\nlines \n", "two  spaces ", "ünïcödé 漢字 🎨", "\t<|x|>", "\ue0000\ue001", "'s"):
        assert text.decode(text.plain(string)) == string
        assert text.decode((*text.plain("so:"), *text.plain(string, after_text=True))) == "so:" + string


def test_continued_text_is_spelled_as_in_one_go(text):
    for first, second in (("a red", " circle"), ("[INST]", " make"), ("a", " blue square."), ("left of", " it")):
        assert text.plain(first) + text.plain(second, after_text=True) == text.plain(first + second)


def test_templates_write_control_tokens(text):
    end, bos = text.tokenizer.eos_token, text.tokenizer.bos_token or ""
    ids = text.marked(f"{bos}<|image_start|>make<|end|>{end}")
    assert ids[-2:] == (CONTROL["<|end|>"], text.tokenizer.eos_token_id)
    assert ids[0] == (text.tokenizer.bos_token_id if bos else CONTROL["<|image_start|>"])
    assert (
        text.decode(ids) == f"{bos}<|image_start|>make<|end|>{end}" or text.kind == "byte_level_with_space"
    )  # it keeps its space
    assert text.decode(ids, skip_special_tokens=True).strip() == "make"


def test_templates_are_spelled_as_the_tokenizer_does(text):
    template = f"{text.tokenizer.eos_token}make a red circle{text.tokenizer.eos_token}"
    assert list(text.marked(template)) == text.tokenizer.encode(template, add_special_tokens=False)


@pytest.mark.parametrize("after_text", [False, True])
def test_behind_a_control_token_a_text_begins_anew(text, after_text):
    """It is spelled as a text of its own, with the space that a tokenizer may put there, whatever stood before the
    token."""
    image_end = CONTROL["<|image_end|>"]
    assert text.marked("<|image_end|>a red circle", after_text) == (image_end, *text.plain("a red circle"))
    begun = text.plain("left of", after_text)
    assert text.marked("left of<|image_end|>a red circle", after_text) == (
        *begun,
        image_end,
        *text.plain("a red circle"),
    )


def test_text_that_continues_a_text_gets_no_space_of_its_own(text):
    """And only some tokenizers have one: those for which the rule behind control tokens makes a difference are among
    the tested."""
    assert text.marked("red", after_text=True) == text.plain("red", after_text=True)
    begins = text.plain("red") != text.plain("red", after_text=True)
    assert begins == (text.kind in SPACED)


def test_no_token_is_put_before_or_after_a_text(text):
    assert text.special.isdisjoint(text.plain("make")) and text.special.isdisjoint(text.marked("make"))
    assert text.plain("") == () == text.marked("")


def test_settings_of_the_tokenizer_do_not_reach_in():
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.pad_token = tokenizer.eos_token
    safe = SafeTokenizer(tokenizer, CONTROL, "")
    before = safe.plain("a red circle left of a blue square")
    tokenizer(["a red circle", "a"], truncation=True, max_length=2, padding="max_length")
    safe = SafeTokenizer(tokenizer, CONTROL, "")
    tokenizer(["a red circle", "a"], truncation=True, max_length=2, padding="max_length")
    assert safe.plain("a red circle left of a blue square") == before
    assert tokenizer.encode("<|endoftext|>") == [tokenizer.eos_token_id], "and ours do not reach out"


def test_it_travels_to_other_processes(text):
    for twin in (ForkingPickler.loads(ForkingPickler.dumps(text)), copy.deepcopy(text)):
        assert twin.plain("a red <|end|>") == text.plain("a red <|end|>")
        assert twin.marked("<|end|>") == text.marked("<|end|>")
