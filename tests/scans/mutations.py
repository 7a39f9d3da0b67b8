"""Files of two patients, Anna and Bert, damaged by rule; read by a process of its own, which may hang or die.

    python mutations.py KIND FIRST LAST     one line of JSON an input; the same number is the same input

Anna's slices have stripes along x and Bert's along y, so that each slice tells whose it is, whatever happened to its
grey levels. The numbers up to `BY_RULE` are damaged in one of five ways of a format; those above it by many changes at
once, or inside what a checksum protects, with a checksum that is right again, so that the decoder reads on.
"""
import gzip, io, json, struct, sys, tempfile, time, traceback, warnings, zipfile, zlib
from pathlib import Path

import numpy as np

SEED = 2026
SIDE = (24, 20) # Rows and columns of a slice
WHO = ('ANNA', 'BERT')
KINDS = ('dicom', 'nifti', 'nifti_gz', 'tiff', 'png', 'zip')
WAYS = ('bytes', 'cut', 'field', 'length', 'swap')
MANY_WAYS = ('runs', 'inside')
BY_RULE = 400 # Numbers below it are damaged in one of `WAYS`, those above it in one of `MANY_WAYS`
N_SLICES = 4 # Of a DICOM series
ODD = ('', '0', '-1', '1', '65535', '1e308', 'nan', 'inf', '0.0', 'abc', 'é\\ü', 'A'*300, '1\\1', '1\\2\\3\\4\\5\\6\\7')


def plane(rng, who):
    "A striped slice, 8 bits."
    y, x = np.indices(SIDE)
    stripes = (x if who == 'ANNA' else y) // 2 % 2
    return (60 + 120*stripes + rng.integers(0, 40, SIDE)).astype(np.uint8)


