"""A damaged file beside a DICOM series: a slice is never lost with only a note.

The first and the last slice matter most: where one in the middle is lost, the distance between its neighbours tells.
"""
import csv, warnings, zipfile

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scan_files import one_sentence

from neuroseg.app.uploads import scans_in_files
from neuroseg.cli import main
from neuroseg.core import InputError, NeurosegError
from neuroseg.scans.dicom_index import dicom_index
from neuroseg.scans.dicom_phantom import FLAIR, T1, write_series
from neuroseg.scans.dicom_study import named_study, read_study
from neuroseg.scans.reading import expand, read_scan

AFFINE = np.diag([3, 3, 5, 1.])
VOLUME = np.random.default_rng(0).integers(100, 900, (5, 24, 24)).astype(np.uint16)
LAST = len(VOLUME)-1


def one(folder, **kw): return write_series(folder, VOLUME, AFFINE, **FLAIR | kw)


def rewritten(f, edit):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # of pydicom, that a UID is none
        ds = pydicom.dcmread(f)
        edit(ds)
        ds.save_as(f, enforce_file_format=False)


def without_image(ds):
    for k in ('Rows', 'Columns', 'PixelData'): delattr(ds, k)


def unknown_class(ds): # in both places, or one of them would still say MR
    without_image(ds)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1x.1.4'


def odd_class(ds):
    without_image(ds)
    ds.SOPClassUID, ds.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.9999', '1.3.840.10008.5.1.4.1.1.4'


def link(f):
    f.unlink()
    f.symlink_to('gone')


def header_bytes(f): return f.read_bytes().index(b'\x28\0\x10\0') # up to Rows


DAMAGE = {
    'empty': lambda f: f.write_bytes(b''), 'zeros': lambda f: f.write_bytes(bytes(f.stat().st_size)),
    'cut in the preamble': lambda f: f.write_bytes(f.read_bytes()[:100]),
    'cut behind the mark': lambda f: f.write_bytes(f.read_bytes()[:132]),
    'cut in the header': lambda f: f.write_bytes(f.read_bytes()[:600]),
    'cut before Rows': lambda f: f.write_bytes(f.read_bytes()[:header_bytes(f)]),
    'cut in the pixels': lambda f: f.write_bytes(f.read_bytes()[:-100]),
    'the mark is damaged': lambda f: f.write_bytes(f.read_bytes().replace(b'DICM', b'DI\0M', 1)),
    'nonsense': lambda f: f.write_bytes(bytes(128) + b'DICM' + b'junk'*50),
    'no image': lambda f: rewritten(f, without_image), 'unknown class': lambda f: rewritten(f, unknown_class),
    'odd class': lambda f: rewritten(f, odd_class), 'dead link': link,
    'another series': lambda f: rewritten(f, lambda ds: setattr(ds, 'SeriesInstanceUID', '1.2.840.99.1')),
}


@pytest.mark.parametrize('place', [0, 2, LAST])
@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_slice_refuses_its_series(tmp_path, damage, place):
    f = one(tmp_path/'case')/f'IM{place:04}'
    DAMAGE[damage](f)
    for source in (tmp_path/'case', expand(tmp_path)[0].source):
        with pytest.raises(InputError) as e: read_scan(source)
        one_sentence(e, f'`{f.name}`')
    f.unlink()
    if place != 2: assert read_scan(tmp_path/'case').n_slices == LAST # as its owner decided


@pytest.mark.parametrize('name', ['scan 12.dcm', 'IM0012.DCM', 'x.dcm'])
def test_an_empty_file_with_the_ending_of_the_slices(tmp_path, name):
    for f in one(tmp_path).iterdir(): f.rename(f.with_suffix('.dcm'))
    (tmp_path/name).touch()
    with pytest.raises(InputError) as e: read_scan(tmp_path)
    one_sentence(e, f'a slice may be lost: `{name}`', 'move away')


@pytest.mark.parametrize('name', ['README', 'VERSION', 'IM0001.txt', 'IM0001.jpg', 'IM0001.xml', 'desktop.ini'])
def test_files_of_other_names_stay_notes(tmp_path, name):
    (one(tmp_path)/name).touch()
    scan = read_scan(tmp_path)
    assert scan.n_slices == len(VOLUME) and any(name in w for w in scan.warnings if w.severity == 'note')


OBJECTS = dict(SR='1.2.840.10008.5.1.4.1.1.88.11', PR='1.2.840.10008.5.1.4.1.1.11.1',
               KO='1.2.840.10008.5.1.4.1.1.88.59', RTSTRUCT='1.2.840.10008.5.1.4.1.1.481.3',
               RAW='1.2.840.10008.5.1.4.1.1.66', SEG='1.2.840.10008.5.1.4.1.1.66.4',
               DICOMDIR='1.2.840.10008.1.3.10', PRIVATE='1.3.46.670589.11.0.0.12.2')


def other_object(path, kind, series='1.2.840.99.7.8', **tags):
    "A whole DICOM file without a slice."
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = OBJECTS[kind], '1.2.840.99.9'
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = Dataset()
    ds.file_meta, ds.Modality, ds.PatientID, ds.SeriesInstanceUID = meta, kind[:16], 'PHANTOM', series
    if kind != 'DICOMDIR': ds.SOPClassUID = OBJECTS[kind]
    if kind == 'SEG': ds.Rows, ds.Columns, ds.NumberOfFrames = 24, 24, 2
    ds.StudyInstanceUID = pydicom.dcmread(path.parent/'IM0001').StudyInstanceUID
    for k, v in tags.items(): setattr(ds, k, v)
    ds.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize('name', ['IM0009', 'other'])
