"""Laws 4 and 5: the cached, batched sampler computes what training did, step for step; how much work it does."""

from dataclasses import dataclass

import pytest
import torch

from fusion.codecs.codec import Pixel
from fusion.flow.matching import PATHS, estimate
from fusion.flow.solvers import SOLVERS, schedule, steps
from fusion.generation.drawing import Canvas, draw
from fusion.generation.prefix import Prefix
from fusion.generation.sampling import Sampling
from fusion.sequence.packed import IGNORE, ImagePiece, Piece, Tokens, layout, pack
from fusion.testing.mixed_documents import (
    CASES,
    CONTROL,
    PATCH,
    TOLERANCE,
    answer,
    assert_close,
    drawing,
    image_piece,
    packed_rows,
    prose,
    routing_margins,
    story,
    text,
    tiny_fusion,
    watched,
)
from fusion.unified.objective import Objective, latents, losses

cases = pytest.mark.parametrize("case", CASES, ids="-".join)
# Every token in its turn, small errors of one step enter the next, and near t = 0 a velocity divides by t.
CLOSED_LOOP = 5 * TOLERANCE
UNGUIDED = Sampling(steps=3, guidance=1.0)
GUIDED = Sampling(steps=3, guidance=3.0, image_guidance=1.5)


def patches_of(piece: ImagePiece) -> torch.Tensor:
    return latents(pack([[layout([piece], CONTROL)]]), Pixel(), PATCH).patches[: piece.grid[0] * piece.grid[1]]


def targets_of(pieces: list[Piece]) -> list[ImagePiece]:
    return [piece for piece in pieces if isinstance(piece, ImagePiece) and piece.target]


def noise(piece: ImagePiece) -> torch.Tensor:
    return torch.randn(patches_of(piece).shape, generator=torch.Generator().manual_seed(sum(piece.size_ids)))


def uncached(model, pieces: list[Piece]):
    """The velocity of all noised blocks of a document, read as in training: x (n, p), one block after the other."""
    packed = packed_rows([[pieces]])
    config = model.config

    @torch.no_grad()
    def velocity(x, t):
        patches = packed.patches.clone()
        patches[packed.noised_patch] = x
        prediction = model(packed=packed.with_patches(patches, packed.noised_image * t)).prediction
        return estimate(prediction, x, t, config.target, PATHS[config.path]).velocity

    return velocity


def integrated(model, velocity, start: torch.Tensor, settings: Sampling) -> list[torch.Tensor]:
    """x_hat after every step of the settings' solver."""
    walk = steps(
        SOLVERS[settings.solver], velocity, start, schedule(settings.steps, settings.shift), PATHS[model.config.path]
    )
    return [state.x_hat for state in walk]


@dataclass(frozen=True)
class Grown:
    """A document as the sampler read and drew it. hidden: the state at the end of each part that was read; ends: clean
    text rows up to there. drawn: x_hat of each target image after every solver step."""

    hidden: torch.Tensor
    ends: torch.Tensor
    drawn: list[list[torch.Tensor]]


def grown(model, pieces: list[Piece], noises: list[torch.Tensor], settings: Sampling) -> Grown:
    """Grow a document word by word, drawing its target images from the given noise; true pixels are what is read on
    from."""
    prefix, hidden, ends, drawn, noises = Prefix(model, CONTROL, 1), [], [0], [], iter(noises)

    def spell(ids):
        """The beginning of a text at once, as a prompt is read, its last three tokens one by one, as an answer is
        written."""
        for part in (ids[:-3], *zip(ids[-3:], strict=True)):
            if part:
                prefix.write(0, [Tokens(part)])
                prefix.read([])
                hidden.append(prefix.last)
                ends.append(ends[-1] + len(part))

    for piece in pieces:
        if isinstance(piece, Tokens):
            spell(piece.ids)
            continue
        spell((CONTROL.image_start, *piece.size_ids))
        if piece.target:
            canvas = Canvas({"full": (prefix, 0)}, piece.grid, next(noises))
            drawn.append([step.x_hat[0] for step in draw(model, [canvas], settings)])
        prefix.writers[0].clean_image(0, piece.grid)
        prefix.read([patches_of(piece)])
        hidden.append(prefix.last)
        ends.append(ends[-1] + 1)
    return Grown(torch.cat(hidden), torch.tensor(ends[1:]), drawn)


