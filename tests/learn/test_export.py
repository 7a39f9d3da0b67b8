"A network is exported as ONNX, safetensors and a card: the same network in all, and nothing else in the files."
import copy, shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from neuroseg.learn import export
from neuroseg.core import ConfigError, RunError, read_json, sha256_file
from neuroseg.learn.export import StoredNet, export_model, half_weights, model_card, onnx_error
from neuroseg.segmentation.onnx_graph import check_graph
from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.result import Segmenter
from neuroseg.scans.stacks import Scan
from neuroseg.learn.networks import ThesisUnet, TorchSegmenter, build_model
from neuroseg.scans.preparation import Prep

SMALL = Prep(size_px=32)


def small_net(seed=0):
    "A U-Net with filters large enough to stay float16 in the file, and batch statistics as after training."
    torch.manual_seed(seed)
    net = ThesisUnet(n_in=5, widths=(8, 32))
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.running_mean.uniform_(-1, 1); m.running_var.uniform_(.01, 40)
    return net


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    net = small_net()
    return net, export_model(net, tmp_path_factory.mktemp('model'), name='small', cfg=SMALL,
                             card=dict(version='3', licence='CC BY-NC-SA 4.0', threshold=.4))


def test_what_is_exported_can_be_loaded(exported):
    net, path = exported
    card = load_card(path)
    assert (card.name, card.version, card.threshold, card.prep) == ('small', '3', .4, SMALL)
    facts = read_json(path)
    assert facts['sha256'] == {k: sha256_file(path.with_suffix('.'+k)) for k in ('onnx', 'safetensors')}
    assert {'created', 'licence', 'data', 'split', 'metrics', 'seconds', 'hardware', 'commit', 'recipe',
            'onnx_error'} <= facts.keys()
    check_graph(card.onnx.read_bytes(), 'small.onnx')


def test_onnx_safetensors_and_torch_are_one_network(exported):
    net, path = exported
    again = ThesisUnet(n_in=5, widths=(8, 32))
    again.load_state_dict(load_file(path.with_suffix('.safetensors')))
    scan = Scan(np.random.default_rng(0).random((3, 5, 40, 48)).astype(np.float32), ('pre', 'flair', 'post'))
    runtime, restored, original = (s.prob(scan) for s in (Segmenter(path), TorchSegmenter(again, SMALL),
                                                          TorchSegmenter(copy.deepcopy(net), SMALL)))
    assert np.abs(runtime-restored).max() < 1e-5
    assert 0 < np.abs(restored-original).max() < 2e-3 # rounding, and nothing more


def test_only_large_weights_are_rounded():
    net = small_net()
    state = half_weights(net)
    for k, v in net.state_dict().items():
        assert state[k].dtype == (torch.float16 if v.is_floating_point() and v.ndim > 1 else v.dtype), k
        if v.ndim < 2: assert torch.equal(state[k], v), k
    assert state.keys() == net.state_dict().keys()


def test_export_leaves_the_network_alone(exported):
    net, fresh = exported[0], small_net().state_dict()
    assert net.training
    assert all(torch.equal(v, fresh[k]) and v.dtype == fresh[k].dtype for k, v in net.state_dict().items())


def test_the_same_weights_are_the_same_files(exported, tmp_path):
    net, path = exported
    again = export_model(net, tmp_path, name='small', cfg=SMALL, card=dict(version='3'))
    assert read_json(again)['sha256'] == read_json(path)['sha256']


def test_files_tell_nothing_of_the_machine(exported):
    _, path = exported
    import neuroseg
    for f in path.parent.iterdir():
        blob = f.read_bytes()
        for trace in (str(Path.home()), str(Path(neuroseg.__file__).parent), 'site-packages', 'stack_trace', '.py'):
            assert trace.encode() not in blob, (f.name, trace)


def test_files_are_half_the_size(exported):
    net, path = exported
    n = sum(p.numel() for p in net.parameters())
    assert path.with_suffix('.safetensors').stat().st_size < 2*n + 8_000
    weights = {i.name: i.data_type
               for i in onnx.load(path.with_suffix('.onnx')).graph.initializer if np.prod(i.dims) > 8192}
    assert weights and set(weights.values()) == {onnx.TensorProto.FLOAT16}