def whose(slice_): # Rows and columns
    "The patient of a slice; None where its stripes cannot be told."
    if slice_.shape != SIDE or not np.isfinite(slice_).all() or not slice_.std(): return None
    y, x = np.indices(SIDE)
    with np.errstate(all='ignore'):
        along = [abs(np.corrcoef(slice_.ravel(), (v//2 % 2).ravel())[0, 1]) for v in (x, y)]
    return WHO[int(np.argmax(along))] if max(along) > .5 > 2*min(along) else None


# ---- sound files

def png(rng, who, kind='PNG'):
    from PIL import Image
    file = io.BytesIO()
    Image.fromarray(plane(rng, who)).save(file, kind)
    return file.getvalue()


def tiff(rng, who): return png(rng, who, 'TIFF')


def nifti(rng, who):
    import nibabel as nib
    img = nib.Nifti1Image(np.stack([plane(rng, who).T for _ in range(4)], -1).astype(np.int16), np.diag([1, 1, 5, 1.]))
    img.header['descrip'] = b'DOE^JOHN'
    return img.to_bytes()


def dicom_series(folder, rng, who):
    from neuroseg.scans.dicom_phantom import write_series
    volume = np.stack([plane(rng, who) for _ in range(N_SLICES)]).astype(np.uint16)*8
    write_series(folder, volume, np.diag([1, 1, 5, 1.]), patient=who, preamble=rng.random() < .7,
                 PatientName='DOE^JOHN', SeriesDescription='AX FLAIR', EchoTime=110, RepetitionTime=9000,
                 InversionTime=2500, SeriesNumber=3)
    return sorted(folder.iterdir())


def archive(rng, names=WHO):
    "Both patients, three slices each, under folders with these names."
    file = io.BytesIO()
    how = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(file, 'w') as z:
        for who, name in zip(WHO, names):
            for k in range(3): # with a date of its own, or the time of day would be in the file
                entry = zipfile.ZipInfo(f'ward/{name}/MRI/FLAIR/slice_{k}.png', (2026, 1, 1, 0, 0, 0))
                z.writestr(entry, png(rng, who), how)
    return file.getvalue()


# ---- damage of bytes

def flipped(rng, data):
    "One to six bytes or bits, half of the time near the beginning, where the header is."
    data = bytearray(data)
    for _ in range(rng.integers(1, 7)):
        i = int(rng.integers(0, len(data) if rng.random() < .5 else min(len(data), 600)))
        data[i] = rng.integers(256) if rng.random() < .5 else data[i] ^ 1 << int(rng.integers(8))
    return bytes(data)


def cut(rng, data):
    "Shorter, longer, empty, or with a hole."
    a, b = sorted(int(v) for v in rng.integers(0, len(data), 2))
    return (data[:a], data[:a]+data[b:], data+data[a:b], data[:0], data[:a]+bytes(b-a)+data[b:])[rng.integers(5)]


def runs(rng, data):
    "One to eight changes: bytes, bits, runs of zeros, runs twice, cuts."
    data = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        if not data: break
        a, b = sorted(int(v) for v in rng.integers(0, len(data), 2))
        b = min(b, a+40)
        match rng.integers(6):
            case 0 | 1: data[a] = rng.integers(256)
            case 2: data[a] ^= 1 << int(rng.integers(8))
            case 3: data[a:b] = bytes(b-a)
            case 4: data[a:b] = data[a:b]*2
            case 5: del data[a if rng.random() < .2 else b:]
    return bytes(data)


def touched(rng, data):
    "One to eight other bytes, at the same length."
    data = bytearray(data)
    for _ in range(rng.integers(1, 9) if data else 0): data[rng.integers(len(data))] = rng.integers(256)
    return bytes(data)


# ---- damage that knows the format

def some_number(rng, bits):
    "Numbers that lengths and sizes should not have."
    return int(rng.choice([0, 1, 2, 3, 7, 255, 2**15, 2**(bits-1), 2**bits-1, 2**bits-2, int(rng.integers(2**16))])
               % 2**bits)


NIFTI_FIELDS = ('sizeof_hdr', 'dim', 'intent_code', 'datatype', 'bitpix', 'pixdim', 'vox_offset', 'scl_slope',
                'scl_inter', 'xyzt_units', 'cal_max', 'qform_code', 'sform_code', 'quatern_b', 'qoffset_x', 'srow_x',
                'srow_z', 'magic', 'aux_file', 'descrip', 'dim_info')


def nifti_field(rng, data, names=NIFTI_FIELDS):
    import nibabel as nib
    kind = nib.nifti1.header_dtype
    head = np.frombuffer(bytearray(data[:348]), kind).copy()
    for name in rng.choice(names, rng.integers(1, 4)):
        field = head[0][name]
        if field.dtype.kind in 'iu':
            new = field.dtype.type(np.int64(some_number(rng, 8*field.dtype.itemsize)).astype(field.dtype))
        elif field.dtype.kind == 'f':
            new = field.dtype.type(rng.choice([0, -1, np.nan, np.inf, 1e30, -1e-30, 352.5, 5, 1e-3]))
        else: new = bytes(rng.integers(0, 256, field.dtype.itemsize, dtype=np.uint8))
        if field.shape: head[name][0][rng.integers(field.shape[0])] = new
        else: head[name] = new
    return head.tobytes() + data[348:]


def png_chunks(data):
    "Name, content and None of each chunk of a PNG file; None stands for the length that the content has."
    chunks, i = [], 8
    while i < len(data):
        n, name = struct.unpack('>I4s', data[i:i+8])
        chunks.append([name, bytearray(data[i+8:i+8+n]), None])
        i += 12+n
    return chunks


def png_of(chunks):
    "A PNG file with right checksums."
    def packed(name, body, n): return struct.pack('>I', len(body) if n is None else n)+name+body+struct.pack(
        '>I', zlib.crc32(name+body))
    return bytes.fromhex('89504e470d0a1a0a') + b''.join(packed(*c) for c in chunks)


def png_field(rng, data, lengths=False):
    "A chunk with other content and a right checksum, or with another length."
    chunks = png_chunks(data)
    k = int(rng.integers(len(chunks)))
    if lengths: chunks[k][2] = some_number(rng, 32)
    elif rng.random() < .7: # the header: width, height, depth, colour, compression, filter, interlace
        at = int(rng.integers(13))
        chunks[0][1][at] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 127, 255])
    elif rng.random() < .5: chunks.insert(k, [b'acTL' if rng.random() < .5 else b'iCCP', bytearray(rng.bytes(8)), None])
    else: chunks.insert(k, chunks[int(rng.integers(len(chunks)))])
    return png_of(chunks)


def tiff_field(rng, data, lengths=False):
    "An entry of the first directory with another type, count or value."
    data = bytearray(data)
    start, = struct.unpack_from('<I', data, 4)
    n, = struct.unpack_from('<H', data, start)
    for _ in range(rng.integers(1, 3)):
        at = start + 2 + 12*int(rng.integers(n))
        if lengths: struct.pack_into('<I', data, at+4, some_number(rng, 32))
        elif rng.random() < .2: struct.pack_into('<H', data, at+2, int(rng.integers(14)))
        elif rng.random() < .2: struct.pack_into('<I', data, start+2+12*n, int(rng.choice([start, 8, len(data), 1])))
        else: struct.pack_into('<I', data, at+8, some_number(rng, 32))
    return bytes(data)


def zip_field(rng, data, lengths=False):
    "A number of a local header, of the list of files, or of the end."
    data = bytearray(data)
    kinds = {b'PK\3\4': (4, 6, 8, 14, 18, 22, 26, 28), b'PK\1\2': (8, 10, 16, 20, 24, 28, 30, 32, 42),
             b'PK\5\6': (4, 8, 10, 12, 16, 20)}
    sizes = {b'PK\3\4': (18, 22, 26, 28), b'PK\1\2': (20, 24, 28, 30), b'PK\5\6': (8, 10, 12, 20)}
    wide = {14, 16, 18, 20, 22, 24, 42, 12}
    for _ in range(rng.integers(1, 3)):
        mark = list(kinds)[rng.integers(3)]
        starts = [i for i in range(len(data)-22) if data[i:i+4] == mark] or [0]
        at = int(rng.choice((sizes if lengths else kinds)[mark]))
        bits = 32 if at in wide and starts[0]+at+4 <= len(data) else 16
        struct.pack_into('<I' if bits == 32 else '<H', data, int(rng.choice(starts))+at, some_number(rng, bits))
    return bytes(data)


DICOM_FIELDS = '''
Rows Columns PixelSpacing ImagePositionPatient ImageOrientationPatient BitsAllocated BitsStored HighBit
PixelRepresentation SamplesPerPixel PhotometricInterpretation NumberOfFrames RescaleSlope RescaleIntercept
SliceThickness SpacingBetweenSlices InstanceNumber SeriesInstanceUID StudyInstanceUID PatientID PatientBirthDate
FrameOfReferenceUID SOPInstanceUID SOPClassUID EchoTime RepetitionTime InversionTime SpecificCharacterSet Modality
ImageType SeriesDescription SeriesNumber AcquisitionNumber TemporalPositionIdentifier ContrastBolusAgent
PixelPaddingValue PlanarConfiguration PixelAspectRatio
'''.split()


def dicom_field(rng, files):
    "One to three attributes absent, empty or odd, in one slice or in all."
    import pydicom
    from pydicom.uid import UID
    changes = {str(n): None if rng.random() < .25 else str(rng.choice(ODD))
               for n in rng.choice(DICOM_FIELDS, rng.integers(1, 4))}
    syntax = rng.choice(['1.2.840.10008.1.2.1', '1.2.840.10008.1.2', '1.2.840.10008.1.2.2', '1.2.840.10008.1.2.4.50',
                         '1.2.840.10008.1.2.4.70', '1.2.840.10008.1.2.4.90', '1.2.840.10008.1.2.5', '9.9'])
    for f in files if rng.random() < .5 else [files[rng.integers(len(files))]]:
        ds = pydicom.dcmread(f, force=True)
        for name, text in changes.items():
            if text is None:
                if name in ds: delattr(ds, name)
                continue
            tag = pydicom.datadict.tag_for_keyword(name)
            vr = pydicom.datadict.dictionary_VR(tag)
            if vr in ('US', 'US or SS'): raw = struct.pack('<H', some_number(rng, 16))
            else: raw = text.encode('latin-1')
            vr = 'US' if vr == 'US or SS' else vr
            ds[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(raw), raw, 0, False, True)
        if rng.random() < .1 and getattr(ds, 'file_meta', None): ds.file_meta.TransferSyntaxUID = UID(str(syntax))
        out = io.BytesIO()
        try: pydicom.dcmwrite(out, ds, implicit_vr=False, little_endian=True, enforce_file_format=False)
        except Exception: continue # what pydicom cannot write is no file
        f.write_bytes(out.getvalue())


def dicom_length(rng, data):
    "The length of an element is another one."
    data = bytearray(data)
    names = [n.to_bytes(2, 'little') for n in (0x0008, 0x0010, 0x0018, 0x0020, 0x0028, 0x7fe0)]
    starts = [i for i in range(0, len(data)-8, 2) if bytes(data[i:i+2]) in names and data[i+4:i+6].isalpha()]
    for at in rng.choice(starts, rng.integers(1, 3)):
        long = bytes(data[at+4:at+6]) in (b'OB', b'OW', b'SQ', b'UN', b'UT')
        if long: struct.pack_into('<I', data, int(at)+8, some_number(rng, 32))
        else: struct.pack_into('<H', data, int(at)+6, some_number(rng, 16))
    return bytes(data)


# ---- damage inside what a checksum, a directory or a header protects

def png_inside(rng, data):
    "Other pixels, one other number of the header, or a chunk more."
    chunks = png_chunks(data)
    for c in chunks:
        if c[0] == b'IHDR' and rng.random() < .5: # height, width, depth, colour, interlace
            c[1][int(rng.choice([3, 7, 8, 9, 12]))] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 18, 22, 24, 255])
        if c[0] == b'IDAT': c[1] = zlib.compress((runs if rng.random() < .5 else touched)(rng, zlib.decompress(c[1])))
    if rng.random() < .2:
        chunks.insert(1, [bytes(rng.choice([b'tRNS', b'PLTE', b'gAMA', b'eXIf'])), rng.bytes(6), None])
    return png_of(chunks)


