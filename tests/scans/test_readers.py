"Reading and writing scans: every bad file is one sentence that names it, and geometry comes back bit for bit."
import gzip, io, os, struct, warnings, zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from neuroseg.core import InputError, NeurosegError, OutputError, ShapeError
from neuroseg.scans.pictures import guess_sequence, natural_key, read_image, slice_number
from neuroseg.scans.stacks import copies_of_flair, numbering_faults, read_stack
from neuroseg.scans.nifti import read_mask, read_nifti, write_mask_nifti, write_mask_png
from neuroseg.scans.dicom import read_dicom_series
from neuroseg.scans.reading import read_scan

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (20, 14), dtype=np.uint8)


def save(path, array, mode=None, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array, mode).save(path, **kw) if mode is None else Image.fromarray(array).convert(mode).save(path, **kw)
    return path


def one_sentence(error, *words):
    "The message is one line, names what it should, and shows no path."
    text = str(error.value)
    assert '\n' not in text and not any(p in text for p in ('/tmp', '/home', 'PosixPath')), text
    for w in words: assert w in text, text


# ---- names

@pytest.mark.parametrize('names', [['a_2', 'a_10', 'a_100'], ['x9y1', 'x9y10', 'x10y1'], ['1', '02', '3'], ['b', 'b1', 'c']])
def test_natural_order(names):
    assert sorted(names[::-1], key=natural_key) == names


def test_natural_key_never_compares_text_with_numbers():
    sorted(['1a', 'a1', '', '10', 'b', '²'], key=natural_key)


@pytest.mark.parametrize('name,number', [('TCGA_CS_4941_19960909_23.tif', 23), ('slice_059_mask.png', 59), ('a1b2.png', 2), ('scan.png', None)])
def test_slice_number(name, number): assert slice_number(name) == number


@pytest.mark.parametrize('name,sequence', [('P1_T1CE.nii.gz', 'post'), ('p-t1-pre.nii', 'pre'), ('BraTS-GLI-00000-000-t1c.nii.gz', 'post'), ('x_t2f.nii.gz', 'flair'),
                                           ('AX T2 FLAIR', 'flair'), ('x_t2w.nii.gz', None), ('flairs.nii', None)])
def test_guess_sequence(name, sequence): assert guess_sequence(name) == sequence


def test_numbering_of_one_or_none():
    assert numbering_faults([]) == ([], []) and numbering_faults([5]) == ([], []) and numbering_faults([3, 3]) == ([3], [])


# ---- pictures

@pytest.mark.parametrize('name,mode,shape,dtype', [
    ('a.png', 'L', (20, 14), np.uint8), ('a.png', '1', (20, 14), np.uint8), ('a.png', 'P', (20, 14, 3), np.uint8), ('a.png', 'LA', (20, 14), np.uint8),
    ('a.png', 'RGBA', (20, 14, 3), np.uint8), ('a.jpg', 'CMYK', (20, 14, 3), np.uint8), ('a.jpeg', 'L', (20, 14), np.uint8), ('a.bmp', 'RGB', (20, 14, 3), np.uint8),
    ('a.tif', 'F', (20, 14), np.float32), ('a.tif', 'I', (20, 14), np.int32), ('a.tif', 'CMYK', (20, 14, 3), np.uint8)])
def test_every_mode(tmp_path, name, mode, shape, dtype):
    got = read_image(save(tmp_path/name, GREY, mode))
    assert got.shape == shape and got.dtype == dtype


@pytest.mark.parametrize('name', ['a.png', 'a.tif'])
def test_sixteen_bits_are_kept(tmp_path, name):
    deep = RNG.integers(0, 65535, (9, 7), dtype=np.uint16)
    assert np.array_equal(read_image(save(tmp_path/name, deep)), deep)


def test_big_endian_tiff(tmp_path):
    deep = RNG.integers(0, 65535, (4, 3), dtype=np.uint16)
    entries = [(256, 3, 1, 3 << 16), (257, 3, 1, 4 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16), (262, 3, 1, 1 << 16), (273, 4, 1, 8), (277, 3, 1, 1 << 16), (278, 3, 1, 4 << 16), (279, 4, 1, 24)]
    raw = struct.pack('>2sHI', b'MM', 42, 8+24) + deep.astype('>u2').tobytes() + struct.pack('>H', len(entries)) + b''.join(struct.pack('>HHII', *e) for e in entries) + bytes(4)
    (tmp_path/'a.tif').write_bytes(raw)
    got = read_image(tmp_path/'a.tif')
    assert np.array_equal(got, deep) and got.dtype.isnative


