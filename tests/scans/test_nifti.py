"NIfTI volumes and masks: bad files are named, and geometry comes back bit for bit."
import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scan_files import nifti, one_sentence, RNG, save

from neuroseg.core import InputError, OutputError, ShapeError
from neuroseg.scans.nifti import read_mask, read_nifti, same_grid, write_mask_nifti, write_mask_png
from neuroseg.scans.reading import read_scan


FLIPS = [nib.affines.from_matvec(np.array(m, float), [-90, 126.5, -72]) for m in (
    [[-1, 0, 0], [0, -1, 0], [0, 0, 1]], [[0, 0, 3], [-.9, 0, 0], [0, -.9, 0]],
    [[.95, 0, .1], [0, 1.1, 0], [-.1, 0, 4.9]], [[0, -1.2, 0], [0, 0, 5], [1.2, 0, 0]])]


@pytest.mark.parametrize('affine', FLIPS)
@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
def test_geometry_survives(tmp_path, affine, ending):
    src = nifti(tmp_path/f'flair{ending}', affine=affine)
    img = nib.load(src)
    img.set_sform(affine, 3)
    img.set_qform(affine, 1); img.header['descrip'] = b'secret'; img.to_filename(tmp_path/f'a_flair{ending}')
    scan = read_nifti(tmp_path/f'a_flair{ending}')
    mask = scan.data[0] > 50
    write_mask_nifti(tmp_path/f'mask{ending}', mask, scan)
    old, new = nib.load(tmp_path/f'a_flair{ending}'), nib.load(tmp_path/f'mask{ending}')
    assert np.array_equal(new.affine, old.affine) and new.shape == old.shape and new.get_data_dtype() == np.uint8
    for key in ('sform_code', 'qform_code', 'quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x', 'pixdim', 'srow_x',
                'srow_y', 'srow_z', 'xyzt_units'):
        assert np.array_equal(new.header[key], old.header[key]), key
    assert np.array_equal(np.asarray(new.dataobj), np.asarray(old.dataobj) > 50)
    assert np.array_equal(read_mask(tmp_path/f'mask{ending}'), mask)


def test_nifti2_and_big_endian(tmp_path):
    scan = read_nifti(nifti(tmp_path/'two.nii.gz', cls=nib.Nifti2Image))
    write_mask_nifti(tmp_path/'m2.nii.gz', scan.data[0] > 9, scan)
    assert isinstance(nib.load(tmp_path/'m2.nii.gz'), nib.Nifti2Image)
    hdr = nib.Nifti1Header(endianness='>'); data = RNG.integers(0, 999, (5, 4, 3)).astype('>i2')
    nib.Nifti1Image(data, FLIPS[0], hdr).to_filename(tmp_path/'big.nii')
    scan = read_nifti(tmp_path/'big.nii')
    assert np.array_equal(scan.data[0], data.T)
    write_mask_nifti(tmp_path/'m.nii', scan.data[0] > 500, scan)
    assert np.array_equal(np.asarray(nib.load(tmp_path/'m.nii').dataobj), data > 500)
    assert np.array_equal(nib.load(tmp_path/'m.nii').affine, FLIPS[0])


def test_scaling_of_the_scan_is_not_the_masks(tmp_path):
    img = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4))
    img.header.set_slope_inter(.5, -3); img.to_filename(tmp_path/'a.nii.gz')
    scan = read_nifti(tmp_path/'a.nii.gz')
    assert np.allclose(scan.data[0], nib.load(tmp_path/'a.nii.gz').get_fdata().T)
    write_mask_nifti(tmp_path/'m.nii.gz', scan.data[0] > 0, scan)
    assert set(np.unique(nib.load(tmp_path/'m.nii.gz').get_fdata())) == {0, 1}


def test_header_extensions_are_not_copied(tmp_path):
    img = nib.Nifti1Image(np.ones((4, 3, 2), np.int16), np.eye(4))
    img.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'Name of the patient'))
    img.to_filename(tmp_path/'a.nii')
    scan = read_nifti(tmp_path/'a.nii')
    write_mask_nifti(tmp_path/'m.nii', scan.data[0] > 0, scan)
    assert b'Name of the patient' in (tmp_path/'a.nii').read_bytes()
    assert b'Name of the patient' not in (tmp_path/'m.nii').read_bytes()
    assert len(scan.header.extensions) == 1


def test_same_mask_same_bytes(tmp_path):
    scan = read_nifti(nifti(tmp_path/'a.nii.gz'))
    for n in ('m1.nii.gz', 'm2.nii.gz'): write_mask_nifti(tmp_path/n, scan.data[0] > 50, scan)
    assert (tmp_path/'m1.nii.gz').read_bytes() == (tmp_path/'m2.nii.gz').read_bytes()


