"""DICOM as archives hand it over: what is refused, and by which attribute; what is found, and why.

Each case of `LETTERS` is a fault on which an earlier version failed: a wrong volume, a wrong scan or a traceback.
"""
import csv, itertools, json, random, shutil, subprocess

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from scan_files import one_sentence

from neuroseg.cli import main
from neuroseg.core import InputError, MissingExtraError, NeurosegError
from neuroseg.scans.dicom import dicom_planes, frames_of, is_dicom
from neuroseg.scans.dicom_index import dicom_index, series_of, series_volume
from neuroseg.scans.dicom_phantom import FLAIR, T1, write_phantom_study, write_series
from neuroseg.scans.dicom_study import chosen_series, named_study, read_study, study_lines, study_rows, taken_for
from neuroseg.scans.reading import expand, input_files, read_scan

AFFINE = np.array([[-3., 0, 0, 96], [0, -3., 0, 96], [0, 0, 5, 0], [0, 0, 0, 1]])
RNG = np.random.default_rng(0)
Y, X = np.mgrid[:64, :64]
HEAD = ((X-31.5)/24)**2 + ((Y-31.5)/28)**2 < 1
VOLUME = np.stack([HEAD*(400 + 100*RNG.random((64, 64))) for _ in range(8)]).astype(np.uint16)


def one(folder, edit=None, volume=VOLUME, affine=AFFINE, **tags):
    "A folder of one FLAIR series that `edit(ds, k)` has spoilt."
    return write_series(folder, volume, affine, edit=edit, **FLAIR | tags)


def put(**tags):
    "An `edit` that sets attributes in every slice."
    def _edit(ds, k):
        for key, v in tags.items(): setattr(ds, key, v)
    return _edit


def at(k, **tags):
    "An `edit` that sets attributes in slices from number `k` on."
    def _edit(ds, i):
        for key, v in tags.items():
            if i >= k: setattr(ds, key, v)
    return _edit


