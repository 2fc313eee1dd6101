"""The processor: documents of prompts, exact tokens and loss flags, sizes, saving, the Hugging Face interface."""

import copy
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from transformers import AutoProcessor

from fusion.sequence.document import Image, Text
from fusion.sequence.images import to_image, to_pixels
from fusion.sequence.packed import ImagePiece, Tokens, layout
from fusion.sequence.processor import CHAT_TOKENS, IMAGE_TOKENS, FusionProcessor, clean_length
from tests.support.spellings import CHATML, LLAMA2, TOKENIZERS

TYPED = [
    "<|image_patch|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<s>",
    "</s>",
    "<|endoftext|>",
    "<|im_end|>",
]


def make(kind: str = "byte_level", **options) -> FusionProcessor:
    tokenizer = TOKENIZERS[kind]()
    options = {"vocab_size": len(tokenizer), "stride": 8, "max_side": 64, "max_patches": 48} | options
    return FusionProcessor.from_tokenizer(tokenizer, **options)


@pytest.fixture(scope="module")
def processor() -> FusionProcessor:
    return make()


@pytest.fixture(scope="module", params=TOKENIZERS)
def any_processor(request) -> FusionProcessor:
    return make(request.param)


def photo(width: int = 16, height: int = 24, seed: int = 0) -> Pil.Image:
    return Pil.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def turn(role: str, *content) -> dict:
    return {
        "role": role,
        "content": [
            {"type": "text", "text": c} if isinstance(c, str) else {"type": "image", "image": c} for c in content
        ],
    }


def pieces_of(processor, source, prompt=False, **options):
    return processor.pieces(processor.document(source, prompt), **options)


def ids_of(pieces) -> list[int]:
    return [index for piece in pieces if isinstance(piece, Tokens) for index in piece.ids]


def spelled(processor, pieces) -> list:
    """Pieces as (text, loss, template) and (grid, target), easy to read in a test."""
    return [
        (processor.decode(p.ids), p.loss, p.template) if isinstance(p, Tokens) else (p.grid, p.target) for p in pieces
    ]


# Ids


def test_new_ids_lie_behind_the_tokenizer_and_the_logits():
    tokenizer = TOKENIZERS["byte_level"]()
    for vocab_size in (len(tokenizer) - 7, len(tokenizer), len(tokenizer) + 64):
        processor = FusionProcessor.from_tokenizer(tokenizer, vocab_size, stride=8)
        assert processor.vocab_base == max(vocab_size, len(tokenizer))
        assert sorted(processor.control_tokens.values()) == list(range(processor.vocab_base, processor.total_vocab))
        assert list(processor.control_tokens) == [*IMAGE_TOKENS, *CHAT_TOKENS]
        assert processor.control.image_patch == processor.control_tokens["<|image_patch|>"]


def test_the_tokenizer_stays_as_it_is(any_processor):
    for token in any_processor.control_tokens:
        assert token not in any_processor.tokenizer.get_vocab()
    assert len(any_processor.tokenizer) == any_processor.vocab_base


def test_a_tokenizer_with_a_template_gets_the_image_tokens_only():
    processor = make("byte_level_chatml")
    assert list(processor.control_tokens) == list(IMAGE_TOKENS)
    assert processor.chat_template == processor.tokenizer.chat_template


def test_a_given_template_brings_the_tokens_that_it_writes():
    template = "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}"
    assert list(make(chat_template=template).control_tokens) == [*IMAGE_TOKENS, "<|user|>", "<|end|>"]


# Loss on exactly the right tokens


def test_our_template_token_by_token(processor):
    asked = [turn("system", "be brief"), turn("user", photo(), "make it red")]
    pieces = pieces_of(processor, [*asked, turn("assistant", "ok", photo(32, 8)), turn("user", "bye")])
    assert spelled(processor, pieces) == [
        ("<|system|>", False, True),
        ("be brief", False, False),
        ("<|end|><|user|>", False, True),
        ((3, 2), False),
        ("make it red", False, False),
        ("<|end|><|assistant|>", False, True),
        ("ok", True, False),
        ((1, 4), True),
        ("<|end|>", True, True),
        ("<|user|>", False, True),
        ("bye", False, False),
        ("<|end|>", False, True),
    ]


def test_a_closed_turn_is_learned_up_to_its_stop_token_and_no_further():
    processor = make("byte_level_chatml")
    pieces = pieces_of(processor, [turn("user", "a red"), turn("assistant", "circle"), turn("user", "now")])
    assert spelled(processor, pieces) == [
        ("<|im_start|>user\n", False, True),
        ("a red", False, False),
        ("<|im_end|>\n<|im_start|>assistant\n", False, True),
        ("circle", True, False),
        ("<|im_end|>", True, True),
        ("\n<|im_start|>user\n", False, True),
        ("now", False, False),
        ("<|im_end|>\n", False, True),
    ]


