"Metrics against independent implementations on hundreds of random pairs, and against arithmetic done by hand."
import csv, itertools, json, math, statistics, subprocess, sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage, stats

from neuroseg import core
from neuroseg.core import ConfigError, InputError, ShapeError, read_json, write_json
from neuroseg.evaluation.metrics import (Confusion, confusion, dice, hd95_mm, iou, pooled, precision, recall,
                                         score_case, score_slices, surface_dice, volume_error_ml, volume_error_rel)
from neuroseg.evaluation.statistics import (_resampled, bootstrap_ci, mean_ci, median_ci, MIN_VALUES,
                                            paired_ci, ratio_ci, simulated_coverage, summarise)
from neuroseg.evaluation.protocols import batch_soft_dice, keras_evaluate, thesis_batches, thesis_dice

nan, inf = math.nan, math.inf
OVERLAPS = dict(dice=dice, iou=iou, precision=precision, recall=recall)

def same(a, b): return a==b or (math.isnan(a) and math.isnan(b))

def blobs(rng, shape, share):
    "A lumpy random mask that covers about `share` of its box (whole-number arithmetic, so the same on every machine)."
    noise = rng.integers(0, 1000, shape)
    for axis in range(len(shape)): noise = sum(np.roll(noise, s, axis) for s in (-1,0,1))
    return noise >= np.sort(noise, axis=None)[int((1-share)*noise.size)]

def random_pair(seed, ndim=3):
    "A prediction that nearly fits a random lesion, anisotropic spacing, and a tolerance."
    rng = np.random.default_rng(seed)
    shape, spacing = tuple(rng.integers(5, 18, ndim)), tuple(rng.integers(50, 600, ndim)/100)
    targ = blobs(rng, shape, .4)
    pred = np.roll(targ, rng.integers(-1, 2, ndim), range(ndim)) ^ blobs(rng, shape, .1)
    return pred, targ, spacing, int(rng.integers(50, 500))/100

def any_pair(seed):
    "A pair of any size and density, in which every fifth mask is empty and some are full."
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 9, rng.integers(1, 5)))
    return tuple(rng.random(shape) < rng.choice([0, .05, .3, .7, 1.]) for _ in range(2))


# --- overlap

def test_overlaps_agree_with_scikit_learn():
    from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score
    theirs = dict(dice=f1_score, iou=jaccard_score, precision=precision_score, recall=recall_score)
    seen = dict(both=0, one=0, neither=0)
    for seed in range(240):
        pred, targ = any_pair(seed)
        kind = ('both','one','neither')[int(pred.any())+int(targ.any())]; seen[kind] += 1
        for name,f in OVERLAPS.items():
            expected = theirs[name](targ.ravel(), pred.ravel(), zero_division=0)
            for empty in (1., 0., nan):
                ours = f(pred, targ, empty=empty)
                assert same(ours, empty) if kind=='both' else ours==pytest.approx(expected, abs=1e-12), (seed, name)
    assert min(seen.values())>=15, seen # each case was really met

def test_dice_agrees_with_monai():
    torch = pytest.importorskip('torch'); monai = pytest.importorskip('monai.metrics')
    for seed in range(30):
        pred, targ, *_ = random_pair(seed, 2)
        theirs = monai.compute_dice(torch.from_numpy(pred)[None,None], torch.from_numpy(targ)[None,None],
                                    include_background=True)
        assert dice(pred, targ, empty=1.)==pytest.approx(float(theirs), abs=1e-6)

def test_overlap_properties():
    for seed in range(200):
        pred, targ = any_pair(seed)
        scores = {k: f(pred, targ, empty=1.) for k,f in OVERLAPS.items()}
        assert all(0 <= s <= 1 for s in scores.values())
        assert dice(targ, pred, empty=1.)==scores['dice'] and iou(targ, pred, empty=1.)==scores['iou']
        assert precision(targ, pred, empty=1.)==scores['recall']
        assert scores['iou']==pytest.approx(scores['dice']/(2-scores['dice']))
        assert all(f(targ, targ, empty=1.)==1 for f in OVERLAPS.values())
        order = np.random.default_rng(seed).permutation(pred.size)
        assert dice(pred.ravel()[order], targ.ravel()[order], empty=1.)==scores['dice'] # pixels have no order

@pytest.mark.parametrize('f', OVERLAPS.values())
def test_empty_has_no_default(f):
    with pytest.raises(TypeError, match='empty'): f(np.ones(3, bool), np.ones(3, bool))
    with pytest.raises(TypeError): f(np.ones(3, bool), np.ones(3, bool), 1.)

