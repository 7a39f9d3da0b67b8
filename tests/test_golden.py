"Must not change while code is moved: every stored number, every stored figure, and the masks of the shipped model."
import math, shutil

import numpy as np
import pytest

for library in ('matplotlib', 'pandas', 'yaml', 'nbformat'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.reports.checks import waiting_runs
from neuroseg.reports.stored_run import draw, kept_runs, summary
from neuroseg.core import read_json
from neuroseg.segmentation.result import segment
from neuroseg.scans.phantom import sample_path
from PIL import Image

RUNS = [f.relative_to(ROOT/'reports').as_posix() for f in kept_runs(ROOT)]
WAITING = waiting_runs(ROOT) # Their studies have changed: only a rerun has the tables that these ask for
NOW = [run for run in RUNS if run not in WAITING]
FIGURES = [(run, f.stem) for run in NOW for f in sorted((ROOT/'reports'/run/'figures').glob('*.png'))]
GOLDEN = ROOT/'tests'/'golden'


def numbers(
    obj, # A summary
    path:tuple=(), # Of this part
)->dict: # Path to number
    "Every number of a summary and where it stands."
    if isinstance(obj, dict): return {k: v for key, part in obj.items() for k, v in numbers(part, (*path, key)).items()}
    if isinstance(obj, list): return {k: v for i, part in enumerate(obj) for k, v in numbers(part, (*path, i)).items()}
    return {path: obj} if isinstance(obj, (int, float)) else {}


def test_there_are_eight_stored_runs(): assert len(RUNS) >= 8


@pytest.mark.parametrize('run', NOW)
def test_every_stored_number_is_computed_again(run):
    stored, now = (numbers(s) for s in (read_json(ROOT/'reports'/run/'summary.json'), summary(ROOT/'reports'/run)))
    assert len(stored) > 10 and now.keys() == stored.keys()
    assert {k: (now[k], v) for k, v in stored.items() if not math.isclose(now[k], v, rel_tol=1e-9, abs_tol=1e-12)} == {}


def pixels(file): return np.asarray(Image.open(file).convert('RGBA'))


@pytest.mark.parametrize('run, figure', FIGURES, ids=[f'{run}:{figure}' for run, figure in FIGURES])
def test_every_stored_figure_is_drawn_again(run, figure, tmp_path):
    shutil.copytree(ROOT/'reports'/run, tmp_path/'run',
                    ignore=shutil.ignore_patterns('figures', 'trainings', '*.ipynb', '*.html'))
    drawn = draw(tmp_path/'run', figure)
    assert np.array_equal(pixels(drawn), pixels(ROOT/'reports'/run/'figures'/f'{figure}.png'))


@pytest.mark.parametrize('name, changes',
                         [('sample', {}), ('sample_low_threshold', dict(threshold=.1)),
                          ('sample_no_flips', dict(flips=False)), ('sample_flair', {})])
def test_the_shipped_model_outlines_the_phantom_as_before(name, changes):
    source = sample_path()
    if name == 'sample_flair': source = next(source.glob('*flair*'))
    mask = segment(source, **changes).mask
    golden = np.load(GOLDEN/f'{name}.npz')
    assert mask.shape == tuple(golden['shape']) and np.array_equal(np.packbits(mask), golden['bits'])
