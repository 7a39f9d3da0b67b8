"The base install: no extra is imported, and the public names are there."
import os, subprocess, sys

import numpy as np
import pytest
from PIL import Image
from bright_model import bright, head, overlap, write_model, write_nifti, write_stack

from neuroseg.segmentation.card import shipped_models


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}: raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
"""
EXTRAS = ('torch', 'torchvision', 'fastai', 'monai', 'timm', 'pandas', 'matplotlib', 'scipy', 'sklearn', 'onnx',
          'onnxscript', 'safetensors', 'streamlit', 'nilearn', 'IPython')


def python(code, root, **env):
    return subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=root, capture_output=True, text=True,
                          env=os.environ | env)


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


def test_it_runs_without_any_extra(tmp_path, root, card_path):
    v, _ = head()
    write_stack(tmp_path/'p', v); write_nifti(tmp_path/'v_flair.nii.gz', v)
    code = BLOCK.format(blocked=EXTRAS) + f"""
import neuroseg
from neuroseg.segmentation.batch import predict_cases
said = predict_cases([{str(tmp_path/'p')!r}, {str(tmp_path/'v_flair.nii.gz')!r}], {str(tmp_path/'out')!r})
print([s.get('error') for s in said], neuroseg.segment({str(tmp_path/'p')!r}).mask.any())
"""
    run = python(code, root, NEUROSEG_MODEL=str(card_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == '[None, None] True'


def test_importing_the_package_costs_nothing(root):
    code = """
import time
start = time.process_time()
import neuroseg
spent = time.process_time()-start
import sys
print(spent<.05, *(m in sys.modules for m in ('numpy', 'neuroseg.segmentation')), 'segment' in dir(neuroseg))
"""
    run = python(code, root)
    assert run.stdout.split() == ['True', 'False', 'False', 'True'], run.stdout + run.stderr


def test_importing_batch_loads_no_reader(root):
    code = """
import neuroseg.segmentation.batch, sys
print([m for m in ('nibabel', 'pydicom', 'onnxruntime', 'PIL', 'cc3d', 'tqdm') if m in sys.modules])
"""
    run = python(code, root)
    assert run.stdout.strip() == '[]', run.stdout + run.stderr


@pytest.mark.skipif(not shipped_models(), reason='no model is shipped in this tree')
def test_a_case_of_24_slices_stays_small(tmp_path, root):
    "Peak memory of a cold run, as a user would start it."
    rng = np.random.default_rng(0)
    folder = tmp_path/'case'; folder.mkdir()
    v, lesion = head((24, 256, 256))
    for i, p in enumerate(v):
        Image.fromarray(np.dstack([p, p + 10*rng.random(p.shape),
                                   p]).clip(0, 255).astype(np.uint8)).save(folder/f'case_{i}.tif')
    code = BLOCK.format(blocked=EXTRAS) + f"""
from neuroseg.segmentation.batch import predict_cases
from neuroseg.core import peak_mb
said, = predict_cases({str(folder)!r}, {str(tmp_path/'out')!r}, model={shipped_models()[0]!r})
print(said.get('error'), peak_mb())
"""
    run = python(code, root)
    assert run.returncode == 0, run.stderr
    error, mb = run.stdout.split()
    assert error == 'None' and float(mb) < 500


# The public names

PUBLIC = ('Scan', 'Segmentation', 'Segmenter', 'load_card', 'predict_cases', 'read_scan', 'segment')


@pytest.mark.parametrize('first', ['', 'import neuroseg.segmentation', 'import neuroseg.segmentation.result',
                                   'import neuroseg.scans.reading', 'from neuroseg import Segmenter'])
def test_public_names_are_those_of_their_modules(root, first):
    "Whatever was imported before: a subpackage must not take the place of a function."
    code = f"""
{first}
import neuroseg
names = {PUBLIC}
print(all(callable(getattr(neuroseg, n)) for n in names), set(names) <= set(dir(neuroseg)))
from neuroseg.segmentation.result import segment, Segmenter
print(neuroseg.segment is segment, neuroseg.Segmenter is Segmenter)
"""
    run = python(code, root)
    assert run.stdout.split() == ['True']*4, run.stdout + run.stderr


def test_the_shortest_way_in(tmp_path, card_path):
    "As the first version's README had it: `neuroseg.segment(path)`, and `neuroseg.Segmenter` for many scans."
    import neuroseg
    v, lesion = head()
    path = write_nifti(tmp_path/'scan_flair.nii.gz', v)
    once = neuroseg.segment(path, model=card_path)
    many = neuroseg.Segmenter(card_path).segment(path)
    assert overlap(once.mask, lesion) > .9 and (once.mask == many.mask).all()
    assert isinstance(once, neuroseg.Segmentation) and isinstance(once.scan, neuroseg.Scan)


def test_the_package_offers_nothing_that_it_has_not():
    import neuroseg
    with pytest.raises(AttributeError, match='no attribute'): neuroseg.segmnet # noqa: B018