@pytest.mark.parametrize('f', OVERLAPS.values())
def test_one_empty_mask_scores_zero_whatever_the_rule(f):
    some, none = np.ones((2,3), bool), np.zeros((2,3), bool)
    for rule in (1., 0., nan): assert f(some, none, empty=rule)==f(none, some, empty=rule)==0

@pytest.mark.parametrize('bad', [np.ones((2,3), np.uint8), np.full((2,3), 255), np.full((2,3), .7)])
def test_only_booleans_are_compared(bad):
    good = np.ones((2,3), bool)
    for f in OVERLAPS.values():
        with pytest.raises(InputError, match='`pred`'): f(bad, good, empty=1.)
        with pytest.raises(InputError, match='`targ`'): f(good, bad, empty=1.)

def test_shapes_that_would_broadcast_are_refused():
    for a,b in (((2,3), (1,3)), ((3,), (2,3)), ((2,3), ())):
        with pytest.raises(ShapeError, match='grid'): dice(np.ones(a, bool), np.ones(b, bool), empty=1.)

def test_confusion_adds_up():
    for seed in range(50):
        pred, targ = any_pair(seed)
        c = confusion(pred, targ)
        assert c==Confusion(int((pred&targ).sum()), int((pred&~targ).sum()), int((~pred&targ).sum()),
                            int((~pred&~targ).sum()))
        cut = len(pred)//2
        assert confusion(pred[:cut], targ[:cut])+confusion(pred[cut:], targ[cut:])==c==sum([c])
        assert all(type(v) is int for v in (c.tp, c.fp, c.fn, c.tn))

def test_counts_do_not_overflow():
    "numpy's small integers would wrap around silently."
    c = sum(Confusion(2**31, 2**31, 2**31, 2**31) for _ in range(4))
    assert c.tp==2**33 and c.dice(empty=1.)==.5


# --- distance

def hd95_by_distance_transform(pred, targ, spacing):
    "From the definition: rims by erosion, distances by a distance transform, the larger of two 95th percentiles."
    rims = [m & ~ndimage.binary_erosion(m) for m in (pred, targ)]
    to = [ndimage.distance_transform_edt(~r, sampling=spacing) for r in rims]
    return max(np.percentile(to[1][rims[0]], 95), np.percentile(to[0][rims[1]], 95))

@pytest.mark.parametrize('ndim', [2,3])
def test_hd95_agrees_with_distance_transform(ndim):
    for seed in range(60):
        pred, targ, spacing, _ = random_pair(seed, ndim)
        assert hd95_mm(pred, targ, spacing_mm=spacing,
                       empty=0.)==pytest.approx(hd95_by_distance_transform(pred, targ, spacing), rel=1e-5, abs=1e-5)

@pytest.mark.filterwarnings('ignore::FutureWarning') # of MONAI, on itself
def test_hd95_is_monais():
    torch, monai = pytest.importorskip('torch'), pytest.importorskip('monai.metrics')
    for seed in range(20):
        pred, targ, spacing, _ = random_pair(seed, 3)
        both = (torch.from_numpy(m)[None,None] for m in (pred, targ))
        assert hd95_mm(pred, targ, spacing_mm=spacing,
                       empty=0.)==pytest.approx(float(monai.compute_hausdorff_distance(*both, include_background=True,
                                                                                       percentile=95, spacing=spacing)),
                                                rel=1e-5)

def corners(mask):
    "The 2^n voxels around every corner of the grid, as an array with a leading axis."
    padded = np.pad(mask, 1)
    return np.stack([padded[tuple(slice(o, o+n+1) for o,n in zip(offset, mask.shape))]
                     for offset in itertools.product((0,1), repeat=mask.ndim)])

def length_mm(block, spacing):
    "Length of outline at each corner of a slice, of an outline that runs through the middle between pixels."
    a, b, c, d = block
    n, diagonal = block.sum(0), math.hypot(*spacing)
    two = np.where(a==d, diagonal, np.where(a==b, spacing[1], spacing[0]))
    return np.select([(n==1)|(n==3), n==2], [diagonal/2, two], 0.)

def area_mm2(block, spacing):
    "Area of surface at each corner of a volume; the table is MONAI's, the golden values below confirm it."
    from monai.metrics.utils import get_code_to_measure_table
    code = (block*np.array([128,64,32,16,8,4,2,1])[:,None,None,None]).sum(0)
    return get_code_to_measure_table(spacing)[0].numpy()[code]