def test_labels_are_the_answer_the_drawing_and_the_stop(processor):
    pieces = pieces_of(processor, [turn("user", "a"), turn("assistant", "b", photo(8, 8), "c")])
    laid = layout(pieces, processor.control)
    learned = processor.decode(laid.rows.labels[laid.rows.labels >= 0])
    assert learned == "b<|image_start|>8x8<|image_patch|>c<|end|>"


def test_a_prompt_is_the_beginning_of_what_is_learned(any_processor):
    question = turn("user", photo(), "make it red")
    for messages in ([question], [turn("user", "draw"), turn("assistant", photo()), question]):
        prompt = pieces_of(any_processor, messages, prompt=True)
        whole = pieces_of(any_processor, [*messages, turn("assistant", "a circle", photo())])
        assert ids_of(whole)[: len(ids_of(prompt))] == ids_of(prompt)
        assert not any(p.target if isinstance(p, ImagePiece) else p.loss for p in prompt)


def test_a_prompt_of_strings_and_images_is_one_user_turn(processor):
    piece = photo()
    flat = processor.document([piece, "make it red"], prompt=True)
    assert flat == processor.document([turn("user", piece, "make it red")], prompt=True)
    assert processor.document("draw", prompt=True) == processor.document([turn("user", "draw")], prompt=True)
    assert flat[-1] == Text("<|end|><|assistant|>", template=True)


def test_a_page_begins_and_ends_as_texts_of_the_tokenizer_do(any_processor):
    tokenizer = any_processor.tokenizer
    page = {"content": turn("user", "once", photo(), "upon")["content"]}
    pieces = pieces_of(any_processor, page)
    beginning = [((tokenizer.bos_token_id,), False)] if tokenizer.bos_token else []
    ends = [(p.ids, p.loss) for p in pieces if isinstance(p, Tokens) and p.template]
    assert ends == [*beginning, ((tokenizer.eos_token_id,), True)]
    assert all(p.target if isinstance(p, ImagePiece) else p.loss for p in pieces[len(beginning) :])
    prompt = pieces_of(any_processor, page, prompt=True)
    assert ids_of(prompt) == ids_of(pieces)[:-1], "a page to go on with has no end"
    assert not any(p.target if isinstance(p, ImagePiece) else p.loss for p in prompt)


def test_without_an_end_of_text_a_page_ends_with_ours():
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.eos_token = None
    processor = FusionProcessor.from_tokenizer(tokenizer, len(tokenizer), 8)
    assert spelled(processor, pieces_of(processor, {"content": "once"})) == [
        ("once", True, False),
        ("<|end|>", True, True),
    ]
    assert processor.stop_ids == (processor.control_tokens["<|end|>"],)


def test_stop_ids_are_what_ends_a_turn():
    ours, chatml = make(), make("byte_level_chatml")
    assert [ours.decode([index]) for index in ours.stop_ids] == ["<|endoftext|>", "<|end|>"]
    assert {chatml.decode([index]) for index in chatml.stop_ids} == {"<|endoftext|>", "<|im_end|>"}
    llama = make("sentencepiece_bpe", chat_template=LLAMA2)
    assert [llama.decode([index]) for index in llama.stop_ids] == ["</s>"]


# Templates of the tokenizers' own


@pytest.mark.parametrize(
    ("kind", "template"),
    [("byte_level_chatml", CHATML), ("sentencepiece_bpe", LLAMA2), ("byte_level_with_space", LLAMA2)],
)
def test_text_is_spelled_as_transformers_spells_it(kind, template):
    processor = make(kind, chat_template=template)
    said = (("user", "draw a red circle"), ("assistant", "here it is"), ("user", "thanks, bye"))
    chat = [{"role": role, "content": content} for role, content in said]
    for messages, prompt in ((chat[:2], False), (chat, True), (chat[:1], True), (chat, False)):
        expected = processor.tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=prompt, return_dict=False
        )
        document = processor.document(messages, prompt)
        assert ids_of(processor.pieces(document)) == expected


def test_a_template_that_refuses_a_role_says_so_in_one_line():
    processor = make("sentencepiece_bpe", chat_template=LLAMA2)
    with pytest.raises(
        ValueError, match=r"^the model's chat template refuses the turns system, user: System role not supported$"
    ):
        processor.document([turn("system", "be brief"), turn("user", "draw")], prompt=True)


