"Trainings that travel: what is packed, what comes back, what is refused, and a training as far as it came."
import os, subprocess, sys
from dataclasses import replace

import numpy as np
import pytest

for library in ('torch', 'fastai.basics'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.cohorts.cohort import Cohort
from neuroseg.core import RunError, sha256_file
from neuroseg.evaluation.protocols import count_batches, slice_counts, thesis_batches
from neuroseg.learn.recipe import THESIS_RECIPE
from neuroseg.learn.remote import (Sides, TimeLimit, check_result, pack, predict_slices, read_results, result_so_far,
                                   run_training, store_results, thesis_plan, thesis_sides, train_seeds, unpack)
from neuroseg.learn.slices import thesis_set
from neuroseg.learn.train import Callback, CancelFitException, train
from neuroseg.scans.phantom import write_phantom_hospital, write_phantom_lgg

TRIAL = dict(model='trial', epochs=2, lr=.01)


@pytest.fixture(scope='module')
def cohorts(tmp_path_factory):
    d = tmp_path_factory.mktemp('cohorts')
    return dict(lgg=Cohort.open(write_phantom_lgg(d/'lgg', n_patients=3, size_px=64, n_slices=5), source='phantoms'),
                gbm=Cohort.open(write_phantom_hospital(d/'ward', n_patients=2, size_px=48, n_slices=5)))


@pytest.fixture(scope='module')
def packed(cohorts, tmp_path_factory):
    return pack(tmp_path_factory.mktemp('packed')/'slices.npz', cohorts, progress=False)


@pytest.fixture(scope='module')
def sides(cohorts):
    return {k: thesis_sides(thesis_set(list(o.development), progress=False)) for k, o in cohorts.items()}


def test_the_plan_is_the_recipe_of_the_background_training():
    "A checkpoint of hours is only taken up by the very same configuration."
    first = thesis_plan(42, dict(model='thesis', precision='bfloat16', slices_per_epoch=None, epochs=50))[0]
    assert first.name == 'thesis'
    assert first.cfg == replace(THESIS_RECIPE, seed=42, precision='bfloat16', epochs=50, slices_per_epoch=None)


def test_the_second_notebook():
    tuned = thesis_plan()[1].cfg
    assert (tuned.lr, tuned.bs, tuned.epochs, tuned.keep, tuned.patience) == (1e-3, 8, 20, 'last', None)
    assert tuned.layers == 'all'
    assert (tuned.optimizer, tuned.loss, tuned.eps, tuned.augment) == ('adam', 'thesis', 1e-7, None)


def test_packed_slices_are_those_of_the_study(packed, sides):
    found = unpack(packed)
    assert [*found] == ['lgg', 'gbm']
    for name, own in sides.items():
        assert [s.fingerprint() for s in found[name]] == [s.fingerprint() for s in own]


def test_a_packed_file_holds_no_path(packed, cohorts):
    with np.load(packed) as z: texts = [str(z[k].tolist()) for k in z if k.endswith('patients')]
    assert not [t for t in texts if '/' in t or str(cohorts['lgg'].policy.folder) in t]


@pytest.mark.parametrize('spoil', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'no archive', lambda b: b[:-9]])
def test_damaged_files_are_refused(packed, tmp_path, spoil):
    bad = tmp_path/'bad.npz'
    bad.write_bytes(spoil(packed.read_bytes()))
    for read in (unpack, read_results):
        with pytest.raises(RunError, match='`bad.npz` cannot be read'): read(bad)


def test_files_of_another_kind_are_refused(packed, tmp_path):
    np.savez(tmp_path/'other.npz', a=np.arange(3))
    np.save(tmp_path/'pickle.npy', np.array([dict(a=1)], object), allow_pickle=True)
    for file in (tmp_path/'other.npz', tmp_path/'pickle.npy'):
        with pytest.raises(RunError, match='cannot be read'): unpack(file)
    with pytest.raises(RunError, match='cannot be read'): read_results(packed)


def test_sums_come_back_exactly(sides, tmp_path):
    "Not through the rounded pictures: the scores from a file are those of the predictions in float32."
    t = thesis_plan(3, TRIAL)[0]
    r = run_training(t, sides['lgg'], tmp_path)
    back = read_results(store_results(tmp_path/'r.npz', dict(thesis=r)))['thesis']
    model = train(t.cfg, *sides['lgg'], tmp_path/'thesis', progress=False).model
    prob, true = predict_slices(model, sides['lgg'].test), sides['lgg'].test.y/255
    assert np.array_equal(count_batches(back.soft, batch_size=2)[0], count_batches(slice_counts(prob, true, soft=True),
                                                                                   batch_size=2)[0])
    assert count_batches(back.soft)[0] == pytest.approx(thesis_batches(prob, true)[0], abs=1e-6)
    assert np.abs(back.prob/255-prob).max() <= .5/255+1e-6
    assert back.record['weights_sha256'] == sha256_file(tmp_path/'thesis'/'weights.safetensors')


