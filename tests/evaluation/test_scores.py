"Scores on the grid of the scan, tables that survive the disk, summaries that state their conditions."
import json, math

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from neuroseg.cohorts.cases import find_cases
from neuroseg.core import ConfigError, DataError, InputError, jsonable
from neuroseg.cohorts.tables import read_rows, write_rows
from neuroseg.evaluation.scores import compare, evaluate_case, evaluate_cases, flair_alone, summary_of
from neuroseg.segmentation.network import prob_volume
from neuroseg.scans.stacks import Scan
from neuroseg.evaluation.metrics import score_case
from neuroseg.scans.preparation import Prep


def patient(n, shape=(4, 48, 40)):
    "Three sequences and a mask; the lesion is bright in FLAIR only."
    z, y, x = np.indices(shape)
    skull = ((y-24)/20)**2 + ((x-20)/17)**2 < 1
    lesion = ((y-20-n)/6)**2 + ((x-22)/5)**2 < 1
    lesion &= z < 3
    tissue = 100.*skull + np.random.default_rng(n).normal(0, 3, (3, *shape))*skull
    tissue[1] += 120*lesion
    return tissue.clip(0, 255).astype(np.uint8), lesion


@pytest.fixture(scope='module')
def lgg(tmp_path_factory):
    root = tmp_path_factory.mktemp('lgg')/'kaggle_3m'
    for n in range(3):
        name = f'TCGA_PH_000{n}_20000101'
        (root/name).mkdir(parents=True)
        image, mask = patient(n)
        for k in range(image.shape[1]):
            Image.fromarray(np.moveaxis(image[:, k], 0, -1)).save(root/name/f'{name}_{k+1}.tif')
            Image.fromarray(mask[k].astype(np.uint8)*255).save(root/name/f'{name}_{k+1}_mask.tif')
    return find_cases(root)


class Bright:
    threshold = .5
    seen = ()
    def prob(self, scan, *, flips=True):
        self.seen += ((scan.sequences, flips),)
        return prob_volume(lambda x: 1/(1+np.exp(-30*(x[:, 1]-.6))), scan, Prep(size_px=64), flips=flips)


def test_a_row_is_the_score_on_the_original_grid(lgg):
    row = evaluate_case(lgg[1], Bright(), empty=1.)
    image, mask = patient(1)
    scan = Scan(image.astype(np.float32), ('pre', 'flair', 'post'))
    expected = score_case(Bright().prob(scan) > .5, mask, empty=1.)
    assert {k: row[k] for k in expected} == expected
    assert row['dice'] > .85 and row['targ_px'] == mask.sum()
    assert (row['patient'], row['institution'], row['n_slices'], row['sequences']) == ('TCGA_PH_0001', 'PH', 4,
                                                                                       'pre+flair+post')
    assert 0 < row['confidence'] <= 1 and 'volume_error_ml' not in row


def test_flair_only_and_flips_reach_the_segmenter(lgg):
    s = Bright()
    evaluate_cases(lgg[:1], s, empty=1., flair_only=True, flips=False, progress=False)
    evaluate_cases(lgg[:1], s, empty=1., progress=False)
    assert s.seen == ((('flair',), False), (('pre', 'flair', 'post'), True))


def test_the_threshold_can_be_set(lgg):
    low, own, high = (evaluate_case(lgg[0], Bright(), empty=1., threshold=t)['pred_px'] for t in (.05, None, .999))
    assert low > own > high


def test_millimetres_where_the_file_tells_them(tmp_path):
    image, mask = patient(0)
    for name, v in (('p1_flair', image[1]), ('p1_mask', mask.astype(np.uint8))):
        img = nib.Nifti1Image(v.transpose(2, 1, 0), np.diag([-.9, -.9, 5, 1.])); img.header.set_xyzt_units('mm')
        nib.save(img, tmp_path/f'{name}.nii.gz')
    case, = find_cases(tmp_path)
    row = evaluate_case(case, Bright(), empty=1.)
    assert row['targ_ml'] == pytest.approx(mask.sum()*.9*.9*5/1000)
    assert row['hd95_mm'] < 5 and row['surface_dice'] > .9
    assert 'hd95_mm' not in evaluate_case(case, Bright(), empty=1., surface=False)


def test_a_missed_and_an_empty_patient(lgg, tmp_path):
    class Nothing(Bright):
        def prob(self, scan, *, flips=True): return np.zeros(scan.shape, np.float32)
    row = evaluate_case(lgg[0], Nothing(), empty=1.)
    assert row['dice'] == 0 and math.isnan(row['confidence'])


def test_a_case_that_cannot_be_read_stops_the_evaluation(tmp_path):
    folder = tmp_path/'kaggle_3m'/'TCGA_PH_0009_20000101'; folder.mkdir(parents=True)
    Image.fromarray(np.moveaxis(patient(0)[0][:, 0], 0, -1)).save(folder/f'{folder.name}_1.tif')
    cases = find_cases(tmp_path/'kaggle_3m')
    with pytest.raises(DataError, match='no mask'): evaluate_cases(cases, Bright(), empty=1., progress=False)
    with pytest.raises(ConfigError, match='no case'): evaluate_cases([], Bright(), empty=1.)


