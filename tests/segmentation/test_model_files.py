"Cards and ONNX files that are faulty, exchanged or hostile are refused."
import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from bright_model import SIDE, bright, graph_of, head, scaled, write_model

from neuroseg.core import InputError
from neuroseg.scans.stacks import Scan
from neuroseg.scans.preparation import Prep
from neuroseg.segmentation import card
from neuroseg.segmentation.onnx_graph import check_graph
from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.result import Segmenter


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


def changed_input(**changes):
    plain = dict(sequences=['pre', 'flair', 'post'], n_channels=5, prep=dataclasses.asdict(Prep(size_px=SIDE)))
    return dict(input=plain | changes)


def changed_prep(**changes): return changed_input(prep=dataclasses.asdict(Prep(size_px=SIDE)) | changes)


@pytest.mark.parametrize('changes,text', [
    (dict(component_share=1.5), '`component_share`'), (dict(component_share=-1), '`component_share`'),
    (dict(pieces=1.5), '`component_share`'), (dict(component_share='all'), 'no usable'),
    (dict(format=2), 'format 2'), (dict(format=None), 'format None'),
    (dict(threshold=0), '`threshold`'), (dict(threshold='high'), 'no usable model card'),
    (dict(sha256=dict(onnx='abc')), 'no SHA-256'), (dict(sha256={}), 'no usable'), (dict(sha256='x'), 'no usable'),
    (dict(input={}), 'no usable'), (dict(input=None), 'no usable'), (changed_input(sequences=['t2']), 'sequences'),
    (changed_prep(size_px=100_000), '`size_px`'), (changed_prep(size_px=64.5), '`size_px`'),
    (changed_prep(size_px=None), '`size_px`'), (changed_prep(context=99), '`size_px`'),
    (changed_prep(context=2), '`n_channels`'), (changed_prep(clip=[99, 1]), '`clip`'),
    (changed_prep(clip=[1]), '`size_px`'), (changed_prep(clip=['a', 'b']), 'no usable'),
    (changed_prep(margin=-3), '`margin`'), (changed_prep(margin=float('nan')), '`margin`'),
    (changed_prep(context_mm=0), '`context_mm`'), (changed_prep(unknown=1), 'no usable'),
], ids=lambda c: str(c)[:40])
def test_a_card_that_makes_no_sense(tmp_path, changes, text):
    with pytest.raises(InputError, match=text): load_card(write_model(tmp_path, bright(), **changes))


@pytest.mark.parametrize('text', ['', '[]', '{}', 'null', '{"format": 1', '"card"'])
def test_json_that_is_no_card(tmp_path, text):
    (tmp_path/'c.json').write_text(text)
    with pytest.raises(InputError, match='`c.json`'): load_card(tmp_path/'c.json')


def test_the_weights_must_be_there_and_the_same(tmp_path):
    path = write_model(tmp_path, bright())
    with open(path.with_suffix('.onnx'), 'ab') as f: f.write(b'\0')
    with pytest.raises(InputError, match='SHA-256 differs'): load_card(path)
    path.with_suffix('.onnx').unlink()
    with pytest.raises(InputError, match='is missing beside'): load_card(path)


def test_weights_swapped_after_the_check_are_noticed(tmp_path):
    card = load_card(write_model(tmp_path, bright()))
    card.onnx.write_bytes(bright(n_in=3).SerializeToString())
    with pytest.raises(InputError, match='has changed since'): Segmenter(card)


def test_a_model_may_not_be_endless(tmp_path, monkeypatch):
    monkeypatch.setattr(card, 'MAX_MODEL_MB', 0)
    with pytest.raises(InputError, match='more than the 0 allowed'): load_card(write_model(tmp_path, bright()))


@pytest.mark.parametrize('name', ['net.pt', 'net.pkl', 'net.pth', 'net.onnx'])
def test_only_a_card_opens_a_model(tmp_path, name):
    (tmp_path/name).write_bytes(b'\x80\x04')
    with pytest.raises(InputError, match='never loaded'): load_card(tmp_path/name)


def outside(_):
    w = numpy_helper.from_array(np.zeros((1, 5, 64, 64), np.float32), 'w')
    m = graph_of([helper.make_node('Add', ['x', 'w'], ['y']),
                  helper.make_node('Slice', ['y', 'start', 'two', 'axis'], ['prob'])], [w])
    t = next(i for i in m.graph.initializer if i.name == 'w')
    t.ClearField('raw_data'); t.data_location = TensorProto.EXTERNAL
    for k, v in dict(location='../secret.bin', offset='0', length='81920').items():
        e = t.external_data.add(); e.key, e.value = k, v
    return m