def test_trailing_axis_is_dropped_and_2d_is_one_slice(tmp_path):
    assert read_nifti(nifti(tmp_path/'a.nii.gz', (5, 4, 3, 1))).data.shape == (1, 3, 4, 5)
    assert read_nifti(nifti(tmp_path/'b.nii.gz', (5, 4))).data.shape == (1, 1, 4, 5)


@pytest.mark.parametrize('shape', [(5, 4, 3, 2), (5, 4, 3, 1, 2)])
def test_4d(tmp_path, shape):
    with pytest.raises(InputError) as e: read_scan(nifti(tmp_path/'a.nii.gz', shape))
    one_sentence(e, '`a.nii.gz`', 'one 3-D file per sequence')


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_nan_voxels(tmp_path, value):
    v = np.ones((5, 4, 3), np.float32); v[1, 2, 0] = v[0, 0, 2] = value
    nib.Nifti1Image(v, np.eye(4)).to_filename(tmp_path/'a.nii.gz')
    with pytest.raises(InputError) as e: read_scan(tmp_path/'a.nii.gz')
    one_sentence(e, '`a.nii.gz` has 2 of 60 voxels')


@pytest.mark.parametrize('content',
                         [b'', b'hello', b'x'*1000, gzip.compress(b'hello', mtime=0),
                          gzip.compress(b'x'*1000, mtime=0), b'\x1f\x8b', b'\x1f\x8b'+b'x'*600])
def test_text_named_nifti(tmp_path, content):
    (tmp_path/'a.nii.gz').write_bytes(content)
    with pytest.raises(InputError) as e: read_scan(tmp_path/'a.nii.gz')
    one_sentence(e, '`a.nii.gz`')


