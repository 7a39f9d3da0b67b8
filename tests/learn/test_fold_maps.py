"Maps of a finished cross-validation: complete, resumable, under pseudonyms where the cohort is private."
import shutil

import pytest

for library in ('torch', 'fastai'): pytest.importorskip(library)
from neuroseg.cohorts.cohort import Cohort
from neuroseg.cohorts.tables import read_rows
from neuroseg.core import DataError
from neuroseg.evaluation.probability_maps import load_maps, map_table
from neuroseg.learn.cross_validation import cross_validate, recipe
from neuroseg.learn.fold_maps import trained_on_rows, write_fold_maps
from neuroseg.scans.phantom import write_phantom_hospital, write_phantom_lgg

CFG = recipe(dict(model='trial', epochs=1, bs=8, n_ensemble=2, prep=dict(size_px=32)))


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp('maps')
    cohort = Cohort.open(write_phantom_lgg(root/'lgg', n_patients=6, size_px=32, n_slices=5))
    cross_validate(cohort, root/'cv', cfg=CFG, progress=False)
    return cohort, root/'cv'


def test_scores_from_the_maps_are_the_stored_scores(finished, tmp_path):
    cohort, cv = finished
    run = shutil.copytree(cv, tmp_path/'cv')
    assert write_fold_maps(cohort, run, progress=False) == [0, 1, 2, 3, 4]
    stored = {(r['input'], r['patient']): r for r in read_rows(run/'patients.csv')}
    maps = list(load_maps(run, None))
    assert {(m.input, m.patient) for m in maps} == set(stored) and len(maps) == 12
    for m in maps:
        found, expected = m.score(.4, empty=1.), stored[m.input, m.patient]
        for k in ('tp', 'fp', 'fn', 'tn', 'dice', 'precision', 'recall', 'pred_px', 'targ_px'):
            assert found[k] == expected[k], (m.patient, k)
        assert found['confidence'] == pytest.approx(expected['confidence'], abs=1e-4)


def test_an_unfinished_fold_is_left_out_and_written_later(finished, tmp_path):
    cohort, cv = finished
    run = shutil.copytree(cv, tmp_path/'cv')
    record = (run/'fold_3'/'run.json').read_bytes()
    (run/'fold_3'/'run.json').unlink()
    assert write_fold_maps(cohort, run, progress=False) == [0, 1, 2, 4]
    before = {f: f.stat().st_mtime_ns for f in run.rglob('*.npz')}
    (run/'fold_3'/'run.json').write_bytes(record)
    assert write_fold_maps(cohort, run, progress=False) == [0, 1, 2, 3, 4]
    assert all(f.stat().st_mtime_ns == t for f, t in before.items())


def test_a_broken_map_table_is_not_taken_for_a_complete_one(finished, tmp_path):
    "The table is written last: maps without it are written again."
    cohort, cv = finished
    run = shutil.copytree(cv, tmp_path/'cv')
    write_fold_maps(cohort, run, progress=False)
    (run/'fold_1'/'maps.csv').unlink()
    next((run/'fold_1'/'maps').glob('*.npz')).unlink()
    with pytest.raises(DataError): list(load_maps(run, patients=cohort.split(1).patients('test')))
    write_fold_maps(cohort, run, progress=False)
    assert len(list(load_maps(run, None))) == 12


def test_patients_trained_on_are_never_scored_by_their_own_fold(finished):
    cohort, cv = finished
    rows = trained_on_rows(cohort, cv, cohort.patients)
    assert len(rows) == 6*4 and all(r['fold'] != r['model_fold'] for r in rows)


def test_no_name_of_a_private_patient_is_in_files_or_tables(tmp_path, monkeypatch):
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    own = write_phantom_hospital(tmp_path/'own', n_patients=5, size_px=32, n_slices=4)
    cross_validate(own, tmp_path/'run', cfg=CFG, private=True, progress=False)
    write_fold_maps(own, tmp_path/'run', private=True, progress=False)
    names = set(Cohort.open(own).patients)
    assert {r['patient'] for r in map_table(tmp_path/'run')} == {f'P{i}' for i in range(1, 6)}
    written = [f for f in (tmp_path/'run').rglob('*') if 'maps' in f.as_posix() and f.is_file()]
    assert len(written) == 10+5
    for f in written:
        assert not any(n in f.name for n in names)
        assert not any(n.encode() in f.read_bytes() for n in names)
