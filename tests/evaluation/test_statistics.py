"""Intervals against published values, closed forms and how often they hold the truth."""

import math

import numpy as np
import pytest

from fusion.common import statistics
from fusion.common.statistics import averaged, clustered_share, mean_of, mean_score, over, paired, student, wilson


def test_wilson_against_the_published_formula_and_at_the_ends():
    assert wilson(0.5, 100) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0, 0.27753), abs=1e-5)
    assert wilson(1, 10) == pytest.approx((0.72247, 1), abs=1e-5)
    with pytest.raises(ValueError, match="nothing to score"):
        mean_score("empty", [])


def test_the_mean_over_categories_counts_each_the_same():
    few, many = mean_score("few", [True]), mean_score("many", [False] * 9)
    both = mean_of("both", [few, many])
    assert both.value == 0.5 and both.count == 10


def test_shares_count_items_and_their_intervals_clusters():
    hits, totals = [4, 0, 4, 0, 2, 4], [4, 4, 4, 4, 2, 4]
    score = clustered_share("recall", hits, totals)
    assert score.value == 14 / 22 and score.count == 22
    low, high = wilson(14 / 22, 22)
    assert score.low < low and score.high > high, "items of one cluster are no independent trials"
    assert clustered_share("recall", [3, 3], [3, 3]).low == wilson(1.0, 2)[0]
    assert clustered_share("precision", [0, 0], [0, 0]) is None


def test_an_interval_is_a_normal_one_on_any_scale():
    score = averaged("", [1.0, 2.0, 3.0, 6.0])
    half = 1.959964 * math.sqrt((4 + 1 + 0 + 9) / 3 / 4)
    assert (score.value, score.low, score.high, score.count) == (
        3.0,
        pytest.approx(3 - half),
        pytest.approx(3 + half),
        4,
    )
    assert (averaged("", [5.0]).low, averaged("", [5.0]).high) == (5.0, 5.0)
    both = over("", [score, score])
    assert (both.value, both.count) == (3.0, 8) and both.high == pytest.approx(3 + half / math.sqrt(2))


def test_few_values_have_students_interval():
    assert student([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))


def test_a_paired_difference_is_of_the_same_items():
    found = paired([1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0])
    assert (found.difference, found.better, found.worse, found.count) == (0.0, 1, 1, 4)
    assert found.half == pytest.approx(1.959964 * math.sqrt(2 / 3 / 4))
    assert paired([1.0, 0.5], [0.5, 0.0]).half == 0  # both items differ by as much
    with pytest.raises(ValueError):
        paired([1.0, 2.0], [1.0])


def test_resampled_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(100):
        under = rng.uniform(1, 2, 40)
        found = statistics.resampled_ratio(0.5 * under + rng.normal(0, 0.1, 40), under)
        inside += found.low <= 0.5 <= found.high
    assert 85 <= inside <= 99
    with pytest.raises(statistics.TooFew, match="takes 8"):
        statistics.resampled_mean([1.0] * 7)


def test_resampled_statistics_are_those_of_the_items():
    rng = np.random.default_rng(0)
    under = rng.uniform(1, 2, (12, 2))
    assert statistics.resampled_mean(under[:, 0]).value == pytest.approx(under[:, 0].mean())
    found = statistics.resampled_excess(under * [2.0, 8.0], under)
    assert (found.value, found.low, found.high) == pytest.approx(
        (3.0, 3.0, 3.0), abs=0.6
    ) and found.value == pytest.approx(3.0)
    assert (-found).least == -found.high
