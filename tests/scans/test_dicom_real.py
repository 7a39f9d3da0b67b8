"Real DICOM of six makers and a study as a hospital exported it: what is accepted, and its geometry against dcm2niix."
import os
from pathlib import Path

import pytest
from test_dicom_index import by_dcm2niix, corner_error_mm, corners_mm

from neuroseg.core import MissingExtraError
from neuroseg.scans.dicom_index import dicom_index, series_volume
from neuroseg.scans.dicom_study import chosen_series, taken_for
from neuroseg.scans.reading import expand, read_scan

pytestmark = pytest.mark.realdata
ROOT = Path(os.environ.get('NEUROSEG_DATA') or 'nowhere')/'dicom'
STUDY = ROOT/'study'/'study'

# Folder of a series to what it shows, or the attribute for which it is refused
SERIES = {
    'study/study/SE000001': 't1', 'study/study/SE000002': 't2', 'study/study/SE000005': 'DiffusionBValue',
    'study/study/SE000006': 'ImageOrientationPatient', 'study/study/SE000008': 't1', 'study/study/SE000009': 'flair',
    'anatomical/001': 't1', 'failing/slicecount/001': 'SpacingBetweenSlices',
    'failing/sliceorientation/001': 'PixelSpacing', 'ge/anatomical/001': 't1', 'ge/anatomical/001_implicit': 't1',
    'ge/anatomical/001_single_slice': 't1', 'generic/anatomical/001': 'flair',
    'generic/anatomical/001_implicit': 'flair',
    'generic/anatomical/002_non_isotropic': 't1', 'generic/compressed_j2k/001': 'flair',
    'generic/compressed_jpeg/001': 'flair', 'generic/compressed_jpegls/001': 'flair',
    'generic/compressed_rle/001': 'flair', 'hitachi/anatomical/001': 'pd', 'hitachi/anatomical/001_implicit': 'pd',
    'hyperfine/anatomical/001': None, 'philips/anatomical/001': 'flair', 'philips/anatomical/001_implicit': 'flair',
    'philips/anatomical/002': 'ImagePositionPatient', 'philips_enhanced/anatomical/001': 't1',
    'philips_enhanced/anatomical/001_implicit': 't1', 'siemens/anatomical/001': 'flair',
    'siemens/anatomical/001_implicit': 'flair', 'siemens_multiframe/anatomical/001': None}


def folder_of(name):
    "The folder of a series; a test without it is skipped."
    folder = ROOT/name if name.startswith('study') else ROOT/'vendors'/'vendors'/name
    if not folder.is_dir(): pytest.skip(f'{name} is not in $NEUROSEG_DATA/dicom')
    return folder


@pytest.mark.parametrize('name', SERIES)
def test_each_series_is_accepted_or_refused_by_an_attribute(name):
    study, = dicom_index(folder_of(name))
    s, = study.series
    if s.fault: assert SERIES[name] in s.fault
    else: assert taken_for(study)[s.uid][0] == SERIES[name]


@pytest.mark.parametrize('name', SERIES)
def test_corners_of_every_accepted_series_agree_with_dcm2niix(name, tmp_path):
    s, = dicom_index(folder_of(name))[0].series
    if s.fault: pytest.skip('refused')
    assert corner_error_mm(corners_mm(s.affine, s.shape[::-1]), by_dcm2niix(folder_of(name), tmp_path)) < .01


def test_compressed_series_hold_the_same_image():
    found = []
    for kind in ('rle', 'j2k', 'jpeg', 'jpegls'):
        try: found.append(series_volume(dicom_index(folder_of(f'generic/compressed_{kind}/001'))[0].series[0]))
        except MissingExtraError as e: assert "'.[dicom]'" in str(e)
    assert len(found) >= 2 and all((v == found[0]).all() for v in found)


def test_the_study_as_exported():
    folder_of('study/study/SE000009')
    found, = expand(STUDY)
    taken, notes = chosen_series(found.source)
    assert {role: s.get('SeriesNumber') for role, s in taken.items()} == {'flair': 201}
    assert 'contrast_unknown' in {n.code for n in notes}
    scan = read_scan(found.source)
    assert scan.shape == (25, 256, 256) and scan.spacing_mm == pytest.approx((5.5, .8984375, .8984375), abs=1e-4)
