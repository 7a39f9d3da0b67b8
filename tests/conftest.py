"What every test may use: the repository, a scratch copy of it, its constants, and a drawn MRI slice."
import os, shutil, signal, subprocess, sys
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAIN = sys.modules['__main__']
# A shell that runs the tests in the background makes them and their children ignore Ctrl-C, which some tests send
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN: signal.signal(signal.SIGINT, signal.default_int_handler)
# Figures are drawn to files: no test needs a screen. MPLBACKEND would reach the Jupyter kernels that tests start
if find_spec('matplotlib'): __import__('matplotlib').use('agg')


def pytest_collection_modifyitems(items):
    if os.environ.get('NEUROSEG_DATA'): return
    skip = pytest.mark.skip(reason='NEUROSEG_DATA names no folder with cohorts')
    for item in items:
        if 'realdata' in item.keywords: item.add_marker(skip)


@pytest.fixture(autouse=True)
def own_main_module():
    "Streamlit puts the page that it tests in place of `__main__`, which a process started later would then run."
    sys.modules['__main__'] = MAIN


@pytest.fixture(scope='session')
def root(): return ROOT


@pytest.fixture(scope='session')
def constants():
    "The bounds of settings.ini, as numbers."
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    return {name: float(value) for name, value in cfg['constants'].items()}


def tracked_files():
    "Files that are in git or would be added, by path from the root; in an unpacked archive all but built ones."
    list_files = ['git', 'ls-files', '--cached', '--others', '--exclude-standard']
    git = subprocess.run(list_files, cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0: names = git.stdout.splitlines()
    else:
        built = {'.venv', '__pycache__', '.git', '_proc', '_docs', 'build', 'dist', 'runs', '.pytest_cache'}
        files = [p.relative_to(ROOT) for p in ROOT.rglob('*') if p.is_file()]
        names = [p.as_posix() for p in files if not built & set(p.parts)]
    return sorted(n for n in names if (ROOT/n).is_file())


def nbdev(
    command:str, # Say `nbdev-export`
    cwd:Path, # A copy of the repository
    *args:str,
):
    "Run an nbdev command of this environment."
    env = {**os.environ, 'PYTHONPATH': str(cwd), 'PYTHONDONTWRITEBYTECODE': '1'}
    program = shutil.which(command, path=Path(sys.executable).parent) or command
    run = subprocess.run([program, *args], cwd=cwd, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run


@pytest.fixture
def repo_copy(tmp_path):
    "A scratch copy of the repository as git would hold it."
    for name in tracked_files():
        dest = tmp_path/'repo'/name
        dest.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT/name, dest)
    return tmp_path/'repo'


@pytest.fixture(scope='session')
def slice_png(tmp_path_factory):
    "A drawn head in three sequences with a bright lesion in FLAIR: enough like an MRI slice to be accepted as one."
    import numpy as np
    from PIL import Image
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    def ellipse(cy, cx, ry, rx): return (y-cy)**2/ry**2 + (x-cx)**2/rx**2 < 1
    tissue = 90.*ellipse(128, 128, 105, 80) - 40.*(ellipse(120, 112, 30, 10) | ellipse(120, 144, 30, 10))
    lesion = ellipse(100, 165, 22, 18)
    sequences = [tissue - 15*lesion, tissue + 110*lesion, tissue + 30*lesion]
    image = np.stack([s + rng.normal(0, 4, s.shape)*(tissue > 0) for s in sequences], -1).clip(0, 255).astype(np.uint8)
    path = tmp_path_factory.mktemp('slice')/'slice.png'
    Image.fromarray(image).save(path)
    return path
