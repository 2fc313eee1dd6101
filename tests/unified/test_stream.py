"""The image stream by itself: places are relative, and images of a model that cannot say a size have one."""

import pytest
import torch

import fusion
from fusion.testing import tiny_runs
from fusion.testing.mixed_documents import assert_close
from fusion.unified.stream import ImageRows, ImageStream, head_width

WIDTH, TEXT = 48, 64


class Words:
    """Keys of some text before those of the images, as StreamBackbone gives them."""

    def __init__(self, states, rotation):
        self.states, self.rotation = states, rotation

    def __call__(self, index, layer, k, v):
        words = layer.words(self.states, self.rotation)
        return tuple(torch.cat(pair, dim=2) for pair in zip(words, (k, v), strict=True))


@torch.no_grad()
def hidden(place: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    """What a stream makes of nine patches at these positions, behind five words at those."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stream, x, states = ImageStream(WIDTH, TEXT, 2), torch.randn(1, 9, WIDTH), torch.randn(1, 5, TEXT)
    rows = ImageRows(x, stream.rotation(place))
    return stream(rows, None, torch.zeros(1, 1, 9, 14), Words(states, stream.rotation(words)))


def test_only_the_distance_of_places_counts_and_it_does():
    cell = torch.arange(9)
    place = torch.stack([torch.full((9,), 5), 5 + cell // 3, 5 + cell % 3])[:, None]
    words = torch.arange(5).expand(3, 1, 5)
    here = hidden(place, words)
    assert_close(hidden(place + 70, words + 70), here)
    for moved in (hidden(place + torch.tensor([0, 1, 0])[:, None, None], words), hidden(place, words - 1)):
        assert (moved - here).abs().max() > 1e-3, "what moves alone is noticed"
    swapped = place.clone()
    swapped[2, 0, 0] += 1
    assert (hidden(swapped, words) - here).abs().max() > 1e-3, "within an image, too"


@pytest.mark.parametrize(("width", "channels"), [(192, 32), (768, 64), (48, 16), (36, 4), (1024, 64), (7, 1)])
def test_heads_divide_the_width(width, channels):
    assert head_width(width) == channels and width % channels == 0


def test_images_have_the_model_s_size_unless_another_is_asked_for(tmp_path):
    llm = tiny_runs.save_llm(tmp_path / "llm")
    frozen = {"mode": "frozen", "see": "none", "image_width": 32, "max_side": 64}
    model = fusion.from_llm(llm, image_size=[32, 16], **frozen)
    model.save_pretrained(tmp_path / "model")
    for one in (model, fusion.load(tmp_path / "model")):
        assert one.draw("a cat", steps=1)[0].size == (32, 16)
        assert one.draw("a cat", steps=1, image_size=(16, 48))[0].size == (16, 48)
    assert fusion.from_llm(llm, **frozen).draw("a cat", steps=1)[0].size == (64, 64)