@pytest.mark.parametrize('kind', OBJECTS)
def test_whole_objects_of_other_kinds_are_no_slices(tmp_path, kind, name):
    other_object(one(tmp_path)/name, kind)
    assert read_scan(tmp_path).n_slices == len(VOLUME)


def test_an_object_of_unknown_class_counts_by_its_series(tmp_path):
    def damage(ds): ds.SOPClassUID = '1.2.8#0'
    other_object(one(tmp_path)/'IM0009', 'SR')
    rewritten(tmp_path/'IM0009', damage)
    assert read_scan(tmp_path).n_slices == len(VOLUME) # of a series of its own
    for own in (pydicom.dcmread(tmp_path/'IM0001').SeriesInstanceUID, ''): # of this series; of none
        other_object(tmp_path/'IM0009', 'SR', own)
        rewritten(tmp_path/'IM0009', damage)
        with pytest.raises(InputError) as e: read_scan(tmp_path)
        one_sentence(e, '`IM0009`')


def two_series(tmp_path, names=('FLAIR_', 'T1_')):
    "FLAIR and T1 of one examination in one folder."
    for series, name in zip((FLAIR, T1 | dict(SeriesNumber=2, ContrastBolusAgent='gadobutrol')), names):
        write_series(tmp_path/'x', VOLUME, AFFINE, **series)
        (tmp_path/'study').mkdir(exist_ok=True)
        for f in (tmp_path/'x').iterdir(): f.rename(tmp_path/'study'/(name+f.name))
    return tmp_path/'study'


@pytest.mark.parametrize('damage', ['empty', 'cut before Rows', 'nonsense', 'cut in the pixels'])
def test_other_series_of_the_examination_are_read(tmp_path, damage):
    f = two_series(tmp_path)/f'T1_IM{LAST:04}'
    DAMAGE[damage](f)
    scan = read_scan(tmp_path/'study')
    assert scan.sequences == ('flair',) and scan.n_slices == len(VOLUME)
    said, = (w for w in scan.warnings if w.code == 't1_refused')
    assert f.name in said and said.severity == 'warning'


def test_a_damaged_series_that_the_user_named_is_not_left_out(tmp_path):
    DAMAGE['cut in the pixels'](two_series(tmp_path)/f'T1_IM{LAST:04}')
    flair, t1 = sorted(dicom_index(tmp_path/'study')[0].series, key=lambda s: -s.get('SeriesNumber'))
    with pytest.raises(InputError) as e: read_study(named_study([tmp_path/'study'], dict(flair=flair.uid, post=t1.uid)))
    one_sentence(e, f'T1_IM{LAST:04}')


def test_where_names_tell_nothing_every_series_of_the_folder_is_refused(tmp_path):
    folder = two_series(tmp_path, ('A', 'B'))
    (folder/'damaged').write_bytes(bytes(128) + b'DICM' + b'junk'*50)
    assert all('`damaged`' in s.fault for s in dicom_index(folder)[0].series)


# A batch --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('damage', ['empty', 'cut before Rows', 'unknown class', 'nonsense'])
def test_its_folder_fails_alone(tmp_path, capsys, damage):
    for name in 'abc': one(tmp_path/'all'/name, patient=name)
    DAMAGE[damage](tmp_path/'all'/'b'/f'IM{LAST:04}')
    assert main(['predict', str(tmp_path/'all'), '-o', str(tmp_path/'out'), '--no-flips']) == 2
    rows = list(csv.DictReader((tmp_path/'out'/'cases.csv').open()))
    assert [(r['case'], r['status']) for r in rows] == [('a', 'done'), ('b', 'failed'), ('c', 'done')]
    assert f'`IM{LAST:04}`' in rows[1]['error']


@pytest.mark.parametrize('n', [2, 3])
@pytest.mark.parametrize('damage', DAMAGE)
def test_a_folder_without_any_sound_slice_fails_alone(tmp_path, damage, n):
    if damage in ('cut in the pixels', 'another series'): pytest.skip('every header is sound')
    if 'class' in damage: pytest.skip('objects of an unknown kind, in a series of their own')
    for name in 'abc'[:n]: one(tmp_path/'all'/name, patient=name)
    for f in (tmp_path/'all'/'b').iterdir(): DAMAGE[damage](f)
    def read(found):
        try: return read_scan(found.source).n_slices
        except NeurosegError as e: return str(e)
    said = {f.parts[-1]: read(f) for f in expand(tmp_path/'all')}
    assert said.pop('b') != len(VOLUME) and said == dict.fromkeys('ac'[:n-1], len(VOLUME)), said


def test_an_archive_in_the_application(tmp_path):
    one(tmp_path/'ward'/'a')
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for f in (tmp_path/'ward'/'a').iterdir():
            z.writestr(f'ward/a/{f.name}', b'' if f.name == 'IM0004' else f.read_bytes())
    found, = scans_in_files([tmp_path/'a.zip'])
    with pytest.raises(InputError) as e: read_scan(found.source)
    one_sentence(e, '`IM0004`')
