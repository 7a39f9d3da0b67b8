"""A mask written as DICOM lies where it lay: read back by other programs, for every direction of slices."""
import shutil, subprocess, sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

hd = pytest.importorskip('highdicom')
import nibabel as nib
import pydicom

from neuroseg.core import InputError
from neuroseg.hospital.dicom_seg import seg_dataset, source_series
from neuroseg.hospital.dicom_sr import sr_dataset, write_dicom
from neuroseg.hospital.series import write_series
from neuroseg.scans.phantom import sample_path
from neuroseg.scans.reading import read_scan
from neuroseg.scans.stacks import Scan
from neuroseg.segmentation.result import segment

HALF, QUARTER = np.sqrt(.5), np.pi/4
# Directions of columns (x), rows (y) and slices (z) of a scan, right-anterior-superior
DIRECTIONS = {
    'axial': np.diag([-1.,-1.,1.]),
    'axial, slices from the top down': np.diag([-1.,-1.,-1.]),
    'sagittal': np.array([[0,0,1.],[-1,0,0],[0,-1,0]]),
    'coronal': np.array([[-1,0,0],[0,0,1.],[0,-1,0]]),
    'oblique': np.array([[-1,0,0],[0,-np.cos(.4),-np.sin(.4)],[0,-np.sin(.4),np.cos(.4)]]),
    'left-handed': np.array([[1.,0,0],[0,-1,0],[0,0,1]]),
}

@pytest.fixture(scope='module')
def model_result(): return segment(sample_path())

def _scan(directions):
    "A small scan of noise with voxels of 4 x 0.9 x 1.1 mm."
    spacing = (4.,.9,1.1)
    affine = np.eye(4)
    affine[:3,:3] = directions*np.array(spacing[::-1])
    affine[:3,3] = -31.,17.,5.
    data = np.random.default_rng(0).random((1,7,24,20)).astype(np.float32)
    return Scan(data, ('flair',), spacing, affine, [f'slice_{i:03d}' for i in range(7)], 'volume', 'noise', [])

def _mask(shape):
    "A lump without any symmetry."
    m = np.zeros(shape, bool)
    m[2,5:9,3:11], m[3,5:15,3:6], m[5,20,17] = True, True, True
    return m

@pytest.fixture(params=DIRECTIONS)
def result(request, tmp_path, model_result):
    "A result with a known mask, whose scan was read from DICOM."
    scan = _scan(DIRECTIONS[request.param])
    files = write_series(scan, tmp_path/'series')
    read = read_scan(tmp_path/'series')
    mask = _mask(read.shape)
    found = replace(model_result, mask=mask, prob=mask*.9, scan=read, files=files[::-1])
    return found.with_threshold(.5)

def _places(affine, mask_xyz): return nib.affines.apply_affine(affine, np.argwhere(mask_xyz))

def _same_places(a, b):
    "Whether two sets of points in mm are one set."
    assert len(a)==len(b)
    apart = np.linalg.norm(a[:,None]-b[None], axis=-1).min(0)
    assert apart.max()<1e-2

def test_the_mask_comes_back_to_each_slice(result, tmp_path):
    seg = seg_dataset(result)
    seg.save_as(tmp_path/'seg.dcm')
    source = source_series(result.files, result.scan)
    back = hd.seg.segread(tmp_path/'seg.dcm').get_pixels_by_source_instance(
        source.instance_uids, combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(back.astype(bool), result.mask)

def test_frames_lie_where_the_standard_says(result, tmp_path):
    "Positions of voxels computed from the frames' own attributes, without highdicom."
    seg_dataset(result).save_as(tmp_path/'seg.dcm')
    ds = pydicom.dcmread(tmp_path/'seg.dcm')
    shared = ds.SharedFunctionalGroupsSequence[0]
    row, column = np.asarray(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float).reshape(2,3)
    down, right = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    points = []
    for frame,plane in zip(ds.PerFrameFunctionalGroupsSequence, ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)):
        origin = np.asarray(frame.PlanePositionSequence[0].ImagePositionPatient, float)
        points += [origin + row*right*x + column*down*y for y,x in np.argwhere(plane)]
    _same_places(np.array(points)*[-1,-1,1], _places(result.scan.affine, result.mask.transpose(2,1,0)))

@pytest.mark.skipif(not Path(sys.executable).with_name('segimage2itkimage').exists(), reason='dcmqi is not installed')
def test_dcmqi_reads_the_same_world_mask(result, tmp_path):
    seg_dataset(result).save_as(tmp_path/'seg.dcm')
    tool = Path(sys.executable).with_name('segimage2itkimage')
    subprocess.run([tool, '--inputDICOM', tmp_path/'seg.dcm', '--outputDirectory', tmp_path, '-t', 'nii', '-p', 'x'],
                   check=True, capture_output=True, timeout=60)
    image = nib.load(tmp_path/'x-1.nii.gz')
    _same_places(_places(image.affine, np.asarray(image.dataobj)>0),
                 _places(result.scan.affine, result.mask.transpose(2,1,0)))

@pytest.mark.skipif(not shutil.which('dciodvfy'), reason='dciodvfy (Debian: dicom3tools) is not installed')
@pytest.mark.parametrize('kind', ('seg','seg with empty frames','sr'))
def test_dciodvfy_finds_no_error(result, tmp_path, kind):
    ds = sr_dataset(result) if kind=='sr' else seg_dataset(result, empty_frames='empty' in kind)
    ds.save_as(tmp_path/'out.dcm')
    assert _validated(tmp_path/'out.dcm')==[]

