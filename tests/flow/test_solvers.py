"""solvers.py: law 7 (closed-form flows are hit at the solver's order), the steps, and guidance as algebra."""

import math

import numpy as np
import pytest
import torch

from fusion.flow.matching import LINEAR, PATHS, estimate
from fusion.flow.solvers import SOLVERS, Guidance, euler, heun, image_guidance, schedule, steps, text_guidance

EVERY_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
EVERY_SOLVER = pytest.mark.parametrize("name", SOLVERS)
ORDER = {"euler": 1, "heun": 2, "dpmpp_2m": 2}
Z = torch.tensor([-1.5, -0.7, 0.3, 1.1, 2.0])


class Gaussian:
    """Data N(mean, std^2): the path's marginal is N(alpha mean, alpha^2 std^2 + sigma^2), and the flow keeps each x's
    quantile."""

    def __init__(self, path, mean=1.0, std=0.5):
        self.path, self.mean, self.std = path, mean, std

    def state(self, t):
        alpha, sigma = self.path.alpha(torch.tensor(t)), self.path.sigma(torch.tensor(t))
        return alpha * self.mean + (alpha**2 * self.std**2 + sigma**2).sqrt() * Z

    def x_hat(self, x, t):
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        return self.mean + alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * (x - alpha * self.mean)

    def velocity(self, x, t):
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        alpha_dot, sigma_dot = self.path.alpha_dot(t), self.path.sigma_dot(t)
        growth = (alpha * alpha_dot * self.std**2 + sigma * sigma_dot) / (alpha**2 * self.std**2 + sigma**2)
        return alpha_dot * self.mean + growth * (x - alpha * self.mean)


def order_of(error, counts=(32, 64, 128)):
    """Slope of log error against log steps."""
    return -np.polyfit(np.log(counts), np.log([error(n) for n in counts]), 1)[0]


# ---- law 7 ----


def gaussian_error(name, path, std, start, end):
    """steps -> mean error of the solver between two times."""
    data = Gaussian(path, std=std)

    def error(n):
        x = SOLVERS[name](data.velocity, data.state(start), torch.linspace(start, end, n + 1), path)
        return (x - data.state(end)).abs().mean().item()

    return error


@EVERY_PATH
@EVERY_SOLVER
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_a_gaussian_is_hit_at_the_solvers_order(name, path, std):
    error = gaussian_error(name, path, std, 0.95, 0.05)
    assert order_of(error, (64, 128, 256)) == pytest.approx(ORDER[name], abs=0.15)


@EVERY_PATH
@pytest.mark.parametrize("std", [0.5, 2.0])
@pytest.mark.parametrize("name", ["euler", "heun"])
def test_the_order_holds_from_pure_noise_to_data(name, path, std):
    error = gaussian_error(name, path, std, 1.0, 0.0)
    assert order_of(error) == pytest.approx(ORDER[name], abs=0.12)
    assert error(128) < {"euler": 4e-2, "heun": 1e-3}[name]


@EVERY_PATH
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_from_pure_noise_to_data_the_multistep_solver_loses_a_logarithm(path, std):
    error = gaussian_error("dpmpp_2m", path, std, 1.0, 0.0)
    assert 1.45 < order_of(error, (64, 128, 256)) < 2.1  # n^2 / log n; first order would be 1
    assert error(256) < 1e-3


@EVERY_PATH
@EVERY_SOLVER
def test_a_linear_ode_that_is_no_flow_at_all(name, path):
    turn = torch.tensor([[-0.5, -3.0], [3.0, -0.5]])
    start = torch.tensor([1.0, 0.5])
    end = start @ torch.matrix_exp(-0.8 * turn).T

    def error(n):
        return (
            (SOLVERS[name](lambda x, t: x @ turn.T, start, torch.linspace(0.9, 0.1, n + 1), path) - end).norm().item()
        )

    assert order_of(error) == pytest.approx(ORDER[name], abs=0.1)


@EVERY_PATH
@EVERY_SOLVER
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_point_mass_is_hit_whatever_the_steps(name, path, count):
    point = torch.tensor([0.3, -2.0, 5.0])
    x = torch.randn(4, 3)
    ended = SOLVERS[name](lambda x, t: estimate(point.expand_as(x), x, t, "x", path).velocity, x, schedule(count), path)
    torch.testing.assert_close(ended, point.expand(4, 3), atol=1e-5, rtol=0)


@EVERY_SOLVER
def test_the_multistep_solver_beats_euler_at_its_own_price(name):
    data = Gaussian(LINEAR)

    def error(solver, n):
        return (solver(data.velocity, data.state(1.0), schedule(n)) - data.state(0.0)).abs().mean().item()

    assert error(SOLVERS[name], 16) <= error(euler, SOLVERS[name].evaluations(16))


