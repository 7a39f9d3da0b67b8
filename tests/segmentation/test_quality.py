"The expected Dice, and warnings about odd scans and odd masks."
import dataclasses

import numpy as np
import pytest
from bright_model import head, overlap, says

from neuroseg.scans.stacks import Scan
from neuroseg.segmentation.quality import expected_dice, mask_warnings, scan_warnings


def test_expected_dice_is_the_mean_dice_of_draws():
    rng = np.random.default_rng(3)
    for sharp in (.2, 1., 4.):
        p = rng.beta(sharp*.4, sharp, 3000); m = p > .5
        draws = rng.random((600, p.size)) < p
        assert expected_dice(p, m) == pytest.approx(np.mean([overlap(t, m) for t in draws]), abs=.005)


def test_expected_dice_of_nothing_is_nan():
    assert np.isnan(expected_dice(np.full((2, 2), .2), np.zeros((2, 2), bool)))


@pytest.mark.parametrize('change,text', [
    (lambda v: v[:1], 'a single slice'),
    (lambda v: v[:, 30:60, 25:55], 'no dark background'),
    (lambda v: (v > 50).astype(np.float32), 'fewer than 16 grey levels'),
    (lambda v: v*0 + 90*((np.indices(v.shape)[1] > 89) & (np.indices(v.shape)[2] < 16)),
     'nearly all of the image is background'),
], ids=['slice', 'cropped', 'mask', 'specks'])
def test_odd_input_is_remarked_on(change, text):
    v, _ = head()
    scan = Scan(v[None], ('flair',), (5., 1., 1.), source='x_flair.nii.gz')
    assert not any(says(scan_warnings(scan), t) for t in ('single', 'background', 'grey levels'))
    assert says(scan_warnings(dataclasses.replace(scan, data=change(v)[None])), text)


def test_what_is_missing_is_said():
    v, _ = head()
    warn = scan_warnings(Scan(v[None], ('flair',), source='scan.nii.gz', warnings=['slice number 3 occurs twice']))
    for text in ('slice number 3 occurs twice', 'missing sequences (pre, post)', 'taken to be FLAIR',
                 'no volume in mL'):
        assert says(warn, text)
    whole = Scan(np.stack([v]*3), ('pre', 'flair', 'post'), (5., 1., 1.))
    assert scan_warnings(whole) == []


def test_an_implausible_mask_is_said():
    v, lesion = head()
    scan = Scan(v[None], ('flair',))
    assert mask_warnings(lesion, scan, .9) == []
    assert says(mask_warnings(lesion, scan, .3), 'low confidence (0.30)')
    assert says(mask_warnings(v > 50, scan, .9), 'of the head')
    assert says(mask_warnings(np.zeros_like(lesion), scan, np.nan), 'no lesion found')