@pytest.mark.parametrize('ndim,measure', [(2, length_mm), (3, area_mm2)])
def test_surface_dice_agrees_with_distance_transform(ndim, measure):
    for seed in range(60):
        pred, targ, spacing, tolerance = random_pair(seed, ndim)
        blocks = [corners(m) for m in (pred, targ)]
        rims = [b.any(0) & ~b.all(0) for b in blocks]
        sizes = [measure(b, spacing) for b in blocks]
        within = [ndimage.distance_transform_edt(~r, sampling=spacing)<=tolerance for r in rims]
        expected = (sizes[0][rims[0] & within[1]].sum()
                    + sizes[1][rims[1] & within[0]].sum())/(sizes[0][rims[0]].sum()+sizes[1][rims[1]].sum())
        assert surface_dice(pred, targ, spacing_mm=spacing, tolerance_mm=tolerance,
                            empty=1.)==pytest.approx(expected, abs=1e-5), seed

@pytest.mark.parametrize('ndim,golden', [
    (2, [.993142, .632852, .639582, .781644, .95144, .988441, 1., .712548, .952374, .802577]),
    (3, [1., .961577, .810567, .99613, .925887, .964264, .781706, .797327, .866103, .996972])])
def test_surface_dice_is_its_authors(ndim, golden):
    "Values of `random_pair` 0 to 9 by surface-distance-based-measures 0.1, the code of Nikolov et al. 2021."
    for seed,value in enumerate(golden):
        pred, targ, spacing, tolerance = random_pair(seed, ndim)
        assert surface_dice(pred, targ, spacing_mm=spacing, tolerance_mm=tolerance, empty=1.)==pytest.approx(value,
                                                                                                             abs=2e-6)

def distances(pred, targ, spacing, tolerance):
    return hd95_mm(pred, targ, spacing_mm=spacing, empty=0.), surface_dice(pred, targ, spacing_mm=spacing,
                                                                           tolerance_mm=tolerance, empty=1.)

def test_distances_do_not_depend_on_how_the_scan_lies():
    for seed in range(5):
        pred, targ, spacing, tol = random_pair(seed)
        base = pytest.approx(distances(pred, targ, spacing, tol), rel=1e-4)
        assert distances(targ, pred, spacing, tol)==base # symmetric
        assert distances(np.flip(pred, 1), np.flip(targ, 1), spacing, tol)==base
        assert distances(pred.transpose(2,0,1), targ.transpose(2,0,1), tuple(spacing[i] for i in (2,0,1)), tol)==base
        assert distances(np.pad(pred, 2), np.pad(targ, 2), spacing, tol)==base # a larger field of view changes nothing
        doubled = distances(pred, targ, tuple(2*s for s in spacing), 2*tol)
        assert doubled==pytest.approx((2*base.expected[0], base.expected[1]), rel=1e-4)

def test_spacing_axes_are_z_y_x():
    targ = np.zeros((9,9,9), bool); targ[3:6,3:6,3:6] = True
    for axis,expected in enumerate((5, 1, .5)):
        assert hd95_mm(np.roll(targ, 1, axis), targ, spacing_mm=(5,1,.5), empty=0.)==pytest.approx(expected)

def test_surface_dice_grows_with_tolerance():
    pred, targ, spacing, _ = random_pair(3)
    values = [surface_dice(pred, targ, spacing_mm=spacing, tolerance_mm=t, empty=1.) for t in (0, .5, 1, 2, 4, 100)]
    assert values==sorted(values) and values[-1]==1 and values[0]<1
    assert surface_dice(targ, targ, spacing_mm=spacing, tolerance_mm=0, empty=nan)==1

def test_distances_of_empty_masks(recwarn):
    some, none = np.zeros((3,4,4), bool), np.zeros((3,4,4), bool); some[1,1,1] = True
    at = dict(spacing_mm=(5,1,1))
    for empty in (0., 7.): assert hd95_mm(none, none, **at, empty=empty)==empty
    assert math.isnan(hd95_mm(none, none, **at, empty=nan))
    assert surface_dice(none, none, **at, tolerance_mm=1, empty=.5)==.5
    for p,t in ((some, none), (none, some)):
        assert hd95_mm(p, t, **at, empty=0.)==inf and surface_dice(p, t, **at, tolerance_mm=1, empty=1.)==0
    assert hd95_mm(some, some, **at, empty=nan)==0
    assert not recwarn.list