def test_a_changed_mask_is_another_object(result):
    seg, changed = seg_dataset(result), replace(result, mask=result.mask & (np.arange(20)<5))
    assert seg_dataset(changed).SOPInstanceUID!=seg.SOPInstanceUID
    assert sr_dataset(changed).SOPInstanceUID!=sr_dataset(result).SOPInstanceUID

def test_an_empty_mask_is_an_object_too(result, tmp_path):
    empty = replace(result, prob=result.prob*0).with_threshold(.5)
    seg_dataset(empty).save_as(tmp_path/'seg.dcm')
    assert not pydicom.dcmread(tmp_path/'seg.dcm').pixel_array.any()
    assert sr_dataset(empty).SOPClassUID=='1.2.840.10008.5.1.4.1.1.88.34'

def test_a_moved_scan_is_refused(result):
    moved = result.scan.affine.copy()
    moved[2,3] += 1.
    with pytest.raises(InputError, match='not read from a DICOM series'):
        source_series(result.files, replace(result.scan, affine=moved))

@pytest.mark.parametrize('tag', ('FrameOfReferenceUID','StudyInstanceUID'))
def test_an_object_without_an_examination_is_refused(tmp_path, model_result, tag):
    files = write_series(_scan(DIRECTIONS['axial']), tmp_path/'series')
    for f in files:
        ds = pydicom.dcmread(f)
        delattr(ds, tag)
        ds.save_as(f)
    scan = read_scan(tmp_path/'series')
    found = replace(model_result, mask=_mask(scan.shape), prob=_mask(scan.shape)*.9, scan=scan, files=files)
    with pytest.raises(InputError, match=f'has no {tag}'): seg_dataset(found.with_threshold(.5))

def _validated(path):
    "Errors that dciodvfy finds in a file; none where it is not installed."
    if not shutil.which('dciodvfy'): return []
    said = subprocess.run(['dciodvfy', path], capture_output=True, text=True, timeout=60)
    return [line for line in (said.stderr+said.stdout).splitlines() if line.startswith('Error')]

@pytest.mark.parametrize('tag,written', [('FrameOfReferenceUID', ['sr.dcm']), ('StudyInstanceUID', [])])
def test_what_an_identifier_does_not_allow_is_told_and_the_rest_delivered(tmp_path, model_result, tag, written):
    files = write_series(_scan(DIRECTIONS['oblique']), tmp_path/'series')
    for f in files:
        ds = pydicom.dcmread(f)
        delattr(ds, tag)
        ds.save_as(f)
    scan = read_scan(tmp_path/'series')
    found = replace(model_result, prob=_mask(scan.shape)*.9, scan=scan, files=files).with_threshold(.5)
    said = found.save(tmp_path/'out', also=[partial(write_dicom, seg=True, sr=True)])
    assert said['files']==['mask.nii.gz', 'preview.png', *written]
    told = [w['text'] for w in said['warnings'] if w['code']=='dicom_not_written']
    assert len(told)==2-len(written) and all(f'the series has no {tag};' in t for t in told)
    assert told[0].startswith('no DICOM SEG was written: ')
    for name in written:
        ds = pydicom.dcmread(tmp_path/'out'/name)
        assert _validated(tmp_path/'out'/name)==[]
        assert {str(i.ReferencedSOPInstanceUID) for s in ds.CurrentRequestedProcedureEvidenceSequence
                for r in s.ReferencedSeriesSequence for i in r.ReferencedSOPSequence}==set(
                    source_series(files, scan).instance_uids)

def test_attributes_that_may_be_empty_may_be_absent(tmp_path, model_result):
    files = write_series(_scan(DIRECTIONS['axial']), tmp_path/'series')
    for f in files:
        ds = pydicom.dcmread(f)
        for tag in ('PatientBirthDate','PatientName','PatientID','AccessionNumber','StudyID','PatientSex'):
            delattr(ds, tag)
        ds.save_as(f)
    scan = read_scan(tmp_path/'series')
    found = replace(model_result, mask=_mask(scan.shape), prob=_mask(scan.shape)*.9, scan=scan, files=files)
    assert seg_dataset(found.with_threshold(.5)).StudyInstanceUID==pydicom.dcmread(files[0]).StudyInstanceUID

def test_files_without_preamble_are_given_back_too(tmp_path, model_result):
    "`predict` reads them, so a result of theirs has a SEG."
    files = write_series(_scan(DIRECTIONS['oblique']), tmp_path/'series')
    for f in files: f.write_bytes(f.read_bytes()[132:])
    scan = read_scan(tmp_path/'series')
    found = replace(model_result, prob=_mask(scan.shape)*.9, scan=scan, files=files).with_threshold(.5)
    assert int(seg_dataset(found).NumberOfFrames)==found.mask.any((1,2)).sum()>0

def test_a_slice_of_unknown_thickness_is_refused(tmp_path, model_result):
    files = write_series(_scan(DIRECTIONS['axial']), tmp_path/'series')[:1]
    ds = pydicom.dcmread(files[0])
    del ds.SliceThickness, ds.SpacingBetweenSlices
    (tmp_path/'one').mkdir()
    ds.save_as(tmp_path/'one'/'IM')
    scan = read_scan(tmp_path/'one')
    assert scan.spacing_mm is None
    found = replace(model_result, mask=_mask((7,24,20))[2:3], prob=_mask((7,24,20))[2:3]*.9, scan=scan,
                    files=[tmp_path/'one'/'IM'])
    with pytest.raises(InputError, match='positions and spacing are known'): seg_dataset(found.with_threshold(.5))
