"Ablations: every arm has its pair, an interrupted or outdated run is not taken for a whole one."
import shutil

import numpy as np
import pytest

for library in ('torch', 'fastai', 'yaml'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.learn import ablation
from neuroseg.learn.ablation import (differences, grid_from, is_done, jobs, read_grid, run_folder, run_grid,
                                     training_rows, trainings)
from neuroseg.core import read_json, RunError
from neuroseg.cohorts.tables import read_rows, write_rows
from neuroseg.evaluation.comparisons import holm
from neuroseg.scans.phantom import write_phantom_lgg

SAID = dict(base=dict(model='trial', epochs=1, bs=8, prep=dict(size_px=32)), folds=[0, 1], seeds=[0, 1],
            arms=dict(flat=dict(factor='schedule', asks='?', set=dict(schedule='flat')),
                      half=dict(factor='threshold', asks='?', predict=dict(threshold=.5))))


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    "Two folds and two seeds of the base, one arm trained, one not."
    d = tmp_path_factory.mktemp('ablate')
    folder, grid = write_phantom_lgg(d, n_patients=5, size_px=32, n_slices=6), grid_from(SAID)
    run_grid(grid, folder, d/'runs', progress=False)
    return grid, folder, d/'runs'


@pytest.fixture
def told_apart(done, tmp_path):
    "The same runs with scores drawn by lot: networks of one epoch all score alike, and would hide a wrong pair."
    grid, _, runs = done
    runs, rng = shutil.copytree(runs, tmp_path/'runs'), np.random.default_rng(0)
    for f in sorted(runs.glob('*/*/patients.csv')):
        write_rows(f, [r | dict(dice=float(rng.uniform())) for r in read_rows(f)])
    return grid, runs


def scores(run):
    "The stored rows of a training, without the seconds that each took."
    return [{k: v for k, v in r.items() if k != 'seconds'} for r in read_rows(run/'patients.csv')]


def test_everything_asked_for_is_there_once(done):
    grid, _, runs = done
    assert len(jobs(grid)) == 2*2*2
    found = sorted(p.parent.relative_to(runs).as_posix() for p in runs.rglob('patients.csv'))
    assert found == sorted(f'{n}/fold_{k}_seed_{s}' for n in ('base', 'half', 'flat') for k in (0, 1) for s in (0, 1))


def test_a_difference_is_within_patients_and_over_all_trainings(told_apart):
    grid, runs = told_apart
    for row in differences(grid, runs):
        own, base = ([{r['patient']: r['dice'] for r in read_rows(run_folder(runs, name, k, s)/'patients.csv')
                       if r['input'] == 'all sequences'} for k in (0, 1) for s in (0, 1)]
                     for name in (row['arm'], 'base'))
        by_patient = [np.mean([a[p] for a in own if p in a])-np.mean([b[p] for b in base if p in b])
                      for p in own[0] | own[2]]
        assert (row['n'], row['gain']) == (len(by_patient), pytest.approx(np.mean(by_patient), abs=1e-12))


def test_the_correction_is_over_all_arms(told_apart):
    grid, runs = told_apart
    rows = differences(grid, runs)
    assert [r['p_holm'] for r in rows] == pytest.approx(holm([r['p'] for r in rows]))
    shutil.rmtree(run_folder(runs, 'flat', 1, 1))
    flat, half = differences(grid, runs)
    assert (flat['verdict'], flat['done'], flat['planned'], flat['p_holm']) == ('not yet trained', 3, 4, None)
    assert half['p_holm'] == pytest.approx(min(1, 2*half['p'])), 'an arm without trainings counts as well'


def test_each_training_is_compared_with_the_base_of_its_own_fold_and_seed(told_apart):
    grid, runs = told_apart
    rows = training_rows(grid, runs, input='FLAIR only')
    assert [(r['arm'], r['fold'], r['seed']) for r in rows] == [
        (a, k, s) for a in ('base', 'flat', 'half') for k in (0, 1) for s in (0, 1)]
    for r in rows:
        own = [[x['dice'] for x in read_rows(run_folder(runs, name, r['fold'], r['seed'])/'patients.csv')
                if x['input'] == 'FLAIR only'] for name in ('base', r['arm'])]
        assert r['dice'] == pytest.approx(np.mean(own[1]))
        assert r['gain'] == pytest.approx(np.mean(own[1])-np.mean(own[0]), abs=1e-12)


def test_an_unfinished_base_compares_nothing(told_apart):
    grid, runs = told_apart
    (run_folder(runs, 'base', 1, 0)/'run.json').unlink()
    with pytest.raises(RunError, match='the base has 3 of 4 trainings'): differences(grid, runs)


def test_a_list_is_resumed_at_the_training_that_was_interrupted(done, tmp_path, monkeypatch):
    "Nothing finished is trained again, and the interrupted training ends as it would have."
    grid, folder, runs = done
    copy, fitted = shutil.copytree(runs, tmp_path/'runs'), []
    at = run_folder(copy, 'flat', 0, 1)
    for f in ('run.json', 'patients.csv', 'weights.safetensors'): (at/f).unlink() # killed after the last epoch
    shutil.rmtree(at/'model')
    shutil.rmtree(run_folder(copy, 'flat', 1, 1))
    stamps = {p: p.stat().st_mtime_ns for p in copy.rglob('patients.csv')}
    real = ablation.fit_cohort
    def watched(cohort, run, **kwargs):
        if not is_done(run): fitted.append(run.relative_to(copy).as_posix())
        return real(cohort, run, **kwargs)
    monkeypatch.setattr(ablation, 'fit_cohort', watched)
    run_grid(grid, folder, copy, limit=1, progress=False)
    assert fitted == ['flat/fold_0_seed_1'] and [r['done'] for r in trainings(grid, copy)] == [4, 3, 4]
    run_grid(grid, folder, copy, limit=0, progress=False)
    assert len(fitted) == 1, 'no training was asked for'
    run_grid(grid, folder, copy, progress=False)
    assert fitted == ['flat/fold_0_seed_1', 'flat/fold_1_seed_1']
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    for k in (0, 1):
        assert scores(run_folder(copy, 'flat', k, 1)) == scores(run_folder(runs, 'flat', k, 1))


def test_two_networks_are_those_of_the_base_where_it_has_them(done, tmp_path, monkeypatch):
    "An arm of two networks trains only the seeds that the base lacks, and ends as if it had trained all."
    _, folder, runs = done
    said = SAID | dict(folds=[0], arms=dict(two=dict(factor='ensembling', asks='?', set=dict(n_ensemble=2))))
    grid, copies = grid_from(said), {}
    for how in ('borrowed', 'trained'):
        copies[how] = shutil.copytree(runs, tmp_path/how)
        if how == 'trained': monkeypatch.setattr(ablation, '_borrow', lambda *args: None)
        run_grid(grid, folder, copies[how], progress=False)
    borrowed, trained = (run_folder(copies[how], 'two', 0, 0) for how in ('borrowed', 'trained'))
    for k in (0, 1):
        twin = run_folder(runs, 'base', 0, k)/'history.csv'
        assert (borrowed/f'member_{k}'/'history.csv').read_bytes() == twin.read_bytes()
        assert (trained/f'member_{k}'/'weights.safetensors').read_bytes() == (
            borrowed/f'member_{k}'/'weights.safetensors').read_bytes()
    assert scores(borrowed) == scores(trained)
    assert not list(copies['borrowed'].rglob('*.part'))


@pytest.mark.parametrize('spoil', ['interrupted', 'other network'])
def test_scores_that_are_not_of_this_network_are_made_again(done, tmp_path, spoil):
    grid, folder, runs = done
    copy = shutil.copytree(runs, tmp_path/'runs')
    at = run_folder(copy, 'half', 0, 0)
    whole = read_rows(at/'patients.csv')
    write_rows(at/'patients.csv', [r | dict(dice=.123) for r in whole])
    if spoil == 'interrupted': (at/'predict.json').unlink() # which is written last
    else: (at/'predict.json').write_text('{"network": "of yesterday", "predict": {"threshold": 0.5}}')
    run_grid(grid, folder, copy, progress=False)
    assert [r['dice'] for r in read_rows(at/'patients.csv')] == [r['dice'] for r in whole]
    assert read_json(at/'predict.json') == read_json(run_folder(runs, 'half', 0, 0)/'predict.json')


def test_the_grid_of_study_24_can_be_run():
    grid = read_grid(ROOT/'reports/24_ablations/grid.yml')
    assert len(grid.arms) == 24 and len({a.name for a in grid.arms}) == len(grid.arms)
    assert grid.folds == (2, 3), 'the folds 0 and 1 served to choose the recipe and cannot judge it'
    assert all(a.seeds == grid.seeds == (0, 1) for a in grid.arms), 'two seeds for every arm'
    assert len(jobs(grid)) == 4*(1+21)