def test_distance_arguments_are_required_and_checked():
    m = np.ones((2,3), bool)
    with pytest.raises(TypeError, match='spacing_mm'): hd95_mm(m, m, empty=0.)
    with pytest.raises(TypeError, match='empty'): hd95_mm(m, m, spacing_mm=(1,1))
    with pytest.raises(TypeError, match='tolerance_mm'): surface_dice(m, m, spacing_mm=(1,1), empty=0.)
    for tolerance in (-1, nan, inf):
        with pytest.raises(ConfigError, match='tolerance_mm'):
            surface_dice(m, m, spacing_mm=(1,1), tolerance_mm=tolerance, empty=0.)
    for spacing in ((1,1,1), (1,0), (1,nan), 1.):
        with pytest.raises(InputError, match='spacing_mm'): hd95_mm(m, m, spacing_mm=spacing, empty=0.)
    with pytest.raises(ShapeError):
        hd95_mm(np.ones((1,1,2,2), bool), np.ones((1,1,2,2), bool), spacing_mm=(1,1,1,1), empty=0.)

def test_without_monai_the_extra_is_named_and_the_rest_works():
    code = '''
import sys; sys.modules.update({'monai': None, 'torch': None})
import numpy as np
from neuroseg.evaluation.metrics import score_case
m = np.ones((2,3,3), bool)
print(score_case(m, m, spacing_mm=(5,1,1), empty=1., surface=False)['targ_ml'])
try: score_case(m, m, spacing_mm=(5,1,1), empty=1.)
except ImportError as e: print(type(e).__name__, e)'''
    r = subprocess.run([sys.executable, '-c', code], cwd=Path(core.__file__).parents[1], capture_output=True, text=True,
                       timeout=60)
    volume, error = r.stdout.strip().splitlines()
    assert volume=='0.09' and error.startswith('MissingExtraError') and "pip install '.[train]'" in error


# --- volume

def test_volume_errors_by_hand():
    targ = np.zeros((4,5,5), bool); targ[1:3,1:3,1:3] = True # 8 voxels
    pred = np.zeros((4,5,5), bool); pred[1:4,1:3,1:3] = True # 12
    assert volume_error_ml(pred, targ, spacing_mm=(5,1,2))==pytest.approx(4*10/1000)
    assert volume_error_ml(targ, pred, spacing_mm=(5,1,2))==pytest.approx(-4*10/1000)
    assert volume_error_rel(pred, targ, empty=0.)==.5 and volume_error_rel(targ, pred, empty=0.)==pytest.approx(-1/3)
    none = targ & False
    assert volume_error_rel(none, none, empty=0.)==0 and math.isnan(volume_error_rel(none, none, empty=nan))
    assert volume_error_rel(pred, none, empty=0.)==inf and volume_error_rel(none, targ, empty=0.)==-1


# --- rows

@pytest.mark.parametrize('empty,error', [(1., 0.), (0., inf), (nan, nan)])
def test_row_of_two_empty_masks_follows_one_rule(empty, error):
    none = np.zeros((2,3,3), bool)
    row = score_case(none, none, spacing_mm=(5,1,1), empty=empty)
    assert all(same(row[k], empty) for k in (*OVERLAPS, 'surface_dice'))
    assert all(same(row[k], error) for k in ('hd95_mm', 'volume_error_rel')) and row['volume_error_ml']==0

def test_row_refuses_a_rule_without_meaning_for_distances():
    m = np.zeros((2,3,3), bool)
    with pytest.raises(ConfigError, match='empty=0.5'): score_case(m, m, empty=.5)

def test_row_agrees_with_the_single_functions():
    for seed in range(10):
        pred, targ, spacing, tol = random_pair(seed)
        row = score_case(pred, targ, spacing_mm=spacing, empty=1., tolerance_mm=tol)
        assert all(row[k]==f(pred, targ, empty=1.) for k,f in OVERLAPS.items())
        assert (row['hd95_mm'], row['surface_dice'])==distances(pred, targ, spacing, tol) and row['tolerance_mm']==tol
        assert row['volume_error_ml']==pytest.approx(volume_error_ml(pred, targ, spacing_mm=spacing))
        assert (row['pred_px'], row['targ_px'])==(pred.sum(), targ.sum())
        assert row['tp']+row['fp']+row['fn']+row['tn']==pred.size

def test_row_without_spacing_has_no_units():
    pred, targ, *_ = random_pair(0)
    assert not [k for k in score_case(pred, targ, empty=1.) if k.endswith(('_mm','_ml')) or k=='surface_dice']

