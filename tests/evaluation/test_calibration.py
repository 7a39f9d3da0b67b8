"Calibration against scikit-learn and scipy, and choices that must not see their own fold."
import numpy as np
import pytest
from scipy import optimize

from neuroseg.core import InputError
from neuroseg.evaluation.calibration import (calibration_error, calibration_line, calibration_rows, fit_temperature,
                                             negative_log_likelihood, nested_choice, pooled_counts, volume_ratio,
                                             volume_threshold, with_temperature)


def patient(seed, n=4000, sure=1., offset=0.):
    "Probabilities whose logits are `offset` too high and `sure` times too large, and the truth."
    rng = np.random.default_rng(seed)
    x = rng.normal(-1, 2.5, n)
    return 1/(1+np.exp(-sure*x-offset)), rng.random(n) < 1/(1+np.exp(-x))


def sigmoid(x): return 1/(1+np.exp(-x))


@pytest.mark.parametrize('sure, offset', [(1., 0.), (2., .5), (3., -1.), (.6, 0.)])
def test_the_line_is_that_of_logistic_regression(sure, offset):
    linear = pytest.importorskip('sklearn.linear_model')
    prob, targ = patient(1, sure=sure, offset=offset)
    counted = prob >= .01
    x = np.log(prob[counted]/(1-prob[counted]))
    theirs = linear.LogisticRegression(C=1e9, max_iter=1000).fit(x[:, None], targ[counted])
    ours = calibration_line(pooled_counts(calibration_rows(prob, targ)))
    assert ours == pytest.approx((theirs.intercept_[0], theirs.coef_[0, 0]), abs=.03)


@pytest.mark.parametrize('sure', [.5, 1., 2., 3.])
def test_the_temperature_is_the_minimum_that_scipy_finds(sure):
    prob, targ = patient(2, sure=sure)
    counts = pooled_counts(calibration_rows(prob, targ))
    best = optimize.minimize_scalar(lambda t: negative_log_likelihood(counts, t), bounds=(.2, 5), method='bounded').x
    assert fit_temperature(counts) == pytest.approx(best, rel=.01)


def test_the_likelihood_of_counts_is_that_of_voxels():
    prob, targ = patient(3)
    counted = prob >= .01
    voxels = -np.log(np.where(targ, prob, 1-prob))[counted].mean()
    assert negative_log_likelihood(pooled_counts(calibration_rows(prob, targ))) == pytest.approx(voxels, rel=.003)


def test_the_error_is_that_of_voxels_in_ten_bins():
    prob, targ = patient(4, sure=2.)
    p, y = prob[prob >= .01], targ[prob >= .01]
    at = np.minimum((p*10).astype(int), 9)
    by_hand = sum(abs(p[at == k].sum()-y[at == k].sum()) for k in range(10))/len(p)
    assert calibration_error(pooled_counts(calibration_rows(prob, targ))) == pytest.approx(by_hand, abs=.01)


def test_counts_of_patients_add_up():
    both = [calibration_rows(*patient(k)) for k in (5, 6)]
    together = calibration_rows(*(np.concatenate(v) for v in zip(patient(5), patient(6))))
    assert pooled_counts(both[0]+both[1]) == pytest.approx(pooled_counts(together))
    text = [{k: str(v) for k, v in r.items()} | dict(n=r['n'], positives=r['positives']) for r in both[0]]
    assert pooled_counts(text) == pytest.approx(pooled_counts(both[0]))


def test_a_temperature_keeps_the_order():
    prob = np.sort(patient(7)[0])
    assert (np.diff(with_temperature(prob, 3.)) >= 0).all()
    assert with_temperature(prob, 1.) == pytest.approx(prob, abs=1e-4)


def test_a_choice_does_not_see_its_own_fold():
    "Each fold's rows would win if they were seen."
    rows = [dict(fold=k, seen=k) for k in range(5) for _ in range(3)]
    found = nested_choice(rows, lambda rows: {r['seen'] for r in rows})
    assert all(k not in seen and len(seen) == 4 for k, seen in found.items())
    with pytest.raises(InputError, match='at least two folds'): nested_choice(rows[:3], len)


def test_the_threshold_balances_ratios_and_not_sums():
    "One large lesion does not decide for many small ones."
    px = {.4: [(120, 100)]*4 + [(10_000, 10_000)], .5: [(100, 100)]*4 + [(9_000, 10_000)]}
    rows = [dict(threshold=t, pred_px=p, true_px=q) for t, pairs in px.items() for p, q in pairs]
    assert volume_threshold(rows) == .5
    assert volume_ratio(*np.array(px[.5]).T) == pytest.approx(.9**.2, abs=1e-3)
    assert np.isfinite(volume_ratio([0], [50]))
