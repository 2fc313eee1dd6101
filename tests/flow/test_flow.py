"""flow.py: the path identities, every prediction seen every way, sampling of times, and the losses."""

import math

import pytest
import torch

from fusion.flow.matching import CLAMP, LINEAR, PATHS, estimate, flow_loss, logit_normal, shift, truth, uniform, x_error

TARGETS = ("x", "v", "eps")
EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)
TIMES = torch.linspace(0, 1, 21)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(n=64, p=12, seed=0):
    return torch.randn(2, n, p, generator=generator(seed)).unbind()


# ---- paths ----


def test_the_convention():
    x, noise = pair()
    t = torch.tensor(0.25)
    torch.testing.assert_close(LINEAR.mix(x, noise, t), 0.75 * x + 0.25 * noise)
    torch.testing.assert_close(LINEAR.velocity(x, noise, t), noise - x)


@EVERY_PATH
def test_a_path_runs_from_data_to_noise_exactly(path):
    x, noise = pair()
    assert torch.equal(path.mix(x, noise, torch.zeros(())), x)
    assert torch.equal(path.mix(x, noise, torch.ones(())), noise)


@EVERY_PATH
def test_signal_falls_as_noise_rises(path):
    assert (path.alpha(TIMES).diff() < 0).all() and (path.sigma(TIMES).diff() > 0).all()
    assert (path.log_snr(TIMES).diff() < 0).all()
    assert path.log_snr(TIMES)[0] == math.inf and path.log_snr(TIMES)[-1] == -math.inf
    assert (path.determinant(TIMES) > 0.5).all()


def test_vp_preserves_variance():
    path = PATHS["vp"]
    torch.testing.assert_close(path.alpha(TIMES) ** 2 + path.sigma(TIMES) ** 2, torch.ones(21))


@EVERY_PATH
def test_derivatives_are_those_of_autograd(path):
    for function, derivative in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        t = TIMES.double().requires_grad_()
        (slope,) = torch.autograd.grad(function(t).sum(), t)
        torch.testing.assert_close(derivative(t), slope)


@EVERY_PATH
def test_the_velocity_is_the_time_derivative_of_the_mixture(path):
    x, noise = pair(21)
    moved, velocity = torch.func.jvp(lambda t: path.mix(x, noise, t), (TIMES,), (torch.ones(21),))
    torch.testing.assert_close(velocity, path.velocity(x, noise, TIMES))
    torch.testing.assert_close(moved, path.mix(x, noise, TIMES))


@EVERY_PATH
def test_state_and_velocity_give_back_data_and_noise_at_every_time(path):
    x, noise = pair(21)
    x_t, v = path.mix(x, noise, TIMES), path.velocity(x, noise, TIMES)
    torch.testing.assert_close(path.data(x_t, v, TIMES), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(path.noise(x_t, v, TIMES), noise, atol=1e-5, rtol=0)


@EVERY_PATH
def test_one_time_per_row_equals_row_by_row(path):
    x, noise = (z.view(4, 3, 5, 2) for z in pair(12, 10))
    t = torch.tensor([0.0, 0.3, 0.7, 1.0])
    rows = torch.stack([path.mix(x[i], noise[i], t[i]) for i in range(4)])
    assert torch.equal(path.mix(x, noise, t), rows)


@EVERY_PATH
def test_bf16_data_is_mixed_in_fp32(path):
    x, noise = (z.bfloat16() for z in pair())
    t = torch.tensor(0.37)
    mixed = path.mix(x, noise, t)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, path.mix(x.float(), noise.float(), t))


# ---- predictions ----


@EVERY_PATH
@EVERY_TARGET
def test_a_perfect_prediction_is_data_noise_and_velocity_at_once(path, target):
    x, noise = pair(19)
    t = TIMES[1:-1]
    x_t = path.mix(x, noise, t)
    seen = estimate(truth(x, noise, t, target, path), x_t, t, target, path)
    torch.testing.assert_close(seen.x, x, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.noise, noise, atol=1e-4, rtol=0)
    torch.testing.assert_close(seen.velocity, path.velocity(x, noise, t), atol=1e-4, rtol=0)


@EVERY_PATH
@EVERY_TARGET
def test_the_three_views_agree_with_each_other_for_any_prediction(path, target):
    x_t, prediction = pair(19)
    t = TIMES[1:-1]
    seen = estimate(prediction, x_t, t, target, path)
    torch.testing.assert_close(path.mix(seen.x, seen.noise, t), x_t, atol=1e-4, rtol=0)
    torch.testing.assert_close(path.velocity(seen.x, seen.noise, t), seen.velocity, atol=1e-4, rtol=1e-5)


@EVERY_PATH
@EVERY_TARGET
def test_views_are_affine_in_the_prediction(path, target):
    x_t, a = pair(21)
    b = pair(21, seed=1)[0]
    views = [estimate(z, x_t, TIMES, target, path) for z in (a, b, 2.5 * a - 1.5 * b)]
    for name in ("x", "noise", "velocity"):
        first, second, mixed = (getattr(view, name) for view in views)
        torch.testing.assert_close(mixed, 2.5 * first - 1.5 * second, atol=1e-3, rtol=1e-4)


