"A training that is killed in the middle of an epoch and started again ends with the same weights, bit for bit."
import json, os, signal, subprocess, sys
from pathlib import Path

import pytest

pytest.importorskip('fastai')

# Run as a script by the tests: trains small networks on invented slices, one job after the other, and can kill itself
SCRIPT = '''
import json, os, signal, sys, warnings
warnings.simplefilter('ignore')
import numpy as np, torch
torch.set_num_threads(1)
from fastai.basics import Callback
from neuroseg.core import RunError
from neuroseg.learn.slices import SliceSet
from neuroseg.learn.networks import ThesisUnet, register
from neuroseg.learn.recipe import config_from
from neuroseg.learn.train import train

register('tiny')(lambda n_in, pretrained: ThesisUnet(n_in, (4,8,16)))

def slices(n, rng):
    y = np.zeros((n,32,32), np.uint8)
    for m in y[::2]: r,c = rng.integers(4,20,2); m[r:r+8,c:c+8] = 255
    x = (rng.integers(0,80,(n,3,32,32)) + y[:,None]//2).clip(0,255).astype(np.uint8)
    return SliceSet(x, y, np.array([0,n//2,n]), np.array([1,1]), ('a','b'), 1)

class Kill(Callback):
    order = 90
    def __init__(self, at): self.at = at
    def after_batch(self):
        step = self.learn.epoch*len(self.dls.train) + self.iter
        if self.training and step==self.at: os.kill(os.getpid(), signal.SIGKILL)

for folder,settings,at in json.loads(sys.argv[1]):
    cfg = config_from(dict(model='tiny', epochs=4, bs=4, prep=dict(size_px=32)) | settings)
    rng = np.random.default_rng(0)
    try: train(cfg, slices(24, rng), slices(8, rng), folder, progress=False, cbs=[Kill(at)] if at>=0 else [])
    except RunError as e: print(e)
'''
AVERAGE = {}
BEST = dict(ema=None, keep='best', patience=3, schedule='flat', optimizer='adam', loss='thesis', augment=None,
            sampling='all', wd=0., lr=1e-3)
KILL_AT = 15 # The third step but one of the third epoch
ROOT = Path(__file__).resolve().parents[2]


def run(*jobs):
    "Train in a process of its own, one thread, as deterministic as a laptop can be; jobs are (folder, settings, step)."
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':str(ROOT)}
    jobs = json.dumps([(str(folder), settings, at) for folder,settings,at in jobs])
    return subprocess.run([sys.executable, '-c', SCRIPT, jobs], env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Four uninterrupted trainings, and one that is refused: its folder holds another configuration."
    d = tmp_path_factory.mktemp('runs')
    once = dict(epochs=1)
    done = run((d/'average', AVERAGE, -1), (d/'best', BEST, -1), (d/'seed0', dict(seed=0) | once, -1),
               (d/'seed1', dict(seed=1) | once, -1), (d/'seed0', dict(lr=.5) | once, -1))
    assert done.returncode==0, done.stderr[-2000:]
    (d/'said').write_text(done.stdout)
    return d


@pytest.mark.parametrize('name,settings', [('average', AVERAGE), ('best', BEST)])
def test_killed_and_resumed_equals_uninterrupted(runs, tmp_path, name, settings):
    whole, cut = runs/name, tmp_path/'cut'
    killed = run((cut, settings, KILL_AT))
    assert killed.returncode==-signal.SIGKILL, killed.stderr[-2000:]
    assert (cut/'checkpoint.safetensors').exists() and not (cut/'weights.safetensors').exists()
    resumed = run((cut, settings, -1))
    assert resumed.returncode==0, resumed.stderr[-2000:]
    assert (cut/'weights.safetensors').read_bytes() == (whole/'weights.safetensors').read_bytes()
    # All columns but the seconds
    rows = [[line.rsplit(',', 1)[0] for line in (d/'history.csv').read_text().splitlines()] for d in (whole, cut)]
    assert rows[0]==rows[1] and len(rows[0])==5


def test_another_seed_gives_other_weights(runs):
    "Or the comparison above would compare nothing."
    assert (runs/'seed0'/'weights.safetensors').read_bytes() != (runs/'seed1'/'weights.safetensors').read_bytes()


def test_a_checkpoint_is_no_pickle_and_belongs_to_one_configuration(runs):
    head = (runs/'seed0'/'checkpoint.safetensors').read_bytes()[:9]
    assert head[8:9]==b'{' and int.from_bytes(head[:8], 'little') < 10**6 # safetensors: a length and a JSON header
    said = (runs/'said').read_text()
    assert 'another configuration' in said and 'lr was' in said
