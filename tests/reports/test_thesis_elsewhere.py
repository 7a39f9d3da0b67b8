"Study 21 with trainings that it did not run: results from another machine, and a training that has not ended."
import shutil
from dataclasses import replace

import pandas as pd
import pytest

for library in ('papermill', 'nbconvert', 'matplotlib', 'torch', 'fastai.basics'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.cohorts.cohort import Cohort
from neuroseg.core import RunError, read_json
from neuroseg.learn.remote import pack, run_training, thesis_plan, train_seeds, unpack
from neuroseg.learn.train import Callback, CancelFitException
from neuroseg.reports.execution import run_study
from neuroseg.scans.phantom import write_phantom_hospital, write_phantom_lgg

pytestmark = pytest.mark.slow
TRIAL = dict(model='trial', slices_per_epoch=16)


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    "A repository with this study, the patients of its smoke profile, and their slices in a file."
    d = tmp_path_factory.mktemp('elsewhere')
    for folder in ('nbs/studies', 'neuroseg'):
        shutil.copytree(ROOT/folder, d/'repo'/folder, ignore=shutil.ignore_patterns('__pycache__'))
    (d/'repo'/'reports'/'21_thesis').mkdir(parents=True)
    shutil.copy(ROOT/'reports/21_thesis/params.yml', d/'repo'/'reports'/'21_thesis')
    lgg = write_phantom_lgg(d, n_patients=4, size_px=128, n_slices=12)
    ward = write_phantom_hospital(d/'ward', n_patients=3, size_px=64, n_slices=6)
    cohorts = dict(lgg=Cohort.open(lgg, source='synthetic patients'), gbm=Cohort.open(ward))
    pack(d/'slices.npz', cohorts, progress=False)
    return d


def study(world, runs, **params):
    return run_study('thesis', 'smoke', root=world/'repo', progress=False, runs=str(runs), fast_epochs=1, **params)


def test_results_from_another_machine(world):
    runs = world/'runs'
    train_seeds(world/'slices.npz', runs/'results', (42, 43), settings=TRIAL | dict(epochs=1))
    run = study(world, runs, trained='results', seeds=[42, 43])
    found, t = read_json(run/'summary.json'), pd.read_csv(run/'trainings.csv')
    assert [*t['network']] == ['thesis', 'thesis, seed 43', 'fast'] and [*t['ended']] == [1, 1, 1]
    assert found['thesis_seeds']['dice']['n'] == 2 and [*found['tuning']['seeds']] == ['42', '43']
    assert '2 seeds: ' in found['headline'] and not (runs/'thesis').exists()


def test_results_of_another_recipe_are_refused(world):
    with pytest.raises(RunError, match='comes from another training .epochs differ'):
        study(world, world/'runs', trained='results', thesis_epochs=2)


class Stop(Callback):
    "End a training after its first epoch."
    order = 71
    def after_epoch(self):
        if self.epoch == 0: raise CancelFitException


def test_a_training_that_has_not_ended(world):
    "It is scored as far as it came, says so, and waits with the fine-tuning; no epoch is trained."
    first, runs = thesis_plan(42, TRIAL)[0], world/'unfinished'
    first = replace(first, cfg=replace(first.cfg, epochs=3))
    run_training(first, unpack(world/'slices.npz')['lgg'], runs, cbs=[Stop()])
    run = study(world, runs, thesis_epochs=3, thesis_minutes=0)
    found = read_json(run/'summary.json')
    assert (found['thesis']['epochs'], found['thesis']['ended'], found['tuning']) == (1, False, None)
    assert 'of a training that has not ended' in found['headline'] and 'can be continued' in found['answer']
    assert found['measures']['thesis / thesis_protocol / dice']['complete'] is False
    assert len(pd.read_csv(runs/'thesis'/'history.csv')) == 1
