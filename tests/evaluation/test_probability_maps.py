"Stored probabilities give the masks of the network, voxel by voxel, and damaged files are refused."
import numpy as np
import pytest
from scipy import ndimage

from neuroseg.cohorts.tables import write_rows
from neuroseg.core import ConfigError, DataError, ShapeError
from neuroseg.evaluation.metrics import score_case
from neuroseg.evaluation.probability_maps import (CaseMap, LEVELS, MEMBER_LEVELS, above, from_levels, load_maps,
                                                  near_edge, to_levels, write_map)
from neuroseg.segmentation.quality import binarize, expected_dice


def smooth(seed, shape=(6, 40, 44)):
    "Probabilities like those of a network: near 0 in most voxels, near 1 in a few, ties at round values."
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 2.5)
    prob = 1/(1+np.exp(-(noise/noise.std()*4-3)))
    prob.flat[::97] = .4
    return prob.astype(np.float32)


def case(seed, patient='PH_0001', **more):
    prob = smooth(seed)
    targ = ndimage.gaussian_filter(prob, 1) > .45
    members = to_levels(np.stack([prob, smooth(seed+1)]), MEMBER_LEVELS)
    return prob, CaseMap(patient, 'all sequences', to_levels(prob), targ, members, **more)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('threshold', [.001, .05, .25, .4, .5, .62, .95, .999])
def test_a_mask_from_levels_is_the_mask_of_the_network(seed, threshold):
    prob, m = case(seed)
    exact = prob.astype(float)  # .4 of float32 is more than .4
    assert (above(m.levels, threshold) == (exact > threshold)).all()
    if threshold != .4: assert (m.mask(threshold) == binarize(prob, threshold=threshold, component_share=1.)).all()


def test_scores_are_those_of_the_probabilities():
    prob, m = case(5, spacing_mm=(5., 1., 1.))
    mask = binarize(prob, threshold=.5, component_share=1.)
    found = m.score(.5, empty=1.)
    expected = score_case(mask, m.targ, spacing_mm=(5., 1., 1.), empty=1., surface=False)
    assert {k: found[k] for k in expected} == expected
    assert found['confidence'] == pytest.approx(expected_dice(prob, mask), abs=1e-4)


def test_one_level_more_would_change_a_mask():
    "The quantisation is as coarse as it may be: rounding to the nearest level moves voxels across a threshold."
    prob = np.float32([.4-2e-6, .4+2e-6])
    nearest = np.round(prob.astype(float)*LEVELS)
    assert list(above(to_levels(prob), .4)) == [False, True] and len(set(nearest > .4*LEVELS)) == 1


def test_levels_keep_the_probability():
    prob = np.linspace(0, 1, 200_001)
    assert abs(from_levels(to_levels(prob))-prob).max() <= 1/LEVELS
    assert abs(from_levels(to_levels(prob, MEMBER_LEVELS))-prob).max() <= 1/MEMBER_LEVELS
    assert to_levels(1.) == LEVELS and above(to_levels(np.ones(1)), .999).all()


@pytest.mark.parametrize('component_share', [0., .3, 1.])
def test_many_thresholds_are_those_of_single_masks(component_share):
    _, m = case(6)
    for r in m.threshold_rows((.2, .4, .6, .9, .999), component_share):
        mask = m.mask(r['threshold'], component_share)
        assert (r['pred_px'], r['tp'], r['true_px']) == (mask.sum(), (mask & m.targ).sum(), m.targ.sum())


def test_an_empty_map_has_empty_masks():
    nothing = CaseMap('PH', 'FLAIR only', np.zeros((2, 4, 4), np.uint16), np.zeros((2, 4, 4), bool),
                      np.zeros((0, 2, 4, 4), np.uint8))
    assert [r['pred_px'] for r in nothing.threshold_rows((.3, .5))] == [0, 0]
    assert nothing.score(.5, empty=1.)['dice'] == 1 and nothing.edge_row(.5)['wrong_px'] == 0


@pytest.mark.parametrize('px', [1, 1.5, 2, 3])
def test_the_edge_is_that_of_a_distance_transform(px):
    _, m = case(7)
    far = np.stack([np.where(t, ndimage.distance_transform_edt(t) if not t.all() else np.inf,
                             ndimage.distance_transform_edt(~t) if t.any() else np.inf) for t in m.targ])
    assert (near_edge(m.targ, px) == (far <= px)).all()


def test_errors_are_divided_without_rest():
    _, m = case(8)
    r = m.edge_row(.5)
    assert r['wrong_px'] == (m.mask(.5) != m.targ).sum() == r['near_px']+r['far_px'] > 0
    assert r['far_px'] == r['far_missed_px']+r['far_extra_px']+r['other_slices_px']


def test_files_are_the_same_bytes_and_survive(tmp_path):
    _, m = case(9, spacing_mm=(3., .9, .9), fold=2)
    rows = [write_map(tmp_path/'fold_2', m), write_map(tmp_path/'again', m)]
    assert rows[0] == rows[1]
    write_rows(tmp_path/'fold_2'/'maps.csv', rows[:1])
    back, = load_maps(tmp_path)
    assert (back.patient, back.input, back.fold, back.spacing_mm) == (m.patient, m.input, 2, (3., .9, .9))
    assert all((getattr(back, k) == getattr(m, k)).all() for k in ('levels', 'targ', 'member_levels'))


@pytest.mark.parametrize('damage', ['changed', 'cut', 'absent'])
def test_a_damaged_file_is_refused(tmp_path, damage):
    row = write_map(tmp_path, case(10)[1])
    write_rows(tmp_path/'maps.csv', [row])
    file = tmp_path/row['file']
    if damage == 'absent': file.unlink()
    else: file.write_bytes(file.read_bytes()[:-40] if damage == 'cut' else file.read_bytes()+b'.')
    with pytest.raises(DataError, match='write the maps of this run again'): list(load_maps(tmp_path))


def test_wrong_requests_are_refused(tmp_path):
    with pytest.raises(DataError, match='holds no probability maps'): list(load_maps(tmp_path))
    with pytest.raises(ConfigError, match='stored levels'): above(np.zeros(2, np.uint16), 1/3)
    with pytest.raises(ConfigError, match='stored levels'): above(np.zeros(2, np.uint8), .401)
    with pytest.raises(ShapeError): CaseMap('P', 'FLAIR only', np.zeros((1, 2, 2), np.uint16),
                                            np.zeros((2, 2, 2), bool), np.zeros((0, 1, 2, 2), np.uint8))