def shifted(ds, k): ds.ImagePositionPatient = [-96, -96, 5.*(k % 4) + .01*(k//4)]
def lost_position(ds, k):
    if k == 3: del ds.ImagePositionPatient


# Letter, how the series is spoilt, and the words of the sentence that refuses it
LETTERS = {
    'E two spacings': (at(4, PixelSpacing=[2, 2]), 'PixelSpacing', '3, 3 in 4 slice(s); 2, 2 in 4 slice(s)'),
    'F two volumes 0.01 mm apart': (shifted, 'ImagePositionPatient', '0.01 mm'),
    'G one slice without position': (lost_position, 'ImagePositionPatient', '1 of 8'),
    'H position empty': (put(ImagePositionPatient=None), 'ImagePositionPatient', '8 of 8'),
    'H2 spacing empty': (put(PixelSpacing=None), 'PixelSpacing', '8 of 8'),
    'H3 spacing zero': (put(PixelSpacing=[0, 0]), 'PixelSpacing is 0, 0'),
    'H4 spacing negative': (put(PixelSpacing=[-3, 3]), 'PixelSpacing is -3, 3'),
    'H5 position of two numbers': (put(ImagePositionPatient=[1, 2]), 'ImagePositionPatient', '8 of 8'),
    'I tilted gantry': (put(ImageOrientationPatient=[1, 0, 0, 0, .970296, -.241922]), '14.0 degrees', 'tilted'),
    'I2 oblique rows': (put(ImageOrientationPatient=[1, 0, 0, .5, .866, 0]), 'ImageOrientationPatient is'),
    'L two patients': (at(4, PatientID='B'), 'PatientID', '2 different values'),
    'L2 two birth dates': (at(4, PatientBirthDate='19500101'), 'PatientBirthDate', '2 different values'),
    'L3 two examinations': (at(4, StudyInstanceUID='1.2.3'), 'StudyInstanceUID', '2 different values'),
    'L4 two frames of reference': (at(4, FrameOfReferenceUID='1.2.3'), 'FrameOfReferenceUID'),
    'two echoes': (at(4, EchoTime=20), 'EchoTime', '120 in 4 slice(s); 20 in 4 slice(s)'),
    'two sizes': (at(7, Rows=32, Columns=128), 'Rows', '64 in 7 slice(s); 32 in 1 slice(s)'),
    'two directions': (at(4, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), 'not parallel'),
    'colour': (put(SamplesPerPixel=3, PhotometricInterpretation='RGB'), 'colour picture'),
    'film': (put(NumberOfFrames=8, ImagePositionPatient=None), 'multi-frame'),
}


@pytest.mark.parametrize('letter', LETTERS)
def test_a_series_that_is_no_volume_is_refused_by_the_attribute(tmp_path, letter):
    edit, *words = LETTERS[letter]
    one(tmp_path/'case', edit)
    with pytest.raises(InputError) as e: read_scan(tmp_path/'case')
    one_sentence(e, '4 T2W FLAIR tra', *words)
    assert 'PHANTOM' not in str(e.value)
    assert any('refused' in line for study in dicom_index(tmp_path/'case') for line in study_lines(study))


def test_the_series_without_a_fault_is_read(tmp_path):
    "Otherwise the refusals above would prove nothing."
    scan = read_scan(one(tmp_path/'case'))
    assert np.array_equal(scan.data[0], VOLUME) and scan.spacing_mm == (5, 3, 3)
    assert np.allclose(scan.affine, AFFINE)


@pytest.mark.parametrize('lost', range(1, 7))
def test_d_a_missing_slice_is_refused(tmp_path, lost):
    (one(tmp_path/'case')/f'IM{lost:04}').unlink()
    with pytest.raises(InputError) as e: read_scan(tmp_path/'case')
    one_sentence(e, 'is 5.00 mm, but 10.00 mm after slice', 'ImagePositionPatient')


def test_two_slices_need_a_header_that_confirms_their_distance(tmp_path):
    assert read_scan(one(tmp_path/'near', volume=VOLUME[:2])).shape == (2, 64, 64)
    one(tmp_path/'far', put(ImagePositionPatient=None), volume=VOLUME[:2])
    for k in (0, 1): one(tmp_path/'far', volume=VOLUME[:2], edit=lambda ds, k: setattr(
        ds, 'ImagePositionPatient', [-96, -96, 10*k]))
    with pytest.raises(InputError) as e: read_scan(tmp_path/'far')
    one_sentence(e, 'two slices 10.00 mm apart')


@pytest.mark.parametrize('beside', ['preview.jpg', 'lesion.nii.gz', 'sub/preview.png', 'flair_mask.nii.gz',
                                    'notes.txt'])
def test_a_b_what_lies_beside_dicom_never_wins(tmp_path, beside):
    folder = one(tmp_path/'case')
    (folder/beside).parent.mkdir(exist_ok=True)
    if beside.endswith('gz'): nib.save(nib.Nifti1Image(np.ones((4, 4, 3), np.int16), AFFINE), folder/beside)
    elif beside.endswith('txt'): (folder/beside).write_text('operated')
    else: Image.fromarray(VOLUME[0].astype(np.uint8)).save(folder/beside)
    for scan in (read_scan(folder), read_scan(expand(folder)[0].source)):
        assert scan.shape == (8, 64, 64) and np.allclose(scan.affine, AFFINE)
    assert len(expand(folder)) == 1 and len(input_files(folder)) == 8
    assert any(beside.split('/')[-1] in str(note) for note in expand(folder)[0].notes)


@pytest.mark.parametrize('bare', [{3}, set(range(8))], ids=['one', 'all'])
def test_c_files_without_preamble_are_slices(tmp_path, bare):
    folder = one(tmp_path/'case')
    for k in bare:
        f = folder/f'IM{k:04}'
        f.write_bytes(f.read_bytes()[132:])
        assert is_dicom(f)
    assert np.array_equal(read_scan(folder).data[0], VOLUME)


@pytest.mark.parametrize('syntax', ['1.2.840.10008.1.2', '1.2.840.10008.1.2.1'])
def test_c_even_without_a_file_header(tmp_path, syntax):
    "Neither the preamble nor group 2: the data set alone, as some old archives keep it."
    import pydicom
    folder = one(tmp_path/'case')
    for f in folder.iterdir():
        ds = pydicom.dcmread(f)
        plain = pydicom.Dataset({tag: ds[tag] for tag in ds.keys()})
        pydicom.dcmwrite(f, plain, implicit_vr=syntax.endswith('.2'), little_endian=True, force_encoding=True)
        assert f.read_bytes()[128:132] != b'DICM'
    assert np.array_equal(read_scan(folder).data[0], VOLUME)


def test_k_a_file_twice_is_one_slice(tmp_path):
    folder = one(tmp_path/'case')
    shutil.copy(folder/'IM0003', folder/'IM0003 copy')
    scan = read_scan(folder)
    assert scan.shape == (8, 64, 64) and 'dicom_copies' in {w.code for w in scan.warnings}


def test_k_one_uid_for_two_images_is_refused(tmp_path):
    folder = one(tmp_path/'case')
    raw = bytearray((folder/'IM0003').read_bytes())
    raw[-64*64] ^= 255 # a pixel of the middle
    (folder/'other').write_bytes(raw)
    with pytest.raises(InputError) as e: read_scan(folder)
    one_sentence(e, 'SOPInstanceUID')


T1_HEADER = dict(EchoTime=12, RepetitionTime=500, InversionTime=None, ScanningSequence='SE')


@pytest.mark.parametrize('tags, kind', [
    (dict(SeriesDescription='T1/SE/axial', EchoTime=None, InversionTime=None, RepetitionTime=None), 'T1'),
    (dict(SeriesDescription='Ax T1 FLAIR', EchoTime=None, InversionTime=None, RepetitionTime=None), 'T1'),
    (dict(SeriesDescription='', **T1_HEADER), 'T1'), (dict(SeriesDescription='FLAIR', **T1_HEADER), 'T1'),
    (dict(SeriesDescription='T2 TSE', InversionTime=None), 'T2'),
    (dict(SeriesDescription='', InversionTime=None), 'T2'),
    (dict(SeriesDescription='DWI b1000'), 'diffusion'), (dict(SeriesDescription='ADC map'), 'ADC'),
    (dict(SeriesDescription='SWI'), 'SWI'), (dict(SeriesDescription='T2 STIR', InversionTime=160), 'STIR'),
    (dict(ImageType=['DERIVED', 'SECONDARY', 'ADC']), 'computed'), (dict(Modality='SEG'), 'other'),
    (dict(ImageType=['ORIGINAL', 'PRIMARY', 'P', 'ND']), 'computed'), (dict(SeriesDescription='T1'), 'unclear')])
def test_j_what_is_no_flair_is_refused_unless_it_is_named(tmp_path, tags, kind):
    folder = one(tmp_path/'case', **tags)
    with pytest.raises(InputError) as e: read_scan(folder)
    one_sentence(e, f'({kind})', '--series UID --as flair')
    study, = dicom_index(folder)
    named = named_study([folder], dict(flair=study.series[0].uid))
    assert np.array_equal(read_study(named).data[0], VOLUME)


@pytest.mark.parametrize('tags', [
    dict(SeriesDescription='FLAIR post Gd', ContrastBolusAgent='Gadovist'), dict(SeriesDescription='brain'),
    dict(SeriesDescription='t2_tirm_tra_dark-fluid_320'), dict(InversionTime=None), dict(InversionTime=1400),
    dict(EchoTime=None, InversionTime=None, RepetitionTime=None)])
def test_j_what_is_flair_is_taken(tmp_path, tags):
    scan = read_scan(one(tmp_path/'case', **tags))
    assert scan.sequences == ('flair',) and 'flair_found' in {w.code for w in scan.warnings}


def test_a_series_that_tells_nothing_is_read_with_a_warning(tmp_path):
    from neuroseg.segmentation.quality import scan_warnings
    silent = dict(SeriesDescription='', EchoTime=None, InversionTime=None, RepetitionTime=None)
    assert 'sequence_assumed' in {w.code for w in scan_warnings(read_scan(one(tmp_path/'case', **silent)))}
    assert 'sequence_assumed' not in {w.code for w in scan_warnings(read_scan(one(tmp_path/'flair')))}


@pytest.mark.parametrize('what, word', [(lambda v: v > 300, 'mask'), (lambda v: v.astype(int)-250, 'map')])
def test_pixels_that_are_no_flair_are_refused(tmp_path, what, word):
    v = what(VOLUME)
    one(tmp_path/'case', put(RescaleIntercept=int(v.min())), volume=v-int(v.min()))
    with pytest.raises(InputError) as e: read_scan(tmp_path/'case')
    one_sentence(e, word, '--series UID --as flair')


# Studies --------------------------------------------------------------------------------------------------------------

def test_m_a_study_is_one_scan_of_flair_and_both_t1(tmp_path):
    scan = read_scan(write_phantom_study(tmp_path/'study'))
    assert scan.sequences == ('pre', 'flair', 'post') and scan.shape == (24, 136, 136)
    found, = expand(tmp_path/'study')
    assert found.parts[-1] == 'study' and read_scan(found.source).sequences == scan.sequences
    assert len(input_files(found.source)) == 3*24 == len(input_files(tmp_path/'study'))


def test_t1_is_left_out_with_a_sentence_where_the_headers_do_not_say_which(tmp_path):
    scan = read_scan(write_phantom_study(tmp_path/'study', contrast=False))
    said, = (w for w in scan.warnings if w.code == 'contrast_unknown')
    assert scan.sequences == ('flair',) and '--series UID --as pre or post' in said and '2 T1W SE tra' in said


def edited(folder, series, **tags):
    "A study in which attributes of one series are changed."
    import pydicom
    for f in (folder/series).glob('IM????'):
        ds = pydicom.dcmread(f)
        for k, v in tags.items(): setattr(ds, k, v)
        ds.save_as(f, enforce_file_format=True)
    return folder


def test_t1_of_another_frame_of_reference_is_not_used(tmp_path):
    folder = edited(write_phantom_study(tmp_path/'study'), 'post', FrameOfReferenceUID='1.2.3')
    scan = read_scan(folder)
    assert scan.sequences == ('pre', 'flair') and 'other_frame' in {w.code for w in scan.warnings}
    uid = next(r['series'] for r in study_rows(dicom_index(folder)[0]) if r['taken_for'] == 'post')
    with pytest.raises(InputError) as e: read_study(named_study([folder], dict(post=uid)))
    one_sentence(e, 'FrameOfReferenceUID')


def test_two_flair_are_not_chosen_between(tmp_path):
    folder = write_phantom_study(tmp_path/'study')
    write_series(folder/'again', VOLUME, AFFINE, **FLAIR | dict(SeriesNumber=9))
    with pytest.raises(InputError) as e: read_scan(folder)
    one_sentence(e, '2 series that are FLAIR', '9 T2W FLAIR tra')


def test_of_several_planes_the_axial_flair_is_taken(tmp_path):
    folder = write_phantom_study(tmp_path/'study')
    sagittal = np.array([[0, 0, 5., -20], [-3, 0, 0, 96], [0, -3, 0, 96], [0, 0, 0, 1]])
    write_series(folder/'sag', VOLUME, sagittal, **FLAIR | dict(SeriesNumber=9))
    assert read_scan(folder).shape == (24, 136, 136)
    alone = read_scan(folder/'sag')
    assert 'not_axial' in {w.code for w in alone.warnings} and alone.shape == (8, 64, 64)


def test_a_file_that_cannot_be_read_stops_its_study_only(tmp_path):
    for p in 'ab': write_phantom_study(tmp_path/'all'/p, patient=p)
    (tmp_path/'all'/'a'/'flair'/'IM0003').write_bytes(bytes(128) + b'DICM' + b'junk'*50)
    a, b = expand(tmp_path/'all')
    with pytest.raises(InputError) as e: read_scan(a.source)
    one_sentence(e, '`IM0003`')
    assert read_scan(b.source).sequences == ('pre', 'flair', 'post')


def test_two_patients_are_two_scans_in_whatever_folders_they_lie(tmp_path):
    for p in 'ab': write_phantom_study(tmp_path/p, patient=p)
    for p, series in itertools.product('ab', ('flair', 'pre', 'post')):
        (tmp_path/'flat').mkdir(exist_ok=True)
        for f in (tmp_path/p/series).glob('IM????'): shutil.copy(f, tmp_path/'flat'/f'{p}{series}{f.name}')
    found = expand(tmp_path/'flat')
    assert len({f.parts for f in found}) == 2
    for f in found:
        scan = read_scan(f.source)
        assert scan.shape == (24, 136, 136) and len({p.name[0] for p in input_files(f.source)}) == 1
    with pytest.raises(InputError) as e: read_scan(tmp_path/'flat')
    one_sentence(e, '2 examinations')


def test_an_archive_of_patients_beside_a_nifti_patient(tmp_path):
    for p in 'ab': write_phantom_study(tmp_path/'all'/p, patient=p)
    (tmp_path/'all'/'c').mkdir()
    nib.save(nib.Nifti1Image(VOLUME.T.astype(np.int16), AFFINE), tmp_path/'all'/'c'/'x_flair.nii.gz')
    assert [f.parts[-1] for f in expand(tmp_path/'all')] == ['a', 'b', 'c']


# A batch of DICOM folders ---------------------------------------------------------------------------------------------

def comma(ds, k):
    "PixelSpacing as a station with a decimal comma writes it."
    tag = pydicom.tag.Tag(0x0028, 0x0030)
    ds._dict[tag] = pydicom.dataelem.RawDataElement(tag, 'DS', 10, b'0,91\\0,91 ', 0, False, True, True)


def junk(folder): # Files that begin as DICOM does and end in nonsense
    for f in folder.glob('IM*'): f.write_bytes(bytes(128) + b'DICM' + b'junk'*50)


def anonymous(ds, k):
    "Without any identifier of the patient, the examination and the frame of reference."
    for key in ('PatientID', 'PatientBirthDate', 'StudyInstanceUID', 'FrameOfReferenceUID'):
        if key in ds: delattr(ds, key)


def outcomes(folder):
    "Whether each case of a folder is read, by its name."
    def _read(found):
        try: return read_scan(found.source).shape[0]
        except NeurosegError as e:
            one_sentence(e_of(e))
            return str(e)
    return {f.parts[-1]: _read(f) for f in expand(folder)}


def e_of(e): return type('Raised', (), dict(value=e)) # as `pytest.raises` gives it


def test_one_odd_header_fails_its_own_folder_only(tmp_path):
    for name in 'abc': one(tmp_path/'all'/name, comma if name == 'b' else None)
    said = outcomes(tmp_path/'all')
    assert said['a'] == said['c'] == 8 and 'PixelSpacing' in said['b'], said


def test_an_identifier_of_two_images_is_refused_in_its_folders_only(tmp_path):
    one(tmp_path/'all'/'a'); one(tmp_path/'all'/'b', volume=VOLUME//2)
    one(tmp_path/'all'/'c', patient='OTHER'); one(tmp_path/'all'/'ward'/'d', patient='FOURTH')
    said = outcomes(tmp_path/'all')
    assert said['c'] == said['ward'] == 8 # a folder of one scan names it
    assert 'one SOPInstanceUID' in said['a'] and 'one SOPInstanceUID' in said['b'], said


@pytest.mark.parametrize('deep', ['', 'ward/1'])
@pytest.mark.parametrize('n', [2, 3])
def test_a_folder_that_cannot_be_read_fails_alone(tmp_path, deep, n):
    for name in 'abc'[:n]: one(tmp_path/'all'/deep/name, patient=name)
    junk(tmp_path/'all'/deep/'b')
    said = outcomes(tmp_path/'all')
    assert sorted(said) == list('abc'[:n]) and said['a'] == 8 and 'IM' in said['b'], said
    assert n == 2 or said['c'] == 8


def test_folders_without_identifiers_are_scans_of_their_own(tmp_path):
    for name in 'abc': one(tmp_path/'all'/name, anonymous, volume=VOLUME//(1+ord(name) % 3), patient=name)
    assert outcomes(tmp_path/'all') == dict(a=8, b=8, c=8)


def test_a_copy_is_not_read_where_another_folder_holds_more_of_its_series(tmp_path):
    one(tmp_path/'all'/'a'); one(tmp_path/'all'/'b', comma)
    for k in (6, 7): (tmp_path/'all'/'a'/f'IM{k:04d}').unlink() # the last two slices are in b only
    assert set(map(type, outcomes(tmp_path/'all').values())) == {str}


def test_a_series_in_two_folders_stays_whole(tmp_path):
    one(tmp_path/'all'/'a', anonymous); (tmp_path/'all'/'b').mkdir()
    for k in range(4, 8): (tmp_path/'all'/'a'/f'IM{k:04d}').rename(tmp_path/'all'/'b'/f'IM{k:04d}')
    assert outcomes(tmp_path/'all') == dict(all=8)
    (tmp_path/'all'/'b'/'IM0005').unlink() # a slice is missing: no part of it is read
    assert set(map(type, outcomes(tmp_path/'all').values())) == {str}


def test_an_unreadable_series_of_one_examination_refuses_it(tmp_path):
    write_phantom_study(tmp_path/'all'/'a', patient='a'); write_phantom_study(tmp_path/'all'/'b', patient='b')
    junk(tmp_path/'all'/'a'/'post')
    said = outcomes(tmp_path/'all')
    assert len(said) == 2 and said['b'] == 24 and 'damaged' in said['a'], said


def test_predict_goes_on_after_a_faulty_dicom_folder(tmp_path, capsys):
    for name in 'abc': one(tmp_path/'all'/name, comma if name == 'b' else None)
    assert main(['predict', str(tmp_path/'all'), '-o', str(tmp_path/'out'), '--no-flips']) == 2
    rows = list(csv.DictReader((tmp_path/'out'/'cases.csv').open()))
    assert [(r['case'], r['status']) for r in rows] == [('a', 'done'), ('b', 'failed'), ('c', 'done')]
    assert 'PixelSpacing' in rows[1]['error']


# Formats --------------------------------------------------------------------------------------------------------------

def enhanced(path, volume, affine, order=None):
    "One multi-frame file, its frames in any order, position and echo time in functional groups."
    import pydicom
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian
    order = list(range(len(volume))) if order is None else order
    write_series(path.parent/'plain', volume, affine, **FLAIR)
    slices = [pydicom.dcmread(path.parent/'plain'/f'IM{k:04}') for k in order]
    shutil.rmtree(path.parent/'plain')
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID = '1.2.3.4'
    ds = FileDataset(None, {}, file_meta=meta, preamble=b'\0'*128)
    for e in slices[0]:
        if e.keyword not in ('ImagePositionPatient', 'ImageOrientationPatient', 'PixelSpacing', 'EchoTime', 'PixelData',
                             'InversionTime', 'RepetitionTime'): ds.add(e)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.NumberOfFrames = EnhancedMRImageStorage, '1.2.3.4', len(order)
    def item(**tags):
        d = Dataset()
        for k, v in tags.items(): setattr(d, k, v)
        return d
    ds.SharedFunctionalGroupsSequence = [item(
        MREchoSequence=[item(EffectiveEchoTime=120.)],
        PixelMeasuresSequence=[item(PixelSpacing=slices[0].PixelSpacing)],
        MRModifierSequence=[item(InversionTimes=[2500.])],
        PlaneOrientationSequence=[item(ImageOrientationPatient=slices[0].ImageOrientationPatient)])]
    ds.PerFrameFunctionalGroupsSequence = [item(
        PlanePositionSequence=[item(ImagePositionPatient=s.ImagePositionPatient)],
        PixelValueTransformationSequence=[item(RescaleSlope=k+1, RescaleIntercept=k)]) for k, s in enumerate(slices)]
    ds.PixelData = b''.join(s.PixelData for s in slices)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_enhanced_multiframe_is_read_frame_by_frame(tmp_path):
    order = [3, 1, 7, 0, 2, 6, 5, 4]
    (tmp_path/'case').mkdir()
    scan = read_scan(enhanced(tmp_path/'case'/'IM1', VOLUME, AFFINE, order))
    assert np.allclose(scan.affine, AFFINE) and scan.spacing_mm == (5, 3, 3)
    for k, z in enumerate(order): assert np.array_equal(scan.data[0, z], VOLUME[z]*np.float32(k+1) + k)


def test_enhanced_with_a_missing_frame_is_refused(tmp_path):
    (tmp_path/'case').mkdir()
    with pytest.raises(InputError) as e: read_scan(enhanced(tmp_path/'case'/'IM1', VOLUME, AFFINE, [0, 1, 2, 4, 5]))
    one_sentence(e, '10.00 mm after slice 3 of 5')


@pytest.mark.parametrize('name', ['MR_small_RLE', 'MR_small_jpeg_ls_lossless', 'MR_small_jp2klossless'])
def test_compressed_files_are_read_or_name_the_extra(name):
    from pydicom.data import get_testdata_file
    plain, = frames_of(get_testdata_file('MR_small.dcm', download=False))
    packed, = frames_of(get_testdata_file(f'{name}.dcm', download=False))
    try: assert np.array_equal(dicom_planes([packed]), dicom_planes([plain]))
    except MissingExtraError as e:
        assert "'.[dicom]'" in str(e) and 'compressed' in str(e)
        pytest.skip('no decoder is installed')


def test_a_missing_decoder_is_one_sentence(tmp_path, monkeypatch):
    from pydicom.pixels import decoders
    from pydicom.data import get_testdata_file
    path = get_testdata_file('MR_small_jpeg_ls_lossless.dcm', download=False)
    for plugin in ('pyjpegls', 'gdcm', 'pylibjpeg'):
        monkeypatch.setitem(decoders.JPEGLSLosslessDecoder._available, plugin, None)
        decoders.JPEGLSLosslessDecoder._available.pop(plugin)
    with pytest.raises(MissingExtraError) as e: dicom_planes(frames_of(path))
    one_sentence(e, 'JPEG-LS', "'.[dicom]'")


# Geometry -------------------------------------------------------------------------------------------------------------

def corners_mm(affine, shape_xyz):
    "The eight outer voxel centres."
    return np.array([(affine @ [*(i*(n-1) for i, n in zip(c, shape_xyz)), 1])[:3]
                     for c in itertools.product((0, 1), repeat=3)])


def corner_error_mm(a, b): # Each corner of one against the nearest of the other: the order of voxels may differ
    return max(np.linalg.norm(b-p, axis=1).min() for p in a)


def by_dcm2niix(folder, tmp_path):
    "Corners by dcm2niix, an independent reader."
    if not shutil.which('dcm2niix'): pytest.skip('dcm2niix is not installed (Debian: apt-get install dcm2niix)')
    subprocess.run(['dcm2niix', '-z', 'n', '-b', 'n', '-o', tmp_path, '-f', 'x', folder], capture_output=True)
    files = list(tmp_path.glob('x*.nii'))
    if len(files) != 1: pytest.skip('dcm2niix does not read this series as one volume')
    img = nib.load(files[0])
    return corners_mm(img.affine, img.shape[:3])


def turned(z_deg, x_deg):
    "An oblique affine."
    z, x = np.radians([z_deg, x_deg])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return nib.affines.from_matvec(rz @ rx @ np.diag([-.9, -.8, 4.4]), [90, 80, -30])


@pytest.mark.parametrize('name, affine', [
    ('axial', AFFINE), ('oblique', turned(7, 25)), ('coronal', np.array([[-1., 0, 0, 30], [0, 0, 5, 7], [0, -2, 0, 9],
     [0, 0, 0, 1]])), ('downwards', AFFINE @ np.diag([1, 1, -1, 1.]))])
def test_corners_agree_with_dcm2niix(tmp_path, name, affine):
    (tmp_path/'out').mkdir()
    s, = dicom_index(one(tmp_path/'case', affine=affine))[0].series
    assert corner_error_mm(corners_mm(s.affine, s.shape[::-1]), by_dcm2niix(tmp_path/'case', tmp_path/'out')) < .01


def test_the_order_of_files_does_not_matter(tmp_path):
    one(tmp_path/'case', affine=turned(7, 25))
    frames = [f for path in (tmp_path/'case').iterdir() for f in frames_of(path)]
    random.Random(1).shuffle(frames)
    s = series_of(frames)
    assert np.array_equal(series_volume(s), VOLUME) and np.allclose(s.affine, turned(7, 25), atol=1e-5)


# The command line, and damage -----------------------------------------------------------------------------------------

def test_the_list_names_series_and_reasons_and_no_patient(tmp_path, capsys):
    folder = write_phantom_study(tmp_path/'study', patient='DOE^JOHN')
    assert main(['series', str(folder), '--json']) == 0
    said = capsys.readouterr().out
    rows = json.loads(said)[0]['series']
    assert [r['taken_for'] for r in rows] == ['localizer', 'pre', 't2', 'flair', 'post'] and 'DOE' not in said
    assert rows[3]['plane'] == 'axial' and rows[3]['ti_ms'] == 2500 and rows[4]['contrast_agent'] == 'gadobutrol'
    assert main(['series', str(folder)]) == 0
    said = capsys.readouterr().out
    assert 'FLAIR: TI 2500 ms, TE 120 ms' in said and 'DOE' not in said and str(tmp_path) not in said


@pytest.mark.parametrize('words', ['--series 1.2', '--as flair', '--series 1 --as flair --series 2 --as flair',
                                   '--series 1.2 --as flair'])
def test_a_wrong_choice_is_a_sentence(tmp_path, capsys, words):
    folder = write_phantom_study(tmp_path/'study')
    assert main(['predict', str(folder), '-o', str(tmp_path/'out'), *words.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith('neuroseg: ') and err.count('\n') == 1 and not (tmp_path/'out').exists()


def test_predict_with_named_series(tmp_path, capsys):
    folder = write_phantom_study(tmp_path/'study', contrast=False)
    uid = {r['number']: r['series'] for r in study_rows(dicom_index(folder)[0])}
    assert main(['predict', str(folder), '-o', str(tmp_path/'out'), '--no-flips', '--threads', '1', '--series', uid[2],
                 '--as', 'pre', '--series', uid[5], '--as', 'post']) == 0
    report = json.loads((tmp_path/'out'/'study'/'report.json').read_text())
    assert report['scan']['sequences'] == ['pre', 'flair', 'post'] and len(report['input']) == 72
    assert report['volume_ml'] == pytest.approx(report['lesion_px']*abs(np.linalg.det(nib.load(
        tmp_path/'out'/'study'/'mask.nii.gz').affine))/1000, rel=1e-4)


@pytest.mark.parametrize('seed', range(60))
def test_damaged_headers_are_refused_or_read_rightly(tmp_path, seed):
    "Bytes of one slice are changed: FLAIR is complete and in place, or refused in a sentence."
    folder, r = one(tmp_path/'case'), random.Random(seed)
    f = folder/f'IM{r.randrange(8):04}'
    b = bytearray(f.read_bytes())
    k = r.randrange(132, 1300)
    if seed % 3 == 0: b[k] ^= 1 << r.randrange(8)
    elif seed % 3 == 1: b[k:k+r.randint(1, 12)] = r.choice([b'-', b'9', b'\\', b'\xff', b' '])*r.randint(1, 12)
    else: b = b[:r.randrange(len(b))]
    f.write_bytes(b)
    try:
        for study in dicom_index(folder): study_lines(study)
        scan = read_scan(folder)
    except NeurosegError as e: assert '\n' not in str(e) and 'PHANTOM' not in str(e)
    else:
        assert scan.n_slices in (7, 8) and scan.spacing_mm == pytest.approx((5, 3, 3), abs=.05)
        assert abs(np.linalg.det(scan.affine)) == pytest.approx(45, rel=.02)


def test_roles_are_told_for_every_series(tmp_path):
    study, = dicom_index(write_phantom_study(tmp_path/'study'))
    assert set(taken_for(study)) == {s.uid for s in study.series}
    taken, notes = chosen_series(study)
    assert all(n.severity == 'note' for n in notes) and set(taken) == {'pre', 'flair', 'post'}
    assert T1['SeriesDescription'] in taken['pre'].title