def nested(_):
    body = helper.make_graph([helper.make_node('Identity', ['x'], ['o'])], 'b', [],
                             [helper.make_tensor_value_info('o', TensorProto.FLOAT, None)])
    return graph_of([helper.make_node('If', ['yes'], ['y'], then_branch=body, else_branch=body),
                     helper.make_node('Slice', ['y', 'start', 'two', 'axis'], ['prob'])],
                    [numpy_helper.from_array(np.array(True), 'yes')])


def with_function(_):
    f = helper.make_function('local', 'F', ['a'], ['b'], [helper.make_node('Identity', ['a'], ['b'])],
                             [helper.make_opsetid('', 18)])
    m = graph_of([helper.make_node('F', ['x'], ['y'], domain='local'),
                  helper.make_node('Slice', ['y', 'start', 'two', 'axis'],
                                   ['prob'])], domains=[helper.make_opsetid('local', 1)])
    m.functions.append(f)
    return m


def foreign(_):
    return graph_of([helper.make_node('Evil', ['x'], ['prob'], domain='com.example')],
                    domains=[helper.make_opsetid('com.example', 1)])


def constant_outside(_):
    t = TensorProto(name='c', data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    e = t.external_data.add(); e.key, e.value = 'location', '/etc/hostname'
    return graph_of([helper.make_node('Constant', [], ['c'], value=t),
                     helper.make_node('Slice', ['x', 'start', 'two', 'axis'],
                                      ['f']), helper.make_node('Add', ['f', 'c'], ['prob'])])


@pytest.mark.parametrize('make,text',
                         [(outside, 'other files'), (constant_outside, 'other files'), (nested, 'loops or functions'),
                          (foreign, 'not part of ONNX'),
                                       (with_function, 'not part of ONNX|functions')])
def test_a_model_that_reaches_further_is_refused(tmp_path, make, text):
    m = make(tmp_path)
    with pytest.raises(InputError, match=text): check_graph(m.SerializeToString(), 'm.onnx')
    with pytest.raises(InputError, match=text): Segmenter(write_model(tmp_path, m))


def test_a_plain_model_passes(): check_graph(bright().SerializeToString(), 'm.onnx')


def test_a_damaged_model_never_ends_in_another_error():
    "Every cut and many flipped bytes: an `InputError` or nothing."
    blob = bytearray(bright().SerializeToString())
    rng = np.random.default_rng(0)
    refused = 0
    for i in range(len(blob)):
        try: check_graph(bytes(blob[:i]), 'm.onnx')
        except InputError: refused += 1
    for i in rng.integers(0, len(blob), 500):
        b = bytearray(blob); b[i] ^= 1 << int(rng.integers(8))
        try: check_graph(bytes(b), 'm.onnx')
        except InputError: refused += 1
    assert refused > len(blob)*.5


@pytest.mark.parametrize('model,text', [
    (lambda: bright(n_in=3), 'other inputs'), (lambda: bright(side=32),
                                               'other inputs'), (lambda: bright(batch=4), 'other inputs'),
    (lambda: graph_of([helper.make_node('Slice', ['x', 'start', 'two', 'axis'], ['y'])]), 'refused by the runtime'),
    (lambda: graph_of([helper.make_node('NoSuchOp', ['x'], ['prob'])]), 'refused by the runtime'),
])
def test_a_model_that_does_not_fit_its_card(tmp_path, model, text):
    with pytest.raises(InputError, match=text): Segmenter(write_model(tmp_path, model()))


def test_the_last_digit_above_one_is_one(tmp_path):
    "ONNX Runtime's sigmoid gives 1.0000001 where a logit is large."
    segmenter = Segmenter(write_model(tmp_path, scaled(np.nextafter(np.float32(1), np.float32(2)))))
    bright = np.ones((1, segmenter.card.prep.n_channels, *[segmenter.card.prep.size_px]*2), np.float32)
    assert segmenter.session.run(['prob'], {'x': bright})[0].max() > 1 and segmenter.run(bright).max() == 1


@pytest.mark.parametrize('factor', [np.nan, 3., -1.])
def test_values_that_are_no_probabilities(tmp_path, factor):
    with pytest.raises(InputError, match='no probabilities'):
        Segmenter(write_model(tmp_path, scaled(factor))).prob(Scan(head()[0][None], ('flair',)))
