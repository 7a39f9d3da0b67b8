"Files that the tests of the readers write, and what every message must be."
import numpy as np
import nibabel as nib
from PIL import Image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (20, 14), dtype=np.uint8)


def save(path, array, mode=None, **kw):
    "A picture file."
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.fromarray(array, mode) if mode is None else Image.fromarray(array).convert(mode)
    im.save(path, **kw)
    return path


def nifti(path, shape=(5, 4, 3), dtype=np.int16, affine=None, cls=nib.Nifti1Image, **header):
    "A NIfTI file with random voxels."
    img = cls(RNG.integers(0, 100, shape).astype(dtype), np.diag([1, 1, 2, 1.]) if affine is None else affine)
    for k, v in header.items(): img.header[k] = v
    img.to_filename(path)
    return path


def one_sentence(error, *words):
    "The message is one line with a code, names what it should, and shows no path."
    text = str(error.value)
    assert '\n' not in text and not any(p in text for p in ('/tmp', '/home', 'PosixPath')), text
    for w in words: assert w in text, text
    assert error.value.message.code != 'error', text # a message of its own, which can be translated
