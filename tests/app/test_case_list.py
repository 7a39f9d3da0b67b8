"Cases stay while another one is shown: result, threshold, window, reference; nothing is segmented twice."
import io, json, zipfile

import numpy as np
import pytest
from bright_model import head, write_nifti
from test_app import card, fresh, metrics, segmenter, slider, slices, upload, volume

from neuroseg.app import session
from neuroseg.app.case_list import case_row, cases_csv, cases_zip
from neuroseg.scans.nifti import read_mask

assert card and segmenter and volume # fixtures


@pytest.fixture
def other(tmp_path): return write_nifti(tmp_path/'bert_flair.nii.gz', head((8, 60, 50))[0])


@pytest.fixture
def counted(monkeypatch):
    "The names of the scans that were segmented."
    names, before = [], session.segment_found
    def segment_found(segmenter, found, name, **kwargs):
        names.append(name)
        return before(segmenter, found, name, **kwargs)
    monkeypatch.setattr(session, 'segment_found', segment_found)
    return names


def show(at, name):
    box = at.selectbox(key='scan')
    box.set_value(next(r.key for r in at.session_state.cases if r.name == name)).run()
    assert not at.exception and not at.error
    return at


def test_an_added_file_segments_nothing_again(volume, other, counted):
    at = upload(fresh(), volume)
    upload(at, volume, other)
    assert counted == ['anna_flair', 'bert_flair'] and slices(at) == 8, 'the new case is shown'
    upload(at, other)
    assert counted == ['anna_flair', 'bert_flair'] and len(at.session_state.known) == 1, 'and released when removed'
    upload(at, volume, other)
    assert counted == ['anna_flair', 'bert_flair', 'anna_flair']


def test_another_name_is_another_case(volume, counted):
    at = upload(fresh(), volume, ('carl_flair.nii.gz', volume.read_bytes()))
    assert at.selectbox(key='scan').options == ['anna_flair', 'carl_flair'] and len(counted) == 2


@pytest.mark.parametrize('pictures', [True, False], ids=['pictures', 'volume'])
def test_threshold_and_reference_of_a_case_stay(volume, other, tmp_path, pictures):
    at = upload(fresh(pictures), volume, other)
    show(at, 'anna_flair')
    slider(at, 'Threshold').set_value(.8).run()
    if pictures: slider(at, 'Window').set_value((20, 60)).run()
    truth = write_nifti(tmp_path/'t_mask.nii.gz', head()[1].astype(np.uint8), dtype=np.uint8)
    upload(at, truth, key='reference')
    before, table = metrics(at), next(m.value for m in at.markdown if m.value.startswith('| score'))
    show(at, 'bert_flair')
    assert slider(at, 'Threshold').value == .5 and not any(m.value.startswith('| score') for m in at.markdown)
    show(at, 'anna_flair')
    assert slider(at, 'Threshold').value == .8 and metrics(at) == before
    assert not pictures or slider(at, 'Window').value == (20, 60)
    assert next(m.value for m in at.markdown if m.value.startswith('| score')) == table
    row = at.dataframe[0].value
    assert row['Dice'][0] == f"{float(table.split('| Dice |')[1].split('|')[0]):.3f}" and row['Dice'][1] == '–'


def test_a_cancelled_case_leaves_the_earlier_ones(volume, other):
    at = upload(fresh(), volume)
    cases = at.session_state.cases
    at.session_state.cancelled = 'soon'
    upload(at, volume, other)
    key = next(iter(at.session_state.kept))
    at.session_state.kept, at.session_state.cancelled, at.session_state.cases = {}, key, cases
    at.run()
    assert slices(at) == 12 and len(at.error) == 1


def test_one_archive_of_everything(volume, other, tmp_path, segmenter):
    results, _ = session.segment_uploads(segmenter, [Upload(p) for p in (volume, other)])
    results[0].truth, results[0].reference = head()[1] > 0, 't_mask.nii.gz'
    results[1].chosen['threshold'] = .8
    with zipfile.ZipFile(io.BytesIO(cases_zip(results))) as z: z.extractall(tmp_path/'all')
    for r in results:
        folder, = (tmp_path/'all').glob(f'*_{r.name}')
        assert (read_mask(folder/'mask.nii.gz') == r.at_threshold().mask).all()
        assert {p.name for p in folder.iterdir()} == {'mask.nii.gz', 'preview.png', 'report.json', 'report.pdf'}
    report = json.loads((tmp_path/'all/01_anna_flair/report.json').read_text())
    assert report['reference']['dice'] == pytest.approx(case_row(results[0])['dice'])
    assert (tmp_path/'all/cases.csv').read_text() == cases_csv(results).replace('\r\n', '\n')


class Upload:
    def __init__(self, path): self.name, self.path = path.name, path
    def getvalue(self): return self.path.read_bytes()