@EVERY_PATH
@EVERY_TARGET
def test_views_are_finite_at_both_ends(path, target):
    x_t, prediction = pair(2)
    seen = estimate(prediction, x_t, torch.tensor([0.0, 1.0]), target, path)
    assert all(view.isfinite().all() for view in (seen.x, seen.noise, seen.velocity))


@EVERY_PATH
def test_an_x_prediction_is_its_own_data_however_small_t(path):
    x_t, prediction = pair(4)
    t = torch.tensor([0.0, 1e-3, 0.01, 0.04])
    seen = estimate(prediction, x_t, t, "x", path)
    assert torch.equal(seen.x, prediction)
    torch.testing.assert_close(path.data(x_t, seen.velocity, t)[1:], prediction[1:], atol=2e-4, rtol=0)


def test_pure_noise_tells_an_eps_network_nothing_about_the_data():
    noise = pair()[0]
    assert estimate(noise, noise, torch.ones(()), "eps").x.abs().max() == 0


def test_an_unknown_target_is_refused():
    x, noise = pair()
    for call in (lambda: estimate(x, x, torch.ones(()), "score"), lambda: truth(x, noise, torch.ones(()), "score")):
        with pytest.raises(ValueError, match="unknown target 'score': use 'x', 'v' or 'eps'"):
            call()


# ---- times ----


def test_uniform_times_are_uniform():
    t = uniform(100_000, generator()).sort().values
    assert t.min() >= 0 and t.max() < 1
    assert (t - torch.arange(100_000) / 100_000).abs().max() < 0.008  # Kolmogorov-Smirnov, far beyond 0.1%


def test_the_times_of_a_batch_are_spread_evenly_and_in_no_order():
    t = uniform(1000, generator())
    assert (t.sort().values * 1000).floor().tolist() == list(range(1000))
    assert abs(torch.corrcoef(torch.stack([t, torch.arange(1000.0)]))[0, 1]) < 0.1
    assert len(uniform(0, generator())) == 0


@pytest.mark.parametrize("mean, std", [(0.8, 0.8), (0.0, 1.0), (-0.8, 0.5)])
def test_logits_of_logit_normal_times_are_normal(mean, std):
    logits = logit_normal(100_000, generator(), mean, std).double().logit()
    assert abs(logits.mean() - mean) < 0.02 and abs(logits.std() - std) < 0.02
    third = ((logits - mean) / std).pow(3).mean()
    assert abs(third) < 0.05


def test_the_default_is_jits_seen_from_the_other_end():
    # JiT: sigmoid(-0.8 + 0.8 z) is how much data there is, so that 1 minus it is our t.
    theirs = 1 - torch.sigmoid(-0.8 + 0.8 * torch.randn(200_000, generator=generator(1)))
    ours = logit_normal(200_000, generator(2))
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    torch.testing.assert_close(ours.quantile(levels), theirs.quantile(levels), atol=0.005, rtol=0)


@pytest.mark.parametrize("draw", [uniform, logit_normal])
def test_a_generator_fixes_the_times_and_nothing_else_moves_them(draw):
    first = draw(10, generator(3))
    torch.manual_seed(17)
    assert torch.equal(first, draw(10, generator(3)))
    assert not torch.equal(first, draw(10, generator(4)))
    assert first.dtype == torch.float32


def test_shift_divides_the_signal_to_noise_ratio():
    t = TIMES[1:-1]
    for s in (0.5, 1.0, 3.0):
        torch.testing.assert_close(LINEAR.log_snr(shift(t, s)), LINEAR.log_snr(t) - math.log(s), atol=1e-4, rtol=0)


def test_shift_moves_towards_noise_and_keeps_the_ends():
    assert (shift(TIMES, 3.0)[1:-1] > TIMES[1:-1]).all()
    assert (shift(TIMES, 0.5)[1:-1] < TIMES[1:-1]).all()
    assert torch.equal(shift(TIMES, 1.0), TIMES)
    assert shift(TIMES, 3.0)[0] == 0 and shift(TIMES, 3.0)[-1] == 1
    torch.testing.assert_close(shift(shift(TIMES, 3.0), 1 / 3), TIMES)


@pytest.mark.parametrize("s", [0.0, -1.0, math.nan])
def test_a_shift_that_is_not_positive_is_refused(s):
    with pytest.raises(ValueError, match="not positive"):
        shift(TIMES, s)


# ---- losses ----


def batch(seed=0):
    """11 rows of 3 images, of 2, 8 and 1 patches, out of order; images 0 and 3 of the 5 have no rows."""
    image = torch.tensor([2, 1, 2, 2, 4, 2, 1, 2, 2, 2, 2])
    times = torch.tensor([0.0, 0.5, 0.9, 0.0, 0.02])[image]
    return *torch.randn(3, 11, 6, generator=generator(seed)).unbind(), times, image, 5


