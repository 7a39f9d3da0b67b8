"Many inputs: which scans they hold, and faults that stop only their own scan."
import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from bright_model import bright, head, overlap, says, write_model, write_nifti, write_stack

from neuroseg.scans.nifti import read_mask
from neuroseg.scans.reading import expand, group_sequences
from neuroseg.segmentation import result
from neuroseg.segmentation.result import Segmenter
from neuroseg.segmentation.batch import predict_cases


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


@pytest.fixture(scope='module')
def segmenter(card_path): return Segmenter(card_path)


def test_a_cohort_folder_is_its_patients(tmp_path):
    v, _ = head((2, 30, 30))
    for p in ('TCGA_PH_0001_20000101', 'TCGA_PH_0002_20000101'): write_stack(tmp_path/'kaggle_3m'/p, v)
    (tmp_path/'kaggle_3m'/'data.csv').write_text('a,b\n')
    write_stack(tmp_path/'hospital'/'patient1'/'images', v); write_stack(tmp_path/'hospital'/'patient1'/'masks', v)
    assert [f.parts[-1] for f in expand(tmp_path/'kaggle_3m')] == ['TCGA_PH_0001_20000101', 'TCGA_PH_0002_20000101']
    assert [f.parts[-1] for f in expand(tmp_path/'hospital')] == ['patient1']
    assert len(expand(tmp_path)) == 3


def test_results_among_the_inputs_are_left_out(tmp_path, card_path):
    v, _ = head((2, 40, 40))
    for p in ('a', 'b'): write_stack(tmp_path/p, v)
    for _ in range(2):
        assert [s['case'] for s in predict_cases(tmp_path, tmp_path/'out', model=card_path)] == ['a', 'b']


def test_files_of_one_patient_are_one_scan(tmp_path, card_path):
    v, lesion = head((4, 50, 40))
    for p, s in itertools.product(('p1', 'p2'), ('flair', 't1', 't1ce', 't2')):
        write_nifti(tmp_path/f'{p}_{s}.nii.gz', v if s == 'flair' else 300-v)
    write_nifti(tmp_path/'p1_seg.nii.gz', lesion, dtype=np.uint8)
    for given in (tmp_path, sorted(tmp_path.glob('*_[ft]*.nii.gz'))):
        said = predict_cases(given, tmp_path/'out', model=card_path)
        assert [s['case'] for s in said] == ['p1', 'p2']
        assert [s['scan']['sequences'] for s in said] == [('pre', 'flair', 'post')]*2
        assert all(says(s['warnings'], 'not a known sequence, ignored') for s in said)


def test_patients_are_not_mixed(tmp_path):
    files = [tmp_path/f for f in ('p1_flair.nii', 'p2_flair.nii', 'p2_t1.nii', 'p3.nii', 'p4.nii')]
    assert [f.parts[-1] for f in group_sequences(files)] == ['p1_flair', 'p2', 'p3', 'p4']
    # The same name in two folders is two patients
    assert len(group_sequences([tmp_path/'a'/'x_flair.nii', tmp_path/'b'/'x_t1.nii'])) == 2


def test_a_dicom_folder_is_one_case(tmp_path, card_path):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
    v, lesion = head((5, 60, 50))
    (tmp_path/'study'/'series1').mkdir(parents=True)
    for i, p in enumerate(v):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        ds = FileDataset('x', {}, file_meta=meta, preamble=b'\0'*128)
        ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        ds.SeriesInstanceUID, ds.SeriesDescription, ds.Modality = '1.2.3', 'AX FLAIR', 'MR'
        ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.PixelRepresentation = 'MONOCHROME2', 1, 0
        ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
        ds.Rows, ds.Columns = p.shape
        ds.ImageOrientationPatient, ds.PixelSpacing = [1, 0, 0, 0, 1, 0], [.9, .9]
        ds.ImagePositionPatient, ds.InstanceNumber = [0, 0, 5.*i], i+1
        ds.PixelData = p.astype(np.uint16).tobytes()
        ds.save_as(tmp_path/'study'/'series1'/f'IM{9-i}', enforce_file_format=True)
    said, = predict_cases(tmp_path/'study', tmp_path/'out', model=card_path)
    assert said['case'] == 'study' and len(said['input']) == 5
    assert overlap(read_mask(tmp_path/'out'/'study'/'mask.nii.gz'), lesion) > .85
    assert said['volume_ml'] == pytest.approx(said['lesion_px']*.9*.9*5/1000)


