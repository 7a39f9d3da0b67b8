"Headers of NIfTI whose accounts of one geometry differ, and texts that must not be copied out of them."
import struct

import numpy as np
import nibabel as nib
import pytest
from scan_files import one_sentence, RNG

from neuroseg.core import InputError
from neuroseg.scans.masks import lesion_stats
from neuroseg.scans.nifti import read_mask, read_nifti, write_mask_nifti, write_prob_nifti
from neuroseg.scans.nifti_geometry import axes_spacing

AFFINE = np.diag([3, 3, 5, 1.])
VOXELS = RNG.integers(1, 500, (12, 10, 8)).astype(np.int16)


def file(path, edit=lambda img: None, at=None, size=4):
    "A volume of 3 x 3 x 5 mm whose header is edited; `at`: byte of the file that is set to 0."
    img = nib.Nifti1Image(VOXELS, AFFINE)
    img.set_sform(AFFINE, 1); img.set_qform(AFFINE, 1)
    edit(img)
    raw = bytearray(img.to_bytes())
    if at is not None: raw[at:at+size] = bytes(size)
    path.write_bytes(raw)
    return path


def volume_ml(scan): return lesion_stats(np.ones(scan.shape, bool), scan.spacing_mm)['volume_ml']


def only_sform(affine):
    def edit(img): img.set_sform(affine, 1); img.header['qform_code'] = 0
    return edit


@pytest.mark.parametrize('affine', [np.diag([0, 0, 0, 1.]), np.diag([0, 1, 1, 1.]), np.array(
    [[3, 3, 0, 0], [3, 3, 0, 0], [0, 0, 5, 0], [0, 0, 0, 1.]])])
def test_an_sform_without_volume_is_refused(tmp_path, affine):
    with pytest.raises(InputError) as e: read_nifti(file(tmp_path/'a_flair.nii', only_sform(affine)))
    one_sentence(e, '`a_flair.nii`', 'without volume')


@pytest.mark.parametrize('affine', [np.eye(4), np.diag([3, 3, 5.1, 1]), np.diag([5, 3, 3, 1.])])
def test_an_sform_of_other_sizes_than_pixdim_is_refused_with_both(tmp_path, affine):
    def edit(img): only_sform(affine)(img); img.header['pixdim'][1:4] = 3, 3, 5
    with pytest.raises(InputError) as e: read_nifti(file(tmp_path/'a_flair.nii', edit))
    one_sentence(e, ' x '.join(f'{s:g}' for s in np.diag(affine)[:3]), '3 x 3 x 5')


@pytest.mark.parametrize('codes', [(0, 1), (0, 0)])
def test_a_size_of_zero_is_no_size(tmp_path, codes):
    path = file(tmp_path/'a_flair.nii', at=76+12) # z
    raw = bytearray(path.read_bytes()); struct.pack_into('<hh', raw, 252, codes[1], codes[0]); path.write_bytes(raw)
    scan = read_nifti(path)
    assert scan.spacing_mm is None and '3 x 3 x 0 mm' in scan.warnings[0]
    assert volume_ml(scan) is None


@pytest.mark.parametrize('pixdim', [(3, 3, 5), (3, 3, 34**.5)]) # the distance of the slices, or the edge of a voxel
def test_a_sheared_sform_has_the_volume_of_its_determinant(tmp_path, pixdim):
    sheared = AFFINE.copy(); sheared[1, 2] = 3
    def edit(img): only_sform(sheared)(img); img.header['pixdim'][1:4] = pixdim
    plain, scan = read_nifti(file(tmp_path/'b_flair.nii')), read_nifti(file(tmp_path/'a_flair.nii', edit))
    assert volume_ml(scan) == pytest.approx(volume_ml(plain)) == pytest.approx(VOXELS.size*45/1000)
    warn, = scan.warnings
    assert warn.code == 'sheared' and warn.values['degrees'] == pytest.approx(31, abs=.1)


@pytest.mark.parametrize('turn', [np.eye(4), np.diag([-1, 1, 1, 1.]), np.array(
    [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.]]), nib.affines.from_matvec(np.eye(3), [9, -4, 2])])
def test_the_volume_is_the_determinant(turn):
    for shear in (0, 2): # also across two axes
        a = turn @ np.array([[.9, shear/3, 0, 1], [0, .8, shear, 2], [0, 0, 5, 3], [0, 0, 0, 1.]])
        assert axes_spacing(a).prod() == pytest.approx(abs(np.linalg.det(a[:3, :3])), rel=1e-9)


@pytest.mark.parametrize('qform,code', [(np.diag([-1, 1, 1, 1.])@AFFINE, 'sides_disagree'),
                                        (nib.affines.from_matvec(AFFINE[:3, :3], [20, 0, 0]), 'places_disagree')])
def test_a_qform_in_another_place_is_told_with_the_distance(tmp_path, qform, code):
    def edit(img): img.set_qform(qform, 1)
    warn, = read_nifti(file(tmp_path/'a_flair.nii', edit)).warnings
    assert warn.code == code and warn.values['apart_mm'] > 15
    assert ('left and right' in warn) == (code == 'sides_disagree')


def test_a_sound_header_raises_no_doubt(tmp_path):
    assert read_nifti(file(tmp_path/'a_flair.nii')).warnings == []
    assert read_nifti(file(tmp_path/'b_flair.nii', lambda i: i.set_qform(None, 0))).warnings == []


@pytest.mark.parametrize('cls', [nib.Nifti1Image, nib.Nifti2Image])
def test_no_text_of_a_header_is_copied(tmp_path, cls):
    img = cls(VOXELS, AFFINE)
    for field in ('descrip', 'aux_file', 'intent_name', 'db_name', 'data_type'):
        if field in img.header: img.header[field] = b'DOE^JOHN'
    img.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'DOE^JOHN 1961-02-03'))
    img.to_filename(tmp_path/'a_flair.nii')
    assert b'DOE' in (tmp_path/'a_flair.nii').read_bytes()
    scan = read_nifti(tmp_path/'a_flair.nii')
    write_mask_nifti(tmp_path/'m.nii', scan.data[0] > 50, scan)
    write_prob_nifti(tmp_path/'p.nii', scan.data[0]/500, scan)
    for f in ('m.nii', 'p.nii'): assert b'DOE' not in (tmp_path/f).read_bytes()


def test_a_sheared_sform_of_another_size_is_refused(tmp_path):
    sheared = AFFINE.copy(); sheared[1, 2] = 3
    def edit(img): only_sform(sheared)(img); img.header['pixdim'][1:4] = 3, 3, 7
    with pytest.raises(InputError, match='by its pixdim'): read_nifti(file(tmp_path/'a_flair.nii', edit))


def test_a_pixdim_of_zero_beside_an_sform(tmp_path):
    scan = read_nifti(file(tmp_path/'a_flair.nii', only_sform(AFFINE), at=76+12))
    assert scan.spacing_mm == (5, 3, 3)
    write_mask_nifti(tmp_path/'m.nii', scan.data[0] > 50, scan)
    assert read_mask(tmp_path/'m.nii').any() and nib.load(tmp_path/'m.nii').header.get_zooms() == (3, 3, 5)