def zip_inside(rng, data):
    "An archive of damaged pictures: they are unpacked, and read."
    file, hurt = io.BytesIO(), rng.choice([.2, 1])
    with warnings.catch_warnings(), zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, 'w') as z:
        warnings.simplefilter('ignore') # two patients of one name
        for info in old.infolist():
            body = old.read(info)
            if rng.random() < hurt: body = (png_inside if rng.random() < .8 else runs)(rng, body)
            z.writestr(info, body)
    return file.getvalue()


def behind(start):
    "Damage of voxels or pixels, behind a header of so many bytes."
    def _damage(rng, data): return data[:start] + (runs if rng.random() < .5 else touched)(rng, data[start:])
    return _damage


def dicom_inside(rng, files):
    "The first, the last or any slice is no slice any more: without content, image, class or series."
    import pydicom
    f = files[int(rng.choice([0, -1, rng.integers(len(files))]))]
    data, how = f.read_bytes(), rng.integers(8)
    rows = data.index(b'\x28\0\x10\0')
    if how < 5:
        f.write_bytes((b'', bytes(len(data)), data[:int(rng.integers(200))], data[:rows],
                       data[:rows] + runs(rng, data[rows:]))[how])
        return
    ds = pydicom.dcmread(f, force=True)
    if how < 7:
        for name in ('Rows', 'Columns', 'PixelData'): delattr(ds, name)
    if how == 5: ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.x'
    if how == 7: ds.SeriesInstanceUID = f'1.2.840.{rng.integers(9999)}.1'
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        pydicom.dcmwrite(f, ds, enforce_file_format=False)


