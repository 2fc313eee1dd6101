"""Every architecture learns from captions: error is lower than with wrong captions, and than the mean image's."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from fusion.data.formats import Mixture, WorldSource
from fusion.data.loader import Loader
from fusion.data.pairs import PairBatches, Pairing
from fusion.diffusion.registry import Sees
from fusion.diffusion.text_encoders import EncoderConfig, TextEncoders, load_encoder
from fusion.testing import tiny_runs as training
from fusion.testing.reference_networks import LEARNERS
from fusion.training.optim import Optim, Optimizers, rate
from fusion.worlds.shapes import Options, World

STEPS, LEAST = 300, 0.5  # of training, and the least time in it
FEWER = {"hidream": 220}  # where steps are dear
SMALLER = {"unet": 4}  # convolutions of every pixel are dear on a CPU: by so much its images are smaller
LATE = 0.95  # nearly nothing is left of the image: what is known of it, the text has told

OPTIONS = Options(
    tasks={"text_to_image": 1.0}, counts={1: 1.0}, sizes={"32x32": 1.0}, colours={"red": 1.0, "blue": 1.0}
)
WORLD = WorldSource(World(OPTIONS))


def open_samples(shard: int, shards: int) -> Mixture:
    return Mixture([WORLD], seed=0, shard=shard, shards=shards)


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> TextEncoders:
    return TextEncoders(
        [load_encoder(EncoderConfig(str(training.save_llm(tmp_path_factory.mktemp("llm"))), layer=1, layers=[0, 1, 2]))]
    )


@pytest.fixture(scope="module")
def batches(texts) -> list:
    """(images, their conditions), the last for trying what was learned."""
    loader = Loader(PairBatches(open_samples, 8, Pairing(rows=32, drop_text=0.0)))
    return [(batch.pixels, texts(batch.texts)) for batch in itertools.islice(loader, 72)]


def noised(pixels, t):
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * pixels + t * torch.randn_like(pixels)


@pytest.mark.parametrize("name", LEARNERS)
def test_it_learns_what_captions_say(name, texts, batches):
    torch.manual_seed(0)
    model = LEARNERS[name](Sees(3, **texts.sees))
    optim = Optim(optimizer="muon", lr=1e-2, matrix_lr=7e-3, warmup=20)
    optimizers = Optimizers(model, optim)
    batches = [(F.avg_pool2d(pixels, SMALLER.get(name, 1)), cond) for pixels, cond in batches]
    steps = FEWER.get(name, STEPS)
    for step in range(steps):
        pixels, cond = batches[step % (len(batches) - 8)]
        t = LEAST + (1 - LEAST) * torch.rand(len(pixels))
        (model(noised(pixels, t), t, cond) - pixels).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.set_rate(rate(optim, step, step / steps))
        optimizers.step()
        optimizers.zero_grad()
    late, others, usual, mean = errors(model.eval(), batches)
    gain = others - late
    z = gain.mean() / (gain.std() / len(gain) ** 0.5)
    print(
        f"{name}: own {late.mean():.3f}, others' {others.mean():.3f} (z {z:.1f}); usual times {usual.mean():.3f}, mean "
        f"image {mean.mean():.3f}"
    )
    assert z > 4 and usual.mean() < 0.8 * mean.mean()


@torch.no_grad()
def errors(model, batches) -> list[torch.Tensor]:
    """Of held-out images: late, with their own captions and with those of the next image; at usual times; and that
    of the mean image."""
    average = torch.cat([pixels for pixels, _ in batches[:-8]]).mean(0)
    found = []
    for pixels, cond in batches[-8:]:
        t = torch.full((len(pixels),), LATE)
        x_t, usual = noised(pixels, t), torch.linspace(LEAST, 1, len(pixels))
        turned = type(cond)(
            **{
                name: value.roll(1, dims=int(name == "layers"))
                for name, value in vars(cond).items()
                if value is not None
            }
        )
        answers = (
            model(x_t, t, cond),
            model(x_t, t, turned),
            model(noised(pixels, usual), usual, cond),
            average.expand_as(pixels),
        )
        found.append([(x_hat - pixels).square().mean((1, 2, 3)) for x_hat in answers])
    return [torch.cat(kind) for kind in zip(*found, strict=True)]
