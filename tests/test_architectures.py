"""Architectures: law 8 (equal to their references on the same weights, gradients too), checkpoints both ways, starts, invariants, errors."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fusion.architectures import pixart
from fusion.architectures.conditioning import Conditioning
from fusion.architectures.dit import DiT, DiTConfig
from fusion.architectures.flux import Flux, FluxConfig
from fusion.architectures.folders import INDEX, PAGES, WEIGHTS, load, save_diffusers
from fusion.architectures.mmdit import MMDiT, MMDiTConfig
from fusion.architectures.names import take
from fusion.architectures.pixart import PixArt, PixArtConfig
from tests.architectures import REFERENCES, SIZES, SMALL, TEXT, WIDTHS, Reference, condition, stir


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
    x, t, cond = torch.randn(batch, 4, *sides), torch.rand(batch), condition(ours, batch)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, given = ours(a, t, cond), pair.ask(b, t, cond)
    assert (mine - given).abs().max() <= 1e-5 * given.std()
    weights = torch.randn_like(given)
    (mine * weights).sum().backward()
    (given * weights).sum().backward()
    assert rms(a.grad - b.grad) <= 1e-5 * b.grad.std()
    page = next(page for page in PAGES if isinstance(ours, page.build))
    # Some gradients are zero but for rounding (a key's bias moves all scores alike), so that the usual size of one is the measure.
    usual = torch.stack([p.grad.std() for p in theirs.parameters() if p.grad is not None and p.numel() > 1]).median()
    for row in page.names(ours.config):
        gradients = [theirs.get_parameter(name).grad for name in row.copies]
        expected = row.take(sum(g for g in gradients if g is not None))
        grad = ours.get_parameter(row.ours).grad
        assert rms(grad - expected) <= 1e-5 * max(expected.std(), usual), row.ours


def test_what_is_written_is_what_was_read(pair):
    theirs, ours, folder = pair.theirs, pair.ours, pair.folder
    save_diffusers(ours, folder / "ours")
    again = type(theirs).from_pretrained(folder / "ours")
    for name, tensor in theirs.named_parameters():
        assert torch.equal(again.get_parameter(name), tensor), name
    x, t, cond = torch.randn(2, 4, 8, 8), torch.rand(2), condition(ours, 2)
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
    longer = replace(cond, tokens=cond.tokens.repeat(1, 2, 1), mask=torch.cat([cond.mask, torch.zeros_like(cond.mask)], dim=1))
    torch.testing.assert_close(model(x, t, longer), model(x, t, cond), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_rows_of_a_batch_do_not_see_each_other(kind):
    torch.manual_seed(0)
    model = SMALL[kind]()
    stir(model)
    x, t, cond = torch.randn(3, 4, 8, 8), torch.rand(3), condition(model, 3)
    alone = [model(x[i : i + 1], t[i : i + 1], Conditioning(**{k: v[i : i + 1] for k, v in vars(cond).items() if v is not None})) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), model(x, t, cond), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in SMALL if kind not in ("mmdit", "flux")])
def test_a_learned_variance_takes_no_part_in_the_flow(kind):
    torch.manual_seed(0)
    plain = SMALL[kind]()
    wide = type(plain)(replace(plain.config, variance=True))
    assert wide(torch.randn(2, 4, 8, 8), torch.rand(2), condition(wide, 2)).shape == (2, 4, 8, 8)
    assert sum(p.numel() for p in wide.parameters()) - sum(p.numel() for p in plain.parameters()) == 16 * 49


@pytest.mark.parametrize("layers, width, heads, millions", [(12, 384, 6, 32.9), (12, 768, 12, 130.3), (24, 1024, 16, 457.8), (28, 1152, 16, 674.8)])
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
    assert left / 1e6 == pytest.approx(610.9, abs=0.4) and modulation / (left + modulation) == pytest.approx(0.268, abs=0.001)


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
        layers = json.loads((folder / "config.json").read_text())["num_layers"]
        with_config(num_layers=layers + more)(folder)

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
        (with_config(_class_name="AuraFlowTransformer2DModel"), "a checkpoint of AuraFlowTransformer2DModel; those of DiT"),
        (with_layers(1), "the checkpoint lacks transformer_blocks."),
        (with_layers(-1), "which this architecture has not"),
        (with_config(in_channels=8, out_channels=8), "has shape"),
        (with_tensors(lambda tensors: tensors.pop("transformer_blocks.0.ff.net.2.bias")), "lacks transformer_blocks.0.ff.net.2.bias"),
        (with_tensors(lambda tensors: tensors.update(more=torch.zeros(1))), "has more, which this architecture has not"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"half"), "is missing or broken"),
        (lambda folder: (folder / WEIGHTS).unlink(), "is missing, and other weights (.bin) are pickles"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "no diffusers checkpoint there"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(pair, change, said):
    assert said in broken(pair.folder, change)


def test_the_size_of_stable_diffusion_3_is_its_own():
    with torch.device("meta"):
        model = MMDiT(MMDiTConfig(width=1536, layers=24, heads=24))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(2028, abs=1)


@pytest.mark.parametrize("guidance, millions", [(True, 11_901), (False, 11_891)])
def test_the_size_of_flux_is_its_own(guidance, millions):
    with torch.device("meta"):
        model = Flux(FluxConfig(width=3072, layers=19, single=38, heads=24, axes=(16, 56, 56), guidance=guidance))
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=1)


def test_an_mmdit_without_a_mask_reads_its_padding_as_the_published_ones_do():
    torch.manual_seed(0)
    model = MMDiT(MMDiTConfig(channels=4, **SIZES, **WIDTHS))
    stir(model)
    x, t, cond = torch.randn(2, 4, 8, 8), torch.rand(2), condition(model, 2)
    assert torch.equal(model(x, t, cond), model(x, t, replace(cond, mask=None)))
    with pytest.raises(ValueError, match="hides it"):
        save_diffusers(SMALL["mmdit"](), "nowhere")


def test_positions_of_its_own_are_noticed(tmp_path):
    torch.manual_seed(0)
    save_diffusers(MMDiT(MMDiTConfig(channels=4, **SIZES, **WIDTHS, largest=10, base_grid=4)), tmp_path / "theirs")
    change = with_tensors(lambda tensors: tensors["pos_embed.pos_embed"].mul_(2))
    assert "positions of its own" in broken(tmp_path, change)


def test_copies_that_differ_are_noticed():
    rows = next(page for page in PAGES if page.build is DiT).names(DiTConfig(layers=2, classes=1))
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
    with pytest.raises(ValueError, match="does not divide into patches"):
        SMALL["pixart"]()(torch.randn(1, 4, 7, 8), torch.rand(1), Conditioning(tokens=torch.randn(1, 5, 32)))
