"Many inputs: which scans they hold, and faults that stop only their own scan."
import csv, itertools, json, os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from bright_model import bright, head, overlap, says, write_model, write_nifti, write_stack

from neuroseg.core import InputError
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.reading import expand, group_sequences
from neuroseg.segmentation import result
from neuroseg.segmentation.result import Segmenter
from neuroseg.segmentation.batch import predict_cases
from neuroseg.segmentation.console import predict_named


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
        assert [s['scan']['sequences'] for s in said] == [['pre', 'flair', 'post']]*2
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
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['cases.csv', 'good']


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


def test_a_bug_is_told_and_others_go_on(tmp_path, card_path, monkeypatch):
    v, _ = head((2, 40, 40))
    for p in ('a', 'b'): write_stack(tmp_path/p, v)
    plain = result.read_scan
    def bug(source, **kw): return 1/0 if Path(source).name == 'a' else plain(source, **kw)
    monkeypatch.setattr(result, 'read_scan', bug)
    said = predict_cases(tmp_path, tmp_path/'out', model=card_path)
    assert 'met a fault of neuroseg itself (ZeroDivisionError in test_batch.py' in said[0]['error']
    assert 'error' not in said[1]
    monkeypatch.setenv('NEUROSEG_DEBUG', '1')
    with pytest.raises(ZeroDivisionError): predict_cases(tmp_path, tmp_path/'out2', model=card_path)


def test_ctrl_c_leaves_whole_results_and_a_table(tmp_path, card_path, monkeypatch):
    v, _ = head((2, 40, 40))
    for p in ('a', 'b', 'c'): write_stack(tmp_path/'scans'/p, v)
    plain = result.write_json
    def stop(path, obj):
        if obj['case'] == 'b': raise KeyboardInterrupt
        plain(path, obj)
    monkeypatch.setattr(result, 'write_json', stop)
    with pytest.raises(KeyboardInterrupt): predict_cases(tmp_path/'scans', tmp_path/'out', model=card_path)
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['a', 'cases.csv']
    assert [r['case'] for r in table(tmp_path/'out')] == ['a']


def table(out):
    with open(out/'cases.csv', newline='') as f: return list(csv.DictReader(f))


def test_the_table_tells_which_failed(tmp_path, card_path):
    v, _ = head((2, 40, 40))
    for p in ('a', 'b'): write_stack(tmp_path/'scans'/p, v)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path/'scans'/'b'/'case_9.png')
    predict_cases(tmp_path/'scans', tmp_path/'out', model=card_path)
    rows = table(tmp_path/'out')
    assert [(r['case'], r['status']) for r in rows] == [('a', 'done'), ('b', 'failed')]
    assert '`case_9.png`' in rows[1]['error'] and int(rows[0]['lesion_px']) > 0
    for p in ('c', 'd'): write_stack(tmp_path/'more'/p, v)
    predict_cases(tmp_path/'more', tmp_path/'out', model=card_path)
    assert [r['case'] for r in table(tmp_path/'out')] == ['a', 'b', 'c', 'd'] # those of the first call are kept


def test_names_that_are_no_utf8(tmp_path, card_path):
    folder = write_stack(tmp_path/'ok', head((2, 40, 40))[0])
    names = [os.fsdecode(b'ward_\xe9'), 'b']
    for n in names: os.rename(folder, tmp_path/n) if n == names[0] else write_stack(tmp_path/n, head((2, 40, 40))[0])
    said = predict_cases(tmp_path, tmp_path/'out', model=card_path)
    assert not [s for s in said if 'error' in s]
    assert json.loads((tmp_path/'out'/names[0]/'report.json').read_text())['case'] == names[0]
    assert len(table(tmp_path/'out')) == 2


# ---- whose scan is it

