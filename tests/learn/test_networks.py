"Networks: counted as Keras counts, the right shapes, no leak between slices, and names that stored weights rely on."
import hashlib, subprocess, sys

import pytest

torch = pytest.importorskip('torch')
pytest.importorskip('timm')
import timm
from torch import nn

from neuroseg.core import ConfigError, DataError, InputError, ShapeError
from neuroseg.learn.networks import (MODELS, FastUnet, ThesisUnet, build_model, count_parameters, imagenet_lite0,
                                     lite0_encoder, model_builder, register, widen_stem)

WIDTHS = (64,128,256,512,1024)


def meta(make):
    "A network without memory for its weights: enough to count them."
    with torch.device('meta'): return make()


@pytest.fixture(scope='module')
def fast(): return build_model('fast', n_in=5).eval()


@pytest.fixture(scope='module')
def tiny():
    torch.manual_seed(0)
    return ThesisUnet(1, (4,6,8,10,12)).eval()


# --- the thesis

def test_the_thesis_network_has_keras_count():
    assert count_parameters(meta(ThesisUnet)) == dict(total=31_042_369, trainable=31_036_481)


def test_the_count_by_hand():
    conv = lambda a,b,k: a*b*k*k + b
    blocks = [(a,b) for a,b in zip((1,*WIDTHS),WIDTHS)] + [(2*b,b) for b in WIDTHS[-2::-1]]
    ups = sum(conv(2*b,b,2) for b in WIDTHS[-2::-1])
    trainable = sum(conv(a,b,3)+conv(b,b,3)+2*b for a,b in blocks) + ups + conv(64,1,1)
    assert (trainable, 2*sum(b for _,b in blocks)) == (31_036_481, 5_888)


def test_every_block_normalises_once_after_the_second_relu():
    for block in [*meta(ThesisUnet).down, *meta(ThesisUnet).dec]:
        assert [type(l) for l in block]==[nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
        assert (block[4].eps, block[4].momentum)==(1e-3, .01)


def test_the_thesis_network_starts_as_keras_does(tiny):
    for m in tiny.modules():
        if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
            assert not m.bias.any()
            fan = (m.weight.shape[0]+m.weight.shape[1])*m.weight[0,0].numel()
            assert m.weight.abs().max() <= (6/fan)**.5 + 1e-6 and m.weight.abs().max() > .5*(6/fan)**.5


@pytest.mark.parametrize('size', [(16,16), (32,48), (128,128)])
def test_the_mask_is_as_large_as_the_image(tiny, size): assert tiny(torch.zeros(1,1,*size)).shape==(1,1,*size)


@pytest.mark.parametrize('size', [(100,128), (128,24), (8,8)])
def test_the_thesis_network_refuses_sides_it_cannot_halve(tiny, size):
    with pytest.raises(ShapeError, match='multiples of 16'): tiny(torch.zeros(1,1,*size))


# --- any network

@pytest.mark.parametrize('name,n_in', [('fast',5), ('fast',1), ('fast',3), ('dynamic',5), ('dynamic',3)])
def test_logits_in_any_channel_count(name, n_in):
    if name=='dynamic': pytest.importorskip('fastai')
    x = torch.rand(2,n_in,64,64)
    model = build_model(name, n_in=n_in, pretrained=False).train()
    y = model(x)
    assert y.shape==(2,1,64,64) and type(y) is torch.Tensor and y.min()<0 # logits, no probabilities
    y.square().mean().backward()
    assert [n for n,p in model.named_parameters() if p.grad is None]==[]


@pytest.mark.parametrize('size', [(64,64), (70,50), (96,160), (33,65)])
def test_the_fast_network_takes_any_size(fast, size): assert fast(torch.rand(1,5,*size)).shape==(1,1,*size)


def test_slices_of_a_batch_do_not_touch(fast, tiny):
    for model,n in ((fast,5), (tiny,1)):
        x = torch.rand(3,n,32,32)
        with torch.no_grad(): together,alone = model(x), torch.cat([model(x[i:i+1]) for i in range(3)])
        assert torch.allclose(together, alone, atol=1e-4)


def test_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match="no network is called 'unet'; choose one of .*fast.*thesis"):
        build_model('unet')


def test_a_registered_network_can_be_built(monkeypatch):
    monkeypatch.setitem(MODELS, 'x', None)
    @register('x')
    def make(n_in, pretrained): return nn.Conv2d(n_in, 1, 1, bias=pretrained)
    assert build_model('x', n_in=7, pretrained=False).bias is None and build_model('x', n_in=7).weight.shape[1]==7


