"Training: settings, batches, callbacks, interruptions, refusals. (A real `kill -9` in an epoch: test_resume.)"
import errno, json, os, signal, subprocess, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('fastai')
from fastai.basics import Callback, CancelValidException
from torch import nn

from neuroseg.core import ConfigError, InputError, OutputError, RunError
from neuroseg.learn.slices import SliceSet
from neuroseg.learn.augmentation import Augment
from neuroseg.evaluation.metrics import dice
from neuroseg.evaluation.protocols import batch_soft_dice, thesis_dice
from neuroseg.learn.networks import MODELS, build_model, register
from neuroseg.scans.preparation import Prep
from neuroseg.learn.recipe import THESIS_RECIPE, TrainConfig, config_dict, config_diff, config_from
from neuroseg.learn.trainer import PooledDice, SliceLoader, ThesisDice, find_lr, load_weights, make_learner
from neuroseg.learn.train import (checkpoint_meta, learner_state, load_checkpoint, read_history, save_checkpoint,
                                  train)

SMALL = TrainConfig(model='small', pretrained=False, prep=Prep(size_px=32), epochs=3, bs=4, lr=.01, ema=.9)


def small(n_in, pretrained):
    def conv(a, b): return nn.Sequential(nn.Conv2d(a,b,3,padding=1,bias=False), nn.BatchNorm2d(b), nn.ReLU())
    return nn.Sequential(conv(n_in,8), nn.MaxPool2d(2), conv(8,8), nn.ConvTranspose2d(8,8,2,stride=2), nn.Conv2d(8,1,1))


@pytest.fixture(autouse=True, scope='module')
def small_network():
    register('small')(small)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    del MODELS['small']