def test_a_template_is_rendered_once_for_all_chats_of_its_shape(processor, monkeypatch):
    processor.document([turn("user", "first", photo()), turn("assistant", "one")])
    monkeypatch.setattr(processor.tokenizer, "apply_chat_template", lambda *a, **k: pytest.fail("rendered again"))
    document = processor.document([turn("user", "second", photo()), turn("assistant", "two")])
    assert [part.text for part in document if isinstance(part, Text) and not part.template] == ["second", "two"]


# What people type


@pytest.mark.parametrize("nasty", TYPED)
def test_typed_control_tokens_stay_plain_text(any_processor, nasty, tmp_path):
    text = f"a {nasty} b{nasty}"
    innocent = [turn("user", "a circle"), turn("assistant", "a circle", photo())]
    typed = [turn("user", text), turn("assistant", text, photo())]
    special = any_processor.text.special
    controls = [
        [i for i in ids_of(pieces_of(any_processor, messages)) if i in special] for messages in (innocent, typed)
    ]
    if nasty != any_processor.tokenizer.unk_token:
        assert controls[0] == controls[1]
    for source in (text, {"content": text}):  # a prompt, a caption
        written = [p for p in pieces_of(any_processor, source) if not p.template]
        assert special.isdisjoint(ids_of(written))
        assert any_processor.decode(ids_of(written)).strip() == text


def test_a_file_name_is_never_read_as_text(processor, tmp_path):
    path = tmp_path / "<|image_patch|><|end|>.png"
    photo().save(path)
    pieces = pieces_of(processor, [turn("user", path, "what is it?")], prompt=True)
    assert spelled(processor, pieces)[1] == ((3, 2), False)
    path.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"<\|image_patch\|><\|end\|>.png") as error:
        pieces_of(processor, [turn("user", path)])
    assert "\n" not in str(error.value)


# Images


def test_images_carry_pixels_grid_and_size(processor):
    image = photo(24, 16)
    (piece,) = [p for p in pieces_of(processor, [image, "a"]) if isinstance(p, ImagePiece)]
    assert torch.equal(piece.pixels, to_pixels(image)) and piece.grid == (2, 3)
    assert processor.decode(piece.size_ids) == "24x16" and processor.sizes.parse(piece.size_ids) == (24, 16)


@pytest.mark.parametrize(
    "source", [lambda i: np.asarray(i), to_pixels, lambda i: i.convert("RGBA"), lambda i: i.copy()]
)
def test_images_come_as_anything_that_images_opens(processor, source):
    image = photo(16, 16)
    (piece,) = [p for p in pieces_of(processor, [source(image), "a"]) if isinstance(p, ImagePiece)]
    assert to_image(piece.pixels).tobytes() == image.tobytes()


@pytest.mark.parametrize("size", [(17, 24), (640, 480), (64, 64), (3, 200)])
def test_a_size_that_is_not_allowed_is_fitted_or_refused(processor, size):
    (piece,) = [p for p in pieces_of(processor, [photo(*size), "a"]) if isinstance(p, ImagePiece)]
    height, width = piece.pixels.shape[1:]
    assert (width, height) in processor.sizes and processor.sizes.parse(piece.size_ids) == (width, height)
    with pytest.raises(
        ValueError,
        match=rf"^the image is {size[0]}x{size[1]}: its sides must be multiples of 8 up to 64, with at most 48 "
        "patches$",
    ):
        pieces_of(processor, [photo(*size), "a"], strict=True)


