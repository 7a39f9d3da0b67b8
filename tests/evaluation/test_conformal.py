"Conformal intervals: the closed form of leaving one out, what they cover in simulation, and what they refuse."
import numpy as np
import pytest

from neuroseg.core import InputError
from neuroseg.evaluation.conformal import (coverage, dice_interval, fit_dice_interval, fit_jackknife, least_cases,
                                           nested_intervals, simulated_interval_coverage)


def cases(n=88, seed=0, tail=0.):
    "Cases whose Dice scatters around a line of logits; `tail` of them have failed without a sign."
    rng = np.random.default_rng(seed)
    x = rng.normal(2, .8, n)
    dice = 1/(1+np.exp(-(.7*x+.3+rng.normal(0, .4, n))))
    dice[rng.random(n) < tail] *= .4
    px = np.exp(rng.normal(8, 1, n))
    return [dict(patient=str(i), fold=i % 5, confidence=float(1/(1+np.exp(-a))), dice=float(d), pred_px=float(p),
                 true_px=float(p*np.exp((1-d)*e))) for i, (a, d, p, e) in
            enumerate(zip(x, dice, px, rng.normal(0, .8, n)))]


@pytest.mark.parametrize('seed', range(3))
def test_leaving_one_out_is_fitting_again(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=25), rng.normal(size=25)
    fitted = fit_jackknife(x, y)
    for i in range(25):
        slope, intercept = np.polyfit(np.delete(x, i), np.delete(y, i), 1)
        assert fitted.lines[i] == pytest.approx((intercept, slope), abs=1e-9)
        assert fitted.distance[i] == pytest.approx(y[i]-intercept-slope*x[i], abs=1e-9)


def test_one_value_of_x_for_all_is_a_constant_line():
    y = np.random.default_rng(0).normal(size=30)
    low, high = fit_jackknife(np.ones(30), y).interval([1.])
    assert np.isfinite([low, high]).all() and low[0] < y.mean() < high[0]


@pytest.mark.parametrize('of', ['dice', 'volume'])
@pytest.mark.parametrize('n', [25, 70, 88])
@pytest.mark.parametrize('tail', [0., .08])
def test_coverage_is_within_three_points_of_nominal(of, n, tail):
    "Also where some cases fail without any sign, which a normal distribution would not allow for."
    found = simulated_interval_coverage(cases(tail=tail), of=of, n=n, n_sim=150)
    assert .87 <= found <= (.93 if n > 30 else .96)  # with 25 cases the ends are the extremes of the sums


def test_the_intervals_of_a_fold_do_not_know_the_fold():
    rows = cases()
    before = {r['patient']: (r['low'], r['high']) for r in nested_intervals(rows) if r['fold'] == 2}
    changed = [r | dict(dice=.1) if r['fold'] == 2 else r for r in rows]
    after = {r['patient']: (r['low'], r['high']) for r in nested_intervals(changed) if r['fold'] == 2}
    assert before == after
    assert coverage([r for r in nested_intervals(changed) if r['fold'] == 2])['coverage'] < .3


def test_more_confidence_is_never_a_lower_interval():
    fitted = fit_dice_interval(cases())
    low, high = dice_interval(fitted, np.linspace(.3, .99, 40))
    assert (np.diff(low) > 0).all() and (np.diff(high) > 0).all() and (low > 0).all() and (high < 1).all()


@pytest.mark.parametrize('level', [.5, .8, .9, .95])
def test_too_few_cases_are_refused(level):
    n = least_cases(level)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, n))
    fit_jackknife(x, y, level=level).interval([0.])
    with pytest.raises(InputError, match='too few'): fit_jackknife(x[1:], y[1:], level=level)
