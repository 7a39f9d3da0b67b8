"Fine-tuning: it resumes, it keeps each patient out in turn, it names nobody of a private cohort."
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from neuroseg import cli
from neuroseg.cohorts.cases import find_cases
from neuroseg.core import ConfigError, OutputError, RunError
from neuroseg.learn.slices import slice_set
from neuroseg.cohorts.tables import read_rows
from neuroseg.learn.export import export_model
from neuroseg.learn.finetune import interpolate_weights, assign_folds, finetune, start_weights, tuning_recipe
from neuroseg.segmentation.card import load_card
from neuroseg.learn.networks import build_model
from neuroseg.scans.phantom import write_phantom_hospital, write_phantom_lgg, write_phantom_nifti
from neuroseg.scans.preparation import Prep
from neuroseg.cohorts.privacy import mark
from neuroseg.learn.recipe import TrainConfig
from neuroseg.learn.train import Callback, checkpoint_meta, train

MADE_BY = TrainConfig(model='trial', epochs=1, bs=4, prep=Prep(size_px=32))


def write_first(folder, bits=16):
    torch.manual_seed(0)
    return export_model(build_model('trial', n_in=5).eval(), folder, name='first', cfg=MADE_BY, bits=bits,
                        card=dict(version='1', licence='CC BY-NC-SA 4.0'))


@pytest.fixture(scope='module')
def first(tmp_path_factory): return write_first(tmp_path_factory.mktemp('first'))


@pytest.fixture(scope='module')
def hospital(tmp_path_factory):
    return write_phantom_hospital(tmp_path_factory.mktemp('cohort')/'hospital', n_patients=3, size_px=48, n_slices=6)


def run(cohort, out, first, **kwargs):
    return finetune(cohort, out, model=first, **dict(settings=dict(epochs=1), threads=1, progress=False) | kwargs)


def test_every_patient_is_scored_once_by_a_network_that_did_not_see_him(hospital, first, tmp_path, monkeypatch):
    from neuroseg.learn import finetune
    real, learnt = finetune.tune, {}
    monkeypatch.setattr(finetune, 'tune', lambda cases, at,
                        **kwargs: learnt.update({at.name: {c.patient for c in cases}}) or real(cases, at, **kwargs))
    found = run(hospital, tmp_path/'run', first)
    rows = [r for k in range(3) for r in read_rows(tmp_path/'run'/f'fold_{k}'/'patients.csv')]
    assert sorted(r['patient'] for r in rows) == sorted({c.patient for c in find_cases(hospital)})
    assert found['after']['n'] == 3
    for r in rows: assert len(learnt[f"fold_{r['fold']}"]) == 2 and r['patient'] not in learnt[f"fold_{r['fold']}"]
    assert len(learnt['everyone']) == 3


def test_the_model_that_is_kept_learnt_from_everyone_and_inherits_the_licence(hospital, first, tmp_path):
    run(hospital, tmp_path/'run', first, name='ours')
    card = load_card(tmp_path/'run'/'model'/'ours.json')
    assert len(card.facts['split']['train']) == 3 and card.facts['split']['test'] == []
    assert card.facts['licence'] == 'CC BY-NC-SA 4.0'
    assert card.facts['start']['sha256'] == load_card(first).facts['sha256']['safetensors']
    assert set(card.facts['metrics']) == {'before fine-tuning', 'after fine-tuning'}


def test_a_broken_off_run_goes_on_where_it_was(hospital, first, tmp_path, monkeypatch):
    from neuroseg.learn import finetune
    whole, real, done = run(hospital, tmp_path/'whole', first), finetune.tune_fold, []
    def broken(k, *args, **kwargs):
        if len(done)==2: raise KeyboardInterrupt
        done.append(k)
        return real(k, *args, **kwargs)
    monkeypatch.setattr(finetune, 'tune_fold', broken)
    with pytest.raises(KeyboardInterrupt): run(hospital, tmp_path/'cut', first)
    stamp = (tmp_path/'cut'/'fold_0'/'patients.csv').stat().st_mtime_ns
    monkeypatch.setattr(finetune, 'tune_fold', real)
    assert run(hospital, tmp_path/'cut', first)['expect'] == whole['expect']
    assert (tmp_path/'cut'/'fold_0'/'patients.csv').stat().st_mtime_ns == stamp
    assert (tmp_path/'cut'/'model'/'model.safetensors').read_bytes() == (tmp_path/'whole'/'model'/
        'model.safetensors').read_bytes()


