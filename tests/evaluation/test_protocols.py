"Scores from the sums of slices are those of the masks; intervals over patients and standard deviations cover."
import numpy as np
import pytest

from neuroseg.core import InputError, ShapeError
from neuroseg.evaluation.metrics import dice
from neuroseg.evaluation.protocols import (UNITS, batch_soft_dice, claim_scores, count_batches, count_scores,
                                           keras_evaluate, resample_patients, score_ci, score_table, slice_counts,
                                           split_and_seed, spread, thesis_batches)
from neuroseg.evaluation.statistics import mean_ci

RNG = np.random.default_rng(0)
N = 53 # no multiple of a batch
TRUE = RNG.random((N, 6, 5)) * (RNG.random(N) < .4)[:, None, None]
PROB = RNG.random((N, 6, 5)) * (RNG.random(N) < .5)[:, None, None]
WHOSE = np.array([f'P{k}' for k in RNG.integers(9, size=N)])


@pytest.mark.parametrize('size', [1, 7, 16, 32, 53, 100])
def test_batches_from_sums_are_those_of_the_masks(size):
    ours, known = count_batches(slice_counts(PROB, TRUE, soft=True), batch_size=size), thesis_batches(
        PROB, TRUE, batch_size=size)
    assert ours[0] == pytest.approx(known[0], abs=1e-5) and ours[1].tolist() == known[1].tolist()


@pytest.mark.parametrize('empty', [1., 0., float('nan')])
def test_units_from_sums_are_those_of_the_masks(empty):
    pred, true = PROB > .5, TRUE > .5
    counts = slice_counts(PROB, TRUE)
    for unit, groups in {'patient': [WHOSE == p for p in np.unique(WHOSE)], 'all pixels': [np.ones(N, bool)],
                         'slice': list(np.eye(N, dtype=bool)),
                         'batch of 8': [np.arange(N)//8 == k for k in range(7)]}.items():
        known = [dice(pred[g], true[g], empty=empty) for g in groups]
        assert count_scores(counts, WHOSE, unit=unit, empty=empty) == pytest.approx(known, abs=1e-6, nan_ok=True), unit


def test_the_seven_ways_by_hand():
    "Three slices: one found, one empty and left empty, one missed; two patients."
    true, prob = np.zeros((2, 3, 2, 2))
    true[0] = prob[0] = true[2] = 1
    found = claim_scores(slice_counts(prob, true, soft=True), ['A', 'A', 'B'])
    pooled = batch_soft_dice(prob, true)
    assert pooled == (2*4+1)/(4+8+1)
    assert found == pytest.approx({'evaluate': pooled, 'progress bar': pooled, 'batches of 16': pooled, 'slice': 2/3,
                                   'tumour slice': .5, 'all pixels': 8/12, 'patient': .5})


def test_the_ways_of_batches_are_those_of_keras():
    found = claim_scores(slice_counts(PROB, TRUE, soft=True), WHOSE)
    keras = keras_evaluate(*thesis_batches(PROB, TRUE))
    assert (found['evaluate'], found['progress bar']) == pytest.approx((keras['dice'], keras['bar_dice']), abs=1e-5)
    assert found['evaluate'] != pytest.approx(found['batches of 16'], abs=1e-6)


def test_without_tumour_a_score_is_none():
    nothing = np.zeros((4, 2, 2))
    found = claim_scores(slice_counts(nothing, nothing, soft=True), list('AABB'))
    assert found['slice'] == 1 and found['patient'] is None and found['tumour slice'] is None
    rows = score_table(slice_counts(nothing, nothing), list('AABB'), network='x')
    assert len(rows) == 3*len(UNITS) and {r['n'] for r in rows if r['empty'] == 'left out'} == {0}


def test_a_drawn_patient_brings_all_its_slices():
    sizes = {p: int((WHOSE == p).sum()) for p in np.unique(WHOSE)}
    for idx, who in resample_patients(WHOSE, n_boot=50):
        assert len(np.unique(who)) == len(sizes)
        for k in np.unique(who):
            own = idx[who == k]
            assert len(set(WHOSE[own])) == 1 and sorted(own) == sorted(np.flatnonzero(WHOSE == WHOSE[own[0]]))
        assert len(idx) == sum(sizes[WHOSE[idx[who == k][0]]] for k in np.unique(who))
    drawn = [np.bincount(who).tolist() for _, who in resample_patients(WHOSE, n_boot=20)]
    assert len({tuple(d) for d in drawn}) > 10


def test_slices_of_a_patient_are_not_taken_for_independent():
    "30 patients with 20 equal slices each: the interval is that over 30 patients, not over 600 slices."
    level = np.random.default_rng(1).normal(.7, .1, 30)
    whose = np.repeat(np.arange(30), 20)
    found, = score_ci(lambda idx, who: np.array([level[whose[idx]].mean()]), whose, n_boot=2000)
    low, high = mean_ci(level)
    assert found['ci95'] == pytest.approx([low, high], abs=.01)
    assert found['ci95'][1]-found['ci95'][0] > 3*(np.ptp(mean_ci(level[whose])))


def test_the_interval_of_a_standard_deviation_covers():
    rng = np.random.default_rng(3)
    hits = [s['sd_ci95'][0] <= 1 <= s['sd_ci95'][1] for s in (spread(rng.normal(size=5)) for _ in range(400))]
    assert .92 <= np.mean(hits) <= .98


def test_split_and_seed_are_told_apart():
    "Scores that move with the split only, with the seed only, and by hand."
    assert split_and_seed([.8, .9], [.8, .8]) == pytest.approx(dict(sd=.1/2**.5, n_splits=2, seed_sd=0, n_seeds=2,
                                                                   split_sd=.1/2**.5))
    assert split_and_seed([.8, .8], [.8, .9])['split_sd'] == 0
    assert split_and_seed([.8], [.8, .9])['split_sd'] is None


def test_refusals():
    for bad in ([], [[.5]], [.5, float('nan')]):
        with pytest.raises(InputError, match='leave out repetitions'): spread(bad)
    with pytest.raises(ShapeError, match='bring them to one grid'): slice_counts(PROB, TRUE[1:])
    with pytest.raises(ShapeError, match='expected one a slice'):
        count_scores(slice_counts(PROB, TRUE), WHOSE[1:], unit='patient', empty=1.)
