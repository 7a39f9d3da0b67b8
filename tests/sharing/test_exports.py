"What `neuroseg export` writes: the same bytes twice, complete or not at all, and usable where it is meant to go."
import hashlib, json, os, signal, subprocess, sys, time

import nbformat
import pytest

for library in ('monai', 'yaml'): pytest.importorskip(library)
import numpy as np
import yaml

from conftest import ROOT
from neuroseg.cli import shell
from neuroseg.core import read_json
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.phantom import sample_path
from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.result import segment
from neuroseg.sharing.notebook_badges import badge_faults, BADGES_ID, INSTALL_ID

PLACES = ('monai-bundle', 'hf', 'kaggle', 'slicer')


def export(place, folder, *words): return shell(f"neuroseg export --to {place} {folder} {' '.join(words)}")


def hashes(folder):
    files = [f for f in sorted(folder.rglob('*')) if f.is_file()]
    return {f.relative_to(folder).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


class Exports:
    "`exports/'hf'` is the folder of a place, written when it is first asked for."
    def __init__(self, folder): self.folder = folder
    def __truediv__(self, place):
        if not (self.folder/place).exists():
            done = export(place, self.folder/place)
            assert done.code == 0, done.err
        return self.folder/place


@pytest.fixture(scope='module')
def exported(tmp_path_factory): return Exports(tmp_path_factory.mktemp('exports'))


@pytest.mark.parametrize('place', PLACES)
def test_the_same_bytes_twice(exported, tmp_path, place):
    assert export(place, tmp_path/'again').code == 0
    assert hashes(tmp_path/'again') == hashes(exported/place) != {}


@pytest.mark.parametrize('place', PLACES)
def test_a_folder_that_is_there_stays(exported, tmp_path, place):
    (tmp_path/'mine').mkdir(); (tmp_path/'mine'/'notes.txt').write_text('keep')
    refused = export(place, tmp_path/'mine')
    assert refused.code == 2 and 'is there already' in refused.err
    assert hashes(tmp_path/'mine').keys() == {'notes.txt'} and len([*tmp_path.iterdir()]) == 1
    assert export(place, tmp_path/'mine', '--replace').code == 0
    assert hashes(tmp_path/'mine') == hashes(exported/place)


@pytest.mark.skipif(os.name == 'nt', reason='signals of POSIX')
def test_an_interrupted_export_leaves_nothing(tmp_path):
    "SIGTERM while the Space is copied: no folder, no half of one."
    command = [sys.executable, '-m', 'neuroseg', 'export', '--to', 'hf', str(tmp_path/'hf')]
    run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while run.poll() is None and not any(tmp_path.rglob('*.onnx')): time.sleep(.005)
    run.send_signal(signal.SIGTERM)
    assert 'interrupted' in run.communicate()[1] and run.returncode == 143
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize('place', PLACES)
def test_nothing_pickled_and_no_path_of_this_machine(exported, place):
    for name in hashes(exported/place):
        assert not name.endswith(('.pt', '.pth', '.ts', '.pkl', '.bin', '.pyc')), name
        data = (exported/place/name).read_bytes()
        assert str(ROOT).encode() not in data and b'__pycache__' not in name.encode()


@pytest.mark.parametrize('facts,says', [(dict(licence=None), 'names no licence'),
                                        (dict(split=dict(keyed=['9f'])), 'private cohort')])
@pytest.mark.parametrize('place', ['hf', 'kaggle'])
def test_a_model_that_must_not_be_public_is_refused(exported, tmp_path, place, facts, says):
    shipped = load_card()
    (tmp_path/'a.onnx').write_bytes(shipped.onnx.read_bytes())
    (tmp_path/'a.json').write_text(json.dumps(shipped.facts | facts))
    refused = export(place, tmp_path/'out', '--model', str(tmp_path/'a.json'))
    assert refused.code == 2 and says in refused.err and not (tmp_path/'out').exists()


def test_a_model_of_ones_own(exported, tmp_path):
    "Its name, its files, its licence; nothing of the shipped model's scores."
    shipped = load_card()
    (tmp_path/'mine.onnx').write_bytes(shipped.onnx.read_bytes() + b'')
    facts = shipped.facts | dict(name='mine', licence='CC BY 4.0', metrics=None)
    (tmp_path/'mine.json').write_text(json.dumps(facts))
    assert export('monai-bundle', tmp_path/'bundle', '--model', str(tmp_path/'mine.json')).code == 0
    assert {f.name for f in (tmp_path/'bundle'/'models').iterdir()} == {'mine.onnx', 'mine.json'}


# By MONAI's schema of July 2024, whose address stands in the metadata
REQUIRED = {'schema', 'version', 'monai_version', 'pytorch_version', 'numpy_version', 'required_packages_version',
            'task', 'description', 'authors', 'copyright', 'network_data_format'}
TENSOR = {'type', 'format', 'num_channels', 'spatial_shape', 'dtype', 'value_range'}


def test_the_metadata_of_the_bundle_are_complete(exported):
    about = read_json(exported/'monai-bundle'/'configs'/'metadata.json')
    assert REQUIRED - set(about) == set()
    ports = about['network_data_format']
    assert TENSOR - set(ports['inputs']['image']) == TENSOR - set(ports['outputs']['pred']) == set()
    assert ports['inputs']['image']['num_channels'] == load_card().prep.n_channels
    assert {'onnxruntime', 'neuroseg-mri'} <= set(about['required_packages_version'])


@pytest.mark.slow
def test_the_bundle_runs_and_gives_our_mask(exported, tmp_path):
    "By MONAI's own command line, in a process that starts in the bundle's folder."
    pytest.importorskip('fire')
    bundle = exported/'monai-bundle'
    command = [sys.executable, '-W', 'ignore', '-m', 'monai.bundle', 'run', '--config_file', 'configs/inference.json']
    run = subprocess.run([*command, '--output_dir', str(tmp_path)], cwd=bundle, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ours = segment(sample_path())
    mask, report = read_mask(tmp_path/'phantom'/'mask.nii.gz'), read_json(tmp_path/'phantom'/'report.json')
    assert mask.any() and np.array_equal(mask, ours.mask)
    assert [w['text'] for w in report['warnings']] == [str(w) for w in ours.warnings]


def test_the_bundle_refuses_other_weights(exported, tmp_path):
    from monai.bundle import ConfigWorkflow
    assert export('monai-bundle', tmp_path/'b').code == 0
    (tmp_path/'b'/'models'/'neuroseg-lgg.onnx').write_bytes(b'other weights')
    flow = ConfigWorkflow(str(tmp_path/'b'/'configs'/'inference.json'), logging_file=False, workflow_type='infer',
                          bundle_root=str(tmp_path/'b'))
    flow.initialize()
    with pytest.raises(RuntimeError, match='load_card') as refused: flow.run()
    assert 'SHA-256 differs' in str(refused.value.__cause__)


def test_the_space_holds_what_its_dockerfile_copies(exported):
    space = exported/'hf'/'space'
    top = yaml.safe_load((space/'README.md').read_text(encoding='utf-8').split('---\n')[1])
    assert top['sdk'] == 'docker' and f"EXPOSE {top['app_port']}" in (space/'Dockerfile').read_text(encoding='utf-8')
    lines = [l.split()[1:-1] for l in (space/'Dockerfile').read_text(encoding='utf-8').splitlines() if l[:5] == 'COPY ']
    assert lines and [n for names in lines for n in names if not (space/n).exists()] == []


def test_the_client_of_kaggle_accepts_the_metadata(exported, tmp_path, monkeypatch):
    "Its own checks: of the placeholder of the account, then of titles, slugs and the framework."
    pytest.importorskip('kaggle')
    from kaggle_service import Service, serving
    from neuroseg.cohorts.kaggle_account import kaggle_api
    with serving(Service(), tmp_path/'home', monkeypatch):
        monkeypatch.setenv('KAGGLE_API_TOKEN', 'good')
        api = kaggle_api()
        with pytest.raises(ValueError, match='Default ownerSlug'): api.model_create_new(str(exported/'kaggle'/'model'))
        assert export('kaggle', tmp_path/'k', '--account', 'ann').code == 0
        api.kernels_push(str(tmp_path/'k'/'kernel'))


@pytest.mark.slow
def test_the_notebook_for_kaggle_runs(tmp_path):
    "On a synthetic cohort in Kaggle's folders, in a kernel of Jupyter."
    papermill = pytest.importorskip('papermill')
    from neuroseg.scans.phantom import write_phantom_lgg
    from neuroseg.sharing.kaggle_folders import demo_notebook
    write_phantom_lgg(tmp_path/'input'/'lgg-mri-segmentation', n_patients=2, n_slices=10, size_px=96)
    (tmp_path/'working').mkdir()
    nb = tmp_path/'kernel.ipynb'
    nb.write_text(json.dumps(demo_notebook(home=str(tmp_path))))
    papermill.execute_notebook(str(nb), str(tmp_path/'done.ipynb'), progress_bar=False, log_output=False,
                               kernel_name='python3', cwd=str(tmp_path))
    assert [f.name for f in (tmp_path/'working').rglob('mask*')] != []


def test_badges_and_installing_cells_are_in_step(root):
    assert badge_faults(root) == [], 'run `python -m neuroseg.sharing.notebook_badges`'


def test_a_wrong_badge_is_found(repo_copy):
    book = repo_copy/'nbs/tutorials/30_first_scan.ipynb'
    nb = nbformat.read(book, as_version=4)
    assert [c.id for c in nb.cells[1:3]] == [BADGES_ID, INSTALL_ID]
    nb.cells[1].source = nb.cells[1].source.replace('30_first_scan', '31_own_data')
    nbformat.write(nb, book)
    assert badge_faults(repo_copy) == ['nbs/tutorials/30_first_scan.ipynb']


def test_the_script_for_slicer_needs_nothing_of_ours(exported, tmp_path):
    "In an interpreter without site-packages; Slicer itself is started by no test."
    script = exported/'slicer'/'show_in_slicer.py'
    run = subprocess.run([sys.executable, '-I', '-S', str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, '', '')
