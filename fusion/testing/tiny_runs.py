"""Tiny training runs on the built-in world, for tests and benchmarks of training."""

from pathlib import Path

import torch

from fusion.data.formats import Mixture, WorldSource
from fusion.data.loader import Loader
from fusion.data.packing import PackedBatches, Packing, fixed_batches
from fusion.generation import api
from fusion.testing import mixed_documents as mixed
from fusion.testing import tiny_llms as families
from fusion.training.learner import UnifiedLearner
from fusion.training.optim import Optim, Optimizers
from fusion.training.trainer import Trainer, Training
from fusion.unified.objective import Objective, losses
from fusion.worlds.shapes import World

PACKING = Packing(length=512, rows=1, lookahead=8)
SOURCE = WorldSource(World())


def save_llm(folder: Path) -> Path:
    """A tiny Llama with its tokenizer as a Hugging Face folder."""
    families.tiny_llm("llama").save_pretrained(folder)
    families.tiny_tokenizer().save_pretrained(folder)
    return folder


def open_samples(shard: int, shards: int) -> Mixture:
    """The world's documents of one shard."""
    return Mixture([SOURCE], seed=1, shard=shard, shards=shards)


def held_out(processor, count: int = 4, packing: Packing = PACKING) -> list:
    """Batches of the same few documents of the world."""
    mixture = Mixture([SOURCE], seed="held out")
    return fixed_batches([next(mixture) for _ in range(count)], processor, packing)


class Given:
    """A loader that yields given batches, again and again."""

    class batches:
        world = 1

    def __init__(self, given: list):
        self.given, self.taken = given, 0

    def __next__(self):
        self.taken += 1
        return self.given[(self.taken - 1) % len(self.given)]

    def state_dict(self) -> dict:
        return {"taken": self.taken}

    def close(self) -> None:
        """There is nothing to close."""


def make(
    llm,
    run,
    loader=None,
    sample=None,
    resume=False,
    objective=None,
    rank=0,
    world=1,
    validate=True,
    follow=None,
    **settings,
) -> Trainer:
    """A Trainer with settings that suit a test; `settings` are those of Training, `optimizer`, `mode` and `deep`."""
    model = api.from_llm(llm, dtype=torch.float32, mode=settings.pop("mode", "shared"), deep=settings.pop("deep", "kv"))
    defaults = {
        "documents": 40,
        "workers": 0,
        "precision": "fp32",
        "ema": 0.9,
        "seed": 3,
        "log_every": 1,
        "save_every": 2,
        "keep": 3,
        "validate_every": 2,
        "sample_every": 2,
        "trackers": [],
        "optim": Optim(optimizer=settings.pop("optimizer", "adamw"), warmup=3, lr=1e-3),
    }
    training = Training(**defaults | settings)
    loader = loader or Loader(PackedBatches(open_samples, model.processor, PACKING, 2, rank, world), training.workers)
    watched = {"world": held_out(model.processor)} if validate else None
    return Trainer(
        UnifiedLearner(model), loader, objective or Objective(), training, run, watched, sample, resume, follow
    )


def learn(model, steps: int, **optim) -> None:
    """Some steps on the same documents with ever other noise."""
    optimizers = Optimizers(model.train(), Optim(lr=1e-2, **optim))
    for step in range(steps):
        packed, generator = mixed.everything(), torch.Generator().manual_seed(step)
        losses(model, packed, Objective(), generator).total(1, 1).backward()
        optimizers.step()
        optimizers.zero_grad()
    model.eval()
