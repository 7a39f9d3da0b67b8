"Models by their address: the real client against a stand-in of Hugging Face, on folders that the export wrote."
import json, pickle

import pytest

for library in ('huggingface_hub', 'yaml'): pytest.importorskip(library)
import numpy as np
from hub_service import COMMIT, REPO, serving

from neuroseg.cli import shell
from neuroseg.core import ConfigError, InputError, read_json
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.phantom import sample_path
from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.result import segment
from neuroseg.sharing.hub_folders import write_model

ADDRESS = f'hf://{REPO}@{COMMIT}'


class Trap:
    "Whoever unpickles it leaves a file."
    def __init__(self, file): self.file = str(file)
    def __reduce__(self): return open, (self.file, 'w')


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A model folder as `neuroseg export --to hf` writes it, by name."
    folder = tmp_path_factory.mktemp('hf')/'model'
    write_model(load_card(), folder)
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture
def hub(exported, tmp_path, monkeypatch):
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    with serving(dict(exported)) as hub:
        monkeypatch.setenv('HF_ENDPOINT', hub.url)
        yield hub


def asked(hub): return {path.rpartition('/')[2] for _, path in hub.asked}


def test_an_exported_model_is_loaded_by_its_address(hub, tmp_path):
    "The mask is that of the shipped model, and what is pickled in the repository is never asked for."
    hub.files['pytorch_model.bin'] = pickle.dumps(Trap(tmp_path/'sprung'))
    done = shell(f'neuroseg predict --sample -o {tmp_path}/out --model {ADDRESS}')
    assert done.code == 0, done.err
    mask = read_mask(tmp_path/'out'/'phantom'/'mask.nii.gz')
    assert np.array_equal(mask, segment(sample_path()).mask) and mask.any()
    assert asked(hub) == {'config.json', *(f'neuroseg-lgg.{k}' for k in ('json', 'onnx', 'safetensors'))}
    assert not (tmp_path/'sprung').exists()
    assert read_json(tmp_path/'out'/'phantom'/'report.json')['model']['sha256'] == load_card().sha256


def test_the_second_time_nothing_is_asked(hub):
    first, n = load_card(ADDRESS), len(hub.asked)
    assert load_card(ADDRESS) == first and len(hub.asked) == n


def test_training_goes_on_from_a_model_of_the_hub(hub):
    pytest.importorskip('fastai')
    from neuroseg.learn.finetune import start_weights
    assert start_weights(load_card(ADDRESS)) is not None


@pytest.mark.parametrize('name', ['neuroseg-lgg.onnx', 'neuroseg-lgg.json', 'neuroseg-lgg.safetensors'])
def test_an_exchanged_file_is_refused(hub, name):
    hub.files[name] += b' '
    with pytest.raises(InputError, match='its SHA-256 differs'): load_card(ADDRESS)


def test_an_exchanged_file_in_the_cache_is_refused(hub):
    onnx = load_card(ADDRESS).onnx
    onnx.resolve().write_bytes(b'other weights')
    with pytest.raises(InputError, match='its SHA-256 differs'): load_card(ADDRESS)


def test_a_download_that_breaks_off_leaves_nothing_that_is_used(hub):
    hub.cut = 1000
    hub.lengths['config.json'] = len(hub.files['config.json'])
    with pytest.raises(InputError): load_card(ADDRESS)
    hub.cut = None
    assert load_card(ADDRESS).sha256 == load_card().sha256


@pytest.mark.parametrize('revision', ['main', 'v1', COMMIT[:12], ''])
def test_a_revision_that_may_move_is_refused(hub, revision):
    hub.commits.add(revision)
    address = f'hf://{REPO}@{revision}' if revision else f'hf://{REPO}'
    with pytest.raises(ConfigError, match=f'{REPO}@{COMMIT}'): load_card(address)
    assert {method for method, _ in hub.asked} == {'HEAD'} # no file was fetched


@pytest.mark.parametrize('change,says', [
    (dict(gated=True), 'asks for an account'), (dict(down=500), 'try again later'),
    (dict(commits=set()), 'no such revision'), (dict(files={}), 'it is no model of neuroseg')])
def test_a_refusal_is_one_sentence(hub, change, says):
    for name, value in change.items(): setattr(hub, name, value)
    done = shell(f'neuroseg model {ADDRESS}')
    assert done.code == 2 and says in done.err and 'Traceback' not in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_a_model_that_is_not_there(hub):
    with pytest.raises(InputError, match='shows no model hf://ann/else'): load_card(f'hf://ann/else@{COMMIT}')


def test_without_a_network(hub, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(InputError, match=REPO): load_card(ADDRESS)


@pytest.mark.parametrize('config,says', [
    ('[]', 'no model of neuroseg'), ('{"', 'not valid JSON'), ('{"library_name": "timm"}', 'no model of neuroseg'),
    ('{"library_name": "neuroseg", "format": 9, "card": "a.json", "files": {"a.json": "0"}}', 'format 9'),
    (json.dumps(dict(library_name='neuroseg', format=1, card='a.json',
                     files={'a.json': '0'*64, '../../a.onnx': '0'*64})), 'only cards'),
    (json.dumps(dict(library_name='neuroseg', format=1, card='a.json',
                     files={'a.json': '0'*64, 'model.pt': '0'*64})), 'only cards')])
def test_a_strange_list_of_files_is_refused(hub, config, says):
    hub.files['config.json'] = config.encode()
    with pytest.raises(InputError, match=says): load_card(ADDRESS)
    assert asked(hub) == {'config.json'}


def test_a_huge_file_is_refused_before_it_is_fetched(hub):
    hub.lengths['neuroseg-lgg.onnx'] = 10**10
    with pytest.raises(InputError, match='more than the 500 allowed'): load_card(ADDRESS)
    assert ('GET', f'/{REPO}/resolve/{COMMIT}/neuroseg-lgg.onnx') not in hub.asked


def test_the_hub_reads_the_top_of_the_page(exported, tmp_path):
    "By its own library: licence, tags, and the stored scores."
    from huggingface_hub import ModelCard
    from neuroseg.reports.stored_run import stored
    (tmp_path/'README.md').write_bytes(exported['README.md'])
    data = ModelCard.load(tmp_path/'README.md').data
    assert data.license == 'cc-by-nc-sa-4.0' and data.library_name == 'neuroseg' and 'onnx' in data.tags
    shown = {r.dataset_name.rpartition(', ')[2]: r.metric_value for r in data.eval_results}
    kept = {k: round(stored('23_learner/cpu', k, 'scores', 'dice', 'mean'), 4) for k in ('all sequences', 'FLAIR only')}
    assert shown == kept
