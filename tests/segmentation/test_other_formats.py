"""Volumes in other formats: the error names a command, and the command, run as it stands, keeps the geometry.

The files of MetaImage and NRRD are written here by hand, so that no library writes what it reads itself.
"""
import importlib.util, os, subprocess, sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from bright_model import bright, write_model

from neuroseg.core import InputError
from neuroseg.scans.reading import read_scan
from neuroseg.segmentation.batch import predict_cases

@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


Z, Y, X = np.mgrid[:6, :44, :40]
HEAD = ((X-20)/15)**2 + ((Y-22)/18)**2 < 1
VOLUME = (HEAD*(300+100*np.random.default_rng(0).random(HEAD.shape))).astype('<i2') # (z,y,x)
VOLUME[2:4, 16:26, 12:20] += 600
VOLUME[1, 5:8, 20] = 2000 # a mark on one side
ANGLE = np.radians(20)
DIRECTIONS = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, 1]]) # columns
SPACING, ORIGIN = np.array([.9, .8, 4.4]), np.array([-20., -25., 10.]) # mm, to the left, posterior, superior
TO_RAS = np.diag([-1., -1, 1, 1])
AFFINE = TO_RAS @ nib.affines.from_matvec(DIRECTIONS*SPACING, ORIGIN)


def text(v): return ' '.join(f'{x:.9f}' for x in np.ravel(v))


def metaimage(path):
    "MHA, or MHD with the voxels in a second file."
    apart = path.suffix == '.mhd'
    head = (f'ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n'
            f'CompressedData = False\nTransformMatrix = {text(DIRECTIONS.T)}\nOffset = {text(ORIGIN)}\n'
            f'ElementSpacing = {text(SPACING)}\nDimSize = 40 44 6\nElementType = MET_SHORT\n'
            f'ElementDataFile = {"voxels.raw" if apart else "LOCAL"}\n')
    if apart: (path.parent/'voxels.raw').write_bytes(VOLUME.tobytes())
    path.write_bytes(head.encode() + (b'' if apart else VOLUME.tobytes()))


def nrrd(path, space='left-posterior-superior'):
    "NRRD, or NHDR with the voxels in a second file."
    apart, signs = path.suffix == '.nhdr', np.array([1, 1, 1] if space.startswith('left') else [-1, -1, 1])
    axes = ' '.join('('+','.join(f'{x:.9f}' for x in signs*d)+')' for d in (DIRECTIONS*SPACING).T)
    head = (f'NRRD0005\ntype: short\ndimension: 3\nspace: {space}\nsizes: 40 44 6\nspace directions: {axes}\n'
            f'kinds: domain domain domain\nendian: little\nencoding: raw\n'
            f'space origin: ({",".join(map(str, signs*ORIGIN))})\n' + ('data file: voxels.raw\n' if apart else '\n'))
    if apart: (path.parent/'voxels.raw').write_bytes(VOLUME.tobytes())
    path.write_bytes(head.encode() + (b'' if apart else VOLUME.tobytes()))


def nrrd_ras(path): nrrd(path, 'right-anterior-superior')
def freesurfer(path): nib.save(nib.MGHImage(VOLUME.T.astype(np.float32), AFFINE), path)
def pair(path): nib.save(nib.Nifti1Pair(VOLUME.T, AFFINE), path)


KINDS = [('a.mha', metaimage), ('a.mhd', metaimage), ('a.MHA', metaimage), ('a.nrrd', nrrd), ('b.nrrd', nrrd_ras),
         ('a.NRRD', nrrd), ('a.nhdr', nrrd), ('a.mgz', freesurfer), ('a.mgh', freesurfer), ('a.hdr', pair),
         ('a.img', pair), ("Anna's scan $1.mgz", freesurfer)]


def command_for(path):
    "The command that the error names."
    with pytest.raises(InputError) as e: read_scan(path)
    said = str(e.value)
    assert said.startswith(f'`{path.name}` is a volume in a format that is not read; in its folder, convert it to ')
    return said.split('NIfTI with: ')[1]