@EVERY_PATH
@EVERY_SOLVER
def test_an_x_prediction_converges_as_its_velocity_does(name, path):
    """Small data close to the end: a sampler that kept the loss's clamp of 0.05 would stay 0.012 away."""
    data = Gaussian(path, mean=0.5, std=0.03)
    ended = SOLVERS[name](
        lambda x, t: estimate(data.x_hat(x, t), x, t, "x", path).velocity, data.state(1.0), schedule(200), path
    )
    assert (ended - data.state(0.0)).abs().mean() < 5e-3


@EVERY_PATH
@EVERY_SOLVER
@pytest.mark.parametrize("count", [1, 5, 100])
def test_the_last_step_returns_what_the_network_took_for_the_data(name, path, count):
    predictions = []

    def velocity(x, t):
        predictions.append(torch.tanh(x) + t)
        return estimate(predictions[-1], x, t, "x", path).velocity

    ended = SOLVERS[name](velocity, torch.randn(6), schedule(count), path)
    torch.testing.assert_close(ended, predictions[-1], atol=1e-5, rtol=0)


# ---- the walk ----


@EVERY_SOLVER
def test_steps_and_function_are_the_same_walk(name):
    data = Gaussian(LINEAR)
    times = schedule(6, shift=2.0)
    states = list(steps(SOLVERS[name], data.velocity, data.state(1.0), times))
    assert [state.index for state in states] == list(range(6))
    assert [state.t for state in states] == times[1:].tolist()
    assert torch.equal(states[-1].x, SOLVERS[name](data.velocity, data.state(1.0), times))
    assert torch.equal(states[-1].x, states[-1].x_hat)
    # Previews sharpen: the data as each step saw it comes closer to where the walk ends.
    distance = [(state.x_hat - states[-1].x).norm().item() for state in states]
    assert distance == sorted(distance, reverse=True)


@EVERY_SOLVER
def test_steps_are_taken_one_at_a_time(name):
    calls = []
    walk = steps(SOLVERS[name], lambda x, t: calls.append(t) or x, torch.ones(2), schedule(10))
    assert calls == []
    next(walk)
    assert len(calls) <= 2


@EVERY_SOLVER
@pytest.mark.parametrize("count", [1, 2, 9])
def test_evaluations_are_as_many_as_promised_and_never_at_zero(name, count):
    calls = []
    times = schedule(count)
    SOLVERS[name](lambda x, t: calls.append(t) or x, torch.ones(2), times)
    assert len(calls) == SOLVERS[name].evaluations(count)
    assert all(t.ndim == 0 and t.dtype == torch.float32 and t > 0 for t in calls)
    assert {t.item() for t in calls} == set(times[:-1].tolist())


@EVERY_PATH
@EVERY_SOLVER
def test_the_state_is_fp32_for_a_bf16_network(name, path):
    seen = []

    def velocity(x, t):
        seen.append(x.dtype)
        return -x.bfloat16()

    ended = SOLVERS[name](velocity, torch.randn(4).bfloat16(), schedule(4), path)
    assert ended.dtype == torch.float32 and set(seen) == {torch.float32}


@EVERY_PATH
@EVERY_SOLVER
def test_a_batch_equals_its_rows(name, path):
    data = Gaussian(path)
    rows = torch.randn(3, 5)
    together = SOLVERS[name](data.velocity, rows, schedule(8), path)
    alone = torch.stack([SOLVERS[name](data.velocity, row, schedule(8), path) for row in rows])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


@EVERY_SOLVER
def test_the_state_may_live_where_the_times_do_not(name):
    ended = SOLVERS[name](lambda x, t: -x * t, torch.zeros(2, 3, device="meta"), schedule(4), PATHS["vp"])
    assert ended.device.type == "meta" and ended.shape == (2, 3)


@EVERY_PATH
@EVERY_SOLVER
def test_gradients_flow_through_the_solver(name, path):
    data = Gaussian(path)
    x = data.state(1.0).requires_grad_()
    (slope,) = torch.autograd.grad(SOLVERS[name](data.velocity, x, schedule(100), path).sum(), x)
    # The flow maps mean + std z to the noise z, whose slope is std.
    torch.testing.assert_close(slope, torch.full_like(x, data.std), atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    "times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.2, 0.0], [1.0, -0.1], [1.0, math.nan, 0.0]]
)
def test_times_that_do_not_fall_within_the_path_are_refused(times):
    with pytest.raises(ValueError, match="must fall from at most 1 to at least 0") as error:
        euler(lambda x, t: x, torch.ones(2), torch.tensor(times))
    assert "\n" not in str(error.value)


def test_a_schedule_falls_from_one_to_zero_and_shift_keeps_it_in_the_noise():
    assert torch.equal(schedule(4), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]))
    shifted = schedule(4, shift=3.0)
    assert shifted[0] == 1 and shifted[-1] == 0
    torch.testing.assert_close(shifted[1:-1], torch.tensor([0.9, 0.75, 0.5]))
    with pytest.raises(ValueError, match="use at least 1"):
        schedule(0)


# ---- guidance ----

FULL, IMAGE, NONE = torch.tensor([1.0, 2.0]), torch.tensor([-1.0, 0.5]), torch.tensor([0.25, -4.0])