def test_row_of_a_slice_has_distances_and_no_volume():
    pred, targ, spacing, _ = random_pair(0, 2)
    row = score_case(pred, targ, spacing_mm=spacing, empty=1.)
    assert 'hd95_mm' in row and 'pred_ml' not in row

def test_rows_are_plain_numbers():
    pred, targ, spacing, _ = random_pair(0)
    assert {type(v) for v in score_case(pred, targ, spacing_mm=spacing, empty=1.).values()}<={int, float}

def test_slices_are_slices():
    pred, targ, *_ = random_pair(1)
    pred[0] = targ[0] = False
    rows = score_slices(pred, targ, empty=nan)
    assert [r['slice'] for r in rows]==list(range(len(pred))) and math.isnan(rows[0]['dice'])
    assert all(r['dice']==dice(p, t, empty=nan) for r,p,t in list(zip(rows, pred, targ))[1:])
    with pytest.raises(ShapeError): score_slices(pred[0], targ[0], empty=1.)

def test_pooled_is_one_big_case_however_it_is_cut():
    pred, targ, *_ = random_pair(2)
    whole = score_case(pred, targ, empty=1.)
    for cases in (score_slices(pred, targ, empty=nan), [confusion(p, t) for p,t in zip(pred, targ)], [whole],
                  [{k: str(v) for k,v in r.items()} for r in score_slices(pred, targ, empty=1.)]): # as read from a csv
        together = pooled(cases, empty=1.)
        assert together['n']==len(cases) and all(together[k]==whole[k] for k in (*OVERLAPS, 'tp', 'fp', 'fn', 'tn'))

def test_pooled_nothing():
    assert math.isnan(pooled([], empty=nan)['dice']) and pooled([Confusion(0,0,0,9)]*3, empty=1.)['dice']==1


# --- the thesis' Dice

def test_batch_soft_dice_by_hand():
    p, y = np.array([[.2,.8],[.5,0]]), np.array([[0,1],[1,0]])
    assert batch_soft_dice(p, y)==pytest.approx((2*1.3+1)/(2+1.5+1))
    assert batch_soft_dice(p, y, smooth=0)==pytest.approx(2.6/3.5)
    assert batch_soft_dice(p*0, y)==pytest.approx(1/3) and batch_soft_dice(p*0, y*0)==1

def test_batch_soft_dice_of_hard_masks_is_dice():
    for seed in range(50):
        pred, targ = any_pair(seed)
        if pred.any() or targ.any():
            assert batch_soft_dice(pred, targ, smooth=0)==pytest.approx(dice(pred, targ, empty=1.))

def test_batch_soft_dice_does_not_lose_pixels_to_float32():
    p = np.full((64,256,256), .1, np.float32)
    assert batch_soft_dice(p, np.ones_like(p))==pytest.approx((2*.1*p.size+1)/(1.1*p.size+1), rel=1e-6)

@pytest.mark.parametrize('bad', [np.array([-.1,.5]), np.array([.5,1.1]), np.array([nan,.5])])
def test_batch_soft_dice_refuses_logits(bad):
    with pytest.raises(InputError, match='between 0 and 1'): batch_soft_dice(bad, np.array([0,1]))
    with pytest.raises(InputError, match='between 0 and 1'): batch_soft_dice(np.array([0,1]), bad)

def test_thesis_dice_is_a_plain_mean_over_uneven_batches():
    rng = np.random.default_rng(0)
    prob, targ = rng.random((786,4,4)), rng.random((786,4,4))>.7
    dices, sizes = thesis_batches(prob, targ)
    assert sizes.tolist()==[32]*24+[18] # the thesis' 786 slices
    assert dices[-1]==batch_soft_dice(prob[768:], targ[768:])
    assert thesis_dice(prob, targ)==pytest.approx(statistics.fmean(dices))
    assert thesis_dice(prob, targ)!=pytest.approx(np.average(dices, weights=sizes), abs=1e-7)
    assert thesis_dice(prob, targ, batch_size=786)==thesis_dice(prob, targ, batch_size=10_000)==batch_soft_dice(prob,
                                                                                                                targ)

def test_thesis_dice_refuses_nothing_and_mismatch():
    with pytest.raises(ShapeError): thesis_dice(np.zeros((0,4)), np.zeros((0,4)))
    with pytest.raises(ShapeError): thesis_dice(np.zeros((3,4)), np.zeros((2,4)))
    with pytest.raises(ShapeError): batch_soft_dice(np.zeros((2,1,4)), np.zeros((2,4)))

