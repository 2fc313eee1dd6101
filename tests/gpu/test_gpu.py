"""On a CUDA device: the numbers equal the CPU's, every attention reads the mask, and a run resumes.

Usage: `make gpu-test`
"""

import copy
import json

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask

import fusion
from fusion.evaluation import scorecard
from fusion.evaluation.subjects import Unified
from fusion.evaluation.suite import SPLITS
from fusion.evaluation.suites import counts_of
from fusion.sequence.mask import block_mask, visible
from fusion.sequence.packed import Packed
from fusion.testing.mixed_documents import CASES, answer, assert_close, drawing, packed_rows, prose, story, tiny_fusion
from fusion.testing.reference_networks import SMALL, condition, stir
from fusion.testing.tiny_runs import make, save_llm
from fusion.training.optim import orthogonalise
from tests.support.marks import needs_bitsandbytes

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
FP32 = 2e-4  # of the RMS: two devices add in different orders
EXPERTS = ("moe", "mixtral", "gpt_oss")  # where rounding can choose another expert


@pytest.fixture(autouse=True)
def _no_tf32():
    """fp32 products in fp32, convolutions too: 10 bits of mantissa are not what is compared here."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def mixed() -> Packed:
    return packed_rows([[drawing(), prose()], [story()]], length=160)


def moved(packed: Packed) -> Packed:
    there = packed.to("cuda")
    return there.with_patches(packed.patches.cuda(), packed.time.cuda())


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_packed_pass_is_the_one_on_the_cpu(case):
    model, packed = tiny_fusion(*case), mixed()
    there = copy.deepcopy(model).cuda()
    theirs, ours = answer(model, packed), answer(there, moved(packed))
    real = packed.doc >= 0
    tolerance = 1e-2 if any(word in case[0] for word in EXPERTS) else FP32
    assert_close(ours.prediction.cpu(), theirs.prediction, tolerance)
    assert_close(ours.logits.cpu()[real], theirs.logits[real], tolerance)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mistral", "olmo2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "matmul", "flex_attention"])
def test_every_attention_reads_the_mask(family, attention):
    model = copy.deepcopy(tiny_fusion(family, "added", "shared")).cuda()
    packed = mixed()
    theirs = answer(model, moved(packed))
    model.set_attention(attention)
    ours, real = answer(model, moved(packed)), packed.doc >= 0
    assert_close(ours.prediction, theirs.prediction, FP32)
    assert_close(ours.logits[real.cuda()], theirs.logits[real.cuda()], FP32)


@pytest.mark.parametrize("window", [None, 16])
def test_a_block_mask_is_the_dense_one(window):
    rows = moved(mixed())
    blocks = block_mask(rows, rows, window)
    told = create_mask(blocks.mask_mod, len(rows.doc), 1, len(rows), len(rows), device="cuda")[:, 0]
    assert torch.equal(told, visible(rows, rows, window))


def test_flex_attention_learns_what_dense_attention_does():
    """Gradients behind a BlockMask, bf16: as far from fp32's as those of SDPA."""
    packed, gradients = moved(mixed()), {}
    for attention, dtype in (("sdpa", torch.float32), ("sdpa", torch.bfloat16), ("flex_attention", torch.bfloat16)):
        model = copy.deepcopy(tiny_fusion("llama", "added", "shared")).cuda()
        model.set_attention(attention)
        with torch.autocast("cuda", torch.bfloat16, enabled=dtype is torch.bfloat16):
            output = model(packed=packed)
            (output.prediction.float().square().mean() + output.logits.float().square().mean()).backward()
        gradients[attention, dtype] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    exact = gradients["sdpa", torch.float32]
    off = {key: ((value - exact).norm() / exact.norm()).item() for key, value in gradients.items()}
    assert off["flex_attention", torch.bfloat16] < 2 * off["sdpa", torch.bfloat16] + 1e-3, off


def test_the_bundled_model_draws_there():
    """Rows of a batch are what they are alone, and the judge reads what was drawn as often as on a CPU."""
    model = fusion.load("shapes", device="cuda", dtype=torch.float32)
    alone = [model.draw("a red circle", seed=seed, image_size=(32, 32))[0] for seed in range(3)]
    together = model.draw("a red circle", n=3, seed=0, image_size=(32, 32))
    for one, other in zip(alone, together, strict=True):
        far = (torch.tensor(list(one.tobytes())) - torch.tensor(list(other.tobytes()))).abs()
        assert far.max() <= 2  # of 255
    figures = scorecard.score(Unified(model, {}), counts_of(60), SPLITS["development"]).figures
    assert figures["colours_present"].value > 0.6 and figures["when_to_draw"].value > 0.9, figures


def test_what_is_offloaded_draws_as_what_is_not(tmp_path):
    plain = fusion.load("shapes", device="cuda", dtype=torch.float32)
    places = {"": 0, "llm.model.layers.0": "cpu", "llm.model.layers.1": "disk", "llm.model.embed_tokens": "cpu"}
    model = fusion.load("shapes", dtype=torch.float32, device_map=places, offload_folder=tmp_path)
    assert model.model.offloaded and model.model.device.type == "cuda"
    ours, theirs = (
        torch.tensor(list(one.draw("a red circle", image_size=(32, 32))[0].tobytes())) for one in (model, plain)
    )
    assert (ours - theirs).abs().max() <= 2  # of 255


HOWS = [{}, {"recompute": True}, {"compile": True}, {"precision": "bf16"}, {"mode": "mot"}, {"mode": "frozen"}]
HOWS += [{"mode": "frozen", "deep": "hidden", "precision": "bf16", "compile": True}]
HOWS += [pytest.param({"optimizer": "adamw8bit"}, marks=needs_bitsandbytes)]


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_a_run_stops_and_goes_on(tmp_path, how):
    """A run that is stopped after a step and begun again ends where one that was left alone does, to rounding: kernels
    add in no fixed order."""
    llm = save_llm(tmp_path / "llm")
    whole, first = (make(llm, tmp_path / name, documents=60, **dict(how)) for name in ("whole", "parts"))
    whole.fit()
    first.run.mkdir()
    (first.run / "stop").touch()
    assert first.fit().interrupted
    rest = make(llm, tmp_path / "parts", documents=60, resume=True, **dict(how))
    assert 0 < rest.step < whole.step
    rest.fit()
    ours, theirs = (losses(tmp_path / name) for name in ("parts", "whole"))
    assert rest.device.type == "cuda" and rest.step == whole.step and theirs[-1] < theirs[0]
    assert ours[-1] == pytest.approx(theirs[-1], rel=0.02)


def losses(run) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss/total"] for row in rows if "loss/total" in row]


def test_muon_makes_singular_values_alike():
    x = torch.randn(3, 96, 192, device="cuda")
    values = torch.linalg.svdvals(orthogonalise(x).float())
    assert values.min() > 0.5 and values.max() < 1.4


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_an_architecture_paints_there_as_on_the_cpu(name):
    network = SMALL[name]().eval()
    stir(network)
    x, t, cond = torch.randn(3, 4, 8, 8), torch.tensor([0.2, 0.5, 0.9]), condition(network, 3)
    theirs = network(x, t, cond)
    assert_close(network.cuda()(x.cuda(), t.cuda(), cond.to("cuda", torch.float32)).cpu(), theirs, FP32)