def png(w, h, data=b''):
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind+body))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0)) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


@pytest.mark.parametrize('w,h', [(0, 5), (5, 0), (0, 0)])
def test_zero_size(tmp_path, w, h):
    (tmp_path/'zero.png').write_bytes(png(w, h))
    with pytest.raises(InputError) as e: read_image(tmp_path/'zero.png')
    one_sentence(e, '`zero.png`')


@pytest.mark.parametrize('side', [8_000, 12_000, 60_000])
def test_bomb_is_refused_before_it_is_unpacked(tmp_path, side):
    "Also at the sizes where Pillow itself warns (12,000) or raises (60,000)."
    (tmp_path/'bomb.png').write_bytes(png(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(InputError) as e: read_image(tmp_path/'bomb.png')
    one_sentence(e, '`bomb.png`', 'pixels')


@pytest.mark.parametrize('name', ['a.tif', 'a.png', 'a.jpg'])
@pytest.mark.parametrize('keep', [0, 3, 60, .5, .95])
def test_truncated_pictures(tmp_path, name, keep):
    big = RNG.integers(0, 255, (200, 200), dtype=np.uint8)
    raw = save(tmp_path/name, big).read_bytes()
    (tmp_path/name).write_bytes(raw[:keep if keep >= 1 or keep == 0 else int(len(raw)*keep)])
    with pytest.raises(InputError) as e: read_image(tmp_path/name)
    one_sentence(e, f'`{name}`')


def test_random_damage_never_escapes_as_a_traceback(tmp_path):
    raws = [save(tmp_path/n, GREY).read_bytes() for n in ('a.tif', 'a.png', 'a.jpg')]
    for i in range(150):
        raw = bytearray(raws[i % 3])
        for at in RNG.integers(0, min(len(raw), 400), 6): raw[at] = RNG.integers(256)
        (tmp_path/'x.tif').write_bytes(raw)
        try: read_image(tmp_path/'x.tif')
        except InputError: pass


def test_nan_pixels(tmp_path):
    bad = np.ones((4, 4), np.float32); bad[0, 0] = np.nan
    with pytest.raises(InputError, match='1 pixels are NaN'): read_image(save(tmp_path/'a.tif', bad))


@pytest.mark.parametrize('make,words', [(lambda p: p.write_text('hello'), 'cannot be read as a picture'), (lambda p: p.mkdir(), 'cannot be read as a picture'), (lambda p: None, 'does not exist')])
def test_what_is_no_picture(tmp_path, make, words):
    make(tmp_path/'scan.png')
    with pytest.raises(InputError) as e: read_image(tmp_path/'scan.png')
    one_sentence(e, '`scan.png`', words)


@pytest.mark.skipif(os.name == 'nt' or not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='needs a user whom permissions stop')
def test_no_permission(tmp_path):
    save(tmp_path/'a.png', GREY).chmod(0)
    with pytest.raises(InputError, match='permission denied'): read_image(tmp_path/'a.png')


def test_permission_is_a_sentence(tmp_path, monkeypatch):
    path = save(tmp_path/'a.png', GREY)
    def refuse(*a, **k): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(Image, 'open', refuse)
    with pytest.raises(InputError) as e: read_image(path)
    one_sentence(e, '`a.png` may not be read')


# ---- stacks

def folder_of(path, n=3, **shape):
    for i in range(1, n+1): save(path/f's_{i}.png', RNG.integers(0, 255, (6, 5), dtype=np.uint8))
    return path


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match='holds no images'): read_scan(tmp_path)


def test_only_masks(tmp_path):
    save(tmp_path/'s_1_mask.png', GREY)
    with pytest.raises(InputError, match='holds no images'): read_stack(tmp_path)


def test_sizes_that_differ_name_both(tmp_path):
    folder_of(tmp_path)
    save(tmp_path/'s_9.png', GREY)
    with pytest.raises(ShapeError) as e: read_stack(tmp_path)
    one_sentence(e, '`s_1.png`', '5 x 6', '`s_9.png`', '14 x 20')


def test_grey_among_colour_and_depths(tmp_path):
    save(folder_of(tmp_path/'a')/'s_4.png', np.dstack([GREY[:6, :5]]*3))
    with pytest.raises(InputError, match='one is grey and one in colour'): read_stack(tmp_path/'a')
    save(folder_of(tmp_path/'b')/'s_4.png', np.ones((6, 5), np.uint16))
    with pytest.raises(InputError, match='uint8 and `s_4.png` uint16'): read_stack(tmp_path/'b')


def test_same_slice_in_two_formats(tmp_path):
    save(folder_of(tmp_path)/'s_2.tif', GREY[:6, :5])
    with pytest.raises(InputError, match='holds `s_2` in two formats'): read_stack(tmp_path)


def test_strangers_are_named_and_hidden_files_are_not(tmp_path):
    folder_of(tmp_path)
    for n in ('notes.txt', '.DS_Store', 'Thumbs.db'): (tmp_path/n).write_text('x')
    assert read_stack(tmp_path).warnings == ['not an image, ignored: notes.txt']


def test_number_twice(tmp_path):
    save(folder_of(tmp_path)/'s_02.png', GREY[:6, :5])
    assert 'slice number 2 occurs twice' in read_stack(tmp_path).warnings


def test_list_of_files_in_any_order(tmp_path):
    files = sorted(folder_of(tmp_path, 12).iterdir())
    assert np.array_equal(read_stack(files[::-1]).data, read_stack(tmp_path).data)
    assert read_scan(files).names == tuple(f's_{i}' for i in range(1, 13))


def test_colour_slices_keep_channel_order_and_drop_copies(tmp_path):
    planes = RNG.integers(0, 255, (3, 4, 6, 5, ), dtype=np.uint8)
    for i in range(4): save(tmp_path/'all'/f's_{i}.tif', np.dstack(planes[:, i])); save(tmp_path/'two'/f's_{i}.tif', np.dstack([planes[0, i], planes[1, i], planes[1, i]]))
    scan = read_stack(tmp_path/'all')
    assert scan.sequences == ('pre', 'flair', 'post') and np.array_equal(scan.data, planes) and scan.data.dtype == np.float32
    scan = read_stack(tmp_path/'two')
    assert scan.sequences == ('pre', 'flair') and np.array_equal(scan.data, planes[:2])


def test_multipage_tiff(tmp_path):
    pages = [Image.fromarray(RNG.integers(0, 255, (6, 5), dtype=np.uint8)) for _ in range(12)]
    pages[0].save(tmp_path/'stack.tif', save_all=True, append_images=pages[1:])
    scan = read_scan(tmp_path/'stack.tif')
    assert scan.kind == 'stack' and np.array_equal(scan.data[0], np.stack([np.asarray(p) for p in pages])) and scan.warnings == []
    with pytest.raises(InputError, match='has 12 pages'): read_image(tmp_path/'stack.tif')


# ---- NIfTI

def nifti(path, shape=(5, 4, 3), dtype=np.int16, affine=None, cls=nib.Nifti1Image, **header):
    img = cls(RNG.integers(0, 100, shape).astype(dtype), np.diag([1, 1, 2, 1.]) if affine is None else affine)
    for k, v in header.items(): img.header[k] = v
    img.to_filename(path)
    return path


FLIPS = [nib.affines.from_matvec(np.array(m, float), [-90, 126.5, -72]) for m in (
    [[-1, 0, 0], [0, -1, 0], [0, 0, 1]], [[0, 0, 3], [-.9, 0, 0], [0, -.9, 0]], [[.95, 0, .1], [0, 1.1, 0], [-.1, 0, 4.9]], [[0, -1.2, 0], [0, 0, 5], [1.2, 0, 0]])]


@pytest.mark.parametrize('affine', FLIPS)
@pytest.mark.parametrize('ending', ['.nii', '.nii.gz'])
def test_geometry_survives(tmp_path, affine, ending):
    src = nifti(tmp_path/f'flair{ending}', affine=affine)
    img = nib.load(src); img.set_sform(affine, 3); img.set_qform(affine, 1); img.header['descrip'] = b'secret'; img.to_filename(tmp_path/f'a_flair{ending}')
    scan = read_nifti(tmp_path/f'a_flair{ending}')
    mask = scan.data[0] > 50
    write_mask_nifti(tmp_path/f'mask{ending}', mask, scan)
    old, new = nib.load(tmp_path/f'a_flair{ending}'), nib.load(tmp_path/f'mask{ending}')
    assert np.array_equal(new.affine, old.affine) and new.shape == old.shape and new.get_data_dtype() == np.uint8
    for key in ('sform_code', 'qform_code', 'quatern_b', 'quatern_c', 'quatern_d', 'qoffset_x', 'pixdim', 'srow_x', 'srow_y', 'srow_z', 'xyzt_units'): assert np.array_equal(new.header[key], old.header[key]), key
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
    assert np.array_equal(np.asarray(nib.load(tmp_path/'m.nii').dataobj), data > 500) and np.array_equal(nib.load(tmp_path/'m.nii').affine, FLIPS[0])


def test_scaling_of_the_scan_is_not_the_masks(tmp_path):
    img = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(4, 3, 2), np.eye(4)); img.header.set_slope_inter(.5, -3); img.to_filename(tmp_path/'a.nii.gz')
    scan = read_nifti(tmp_path/'a.nii.gz')
    assert np.allclose(scan.data[0], nib.load(tmp_path/'a.nii.gz').get_fdata().T)
    write_mask_nifti(tmp_path/'m.nii.gz', scan.data[0] > 0, scan)
    assert set(np.unique(nib.load(tmp_path/'m.nii.gz').get_fdata())) == {0, 1}


