"Masks return to the grid of their scan, in whatever orientation the scan is stored."
import itertools

import nibabel as nib
import numpy as np
import pytest
from bright_model import bright, head, overlap, write_model, write_nifti

from neuroseg.scans.stacks import Scan
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.preparation import Prep, prepare, prepare_mask, restore
from neuroseg.segmentation.result import Segmenter


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


@pytest.fixture(scope='module')
def segmenter(card_path): return Segmenter(card_path)


ORIENTATIONS = [[(p, s) for p, s in zip(perm, signs)] for perm in itertools.permutations(range(3))
                for signs in itertools.product((1, -1), repeat=3)]


def turned(zyx, affine, ornt):
    "The same scan stored in another order: array `(Z,Y,X)` and its affine."
    img = nib.Nifti1Image(zyx.transpose(2, 1, 0), affine).as_reoriented(np.array(ornt, float))
    return np.ascontiguousarray(np.asarray(img.dataobj).transpose(2, 1, 0)), img.affine


@pytest.mark.parametrize('ornt', ORIENTATIONS, ids=str)
def test_whatever_way_a_volume_is_stored_the_network_sees_the_same(ornt):
    "All 48 orientations: the prepared planes are equal to the bit, and the mask comes back to the voxel it left."
    v, lesion = head((7, 30, 24))
    affine = np.diag([-2., -1.5, 6., 1.])
    affine[:3, 3] = 10, -20, 30 # left, posterior, superior: as training slices lie
    def of(a, aff): return Scan(a[None].astype(np.float32), ('flair',), tuple(nib.affines.voxel_sizes(aff)[::-1]), aff)
    prep = Prep(size_px=32)
    plain = prepare(of(v, affine), prep)
    v2, affine2 = turned(v, affine, ornt)
    lesion2 = turned(lesion.astype(np.uint8), affine, ornt)[0] > 0
    p = prepare(of(v2, affine2), prep)
    assert np.array_equal(p.x, plain.x)
    assert p.grid.step == plain.grid.step == 1
    assert np.array_equal(prepare_mask(lesion2, p.grid), prepare_mask(lesion, plain.grid))
    assert np.array_equal(plain.grid.axes, (0, 1, 2)) and plain.grid.flips == (False,)*3
    back = restore(prepare_mask(lesion2, p.grid)/255, p.grid)
    assert back.shape == v2.shape
    assert overlap(back > .5, lesion2) > .9
    assert np.array_equal(back, turned(restore(prepare_mask(lesion, plain.grid)/255, plain.grid), affine, ornt)[0])


def test_an_oblique_volume_comes_back_to_its_own_grid(tmp_path, segmenter):
    v, lesion = head()
    c, s = np.cos(.3), np.sin(.3)
    affine = np.array([[-c, s, 0, 50], [-s, -c, 0, 60], [0, 0, 5, -70], [0, 0, 0, 1.]]) @ np.diag([.9, .9, 1, 1])
    path = write_nifti(tmp_path/'oblique_flair.nii.gz', v, affine)
    result = segmenter.segment(path)
    assert overlap(result.mask, lesion) > .9
    result.save(tmp_path/'out')
    a, b = nib.load(path), nib.load(tmp_path/'out'/'mask.nii.gz')
    assert np.array_equal(a.affine, b.affine) and a.shape == b.shape
    assert np.array_equal(read_mask(tmp_path/'out'/'mask.nii.gz'), result.mask)


@pytest.mark.parametrize('shape', [(1, 40, 40), (2, 33, 71), (5, 120, 31), (3, 200, 200)])
def test_restore_undoes_prepare_for_any_shape(shape):
    v, lesion = head(shape)
    p = prepare(Scan(v[None], ('flair',)), Prep(size_px=128))
    assert overlap(restore(prepare_mask(lesion, p.grid)/255, p.grid) > .5, lesion) > .9


def test_nothing_is_found_outside_the_scan(segmenter):
    "A head that touches the border: the box reaches beyond the image, the mask must not."
    v, lesion = head((4, 60, 60))
    v, lesion = v[:, 8:, :44], lesion[:, 8:, :44]
    result = segmenter.segment(Scan(v[None], ('flair',)))
    assert result.mask.shape == v.shape and overlap(result.mask, lesion) > .85


def test_volume_in_ml_follows_the_spacing(tmp_path, segmenter):
    v, lesion = head()
    result = segmenter.segment(write_nifti(tmp_path/'a_flair.nii.gz', v))
    assert result.volume_ml == pytest.approx(result.mask.sum()*.9*.9*5/1000)
    assert result.volume_ml == pytest.approx(lesion.sum()*.9*.9*5/1000, rel=.1)


def test_thin_slices_look_like_thick_ones():
    "Where slices are 1 mm apart the neighbours are taken 5 mm away."
    v, _ = head((20, 40, 40))
    assert prepare(Scan(v[None], ('flair',), (1., 1., 1.), np.diag([-1, -1, 1, 1.])), Prep(size_px=32)).grid.step == 5