def texts_of(packed) -> torch.Tensor:
    """The clean text rows of a batch of one row."""
    return ((packed.image_index[0] < 0) & ~packed.noised[0]).nonzero()[:, 0]


@cases
@torch.no_grad()
def test_the_sampler_reads_and_draws_what_training_did(case):
    """A document grown word by word and drawn image by image, against one packed pass over all of it."""
    model, pieces = tiny_fusion(*case), story()
    targets = targets_of(pieces)
    sampled = grown(model, pieces, [noise(piece) for piece in targets], UNGUIDED)
    packed = packed_rows([[pieces]])
    with routing_margins(model) as margins:
        expected = answer(model, packed)
    texts = texts_of(packed)
    read = texts[sampled.ends - 1]
    assert read[-1] == texts[-1]
    assert_close(sampled.hidden, expected.hidden[0, read])
    assert_close(model.all_logits(sampled.hidden), expected.logits[0, read])
    trained = integrated(model, uncached(model, pieces), torch.cat([noise(piece) for piece in targets]), UNGUIDED)
    for step, together in zip(zip(*sampled.drawn, strict=True), trained, strict=True):
        assert_close(torch.cat(step), together, CLOSED_LOOP)
    assert not margins or min(margins) > TOLERANCE


PURE_NOISE = Objective(mean=100.0, std=0.0)  # all times are 1: where the sampler begins


@pytest.mark.parametrize(
    "case",
    [
        ("llama", "adaln", "axial"),
        ("gemma3_text", "added", "axial"),
        ("gpt2", "added", "shared"),
        ("gemma3_text", "adaln", "axial", "linear", "frozen+none"),
    ],
    ids="-".join,
)
@torch.no_grad()
def test_the_objective_trains_what_the_sampler_computes(case):
    """What `losses` asks the model is what a sampler asks it: the logits of every text row, and x_hat of every image's
    first step."""
    model, pieces = tiny_fusion(*case), story()
    clean, asked = latents(pack([[layout(pieces, CONTROL)]]), Pixel(), PATCH), []
    hook = model.register_forward_hook(
        lambda module, args, kwargs, output: asked.append((kwargs["packed"], output)), with_kwargs=True
    )
    found = losses(model, clean, PURE_NOISE, torch.Generator().manual_seed(0))
    hook.remove()
    packed, output = asked[0]
    assert (found.time == 1).all() and len(found.time) == 2
    noises = packed.patches[packed.noised_patch].split(packed.grid[packed.noised_image].prod(-1).tolist())
    sampled = grown(model, pieces, list(noises), Sampling(steps=1, guidance=1.0))
    assert_close(torch.cat([steps[0] for steps in sampled.drawn]), output.prediction)
    assert found.x_error.tolist() == pytest.approx(
        [
            (steps[0] - patches_of(piece)).square().mean().item()
            for steps, piece in zip(sampled.drawn, targets_of(pieces), strict=True)
        ],
        rel=1e-4,
    )
    read = texts_of(packed)[sampled.ends - 1]
    labels = packed.labels[0, read]
    learned = labels != IGNORE
    place = (packed.labels[0] != IGNORE).cumsum(0)[read] - 1
    assert learned.sum() > 10
    logits = model.all_logits(sampled.hidden)[learned]
    if model.stream is not None:  # for which all tokens of the LLM are one
        text, control = logits.tensor_split([model.llm_vocab], dim=-1)
        logits = torch.cat([text.logsumexp(-1, keepdim=True), control], dim=-1)
    assert_close(logits, output.logits[place[learned]])


@cases
@torch.no_grad()
def test_documents_read_together_are_read_as_if_alone(case):
    """Rows of a batch grow by different pieces at different times."""
    model, documents = tiny_fusion(*case), [story(), drawing()[:3], prose()]
    prefix, last = Prefix(model, CONTROL, len(documents)), []
    for turn in range(max(map(len, documents))):
        new = [pieces[turn : turn + 1] for pieces in documents]
        for row, pieces in enumerate(new):
            prefix.write(row, pieces)
        prefix.read([patches_of(piece) for pieces in new for piece in pieces if isinstance(piece, ImagePiece)])
        last.append(prefix.last)
    for row, pieces in enumerate(documents):
        expected = answer(model, packed_rows([[pieces]]))
        for turn in range(len(pieces)):
            clean = layout(pieces[: turn + 1], CONTROL)
            assert_close(last[turn][row], expected.hidden[0, int((~clean.rows.noised).sum()) - 1])
        assert torch.equal(last[-1][row], last[len(pieces) - 1][row]), (
            "a row that has nothing to read keeps its last state"
        )


