"Damaged files: each is read or refused in a sentence, in time, and never as the scan of somebody else."
import gzip, io, struct, time, zipfile, zlib

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from neuroseg.app.received import unpack
from neuroseg.app.uploads import scans_in_folder
from neuroseg.core import NeurosegError
from neuroseg.scans.nifti import read_mask, write_mask_nifti
from neuroseg.scans.reading import read_scan

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings('ignore:Duplicate name')] # two patients of one name
N = 600 # Files of each kind
LIMIT_S = 20
WHO = {'Anna': range(10, 90), 'Bert': range(130, 210)} # Grey levels that tell whose a voxel is


def plane(rng, who): return rng.integers(WHO[who][0], WHO[who][-1], (24, 20), dtype=np.uint8)


def picture(rng, who, kind):
    file = io.BytesIO()
    Image.fromarray(plane(rng, who)).save(file, kind)
    return file.getvalue()


def volume(rng, who, packed):
    img = nib.Nifti1Image(np.stack([plane(rng, who) for _ in range(4)], -1).astype(np.int16), np.diag([1, 1, 5, 1.]))
    img.header['descrip'] = b'DOE^JOHN'
    return gzip.compress(img.to_bytes(), 1) if packed else img.to_bytes()


RENAMED = ('Anna', 'anna', 'Bert#', 'Bert@', '../Anna', './Anna', 'Anna/Bert', 'B'*150, 'Bert\\x', '__MACOSX', '._Bert')


def archive(rng, who):
    "Two patients; in every second archive the second has another name, in many the first one's."
    file, named = io.BytesIO(), dict(Anna='Anna', Bert='Bert' if rng.random() < .5 else rng.choice(RENAMED))
    with zipfile.ZipFile(file, 'w', rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as z:
        for name in WHO:
            for k in range(3): z.writestr(f'ward/{named[name]}/MRI/FLAIR/png/slice_{k}.png',
                                          picture(rng, name, 'PNG'))
    return file.getvalue()


def damaged(rng, data):
    "One to eight random changes: bytes, cuts, repeats, runs of zeros."
    data = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if not data: break
        a, b = sorted(rng.integers(0, len(data), 2))
        b = min(b, a+40)
        match rng.integers(6):
            case 0 | 1: data[a] = rng.integers(256)
            case 2: data[a] ^= 1 << int(rng.integers(8))
            case 3: data[a:b] = bytes(b-a)
            case 4: data[a:b] = data[a:b]*2
            case 5: del data[a if rng.random() < .2 else b:]
    return bytes(data)


def chunks(data):
    "Name and content of each chunk of a PNG file."
    found, i = [], 8
    while i < len(data):
        n, = struct.unpack('>I', data[i:i+4])
        found.append([data[i+4:i+8], data[i+8:i+8+n]])
        i += 12+n
    return found


def damaged_png(rng, data):
    "Other pixels, or one other number of the header, with right checksums: its decoder reads on."
    parts = chunks(data)
    for c in parts:
        if c[0] == b'IHDR' and rng.random() < .5: # height, width, depth, colour, interlace
            at = int(rng.choice([3, 7, 8, 9, 12]))
            c[1] = c[1][:at] + bytes([rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 18, 22, 24, 255])]) + c[1][at+1:]
        if c[0] == b'IDAT':
            rows = zlib.decompress(c[1])
            c[1] = zlib.compress(damaged(rng, rows) if rng.random() < .5 else touched(rng, rows))
    if rng.random() < .2: parts.insert(1, [bytes(rng.choice([b'tRNS', b'PLTE', b'gAMA', b'eXIf'])), rng.bytes(6)])
    return data[:8] + b''.join(struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name+body))
                               for name, body in parts)


def touched(rng, data):
    "One to eight other bytes, at the same length."
    data = bytearray(data)
    for _ in range(rng.integers(1, 9)): data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


def damaged_zip(rng, data):
    "An archive of damaged files, with right checksums: they are unpacked, and read."
    file, hurt = io.BytesIO(), rng.choice([.2, 1])
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, 'w') as z:
        for info in old.infolist():
            body = old.read(info)
            if rng.random() < hurt: body = (damaged_png if rng.random() < .8 else damaged)(rng, body)
            z.writestr(info, body)
    return file.getvalue()


def damaged_gz(rng, data): return gzip.compress(damaged(rng, gzip.decompress(data)), 1)


# Formats with checksums, which would refuse every other damage
INSIDE = {'a.png': damaged_png, 'a.zip': damaged_zip, 'a_flair.nii.gz': damaged_gz}


def owners(values):
    "Whose grey levels a scan holds."
    found = np.unique(values)
    return {w for w, levels in WHO.items() if np.isin(found, list(levels)).mean() > .8}


def one(tmp_path, name, data):
    "Read one damaged file; the outcome and, where it was read, the scans."
    path = tmp_path/name
    path.write_bytes(data)
    start = time.perf_counter()
    try:
        found = [path] if not name.endswith('.zip') else [
            f.source for f in scans_in_folder(unpack(path, tmp_path/'z'), 'w')]
        scans = [read_scan(f) for f in found]
        outcome = 'read'
    except NeurosegError as e:
        scans, outcome, text = [], 'refused', str(e)
        assert text and chr(10) not in text and str(tmp_path) not in text and 'DOE' not in text, text
    assert time.perf_counter()-start < LIMIT_S, name
    return outcome, scans


@pytest.mark.parametrize('name,make', [
    ('a_flair.nii', lambda rng, who: volume(rng, who, False)),
    ('a_flair.nii.gz', lambda rng, who: volume(rng, who, True)),
    ('a.png', lambda rng, who: picture(rng, who, 'PNG')), ('a.tif', lambda rng, who: picture(rng, who, 'TIFF')),
    ('a.zip', archive)])
def test_damaged_files(tmp_path, name, make, record_property):
    rng, count = np.random.default_rng(2026), {'read': 0, 'refused': 0}
    for i in range(N):
        who = list(WHO)[i % 2]
        folder = tmp_path/str(i); folder.mkdir()
        data = make(rng, who)
        way = rng.random()
        if way < .4: data = damaged(rng, data)
        elif name in INSIDE and way < .8: data = INSIDE[name](rng, data)
        elif name != 'a.zip': data = damaged(rng, data) # the other archives are sound, but for names
        outcome, scans = one(folder, name, data)
        count[outcome] += 1
        for scan in scans: assert len(owners(scan.data[0])) < 2, 'voxels of two patients in one scan'
        if scans and name.startswith('a_flair'):
            write_mask_nifti(folder/'m.nii', scans[0].data[0] > 50, scans[0])
            assert b'DOE' not in (folder/'m.nii').read_bytes()
            assert np.array_equal(read_mask(folder/'m.nii'), scans[0].data[0] > 50)
    print(f'{name}: {count}')
    assert min(count.values()) > N/20 and sum(count.values()) == N # neither harmless nor always fatal