def test_a_network_elsewhere_is_imported_when_it_is_built(tmp_path, monkeypatch):
    "An address 'module:function' in the table: the module is imported only by building the network."
    code = 'from torch import nn\ndef make(n_in, pretrained): return nn.Conv2d(n_in,1,1)\n'
    (tmp_path/'own_networks.py').write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, 'own', 'own_networks:make')
    assert 'own_networks' not in sys.modules
    assert build_model('own', n_in=2).weight.shape==(1,2,1,1) and 'own_networks' in sys.modules
    monkeypatch.delitem(sys.modules, 'own_networks')


def test_every_name_has_a_builder():
    pytest.importorskip('fastai')
    assert {'dynamic', 'fast', 'thesis', 'trial', 'unet32'} <= MODELS.keys()
    for name in MODELS: assert callable(model_builder(name)), name


def test_the_table_needs_no_fastai():
    "fastai takes seconds to import; naming its network must not."
    code = '''import sys
from neuroseg.learn.networks import MODELS
assert 'dynamic' in MODELS and 'fastai' not in sys.modules'''
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, timeout=300).returncode==0


# --- ImageNet

def test_pretrained_starts_from_imagenet(fast):
    stored = imagenet_lite0(timm.create_model('tf_efficientnet_lite0')).state_dict()
    ours = fast.encoder.state_dict()
    for k,v in ours.items(): assert k=='conv_stem.weight' or torch.equal(v, stored[k]), k
    fresh = lite0_encoder(5, pretrained=False).state_dict()
    assert not torch.equal(fresh['blocks.2.0.conv_pw.weight'], ours['blocks.2.0.conv_pw.weight'])


def test_imagenet_weights_classify_what_they_should():
    "In the right layers the weights are a classifier: strongly peaked and different from image to image."
    model = imagenet_lite0(timm.create_model('tf_efficientnet_lite0')).eval()
    ramp = torch.linspace(-1,1,224)
    images = torch.stack([ramp.expand(3,224,224), (ramp[:,None]*10).sin().expand(3,224,224)])
    with torch.no_grad(): top = model(images).softmax(1).max(1)
    assert len(set(top.indices.tolist()))>1 and (top.values>.02).all()


@pytest.mark.parametrize('n_in', [1,2,5])
def test_a_grey_image_passes_the_widened_stem_unchanged(n_in):
    conv = nn.Conv2d(3,8,3,bias=False)
    grey = torch.rand(2,1,9,9)
    assert torch.allclose(widen_stem(conv,n_in)(grey.expand(-1,n_in,-1,-1)), conv(grey.expand(-1,3,-1,-1)), atol=1e-5)


def test_a_wrong_weight_file_is_refused(tmp_path):
    net = timm.create_model('tf_efficientnet_lite0')
    before = net.conv_stem.weight.clone()
    (tmp_path/'w.pth').write_bytes(b'not these')
    with pytest.raises(DataError, match='`w.pth` is not the published weight file'):
        imagenet_lite0(net, tmp_path/'w.pth')
    with pytest.raises(InputError, match='`absent.pth` cannot be read'): imagenet_lite0(net, tmp_path/'absent.pth')
    with pytest.raises(DataError, match='does not fit this network'):
        imagenet_lite0(timm.create_model('tf_efficientnet_lite0', num_classes=10))
    assert torch.equal(net.conv_stem.weight, before)


# --- what stored weights rely on

def test_names_of_the_fast_networks_weights_stand():
    "Renaming a layer would orphan every checkpoint and the shipped model."
    names = ' '.join(build_model('fast', n_in=5, pretrained=False).state_dict())
    assert hashlib.sha256(names.encode()).hexdigest().startswith('88296c7bc08fb903')


def test_the_shipped_weights_fit(root, fast):
    path = root/'neuroseg/weights/neuroseg-lgg.safetensors'
    if not path.exists(): pytest.skip('no model is shipped')
    from safetensors import safe_open
    with safe_open(path, 'pt') as f: shipped = {k: tuple(f.get_slice(k).get_shape()) for k in f.keys()}
    ours = {k: tuple(v.shape) for k,v in fast.state_dict().items()}
    # steps: of weights that are stored in a byte
    def weights(shapes): return {k: v for k,v in shapes.items() if not k.endswith(('num_batches_tracked', '.step'))}
    assert weights(ours) == weights(shipped)


def test_the_fast_network_stays_small():
    assert count_parameters(FastUnet(5, pretrained=False))['trainable']==3_825_697
