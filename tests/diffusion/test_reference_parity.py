"""Law 8: architectures and gradients equal the references; checkpoints both ways, initial values, errors."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusion.diffusion.architectures import ARCHITECTURES, COUNTERPARTS
from fusion.diffusion.checkpoints import INDEX, WEIGHTS, load, save_diffusers
from fusion.diffusion.networks import pixart
from fusion.diffusion.networks.conditioning import Conditioning
from fusion.diffusion.networks.dit import DiT, DiTConfig
from fusion.diffusion.networks.experts import active
from fusion.diffusion.networks.flux import Flux, FluxConfig
from fusion.diffusion.networks.flux2 import Flux2, Flux2Config
from fusion.diffusion.networks.hidream import HiDream, HiDreamConfig
from fusion.diffusion.networks.lumina2 import Lumina2, Lumina2Config
from fusion.diffusion.networks.mmdit import MMDiT, MMDiTConfig
from fusion.diffusion.networks.name_tables import take
from fusion.diffusion.networks.pixart import PixArt, PixArtConfig
from fusion.diffusion.networks.sana import Sana, SanaConfig
from fusion.diffusion.networks.unet import UNet, UNetConfig, from_diffusers, to_diffusers
from fusion.testing.reference_networks import REFERENCES, SIZES, SMALL, TEXT, WIDTHS, Reference, condition, one, stir


@dataclass(frozen=True)
class Pair:
    """A network of diffusers, ours read from the folder it saved, how to ask it, and a place for more folders."""

    theirs: nn.Module
    ours: nn.Module
    case: Reference
    folder: Path

    def ask(self, x, t, cond):
        return self.case.ask(self.theirs, x, t, cond)


@pytest.fixture(params=REFERENCES)
def pair(request, tmp_path):
    case = REFERENCES[request.param]
    theirs = case.build()
    if case.name.startswith("DiT"):  # converted checkpoints hold equal copies of these in every block
        first = theirs.transformer_blocks[0].norm1.emb
        for block in theirs.transformer_blocks:
            block.norm1.emb.load_state_dict(first.state_dict())
    theirs.save_pretrained(tmp_path / "theirs")
    return Pair(theirs, load(tmp_path / "theirs"), case, tmp_path)


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 12, 12), (2, 4, 4), (2, 8, 12)])
def test_law_8_outputs_and_gradients_are_those_of_the_reference(pair, shape):
    theirs, ours = pair.theirs, pair.ours
    if shape[1] != shape[2] and pair.case.square:
        shape = (shape[0], 16, 16)
    batch, *sides = shape
    x, t, cond = torch.randn(batch, ours.config.channels, *sides), torch.rand(batch), condition(ours, batch)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, given = ours(a, t, cond), pair.ask(b, t, cond)
    assert (mine - given).abs().max() <= 1e-5 * given.std()
    weights = torch.randn_like(given)
    (mine * weights).sum().backward()
    (given * weights).sum().backward()
    assert rms(a.grad - b.grad) <= 1e-5 * b.grad.std()
    counterpart = COUNTERPARTS[pair.case.name].diffusers
    # Some gradients are zero but for rounding (a key's bias moves all scores alike), so that the usual size of one is
    # the measure.
    usual = torch.stack([p.grad.std() for p in theirs.parameters() if p.grad is not None and p.numel() > 1]).median()
    for row in counterpart.names(ours.config):
        gradients = [theirs.get_parameter(name).grad for name in row.copies]
        for name, expected in row.taken(sum(g for g in gradients if g is not None)).items():
            grad = ours.get_parameter(name).grad
            assert rms(grad - expected) <= 1e-5 * max(expected.std(), usual), name


def test_what_is_written_is_what_was_read(pair):
    theirs, ours, folder = pair.theirs, pair.ours, pair.folder
    save_diffusers(ours, folder / "ours")
    again = type(theirs).from_pretrained(folder / "ours")
    for name, tensor in theirs.named_parameters():
        assert torch.equal(again.get_parameter(name), tensor), name
    x, t, cond = torch.randn(2, ours.config.channels, 8, 8), torch.rand(2), condition(ours, 2)
    torch.testing.assert_close(pair.case.ask(again.eval(), x, t, cond), pair.ask(x, t, cond))
    with pytest.raises(ValueError, match="holds something already"):
        save_diffusers(ours, folder / "ours")


def test_shards_are_read_as_one(pair):
    ours, folder = pair.ours, pair.folder
    pair.theirs.save_pretrained(folder / "shards", max_shard_size="30KB")
    assert (folder / "shards" / INDEX).is_file()
    for name, tensor in load(folder / "shards").state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name])


@pytest.mark.parametrize("kind", SMALL)
def test_they_begin_with_zero_and_listen_to_what_they_are_told(kind):
    torch.manual_seed(0)
    model = SMALL[kind]()
    x, t = torch.randn(3, 4, 8, 4), torch.rand(3)
    cond = condition(model, 3)
    assert model(x, t, cond).abs().max() == 0
    stir(model)
    assert not torch.allclose(model(x, t, cond), model(x, 1 - t, cond))
    other = Conditioning(label=cond.label + 1) if cond.label is not None else replace(cond, tokens=cond.tokens.flip(0))
    assert not torch.allclose(model(x, t, cond)[:2], model(x, t, other)[:2])


@pytest.mark.parametrize("kind", [kind for kind in SMALL if "labels" not in kind])
def test_what_the_mask_hides_changes_nothing(kind):
    torch.manual_seed(0)
    model = SMALL[kind]()
    stir(model)
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), condition(model, 3)
    louder = replace(cond, tokens=torch.where(cond.mask[..., None], cond.tokens, cond.tokens + 100))
    torch.testing.assert_close(model(x, t, louder), model(x, t, cond))
    longer = replace(
        cond, tokens=cond.tokens.repeat(1, 2, 1), mask=torch.cat([cond.mask, torch.zeros_like(cond.mask)], dim=1)
    )
    torch.testing.assert_close(model(x, t, longer), model(x, t, cond), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_rows_of_a_batch_do_not_see_each_other(kind):
    torch.manual_seed(0)
    model = SMALL[kind]()
    stir(model)
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), condition(model, 3)
    alone = [model(x[i : i + 1], t[i : i + 1], one(cond, i)) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), model(x, t, cond), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind.startswith(("dit,", "pixart"))])
def test_a_learned_variance_takes_no_part_in_the_flow(kind):
    torch.manual_seed(0)
    plain = SMALL[kind]()
    wide = type(plain)(replace(plain.config, variance=True))
    assert wide(torch.randn(2, 4, 8, 8), torch.rand(2), condition(wide, 2)).shape == (2, 4, 8, 8)
    assert sum(p.numel() for p in wide.parameters()) - sum(p.numel() for p in plain.parameters()) == 16 * 49


@pytest.mark.parametrize(
    "layers, width, heads, millions",
    [(12, 384, 6, 32.9), (12, 768, 12, 130.3), (24, 1024, 16, 457.8), (28, 1152, 16, 674.8)],
)
def test_sizes_of_dit_are_the_papers(layers, width, heads, millions):
    with torch.device("meta"):
        model = DiT(DiTConfig(width=width, layers=layers, heads=heads, classes=1000, variance=True))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_adaln_single_saves_what_the_paper_says():
    with torch.device("meta"):
        dit = DiT(DiTConfig(width=1152, layers=28, heads=16, classes=1000))
        single = PixArt(PixArtConfig(width=1152, layers=28, heads=16))
    modulation = sum(p.numel() for block in dit.blocks for p in block.modulation.parameters())
    left = sum(p.numel() for p in single.parameters())
    assert left / 1e6 == pytest.approx(610.9, abs=0.4) and modulation / (left + modulation) == pytest.approx(
        0.268, abs=0.001
    )


def test_a_pixart_goes_on_from_a_dit():
    torch.manual_seed(0)
    dit = DiT(DiTConfig(width=48, layers=2, heads=4, classes=10))
    stir(dit)
    nn.init.zeros_(dit.label.weight[10:])  # no class adds nothing
    model = pixart.from_dit(dit, PixArtConfig(width=48, layers=2, heads=4, text_width=TEXT), time=0.4)
    x, half = torch.randn(2, 4, 8, 8), torch.full((2,), 0.4)
    text = Conditioning(tokens=torch.randn(2, 5, 32))
    none = Conditioning(label=torch.full((2,), 10))
    torch.testing.assert_close(model(x, half, text), dit(x, half, none), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="width differ"):
        pixart.from_dit(dit, PixArtConfig(width=96, layers=2, heads=4, text_width=TEXT))


def broken(folder, change) -> str:
    """The one line that a changed checkpoint is refused with."""
    change(folder / "theirs")
    with pytest.raises(ValueError) as error:
        load(folder / "theirs")
    assert "\n" not in str(error.value) and "theirs" in str(error.value)
    return str(error.value)


def with_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def with_layers(more: int):
    def change(folder):
        settings = json.loads((folder / "config.json").read_text())
        name = next(name for name in ("num_layers", "layers_per_block") if name in settings)
        changed = {name: settings[name] + more}
        if "llama_layers" in settings:  # one for each block
            changed["llama_layers"] = (settings["llama_layers"] * 2)[: len(settings["llama_layers"]) + more]
        with_config(**changed)(folder)

    return change


def with_tensors(edit):
    def change(folder):
        tensors = load_file(folder / WEIGHTS)
        edit(tensors)
        save_file(tensors, folder / WEIGHTS)

    return change


@pytest.mark.parametrize(
    "change, said",
    [
        (
            with_config(_class_name="AuraFlowTransformer2DModel"),
            "a checkpoint of AuraFlowTransformer2DModel; those of UNet2DModel, ",
        ),
        (with_layers(1), "the checkpoint lacks"),
        (with_layers(-1), "which this architecture has not"),
        (with_config(in_channels=8, out_channels=8), "has shape"),
        (
            with_tensors(lambda tensors: tensors.update(more=torch.zeros(1))),
            "has more, which this architecture has not",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"half"), "is missing or broken"),
        (lambda folder: (folder / WEIGHTS).unlink(), "is missing, and other weights (.bin) are pickles"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "no diffusers checkpoint there"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(pair, change, said):
    assert said in broken(pair.folder, change)


def test_a_tensor_that_is_missing_is_named(pair):
    name = max(load_file(pair.folder / "theirs" / WEIGHTS))
    assert f"the checkpoint lacks {name}:" in broken(pair.folder, with_tensors(lambda tensors: tensors.pop(name)))


def test_the_size_of_stable_diffusion_3_is_its_own():
    with torch.device("meta"):
        model = MMDiT(MMDiTConfig(width=1536, layers=24, heads=24))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(2028, abs=1)


@pytest.mark.parametrize("guidance, millions", [(True, 11_901), (False, 11_891)])
def test_the_size_of_flux_is_its_own(guidance, millions):
    with torch.device("meta"):
        model = Flux(FluxConfig(width=3072, layers=19, single=38, heads=24, axes=(16, 56, 56), guidance=guidance))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_the_size_of_flux2_is_its_own():
    with torch.device("meta"):
        model = Flux2(Flux2Config(width=6144, layers=8, single=48, heads=48, guidance=True))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(32.2, abs=0.05)


def test_the_size_of_hidream_is_its_own():
    with torch.device("meta"):
        model = HiDream(
            HiDreamConfig(width=2560, layers=16, single=32, heads=20, axes=(64, 32, 32), reads=(*range(32), *[31] * 16))
        )
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(17.1, abs=0.05)
    assert active(model) / 1e9 == pytest.approx(12.0, abs=0.05)


@pytest.mark.parametrize(
    "width, layers, heads, cross, millions", [(1152, 28, 36, 16, 591.7), (2240, 20, 70, 20, 1604.5)]
)
def test_the_sizes_of_sana_are_its_own(width, layers, heads, cross, millions):
    with torch.device("meta"):
        model = Sana(SanaConfig(width=width, layers=layers, heads=heads, cross_heads=cross))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_the_size_of_lumina2_is_its_own():
    with torch.device("meta"):
        model = Lumina2(Lumina2Config(width=2304, layers=26, heads=24, kv_heads=8, axes=(32, 32, 32), multiple=256))
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(2.61, abs=0.01)


def test_a_sana_of_few_steps_is_not_taken_for_one(tmp_path):
    save_diffusers(Sana(SanaConfig(channels=4, **SIZES, cross_heads=2, text_width=TEXT)), tmp_path / "theirs")
    assert "this is a SANA-Sprint" in broken(tmp_path, with_config(timestep_scale=1000.0))


# DDPM's for CIFAR-10, Stable Diffusion 1.5's, and SDXL's.
UNETS = [
    (
        UNetConfig(
            channels=3,
            widths=(128, 256, 256, 256),
            attention=(0, 1, 0, 0),
            text_width=None,
            others={"attention_head_dim": None},
        ),
        35.7,
    ),
    (UNetConfig(), 859.5),
    (
        UNetConfig(
            widths=(320, 640, 1280),
            attention=(0, 2, 10),
            text_width=2048,
            pooled_width=1280,
            others={"attention_head_dim": [5, 10, 20], "use_linear_projection": True},
        ),
        2567.5,
    ),
]


@pytest.mark.parametrize("config, millions", UNETS)
def test_sizes_of_unets_are_their_own(config, millions):
    with torch.device("meta"):
        model = UNet(config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.05)


def test_unets_that_are_told_more_are_refused():
    settings = to_diffusers(UNetConfig())
    assert from_diffusers(settings | {"upcast_attention": True}) == UNetConfig(others={"upcast_attention": True})
    for strange in ({"in_channels": 9}, {"class_embed_type": "timestep"}, {"addition_embed_type": "image"}):
        with pytest.raises(ValueError, match="other outputs than inputs, or told more"):
            from_diffusers(settings | strange)
    with pytest.raises(ValueError, match="one number each per level"):
        UNetConfig(widths=(8, 16))
    with pytest.raises(ValueError, match="unexpected keyword argument 'depth'"):
        UNet(UNetConfig(others={"depth": 2}))


def test_an_mmdit_without_a_mask_reads_its_padding_as_the_published_ones_do():
    torch.manual_seed(0)
    model = MMDiT(MMDiTConfig(channels=4, **SIZES, **WIDTHS))
    stir(model)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.rand(2), condition(model, 2)
    assert torch.equal(model(x, t, cond), model(x, t, replace(cond, mask=None)))
    with pytest.raises(ValueError, match="hides it"):
        save_diffusers(SMALL["mmdit"](), "nowhere")


def test_a_lumina2_names_what_is_too_long():
    model = Lumina2(Lumina2Config(channels=4, **SIZES, axes=(4, 4, 4), text_width=TEXT, largest=(6, 4, 4)))
    x, t, text = torch.randn(1, 4, 8, 8), torch.rand(1), torch.randn(1, 7, TEXT)
    assert model(x, t, Conditioning(text, torch.arange(7)[None] < 5)).shape == x.shape
    with pytest.raises(ValueError, match="a text of 7 tokens, and this network knows places of 5: shorten it"):
        model(x, t, Conditioning(text))
    with pytest.raises(ValueError, match="6 x 4 patches, and this network knows positions of 4 x 4"):
        model(torch.randn(1, 4, 12, 8), t, Conditioning(text[:, :3]))


def test_positions_of_its_own_are_noticed(tmp_path):
    torch.manual_seed(0)
    save_diffusers(MMDiT(MMDiTConfig(channels=4, **SIZES, **WIDTHS, largest=10, base_grid=4)), tmp_path / "theirs")
    change = with_tensors(lambda tensors: tensors["pos_embed.pos_embed"].mul_(2))
    assert "positions of its own" in broken(tmp_path, change)


def test_layers_that_are_one_of_theirs_have_to_fit_in_it(tmp_path):
    small = SMALL["flux2"]().config
    save_diffusers(Flux2(replace(small, text_mask=False)), tmp_path / "theirs")
    said = broken(tmp_path, with_config(mlp_ratio=2.0))
    assert "linear_in.weight has shape (288, 48), which does not divide into the parts that the config asks for" in said
    with pytest.raises(ValueError, match="they share out the 12 numbers of a head, and sum to 16"):
        replace(small, axes=(4, 4, 4, 4))


def test_copies_that_differ_are_noticed():
    rows = ARCHITECTURES["dit"].diffusers.names(DiTConfig(layers=2, classes=1))
    tensors = {name: torch.zeros(1) for row in rows for name in row.copies}
    tensors["transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"] = torch.ones(1)
    with pytest.raises(ValueError, match="should be a copy"):
        take(rows, tensors)


def test_what_diffusers_cannot_be_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="adaln-zero with class labels"):
        save_diffusers(SMALL["dit, text, in-context"](), tmp_path / "here")
    with pytest.raises(ValueError, match="no class of diffusers"):
        save_diffusers(nn.Linear(1, 1), tmp_path / "here")
    assert not any(tmp_path.iterdir())


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="conditioning='film': choose one of adaln-zero"):
        DiTConfig(conditioning="film")
    with pytest.raises(ValueError, match="give Conditioning its tokens"):
        SMALL["pixart"]()(torch.randn(1, 4, 8, 8), torch.rand(1), Conditioning())
    with pytest.raises(ValueError, match="give Conditioning a label"):
        SMALL["dit, labels"]()(torch.randn(1, 4, 8, 8), torch.rand(1), Conditioning(tokens=torch.randn(1, 5, 32)))
    text = torch.randn(1, 5, 32)
    with pytest.raises(ValueError, match="give Conditioning its pooled"):
        SMALL["mmdit"]()(torch.randn(1, 4, 8, 8), torch.rand(1), Conditioning(tokens=text))
    with pytest.raises(ValueError, match="give Conditioning its guidance"):
        SMALL["flux"]()(torch.randn(1, 4, 8, 8), torch.rand(1), Conditioning(tokens=text, pooled=torch.randn(1, 24)))
    with pytest.raises(ValueError, match="they share out the 12 numbers of a head, and sum to 10"):
        FluxConfig(**SIZES, axes=(4, 4, 2))
    with pytest.raises(ValueError, match="200 x 4 patches, and this network knows positions of 192"):
        SMALL["mmdit"]()(torch.randn(1, 4, 400, 8), torch.rand(1), Conditioning(tokens=text, pooled=torch.randn(1, 24)))
    with pytest.raises(ValueError, match="make both sides multiples of 2"):
        SMALL["unet, labels"]()(torch.randn(1, 4, 7, 8), torch.rand(1), Conditioning(label=torch.tensor([1])))
    assert SMALL["unet, text"]()(torch.randn(1, 4, 7, 8), torch.rand(1), Conditioning(tokens=text)).shape == (
        1,
        4,
        7,
        8,
    )
    with pytest.raises(ValueError, match="does not divide into patches"):
        SMALL["pixart"]()(torch.randn(1, 4, 7, 8), torch.rand(1), Conditioning(tokens=torch.randn(1, 5, 32)))