def converted(path):
    "What the command makes, run by a shell in the folder of the file; `pip install` is left to who runs the tests."
    install, _, command = command_for(path).rpartition(' && ')
    module = install.rpartition(' ')[2]
    if module and not importlib.util.find_spec(module):
        pytest.skip(f'{module} is not installed, which the command installs: {install}')
    here = Path(sys.executable).parent # its `python` is that of the tests
    before = set(path.parent.iterdir())
    subprocess.run(command, shell=True, cwd=path.parent, check=True, env=os.environ | dict(
        PATH=f'{here}{os.pathsep}{os.environ["PATH"]}'))
    made, = set(path.parent.iterdir())-before
    return made


@pytest.mark.parametrize('name, write', KINDS, ids=[n for n, _ in KINDS])
def test_the_command_keeps_the_geometry(tmp_path, card_path, name, write):
    write(tmp_path/name)
    made = converted(tmp_path/name)
    scan = read_scan(made)
    assert np.array_equal(scan.data[0], VOLUME) and np.allclose(scan.affine, AFFINE, atol=1e-4)
    report, = predict_cases(made, tmp_path/'out', model=card_path)
    mask = nib.load(tmp_path/'out'/report['case']/'mask.nii.gz')
    assert np.allclose(mask.affine, AFFINE, atol=1e-4)
    assert report['volume_ml'] == pytest.approx(report['lesion_px']*np.prod(SPACING)/1000, rel=1e-4)
    assert report['lesion_px'] > 0 and 'laterality_unknown' not in {w['code'] for w in report['warnings']}


def test_analyze_does_not_tell_the_side_and_neither_does_the_result(tmp_path, card_path):
    nib.save(nib.AnalyzeImage(VOLUME.T, np.diag([-.9, .8, 4.4, 1])), tmp_path/'a.hdr')
    report, = predict_cases(converted(tmp_path/'a.hdr'), tmp_path/'out', model=card_path)
    assert 'laterality_unknown' in {w['code'] for w in report['warnings']}
    assert report['volume_ml'] == pytest.approx(report['lesion_px']*np.prod(SPACING)/1000, rel=1e-4)


@pytest.mark.parametrize('name', ['tiny.mnc', 'small.mnc']) # MINC 1, and MINC 2, which is HDF5
def test_minc(tmp_path, name):
    "ITK reads only MINC 2, and takes its millimetres to the right for millimetres to the left."
    sample = Path(nib.__file__).parent/'tests'/'data'/name
    if not sample.exists(): pytest.skip('this nibabel has no test data')
    (tmp_path/'a.mnc').write_bytes(sample.read_bytes())
    made = nib.load(converted(tmp_path/'a.mnc'))
    known = dict(tiny=np.array([[0, 0, 2, -20], [0, 2, 0, -20], [2, 0, 0, -10], [0, 0, 0, 1]]), # as MINC's tools say
                 small=np.array([[0, 0, 7, -98], [0, 8, 0, -134], [9, 0, 0, -72], [0, 0, 0, 1]]))
    assert np.allclose(made.affine, known[name.split('.')[0]])


def test_nothing_is_overwritten(tmp_path):
    freesurfer(tmp_path/'a.mgz')
    (tmp_path/'a.nii.gz').write_bytes(b'another scan')
    assert converted(tmp_path/'a.mgz').name == 'a.mgz.nii.gz'


def test_the_sentence(tmp_path, card_path):
    for ending, tool in (('mha', 'pip install SimpleITK && python -c'), ('nrrd', 'pip install SimpleITK && python -c'),
                         ('mnc', 'pip install h5py && python -c'), ('mgz', 'python -c'), ('hdr', 'python -c')):
        (tmp_path/f'brain.{ending}').write_bytes(b'x'*500)
        command = command_for(tmp_path/f'brain.{ending}')
        assert command.startswith(tool) and command.endswith(f'" brain.{ending} brain.nii.gz')
    for said in predict_cases([tmp_path/'brain.mha'], tmp_path/'out', model=card_path):
        assert 'convert it to NIfTI with' in said['error'] # as an error of its own case