def test_keras_numbers_by_hand():
    shown = keras_evaluate([.5, 1.], [3, 1])
    assert shown==pytest.approx(dict(dice=.75, loss=.375, bar_dice=(.5+.75+.75)/3, bar_loss=(.5+.375+.375)/3))
    assert keras_evaluate([.8], [5])==pytest.approx(dict(dice=.8, loss=.2, bar_dice=.8, bar_loss=.2))

def test_keras_numbers_explain_the_thesis_fine_tuning():
    "Returned Dice 0.8352 and loss 0.1501 fix the Dice of the batches of 32 and 8; the progress bar's 0.8434 follows."
    first = ((1-.1501) - .2*2*.8352)/(.8-.2)
    shown = keras_evaluate([first, 2*.8352-first], [32, 8])
    assert round(shown['dice'], 4)==.8352 and round(shown['loss'], 4)==.1501 and round(shown['bar_dice'], 4)==.8434


# --- intervals

def test_the_mean_of_normal_values_has_the_interval_of_student():
    values = np.random.default_rng(1).normal(.8, .1, 400)
    for level in (.95, .5):
        expected = stats.t.interval(level, 399, values.mean(), stats.sem(values))
        width = expected[1]-expected[0]
        assert mean_ci(values, level=level)==pytest.approx(expected, abs=.05*width)

def test_the_studentised_interval_is_scipy_s_of_each_resample():
    "The same resamples, their t computed one by one."
    values, rng = np.random.default_rng(2).beta(8, 2, 12), np.random.default_rng(0)
    draws = values[rng.integers(12, size=(500, 12))]
    t = [(d.mean()-values.mean())/stats.sem(d) for d in draws]
    low, high = np.quantile(t, [.025, .975], method='inverted_cdf')
    expected = values.mean()-high*stats.sem(values), values.mean()-low*stats.sem(values)
    assert mean_ci(values, n_boot=500)==pytest.approx(expected)

def test_the_interval_of_a_ratio_is_scipy_s():
    rng = np.random.default_rng(3)
    true = rng.lognormal(0, 1, 30); pred = true*rng.lognormal(.1, .3, 30)
    def ratio(v, axis): return v[..., 0].sum(axis)/v[..., 1].sum(axis)
    theirs = stats.bootstrap((pred, true), lambda a, b, axis: a.sum(axis)/b.sum(axis), paired=True, method='BCa',
                             n_resamples=20_000, rng=rng).confidence_interval
    assert bootstrap_ci(np.stack([pred, true], 1), ratio, n_boot=20_000)==pytest.approx(tuple(theirs), abs=.004)

def test_the_ratio_of_sums_is_covered_more_often_than_by_the_bca_bootstrap():
    rng = np.random.default_rng(4)
    true = rng.lognormal(0, 1, 300); px = np.stack([true*rng.lognormal(.1, .4, 300), true], 1)
    def ratio(v, axis): return v[..., 0].sum(axis)/v[..., 1].sum(axis)
    ours, bca = (simulated_coverage(px, f, ratio(px, 0), n=10, n_samples=300)
                 for f in (lambda v: ratio_ci(*v.T, n_boot=400), lambda v: bootstrap_ci(v, ratio, n_boot=400)))
    assert ours['coverage']>.87 and ours['coverage']>bca['coverage']

SKEWED = 1-np.random.default_rng(5).gamma(.7, .2, 400).clip(0, 1) # Dice-like: a few far below the many

@pytest.mark.parametrize('n,least', [(10, .87), (18, .89), (88, .92)])
def test_the_mean_is_covered_more_often_than_by_percentiles(n, least):
    def percentile(v): return bootstrap_percentiles(v)
    def studentised(v): return mean_ci(v, n_boot=400, within=(0,1))
    plain, better = (simulated_coverage(SKEWED, f, SKEWED.mean(), n=n, n_samples=400)
                     for f in (percentile, studentised))
    assert better['coverage']>least and better['coverage']>=plain['coverage'] and better['too_high']<plain['too_high']

def bootstrap_percentiles(v):
    means = v[np.random.default_rng(0).integers(len(v), size=(400, len(v)))].mean(1)
    return np.quantile(means, [.025, .975])

@pytest.mark.parametrize('n', [6, 10, 18, 88])
def test_the_median_is_covered_as_often_as_it_says(n):
    found = simulated_coverage(SKEWED, median_ci, np.median(SKEWED), n=n, n_samples=2000)
    assert .93<found['coverage']<.975

