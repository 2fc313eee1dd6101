"""The codec trainer: images in, a run folder with a codec of unit scale out."""

import json
import math
import signal
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

import fusion.recipes.codec
from fusion.codecs.codec import load_codec
from fusion.common.config import ConfigError, load_config
from fusion.recipes.codec import (
    CodecRun,
    CodecTrainingError,
    Images,
    Network,
    build,
    losses,
    open_images,
    psnr,
    reconstruct,
)
from fusion.training.metrics import read


def tiny(path, **settings):
    network = Network(channels=(8, 8), latent_channels=3, groups=2)
    data = Images(path=str(path), size=16, crop=16, held_out=0.2, validate=6)
    return CodecRun(**{"data": data, "network": network, "batch": 4, "images": 200, "device": "cpu"} | settings)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Forty smooth images of four kinds of file, one broken one among them."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i in range(40):
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
        small.resize((24 + i, 20), Image.Resampling.BICUBIC).save(
            root / f"{i:02}.{('png', 'jpg', 'webp', 'bmp')[i % 4]}"
        )
    (root / "more").mkdir()
    (root / "more" / "broken.png").write_bytes((root / "00.png").read_bytes()[:100])
    return root


@pytest.fixture(scope="session")
def run(folder, tmp_path_factory):
    settings = tiny(
        folder, out=str(tmp_path_factory.mktemp("run") / "codec"), images=600, sample_every=100, log_every=15
    )
    return settings, fusion.recipes.codec.train(settings)


def test_training_helps_and_the_run_folder_is_complete(run):
    settings, result = run
    rows = read(result.folder / "metrics.jsonl")
    totals = [row["loss/total"] for row in rows if "loss/total" in row]
    assert len(totals) == 10 and totals[-1] < 0.6 * totals[0]
    scores = [row["val/psnr"] for row in rows if "val/psnr" in row]
    assert len(scores) == 2 and scores[-1] > 14
    assert scores[-1] == pytest.approx(result.psnr)
    assert load_config(CodecRun, result.folder / "config.yaml") == settings
    sheets = sorted(path.relative_to(result.folder).as_posix() for path in result.folder.rglob("*.png"))
    assert sheets == ["samples/step_100/reconstructions.png", "samples/step_150/reconstructions.png"]
    assert Image.open(result.folder / sheets[0]).size == (2 * 6 * 16, 2 * 3 * 16)


def test_the_broken_file_is_skipped_and_named(run, folder):
    _, result = run
    assert list(result.skipped) == [str(folder / "more/broken.png")]
    assert "broken.png" in result.skipped[str(folder / "more/broken.png")]


def test_the_saved_codec_has_latents_of_unit_scale_and_reaches_the_figure(run):
    settings, result = run
    codec = load_codec(result.folder / "codec")
    assert (codec.channels, codec.downsample) == (3, 2)
    config = json.loads((result.folder / "codec/config.json").read_text())
    assert config["shift_factor"] == pytest.approx(result.mean) and config["scaling_factor"] == pytest.approx(
        1 / result.std
    )
    images = open_images(settings.data, settings.seed)
    latents = codec.encode(images.held_out)
    assert abs(latents.mean()) < 0.3 and 0.7 < latents.std() < 1.3, "held-out images, so only about"
    made = codec.decode(latents)
    torch.testing.assert_close(
        reconstruct(codec.vae, images.held_out), fusion.recipes.codec.round8(made), atol=1.01 * 2 / 255, rtol=0
    )
    assert psnr(fusion.recipes.codec.round8(made), images.held_out) == pytest.approx(result.psnr, abs=0.01)


def test_the_same_seed_gives_the_same_codec(folder, tmp_path):
    results = [fusion.recipes.codec.train(tiny(folder, out=str(tmp_path / name), images=40)) for name in "ab"]
    first, second = (load_codec(result.folder / "codec") for result in results)
    assert first.fingerprint() == second.fingerprint()


def test_the_built_in_world(tmp_path):
    data = Images(size=32, crop=16, validate=4)
    images = open_images(data, seed=0)
    assert images.held_out.shape == (4, 3, 32, 32) and images.held_out.unique().numel() > 4
    assert not torch.equal(next(images.train), images.held_out[0])
    result = fusion.recipes.codec.train(tiny("shapes", data=data, out=str(tmp_path), images=16))
    assert result.images == 16 and math.isfinite(result.psnr)


def test_the_world_in_its_own_sizes_through_a_conv_autoencoder(tmp_path):
    network, data = Network("conv", channels=(8, 16), latent_channels=3), Images(size=None, crop=32, validate=8)
    settings = CodecRun(str(tmp_path), data=data, network=network, batch=8, images=1600, device="cpu", edge=0.0)
    settings.optim.optimizer, settings.optim.warmup = "muon", 10
    images = open_images(data, seed=0)
    assert images.held_out.shape == (8, 3, 32, 32)
    assert len({tuple(image.shape) for image in islice(images.train, 40)}) > 1
    result = fusion.recipes.codec.train(settings)
    first, last = (row["loss/l1"] for row in [read(tmp_path / "metrics.jsonl")[i] for i in (0, -2)])
    assert last < 0.5 * first and result.psnr > 16
    codec = load_codec(tmp_path / "codec")
    assert (codec.channels, codec.downsample) == (3, 8)
    assert 0.7 < codec.encode(images.held_out).std() < 1.3


