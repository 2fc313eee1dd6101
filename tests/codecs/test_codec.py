"""Codecs against diffusers' own pipelines, saved and loaded, and the latent cache."""

import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import fusion.codecs.codec
from fusion.codecs.autoencoder import ConvAutoencoder
from fusion.codecs.codec import Autoencoder, CodecError, LatentCache, Pixel, load_codec, round8
from fusion.sequence.images import to_image, to_pixels


def tiny_kl(**config):
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        norm_num_groups=4,
        **config,
    )


def tiny_dc():
    return diffusers.AutoencoderDC(
        latent_channels=8,
        attention_head_dim=8,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(16, 16, 32),
        decoder_block_out_channels=(16, 16, 32),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        scaling_factor=0.41,
    )


def tiny_tiny():
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
        scaling_factor=0.8,
        shift_factor=0.1,
    )


def tiny_flux2():
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae


def tiny_qwen():
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, 0.2, 0.3, 0.4],
        latents_std=[1.0, 2.0, 3.0, 4.0],
    )


# Family: (a tiny random autoencoder, channels, downsample).
TINY = {
    "kl": (lambda: tiny_kl(scaling_factor=0.5, shift_factor=0.3), 4, 4),
    "kl-per-channel": (
        lambda: tiny_kl(scaling_factor=0.5, latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[1.0, 2.0, 3.0, 4.0]),
        4,
        4,
    ),
    "dc": (tiny_dc, 8, 4),
    "tiny": (tiny_tiny, 4, 8),
    "flux2": (tiny_flux2, 16, 4),
    "qwen": (tiny_qwen, 4, 4),
    "conv": (lambda: ConvAutoencoder((8, 16), cell=2, latent_channels=5, scaling_factor=0.5, shift_factor=0.1), 5, 4),
}


@pytest.fixture(params=TINY)
def kind(request):
    return request.param


@pytest.fixture
def codec(kind):
    return Autoencoder(TINY[kind][0]())


@pytest.fixture
def pixels():
    return round8(torch.randn(3, 3, 32, 48) * 0.5)