def test_a_loop_over_patients_replaces_nothing(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    for p, w in (('p1', v), ('p2', v[:, ::-1])):
        (tmp_path/p).mkdir(); write_nifti(tmp_path/p/'flair.nii.gz', w)
    first, = predict_cases(tmp_path/'p1'/'flair.nii.gz', tmp_path/'out', model=card_path)
    second, = predict_cases(tmp_path/'p2'/'flair.nii.gz', tmp_path/'out', model=card_path)
    assert 'holds the result of another scan' in second['error']
    kept = json.loads((tmp_path/'out'/'flair'/'report.json').read_text())
    assert kept['input'] == first['input']
    again, = predict_cases(tmp_path/'p2'/'flair.nii.gz', tmp_path/'out', model=card_path, replace=True)
    assert again['input'] != first['input']


@pytest.mark.parametrize('name,case', [('1.2.840.1001_flair.nii.gz', '1.2.840.1001_flair'),
                                       ('.hidden_flair.nii.gz', 'hidden_flair'), ('a.b.nii', 'a.b')])
def test_a_case_is_named_by_the_whole_name(tmp_path, card_path, name, case):
    f = write_nifti(tmp_path/name, head((3, 40, 40))[0])
    assert predict_named([f], ('flair',), tmp_path/'out', model=card_path)['case'] == case
    assert predict_cases(f, tmp_path/'out2', model=card_path)[0]['case'] == case


def test_examinations_before_and_after_an_operation_are_two_scans(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    for t, w in (('pre', v), ('post', v[:, ::-1])): write_nifti(tmp_path/f'p01_{t}_flair.nii.gz', w)
    write_nifti(tmp_path/'p01_pre_t1.nii.gz', v)
    said = predict_cases(tmp_path, tmp_path/'out', model=card_path)
    assert [(s['case'], s['scan']['sequences'], len(s['input'])) for s in said] == [
        ('p01_post_flair', ['flair'], 1), ('p01_pre_flair', ['flair'], 1)]
    assert says(said[0]['warnings'], 'of which examination') and 'p01_pre_t1.nii.gz' in str(said[0]['warnings'])


def test_identifiers_that_differ_in_a_sign_are_two_patients(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    for n in ('A-1_flair', 'A_1_t1ce'): write_nifti(tmp_path/f'{n}.nii.gz', v)
    said = predict_cases(tmp_path, tmp_path/'out', model=card_path)
    assert [s['case'] for s in said] == ['A-1_flair', 'A_1_t1ce'] and said[0]['scan']['sequences'] == ['flair']
    assert 'error' in said[1] # no FLAIR of that patient


def test_a_folder_of_two_patients_is_no_scan(tmp_path, segmenter):
    v, _ = head((3, 40, 40))
    for n in ('p1_flair', 'p2_t1'): write_nifti(tmp_path/f'{n}.nii.gz', v)
    with pytest.raises(InputError, match='holds scans of 2 patients'): segmenter.segment(tmp_path)
    with pytest.raises(InputError, match='the list holds scans of 2 patients'):
        segmenter.segment(sorted(tmp_path.iterdir()))


def test_everything_beside_the_scans_is_known(tmp_path, card_path):
    v, lesion = head((3, 40, 40))
    for p in ('p1', 'p2'): write_stack(tmp_path/p, v)
    for junk in ('._p1', '.DS_Store', 'Thumbs.db', 'notes.txt'): (tmp_path/junk).write_bytes(b'x')
    for junk in ('@eaDir', '__MACOSX'): write_stack(tmp_path/junk, v)
    (tmp_path/'loop').symlink_to(tmp_path)
    (tmp_path/'p2_seg.png').touch()
    predict_cases(tmp_path, tmp_path/'results_v1', model=card_path)
    said = predict_cases(tmp_path, tmp_path/'results_v2', model=card_path)
    assert [s['case'] for s in said] == ['p1', 'p2'] and not any('error' in s for s in said)
    codes = {w['code'] for w in said[0]['warnings']}
    assert {'results_left_out', 'system_files', 'link_to_above', 'files_beside'} <= codes
    said, = predict_cases(tmp_path/'results_v1'/'p1', tmp_path/'out', model=card_path)
    assert 'is a result of NeuroSeg, not a scan' in said['error']


def test_volumes_beside_folders_and_system_files(tmp_path, card_path):
    v, lesion = head((3, 40, 40))
    p = tmp_path/'p1'; p.mkdir()
    for s in ('flair', 't1ce', 't2'): write_nifti(p/f'p1_{s}.nii.gz', v)
    write_nifti(p/'W39_1998.09.19_Segm.nii', lesion, dtype=np.uint8)
    (p/'._p1_flair.nii.gz').write_bytes(bytes(400)); (p/'old').mkdir(); (p/'list.csv').touch()
    said, = predict_cases(tmp_path, tmp_path/'out', model=card_path)
    assert [i['name'] for i in said['input']] == ['p1_flair.nii.gz', 'p1_t1ce.nii.gz']
    assert says(said['warnings'], 'old') and says(said['warnings'], '._p1_flair.nii.gz')


def test_a_map_of_labels_is_no_scan(tmp_path, card_path):
    v, lesion = head((3, 40, 40))
    write_nifti(tmp_path/'OTTumour.nii.gz', lesion*4, dtype=np.uint8)
    write_nifti(tmp_path/'x_t2.nii.gz', v)
    said = predict_cases([tmp_path/'OTTumour.nii.gz', tmp_path/'x_t2.nii.gz'], tmp_path/'out', model=card_path)
    assert 'a mask or a map of labels' in said[0]['error'] and 'no FLAIR' in said[1]['error']


def test_a_dead_link_stops_its_own_scan_only(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    for p in ('a', 'b'): write_stack(tmp_path/p, v)
    (tmp_path/'a'/'case_9.png').symlink_to(tmp_path/'gone.png')
    said = predict_cases(tmp_path, tmp_path/'out', model=card_path)
    assert 'link to a file that is not there' in said[0]['error'] and 'error' not in said[1]