def constants(calls=None):
    """Velocities that do not depend on where or when, and count how often they are asked."""

    def constant(name, value):
        def velocity(x, t):
            if calls is not None:
                calls.append(name)
            return value.expand_as(x)

        return velocity

    return constant("full", FULL), constant("image", IMAGE), constant("none", NONE)


X, T = torch.zeros(3, 2), torch.tensor(0.5)


@pytest.mark.parametrize("scale", [0.0, 1.5, 3.0, 7.0])
def test_text_guidance_goes_beyond_what_text_adds(scale):
    full, drop, _ = constants()
    expected = (IMAGE + scale * (FULL - IMAGE)).expand(3, 2)
    torch.testing.assert_close(text_guidance(full, drop, scale)(X, T), expected)


@pytest.mark.parametrize("text, image", [(3.0, 1.5), (1.0, 2.0), (4.0, 4.0), (2.0, 1.0), (0.5, 3.0)])
def test_image_guidance_is_the_published_sum(text, image):
    expected = (NONE + image * (IMAGE - NONE) + text * (FULL - IMAGE)).expand(3, 2)
    torch.testing.assert_close(image_guidance(*constants(), text, image)(X, T), expected)


@pytest.mark.parametrize(
    "text, image, branches",
    [
        (1.0, 1.0, ("full",)),
        (3.0, 1.0, ("full", "image")),
        (3.0, 3.0, ("full", "none")),
        (1.0, 2.0, ("full", "image", "none")),
        (3.0, 1.5, ("full", "image", "none")),
    ],
)
def test_only_branches_that_count_are_evaluated(text, image, branches):
    guidance = Guidance(text, image)
    assert guidance.branches(0.5) == branches == tuple(guidance.weights)
    assert sum(guidance.weights.values()) == pytest.approx(1.0)
    calls = []
    image_guidance(*constants(calls), text, image)(X, T)
    assert calls == list(branches)


def test_scale_one_is_off_to_the_bit():
    value = torch.randn(3, 2)
    assert torch.equal(Guidance().combine([value]), value)
    assert torch.equal(image_guidance(*constants(), 1.0, 1.0)(X, T), FULL.expand(3, 2))


def test_guidance_acts_inside_its_interval_only():
    guidance = Guidance(3.0, 1.5, interval=(0.25, 0.75))
    assert [len(guidance.branches(t)) for t in (1.0, 0.76, 0.75, 0.5, 0.26, 0.25, 0.0)] == [1, 1, 3, 3, 3, 1, 1]
    assert guidance.branches(torch.tensor(0.5)) == ("full", "image", "none")
    calls = []
    full, drop, _ = constants(calls)
    euler(text_guidance(full, drop, 2.0, interval=(0.25, 0.75)), X, schedule(8))
    assert calls.count("full") == 8 and calls.count("image") == 4  # at 0.75, 0.625, 0.5 and 0.375


@pytest.mark.parametrize("interval", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1), (math.nan, 1.0)])
def test_an_interval_outside_the_path_is_refused(interval):
    with pytest.raises(ValueError, match="0 <= lo <= hi <= 1"):
        Guidance(interval=interval)


def test_a_missing_branch_is_noticed():
    with pytest.raises(ValueError):
        Guidance(3.0, 1.5).combine([FULL, NONE])


@EVERY_PATH
@pytest.mark.parametrize("target", ["x", "v", "eps"])
def test_predictions_combine_as_velocities_do(path, target):
    guidance = Guidance(text=4.0, image=1.5)
    x_t, *predictions = torch.randn(4, 5, 6)
    t = torch.tensor(0.6)
    velocities = [estimate(prediction, x_t, t, target, path).velocity for prediction in predictions]
    combined = estimate(guidance.combine(predictions), x_t, t, target, path).velocity
    torch.testing.assert_close(combined, guidance.combine(velocities), atol=1e-4, rtol=1e-4)


@EVERY_PATH
@EVERY_SOLVER
def test_guided_points_land_where_the_algebra_says(name, path):
    def towards(point):
        return lambda x, t: estimate(point.expand_as(x), x, t, "x", path).velocity

    guided = image_guidance(towards(FULL), towards(IMAGE), towards(NONE), text_scale=3.0, image_scale=1.5)
    ended = SOLVERS[name](guided, torch.randn(3, 2), schedule(5), path)
    expected = NONE + 1.5 * (IMAGE - NONE) + 3.0 * (FULL - IMAGE)
    torch.testing.assert_close(ended, expected.expand(3, 2), atol=1e-4, rtol=0)


def test_low_precision_predictions_are_combined_in_fp32():
    predictions = [value.bfloat16() for value in (FULL, IMAGE, NONE)]
    combined = Guidance(3.0, 1.5).combine(predictions)
    assert combined.dtype == torch.float32
    torch.testing.assert_close(combined, 3 * FULL - 1.5 * IMAGE - 0.5 * NONE)


def test_heun_asks_twice_but_once_in_the_end():
    calls = []
    heun(lambda x, t: calls.append(t.item()) or x, X, schedule(4))
    assert calls == [1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25]
