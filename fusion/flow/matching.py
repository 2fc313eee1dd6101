"""Flow matching: paths from data to noise, what a network predicts, which times it sees, and the losses.

The convention, stated here and nowhere else: `x_t = (1 - t) x + t noise`, t = 0 is data, t = 1 is noise, and the
velocity is `v = dx_t/dt = noise - x`, so that sampling integrates v from t = 1 down to 0 (SD3, Flux, BAGEL, diffusers).
A general path is `x_t = alpha(t) x + sigma(t) noise` with `v = alpha'(t) x + sigma'(t) noise`. All of it is fp32.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

CLAMP = 0.05
"""Least t by which the loss of an x-prediction is divided (JiT, arXiv 2511.13720), and least 1 - t of an
eps-prediction's x."""
FLOOR = 1e-3
"""Least sigma by which an x-prediction is divided on its way to a velocity."""


class Path(ABC):
    """Schedule of signal and noise. Times are tensors; the methods below broadcast t over the trailing axes of x."""

    @abstractmethod
    def alpha(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Weight of the data: 1 at t = 0, exactly 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Weight of the noise: exactly 0 at t = 0, 1 at t = 1."""

    @abstractmethod
    def alpha_dot(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """d alpha / dt."""

    @abstractmethod
    def sigma_dot(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """d sigma / dt."""

    def determinant(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """alpha sigma' - alpha' sigma: of the map (x, noise) -> (x_t, v). It never vanishes, so that map inverts
        everywhere."""
        return self.alpha(t) * self.sigma_dot(t) - self.alpha_dot(t) * self.sigma(t)

    def log_snr(self, t: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """log(alpha / sigma), half the log of the signal-to-noise ratio: +inf at t = 0, -inf at t = 1."""
        return self.alpha(t).log() - self.sigma(t).log()

    def mix(self, x: Float[Tensor, "*s"], noise: Float[Tensor, "*s"], t: Float[Tensor, "..."]) -> Float[Tensor, "*s"]:
        """x_t, in fp32."""
        t = _over(t, x)
        return self.alpha(t) * x.float() + self.sigma(t) * noise.float()

    def velocity(
        self, x: Float[Tensor, "*s"], noise: Float[Tensor, "*s"], t: Float[Tensor, "..."]
    ) -> Float[Tensor, "*s"]:
        """dx_t/dt, in fp32."""
        t = _over(t, x)
        return self.alpha_dot(t) * x.float() + self.sigma_dot(t) * noise.float()

    def data(self, x_t: Float[Tensor, "*s"], v: Float[Tensor, "*s"], t: Float[Tensor, "..."]) -> Float[Tensor, "*s"]:
        """The x that x_t and its velocity speak of, in fp32; defined at every t."""
        t = _over(t, x_t)
        return (self.sigma_dot(t) * x_t.float() - self.sigma(t) * v.float()) / self.determinant(t)

    def noise(self, x_t: Float[Tensor, "*s"], v: Float[Tensor, "*s"], t: Float[Tensor, "..."]) -> Float[Tensor, "*s"]:
        """The noise that x_t and its velocity speak of, in fp32; defined at every t."""
        t = _over(t, x_t)
        return (self.alpha(t) * v.float() - self.alpha_dot(t) * x_t.float()) / self.determinant(t)


@dataclass(frozen=True)
class Linear(Path):
    """Straight lines, alpha = 1 - t and sigma = t (rectified flow, arXiv 2209.03003)."""

    def alpha(self, t):
        return 1 - t

    def sigma(self, t):
        return t

    def alpha_dot(self, t):
        return -torch.ones_like(t)

    def sigma_dot(self, t):
        return torch.ones_like(t)


@dataclass(frozen=True)
class VP(Path):
    """Variance preserving, alpha = cos(pi t / 2) and sigma = sin(pi t / 2) (the trigonometric path of arXiv
    2303.08797).

    The cosine is written as a sine of 1 - t, which is exactly 0 at t = 1 in floating point.
    """

    def alpha(self, t):
        return torch.sin(math.pi / 2 * (1 - t))

    def sigma(self, t):
        return torch.sin(math.pi / 2 * t)

    def alpha_dot(self, t):
        return -math.pi / 2 * self.sigma(t)

    def sigma_dot(self, t):
        return math.pi / 2 * self.alpha(t)


LINEAR = Linear()
PATHS: dict[str, Path] = {"linear": LINEAR, "vp": VP()}


@dataclass(frozen=True)
class Estimate:
    """One prediction seen three ways, each of the shape of x_t and in fp32."""

    x: Float[Tensor, "..."]
    noise: Float[Tensor, "..."]
    velocity: Float[Tensor, "..."]


def estimate(
    prediction: Float[Tensor, "*s"], x_t: Float[Tensor, "*s"], t: Float[Tensor, "..."], target: str, path: Path = LINEAR
) -> Estimate:
    """What a network's prediction of `target` at (x_t, t) says about data, noise and velocity.

    Affine in the prediction, so guidance may combine predictions or velocities alike. The clamp of the x-loss is not
    repeated here: a sampler that divides by 0.05 below t = 0.05 leaves noise of std 0.015 in the image however many
    steps it takes, while dividing by t, a step moves x_t part of the way to x_hat and never beyond. Only at t = 0,
    where x says nothing about the noise, FLOOR keeps v finite. An eps-prediction is of no use at the other end, as
    errors grow by 1 / alpha: there alpha stays at alpha(1 - CLAMP) and x shrinks to zero. Raises ValueError for an
    unknown target.
    """
    prediction, x_t, t = prediction.float(), x_t.float(), _over(t, x_t)
    if target == "x":
        direction = path.sigma_dot(t) * x_t - path.determinant(t) * prediction
        v = direction / path.sigma(t).clamp(min=FLOOR)
        return Estimate(prediction, path.noise(x_t, v, t), v)
    if target == "v":
        return Estimate(path.data(x_t, prediction, t), path.noise(x_t, prediction, t), prediction)
    if target == "eps":
        x = (x_t - path.sigma(t) * prediction) / path.alpha(t.clamp(max=1 - CLAMP))
        return Estimate(x, prediction, path.velocity(x, prediction, t))
    raise ValueError(f"unknown target {target!r}: use 'x', 'v' or 'eps'")


def truth(
    clean: Float[Tensor, "*s"], noise: Float[Tensor, "*s"], t: Float[Tensor, "..."], target: str, path: Path = LINEAR
) -> Float[Tensor, "*s"]:
    """What a perfect network of this `target` would have to predict for one pair of data and noise, in fp32."""
    if target == "x":
        return clean.float()
    if target == "v":
        return path.velocity(clean, noise, t)
    if target == "eps":
        return noise.float()
    raise ValueError(f"unknown target {target!r}: use 'x', 'v' or 'eps'")


def uniform(n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
    """n times in [0, 1), on the generator's device: each is uniform, and together they are spread evenly.

    One falls into each n-th of the interval, in random order, which takes the luck of the draw out of a batch's loss
    (the low-discrepancy times of VDM, arXiv 2107.00630).
    """
    device = generator.device
    which = torch.randperm(n, generator=generator, device=device)
    return (which + torch.rand(n, generator=generator, device=device)) / n


def logit_normal(n: int, generator: torch.Generator, mean: float = 0.8, std: float = 0.8) -> Float[Tensor, " n"]:
    """n times whose logit is normal (SD3, arXiv 2403.03206); the default is JiT's -0.8, 0.8 in a convention where t = 1
    is noise."""
    normal = torch.special.ndtri(uniform(n, generator).clamp(1e-6, 1 - 1e-6))
    return torch.sigmoid(mean + std * normal)


def shift(t: Float[Tensor, "..."], s: float) -> Float[Tensor, "..."]:
    """Move times towards noise (s > 1) or data (s < 1), keeping 0 and 1: s t / (1 + (s - 1) t) (SD3, arXiv 2403.03206,
    eq. 23).

    On the linear path it divides the ratio of signal to noise by s. Raises ValueError unless s is positive.
    """
    if not s > 0:
        raise ValueError(f"shift {s} is not positive: use 1 for none, more than 1 for more noise")
    return s * t / (1 + (s - 1) * t)


def flow_loss(
    prediction: Float[Tensor, "n p"],
    clean: Float[Tensor, "n p"],
    noise: Float[Tensor, "n p"],
    t: Float[Tensor, " n"],
    image: Int[Tensor, " n"],
    images: int,
    target: str,
    path: Path = LINEAR,
    clamp: float = CLAMP,
) -> Float[Tensor, " images"]:
    """Loss of each image in fp32: the mean over its patches, whose rows `image` (0 .. images - 1) points out.

    'v' and 'eps' are plain squared errors. 'x' is the squared error of the velocity that the x-prediction implies,
    divided by sigma(max(t, clamp)): on the linear path `|x_hat - x|^2 / max(t, 0.05)^2` (JiT, arXiv 2511.13720).
    An image without rows has loss 0; with no rows at all the result still carries a graph to the prediction.
    """
    error = (prediction.float() - truth(clean, noise, t, target, path)).square().mean(-1)
    if target == "x":
        t = t.float()
        error = error * (path.determinant(t) / path.sigma(t.clamp(min=clamp))).square()
    return _mean_by_image(error, image, images)


def x_error(
    prediction: Float[Tensor, "n p"],
    clean: Float[Tensor, "n p"],
    noise: Float[Tensor, "n p"],
    t: Float[Tensor, " n"],
    image: Int[Tensor, " n"],
    images: int,
    target: str,
    path: Path = LINEAR,
) -> Float[Tensor, " images"]:
    """Unweighted mean squared error of x_hat for each image, in fp32: comparable between targets, for validation by
    time."""
    x_hat = estimate(prediction, path.mix(clean, noise, t), t, target, path).x
    return _mean_by_image((x_hat - clean.float()).square().mean(-1), image, images)


def _mean_by_image(error: Float[Tensor, " n"], image: Int[Tensor, " n"], images: int) -> Float[Tensor, " images"]:
    total = error.new_zeros(images).index_add(0, image, error)
    count = error.new_zeros(images).index_add(0, image, torch.ones_like(error))
    return total / count.clamp(min=1)


def _over(t: Float[Tensor, "..."], x: Tensor) -> Float[Tensor, "..."]:
    """t in fp32 with trailing axes of one, so that it broadcasts over the trailing axes of x. A scalar stays one: it
    may live on the CPU beside an x that does not."""
    return t.float() if t.ndim == 0 else t.float().reshape(t.shape + (1,) * (x.ndim - t.ndim))