def test_shapes(kind, codec, pixels):
    _, channels, downsample = TINY[kind]
    assert (codec.channels, codec.downsample) == (channels, downsample)
    latents = codec.encode(pixels)
    assert latents.shape == (3, channels, 32 // downsample, 48 // downsample)
    assert codec.decode(latents).shape == pixels.shape


def raw_and_latents(kind, vae, x):
    """Raw latents, and what diffusers' pipelines feed their transformers for them."""
    if kind == "kl":  # pipeline_stable_diffusion_3_img2img.py
        raw = vae.encode(x).latent_dist.mean
        return raw, (raw - 0.3) * 0.5
    if kind == "kl-per-channel":  # pipeline_stable_diffusion_xl_img2img.py
        raw = vae.encode(x).latent_dist.mean
        mean, std = (torch.tensor(vae.config[key]).view(1, 4, 1, 1) for key in ("latents_mean", "latents_std"))
        return raw, (raw - mean) * 0.5 / std
    if kind == "dc":  # pipeline_sana_sprint_img2img.py
        raw = vae.encode(x).latent
        return raw, raw * 0.41
    if kind == "tiny":
        raw = vae.encode(x).latents
        return raw, (raw - 0.1) * 0.8
    if kind == "conv":
        raw = vae.encode(x)
        return raw, (raw - 0.1) * 0.5
    if kind == "flux2":  # pipeline_flux2.py
        raw = vae.encode(x).latent_dist.mean
        folded = diffusers.Flux2Pipeline._patchify_latents(raw)
        return raw, torch.nn.functional.batch_norm(
            folded, vae.bn.running_mean, vae.bn.running_var, eps=vae.config.batch_norm_eps
        )
    raw = vae.encode(x[:, :, None]).latent_dist.mean  # pipeline_qwenimage_edit.py
    mean, std = (torch.tensor(vae.config[key]).view(1, 4, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    return raw, ((raw - mean) / std)[:, :, 0]


def test_latents_are_those_of_the_pipelines(kind, codec, pixels):
    raw, latents = raw_and_latents(kind, codec.vae, pixels)
    torch.testing.assert_close(codec.encode(pixels), latents, atol=1e-5, rtol=1e-5)
    decoded = codec.vae.decode(raw)
    decoded = getattr(decoded, "sample", decoded)
    torch.testing.assert_close(
        codec.decode(latents), decoded[:, :, 0] if decoded.ndim == 5 else decoded, atol=1e-5, rtol=1e-4
    )


def test_a_batch_equals_one_by_one(codec, pixels):
    latents = codec.encode(pixels)
    torch.testing.assert_close(torch.cat([codec.encode(x[None]) for x in pixels]), latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        torch.cat([codec.decode(z[None]) for z in latents]), codec.decode(latents), atol=1e-5, rtol=1e-5
    )


def test_frozen_and_in_evaluation_mode(codec, pixels):
    codec.train()
    assert not any(module.training for module in codec.modules())
    assert not any(weight.requires_grad for weight in codec.parameters())
    assert not codec.encode(pixels.requires_grad_()).requires_grad
    torch.testing.assert_close(codec.encode(pixels), codec.encode(pixels), atol=0, rtol=0)


def test_autocast_around_a_codec_changes_nothing(codec, pixels):
    with torch.autocast("cpu", torch.bfloat16):
        latents = codec.encode(pixels)
        decoded = codec.decode(latents)
    assert torch.equal(latents, codec.encode(pixels)) and torch.equal(decoded, codec.decode(latents))


def test_save_then_load_is_the_identity(codec, pixels, tmp_path):
    codec.save(tmp_path / "model" / "codec")
    files = {file.name for file in (tmp_path / "model/codec").iterdir()}
    assert files == {"config.json", "diffusion_pytorch_model.safetensors"}
    for place in (tmp_path / "model/codec", tmp_path / "model"):
        loaded = load_codec(place)
        assert torch.equal(loaded.encode(pixels), codec.encode(pixels))
        assert loaded.fingerprint() == codec.fingerprint()
    codec.save(tmp_path / "model" / "codec")  # again, over what is there


def test_dtypes(codec, pixels, tmp_path):
    codec.save(tmp_path)
    low = load_codec(tmp_path, dtype=torch.bfloat16)
    assert low.vae.dtype == torch.bfloat16
    latents = low.encode(pixels)
    assert latents.dtype == torch.float32 and low.decode(latents.double()).dtype == torch.float64
    assert 0 < (latents - codec.encode(pixels)).std() < 0.05 * latents.std()
    assert low.fingerprint() != codec.fingerprint()


def test_float16_only_where_the_config_allows_it(tmp_path):
    Autoencoder(tiny_kl(force_upcast=True)).save(tmp_path / "a")
    Autoencoder(tiny_kl(force_upcast=False)).save(tmp_path / "b")
    assert load_codec(tmp_path / "a", dtype=torch.float16).vae.dtype == torch.float32
    assert load_codec(tmp_path / "b", dtype=torch.float16).vae.dtype == torch.float16


def test_a_pipelines_vae_is_found(tmp_path, pixels):
    vae = tiny_kl()
    vae.save_pretrained(tmp_path / "vae")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    codec = load_codec(str(tmp_path))
    assert torch.equal(codec.encode(pixels), Autoencoder(vae).encode(pixels))


def test_a_hub_repository_is_read_from_the_cache(tmp_path, monkeypatch, pixels):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--pipeline"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    vae = tiny_kl()
    vae.save_pretrained(repository / "snapshots" / ("0" * 40) / "vae")
    assert torch.equal(load_codec("someone/pipeline").encode(pixels), Autoencoder(vae).encode(pixels))


def test_a_models_own_config_is_not_mistaken_for_a_codecs(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "fusion"}')
    Pixel().save(tmp_path / "codec")
    assert isinstance(load_codec(tmp_path), Pixel)


def test_pixel_is_the_identity(pixels, tmp_path):
    codec = load_codec("pixel")
    assert codec.encode(pixels) is pixels and codec.decode(pixels) is pixels
    assert (codec.channels, codec.downsample) == (3, 1)
    codec.save(tmp_path)
    assert isinstance(load_codec(tmp_path), Pixel)


def refusal(source):
    with pytest.raises(CodecError) as error:
        load_codec(source)
    line = str(error.value)
    assert "\n" not in line and str(source) in line and ";" in line
    return line


def test_what_cannot_be_loaded_is_one_line(tmp_path):
    assert "no codec found" in refusal(tmp_path)
    assert "no codec found" in refusal(tmp_path / "none")
    assert "hub cannot be reached" in refusal("someone/vae")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    assert "UNet2DModel is not a codec" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not JSON" in refusal(tmp_path)
    with pytest.raises(CodecError, match="Linear is not a codec"):
        Autoencoder(torch.nn.Linear(1, 1))


def test_weights_that_cannot_be_loaded_are_one_line(tmp_path):
    saved = tmp_path / "saved"
    Autoencoder(tiny_kl()).save(saved)
    (weights,) = saved.glob("*.safetensors")

    cut = shutil.copytree(saved, tmp_path / "cut")
    (cut / weights.name).write_bytes(weights.read_bytes()[:1000])
    assert "cannot be read" in refusal(cut)

    absent = shutil.copytree(saved, tmp_path / "absent")
    (absent / weights.name).rename(absent / "diffusion_pytorch_model.bin")
    assert "safetensors" in refusal(absent)

    few = shutil.copytree(saved, tmp_path / "few")
    tensors = load_file(weights)
    tensors.pop("decoder.conv_in.weight")
    save_file(tensors, few / weights.name)
    assert "weights of AutoencoderKL" in refusal(few)

    grey = shutil.copytree(saved, tmp_path / "grey")
    config = json.loads((grey / "config.json").read_text())
    (grey / "config.json").write_text(json.dumps(config | {"in_channels": 1}))
    assert "RGB" in refusal(grey)


def test_sides_that_do_not_divide():
    with pytest.raises(ValueError, match="46x32 image has sides that 4 does not divide"):
        Autoencoder(tiny_kl()).encode(torch.zeros(1, 3, 32, 46))


def test_round8_is_what_a_saved_image_holds(tmp_path):
    pixels = torch.randn(3, 9, 7)
    to_image(pixels).save(tmp_path / "a.png")
    rounded = round8(pixels)
    assert torch.equal(rounded, to_pixels(fusion.sequence.images.open_image(tmp_path / "a.png")))
    assert torch.equal(round8(rounded), rounded)


class Counting(Autoencoder):
    """Counts the images that it really encodes."""

    encoded = 0

    def encode(self, pixels):
        self.encoded += len(pixels)
        return super().encode(pixels)


@pytest.fixture
def counting():
    return Counting(tiny_kl())


def test_the_cache_encodes_an_image_once(counting, pixels, tmp_path):
    expected = Autoencoder.encode(counting, pixels)
    cache = LatentCache(tmp_path, counting)
    torch.testing.assert_close(cache.encode(pixels[:2]), expected[:2])
    assert counting.encoded == 2
    torch.testing.assert_close(cache.encode(pixels.flip(0)), expected.flip(0))
    assert counting.encoded == 3
    assert torch.equal(LatentCache(tmp_path, counting).encode(pixels), cache.encode(pixels))
    assert counting.encoded == 3
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3 and all(file.suffix == ".safetensors" for file in files)
    assert torch.equal(cache.decode(expected), counting.decode(expected))
    assert cache.encode(pixels.double()).dtype == torch.float64


def test_the_cache_tells_images_and_codecs_apart(counting, tmp_path):
    cache = LatentCache(tmp_path, counting)
    cache.encode(torch.zeros(1, 3, 16, 32))
    cache.encode(torch.zeros(1, 3, 32, 16))  # the same bytes in another shape
    cache.encode(torch.full((1, 3, 16, 32), 1 / 255))
    assert counting.encoded == 3
    counting.vae.encoder.conv_in.bias.data += 1
    LatentCache(tmp_path, counting).encode(torch.zeros(1, 3, 16, 32))
    assert counting.encoded == 4
    assert LatentCache(tmp_path, Counting(tiny_kl(scaling_factor=0.2))).folder != cache.folder


def test_a_damaged_cache_entry_is_written_again(counting, pixels, tmp_path):
    cache = LatentCache(tmp_path, counting)
    expected = cache.encode(pixels[:1])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:50])
    assert torch.equal(cache.encode(pixels[:1]), expected) and counting.encoded == 2
    assert torch.equal(cache.encode(pixels[:1]), expected) and counting.encoded == 2
