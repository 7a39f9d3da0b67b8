"The numbers of a validation against other libraries, at the edges, and on cohorts that have nothing to tell."
import json, math

import numpy as np
import pytest

from neuroseg.core import jsonable
from neuroseg.evaluation.agreement import bland_altman, concordance, rim_scores
from neuroseg.evaluation.case_confidence import (case_line, failure_auc, nested_correction, referral_curve, spearman,
                                                 with_folds)
from neuroseg.evaluation.case_tables import CaseTables, case_tables
from neuroseg.evaluation.label_noise import outline_ceiling
from neuroseg.evaluation.metrics import hd95_mm, surface_dice
from neuroseg.evaluation.probability_maps import CaseMap, MEMBER_LEVELS, to_levels
from neuroseg.evaluation.subgroups import permutation_p, subgroup_tests
from neuroseg.evaluation.validation_numbers import validation_numbers


def ball(r, cx=20, n=40):
    z, y, x = np.indices((6, n, n))
    return 1/(1+np.exp(np.sqrt(4*(z-3)**2+(y-20)**2+(x-cx)**2)-r))


def maps(n, empty=(), nets=2):
    "Cases of several sizes; `empty` ones have neither lesion nor mask."
    for i in range(n):
        prob = ball(5+i % 7, 20+i % 3)*(i not in empty)
        members = to_levels(np.stack([prob]*nets), MEMBER_LEVELS) if nets else np.zeros((0, *prob.shape), np.uint8)
        yield CaseMap(f'PH_{i:04}', 'all sequences', to_levels(prob), (ball(6+i % 7) > .5) & (i not in empty), members,
                      fold=i % 5)


def test_area_and_ranks_are_those_of_other_libraries():
    metrics, stats = pytest.importorskip('sklearn.metrics'), pytest.importorskip('scipy.stats')
    rng = np.random.default_rng(0)
    c = rng.random(80).round(1)  # many ties
    failed = rng.random(80) > c
    assert failure_auc(c, failed)['auc'] == pytest.approx(metrics.roc_auc_score(failed, -c))
    assert spearman(c, failed) == pytest.approx(stats.spearmanr(c, failed).statistic)


def test_the_interval_of_an_area_contains_the_truth():
    "Two normal distributions one standard deviation apart: the area is 0.760."
    def hit(seed):
        rng = np.random.default_rng(seed)
        failed = rng.random(88) < .15
        lo, hi = failure_auc(rng.normal(size=88)-failed, failed)['auc_ci95']
        return lo <= .7602 <= hi
    assert .92 < np.mean([hit(s) for s in range(300)]) <= .99


def test_the_correction_of_a_fold_does_not_know_the_fold():
    rng = np.random.default_rng(0)
    rows = [dict(patient=str(i), fold=i % 5, confidence=float(c), dice=float(d))
            for i, (c, d) in enumerate(rng.uniform(.5, .95, (60, 2)))]
    changed = [r | dict(dice=.01) if r['fold'] == 1 else r for r in rows]
    for a, b in zip(nested_correction(rows), nested_correction(changed)):
        assert (a['expected'] == b['expected']) == (a['fold'] == 1)


def test_scans_of_a_patient_share_a_fold():
    rows = with_folds([dict(patient=f'{i % 9}') for i in range(27)])
    assert len({(r['patient'], r['fold']) for r in rows}) == 9


def test_a_perfect_confidence_has_slope_one():
    dice = np.linspace(.4, .97, 50)
    assert case_line([dict(confidence=d, dice=d) for d in dice]) == pytest.approx((0, 1), abs=1e-6)


def test_a_case_handed_over_never_lowers_the_best_curve():
    rng = np.random.default_rng(0)
    curve = referral_curve([dict(confidence=c, dice=d) for c, d in rng.random((40, 2))])
    assert all(a['best'] <= b['best']+1e-12 for a, b in zip(curve, curve[1:]))
    assert all(r['dice'] <= r['best']+1e-12 for r in curve)


