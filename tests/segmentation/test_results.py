"The files of a result: complete or absent, without paths, and never in place of a scan."
import errno, json, os

import numpy as np
import pytest
from bright_model import bright, head, names, overlap, scaled, write_model, write_nifti, write_stack

from neuroseg.core import ConfigError, OutputError, sha256_file
from neuroseg.scans.stacks import Scan
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.reading import Found, case_names
from neuroseg.segmentation import result
from neuroseg.segmentation.preview import pick_slices, preview, tiles
from neuroseg.segmentation.result import Segmenter, replaceable
from neuroseg.segmentation.batch import predict_cases


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


@pytest.fixture(scope='module')
def segmenter(card_path): return Segmenter(card_path)





def test_a_volume_a_stack_and_a_slice(tmp_path, card_path):
    v, lesion = head()
    (tmp_path/'in').mkdir()
    write_nifti(tmp_path/'in'/'vol_flair.nii.gz', v)
    write_stack(tmp_path/'in'/'stack', v, ending='tif')
    one = write_stack(tmp_path/'one', v[7:8])/'case_1.png'
    reports = predict_cases([tmp_path/'in'/'vol_flair.nii.gz', tmp_path/'in'/'stack', one], tmp_path/'out',
                            model=card_path)
    by = {r['case']: r for r in reports}
    out = tmp_path/'out'
    assert names(out/'vol_flair') == ['mask.nii.gz', 'preview.png', 'report.json']
    assert names(out/'stack') == ['mask.nii.gz', *sorted(f'masks/case_{i+1}_mask.png' for i in range(len(v))),
                                  'preview.png', 'report.json']
    assert names(out/'case_1') == ['mask.png', 'preview.png', 'report.json']
    assert overlap(read_mask(out/'stack'/'mask.nii.gz'), lesion) > .9
    # Slices sort by number: slice 10 is the tenth, in the volume and in its own file
    for i in (1, 7, 9):
        assert np.array_equal(read_mask(out/'stack'/'masks'/f'case_{i+1}_mask.png'),
                              read_mask(out/'stack'/'mask.nii.gz')[i])
    assert read_mask(out/'case_1'/'mask.png').shape == v.shape[1:]
    assert by['stack']['volume_ml'] is None and by['stack']['lesion_px'] > 0
    assert by['vol_flair']['volume_ml'] > 0
    assert by['stack']['lesion_slices'] == [f'case_{i+1}'
                                            for i in np.flatnonzero(read_mask(out/'stack'/'mask.nii.gz').any((1, 2)))]


def test_a_report_is_strict_json_without_paths(tmp_path, card_path):
    v, _ = head()
    folder = write_stack(tmp_path/'p1', v)
    said, = predict_cases(folder, tmp_path/'out', model=card_path)
    text = (tmp_path/'out'/'p1'/'report.json').read_text()
    assert str(tmp_path) not in text and tmp_path.name not in text
    def refuse(x): raise AssertionError(f'{x} is no JSON')
    stored = json.loads(text, parse_constant=refuse)
    assert stored == json.loads(json.dumps(said))
    assert [i['sha256'] for i in stored['input']] == [sha256_file(folder/i['name']) for i in stored['input']]
    assert len(stored['input']) == len(v)
    assert stored['model'] == dict(name='bright', version='7', sha256=sha256_file(card_path.with_suffix('.onnx')))
    assert 'esearch use only' in stored['notice'] and stored['seconds'] > 0
    from neuroseg import __version__
    assert stored['neuroseg'] == __version__


def test_no_lesion_gives_null_and_an_empty_mask(tmp_path):
    said, = predict_cases(write_stack(tmp_path/'p', head((3, 40, 40))[0]), tmp_path/'out',
                          model=write_model(tmp_path, scaled(.3)))
    stored = json.loads((tmp_path/'out'/'p'/'report.json').read_text())
    assert stored['lesion_px'] == stored['n_components'] == 0 and stored['lesion_slices'] == []
    assert stored['confidence'] is None and 'no_lesion' in {w['code'] for w in stored['warnings']}
    assert not read_mask(tmp_path/'out'/'p'/'mask.nii.gz').any()


def test_two_runs_write_the_same(tmp_path, card_path):
    folder = write_stack(tmp_path/'p', head()[0])
    for out in ('a', 'b'): predict_cases(folder, tmp_path/out, model=card_path)
    for name in names(tmp_path/'a'/'p'):
        a, b = ((tmp_path/o/'p'/name).read_bytes() for o in 'ab')
        if name == 'report.json': a, b = ({k: v for k, v in json.loads(t).items() if k != 'seconds'} for t in (a, b))
        assert a == b, name


@pytest.mark.parametrize('n', [1, 2, 5, 40])
def test_previews_of_any_length(n):
    v, lesion = head((n, 50, 40))
    for m in (lesion, np.zeros_like(lesion), np.ones_like(lesion)):
        im = preview(Scan(v[None], ('flair',)), m, caption='ünïcode is replaced')
        assert im.mode == 'RGB' and max(im.size) <= 1100


def test_a_preview_keeps_proportions():
    v, lesion = head((3, 40, 40))
    affine = np.diag([-1., -3., 5., 1.])
    assert tiles(Scan(v[None], ('flair',), (5., 3., 1.), affine), lesion, tile_px=90)[0][1].size == (30, 90)