def test_header_extensions_are_not_copied(tmp_path):
    img = nib.Nifti1Image(np.ones((4, 3, 2), np.int16), np.eye(4)); img.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'Name of the patient')); img.to_filename(tmp_path/'a.nii')
    scan = read_nifti(tmp_path/'a.nii')
    write_mask_nifti(tmp_path/'m.nii', scan.data[0] > 0, scan)
    assert b'Name of the patient' in (tmp_path/'a.nii').read_bytes() and b'Name of the patient' not in (tmp_path/'m.nii').read_bytes()
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


@pytest.mark.parametrize('content', [b'', b'hello', b'x'*1000, gzip.compress(b'hello'), gzip.compress(b'x'*1000), b'\x1f\x8b', b'\x1f\x8b'+b'x'*600])
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
    for i in range(300):
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
    with pytest.raises(ShapeError) as e: read_nifti([nifti(tmp_path/'a_t1.nii'), nifti(tmp_path/'a_flair.nii', (5, 4, 4))])
    one_sentence(e, '`a_t1.nii`', '`a_flair.nii`', "resample one to the other's grid")


# ---- masks

@pytest.mark.parametrize('values,ok', [([0, 255], True), ([0, 1], True), ([0], True), ([7], True), ([0, 1, 2], False), ([0, 254, 255], False)])
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