def test_flair_alone_shares_and_does_not_change(lgg):
    scan = Scan(np.zeros((2, 1, 4, 4), np.float32), ('flair', 'post'))
    assert flair_alone(scan).sequences == ('flair',) and scan.sequences == ('flair', 'post')
    with pytest.raises(InputError, match='no FLAIR'): flair_alone(Scan(scan.data[:1], ('post',)))


# --- Tables

def same(a, b): return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def test_a_table_comes_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    odd = [math.nan, math.inf, -math.inf, None, 0, -3, 10**12, 5e-324, 1/3, 'text, with "quotes"', 'naïve']
    rows = [dict(patient=f'{i:04}', institution='1e5', dice=float(rng.random()), value=odd[i % len(odd)])
            for i in range(40)]
    write_rows(tmp_path/'t.csv', rows)
    back = read_rows(tmp_path/'t.csv')
    assert len(back) == len(rows)
    assert all(r.keys() == b.keys() and all(same(r[k], b[k]) for k in r) for r, b in zip(rows, back))
    assert all(isinstance(b['patient'], str) and isinstance(b['institution'], str) for b in back)


def test_rows_may_have_different_columns(tmp_path):
    write_rows(tmp_path/'t.csv', [dict(patient='a', dice=.5), dict(patient='b', hd95_mm=2.)])
    assert read_rows(tmp_path/'t.csv') == [dict(patient='a', dice=.5, hd95_mm=None),
                                           dict(patient='b', dice=None, hd95_mm=2.)]


@pytest.mark.parametrize('blob,text', [(None, 'cannot be read'), (b'\xff\xfe\x00a', 'no table'),
                                       (b'a,b\n1,2,3\n', 'no table'), (b'a,b\n1\n', 'no table'),
                                       (b'a,"b\n1,2', 'no table')])
def test_what_is_no_table(tmp_path, blob, text):
    f = tmp_path/'t.csv'
    if blob is not None: f.write_bytes(blob)
    with pytest.raises(InputError, match=text): read_rows(f)


# --- Summaries

def test_a_summary_can_be_made_from_the_stored_table_alone(lgg, tmp_path):
    rows = evaluate_cases(lgg, Bright(), empty=1., progress=False)
    write_rows(tmp_path/'t.csv', rows)
    kw = dict(empty=1., split='phantoms', seeds=[0, 1])
    fresh, stored = summary_of(rows, **kw), summary_of(read_rows(tmp_path/'t.csv'), **kw)
    assert jsonable(fresh) == jsonable(stored)
    json.dumps(jsonable(fresh), allow_nan=False)
    assert fresh['scores']['dice']['mean'] == pytest.approx(np.mean([r['dice'] for r in rows]))
    assert fresh['conditions'].startswith('phantoms; seeds 0, 1; original grid. 3 patients')
    assert 'hd95_mm' not in fresh['scores'] and fresh['pooled']['n'] == 3
    assert 'phantoms' in fresh._repr_markdown_()


def test_the_rule_for_empty_masks_must_be_the_one_used(lgg):
    rows = [dict(patient='a', **score_case(np.zeros((1, 4, 4), bool), np.zeros((1, 4, 4), bool), empty=1.))]
    with pytest.raises(ConfigError, match='one rule'): summary_of(rows, empty=0., split='x', seeds=0)


def test_no_rows(): 
    with pytest.raises(InputError, match='no rows'): summary_of([], empty=1., split='x', seeds=0)


def test_comparison_is_paired_and_antisymmetric():
    rng = np.random.default_rng(0)
    hard = rng.random(30)
    a = [dict(patient=f'p{i}', dice=h) for i, h in enumerate(hard)]
    b = [dict(patient=f'p{i}', dice=h+.03+.005*rng.normal()) for i, h in enumerate(hard)]
    there, back = compare(a, b), compare(b, a)
    assert there['gain'] == pytest.approx(-back['gain']) == pytest.approx(there['mean_b']-there['mean_a'])
    lo, hi = there['gain_ci95']
    assert .02 < lo < there['gain'] < hi < .04
    assert there['n_better'] == back['n_worse'] == 30
    assert compare(a, list(reversed(b))) == there


def test_comparison_leaves_out_what_has_no_value():
    a = [dict(patient=p, dice=v) for p, v in (('a', .5), ('b', math.nan), ('c', None), ('d', .4))]
    b = [dict(patient=p, dice=v) for p, v in (('a', .5), ('b', .5), ('c', .5), ('d', .3))]
    c = compare(a, b)
    assert (c['n'], c['n_nan'], c['n_equal'], c['n_worse']) == (2, 2, 1, 1)


def test_comparison_needs_the_same_patients_once():
    a = [dict(patient='a', dice=.5)]
    with pytest.raises(InputError, match='different patients'): compare(a, [dict(patient='b', dice=.5)])
    with pytest.raises(InputError, match='more than one row'): compare(a+a, a)