def test_pick_slices_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(200):
        area = rng.integers(0, 2, rng.integers(1, 60))*rng.integers(0, 9)
        picked = pick_slices(area, n=int(rng.integers(1, 15)))
        assert picked == sorted(set(picked)) and 0 <= picked[0] and picked[-1] < len(area)


def test_warnings_of_a_report_are_data(tmp_path, card_path):
    "Each has a code, a severity, its English text and the values in it; those of the input come first."
    v, lesion = head()
    for s in ('flair', 't2'): write_nifti(tmp_path/f'p1_{s}.nii.gz', v)
    said, = predict_cases(sorted(tmp_path.glob('*.nii.gz')), tmp_path/'out', model=card_path)
    warnings = json.loads((tmp_path/'out'/'p1'/'report.json').read_text())['warnings']
    assert warnings == said['warnings'] and all(set(w) == {'code', 'severity', 'text', 'values'} for w in warnings)
    assert [(w['code'], w['severity']) for w in warnings[:2]] == [('ignored_sequence', 'note'),
                                                                  ('sequences_missing', 'warning')]
    assert warnings[0]['values']['name'] in warnings[0]['text']


def test_a_plain_warning_of_a_scan_is_kept(segmenter):
    "A caller may make a `Scan` with sentences of their own."
    scan = Scan(head((3, 40, 40))[0][None], ('flair',), warnings=['the patient moved'])
    said = segmenter.segment(scan).report()['warnings'][0]
    assert said == dict(code='warning', severity='warning', text='the patient moved',
                        values=dict(text='the patient moved'))



def test_scans_of_one_name_do_not_overwrite_each_other(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    for p in ('anna', 'bert'): (tmp_path/p).mkdir(); write_nifti(tmp_path/p/'scan.nii.gz', v if p == 'anna' else v[:2])
    said = predict_cases([tmp_path/p/'scan.nii.gz' for p in ('anna', 'bert')], tmp_path/'out', model=card_path)
    assert [s['case'] for s in said] == ['anna_scan', 'bert_scan']
    assert [read_mask(tmp_path/'out'/s['case']/'mask.nii.gz').shape[0] for s in said] == [3, 2]


def test_names_differ_whatever_comes():
    parts = [('a', 'x', 'scan'), ('b', 'x', 'scan'), ('b', 'y', 'Scan'), ('c', 'scan_2')]
    got = case_names([Found(None, p) for p in parts])
    assert len({n.casefold() for n in got}) == 4 and got[3] == 'scan_2'
    assert all('/' not in n and '\\' not in n and ':' not in n
               for n in case_names([Found(None, ('C:\\', 'scan')), Found(None, ('/', 'scan'))]))
    # A longer name must not run into one that is there
    got = case_names([Found(None, ('a', 's')), Found(None, ('b', 's')), Found(None, ('x', 'a_s'))])
    assert len(set(got)) == 3


def test_one_input_twice_is_an_error(tmp_path, card_path):
    v, _ = head((2, 30, 30))
    f = write_nifti(tmp_path/'scan.nii.gz', v)
    with pytest.raises(ConfigError, match='twice'): predict_cases([f, f], tmp_path/'out', model=card_path)
    assert not (tmp_path/'out').exists()


def test_a_scan_is_never_replaced_by_its_result(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    folder = write_stack(tmp_path/'scans'/'case', v)
    before = names(folder)
    said, = predict_cases(folder, tmp_path/'scans', model=card_path)
    assert 'there already' in said['error'] and names(folder) == before


def test_a_former_result_is_replaced_whole_or_not_at_all(tmp_path, card_path, monkeypatch):
    v, _ = head((3, 40, 40))
    folder, out = write_stack(tmp_path/'case', v), tmp_path/'out'
    predict_cases(folder, out, model=card_path)
    (folder/'case_3.png').unlink()
    predict_cases(folder, out, model=card_path)
    assert sorted(names(out/'case')) == ['mask.nii.gz', 'masks/case_1_mask.png', 'masks/case_2_mask.png',
                                         'preview.png', 'report.json']
    before = {n: (out/'case'/n).read_bytes() for n in names(out/'case')}
    def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(result, 'write_json', full)
    said, = predict_cases(folder, out, model=card_path, resume=False)
    assert said['error'] == 'cannot write `case`: no space left on device'
    assert {n: (out/'case'/n).read_bytes() for n in names(out/'case')} == before
    assert [p.name for p in out.iterdir()] == ['case']


def test_only_results_are_replaceable(tmp_path):
    assert not replaceable(tmp_path)
    (tmp_path/'report.json').write_text('{"neuroseg": "1"}')
    assert replaceable(tmp_path)
    (tmp_path/'masks').mkdir(); (tmp_path/'masks'/'a_mask.png').touch()
    assert replaceable(tmp_path)
    (tmp_path/'masks'/'a.png').touch()
    assert not replaceable(tmp_path)
    (tmp_path/'masks'/'a.png').unlink(); (tmp_path/'report.json').write_text('{"patient": 1}')
    assert not replaceable(tmp_path)
    (tmp_path/'report.json').write_text('{')
    assert not replaceable(tmp_path)


def test_out_is_a_file(tmp_path, card_path):
    f = write_nifti(tmp_path/'scan.nii.gz', head((2, 30, 30))[0])
    with pytest.raises(OutputError, match='`scan.nii.gz` is a file'): predict_cases(f, f, model=card_path)
    said, = predict_cases(f, f/'below', model=card_path)
    assert 'cannot write' in said['error'] and f.is_file()