# ---- DICOM

def test_the_series_that_pydicom_ships():
    pydicom = pytest.importorskip('pydicom')
    path = pydicom.data.get_testdata_file('MR_small.dcm', download=False)
    scan = read_scan(path)
    ds = pydicom.dcmread(path)
    assert np.array_equal(scan.data[0, 0], ds.pixel_array) and scan.spacing_mm[1:] == tuple(map(float, ds.PixelSpacing))
    assert np.allclose(scan.affine[:3, 3], np.array(ds.ImagePositionPatient, float)*[-1, -1, 1])


def test_what_is_no_dicom(tmp_path):
    (tmp_path/'a.dcm').write_text('hello')
    with pytest.raises(InputError) as e: read_dicom_series(tmp_path/'a.dcm')
    one_sentence(e, '`a.dcm`')
    (tmp_path/'b.dcm').write_bytes(bytes(128)+b'DICM'+b'junk'*50)
    with pytest.raises(InputError): read_scan(tmp_path/'b.dcm')


# ---- dispatch

@pytest.mark.parametrize('make', [lambda p: p/'nowhere', lambda p: [], lambda p: {}, lambda p: [p/'no.png']])
def test_nothing_to_read(tmp_path, make):
    with pytest.raises(NeurosegError): read_scan(make(tmp_path))


def test_unknown_file_is_named(tmp_path):
    (tmp_path/'movie.xyz').write_bytes(b'x'*300)
    with pytest.raises(InputError) as e: read_scan(tmp_path/'movie.xyz')
    one_sentence(e, '`movie.xyz`')
