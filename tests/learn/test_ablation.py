"Ablations: every arm has its pair, an interrupted or outdated run is not taken for a whole one."
import shutil

import numpy as np
import pytest

for library in ('torch', 'fastai', 'yaml'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.learn.ablation import (arm_rows, differences, grid_from, jobs, read_grid, run_folder, run_grid,
                                     seed_gains)
from neuroseg.core import read_json
from neuroseg.cohorts.tables import read_rows, write_rows
from neuroseg.scans.phantom import write_phantom_lgg

SAID = dict(base=dict(model='trial', epochs=1, bs=8, prep=dict(size_px=32)), folds=[0, 1], seeds=[0, 1],
            arms=dict(flat=dict(factor='schedule', asks='?', set=dict(schedule='flat'), seeds=[0]),
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


def test_everything_asked_for_is_there_once(done):
    grid, _, runs = done
    assert len(jobs(grid)) == 2*2 + 2
    found = sorted(p.parent.relative_to(runs).as_posix() for p in runs.rglob('patients.csv'))
    assert found == sorted([f'{n}/fold_{k}_seed_{s}' for n in ('base', 'half') for k in (0, 1)
                            for s in (0, 1)] + [f'flat/fold_{k}_seed_0' for k in (0, 1)])


def test_a_difference_is_within_patients_and_over_the_seeds_of_the_arm(told_apart):
    grid, runs = told_apart
    flat, half = differences(grid, runs)
    for row, seeds in ((flat, (0,)), (half, (0, 1))):
        base, arm = ({r['patient']: r['dice'] for r in arm_rows(grid, runs, name, seeds=seeds)}
                     for name in ('base', row['arm']))
        assert base.keys() == arm.keys() and row['n'] == len(base)
        assert row['gain'] == pytest.approx(np.mean([arm[p]-base[p] for p in base]), abs=1e-12)
    by_hand = [r['dice'] for k in (0, 1) for s in (0, 1)
               for r in read_rows(run_folder(runs, 'base', k, s)/'patients.csv') if r['input'] == 'all sequences']
    assert half['base'] == pytest.approx(np.mean(by_hand))


def test_each_seed_is_compared_with_the_base_of_its_own(told_apart):
    grid, runs = told_apart
    rows = seed_gains(grid, runs, input='FLAIR only')
    assert [(r['arm'], r['seed']) for r in rows] == [('base', 0), ('base', 1), ('flat', 0), ('half', 0), ('half', 1)]
    for r in rows:
        own = [[x['dice'] for k in (0, 1) for x in read_rows(run_folder(runs, name, k, r['seed'])/'patients.csv')
                if x['input'] == 'FLAIR only'] for name in ('base', r['arm'])]
        assert r['dice'] == pytest.approx(np.mean(own[1]))
        assert r['gain'] == pytest.approx(np.mean(own[1])-np.mean(own[0]), abs=1e-12)
    half = next(r for r in differences(grid, runs, input='FLAIR only') if r['arm'] == 'half')
    assert half['gain'] == pytest.approx(np.mean([r['gain'] for r in rows
                                                  if r['arm'] ==
                                                  'half'])), 'the difference over both seeds is the mean of the two'


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
    assert len(grid.arms) >= 12 and len({a.name for a in grid.arms}) == len(grid.arms) and not {0,
        1} & set(grid.folds), 'folds that the recipe was chosen on cannot judge it'


def test_every_small_difference_of_study_24_has_two_seeds():
    "As grid.yml and README say; two networks are two seeds by themselves."
    rows = [r for r in read_rows(ROOT/'reports/24_ablations/cpu/seeds.csv') if r['input'] == 'all sequences'
            and r['arm'] not in ('base', 'two_networks')]
    small = {r['arm'] for r in rows if r['seed'] == 0 and abs(r['gain']) < .02}
    assert small and {r['arm'] for r in rows if r['seed'] == 1} == small