def test_limits_hold_for_the_stated_share():
    def share(seed):
        rng = np.random.default_rng(seed)
        true = np.exp(rng.normal(8, 1, 200))
        found = bland_altman(true*np.exp(rng.normal(.1, .2, 200)), true)
        new = np.exp(rng.normal(.1, .2, 500))
        return ((found['low'] <= new) & (new <= found['high'])).mean()
    assert np.mean([share(s) for s in range(30)]) == pytest.approx(.95, abs=.01)


def test_concordance_worked_by_hand():
    "Logs 0, 1, 2 against 1, 2, 3: covariance 2/3, spreads 2/3 each, means one apart: (4/3)/(4/3+1)."
    assert concordance(np.exp([0, 1, 2]), np.exp([1, 2, 3]))['ccc'] == pytest.approx(4/7)


@pytest.mark.parametrize('seed', range(4))
def test_distances_in_pixels_are_those_of_a_slice_in_mm(seed):
    pytest.importorskip('scipy')
    rng = np.random.default_rng(seed)
    a, b = (ball(5+2*rng.random(), 20+3*rng.random())[3:4] > .5 for _ in range(2))
    found = rim_scores(a, b)
    assert found['hd95_px'] == pytest.approx(hd95_mm(a[0], b[0], spacing_mm=(1, 1), empty=0.))
    if pytest.importorskip('monai'):
        subvoxel = surface_dice(a[0], b[0], spacing_mm=(1, 1), tolerance_mm=2., empty=1.)
        assert found['surface_dice_px'] == pytest.approx(subvoxel, abs=.1)


def test_an_outline_a_pixel_off_worked_by_hand():
    "A square of 6 pixels a side: one pixel less all around leaves 16 of 36, one more (without corners) makes 60."
    square = np.zeros((1, 14, 14), bool)
    square[0, 4:10, 4:10] = True
    assert outline_ceiling(square) == pytest.approx((2*16/52 + 2*36/96)/2)


def test_labels_without_effect_give_even_p_values():
    p = [permutation_p({g: v for g, v in zip('ab', np.random.default_rng(s).gamma(2, 1, (2, 20)))}, n_perm=199)
         for s in range(200)]
    assert np.mean(np.array(p) <= .05) == pytest.approx(.05, abs=.035)


def test_small_groups_are_neither_told_nor_tested():
    rows = [dict(patient=str(i), dice=.8+.01*(i % 7), sex='f' if i < 4 else 'm') for i in range(30)]
    assert subgroup_tests(rows, ('sex',)) == []


@pytest.mark.parametrize('n, empty, nets', [(1, (), 2), (4, (), 0), (5, (), 0), (12, (3,), 2), (30, (0, 1, 2), 0),
                                            (8, tuple(range(8)), 1)])
def test_every_cohort_gives_numbers_that_json_can_hold(n, empty, nets):
    "Also one of empty masks only, of four patients, of one network."
    found = jsonable(validation_numbers(case_tables(maps(n, empty, nets), .5), n_sim=5))
    assert found['n'] == n and json.dumps(found, allow_nan=False)
    if n < 5: assert set(found) == {'n', 'dice'} and set(found['dice']) == {'n', 'mean'}
    elif len(empty) == n: assert found['dice']['mean'] == 1 and found['confidence'] is None and found['voxels'] is None
    else: assert found['confidence']['n'] == n and ('member_dice' in found['referral']) == (nets > 1 and not empty
                                                                                           or nets > 1 and n > 5)


def test_two_scans_of_a_patient_count_once():
    t = case_tables(maps(10), .5)
    twice = CaseTables([r | dict(case=k) for r in t.cases for k in 'ab'], t.voxels*2, t.errors*2)
    one, two = validation_numbers(t, n_sim=5), validation_numbers(twice, n_sim=5)
    assert two['n'] == 10 and two['dice']['mean'] == pytest.approx(one['dice']['mean'])
    assert two['voxels']['before']['slope'] == pytest.approx(one['voxels']['before']['slope'])


def test_no_list_of_patients_is_among_the_numbers():
    found = json.dumps(jsonable(validation_numbers(case_tables(maps(12), .5), n_sim=5)))
    assert 'PH_' not in found and 'patient' not in found and not math.isnan(len(found))