def test_files_can_be_read_by_others(exported):
    "Not only by who exported: a wheel carries the permissions along."
    for f in exported[1].parent.iterdir():
        assert f.stat().st_mode & 0o444 == 0o444 and not f.stat().st_mode & 0o022, f.name


@pytest.mark.parametrize('spoil,text', [
    (lambda w: w.fill_(float('nan')), 'NaN or infinite'), (lambda w: w.fill_(float('inf')), 'NaN or infinite'),
                                        (lambda w: w.fill_(7e4), 'beyond float16')])
def test_a_failed_training_is_not_exported(tmp_path, spoil, text):
    net = small_net()
    with torch.no_grad(): spoil(net.head.weight)
    with pytest.raises(RunError, match=text): export_model(net, tmp_path, name='n', cfg=SMALL, card={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('error', [1e-3, float('nan')])
def test_a_wrong_export_replaces_nothing(exported, tmp_path, monkeypatch, error):
    for f in exported[1].parent.iterdir(): shutil.copy(f, tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    monkeypatch.setattr(export, 'to_onnx', lambda *a, **k: b'')
    monkeypatch.setattr(export, 'onnx_error', lambda *a, **k: error)
    with pytest.raises(RunError, match='nothing was written'):
        export_model(small_net(1), tmp_path, name='small', cfg=SMALL, card={})
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before and load_card(tmp_path/'small.json')


def test_the_check_sees_a_wrong_export(exported):
    net, path = exported
    blob = path.with_suffix('.onnx').read_bytes()
    assert onnx_error(blob, StoredNet(net), n_channels=5, size_px=32) < 1e-5
    assert onnx_error(blob, StoredNet(small_net(1)), n_channels=5, size_px=32) > 1e-3


@pytest.mark.parametrize('net,text', [(lambda: ThesisUnet(n_in=3, widths=(4, 8)), 'does not take an input'),
                                      (lambda: torch.nn.Conv2d(5, 2, 1), 'one probability a pixel'),
                                      (lambda: torch.nn.Conv2d(5, 1, 3), 'one probability a pixel')])
def test_a_network_that_does_not_fit(tmp_path, net, text):
    with pytest.raises(ConfigError, match=text): export_model(net(), tmp_path, name='n', cfg=SMALL, card={})
    assert list(tmp_path.iterdir()) == []


def test_the_caller_cannot_overwrite_what_is_measured():
    card = model_card(SMALL, name='right', card=dict(name='wrong', input='wrong', metrics=dict(dice=np.float32(.5))))
    assert card['name'] == 'right' and card['input']['n_channels'] == 5 and card['metrics'] == dict(dice=.5)


@pytest.mark.filterwarnings('ignore') # of fastai, about pandas
def test_a_recipe_stands_on_the_card():
    from neuroseg.learn.recipe import TrainConfig, config_from
    cfg = TrainConfig(prep=SMALL, epochs=3)
    card = model_card(cfg, name='n', card={})
    assert config_from(card['recipe']) == cfg


@pytest.mark.slow
def test_the_fast_network(tmp_path):
    "The network that is shipped: TensorFlow's padding, five scales, clipped activations."
    torch.manual_seed(0)
    net = build_model('fast', n_in=5, pretrained=False)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d): m.running_var.uniform_(.5, 2)
    path = export_model(net, tmp_path, name='fast', cfg=Prep(size_px=64), card={})
    assert read_json(path)['onnx_error'] < 1e-5
    n = sum(p.numel() for p in net.parameters())
    assert path.with_suffix('.onnx').stat().st_size < 2.2*n and path.with_suffix('.safetensors').stat().st_size < 2.2*n
    again = build_model('fast', n_in=5, pretrained=False)
    again.load_state_dict(load_file(path.with_suffix('.safetensors')))
    x = torch.rand(2, 5, 64, 64)
    with torch.no_grad(): assert torch.equal(again.eval()(x).sigmoid(), StoredNet(net)(x))