BY_BYTES = dict(bytes=flipped, cut=cut, runs=runs)
BY_FORMAT = dict(
    field=dict(nifti=nifti_field, png=png_field, tiff=tiff_field, zip=zip_field),
    length=dict(nifti=lambda rng, d: nifti_field(rng, d, ('dim', 'vox_offset', 'bitpix', 'datatype', 'sizeof_hdr')),
                png=lambda rng, d: png_field(rng, d, True), tiff=lambda rng, d: tiff_field(rng, d, True),
                zip=lambda rng, d: zip_field(rng, d, True)),
    inside=dict(nifti=behind(348), png=png_inside, tiff=behind(8), zip=zip_inside))


def damaged(rng, data, way, kind):
    return BY_BYTES[way](rng, data) if way in BY_BYTES else BY_FORMAT[way][kind](rng, data)


# ---- inputs

def a_study(rng, way, folder):
    "DICOM of one patient, damaged; or of two, with files in the wrong place."
    files = dicom_series(folder/'in', rng, 'ANNA')
    if way == 'field': dicom_field(rng, files)
    elif way == 'inside': dicom_inside(rng, files)
    elif way == 'swap':
        others = dicom_series(folder/'other', rng, 'BERT')
        for k in rng.choice(N_SLICES, rng.integers(1, 4), replace=False):
            f = others[k]
            if rng.random() < .5: f.rename(folder/'in'/(f.name+'x')) # beside the others
            else: f.rename(files[k]) # in place of the slice
        if rng.random() < .5: dicom_field(rng, [f for f in (folder/'in').iterdir()][:1])
    else:
        damage = BY_BYTES.get(way, dicom_length)
        for f in files if rng.random() < .3 else files[:1+rng.integers(3)]: f.write_bytes(damage(rng, f.read_bytes()))
    return folder/'in'


