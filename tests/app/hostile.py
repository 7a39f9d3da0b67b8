"Broken and misleading inputs: name, files, and words of the sentence that the visitor sees instead of a traceback."
import gzip, io, struct, zipfile, zlib

import nibabel as nib
import numpy as np
from PIL import Image


def png(shape=(32, 32), value=90, mode='L'):
    file = io.BytesIO()
    Image.new(mode, shape[::-1], value).save(file, 'PNG')
    return file.getvalue()


def noise_png(side=64):
    return as_file(Image.fromarray(np.random.default_rng(0).integers(90, 250, (side, side, 3)).astype(np.uint8)), 'PNG')


def as_file(image, kind, **kw):
    file = io.BytesIO(); image.save(file, kind, **kw)
    return file.getvalue()


def png_claiming(width, height):
    "A PNG whose header promises far more than it holds."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(b'IDAT',
        zlib.compress(b'\0'*100)) + chunk(b'IEND', b'')


AFFINE = np.diag([-1., -1., 5., 1.])


def nifti(values=None, *, affine=AFFINE, dtype=np.float32, change=None):
    "A packed NIfTI volume; `change` works on its unpacked bytes."
    v = np.random.default_rng(0).random((24, 32, 8)) if values is None else values
    raw = bytearray(nib.Nifti1Image(np.asarray(v).astype(dtype), affine).to_bytes())
    if change: change(raw)
    return gzip.compress(bytes(raw), 1)


def put(fmt, at, *values):
    def _change(raw): struct.pack_into(fmt, raw, at, *values)
    return _change


def zipped(files, **kw):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, **kw) as z:
        for name, data in files.items(): z.writestr(name, data)
    return file.getvalue()