@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
def test_truncated_nifti(tmp_path, ending):
    path = nifti(tmp_path/f'a{ending}', (20, 20, 20))
    raw = path.read_bytes()
    for keep in (100, 360, len(raw)//2, len(raw)-9):
        path.write_bytes(raw[:keep])
        with pytest.raises(InputError) as e: read_scan(path)
        one_sentence(e, f'`a{ending}`')


def test_flipped_bits_in_gzip_are_noticed(tmp_path):
    path = nifti(tmp_path/'a.nii.gz', (20, 20, 20))
    raw = bytearray(path.read_bytes()); raw[-6] ^= 1 # in the checksum
    path.write_bytes(raw)
    with pytest.raises(InputError, match='CRC'): read_scan(path)


def test_gzip_bomb_is_refused_by_its_header(tmp_path):
    hdr = nib.Nifti1Header(); hdr.set_data_shape((3000, 3000, 3000)); hdr['magic'] = b'n+1'; hdr['vox_offset'] = 352
    (tmp_path/'bomb.nii.gz').write_bytes(gzip.compress(hdr.binaryblock + bytes(10_000_000)))
    with pytest.raises(InputError, match='more than the 200,000,000 allowed'): read_scan(tmp_path/'bomb.nii.gz')
    hdr.set_data_shape((3, 3, 3)); hdr['vox_offset'] = 2**30
    (tmp_path/'late.nii.gz').write_bytes(gzip.compress(hdr.binaryblock + bytes(1000)))
    with pytest.raises(InputError, match='before its voxels'): read_scan(tmp_path/'late.nii.gz')


def test_random_damage_to_headers(tmp_path):
    raw0 = nifti(tmp_path/'a.nii').read_bytes()
    for _ in range(300):
        raw = bytearray(raw0)
        for at in RNG.integers(0, 352, 5): raw[at] = RNG.integers(256)
        (tmp_path/'x.nii').write_bytes(raw)
        try: scan = read_scan(tmp_path/'x.nii')
        except InputError: continue
        write_mask_nifti(tmp_path/'m.nii', scan.data[0] > 50, scan)
        assert np.array_equal(read_mask(tmp_path/'m.nii'), scan.data[0] > 50)
        assert np.array_equal(nib.load(tmp_path/'m.nii').affine, nib.load(tmp_path/'x.nii').affine)


@pytest.mark.parametrize('kind', ['complex64', 'rgb'])
def test_voxels_that_are_no_grey_levels(tmp_path, kind):
    dtype = np.dtype([('R', 'u1'), ('G', 'u1'), ('B', 'u1')]) if kind == 'rgb' else np.complex64
    nib.Nifti1Image(np.zeros((4, 3, 2), dtype), np.eye(4)).to_filename(tmp_path/'a.nii.gz')
    with pytest.raises(InputError, match='expected plain grey levels'): read_scan(tmp_path/'a.nii.gz')


def test_no_spacing_is_none_and_said(tmp_path):
    path = nifti(tmp_path/'a.nii', sform_code=0, qform_code=0)
    raw = bytearray(path.read_bytes()); raw[80:92] = bytes(12) # pixdim 1..3
    path.write_bytes(raw)
    scan = read_nifti(path)
    assert scan.spacing_mm is None or all(s > 0 for s in scan.spacing_mm)
    write_mask_nifti(tmp_path/'m.nii', scan.data[0] > 0, scan)


def test_several_sequences(tmp_path):
    files = [nifti(tmp_path/f'p_{s}.nii.gz') for s in ('t1ce', 'flair', 't1')]
    scan = read_scan(files)
    assert scan.sequences == ('pre', 'flair', 'post') and np.array_equal(scan.data[2], nib.load(files[0]).get_fdata().T)
    assert read_scan(tmp_path).sequences == scan.sequences
    assert read_scan({'flair': files[0]}).sequences == ('flair',)
    assert read_nifti(files[:2], sequences=('flair', 'pre')).sequences == ('pre', 'flair')
    with pytest.raises(InputError, match='3 files but 1 sequence'): read_nifti(files, sequences=('flair',))
    nifti(tmp_path/'p_seg.nii.gz'); nifti(tmp_path/'p_t2.nii.gz')
    assert read_scan(tmp_path).warnings == ['not a known sequence, ignored: p_t2.nii.gz']


def test_shapes_of_sequences(tmp_path):
    with pytest.raises(ShapeError) as e:
        read_nifti([nifti(tmp_path/'a_t1.nii'), nifti(tmp_path/'a_flair.nii', (5, 4, 4))])
    one_sentence(e, '`a_t1.nii`', '`a_flair.nii`', "resample one to the other's grid")


@pytest.mark.parametrize('move,same',
                         [((0, 0, 0), True), ((5e-4, 0, 0), True), ((0, 2e-3, 0), False), ((0, 0, 5), False)])
def test_one_grid_up_to_rounding(move, same):
    affine = np.diag([-.9, -.9, 5, 1.])
    other = affine.copy()
    other[:3, 3] = move
    assert same_grid(affine, other) == same
    assert same_grid(affine.astype(np.float32), affine) and not same_grid(affine, affine*[[-1], [1], [1], [1]])


# ---- masks

@pytest.mark.parametrize('values,ok',
                         [([0, 255], True), ([0, 1], True), ([0], True), ([7], True), ([0, 1, 2], False),
                          ([0, 254, 255], False)])
def test_two_values_make_a_mask(tmp_path, values, ok):
    v = np.resize(np.array(values, np.uint8), (4, 6))
    path = save(tmp_path/'m.png', v)
    if ok: assert np.array_equal(read_mask(path), v > 0)
    else:
        with pytest.raises(InputError) as e: read_mask(path)
        one_sentence(e, '`m.png` is no mask', 'threshold')
        assert np.array_equal(read_mask(path, threshold=1), v > 1)


def test_a_red_mask(tmp_path):
    v = np.zeros((4, 6, 3), np.uint8); v[1, 2] = (255, 0, 0)
    assert read_mask(save(tmp_path/'m.png', v)).sum() == 1


def test_nifti_labels_are_tumour_and_fractions_are_not(tmp_path):
    nib.Nifti1Image(np.array([[[0, 1, 2, 4]]], np.uint8), np.eye(4)).to_filename(tmp_path/'seg.nii.gz')
    assert read_mask(tmp_path/'seg.nii.gz').sum() == 3
    nib.Nifti1Image(np.array([[[0, .2, .7]]], np.float32), np.eye(4)).to_filename(tmp_path/'soft.nii.gz')
    with pytest.raises(InputError, match='is no mask'): read_mask(tmp_path/'soft.nii.gz')


@pytest.mark.parametrize('write', ['png', 'nifti'])
def test_full_disk_leaves_nothing(tmp_path, monkeypatch, write):
    scan = read_nifti(nifti(tmp_path/'a.nii'))
    out = tmp_path/'out'; out.mkdir()
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(Path, 'write_bytes', full); monkeypatch.setattr(Image.Image, 'save', full)
    with pytest.raises(OutputError, match='space'):
        if write == 'png': write_mask_png(out/'m.png', scan.data[0, 0] > 0)
        else: write_mask_nifti(out/'m.nii.gz', scan.data[0] > 0, scan)
    assert list(out.iterdir()) == []