def test_other_settings_or_other_data_are_not_continued(hospital, first, tmp_path):
    run(hospital, tmp_path/'run', first)
    with pytest.raises(RunError, match='differs in recipe.lr'):
        run(hospital, tmp_path/'run', first, settings=dict(epochs=1, lr=1e-4))
    other = shutil.copytree(hospital, tmp_path/'hospital')
    shutil.rmtree(next(other.glob('patient*')))
    with pytest.raises(RunError, match='differs in data_hash'): run(other, tmp_path/'run', first)


def test_layers_that_are_closed_leave_as_they_came(hospital, first, tmp_path):
    run(hospital, tmp_path/'run', first, settings=dict(epochs=1, layers='head'))
    before, after = load_file(first.with_suffix('.safetensors')), load_file(tmp_path/'run'/'model'/'model.safetensors')
    moved = {k for k in before if not torch.equal(before[k], after[k])}
    assert moved and moved <= {'head.weight', 'head.bias'}


def test_differences_of_low_rank_are_all_that_is_learnt_and_resume(hospital, tmp_path):
    cfg = replace(MADE_BY, model='fast', pretrained=False, layers='low_rank', lr=.01, epochs=2)
    torch.manual_seed(0)
    before = build_model('fast', n_in=5, pretrained=False).state_dict()
    save_file({k: v.contiguous() for k,v in before.items()}, tmp_path/'start.safetensors')
    slices = slice_set(find_cases(hospital), cfg.prep, progress=False)

    class PowerCutError(Exception): pass
    class Cut(Callback):
        order = 70 # after the checkpoint
        def after_epoch(self): raise PowerCutError("now")
    def go(at, **kwargs):
        return train(cfg, slices, slices, tmp_path/at, start=tmp_path/'start.safetensors', progress=False, **kwargs)
    after = go('whole').model.state_dict()
    with pytest.raises(PowerCutError): go('broken', cbs=[Cut()])
    resumed = go('broken').model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], resumed[k]) for k in after)
    moved = {k: after[k]-before[k] for k in before if not torch.equal(after[k], before[k])}
    assert len(moved) > 20 and all(k.endswith('.weight') and v.ndim == 4 for k,v in moved.items())
    assert max(torch.linalg.matrix_rank(v.flatten(1), rtol=1e-3).item() for v in moved.values()) <= 4


def test_weights_of_a_byte_can_be_begun_with(hospital, tmp_path):
    assert run(hospital, tmp_path/'run', write_first(tmp_path/'first', bits=8))['after']['n'] == 3


def test_rehearsal_changes_what_is_learnt(hospital, first, tmp_path):
    lgg = write_phantom_lgg(tmp_path/'lgg', n_patients=2, size_px=48, n_slices=6)
    run(hospital, tmp_path/'plain', first)
    run(hospital, tmp_path/'mixed', first, rehearse=lgg)
    assert (tmp_path/'plain'/'model'/'model.safetensors').read_bytes() != (tmp_path/'mixed'/'model'/
        'model.safetensors').read_bytes()


def test_volumes_are_scored_in_millimetres(first, tmp_path):
    for n in (1, 2): write_phantom_nifti(tmp_path/'volumes', number=n)
    mark(tmp_path/'volumes', private=False, source='synthetic patients')
    found = run(tmp_path/'volumes', tmp_path/'run', first)
    assert 'volume_error_ml' in read_rows(tmp_path/'run'/'fold_0'/'patients.csv')[0] and found['after']['n'] == 2


