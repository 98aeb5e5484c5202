"""Intervals: they cover what they should, leave out what is missing, and know that runs differ."""

import math

import pytest
import torch

from sb.evaluate.quantity import mean_of, nested_difference, nested_mean, wilson


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_of_a_mean_is_two_standard_errors_each_side():
    values = normal(400) + 3
    found = mean_of(values)
    margin = 1.966 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean())) and found.n == 400
    assert found.value - found.low == pytest.approx(margin, rel=0.12)
    assert found.high - found.value == pytest.approx(margin, rel=0.12)
    assert found == mean_of(values) and found != mean_of(values, seed=1)


def test_missing_values_are_left_out_and_counted():
    values = [1.0, math.nan, 3.0, math.nan]
    found = mean_of(values)
    assert (found.value, found.n) == (2, 2)
    assert mean_of([1.0, 3.0]) == found
    nothing = mean_of([math.nan] * 3)
    assert nothing.n == 0 and math.isnan(nothing.value) and math.isnan(nothing.low)
    single = mean_of([4.0])
    assert (single.value, single.n) == (4, 1) and math.isnan(single.low) and math.isnan(single.high)


@pytest.mark.parametrize("value", [0.25, 0.0, 1.0])
def test_equal_values_have_no_width(value):
    """Six seams of 0 grey levels are no share: they say nothing of 0.4."""
    found = mean_of([value] * 10)
    assert (found.value, found.low, found.high) == (value, value, value)


@pytest.mark.parametrize("right, of", [(20, 20), (0, 7), (130, 200)])
def test_a_share_has_wilsons_interval(right, of):
    """All of few is not certain: 20 of 20 may be 0.84."""
    found = mean_of([1.0] * right + [0.0] * (of - right), share=True)
    assert 0 <= found.low <= found.high <= 1
    assert (found.low, found.high) == pytest.approx(wilson(right / of, of), abs=0.01 * (0 < right < of) + 1e-9)


def test_a_share_covers_the_truth_95_times_in_100():
    draws = (torch.rand(300, 20, generator=torch.Generator().manual_seed(0)) < 0.95).double()
    assert sum((found := mean_of(row, share=True)).low <= 0.95 <= found.high for row in draws) > 277


def test_groups_are_drawn_together():
    values = normal(60)
    found = mean_of(values.repeat_interleave(5), torch.arange(60).repeat_interleave(5))
    alone = mean_of(values)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))
    assert found.n == 300 and mean_of(values.repeat_interleave(5)).high < 0.6 * (alone.high - alone.value) + alone.value
    uneven = mean_of([1.0, 2.0, 6.0, 6.0], torch.tensor([7, 7, 9, 4]))
    assert uneven.value == 3.75 and math.isnan(mean_of([1.0, 2.0], torch.tensor([3, 3])).low)


def test_pairing_takes_the_requests_own_spread_away():
    base = 10 * normal(300)
    other = base + 0.5 + 0.1 * normal(300, seed=1)
    found = nested_difference([base], [other])
    assert found.value == pytest.approx(0.5, abs=0.03) and found.high - found.low < 0.05
    base[7] = math.nan
    assert nested_difference([base], [other]).n == 299
    same = nested_difference([other], [other])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_one_run_each_is_the_mean_of_the_paired_differences():
    a, b = normal(200), normal(200, seed=1) + 0.3
    nested, paired = nested_difference([a], [b]), mean_of(b - a)
    assert nested.value == pytest.approx(paired.value) and nested.n == 200
    assert nested.high - nested.low == pytest.approx(paired.high - paired.low, rel=0.1)


def test_runs_that_differ_widen_the_interval_as_much_as_they_should():
    """Each side is the mean of 3 runs with effects of std 1: the difference has a std of sqrt(2 / 3)."""
    widths = []
    for trial in range(40):
        effects = normal(6, 1, seed=trial)
        runs = list(effects + 0.1 * normal(6, 50, seed=100 + trial))
        found = nested_difference(runs[:3], runs[3:], resamples=300)
        widths.append(((found.high - found.low) / (2 * 2.776)) ** 2)  # Student's t of 4 degrees of freedom
    assert sum(widths) / len(widths) == pytest.approx(2 / 3, rel=0.3)


@pytest.mark.parametrize("runs, least", [(2, 0.85), (3, 0.9), (5, 0.92)])
def test_few_runs_cover_the_truth(runs, least):
    """Seeds alone differ: 300 comparisons of two systems that are equal."""
    hits = 0
    for trial in range(300):
        sides = (normal(2 * runs, 1, seed=trial) + 0.01 * normal(2 * runs, 20, seed=trial + 1000)).split(runs)
        found = nested_difference(list(sides[0]), list(sides[1]), resamples=200)
        hits += found.low < 0 < found.high
    assert hits / 300 >= least


def test_a_request_that_one_run_lacks_is_left_out_of_all():
    runs = [torch.arange(5.0), torch.arange(5.0) + 1, torch.arange(5.0) + 3]
    runs[1][2] = math.nan
    found = nested_difference(runs[:2], runs[2:])
    assert found.n == 4 and found.value == pytest.approx(2.5)


@pytest.mark.parametrize("a, b", [([], [torch.ones(3)]), ([torch.ones(3)], []), ([torch.ones(3)], [torch.ones(4)])])
def test_runs_of_other_requests_are_refused(a, b):
    with pytest.raises(ValueError, match="runs of the same requests"):
        nested_difference(a, b)


def test_a_scale_is_taken_of_each_sides_mean():
    a, b = normal(100).abs() + 1, normal(100, seed=1).abs() + 1
    found = nested_difference([a], [b], scale=torch.log10)
    assert found.value == pytest.approx(float(b.mean().log10() - a.mean().log10()))
    assert found.low < found.value < found.high < 0.2
    mean = nested_mean([b, b], scale=torch.log10)
    assert 10 ** mean.value == pytest.approx(float(b.mean())) and 10 ** mean.high < 2.2
    assert nested_mean([b]) == mean_of(b) and nested_mean([b, b + 9]).value == pytest.approx(float(b.mean()) + 4.5)