def by_hand(error, image, images):
    return torch.stack([error[image == i].mean() if (image == i).any() else torch.zeros(()) for i in range(images)])


def test_the_x_loss_is_the_published_one():
    prediction, clean, _, t, image, images = batch()
    expected = by_hand((prediction - clean).square() / t.clamp(min=0.05)[:, None].square(), image, images)
    torch.testing.assert_close(flow_loss(*batch(), "x"), expected)


@EVERY_PATH
def test_the_x_loss_is_the_v_loss_of_the_same_prediction_beyond_the_clamp(path):
    prediction, clean, noise, _, image, images = batch()
    t = torch.linspace(CLAMP, 1, len(image))
    velocity = estimate(prediction, path.mix(clean, noise, t), t, "x", path).velocity
    ours = flow_loss(prediction, clean, noise, t, image, images, "x", path)
    torch.testing.assert_close(
        ours, flow_loss(velocity, clean, noise, t, image, images, "v", path), rtol=1e-4, atol=1e-4
    )


@EVERY_PATH
def test_below_the_clamp_the_x_loss_weighs_every_time_alike(path):
    prediction, clean, noise, t, image, images = batch()
    losses = [
        flow_loss(prediction, clean, noise, torch.full_like(t, at), image, images, "x", path) for at in (0, 0.02, CLAMP)
    ]
    torch.testing.assert_close(losses[0], losses[2], rtol=0.01, atol=0)
    torch.testing.assert_close(losses[1], losses[2], rtol=0.01, atol=0)


def test_v_and_eps_losses_are_plain():
    prediction, clean, noise, _, image, images = batch()
    torch.testing.assert_close(flow_loss(*batch(), "v"), by_hand((prediction - (noise - clean)) ** 2, image, images))
    torch.testing.assert_close(flow_loss(*batch(), "eps"), by_hand((prediction - noise) ** 2, image, images))


@EVERY_PATH
@EVERY_TARGET
def test_only_the_truth_has_no_loss(path, target):
    prediction, clean, noise, t, image, images = batch()
    perfect = flow_loss(truth(clean, noise, t, target, path), clean, noise, t, image, images, target, path)
    wrong = flow_loss(prediction, clean, noise, t, image, images, target, path)
    present = torch.tensor([1, 2, 4])
    assert perfect.abs().max() < 1e-10 and wrong[present].min() > 0.1


@EVERY_TARGET
def test_an_image_without_rows_has_loss_zero_and_row_order_does_not_matter(target):
    prediction, clean, noise, t, image, images = batch()
    loss = flow_loss(*batch(), target)
    assert loss.shape == (5,) and loss[0] == 0 and loss[3] == 0
    order = torch.randperm(len(image), generator=generator())
    shuffled = flow_loss(*(z[order] for z in (prediction, clean, noise, t, image)), images, target)
    torch.testing.assert_close(shuffled, loss)


@EVERY_TARGET
def test_no_rows_still_carry_a_graph(target):
    empty = torch.zeros(0, 6, requires_grad=True)
    nothing = torch.zeros(0, 6)
    for images in (0, 2):
        loss = flow_loss(empty, nothing, nothing, torch.zeros(0), torch.zeros(0, dtype=torch.long), images, target)
        assert loss.shape == (images,) and loss.requires_grad
        (grad,) = torch.autograd.grad(loss.sum(), empty)
        assert grad.shape == (0, 6)


@EVERY_PATH
@EVERY_TARGET
def test_gradients_are_those_of_finite_differences(path, target):
    prediction, clean, noise, t, image, images = batch()
    direction = torch.randn(prediction.shape, generator=generator(9))

    def loss(step):
        moved = prediction + step * direction
        return flow_loss(moved, clean, noise, t, image, images, target, path).sum()

    step = torch.zeros((), requires_grad=True)
    (slope,) = torch.autograd.grad(loss(step), step)
    torch.testing.assert_close(slope, (loss(0.5) - loss(-0.5)).detach(), rtol=1e-3, atol=1e-2)  # exact for a parabola


@EVERY_TARGET
def test_the_loss_of_bf16_predictions_is_fp32(target):
    prediction, *rest = batch()
    low = flow_loss(prediction.bfloat16(), *rest, target)
    assert low.dtype == torch.float32
    assert torch.equal(low, flow_loss(prediction.bfloat16().float(), *rest, target))


@EVERY_PATH
@EVERY_TARGET
def test_the_x_error_is_unweighted_and_comparable_between_targets(path, target):
    x_hat, clean, noise, _, image, images = batch()
    t = torch.linspace(0.05, 0.95, 5)[image]
    x_t = path.mix(clean, noise, t)
    implied = estimate(x_hat, x_t, t, "x", path)
    prediction = {"x": implied.x, "v": implied.velocity, "eps": implied.noise}[target]
    error = x_error(prediction, clean, noise, t, image, images, target, path)
    torch.testing.assert_close(error, by_hand((x_hat - clean) ** 2, image, images), rtol=1e-3, atol=1e-4)