def test_a_private_cohort_leaves_no_name(hospital, first, tmp_path, capfd):
    secret = shutil.copytree(hospital, tmp_path/'keep'/'westclinic')
    (secret/'cohort.json').unlink()
    for i,p in enumerate(sorted(secret.glob('patient*'))): p.rename(secret/f'Lindqvist_{i}')
    assert cli.main(['finetune', str(secret), '-o', str(tmp_path/'run'), '--model', str(first), '--set', 'epochs=1',
                     '--threads', '1']) in (0, None)
    said = ''.join(capfd.readouterr())
    written = b''.join(f.read_bytes() for f in (tmp_path/'run').rglob('*') if f.is_file())
    for word in ('lindqvist', 'westclinic'): assert word not in said.lower() and word.encode() not in written.lower()


def test_private_rows_stand_in_the_order_of_their_numbers_and_their_slices_are_not_recognised(first, tmp_path):
    secret = write_phantom_hospital(tmp_path/'keep'/'clinic', n_patients=5, size_px=48, n_slices=4)
    run(secret, tmp_path/'run', first, private=True)
    rows = read_rows(tmp_path/'run'/'patients.csv')
    numbers = [int(r['patient'][1:]) for r in rows if r['model'] == 'before']
    assert numbers == sorted(numbers) == list(range(1, 6))
    fingerprints = checkpoint_meta(tmp_path/'run'/'everyone'/'checkpoint.safetensors')['data']
    bare = [slice_set(some, MADE_BY.prep, progress=False).fingerprint()
            for some in (find_cases(secret), find_cases(secret)[:1])]
    assert not {*fingerprints} & {*bare}
    split = load_card(tmp_path/'run'/'model'/'model.json').facts['split']
    assert split['train'] == 5 and len(split['keyed']) == 5 and not any('patient' in k for k in split['keyed'])


def test_of_few_private_patients_averages_are_told(hospital, first, tmp_path):
    secret = shutil.copytree(hospital, tmp_path/'keep'/'clinic')
    found = run(secret, tmp_path/'run', first, private=True)
    # an interval of three patients is their least and their greatest
    assert found['expect'].startswith('Withheld') and not {'median_gain','gain_ci95'} & set(found['gain'])
    assert not {'mean_ci95','min','max','median'} & set(found['after']['scores']['dice'])
    assert found['after']['scores']['dice']['mean']>=0
    assert {r['column'] for r in read_rows(tmp_path/'run'/'patients.csv')} == {'dice','precision','recall'}
    assert not list((tmp_path/'run').glob('fold_*/patients.csv'))
    run(secret, tmp_path/'run', first, private=True) # still resumable


def test_a_private_run_refuses_to_lie_in_the_repository(hospital, first, root):
    with pytest.raises(OutputError, match='git does not ignore'): run(hospital, root/'nbs'/'run', first, private=True)
    assert not (root/'nbs'/'run').exists()


@pytest.mark.parametrize('settings, message',
                         [(dict(n_ensemble=2), 'n_ensemble cannot be changed'),
                          (dict(n_in=3), 'n_in cannot be changed'), (dict(epochs='many'), '`epochs` is')])
def test_settings_that_make_no_sense(first, settings, message):
    with pytest.raises(ConfigError, match=message): tuning_recipe(load_card(first), settings)


def test_a_card_without_recipe_or_weights(first):
    card = load_card(first)
    with pytest.raises(ConfigError, match='has no recipe'):
        tuning_recipe(replace(card, facts=card.facts | dict(recipe=None)))
    with pytest.raises(ConfigError, match='SHA-256 differs'):
        start_weights(replace(card, facts=card.facts | dict(sha256=dict(card.facts['sha256'], safetensors='0'*64))))


def test_the_line_between_before_and_after(first):
    before = {k: v.float() for k,v in load_file(first.with_suffix('.safetensors')).items() if v.is_floating_point()}
    after = {k: v+1 for k,v in before.items()}
    for share in (0., .5, 1.):
        for k,v in interpolate_weights(before, after, share).items():
            assert torch.allclose(v, before[k]+share, atol=1e-6)


def test_few_patients_are_kept_out_alone_and_many_in_five(tmp_path):
    many = find_cases(write_phantom_hospital(tmp_path/'many', n_patients=13, size_px=32, n_slices=4))
    assert len(set(assign_folds(many).values())) == 5 and len(set(assign_folds(many[:12]).values())) == 12