def _bad(folder, what):
    "One faulty input by name."
    v, lesion = head((2, 40, 40))
    if what == 'truncated':
        f = folder/'cut.tif'
        Image.fromarray(v[0].astype(np.uint8)).save(f)
        f.write_bytes(f.read_bytes()[:700])
    elif what == 'text': f = folder/'text.nii.gz'; f.write_text('hello')
    elif what == 'cut nifti': f = write_nifti(folder/'cut.nii.gz', v); f.write_bytes(f.read_bytes()[:300])
    elif what == '4-D':
        f = folder/'four.nii.gz'
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), f)
    elif what == 'empty file': f = folder/'zero.png'; f.touch()
    elif what == 'NaN': w = v.copy(); w[0, 0, :3] = np.nan; f = write_nifti(folder/'nan.nii.gz', w)
    elif what == 'flat': f = write_nifti(folder/'flat.nii.gz', v*0+7)
    elif what == 'empty folder': f = folder/'empty'; f.mkdir()
    elif what == 'absent': f = folder/'absent.nii.gz'
    elif what == 'mask': f = folder/'a_mask.png'; Image.fromarray(lesion[0].astype(np.uint8)*255).save(f)
    elif what == 'pre only': f = write_nifti(folder/'p_t1.nii.gz', v)
    elif what == 'pdf': f = folder/'report.pdf'; f.write_bytes(b'%PDF-1.7')
    elif what == 'two sizes':
        f = write_stack(folder/'sizes', v); Image.fromarray(np.zeros((9, 9), np.uint8)).save(f/'case_9.png')
    return f


BAD = ('truncated', 'text', 'cut nifti', '4-D', 'empty file', 'NaN', 'flat', 'empty folder', 'absent', 'mask',
       'pre only', 'pdf', 'two sizes')


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, card_path, what):
    bad = _bad(tmp_path, what)
    good = write_stack(tmp_path/'good', head((2, 40, 40))[0])
    said = predict_cases([bad, good], tmp_path/'out', model=card_path)
    errors = [s['error'] for s in said if 'error' in s]
    assert len(errors) == 1 and len(said) == 2
    assert '\n' not in errors[0] and str(tmp_path) not in errors[0] and len(errors[0]) < 400
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['good']


@pytest.mark.parametrize('mode,make', [
    ('RGBA', lambda a: Image.fromarray(np.dstack([a]*3+[np.full_like(a, 255)]), 'RGBA')),
    ('I;16', lambda a: Image.fromarray(a.astype(np.uint16)*200)),
    ('P', lambda a: Image.fromarray(a).convert('P')),
    ('LA', lambda a: Image.fromarray(a).convert('LA')),
])
def test_unusual_pictures_are_read(tmp_path, segmenter, mode, make):
    v, lesion = head((8, 80, 70))
    k = int(lesion.sum((1, 2)).argmax())
    make(v[k].clip(0, 255).astype(np.uint8)).save(tmp_path/'slice.png')
    assert overlap(segmenter.segment(tmp_path/'slice.png').mask[0], lesion[k]) > .85


def test_out_of_memory_is_told_and_others_go_on(tmp_path, card_path, monkeypatch):
    v, _ = head((2, 40, 40))
    for p in ('a', 'b'): write_stack(tmp_path/p, v)
    plain = result.read_scan
    def greedy(source, **kw):
        if Path(source).name == 'a': raise MemoryError
        return plain(source, **kw)
    monkeypatch.setattr(result, 'read_scan', greedy)
    said = predict_cases([tmp_path/'a', tmp_path/'b'], tmp_path/'out', model=card_path)
    assert 'more memory' in said[0]['error'] and 'error' not in said[1]


def test_a_bug_is_not_hidden(tmp_path, card_path, monkeypatch):
    def bug(*_, **__): raise ZeroDivisionError
    monkeypatch.setattr(result, 'read_scan', bug)
    with pytest.raises(ZeroDivisionError):
        predict_cases(write_stack(tmp_path/'a', head((2, 40, 40))[0]), tmp_path/'out', model=card_path)