def test_noise_on_latents_is_up_to_what_is_set_and_unit_scale_costs_nothing():
    settings = CodecRun(network=Network("conv", channels=(8,), latent_channels=64), device="cpu", noise=0.5)
    vae = build(settings.network, None)
    latents = torch.randn(6, 64, 40, 40)
    latents = (latents - latents.mean((0, 2, 3), keepdim=True)) / latents.std((0, 2, 3), keepdim=True, correction=0)
    seen = []
    vae.encode, vae.decode = lambda pixels: latents, lambda noised: seen.append(noised) or torch.zeros(6, 3, 160, 160)
    assert losses(vae, torch.zeros(6, 3, 160, 160), settings)["unit"] < 1e-9
    deviations = (seen[0] - latents).flatten(1).std(1)
    assert deviations.max() < 0.51 and deviations.std() > 0.05, "each image has its own"


def test_subjects_are_held_out_whole(tmp_path):
    names = [f"{i}{tone}" for i in range(20) for tone in ("", "_1f3fb", "_1f3ff")]
    for name in names:
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "edits.jsonl").write_text('{"input_file_name": "0.png", "edited_file_name": "1.png"}\n')
    sides = fusion.recipes.codec._split(tmp_path, held_out=0.3)
    subjects = {side: {path.stem.split("_")[0] for path in paths} for side, paths in sides.items()}
    assert len(sides["train"]) + len(sides["validation"]) == 60
    assert not subjects["train"] & subjects["validation"]
    assert len({"0", "1"} & subjects["train"]) in (0, 2), "an edit ties its two images together"


def test_a_signal_ends_training_with_a_saved_codec(folder, tmp_path, monkeypatch):
    update = fusion.recipes.codec._update

    def interrupted(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return update(*arguments)

    monkeypatch.setattr(fusion.recipes.codec, "_update", interrupted)
    result = fusion.recipes.codec.train(tiny(folder, out=str(tmp_path)))
    assert result.images == 4 and result.interrupted == "SIGTERM"
    assert load_codec(tmp_path / "codec").channels == 3


def test_minutes_end_training(folder, tmp_path):
    assert fusion.recipes.codec.train(tiny(folder, out=str(tmp_path), images=10**9, minutes=0.005)).seconds < 5


def test_a_loss_that_is_not_finite_stops_before_the_update(folder, tmp_path):
    with pytest.raises(CodecTrainingError, match=r"step 0: the loss is nan; lower optim\.lr"):
        fusion.recipes.codec.train(tiny(folder, out=str(tmp_path), l1=math.nan))


def test_the_kl_term_is_per_latent_number():
    settings = tiny("shapes")
    vae = build(settings.network, 16)
    pixels = torch.rand(3, 3, 16, 16) * 2 - 1
    posterior = vae.encode(pixels).latent_dist
    expected = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    torch.testing.assert_close(losses(vae, pixels, settings)["kl"], expected)


def test_psnr():
    black, grey = torch.full((2, 3, 4, 4), -1.0), torch.full((2, 3, 4, 4), -0.8)
    assert psnr(black, grey) == pytest.approx(20)
    assert psnr(black, black) == pytest.approx(20 * math.log10(255) + 10 * math.log10(12))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.size=30"], "data.size=30"),
        (["data.crop=128"], "data.crop=128"),
        (["network.channels=[16,30]"], "multiple of network.groups"),
        (["network.kind=vq"], "choose one of kl, conv"),
        (["network.kind=conv", "data.size=40"], "downsample 16 does not divide it"),
        (["data.size=null", "data.path=images"], "choose one for a folder of images"),
        (["data.size=null", "data.crop=64"], "at most 32"),
        (["network.chanels=[8]"], "chanels"),
        (["optim.optimizer=sgd"], "adamw"),
    ],
)
def test_settings_that_cannot_work_are_one_line(root, words, says):
    with pytest.raises(ConfigError) as error:
        load_config(CodecRun, root / "configs/codec.yaml", words)
    assert "\n" not in str(error.value) and says in str(error.value)


def test_folders_that_cannot_work_are_one_line(tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        open_images(Images(path=str(tmp_path / "none")), 0)
    with pytest.raises(ValueError, match="none of its 0 images"):
        open_images(Images(path=str(tmp_path)), 0)
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"none of \d+ images can be used; the first: .*\.png"):
        open_images(Images(path=str(tmp_path), held_out=0.5), 0)