# Refusals


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("", "the prompt is empty"),
        (" \n", "the prompt is empty"),
        ([], "the prompt is empty"),
        ([" ", ""], "the prompt is empty"),
        (None, "a prompt is a string, a list of strings and images, or chat messages, not NoneType"),
        (7, "a prompt is a string, a list of strings and images, or chat messages, not int"),
        ([turn("user", "a"), turn("assistant", ""), turn("user", "b")], "the assistant message is empty"),
        ([{"role": "user", "content": None}], "a string or a list of blocks, not NoneType"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "the text of a block is a string, not int"),
        ([{"role": "tool", "content": "a"}], "a message has a role"),
        ([turn("user", "a"), "b"], "a message has a role"),
        ([{"type": "video"}], "a block is"),
        ({"content": ""}, "the document is empty"),
        ({"content": [{"type": "text", "text": " "}]}, "the document is empty"),
        ({"text": "a"}, "a string or a list of blocks, not NoneType"),
        ([turn("user", "a"), turn("assistant", "b")], "a prompt ends with the user's turn"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(processor, source, said):
    with pytest.raises(ValueError, match=said) as error:
        processor.document(source, prompt=True)
    assert "\n" not in str(error.value)


def test_something_else_in_a_prompt_is_no_image(processor):
    with pytest.raises(ValueError, match="a int is not an image"):
        pieces_of(processor, ["draw", 7], prompt=True)


def test_a_prompt_longer_than_the_context_is_refused(processor):
    source = [photo(), "make it red"]
    length = clean_length(pieces_of(processor, source, prompt=True))
    assert length == len(layout(pieces_of(processor, source, prompt=True), processor.control))
    assert pieces_of(processor, source, prompt=True, limit=length)
    with pytest.raises(ValueError, match=rf"^the prompt has {length} tokens, the model reads {length - 1}: "):
        pieces_of(processor, source, prompt=True, limit=length - 1)


# Saving and the Hugging Face interface


def test_saving_and_loading_is_the_identity(any_processor, tmp_path):
    any_processor.save_pretrained(tmp_path)
    loaded = FusionProcessor.from_pretrained(tmp_path)
    chat = [turn("system", "be brief"), turn("user", photo(), "a <|end|> b"), turn("assistant", "red", photo())]
    assert ids_of(pieces_of(loaded, chat)) == ids_of(pieces_of(any_processor, chat))
    assert loaded.to_dict() == any_processor.to_dict() and loaded.chat_template == any_processor.chat_template
    assert (loaded.control, loaded.stop_ids, loaded.total_vocab) == (
        any_processor.control,
        any_processor.stop_ids,
        any_processor.total_vocab,
    )
    assert loaded.tokenizer.chat_template == any_processor.tokenizer.chat_template, "ours is not the tokenizer's"


def test_auto_processor_finds_it(processor, tmp_path):
    import fusion

    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FusionProcessor and fusion.FusionProcessor is FusionProcessor
    assert loaded.control_tokens == processor.control_tokens


def test_it_travels_to_worker_processes(any_processor):
    document = any_processor.document([turn("user", "draw a circle"), turn("assistant", "no")])
    for twin in (ForkingPickler.loads(ForkingPickler.dumps(any_processor)), copy.deepcopy(any_processor)):
        assert twin.pieces(document) == any_processor.pieces(document)


def test_decode_shows_or_hides_control_tokens(processor):
    pieces = pieces_of(processor, [turn("user", "a"), turn("assistant", "b")])
    assert processor.decode(torch.tensor(ids_of(pieces))) == "<|user|>a<|end|><|assistant|>b<|end|>"
    assert processor.decode(ids_of(pieces), skip_special_tokens=True) == "ab"
    assert processor.batch_decode([[processor.control.image_end], [1]], skip_special_tokens=True)[0] == ""


def test_a_chat_becomes_model_inputs(processor):
    image = photo()
    chat = [turn("user", image, "what <|end|> is it?")]
    features = processor.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    laid = layout(pieces_of(processor, chat, prompt=True), processor.control)
    assert features["input_ids"].tolist() == [laid.rows.ids.tolist()] and features["attention_mask"].all()
    assert torch.equal(features["pixel_values"][0], to_pixels(image)) and features["image_sizes"].tolist() == [[24, 16]]


def test_rendering_and_then_processing_gives_the_same_inputs(processor):
    image = photo()
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    assert text == "<|user|><|image_patch|>what is it?<|end|><|assistant|>"
    features = processor(text=text, images=image, return_tensors="pt")
    whole = processor.apply_chat_template(
        [turn("user", image, "what is it?")], tokenize=True, add_generation_prompt=True, return_tensors="pt"
    )
    assert torch.equal(features["input_ids"], whole)


def test_plain_text_is_read_as_the_tokenizer_reads_it(any_processor):
    text = "a red circle"
    assert any_processor(text=text)["input_ids"] == any_processor.tokenizer(text)["input_ids"]
    assert any_processor(text=text, add_special_tokens=False)["input_ids"] == any_processor.tokenizer.encode(
        text, add_special_tokens=False
    )


def test_batches_are_padded_on_the_tokenizers_side(processor):
    texts = ["a red circle", "a"]
    with pytest.raises(ValueError, match="pass padding=True"):
        processor(text=texts, return_tensors="pt")
    features = processor(text=texts, return_tensors="pt", padding=True)
    assert features["input_ids"].shape == features["attention_mask"].shape
    assert (
        features["attention_mask"][1].sum() == 1
        and features["attention_mask"][1, 0 if processor.tokenizer.padding_side == "right" else -1] == 1
    )


def test_images_and_their_places_must_match(processor):
    with pytest.raises(
        ValueError, match=r"^2 images are given for 1 <\|image_patch\|> in the text: give one for each$"
    ):
        processor(text="<|image_patch|> a", images=[photo(), photo()])
    features = processor(text=["<|image_patch|> a", "b <|image_patch|>"], images=[[photo()], [photo(32, 8)]])
    assert [tuple(pixels.shape[1:]) for pixels in features["pixel_values"]] == [(24, 16), (8, 32)]
    assert isinstance(processor.document([photo()])[1], Image)
