"""Distances between sets of images: closed forms, tiny networks, what is skipped, and refusals in one line."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from fusion.evaluation.benchmarks.distribution import distribution
from fusion.evaluation.benchmarks.distribution.distances import (
    SCALE,
    clip_score,
    cmmd,
    frechet,
    kid,
    mean_kernel,
    precision_recall,
)
from fusion.evaluation.benchmarks.distribution.features import features, load_clip, load_dino, load_inception, squared
from tests.support.judges import error, save_clip


def needs_fidelity():
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")


def gaussian(count: int, width: int, seed: int) -> torch.Tensor:
    """Rows of sample mean 0 and sample covariance exactly the identity."""
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows -= rows.mean(0)
    root = torch.linalg.cholesky(rows.T @ rows / (count - 1))
    return torch.linalg.solve_triangular(root, rows.T, upper=False).T


# ---- arithmetic ----


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    needs_fidelity()
    one, other = gaussian(40, 5, 0), gaussian(60, 5, 1)
    scales, shift = torch.tensor([1.0, 2, 0.5, 3, 1]), torch.tensor([1.0, 0, -2, 0, 0.5])
    expected = shift.square().sum() + (scales - 1).square().sum()  # covariances I and diag(s^2): |m|^2 + sum (1 - s)^2
    assert frechet(one, other * scales + shift) == pytest.approx(expected.item(), abs=1e-9)
    assert frechet(one, one) == pytest.approx(0, abs=1e-9)


def test_kid_is_the_unbiased_mmd_of_the_cubic_kernel():
    needs_fidelity()
    one, other = torch.randn(2, 12, 3, dtype=torch.float64).unbind()

    def kernel(x, y):
        return (x @ y.T / 3 + 1) ** 3

    within = [(kernel(x, x).sum() - kernel(x, x).trace()) / (12 * 11) for x in (one, other)]
    expected = sum(within) - 2 * kernel(one, other).mean()
    mean, spread = kid(one, other)  # all of both, in another order each time
    assert mean == pytest.approx(expected.item(), abs=1e-10) and spread < 1e-10


def test_precision_and_recall_of_images_on_a_line():
    needs_fidelity()
    true = torch.arange(5.0)[:, None]  # balls to the third neighbour have radii 3, 2, 2, 2, 3
    drawn = torch.tensor([[1.0], [1.1], [1.2], [1.3], [99.0]])  # radii 0.3, 0.2, 0.2, 0.3, 97.8
    precision, recall = precision_recall(drawn, true)
    assert precision == pytest.approx(4 / 5) and recall == pytest.approx(
        4 / 5
    )  # true: 1 itself, and 2, 3, 4 only in 99's ball
    with pytest.raises(ValueError, match="needs 4 images on each side, not 3 and 5"):
        precision_recall(drawn[:3], true)


def test_cmmd_of_two_points_is_the_closed_form():
    one, other = torch.zeros(3, 4), torch.zeros(2, 4)
    other[:, 0] = 10.0
    assert cmmd(one, other) == pytest.approx(2 * SCALE * (1 - math.exp(-0.5)))  # |x - y|^2 = 100, over 2 * 10^2
    assert cmmd(one, one) == 0


def test_cmmd_is_the_same_a_few_rows_at_a_time(monkeypatch):
    one, other = torch.randn(7, 4), torch.randn(5, 4)
    by_hand = sum(math.exp(-(x - y).square().sum().item() / 200) for x in one for y in other) / 35
    monkeypatch.setattr("fusion.evaluation.benchmarks.distribution.distances.ROWS", 3)
    assert mean_kernel(one.double(), other.double()) == pytest.approx(by_hand)


def test_clip_score_is_a_hundredth_of_the_cosine_and_never_below_nothing():
    towards = torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    assert clip_score(towards, torch.tensor([[1.0, 0.0]]).expand(3, 2)).tolist() == pytest.approx([100, 60, 0])


# ---- networks ----


@pytest.fixture
def folders(tmp_path):
    """Six drawn images in two folders, with prompts; six true ones."""
    rng = np.random.default_rng(0)
    for number in range(6):
        for path in (tmp_path / f"drawn/{number % 2}/{number}.png", tmp_path / f"true/{number}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    rows = [{"file_name": f"{number % 2}/{number}.png", "text": f"the cat {number}"} for number in range(6)]
    (tmp_path / "drawn/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


@pytest.fixture
def dino(tmp_path):
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, mlp_ratio=1
    )
    Dinov2Model(config).save_pretrained(tmp_path / "dino")
    return tmp_path / "dino"


def test_features_do_not_depend_on_the_batch(folders, dino):
    paths = distribution.images_in(folders / "true")
    for network in (load_dino(str(dino), "cpu"), load_clip(str(save_clip(folders / "clip")), "cpu").whole):
        rows = features(paths, network, 6)
        torch.testing.assert_close(rows, features(paths, network, 4))
        assert rows.std(0).min() > 0  # images are told apart


def test_an_image_is_squared_whole():
    image = Image.new("RGB", (20, 10), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 20, 10))
    pixels = squared(image, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pixels.shape == (3, 8, 8) and pixels[0, :, 0].tolist() == [1] * 8 and pixels[2, :, -1].tolist() == [1] * 8


def test_clip_agrees_with_its_own_processor(folders):
    clip = load_clip(str(save_clip(folders / "clip")), "cpu")
    words, images = (
        clip.words(["a red cat", "a cat"]),
        features(distribution.images_in(folders / "true")[:2], clip.middle, 2),
    )
    assert torch.allclose(words.norm(dim=-1), torch.ones(2)) and torch.allclose(images.norm(dim=-1), torch.ones(2))
    assert torch.allclose(clip.words(["a cat"])[0], words[1], atol=1e-6)  # padding is not read


def measured(folders, *words) -> int:
    return distribution.main([str(folders / "drawn"), "-o", str(folders / "out.json"), *map(str, words)])


def test_without_weights_everything_is_skipped_in_a_line_each(folders, capsys):
    assert measured(folders, "--against", folders / "true") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in said[:3]] == ["skipped: FID", "skipped: FD-DINO", "skipped: CMMD"] and len(
        said
    ) == 4
    assert json.loads((folders / "out.json").read_text())["figures"] == []


def test_cmmd_and_clip_score_of_folders(folders, capsys):
    clip = save_clip(folders / "clip")
    assert measured(folders, "--against", folders / "true", "--weights", f"clip={clip}") == 0
    found = {row["name"]: row["value"] for row in json.loads((folders / "out.json").read_text())["figures"]}
    both = load_clip(str(clip), "cpu")
    drawn, true = (distribution.images_in(folders / name) for name in ("drawn", "true"))
    assert found["CMMD"] == pytest.approx(cmmd(features(drawn, both.whole, 2), features(true, both.whole, 2)), rel=1e-4)
    texts = both.words([f"the cat {path.stem}" for path in drawn])
    assert found["CLIP score"] == pytest.approx(
        clip_score(features(drawn, both.middle, 2), texts).mean().item(), rel=1e-4
    )
    (folders / "out.json").unlink()
    assert (
        measured(folders, "--weights", f"clip={clip}") == 0
        and "CMMD, for there is no --against" in capsys.readouterr().out
    )


def test_fd_dino_of_folders(folders, dino):
    needs_fidelity()
    assert measured(folders, "--against", folders / "true", "--weights", f"dino={dino}") == 0
    network, (found,) = load_dino(str(dino), "cpu"), json.loads((folders / "out.json").read_text())["figures"]
    drawn, true = (features(distribution.images_in(folders / name), network, 6) for name in ("drawn", "true"))
    assert found["value"] == pytest.approx(frechet(drawn, true), rel=1e-3) and found["value"] > 0


def test_inceptions_figures_of_folders(folders, monkeypatch):
    needs_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The network keeps the weights that it was made with: only its figures' names are looked at here.
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.torch.load", lambda *_, **__: {})
    monkeypatch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    monkeypatch.setattr(
        "fusion.evaluation.benchmarks.distribution.features.INCEPTION_SHA256", "e3b0c442"
    )  # of an empty file
    (folders / "weights.pth").touch()
    assert measured(folders, "--against", folders / "true", "--weights", f"inception={folders / 'weights.pth'}") == 0
    found = [row["name"] for row in json.loads((folders / "out.json").read_text())["figures"]]
    assert found == ["FID", "KID", "precision", "recall"]


# ---- refusals ----


def test_refusals_are_one_line(folders, capsys, monkeypatch):
    for words, said in [
        (["--weights", "vgg=x"], "--weights vgg=x: give inception=FILE, dino="),
        (["--weights", f"clip={folders}"], "not weights of a CLIP"),
        (["--prompts", folders / "none.jsonl"], "none.jsonl: no prompts"),
        (["--against", folders / "none"], "none: no images there"),
        (["--batch", "0"], "--batch is at least 1"),
    ]:
        assert measured(folders, *words) == 1 and said in error(capsys)
    (folders / "drawn/metadata.jsonl").write_text('{"file_name": "0/0.png", "text": "a"}\n[]')
    assert measured(folders) == 1 and "metadata.jsonl, line 2: no prompts" in error(capsys)
    (folders / "drawn/metadata.jsonl").write_text('{"file_name": "0/0.png", "text": "a"}')
    assert measured(folders) == 1 and "5 of 6 images have no prompt, 0/2.png among them" in error(capsys)


def test_a_missing_package_is_one_line(monkeypatch):
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = torch.randn(4, 2)
    for ask in (
        lambda: frechet(rows, rows),
        lambda: kid(rows, rows),
        lambda: precision_recall(rows, rows),
        lambda: load_inception("x", "cpu"),
    ):
        with pytest.raises(ValueError, match=r"torch-fidelity is not installed .*: pip install torch-fidelity"):
            ask()


def test_other_weights_are_no_fid(tmp_path):
    needs_fidelity()
    (tmp_path / "weights.pth").write_bytes(b"another")
    with pytest.raises(
        ValueError, match=r"weights.pth: not FID's weights \(SHA-256 [0-9a-f]{8}\); give weights-inception"
    ):
        load_inception(str(tmp_path / "weights.pth"), "cpu")