NAMES = ('{0}_flair', '{0}_t1', 'flair_{0}', 'ward-{0}_flair', '{0} flair', '{0}.flair', '{0}_t1ce')


def volumes(rng, way, folder, packed):
    "NIfTI of one patient, damaged; or of two in one folder, named in many ways."
    (folder/'in').mkdir()
    pack, ending = (lambda d: gzip.compress(d, 1, mtime=0), '.nii.gz') if packed else (bytes, '.nii')
    if way == 'swap':
        for who in WHO:
            for pattern in rng.choice(NAMES, rng.integers(1, 4), replace=False):
                name = pattern.format(who if rng.random() < .8 else who.lower())
                (folder/'in'/(name+ending)).write_bytes(pack(nifti(rng, who)))
        return folder/'in'
    data = nifti(rng, 'ANNA')
    if way in BY_BYTES: data = damaged(rng, pack(data), way, 'nifti')
    elif way == 'inside' and packed: data = pack((runs if rng.random() < .8 else touched)(rng, data))
    else: data = pack(damaged(rng, data, way, 'nifti'))
    path = folder/'in'/f'a_flair{ending}'
    path.write_bytes(data)
    return path


def pictures(rng, way, folder, kind):
    "Slices of one patient, one or all damaged; or of two patients in one folder, or in folders beside each other."
    (folder/'in').mkdir()
    make = dict(png=png, tiff=tiff)[kind]
    if way == 'swap':
        for who in WHO:
            place = folder/'in'/who if rng.random() < .5 else folder/'in'
            place.mkdir(exist_ok=True)
            for k in range(3): (place/f'{who}_{k}.{kind}').write_bytes(make(rng, who))
        return folder/'in'
    for k in range(3):
        data = make(rng, 'ANNA')
        if not k or rng.random() < .3:
            data = damaged(rng, data, way, kind)
        (folder/'in'/f'slice_{k}.{kind}').write_bytes(data)
    return folder/'in' if rng.random() < .7 else folder/'in'/f'slice_0.{kind}'


RENAMED = ('ANNA', 'anna', 'Anna', 'BERT#', 'BERT@', '../ANNA', './ANNA', 'ANNA/BERT', 'B'*150, 'BERT\\x', '__MACOSX',
           '._BERT', 'BERT ', 'ANNA.', 'CON', '..', '', '/ANNA')