class Until(Callback):
    "Stop before an epoch."
    order = 71
    def __init__(self, epoch): self.at = epoch
    def before_epoch(self):
        if self.epoch == self.at: raise CancelFitException


def test_a_training_as_far_as_it_came(sides, tmp_path):
    "It can be scored while it goes on, without a change to its folder; then it ends as if nothing had happened."
    t = thesis_plan(42, TRIAL | dict(epochs=4))[0]
    whole = run_training(t, sides['lgg'], tmp_path/'whole')
    train(t.cfg, *sides['lgg'], tmp_path/'cut'/'thesis', progress=False, cbs=[Until(2)])
    (tmp_path/'cut'/'thesis'/'weights.safetensors').unlink()  # a training that was killed has not written it
    before = {f.name: sha256_file(f) for f in (tmp_path/'cut'/'thesis').iterdir()}
    so_far = result_so_far(t, sides['lgg'], tmp_path/'cut')
    assert {f.name: sha256_file(f) for f in (tmp_path/'cut'/'thesis').iterdir()} == before
    assert (len(so_far.history), so_far.record['finished']) == (2, False)
    assert so_far.history == [r | dict(train_s=h['train_s']) for r, h in zip(whole.history, so_far.history)]
    ended = run_training(t, sides['lgg'], tmp_path/'cut')
    assert ended.record['weights_sha256'] == whole.record['weights_sha256']
    assert result_so_far(t, sides['lgg'], tmp_path/'cut').record['finished']


def test_slices_of_others_are_refused(sides, tmp_path):
    t = thesis_plan(42, TRIAL)[0]
    r = run_training(t, sides['lgg'], tmp_path)
    with pytest.raises(RunError, match='the same.*or on other slices'): result_so_far(t, sides['gbm'], tmp_path)
    swapped = Sides(*sides['lgg'][::-1])
    with pytest.raises(RunError, match='the slices differ'): check_result(r, t, swapped)


def test_no_epoch_is_begun_that_would_end_too_late(monkeypatch):
    clock = iter((0., 40., 80.))
    monkeypatch.setattr('neuroseg.learn.remote.time.monotonic', lambda: next(clock))
    limit = TimeLimit(100.)
    limit.before_epoch()
    limit.before_epoch()  # the last epoch took 40 s: until 80
    with pytest.raises(CancelFitException): limit.before_epoch()


def test_fine_tuning_of_other_weights_is_another_training(sides, tmp_path):
    first, second = thesis_plan(42, TRIAL)
    run_training(first, sides['lgg'], tmp_path)
    a = run_training(second, sides['gbm'], tmp_path)
    longer = replace(first, cfg=replace(first.cfg, seed=5))
    run_training(longer, sides['lgg'], tmp_path/'other')
    (tmp_path/'thesis'/'weights.safetensors').write_bytes((tmp_path/'other'/'thesis'/'weights.safetensors').read_bytes())
    b = run_training(second, sides['gbm'], tmp_path)
    assert len([*tmp_path.glob('tuned_*')]) == 2 and a.record['weights_sha256'] != b.record['weights_sha256']


def test_results_of_a_seed_whose_time_runs_out_are_kept(packed, tmp_path, monkeypatch):
    "Another seed that fails is named, and what is finished is there."
    with pytest.raises(RunError, match='seed 1: no time is left'):
        train_seeds(packed, tmp_path, (1,), minutes=0, settings=TRIAL)
    train_seeds(packed, tmp_path, (2,), settings=TRIAL)
    assert [f.name for f in sorted(tmp_path.glob('seed_*.npz'))] == ['seed_2.npz']
    assert [*read_results(tmp_path/'seed_2.npz')] == ['thesis', 'tuned']


def test_training_elsewhere_needs_no_reader_of_scans(packed, tmp_path):
    "The machine with the GPU has PyTorch, fastai and safetensors: neither the readers of the base install nor MONAI."
    absent = ('nibabel', 'pydicom', 'onnxruntime', 'cc3d', 'monai', 'timm', 'onnx', 'streamlit', 'papermill')
    script = tmp_path/'there.py'
    script.write_text(f"""import sys
sys.modules.update(dict.fromkeys({absent}))  # also in the processes that it starts
from neuroseg.cli import main
if __name__ == '__main__':
    raise SystemExit(main(['remote', 'train', {str(packed)!r}, '-o', {str(tmp_path/'out')!r}, '--set', 'model=trial',
                           'epochs=1']))
""")
    run = subprocess.run([sys.executable, script], cwd=ROOT, env=os.environ | dict(PYTHONPATH=str(ROOT)),
                         capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.rstrip().endswith('results: seed_42.npz')
