"Names and pictures: every bad file is one sentence that names it."
import os, struct, warnings, zlib

import numpy as np
import pytest
from PIL import Image
from scan_files import GREY, one_sentence, RNG, save

from neuroseg.core import InputError
from neuroseg.scans.pictures import guess_sequence, natural_key, read_image, slice_number





@pytest.mark.parametrize('names',
                         [['a_2', 'a_10', 'a_100'], ['x9y1', 'x9y10', 'x10y1'], ['1', '02', '3'], ['b', 'b1', 'c']])
def test_natural_order(names):
    assert sorted(names[::-1], key=natural_key) == names


def test_natural_key_never_compares_text_with_numbers():
    sorted(['1a', 'a1', '', '10', 'b', '²'], key=natural_key)


@pytest.mark.parametrize('name,number',
                         [('TCGA_CS_4941_19960909_23.tif', 23), ('slice_059_mask.png', 59), ('a1b2.png', 2),
                          ('scan.png', None)])
def test_slice_number(name, number): assert slice_number(name) == number


@pytest.mark.parametrize('name,sequence',
                         [('P1_T1CE.nii.gz', 'post'), ('p-t1-pre.nii', 'pre'),
                          ('BraTS-GLI-00000-000-t1c.nii.gz', 'post'), ('x_t2f.nii.gz', 'flair'),
                          ('AX T2 FLAIR', 'flair'), ('x_t2w.nii.gz', None), ('flairs.nii', 'flair'),
                          ('p01_pre_flair.nii.gz', 'flair'), ('FLAIR post Gd', 'flair'), ('p01_pre-op.nii', None)])
def test_guess_sequence(name, sequence): assert guess_sequence(name) == sequence


@pytest.mark.parametrize('name,mode,shape,dtype', [
    ('a.png', 'L', (20, 14), np.uint8), ('a.png', '1', (20, 14), np.uint8), ('a.png', 'P', (20, 14, 3), np.uint8),
    ('a.png', 'LA', (20, 14), np.uint8), ('a.png', 'RGBA', (20, 14, 3), np.uint8),
    ('a.jpg', 'CMYK', (20, 14, 3), np.uint8), ('a.jpeg', 'L', (20, 14), np.uint8),
    ('a.bmp', 'RGB', (20, 14, 3), np.uint8),
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
    entries = [(256, 3, 1, 3 << 16), (257, 3, 1, 4 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16),
               (262, 3, 1, 1 << 16), (273, 4, 1, 8), (277, 3, 1, 1 << 16), (278, 3, 1, 4 << 16), (279, 4, 1, 24)]
    table = struct.pack('>H', len(entries)) + b''.join(struct.pack('>HHII', *e) for e in entries) + bytes(4)
    raw = struct.pack('>2sHI', b'MM', 42, 8+24) + deep.astype('>u2').tobytes() + table
    (tmp_path/'a.tif').write_bytes(raw)
    got = read_image(tmp_path/'a.tif')
    assert np.array_equal(got, deep) and got.dtype.isnative


def png(w, h, data=b''):
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind+body))
    header = struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(data)) + chunk(b'IEND', b'')


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


@pytest.mark.parametrize('make,words',
                         [(lambda p: p.write_text('hello'), 'cannot be read as a picture'),
                          (lambda p: p.mkdir(), 'cannot be read as a picture'), (lambda p: None, 'does not exist')])
def test_what_is_no_picture(tmp_path, make, words):
    make(tmp_path/'scan.png')
    with pytest.raises(InputError) as e: read_image(tmp_path/'scan.png')
    one_sentence(e, '`scan.png`', words)


@pytest.mark.skipif(os.name == 'nt' or not hasattr(os, 'geteuid') or os.geteuid() == 0,
                    reason='needs a user whom permissions stop')
def test_no_permission(tmp_path):
    save(tmp_path/'a.png', GREY).chmod(0)
    with pytest.raises(InputError, match='permission denied'): read_image(tmp_path/'a.png')


def test_permission_is_a_sentence(tmp_path, monkeypatch):
    path = save(tmp_path/'a.png', GREY)
    def refuse(*a, **k): raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(Image, 'open', refuse)
    with pytest.raises(InputError) as e: read_image(path)
    one_sentence(e, '`a.png` may not be read')