@pytest.mark.parametrize('n', [5, 6, 9, 20, 101])
def test_order_statistics_hold_at_least_their_probability(n):
    "The pair around the interpolated ends covers 95 %, the next inner pair less; scipy's binomial."
    lo, hi = median_ci(np.arange(1., n+1))
    outer = int(np.floor(lo))
    assert lo+hi==pytest.approx(n+1)
    chance = 1-2*stats.binom.cdf(outer-1, n, .5), 1-2*stats.binom.cdf(outer, n, .5)
    assert chance[1]<.95<=chance[0] or n==5 and (lo, hi)==(1, 5)

def test_intervals_are_deterministic_and_seeded():
    values = np.random.default_rng(3).random(30)
    state = np.random.get_state()[1].copy()
    assert mean_ci(values)==mean_ci(values)!=mean_ci(values, seed=1)
    assert bootstrap_ci(values, np.mean)==bootstrap_ci(values, np.mean)!=bootstrap_ci(values, np.mean, seed=1)
    assert (np.random.get_state()[1]==state).all() # the global generator is left alone

def test_intervals_move_with_the_data():
    values = np.random.default_rng(4).random(25)
    for f in (mean_ci, median_ci, partial(bootstrap_ci, stat=np.mean)):
        lo, hi = f(values)
        assert f(values+3)==pytest.approx((lo+3, hi+3)) and f(2*values)==pytest.approx((2*lo, 2*hi)) and lo<=hi

def test_few_patients_give_the_whole_range():
    for n in range(1, MIN_VALUES):
        for f in (mean_ci, median_ci, partial(bootstrap_ci, stat=np.mean)):
            assert f([.7]*n, within=(0,1))==(0,1) and f([.7]*n)==(-inf,inf)
    assert mean_ci([.7]*9)==pytest.approx((.7,.7)) and median_ci([.7]*9)==(.7,.7)

def test_ends_stay_in_the_range():
    values = [.2, .99, .99, .99, .99, .98, 1.]
    lo, hi = mean_ci(values)
    assert (lo<0 or hi>1) and mean_ci(values, within=(0,1))==(max(lo, 0), min(hi, 1))

def test_resamples_bound_their_memory_and_are_all_drawn():
    drawn = []
    def stat(v, axis): drawn.append(v.shape); return v.mean(axis)
    _resampled(np.zeros(500_000), stat, n_boot=10, seed=0)
    assert sum(s[0] for s in drawn)==10 and max(s[0]*s[1] for s in drawn)<=2_000_000

def test_intervals_with_a_patient_at_infinity(recwarn):
    values = [1.,2,3,4,5,6,7,8,9,inf]
    assert all(map(math.isnan, mean_ci(values)))
    lo, hi = median_ci(values)
    assert 1<=lo<=hi<inf and not recwarn.list

@pytest.mark.parametrize('values,level,error', [([], .95, ShapeError), ([[1,2]], .95, ShapeError),
                                                ([1,nan], .95, InputError), ([1,2], 95, ConfigError),
                                                ([1,2], 0, ConfigError)])
def test_intervals_refuse(values, level, error):
    for f in (mean_ci, median_ci):
        with pytest.raises(error): f(values, level=level)

def test_paired_is_the_interval_of_differences():
    rng = np.random.default_rng(5); a = rng.random(40); b = a - .02 + rng.normal(0, .005, 40)
    assert paired_ci(a, b)==mean_ci(a-b)
    assert paired_ci(b, a)==pytest.approx(tuple(-x for x in paired_ci(a, b)[::-1]), abs=2e-4)
    assert paired_ci(a, b)[0]>0 and paired_ci(a+.1, a)==pytest.approx((.1,.1))
    assert paired_ci(a, b, level=.5, seed=3, n_boot=100)==mean_ci(a-b, level=.5, seed=3, n_boot=100)
    with pytest.raises(ShapeError): paired_ci(a, b[1:])
    with pytest.raises(InputError): paired_ci([inf], [inf])


# --- summary

def rows_of(values, **more): return [dict(patient=f'PH_{i:04}', dice=v, **more) for i,v in enumerate(values)]

def test_summary_agrees_with_python_statistics():
    values = np.random.default_rng(6).random(17).tolist()
    s = summarise(rows_of(values), empty=1.)
    d = s['scores']['dice']
    assert s['n']==d['n']==17 and s['empty']==1 and d['n_nan']==d['n_inf']==0
    assert d['mean']==pytest.approx(statistics.fmean(values))
    assert d['median']==statistics.median(values)
    assert d['sd']==pytest.approx(statistics.stdev(values))
    assert [d['q1'], d['median'], d['q3']]==pytest.approx(statistics.quantiles(values, method='inclusive'))
    assert (d['min'], d['max'])==(min(values), max(values))
    assert d['mean_ci95']==mean_ci(values, within=(0,1)) and d['median_ci95']==median_ci(values)