def zip_bomb(mb=1200):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as z, z.open('zeros.nii', 'w',
            force_zip64=True) as f:
        for _ in range(mb//100): f.write(bytes(10**8))
    return file.getvalue()


def locked_zip():
    "The mark of encryption on both headers of a plain file."
    data = bytearray(zipped({'a.png': png()}))
    data[6] |= 1; data[data.index(b'PK\1\2')+8] |= 1
    return bytes(data)


def crooked_zip():
    "An archive whose content does not fit its check sum."
    data = bytearray(zipped({'a.png': png()})); data[45] ^= 255
    return bytes(data)


def dicom(change=None, **tags):
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    v = np.random.default_rng(0).integers(0, 900, (24, 20)).astype(np.uint16)
    for k, x in dict(SOPClassUID=MRImageStorage, SOPInstanceUID='1.2.3', SeriesInstanceUID='1.2',
                     SeriesDescription='FLAIR', Rows=24, Columns=20, BitsAllocated=16, BitsStored=12, HighBit=11,
                     PixelRepresentation=0, SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2',
                     PixelData=v.tobytes()).items(): setattr(ds, k, x)
    for k, x in tags.items():
        if x is None: delattr(ds, k)
        else: setattr(ds, k, x)
    file = io.BytesIO(); pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def dicom_film():
    "A slice that says it is compressed as a film (MPEG-2), which no reader of slices decodes."
    import pydicom
    ds = pydicom.dcmread(io.BytesIO(dicom()))
    ds.file_meta.TransferSyntaxUID = pydicom.uid.MPEG2MPML
    ds.PixelData = pydicom.encaps.encapsulate([bytes(100)])
    file = io.BytesIO(); pydicom.dcmwrite(file, ds, enforce_file_format=True)
    return file.getvalue()


def packed_dicom(mb=300):
    "A data set that is a thousand times larger once it is inflated."
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian, MRImageStorage
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = MRImageStorage, '1.2.3'
    file = io.BytesIO(b'\0'*128 + b'DICM'); file.seek(132)
    pydicom.filewriter.write_file_meta_info(file, meta, enforce_standard=True)
    pack = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    return file.getvalue() + b''.join(pack.compress(bytes(10**6)) for _ in range(mb)) + pack.flush()


def nested_dicom(depth=3000):
    "A sequence in a sequence in a sequence, none of them of stated length."
    whole = dicom()
    open_ = struct.pack('<HH2sHI', 0x0008, 0x1140, b'SQ', 0, 0xFFFFFFFF) + struct.pack('<HHI', 0xFFFE, 0xE000,
        0xFFFFFFFF)
    at = whole.index(struct.pack('<HH', 0x0008, 0x0016)) # the data set begins
    return whole[:at] + open_*depth + whole[at:]


def png_with_a_book(mb=100):
    "A text in a picture that unpacks to far more than the picture."
    whole = png()
    data = b'note\0\0' + zlib.compress(bytes(mb*10**6), 1)
    chunk = struct.pack('>I', len(data)) + b'zTXt' + data + struct.pack('>I', zlib.crc32(b'zTXt'+data))
    return whole[:33] + chunk + whole[33:]


def endless_listing():
    "An archive that says its list of files is three gigabytes long."
    data = bytearray(zipped({'a.png': png()}))
    struct.pack_into('<I', data, data.index(b'PK\5\6')+12, 3*10**9)
    return bytes(data)


def huge_film(n=22, shape=(1440, 2048)):
    "Black pictures of three megapixels, which a video packs to nothing."
    import av
    file = io.BytesIO()
    with av.open(file, 'w', format='mp4') as box:
        s = box.add_stream('mpeg4', rate=10)
        s.height, s.width, s.pix_fmt = *shape, 'yuv420p'
        frame = av.VideoFrame.from_ndarray(np.zeros((shape[0]*3//2, shape[1]), np.uint8), format='yuv420p')
        for k in range(n): frame.pts = k; box.mux(s.encode(frame))
        box.mux(s.encode())
    return file.getvalue()


def tiff_bomb():
    "One bit a pixel, packed: a few kilobytes that are a gigapixel."
    return as_file(Image.new('1', (20_000, 20_000)), 'TIFF', compression='group4')


def broken_avi(): return b'RIFF' + struct.pack('<I', 10**6) + b'AVI LIST' + b'\0'*300


def broken_mp4():
    return struct.pack('>I', 24) + b'ftypisom' + b'\0'*12 + struct.pack('>I', 2**31) + b'moov' + b'\xff'*200


def nested_zip(): return zipped({'inner.zip': zipped({'a.png': png()})})


N = nifti
MANY = {f's_{k}.png': png() for k in range(601)}
# (what it is, files as name to content, words of the sentence)
HOSTILE = [
    ('an empty picture', {'a.png': b''}, 'cannot be read'),
    ('text named PNG', {'a.png': b'hello'}, 'cannot be read'),
    ('a torn PNG', {'a.png': noise_png()[:400]}, 'cannot be read'),
    ('a PNG of one grey level', {'a.png': png()}, '^a: the scan is one flat value'),
    ('a PNG of one pixel', {'a.png': png((1, 1))}, 'flat value|pixels'),
    ('a PNG that promises a terapixel', {'a.png': png_claiming(10**6, 10**6)}, 'allowed|pixels|cannot be read'),
    ('a PNG that promises 400 megapixels', {'a.png': png_claiming(20_000, 20_000)}, 'allowed|exceeds limit'),
    ('a PNG of no width', {'a.png': png_claiming(0, 10)}, 'cannot be read|nothing in it'),
    ('a TIFF of a header only', {'a.tif': b'II*\0\x08\0\0\0'}, 'cannot be read'),
    ('a TIFF of 400 megapixels in kilobytes', {'a.tif': tiff_bomb()}, 'allowed|exceeds limit'),
    ('a TIFF that points to itself', {'a.tif': b'II*\0' + struct.pack('<IHHHIII', 8, 1, 256, 3, 1, 9, 8)},
     'cannot be read'),
    ('a TIFF with values that are no numbers',
     {'a.tif': as_file(Image.fromarray(np.full((8, 8), np.nan, np.float32)), 'TIFF')}, 'NaN'),
    ('a torn JPEG', {'a.jpg': as_file(Image.new('RGB', (64, 64)), 'JPEG')[:150]}, 'cannot be read'),
    ('a PNG with a text of 100 MB in it', {'a.png': png_with_a_book()}, 'cannot be read'),
    ('a GIF named PNG', {'a.png': as_file(Image.new('L', (8, 8)), 'GIF')}, 'cannot be read'),
    ('PostScript named PNG', {'a.png': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run'},
     'cannot be read'),
    ('SVG named PNG', {'a.png': b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'},
     'cannot be read'),
    ('slices of unlike size', {'s_1.png': noise_png(40), 's_2.png': noise_png(50)}, 'one size'),
    ('grey and colour slices mixed',
     {'s_1.png': noise_png(40),
      's_2.png': as_file(Image.fromarray(np.random.default_rng(0).integers(0, 250, (40, 40)).astype(np.uint8)), 'PNG')},
      'must be alike'),
    ('601 pictures', MANY, 'allowed'),
    ('two files of one name', {'x/a.png': png(), 'a.png': png()}, 'uploaded twice'),
    ('a mask given as scan', {'p_mask.png': png()}, 'mask by its name'),
    ('an empty NIfTI', {'a.nii.gz': b''}, 'no NIfTI volume'),
    ('text named NIfTI', {'a.nii': b'hello'*100}, 'no NIfTI volume'),
    ('a torn NIfTI', {'a.nii.gz': nifti()[:900]}, 'cannot be read'),
    ('a NIfTI without voxels', {'a.nii.gz': gzip.compress(gzip.decompress(nifti())[:352])}, 'ends after'),
    ('a NIfTI of eight billion voxels', {'a.nii.gz': N(change=put('<3h', 42, 2000, 2000, 2000))}, 'allowed'),
    ('a NIfTI of negative size', {'a.nii.gz': N(change=put('<3h', 42, -5, 32, 8))},
     'no volume in it|cannot be read|expected'),
    ('a NIfTI of no slices', {'a.nii.gz': N(change=put('<3h', 42, 24, 32, 0))}, 'no volume in it'),
    ('a NIfTI film in four dimensions', {'a.nii.gz': N(np.zeros((8, 8, 4, 3)))}, '4-D'),
    ('a NIfTI of NaN', {'a.nii.gz': N(np.full((8, 8, 4), np.nan))}, 'NaN'),
    ('a NIfTI of infinity', {'a.nii.gz': N(np.where(np.arange(256).reshape(8, 8, 4) == 9, np.inf, 1))},
     'NaN or infinite'),
    ('a NIfTI whose affine is NaN', {'a.nii.gz': N(change=put('<4f', 280, *[float('nan')]*4))},
     'no place in space|affine'),
    ('a NIfTI that is one value', {'a.nii.gz': N(np.ones((8, 8, 4)))}, 'one flat value'),
    ('a NIfTI of colours', {'a.nii.gz': N(change=put('<2h', 70, 128, 24))}, 'plain grey levels|ends after'),
    ('a NIfTI of unknown type', {'a.nii.gz': N(change=put('<h', 70, 999))}, 'cannot be read'),
    ('a NIfTI whose voxels begin in the far distance', {'a.nii.gz': N(change=put('<f', 108, 1e9))},
     'bytes before its voxels|ends after'),
    ('sequences of unlike grids',
     {'p_flair.nii.gz': nifti(), 'p_post.nii.gz': N(np.random.default_rng(0).random((24, 30, 8)))},
     "resample one to the other's grid"),
    ('a contrast series without FLAIR', {'p_post.nii.gz': nifti(), 'p_pre.nii.gz': nifti()}, 'FLAIR|flair'),
    ('DICM and nothing else', {'a.dcm': b'\0'*128 + b'DICM'}, 'no image'),
    ('text named DICOM', {'a.dcm': b'hello'}, 'cannot be read'),
    ('a DICOM without pixels', {'a.dcm': dicom(PixelData=None)}, 'no DICOM images|cannot be read'),
    ('a DICOM that promises more than it holds', {'a.dcm': dicom(Rows=5000, Columns=5000)}, 'cannot be read'),
    ('a DICOM of 65535 x 65535', {'a.dcm': dicom(Rows=65535, Columns=65535)}, 'allowed'),
    ('a DICOM that inflates to 300 MB', {'a.dcm': packed_dicom()}, 'packed DICOM'),
    ('a DICOM of three thousand nested sequences', {'a.dcm': nested_dicom()}, 'cannot be read'),
    ('a DICOM that nobody here can decode', {'a.dcm': dicom_film()}, 'cannot be read'),
    ('a DICOM film', {'a.dcm': dicom(NumberOfFrames='30')}, 'multi-frame'),
    ('DICOM slices at one place',
     {f'{k}.dcm': dicom(SOPInstanceUID=f'1.2.{k}', ImagePositionPatient=[0, 0, 0],
                        ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1]) for k in (1, 2)},
     'at one place'),
    ('text named zip', {'a.zip': b'hello'}, 'cannot be read'),
    ('an empty zip', {'a.zip': zipped({})}, 'is empty'),
    ('a zip of nothing readable', {'a.zip': zipped({'notes.txt': b'hello'})}, 'holds no scan'),
    ('a zip in a zip', {'a.zip': nested_zip()}, 'holds no scan'),
    ('a zip bomb', {'a.zip': zip_bomb()}, 'allowed'),
    ('a zip of 601 files', {'a.zip': zipped(MANY)}, 'allowed'),
    ('a zip whose list of files is 3 GB', {'a.zip': endless_listing()}, 'allowed'),
    ('a zip with a password', {'a.zip': locked_zip()}, 'password'),
    ('a zip with a wrong check sum', {'a.zip': crooked_zip()}, 'cannot be read'),
    ('a zip that climbs out of its folder', {'a.zip': zipped({'../../../evil.png': b'x'})}, 'cannot be read'),
    ('a torn AVI', {'a.avi': broken_avi()}, 'cannot be read|no frame|no pictures'),
    ('a film of huge black pictures', {'a.mp4': huge_film()}, 'allowed'),
    ('a torn MP4', {'a.mp4': broken_mp4()}, 'cannot be read|no frame|no pictures'),
    ('a play list named MP4', {'a.mp4': b'#EXTM3U\nhttp://localhost:1/x.ts\n'}, 'no MP4 or AVI'),
    ('a play list of local files named AVI', {'a.avi': b"ffconcat version 1.0\nfile '/etc/passwd'\n"}, 'no MP4 or AVI'),
    ('a program', {'a.exe': b'MZ\x90\0'}, 'kind that is not read'),
    ('a web page', {'a.html': b'<script>alert(1)</script>'}, 'kind that is not read'),
    ('a pickle', {'a.pkl': b'\x80\x04.'}, 'kind that is not read'),
    ('a name that is a path', {'../../etc/passwd': b'x'}, 'kind that is not read|cannot be read'),
    ('a name of dots', {'...': b'x'}, 'no name'),
    ('a name that is Markdown', {'![x](http://localhost:1/p.png).png': b'x'}, 'cannot be read'),
]
