"A training that is killed in the middle of an epoch and started again ends with the same weights, bit for bit."
import json, os, signal, subprocess, sys, time
from pathlib import Path

import pytest

pytest.importorskip('fastai')

# Run as a script by the tests: trains a small network on invented slices; KILL_AT_STEP makes the process kill itself for real
SCRIPT = '''
import json, os, signal, sys, warnings
warnings.simplefilter('ignore')
import numpy as np, torch
torch.set_num_threads(1)
from fastai.basics import Callback
from neuroseg.data import SliceSet
from neuroseg.models import ThesisUnet, register
from neuroseg.prep import Prep
from neuroseg.train import config_from, train

register('tiny')(lambda n_in, pretrained: ThesisUnet(n_in, (4,8,16)))
rng = np.random.default_rng(0)
def slices(n):
    y = np.zeros((n,32,32), np.uint8)
    for m in y[::2]: r,c = rng.integers(4,20,2); m[r:r+8,c:c+8] = 255
    x = (rng.integers(0,80,(n,3,32,32)) + y[:,None]//2).clip(0,255).astype(np.uint8)
    return SliceSet(x, y, np.array([0,n//2,n]), np.array([1,1]), ('a','b'), 1)

class Kill(Callback):
    order = 90
    def __init__(self, at): self.at = at
    def after_batch(self):
        if self.training and self.learn.epoch*len(self.dls.train) + self.iter == self.at: os.kill(os.getpid(), signal.SIGKILL)

folder, settings, at = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
cfg = config_from(dict(model='tiny', epochs=4, bs=4, prep=dict(size_px=32)) | settings)
train(cfg, slices(24), slices(8), folder, progress=False, cbs=[Kill(at)] if at>=0 else [])
'''


def run(folder:Path, settings:dict, kill_at:int=-1)->subprocess.CompletedProcess:
    "Train in a process of its own, one thread, as deterministic as a laptop can be."
    env = {**os.environ, 'OMP_NUM_THREADS':'1', 'PYTHONPATH':str(Path(__file__).resolve().parent.parent)}
    return subprocess.run([sys.executable, '-c', SCRIPT, str(folder), json.dumps(settings), str(kill_at)], env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize('settings', [
    pytest.param({}, id='weight average, one cycle'),
    pytest.param(dict(ema=None, keep='best', patience=3, schedule='flat', optimizer='adam', loss='thesis', augment=None, sampling='all', wd=0., lr=1e-3), id='best epoch, patience, flat rate'),
])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, settings):
    whole, cut = tmp_path/'whole', tmp_path/'cut'
    done = run(whole, settings)
    assert done.returncode==0, done.stderr[-2000:]
    killed = run(cut, settings, kill_at=15) # the third step but one of the third epoch
    assert killed.returncode==-signal.SIGKILL
    assert (cut/'checkpoint.safetensors').exists() and not (cut/'weights.safetensors').exists()
    resumed = run(cut, settings)
    assert resumed.returncode==0, resumed.stderr[-2000:]
    assert (cut/'weights.safetensors').read_bytes() == (whole/'weights.safetensors').read_bytes()
    rows = [[line.rsplit(',', 1)[0] for line in (d/'history.csv').read_text().splitlines()] for d in (whole, cut)] # all columns but the seconds
    assert rows[0]==rows[1] and len(rows[0])==5


def test_another_seed_gives_other_weights(tmp_path):
    "Or the comparison above would compare nothing."
    for seed in (0,1): assert run(tmp_path/str(seed), dict(seed=seed, epochs=1)).returncode==0
    assert (tmp_path/'0'/'weights.safetensors').read_bytes() != (tmp_path/'1'/'weights.safetensors').read_bytes()


def test_checkpoint_is_no_pickle_and_belongs_to_one_configuration(tmp_path):
    assert run(tmp_path, dict(epochs=1)).returncode==0
    head = (tmp_path/'checkpoint.safetensors').read_bytes()[:9]
    assert head[8:9]==b'{' and int.from_bytes(head[:8], 'little') < 10**6 # safetensors: a length and a JSON header
    other = run(tmp_path, dict(epochs=1, lr=.5))
    assert other.returncode==1 and 'another configuration' in other.stderr and 'lr was' in other.stderr
