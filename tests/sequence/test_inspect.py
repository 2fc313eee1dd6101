"""The image of a packed document: spans tile the row, the mask is drawn by cell, labels say what is learned."""

import numpy as np
import pytest
import torch

from fusion.sequence import inspect as inspect
from fusion.sequence.mask import visible
from fusion.sequence.packed import IGNORE, finish, layout, pack
from fusion.sequence.processor import FusionProcessor
from tests.training.test_report import scene


@pytest.fixture(scope="module")
def processor(tiny_tokenizer):
    return FusionProcessor.from_tokenizer(tiny_tokenizer, 320, stride=8)


def laid_out(processor, text="Done."):
    messages = [
        {"role": "user", "content": [{"type": "image", "image": scene(1)}, {"type": "text", "text": "Make it green."}]},
        {"role": "assistant", "content": [{"type": "image", "image": scene(4)}, {"type": "text", "text": text}]},
    ]
    return layout(finish(processor.pieces(processor.document(messages)), keep_tail=False), processor.control)


@pytest.fixture(scope="module")
def packed(processor):
    """Two documents and five rows of padding; and a second row with one of them."""
    documents = [laid_out(processor), laid_out(processor, "A longer answer.")]
    return pack([documents, documents[:1]], length=sum(map(len, documents)) + 5)


def test_spans_tile_the_row_and_carry_its_learning(packed, processor):
    spans = inspect.spans(packed, processor, row=0)
    assert spans[0].start == 0 and spans[-1].stop == packed.ids.shape[1]
    assert all(a.stop == b.start for a, b in zip(spans, spans[1:]))
    learned = {span.start for span in spans if span.learned and span.image_index < 0}
    assert learned == set((packed.labels[0] != IGNORE).nonzero()[:, 0].tolist())
    assert [(s.kind, s.stop - s.start) for s in spans if s.image_index >= 0] == 2 * [
        ("clean image", 16),
        ("clean image", 16),
        ("noised block", 16),
    ]
    assert (spans[-1].kind, spans[-1].label) == ("padding", "5 padding")
    controls = [span.label for span in spans if span.kind == "control token"]
    assert controls[:3] == ["<|user|>", "<|image_start|>", "<|image_end|>"]


def test_the_summary_counts_rows(packed, processor):
    words = inspect.summary(packed, processor, row=0)
    assert (
        words.startswith(f"{packed.ids.shape[1]} rows:")
        and "64 patches of 4 clean images, 32 of 2 noised blocks, 5 padding" in words
    )
    assert words.endswith(f"learned at {int((packed.labels[0] != IGNORE).sum())}")


def test_the_mask_is_drawn_cell_by_cell(packed, processor):
    spans, count = inspect.spans(packed, processor, row=0), packed.ids.shape[1]
    image = np.asarray(inspect._mask(spans, packed, row=0, width=2000)).astype(int)
    cell, rail = inspect._cell(count), inspect._rail(spans, count)
    middles = np.arange(count) * cell + cell // 2
    cells = image[rail + middles][:, inspect.MARGIN + rail + middles]
    seen = visible(packed, packed)[0].numpy()
    assert (np.any(cells != np.array(inspect.WHITE), axis=-1) == seen).all()
    noised = packed.noised[0].numpy()
    orange = (cells == np.array(inspect.KINDS["noised block"][0])).all(axis=-1)
    assert (orange == (seen & noised[None, :])).all()


def test_another_row_gives_another_image_and_a_missing_row_an_error(packed, processor):
    first, second = inspect.draw_packed(packed, processor, 0), inspect.draw_packed(packed, processor, 1)
    assert first.tobytes() != second.tobytes()
    with pytest.raises(ValueError, match="row 2 is not in a batch of 2 rows"):
        inspect.draw_packed(packed, processor, 2)


def test_a_noised_block_shows_the_noise_of_its_time(packed, processor):
    quiet = packed.with_patches(torch.zeros(0, 192), torch.zeros(len(packed.source)))
    span = next(span for span in inspect.spans(quiet, processor) if span.kind == "noised block")
    assert span.label.endswith("t = 0.00")
    assert inspect._shown(span, quiet).tobytes() == scene(4).tobytes()
    assert inspect._shown(span, packed).tobytes() != scene(4).tobytes()


def test_a_long_document_still_fits_a_page(processor):
    text = layout(processor.pieces(processor.document("word " * 400, prompt=True)), processor.control)
    image = inspect.draw_packed(pack([[text]]), processor)
    assert len(text) > 900 and image.width < 4000 and image.height < 8000


@pytest.mark.parametrize(
    ("text", "shown"), [(" red", "·red"), ("\n", "\\n"), ("猫", "\\u732b"), ("é", "é"), ("a" * 40, "a" * 23 + "…")]
)
def test_tokens_are_readable(text, shown):
    assert inspect.readable(text) == shown