def slices(n=14, seed=0, channels=3, context=1, size=32):
    "Bright squares on a dark head; every other slice holds one."
    rng = np.random.default_rng(seed)
    y = np.zeros((n,size,size), np.uint8)
    for m in y[::2]: r,c = rng.integers(3,size-12,2); m[r:r+9,c:c+9] = 255
    x = (rng.integers(0,80,(n,channels,size,size)) + y[:,None]//2).clip(0,255).astype(np.uint8)
    return SliceSet(x, y, np.array([0,n//2,n]), np.array([1,1]), ('a','b'), context)


@pytest.fixture(scope='module')
def sets(): return slices(), slices(6, seed=1)


def fit(cfg, sets, folder, **kw): return train(cfg, *sets, folder, progress=False, **kw)
def same(a, b): return a.keys()==b.keys() and all(torch.equal(a[k],b[k]) for k in a)
def log(folder): return [{k:v for k,v in r.items() if k!='train_s'} for r in read_history(folder/'history.csv')]


class Stop(Callback):
    "Ctrl-C at a given moment."
    order = 90
    def __init__(self, epoch, when): self.at,self.when = epoch,when
    def strike(self, when):
        if self.epoch==self.at and self.when==when: raise KeyboardInterrupt
    def before_batch(self): self.strike('first batch')
    def after_pred(self): self.strike('forward')
    def after_step(self): self.strike('step')
    def after_train(self): self.strike('trained')
    def before_validate(self): self.strike('validating')
    def after_epoch(self): self.strike('epoch written')


# --- settings

@pytest.mark.parametrize('cfg', [TrainConfig(), THESIS_RECIPE,
                                 TrainConfig(augment=None, ema=None, patience=3, slices_per_epoch=9),
                                 TrainConfig(prep=Prep(context=2, clip=(0.,99.)), augment=Augment(flip=0.), n_in=7)])
def test_settings_survive_json(cfg): assert config_from(json.loads(json.dumps(config_dict(cfg))))==cfg


@pytest.mark.parametrize('wrong,says', [(dict(loss='x'),"loss 'x' is not known"), (dict(optimizer='sgd'),'optimizer'),
                                        (dict(schedule='cosine'),'schedule'),
    (dict(sampling='slice'),'sampling'), (dict(keep='first'),'keep'), (dict(precision='float16'),'precision'),
                                        (dict(epochs=0),'at least 1'), (dict(bs=0),'at least 1')])
def test_settings_that_do_not_exist_are_refused(wrong, says):
    with pytest.raises(ConfigError, match=says): TrainConfig(**wrong)


@pytest.mark.parametrize('wrong', [dict(lrate=1), dict(prep=dict(size=3)), dict(augment=dict(turn=3))])
def test_names_that_do_not_exist_are_refused(wrong):
    with pytest.raises(ConfigError, match='unknown setting'): config_from(wrong)


def test_a_checkpoint_from_before_a_setting_existed_still_fits():
    "Settings that an older configuration does not name have the value they had then: their default."
    old = config_dict(TrainConfig(epochs=7))
    for k in ('eps','valid_bs','drop_last'): del old[k]
    assert config_from(old)==TrainConfig(epochs=7) and not config_diff(config_from(old), TrainConfig(epochs=7))


def test_the_thesis_recipe():
    r = THESIS_RECIPE
    words = r.model, r.loss, r.optimizer, r.schedule, r.sampling, r.keep
    assert words==('thesis', 'thesis', 'adam', 'flat', 'all', 'best')
    assert (r.lr, r.wd, r.eps, r.bs, r.epochs, r.patience, r.drop_last)==(1e-4, 0, 1e-7, 16, 50, 5, False)
    assert r.augment is None and r.ema is None
    loader = SliceLoader(slices(21, channels=1, context=0), r, True)
    assert [len(x) for x,_ in loader]==[16,5]


# --- batches and metrics

@pytest.mark.parametrize('cfg,n,lengths', [(SMALL,14,[4,4,4]), (replace(SMALL,drop_last=False),14,[4,4,4,2]),
                                           (replace(SMALL,slices_per_epoch=9),14,[4,4]),
                                           (replace(SMALL,bs=50),14,[14]),
                                           (replace(SMALL,sampling='all',slices_per_epoch=90),14,[4,4,4])])
def test_lengths_of_an_epoch(cfg, n, lengths):
    loader = SliceLoader(slices(n), cfg, True)
    assert [len(x) for x,_ in loader]==lengths and len(loader)==len(lengths)


def test_validation_shows_every_slice_once_and_unchanged(sets):
    loader = SliceLoader(sets[0], SMALL, False, 5)
    x = torch.cat([x for x,_ in loader])
    assert torch.equal((x[:,:3]*255).round(), torch.from_numpy(sets[0].x).float())


def test_epochs_differ_and_seeds_differ(sets):
    def order(seed, epoch):
        loader = SliceLoader(sets[0], replace(SMALL, seed=seed), True); loader.epoch = epoch
        return tuple(loader.get_idxs())
    assert order(0,0)==order(0,0) and len({order(s,e) for s in range(3) for e in range(3)})==9


@pytest.mark.parametrize('sizes', [(30,), (1,)*30, (7,23), (16,14), (29,1)])
def test_pooled_dice_whatever_the_batches(sizes):
    g = torch.Generator().manual_seed(0)
    pred,targ = torch.randn(30,1,9,9,generator=g), (torch.rand(30,1,9,9,generator=g)>.9).float()
    m = PooledDice(); m.reset()
    for p,t in zip(pred.split(sizes), targ.split(sizes)): m.accumulate(SimpleNamespace(pred=p,y=t))
    assert m.value==dice((pred>0).numpy(), targ.numpy()>.5, empty=1.)


@pytest.mark.parametrize('batch_size', [4, 16, 32])
def test_thesis_dice_is_the_metrics(batch_size):
    g = torch.Generator().manual_seed(0)
    pred,targ = torch.randn(30,1,9,9,generator=g), (torch.rand(30,1,9,9,generator=g)>.9).float()
    m = ThesisDice(); m.reset()
    for p,t in zip(pred.split(batch_size), targ.split(batch_size)): m.accumulate(SimpleNamespace(pred=p,y=t))
    assert m.value==pytest.approx(thesis_dice(pred.sigmoid().numpy(), targ.numpy(), batch_size=batch_size), abs=1e-5)


def test_metrics_of_a_learner_do_not_depend_on_valid_bs(sets):
    values = []
    for bs in (1,4,6):
        learn = make_learner(SMALL, *sets, valid_bs=bs)
        with learn.no_bar(): values.append(learn.validate()[1])
    assert values[0]==values[1]==values[2]


# --- learning

def test_it_learns(sets, tmp_path):
    learn = fit(replace(SMALL, epochs=8, augment=None, lr=.03, slices_per_epoch=40), sets, tmp_path)
    rows = read_history(tmp_path/'history.csv')
    assert len(rows)==8 and rows[-1]['pooled_dice']>.5 and rows[-1]['train_loss']<.7*rows[0]['train_loss']
    with learn.no_bar(): prob,targ,mask = learn.get_preds(with_decoded=True)
    assert dice(mask.numpy(), targ.numpy()>.5, empty=1.)==pytest.approx(rows[-1]['pooled_dice'])
    assert batch_soft_dice(prob.numpy(), targ.numpy())==pytest.approx(rows[-1]['thesis_dice'], abs=1e-4)


def test_a_seed_is_a_network(sets, tmp_path):
    def weights(seed, folder): return fit(replace(SMALL, epochs=1, seed=seed), sets, folder).model.state_dict()
    a,b,c = (weights(seed, tmp_path/f'{i}') for i,seed in enumerate((4,4,5)))
    assert same(a,b) and not same(a,c)


def test_the_shipped_recipe_gives_the_same_network_twice(tmp_path):
    "Same seed, same machine: identical weights, from ImageNet, at 128 pixels, in bfloat16, with all augmentation."
    sets = slices(16, size=128), slices(2, seed=1, size=128)
    cfg = TrainConfig(epochs=1, bs=8, precision='bfloat16')
    a,b = (fit(cfg, sets, tmp_path/name).model.state_dict() for name in 'ab')
    assert same(a, b)


def test_bars_change_nothing(sets, tmp_path, capsys):
    cfg = replace(SMALL, epochs=1)
    quiet = fit(cfg, sets, tmp_path/'quiet').model.state_dict()
    assert capsys.readouterr().out==''
    assert same(quiet, train(cfg, *sets, tmp_path/'loud').model.state_dict())
    assert 'pooled_dice' in capsys.readouterr().out


@pytest.mark.parametrize('precision', ['float32','bfloat16'])
@pytest.mark.parametrize('epoch,when', [(0,'step'), (1,'first batch'), (1,'forward'), (2,'trained'), (2,'validating'),
                                        (1,'epoch written')])
def test_interrupted_anywhere_it_ends_the_same(sets, tmp_path, epoch, when, precision):
    cfg = replace(SMALL, precision=precision)
    with pytest.raises(KeyboardInterrupt): fit(cfg, sets, tmp_path/'cut', cbs=[Stop(epoch, when)])
    assert not torch.is_autocast_enabled('cpu')
    assert same(fit(cfg, sets, tmp_path/'cut').model.state_dict(), fit(cfg, sets, tmp_path/'whole').model.state_dict())
    assert log(tmp_path/'cut')==log(tmp_path/'whole')


@pytest.mark.parametrize('precision', ['float32','bfloat16'])
def test_the_fast_network_resumes_bit_for_bit(tmp_path, precision):
    "The shipped recipe: depthwise convolutions with their own gradients, batch norm, AdamW, one cycle, the average."
    sets = slices(8, size=64), slices(2, seed=1, size=64)
    cfg = TrainConfig(pretrained=False, prep=Prep(size_px=64), epochs=2, bs=4, ema=.9, precision=precision)
    with pytest.raises(KeyboardInterrupt): fit(cfg, sets, tmp_path/'cut', cbs=[Stop(1,'step')])
    assert same(fit(cfg, sets, tmp_path/'cut').model.state_dict(), fit(cfg, sets, tmp_path/'whole').model.state_dict())


def test_weights_and_moments_have_the_layout_of_the_batches(sets):
    "Channels last, for which the convolutions of a CPU are fastest."
    for optimizer in ('adam','adamw'):
        learn = make_learner(replace(SMALL, optimizer=optimizer), *sets)
        with learn.no_bar(), learn.no_logging(): learn.fit(1)
        for p,state in learn.opt.opt.state.items():
            assert p.ndim<4 or p.is_contiguous(memory_format=torch.channels_last)
            assert state['exp_avg'].stride()==p.stride()


def test_twice_interrupted(sets, tmp_path):
    for epoch in (1,2):
        with pytest.raises(KeyboardInterrupt): fit(SMALL, sets, tmp_path/'cut', cbs=[Stop(epoch,'step')])
        assert checkpoint_meta(tmp_path/'cut'/'checkpoint.safetensors')['next_epoch']==epoch
    assert same(fit(SMALL, sets, tmp_path/'cut').model.state_dict(),
                fit(SMALL, sets, tmp_path/'whole').model.state_dict())


def test_early_stopping_hands_out_the_best_and_resumes_to_it(sets, tmp_path):
    cfg = replace(SMALL, ema=None, keep='best', patience=2, epochs=30, lr=.3, schedule='flat', loss='thesis',
                  optimizer='adam', wd=0., augment=None)
    learn = fit(cfg, sets, tmp_path/'whole')
    losses = [r['valid_loss'] for r in log(tmp_path/'whole')]
    assert 1<len(losses)<30 and len(losses)==int(np.argmin(losses))+1+2
    with learn.no_bar(): assert learn.validate()[0]==pytest.approx(min(losses), abs=1e-6)
    with pytest.raises(KeyboardInterrupt): fit(cfg, sets, tmp_path/'cut', cbs=[Stop(len(losses)-1,'step')])
    assert same(fit(cfg, sets, tmp_path/'cut').model.state_dict(), learn.model.state_dict())
    assert log(tmp_path/'cut')==log(tmp_path/'whole')
    # finished: nothing is trained again
    assert same(fit(cfg, sets, tmp_path/'whole').model.state_dict(), learn.model.state_dict())
    assert len(log(tmp_path/'whole'))==len(losses)


def test_the_average_is_handed_out(sets, tmp_path):
    class Watch(Callback):
        order = 95
        def after_epoch(self):
            both = self.learn.weight_average.avg, self.model.state_dict()
            self.learn.seen = [{k:v.clone() for k,v in weights.items()} for weights in both]
    learn = fit(SMALL, sets, tmp_path, cbs=[Watch()])
    average,live = learn.seen
    assert same(learn.model.state_dict(), average) and not same(average, live) and not learn.model.training


def test_the_average_survives_a_cancelled_validation(sets):
    class Cancel(Callback):
        order = 90
        def before_validate(self): raise CancelValidException
    learn = make_learner(SMALL, *sets)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, cbs=Cancel())
    assert not learn.weight_average.swapped and learn.weight_average.n==3
    live = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(): learn.validate()
    assert same(learn.model.state_dict(), live)


def test_a_rate_search_leaves_no_trace(sets, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = find_lr(SMALL, sets[0], n_steps=30)
    assert 1e-6<found.lr<1 and len(found.lrs)==len(found.losses)<=31 and not list(tmp_path.iterdir())
    learn = make_learner(SMALL, *sets)
    before = {k:v.clone() for k,v in learn.model.state_dict().items()}
    with learn.no_bar(): learn.lr_find(num_it=20, show_plot=False) # fastai's own, on a learner that goes on to train
    assert learn.weight_average.avg is None and same(learn.model.state_dict(), before)


def test_fastais_unet_trains(sets, tmp_path):
    s = slices(8, size=64), slices(4, seed=1, size=64)
    fit(replace(SMALL, model='dynamic', epochs=1, prep=replace(SMALL.prep, size_px=64)), s, tmp_path)
    assert np.isfinite(read_history(tmp_path/'history.csv')[0]['valid_loss'])
    load_weights(build_model('dynamic', n_in=5, pretrained=False), tmp_path/'weights.safetensors')


# --- what lies in the folder

def test_a_run_folder(sets, tmp_path):
    fit(replace(SMALL, keep='best'), sets, tmp_path)
    assert {p.name for p in tmp_path.iterdir()}=={'best.safetensors','checkpoint.safetensors','config.json',
                                                  'history.csv','weights.safetensors'}
    assert config_from(json.loads((tmp_path/'config.json').read_text()))==replace(SMALL, keep='best')
    for f in tmp_path.glob('*.safetensors'):
        raw = f.read_bytes()
        # no pickle: a JSON header, then nothing but numbers
        header = json.loads(raw[8:8+int.from_bytes(raw[:8],'little')])
        ends = [v['data_offsets'][1] for k,v in header.items() if k!='__metadata__']
        assert max(ends)==len(raw)-8-int.from_bytes(raw[:8],'little')
    if os.name!='nt':
        umask = os.umask(0); os.umask(umask)
        assert {p.stat().st_mode&0o777 for p in tmp_path.iterdir()}=={0o666&~umask}


@pytest.fixture(scope='module')
def finished_run(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp('finished')
    fit(SMALL, sets, folder)
    return folder


@pytest.fixture
def run(finished_run, tmp_path):
    for f in finished_run.iterdir(): (tmp_path/f.name).write_bytes(f.read_bytes())
    return tmp_path


@pytest.mark.parametrize('damage', [lambda b: b[:5], lambda b: b[:400], lambda b: b[:-1], lambda b: b'',
                                    lambda b: b'hello'*100, lambda b: b'\xff'*1000,
                                    lambda b: b'\x02\0\0\0\0\0\0\0{}'])
def test_a_damaged_checkpoint_is_one_clear_sentence(sets, run, damage):
    file = run/'checkpoint.safetensors'
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(RunError) as e: fit(SMALL, sets, run)
    assert 'checkpoint.safetensors' in str(e.value) and 'delete it' in str(e.value) and '\n' not in str(e.value)


def test_a_foreign_safetensors_file_is_no_checkpoint(sets, run):
    (run/'checkpoint.safetensors').write_bytes((run/'weights.safetensors').read_bytes())
    with pytest.raises(RunError, match='not a checkpoint; delete it'): fit(SMALL, sets, run)


@pytest.mark.parametrize('change', [dict(lr=.5), dict(epochs=4), dict(seed=1), dict(model='fast'), dict(augment=None),
                                    dict(prep=Prep(size_px=64)), dict(ema=None)])
def test_a_checkpoint_of_another_configuration_is_refused(sets, run, change):
    with pytest.raises(RunError, match=f'another configuration .*{next(iter(change))} was'):
        fit(replace(SMALL, **change), sets, run)


def test_a_checkpoint_of_other_slices_is_refused(sets, run):
    for other in ((slices(seed=5),sets[1]), (sets[0],slices(6,seed=5)), sets[::-1]):
        with pytest.raises(RunError, match='on other slices'): fit(SMALL, other, run)


def test_a_checkpoint_that_names_no_slices_is_accepted(sets, run):
    "As those written before fingerprints were kept."
    learn = make_learner(SMALL, *sets)
    meta = load_checkpoint(learn, run/'checkpoint.safetensors')
    for k in ('data','smooth'): meta.pop(k)
    save_checkpoint(learn, run/'checkpoint.safetensors', {**meta, 'next_epoch':2})
    assert checkpoint_meta(run/'checkpoint.safetensors')['next_epoch']==2
    fit(SMALL, sets, run)
    assert checkpoint_meta(run/'checkpoint.safetensors')['next_epoch']==3


def test_a_checkpoint_holds_everything(sets, run):
    a,b = make_learner(SMALL, *sets), make_learner(replace(SMALL, seed=8), *sets)
    for learn in (a,b): load_checkpoint(learn, run/'checkpoint.safetensors')
    assert same(learner_state(a), learner_state(b))
    for p,st in a.opt.opt.state.items():
        assert st['exp_avg'].stride()==p.stride() # or sums would run in another order than before


def test_weights_of_another_network_are_refused(run):
    with pytest.raises(RunError, match='another network'): load_weights(nn.Conv2d(5,1,1), run/'weights.safetensors')
    with pytest.raises(RunError, match='is not in'): load_weights(nn.Conv2d(5,1,1), run/'absent.safetensors')


def test_missing_best_weights_are_named(sets, tmp_path):
    cfg = replace(SMALL, epochs=1, keep='best')
    fit(cfg, sets, tmp_path)
    (tmp_path/'best.safetensors').unlink()
    with pytest.raises(RunError, match='`best.safetensors` is not in'): fit(cfg, sets, tmp_path)


# --- faults on the way

def test_divergence_stops_with_a_sentence(sets, tmp_path):
    class Burst(Callback):
        "What too large a learning rate does in the end."
        def after_batch(self):
            for p in self.model.parameters(): p.data.mul_(1e30)
    with pytest.raises(RunError) as e: fit(replace(SMALL, schedule='flat', ema=None), sets, tmp_path, cbs=[Burst()])
    assert str(e.value).startswith('train: the loss is ')
    assert 'smaller learning rate' in str(e.value)
    assert '\n' not in str(e.value)
    assert not (tmp_path/'weights.safetensors').exists()


def test_a_full_disk_stops_with_a_sentence_and_keeps_the_last_checkpoint(sets, tmp_path, monkeypatch):
    state = dict(done=False) # whether the first checkpoint is on disk
    def full(self, data, write=Path.write_bytes):
        if 'checkpoint' in self.name and state['done']:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        state['done'] |= 'checkpoint' in self.name
        return write(self, data)
    monkeypatch.setattr(Path, 'write_bytes', full)
    with pytest.raises(OutputError) as e: fit(SMALL, sets, tmp_path)
    assert str(e.value).startswith('cannot write `checkpoint.safetensors`: no space left') and '\n' not in str(e.value)
    monkeypatch.undo()
    assert checkpoint_meta(tmp_path/'checkpoint.safetensors')['next_epoch']==1
    assert {p.name for p in tmp_path.iterdir()}=={'checkpoint.safetensors','config.json','history.csv'}


def test_a_folder_that_cannot_be_made(sets, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OutputError, match='cannot make the folder `run`'): fit(SMALL, sets, tmp_path/'file'/'run')


@pytest.mark.parametrize('n_in', [1,3,7])
def test_channels_must_fit(sets, n_in):
    with pytest.raises(ConfigError, match=f'have 5 channels, `n_in` is {n_in}'):
        make_learner(replace(SMALL, n_in=n_in), *sets)


def test_no_log_is_one_clear_sentence(tmp_path):
    with pytest.raises(InputError, match='`history.csv` cannot be read'): read_history(tmp_path/'history.csv')


KILLED = '''
import os, signal, sys, warnings
warnings.simplefilter('ignore')
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_train as t
t.register('small')(t.small)
replace, done = os.replace, []
def strike(a, b): # the second checkpoint is whole, but still beside its place
    if 'checkpoint' in str(b):
        if done: os.kill(os.getpid(), signal.SIGKILL)
        done.append(b)
    return replace(a, b)
os.replace = strike
t.fit(t.SMALL, (t.slices(), t.slices(6, seed=1)), sys.argv[2])
'''

@pytest.mark.skipif(not hasattr(signal,'SIGKILL'), reason='no kill -9 on this system')
def test_killed_while_the_checkpoint_is_replaced(sets, tmp_path):
    here = Path(__file__).resolve().parent
    env = {**os.environ, 'PYTHONPATH':str(here.parents[1]), 'OMP_NUM_THREADS':'1'}
    done = subprocess.run([sys.executable, '-c', KILLED, str(here), str(tmp_path/'cut')], env=env, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode==-signal.SIGKILL, done.stderr[-2000:]
    assert checkpoint_meta(tmp_path/'cut'/'checkpoint.safetensors')['next_epoch']==1
    assert list((tmp_path/'cut').glob('.*')) # what the kill left half-done
    assert same(fit(SMALL, sets, tmp_path/'cut').model.state_dict(),
                fit(SMALL, sets, tmp_path/'whole').model.state_dict())
    assert not list((tmp_path/'cut').glob('.*')) and log(tmp_path/'cut')==log(tmp_path/'whole')


def test_slices_of_another_size_than_the_recipe_says_are_refused(sets, tmp_path):
    "Else the exported card would ask for squares that the network never saw."
    with pytest.raises(ConfigError, match='have 32 pixels a side, `prep.size_px` is 96'):
        fit(replace(SMALL, prep=replace(SMALL.prep, size_px=96)), sets, tmp_path)
