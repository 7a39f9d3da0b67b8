"A model that can be understood, whose tumour is where FLAIR is bright; and drawn heads to segment."
import dataclasses, json
from pathlib import Path

import nibabel as nib
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from neuroseg.core import as_message, sha256_file
from neuroseg.scans.preparation import Prep

SIDE = 64 # Pixels of a prepared slice


def graph_of(nodes, extra=(), *, n_in=5, side=SIDE, opset=18, batch='n', domains=()):
    "An ONNX model with the ports that inference expects."
    numbers = dict(one=np.int64(1), two=np.int64([2]), axis=np.int64([1]), start=np.int64([1]), level=np.float32(.6),
                   steep=np.float32(30))
    consts = [numpy_helper.from_array(np.array(v), k) for k, v in numbers.items()]
    g = helper.make_graph(nodes, 'g',
                          [helper.make_tensor_value_info('x', TensorProto.FLOAT, [batch, n_in, side, side])],
                          [helper.make_tensor_value_info('prob', TensorProto.FLOAT,
                                                         [batch, 1, side, side])], [*consts, *extra])
    return helper.make_model(g, opset_imports=[helper.make_opsetid('', opset), *domains], ir_version=10)


def bright(**kw):
    return graph_of([helper.make_node('Slice', ['x', 'start', 'two', 'axis'], ['flair']),
                     helper.make_node('Sub', ['flair', 'level'], ['a']),
                     helper.make_node('Mul', ['a', 'steep'],
                                      ['b']), helper.make_node('Sigmoid', ['b'], ['prob'])], **kw)


def write_model(folder, model, *, name='bright', **changes):
    "The model and a card that fits it; `changes` go into the card."
    folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
    blob = model if isinstance(model, bytes) else model.SerializeToString()
    (folder/f'{name}.onnx').write_bytes(blob)
    card = dict(format=1, name=name, version='7', threshold=.5, sha256=dict(onnx=sha256_file(folder/f'{name}.onnx')),
                input=dict(sequences=['pre', 'flair', 'post'], n_channels=5,
                           prep=dataclasses.asdict(Prep(size_px=SIDE))))
    (folder/f'{name}.json').write_text(json.dumps(card | changes))
    return folder/f'{name}.json'


def head(shape=(12, 96, 80), *, seed=0):
    "A head in FLAIR, `(Z,Y,X)`, with a bright lesion off every axis of symmetry; and the lesion."
    z, y, x = np.indices(shape)
    Z, Y, X = shape
    skull = ((y-Y/2)/(.42*Y))**2 + ((x-X/2)/(.4*X))**2 + ((z-(Z-1)/2)/(.6*Z))**2 < 1
    lesion = ((y-.36*Y)/(.13*Y))**2 + ((x-.62*X)/(.11*X))**2 + ((z-.6*(Z-1))/max(.22*Z, 1))**2 < 1
    v = 100.*skull + 120*lesion + np.random.default_rng(seed).normal(0, 3, shape)*skull
    return v.clip(0).astype(np.float32), lesion


def overlap(a, b): return 2*(a & b).sum()/(a.sum()+b.sum())


def write_nifti(path, zyx, affine=None, dtype=np.float32):
    img = nib.Nifti1Image(zyx.transpose(2, 1, 0).astype(dtype),
                          np.diag([-.9, -.9, 5, 1.]) if affine is None else affine)
    img.header.set_xyzt_units('mm')
    nib.save(img, path)
    return path


def write_stack(folder, zyx, *, ending='png', start=1):
    folder.mkdir(parents=True, exist_ok=True)
    for i, p in enumerate(zyx): Image.fromarray(p.clip(0, 255).astype(np.uint8)).save(folder/f'case_{i+start}.{ending}')
    return folder


def scaled(factor):
    "A model whose probability is FLAIR times `factor`."
    return graph_of([helper.make_node('Slice', ['x', 'start', 'two', 'axis'], ['f']),
                     helper.make_node('Mul', ['f', 'k'], ['prob'])], [numpy_helper.from_array(np.float32(factor), 'k')])


def names(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())


def says(warnings, text): return any(text in as_message(w) for w in warnings)
