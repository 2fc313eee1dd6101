"""One training step: noise of its own, clipped gradients, and the learning rate and EMA of that very step."""

import math
from pathlib import Path

import pytest
import torch

import fusion
from fusion.testing import tiny_runs as training
from fusion.training.metrics import read
from fusion.training.optim import Optim
from fusion.unified.objective import Objective


@pytest.fixture(scope="module")
def llm(tmp_path_factory) -> Path:
    return training.save_llm(tmp_path_factory.mktemp("llm"))


@pytest.fixture(scope="module")
def batch(llm):
    """One row of documents that draw."""
    batches = training.held_out(fusion.from_llm(llm, dtype=torch.float32).processor, count=14)
    return next(one for one in batches if one.packed.noised.any())


def make(llm, run: Path, batch, steps: int, **settings):
    """A trainer of so many steps on one batch, with neither validation nor checkpoints on the way."""
    documents = steps * settings.get("accumulate", 1) * len(batch.keys)
    return training.make(
        llm, run, training.Given([batch]), documents=documents, validate=False, save_every=0, **settings
    )


def watch_updates(trainer, look) -> list:
    """What `look` finds right before each update of the weights, in a list that grows while the trainer runs."""
    found, update = [], trainer.optimizers.step

    def watched() -> None:
        found.append(look())
        update()

    trainer.optimizers.step = watched
    return found


def losses_of(run: Path) -> list[tuple[float, float]]:
    """Loss of text and of the flow, step by step."""
    return [(row["loss/text"], row["loss/flow"]) for row in read(run / "metrics.jsonl")]


def gradient_norm(trainer) -> float:
    return math.sqrt(sum(p.grad.square().sum().item() for p in trainer.parameters if p.grad is not None))


def test_every_step_has_noise_of_its_own_which_the_seed_repeats(llm, batch, tmp_path):
    """With a learning rate of 0 the same batch differs from step to step by its noise alone."""
    still = Optim(lr=0.0)
    for run, seed in (("first", 1), ("again", 1), ("other", 2)):
        make(llm, tmp_path / run, batch, 4, optim=still, seed=seed).fit()
    first, again, other = (losses_of(tmp_path / run) for run in ("first", "again", "other"))
    assert len({text for text, _ in first}) == 1 and len({flow for _, flow in first}) == 4
    assert again == first and not {flow for _, flow in first} & {flow for _, flow in other}


def test_batches_of_one_step_have_noise_of_their_own(llm, batch, tmp_path):
    """The loss of a step that sees a batch twice is not that of seeing it once, as it would be with the same noise."""
    still = Optim(lr=0.0)
    for accumulate in (1, 2):
        make(llm, tmp_path / str(accumulate), batch, 1, optim=still, accumulate=accumulate).fit()
    (once,), (twice,) = (losses_of(tmp_path / run) for run in ("1", "2"))
    assert twice[0] == pytest.approx(once[0], rel=1e-6) and abs(twice[1] / once[1] - 1) > 1e-4


def test_the_loss_that_is_minimised_is_that_of_both_means(llm, batch, tmp_path):
    """Each loss over its own count of the whole window."""
    objective = Objective(w_text=0.5, w_flow=2.0)
    make(llm, tmp_path, batch, 1, accumulate=2, objective=objective).fit()
    row = read(tmp_path / "metrics.jsonl")[0]
    assert row["loss/total"] == pytest.approx(0.5 * row["loss/text"] + 2.0 * row["loss/flow"], rel=1e-5)


@pytest.mark.parametrize(("clip", "clipped"), [(0.01, True), (1e9, False)])
def test_gradients_are_clipped_to_the_norm_that_is_set(llm, batch, tmp_path, clip, clipped):
    """The log tells the norm before."""
    trainer = make(llm, tmp_path, batch, 3, optim=Optim(clip=clip))
    norms = watch_updates(trainer, lambda: gradient_norm(trainer))
    trainer.fit()
    before = [row["grad_norm"] for row in read(tmp_path / "metrics.jsonl")]
    assert len(norms) == 3 and min(before) > 0.02
    assert norms == pytest.approx([clip] * 3 if clipped else before, rel=1e-3)


def test_the_learning_rate_of_a_step_is_that_of_its_number(llm, batch, tmp_path):
    """Warm-up rises by a third of the peak with each step and reaches it with the third; what is logged is what was
    used."""
    optim = Optim(lr=0.003, warmup=3, schedule="wsd", decay=1e-9)
    trainer = make(llm, tmp_path, batch, 5, optim=optim)
    used = watch_updates(trainer, lambda: [group["lr"] for group in trainer.optimizers.groups])
    trainer.fit()
    expected = [0.001, 0.002, 0.003, 0.003, 0.003]
    assert [row["lr"] for row in read(tmp_path / "metrics.jsonl")] == pytest.approx(expected)
    assert used == [pytest.approx([rate] * len(trainer.optimizers.groups)) for rate in expected]


def test_the_average_takes_in_each_step_by_its_number(llm, batch, tmp_path):
    """Of the weights after step s, counted from 1, by min(decay, (1 + s) / (10 + s))."""
    trainer = make(llm, tmp_path, batch, 3, ema=0.999)
    weights = [p.detach().clone() for p in trainer.parameters]
    averages = []

    def follow() -> None:
        nonlocal weights
        decay = (1 + trainer.step) / (10 + trainer.step)
        weights = [decay * old + (1 - decay) * p.detach() for old, p in zip(weights, trainer.parameters, strict=True)]
        averages.append([average.clone() for average in trainer.ema.average])
        for found, expected in zip(averages[-1], weights, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)

    trainer._at_intervals = follow
    start = [p.clone() for p in weights]
    trainer.fit()
    assert len(averages) == 3 and any(
        (new - old).abs().max() > 1e-4 for new, old in zip(averages[-1], start, strict=True)
    )