def test_summary_states_its_conditions():
    for empty,words in ((1., 'count 1'), (0., 'count 0'), (nan, 'are left out')):
        s = summarise(rows_of([.5,.7]), empty=empty, n_boot=100, seed=9)
        text = s._repr_markdown_()
        assert all(w in text for w in (f'two empty masks {words}', '2 patients', '100 resamples', 'seed 9')), text

def test_summary_does_not_depend_on_the_order_of_what_it_can_not():
    values = np.random.default_rng(7).random(9)
    a, b = (summarise(rows_of(v), empty=1.)['scores']['dice'] for v in (values, values[::-1]))
    for k in ('mean','median','sd','q1','q3','min','max'): assert a[k]==pytest.approx(b[k])

def test_summary_counts_nan_and_infinity(recwarn):
    s = summarise([dict(hd95_mm=v) for v in (1., 2., nan, inf, None, '', 'inf', '3')], keys=('hd95_mm',), empty=nan)
    d = s['scores']['hd95_mm']
    assert (s['n'], d['n'], d['n_nan'], d['n_inf'])==(8, 5, 3, 2)
    assert d['median']==3 and d['mean']==d['max']==d['q3']==inf and math.isnan(d['sd']) and d['min']==1
    assert 'inf' in s._repr_markdown_() and not recwarn.list

def test_summary_of_a_column_without_values_and_of_one_patient():
    s = summarise([dict(dice=nan, iou=.5)], keys=('dice','iou'), empty=nan)
    assert s['scores']['dice']['n']==0
    assert s['scores']['iou']['mean_ci95']==(0,1) # one patient tells nothing
    assert math.isnan(s['scores']['iou']['sd'])
    assert s._repr_markdown_().count('\n|')==3 # head, rule... and both rows

def test_summary_survives_csv_and_json(tmp_path):
    rows = [dict(patient=f'PH_{i}', **score_case(*random_pair(i)[:2], spacing_mm=(5,1,1), empty=1.)) for i in range(9)]
    with open(tmp_path/'scores.csv', 'w', newline='') as f:
        w = csv.DictWriter(f, rows[0]); w.writeheader(); w.writerows(rows)
    back = list(csv.DictReader(open(tmp_path/'scores.csv')))
    keys = ('dice','hd95_mm','volume_error_ml')
    s = summarise(rows, keys=keys, empty=1.)
    assert summarise(back, keys=keys, empty=1.)==s
    write_json(tmp_path/'summary.json', s)
    assert read_json(tmp_path/'summary.json')==json.loads(json.dumps(s))

@pytest.mark.parametrize('scored,said,fine',
                         [(1.,1.,True), (nan,nan,True), (0.,0.,True), (1.,nan,False), (nan,1.,False), (0.,1.,False)])
def test_summary_refuses_a_rule_by_which_rows_were_not_scored(scored, said, fine):
    none, some = np.zeros((2,3,3), bool), np.ones((2,3,3), bool)
    rows = [score_case(none, none, empty=scored), score_case(some, some, empty=scored)]
    for key in OVERLAPS:
        if fine: assert summarise(rows, keys=(key,), empty=said)['n_both_empty']==1
        else:
            with pytest.raises(ConfigError, match='one rule'): summarise(rows, keys=(key,), empty=said)

def test_summary_refuses():
    with pytest.raises(TypeError, match='empty'): summarise(rows_of([.5]))
    with pytest.raises(InputError, match='no rows'): summarise([], empty=1.)
    with pytest.raises(InputError, match='`iou` is missing'): summarise(rows_of([.5]), keys=('dice','iou'), empty=1.)
    with pytest.raises(InputError, match='more than one row'): summarise(rows_of([.5])*2, empty=1.)

def test_blind_prediction_scores_the_share_of_empty_slices():
    "The lesson that gave this module its rule: nothing predicted, 13 of 20 slices empty."
    targ = np.zeros((20,6,6), bool); targ[:7,2:4,2:4] = True
    rows = score_slices(targ & False, targ, empty=1.)
    assert np.mean([r['dice'] for r in rows])==.65
    assert pooled(rows, empty=1.)['dice']==score_case(targ & False, targ, empty=1.)['dice']==0