def archives(rng, way, folder):
    renamed = way == 'swap' or way in MANY_WAYS and rng.random() < .5
    data = archive(rng, ('ANNA', str(rng.choice(RENAMED)))) if renamed else archive(rng)
    if way != 'swap': data = damaged(rng, data, way, 'zip')
    (folder/'in.zip').write_bytes(data)
    return folder/'in.zip'


MAKE = dict(dicom=a_study, zip=archives,
            nifti=lambda r, w, f: volumes(r, w, f, False), nifti_gz=lambda r, w, f: volumes(r, w, f, True),
            tiff=lambda r, w, f: pictures(r, w, f, 'tiff'), png=lambda r, w, f: pictures(r, w, f, 'png'))


def way_of(i): return WAYS[i % len(WAYS)] if i < BY_RULE else MANY_WAYS[i % len(MANY_WAYS)]


# ---- reading, as the command line and the application do

def scans_of(path, folder):
    "Each scan of an input, as `Found`."
    from neuroseg.app.uploads import check_size, scans_in_files
    from neuroseg.segmentation.batch import _found_scans
    if path.suffix != '.zip': return _found_scans(path, folder/'out')
    found = scans_in_files([path])
    check_size(found)
    return found


def merged(scan):
    "Whether a scan holds slices of two patients."
    found = {whose(s) for sequence in scan.data for s in sequence} - {None}
    return len(found) > 1


def faults(text, folder):
    "What is wrong with an error's sentence."
    return [w for w in ('\n', str(folder), 'DOE', 'Traceback', 'neuroseg itself') if w in text] + ['empty']*(not text)


def lost(kind, way, scan):
    "Whether a DICOM series of one patient is read with fewer slices than there were files."
    return kind == 'dicom' and way != 'swap' and scan.n_slices < N_SLICES


def mask_faults(scan, folder):
    "What is wrong with a mask that is written for a scan and read again."
    from neuroseg.scans.nifti import read_mask, write_mask_nifti
    mask = scan.data[0] > 120
    write_mask_nifti(folder/'m.nii', mask, scan)
    return (['DOE'] if b'DOE' in (folder/'m.nii').read_bytes() else []) + (
        [] if np.array_equal(read_mask(folder/'m.nii'), mask) else ['mask'])


def judged(kind, i, segmenter, folder):
    "What became of an input."
    from neuroseg.core import NeurosegError
    from neuroseg.scans.reading import read_scan
    from neuroseg.segmentation.batch import predict_case
    path = MAKE[kind](np.random.default_rng([SEED, KINDS.index(kind), i]), way_of(i), folder)
    start, said = time.perf_counter(), dict(read=0, refused=0, merged=0, lost=0, badly=[])
    texts = []
    try: found = scans_of(path, folder)
    except NeurosegError as e: found, said['refused'], texts = [], 1, [str(e)]
    for k, f in enumerate(found):
        report = predict_case(segmenter, f, folder/'out'/str(k))
        if 'error' in report:
            said['refused'] += 1
            texts.append(report['error'])
            continue
        said['read'] += 1
        scan = read_scan(f.source)
        said['merged'] += merged(scan)
        said['lost'] += lost(kind, way_of(i), scan)
        if kind.startswith('nifti') and (wrong := mask_faults(scan, folder)): said['badly'].append(['mask', wrong])
    said['badly'] += [[t, faults(t, folder)] for t in texts if faults(t, folder)]
    return said | dict(seconds=time.perf_counter()-start)


def main(kind, first, last):
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from bright_model import bright, write_model

    from neuroseg.segmentation.result import Segmenter
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as d:
        segmenter = Segmenter(write_model(Path(d)/'model', bright()), threads=1)
        for i in range(int(first), int(last)):
            folder = Path(d)/str(i); folder.mkdir()
            try: said = judged(kind, i, segmenter, folder)
            except Exception: said = dict(traceback=traceback.format_exc())
            print('@'+json.dumps(said | dict(number=i)), flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