def canvas_of(model, requests: list[list[Piece]]) -> dict[str, tuple[Prefix, int]]:
    """Prefixes up to the size of the image that ends each request, by the names of guidance's branches."""
    prefixes = {}
    for name, pieces in zip(("full", "image", "none"), requests, strict=True):
        prefix = Prefix(model, CONTROL, 1)
        prefix.write(0, pieces[:-1])
        prefix.writers[0].open_image(pieces[-1].size_ids)
        prefix.read([patches_of(piece) for piece in pieces[:-1] if isinstance(piece, ImagePiece)])
        prefixes[name] = (prefix, 0)
    return prefixes


def branches(before: Tokens, context: ImagePiece, drawn: ImagePiece) -> list[list[Piece]]:
    return [[context, before, drawn], [context, drawn], [drawn]]


REQUESTS = [
    branches(text(19, 1), image_piece(5, 4, 4, target=False), image_piece(5, 4, 2, clean=False)),
    branches(text(3, 8), image_piece(4, 4, 5, target=False), image_piece(1, 3, 9, clean=False)),
]


def drawn_together_as_if_alone(model, settings: Sampling) -> list[tuple[int, int]]:
    """Hold images of two sizes, drawn as one batch, against their branches read as in training; shapes of the calls."""
    canvases = [Canvas(canvas_of(model, request), request[0][-1].grid, noise(request[0][-1])) for request in REQUESTS]
    with watched(model) as calls:
        together = [step.x_hat for step in draw(model, canvases, settings)]
    for row, request in enumerate(REQUESTS):
        velocity = settings.flow_guidance.velocity(
            {name: uncached(model, p) for name, p in zip(("full", "image", "none"), request, strict=True)}
        )
        alone = integrated(model, velocity, canvases[row].noise, settings)
        for step, expected in zip(together, alone, strict=True):
            assert_close(step[row], expected, CLOSED_LOOP)
    return [tuple(call.shape[:2]) for call in calls]


@cases
@torch.no_grad()
def test_images_drawn_together_with_guidance_are_drawn_as_if_alone_branch_by_branch(case):
    """Three branches of two images, nothing but patches."""
    assert drawn_together_as_if_alone(tiny_fusion(*case), GUIDED) == [(6, 20)] * GUIDED.steps


@pytest.mark.parametrize(
    "case",
    [
        ("gemma3_text", "adaln", "axial"),
        ("llama", "adaln", "axial", "conv+reference"),
        ("gpt2", "added", "shared", "linear+reference"),
    ],
    ids="-".join,
)
@torch.no_grad()
def test_outside_its_interval_guidance_leaves_the_full_branch_alone(case):
    """What of the branches' rows, masks, caches and edited images is used then is that of the full ones."""
    settings = Sampling(steps=4, guidance=3.0, image_guidance=1.5, guidance_interval=(0.3, 0.8))
    assert drawn_together_as_if_alone(tiny_fusion(*case), settings) == [(2, 20), (6, 20), (6, 20), (2, 20)]


@cases
@torch.no_grad()
def test_every_attention_that_the_family_declares_agrees(case):
    """FlexAttention runs uncompiled here; compiled, it is tested on a GPU."""
    family, *mode = case
    declared = type(tiny_fusion(*case).llm)
    kinds = ["matmul"] + ["sdpa"] * declared._supports_sdpa
    kinds += ["flex_attention"] * (
        declared._supports_flex_attn and family != "gpt_oss"
    )  # no attention sinks in it on CPUs
    packed = packed_rows([[story(), drawing()], [prose()]])
    real = packed.doc >= 0
    expected = answer(tiny_fusion(*case, attention="eager"), packed)
    for kind in kinds:
        model = tiny_fusion(family, *mode, attention=kind)
        assert model.llm.config._attn_implementation == kind
        with torch.compiler.set_stance("force_eager"):
            found = answer(model, packed)
        assert_close(found.hidden[real], expected.hidden[real])
        assert_close(found.prediction, expected.prediction)
