"From any input to an outline: geometry, faults, names, and a model file that cannot do harm."
import dataclasses, errno, itertools, json, os, subprocess, sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from neuroseg.segmentation import preview
from neuroseg.segmentation import result
from neuroseg.cohorts.cases import find_cases
from neuroseg.core import ConfigError, InputError, OutputError, sha256_file
from neuroseg.evaluation.scores import evaluate_case
from neuroseg.scans.reading import Found, case_names, expand, group_sequences
from neuroseg.segmentation.onnx_graph import check_graph
from neuroseg.segmentation.card import load_card, shipped_models
from neuroseg.segmentation.quality import expected_dice, mask_warnings, binarize, scan_warnings
from neuroseg.segmentation.preview import pick_slices, preview
from neuroseg.segmentation.result import Segmenter, replaceable, segment
from neuroseg.segmentation.batch import predict_cases
from neuroseg.scans.stacks import Scan
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.reading import read_scan
from neuroseg.scans.preparation import Prep, prepare, prepare_mask, restore

SIDE = 64


# A model that can be understood: tumour is where FLAIR is bright -------------------------------------------------------------------------

def graph_of(nodes, extra=(), *, n_in=5, side=SIDE, opset=18, batch='n', domains=()):
    "An ONNX model with the ports that inference expects."
    consts = [numpy_helper.from_array(np.array(v), k) for k, v in dict(one=np.int64(1), two=np.int64([2]), axis=np.int64([1]), start=np.int64([1]), level=np.float32(.6), steep=np.float32(30)).items()]
    g = helper.make_graph(nodes, 'g', [helper.make_tensor_value_info('x', TensorProto.FLOAT, [batch, n_in, side, side])],
                          [helper.make_tensor_value_info('prob', TensorProto.FLOAT, [batch, 1, side, side])], [*consts, *extra])
    return helper.make_model(g, opset_imports=[helper.make_opsetid('', opset), *domains], ir_version=10)


def bright(**kw):
    return graph_of([helper.make_node('Slice', ['x', 'start', 'two', 'axis'], ['flair']), helper.make_node('Sub', ['flair', 'level'], ['a']),
                     helper.make_node('Mul', ['a', 'steep'], ['b']), helper.make_node('Sigmoid', ['b'], ['prob'])], **kw)


def write_model(folder, model, *, name='bright', **changes):
    "The model and a card that fits it; `changes` go into the card."
    folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
    blob = model if isinstance(model, bytes) else model.SerializeToString()
    (folder/f'{name}.onnx').write_bytes(blob)
    card = dict(format=1, name=name, version='7', threshold=.5, sha256=dict(onnx=sha256_file(folder/f'{name}.onnx')),
                input=dict(sequences=['pre', 'flair', 'post'], n_channels=5, prep=dataclasses.asdict(Prep(size_px=SIDE))))
    (folder/f'{name}.json').write_text(json.dumps(card | changes))
    return folder/f'{name}.json'


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


@pytest.fixture(scope='module')
def segmenter(card_path): return Segmenter(card_path)


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
    img = nib.Nifti1Image(zyx.transpose(2, 1, 0).astype(dtype), np.diag([-.9, -.9, 5, 1.]) if affine is None else affine)
    img.header.set_xyzt_units('mm')
    nib.save(img, path)
    return path


def write_stack(folder, zyx, *, ending='png', start=1):
    folder.mkdir(parents=True, exist_ok=True)
    for i, p in enumerate(zyx): Image.fromarray(p.clip(0, 255).astype(np.uint8)).save(folder/f'case_{i+start}.{ending}')
    return folder


# Geometry -------------------------------------------------------------------------------------------------------------------------------

ORIENTATIONS = [[(p, s) for p, s in zip(perm, signs)] for perm in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def turned(zyx, affine, ornt):
    "The same scan stored in another order: array `(Z,Y,X)` and its affine."
    img = nib.Nifti1Image(zyx.transpose(2, 1, 0), affine).as_reoriented(np.array(ornt, float))
    return np.ascontiguousarray(np.asarray(img.dataobj).transpose(2, 1, 0)), img.affine


@pytest.mark.parametrize('ornt', ORIENTATIONS, ids=str)
def test_whatever_way_a_volume_is_stored_the_network_sees_the_same(ornt):
    "All 48 orientations: the prepared planes are equal to the bit, and the mask comes back to the voxel it left."
    v, lesion = head((7, 30, 24))
    affine = np.diag([-2., -1.5, 6., 1.]); affine[:3, 3] = 10, -20, 30 # left, posterior, superior: as training slices lie
    def of(a, aff): return Scan(a[None].astype(np.float32), ('flair',), tuple(nib.affines.voxel_sizes(aff)[::-1]), aff)
    prep = Prep(size_px=32)
    plain = prepare(of(v, affine), prep)
    v2, affine2 = turned(v, affine, ornt)
    lesion2 = turned(lesion.astype(np.uint8), affine, ornt)[0] > 0
    p = prepare(of(v2, affine2), prep)
    assert np.array_equal(p.x, plain.x)
    assert p.grid.step == plain.grid.step == 1
    assert np.array_equal(prepare_mask(lesion2, p.grid), prepare_mask(lesion, plain.grid))
    assert np.array_equal(plain.grid.axes, (0, 1, 2)) and plain.grid.flips == (False,)*3
    back = restore(prepare_mask(lesion2, p.grid)/255, p.grid)
    assert back.shape == v2.shape
    assert overlap(back > .5, lesion2) > .9
    assert np.array_equal(back, turned(restore(prepare_mask(lesion, plain.grid)/255, plain.grid), affine, ornt)[0])


def test_an_oblique_volume_comes_back_to_its_own_grid(tmp_path, segmenter):
    v, lesion = head()
    c, s = np.cos(.3), np.sin(.3)
    affine = np.array([[-c, s, 0, 50], [-s, -c, 0, 60], [0, 0, 5, -70], [0, 0, 0, 1.]]) @ np.diag([.9, .9, 1, 1])
    path = write_nifti(tmp_path/'oblique_flair.nii.gz', v, affine)
    result = segmenter.segment(path)
    assert overlap(result.mask, lesion) > .9
    result.save(tmp_path/'out')
    a, b = nib.load(path), nib.load(tmp_path/'out'/'mask.nii.gz')
    assert np.array_equal(a.affine, b.affine) and a.shape == b.shape
    assert np.array_equal(read_mask(tmp_path/'out'/'mask.nii.gz'), result.mask)


@pytest.mark.parametrize('shape', [(1, 40, 40), (2, 33, 71), (5, 120, 31), (3, 200, 200)])
def test_restore_undoes_prepare_for_any_shape(shape):
    v, lesion = head(shape)
    p = prepare(Scan(v[None], ('flair',)), Prep(size_px=128))
    assert overlap(restore(prepare_mask(lesion, p.grid)/255, p.grid) > .5, lesion) > .9


def test_nothing_is_found_outside_the_scan(segmenter):
    "A head that touches the border: the box reaches beyond the image, the mask must not."
    v, lesion = head((4, 60, 60))
    v, lesion = v[:, 8:, :44], lesion[:, 8:, :44]
    result = segmenter.segment(Scan(v[None], ('flair',)))
    assert result.mask.shape == v.shape and overlap(result.mask, lesion) > .85


def test_volume_in_ml_follows_the_spacing(tmp_path, segmenter):
    v, lesion = head()
    result = segmenter.segment(write_nifti(tmp_path/'a_flair.nii.gz', v))
    assert result.volume_ml == pytest.approx(result.mask.sum()*.9*.9*5/1000)
    assert result.volume_ml == pytest.approx(lesion.sum()*.9*.9*5/1000, rel=.1)


def test_thin_slices_look_like_thick_ones():
    "Where slices are 1 mm apart the neighbours are taken 5 mm away."
    v, _ = head((20, 40, 40))
    assert prepare(Scan(v[None], ('flair',), (1., 1., 1.), np.diag([-1, -1, 1, 1.])), Prep(size_px=32)).grid.step == 5


# The segmenter --------------------------------------------------------------------------------------------------------------------------

def test_the_lesion_is_found(segmenter):
    v, lesion = head()
    result = segmenter.segment(Scan(v[None], ('flair',)))
    assert overlap(result.mask, lesion) > .9
    assert result.confidence > .9
    assert result.stats['n_components'] == 1


def test_batches_threads_and_repetition_do_not_matter(card_path):
    scan = Scan(head((9, 50, 40))[0][None], ('flair',))
    probs = [Segmenter(card_path, threads=t).prob(scan) for t in (1, 2, 1)]
    assert np.array_equal(probs[0], probs[2])
    assert np.allclose(probs[0], probs[1], atol=1e-6)


def test_threshold_moves_the_outline_only_inwards(segmenter):
    scan = Scan(head()[0][None], ('flair',))
    masks = [segmenter.segment(scan, threshold=t).mask for t in (.1, .5, .9)]
    assert masks[0].sum() > masks[1].sum() > masks[2].sum() > 0
    assert not (masks[2] & ~masks[1]).any() and not (masks[1] & ~masks[0]).any()


def two_lesions():
    "A head with a second, smaller lesion, in FLAIR."
    v,lesion = head()
    v = v.copy()
    v[4:8, 58:68, 22:32] = v[lesion].max()
    return v


@pytest.mark.parametrize('component_share,n', [(0., 2), (.99, 1)])
def test_the_card_decides_which_pieces_are_kept(tmp_path, component_share, n):
    "In Python, as `predict` writes it, and when scored: everywhere the same mask."
    path, v = write_model(tmp_path/'model', bright(), component_share=component_share), two_lesions()
    result = Segmenter(path).segment(Scan(v[None], ('flair',)))
    assert result.stats['n_components']==n and np.array_equal(result.with_threshold(result.threshold).mask, result.mask)
    assert np.array_equal(binarize(result.prob, threshold=.5, component_share=component_share), result.mask)
    assert any('were left out' in w for w in result.warnings) == (n==1)
    d = tmp_path/'cohort'
    d.mkdir()
    for name, a in (('flair', v), ('mask', result.mask)): nib.save(nib.Nifti1Image(np.asarray(a, np.float32).transpose(2,1,0), np.diag([1.,1.,5.,1.])), d/f'anna_{name}.nii.gz')
    said, = predict_cases(d/'anna_flair.nii.gz', tmp_path/'out', model=path)
    assert (said['n_components'], said['lesion_px'], said['component_share']) == (n, result.mask.sum(), component_share)
    case, = find_cases(d, 'nifti')
    assert evaluate_case(case, Segmenter(path), empty=1., surface=False)['dice'] == 1


def test_a_changed_card_is_a_changed_model(tmp_path):
    "Though the network is the same file."
    scan = Scan(two_lesions()[None], ('flair',))
    for component_share, n in ((0., 2), (1., 1), (0., 2)): assert segment(scan, model=write_model(tmp_path, bright(), component_share=component_share)).stats['n_components'] == n


@pytest.mark.parametrize('t', [0, 1, -1, 50, float('nan')])
def test_a_threshold_that_is_no_probability_is_refused(segmenter, t):
    with pytest.raises(ConfigError, match='threshold'): segmenter.segment(Scan(head()[0][None], ('flair',)), threshold=t)


def test_missing_sequences_are_flair(segmenter):
    "FLAIR alone gives what FLAIR three times over gives."
    v, _ = head()
    alone = segmenter.prob(Scan(v[None], ('flair',)))
    thrice = segmenter.prob(Scan(np.stack([v]*3), ('pre', 'flair', 'post')))
    assert np.array_equal(alone, thrice)


def test_segment_keeps_one_model_and_notices_a_new_one(tmp_path, monkeypatch):
    monkeypatch.setattr(result, '_loaded', {})
    path = write_model(tmp_path, bright())
    scan = Scan(head()[0][None], ('flair',))
    first = segment(scan, model=path)
    kept = list(result._loaded.values())
    segment(scan, model=path)
    assert list(result._loaded.values()) == kept
    write_model(tmp_path, scaled(.001))
    assert first.mask.any() and not segment(scan, model=path).mask.any()
    assert len(result._loaded) == 1


def test_the_environment_names_a_model(card_path, monkeypatch):
    monkeypatch.setenv('NEUROSEG_MODEL', str(card_path))
    assert load_card().name == 'bright'
    monkeypatch.setenv('NEUROSEG_MODEL', str(card_path.with_name('absent.json')))
    with pytest.raises(InputError, match='absent.json'): load_card()


# Confidence and warnings -----------------------------------------------------------------------------------------------------------------

def test_expected_dice_is_the_mean_dice_of_draws():
    rng = np.random.default_rng(3)
    for sharp in (.2, 1., 4.):
        p = rng.beta(sharp*.4, sharp, 3000); m = p > .5
        draws = rng.random((600, p.size)) < p
        assert expected_dice(p, m) == pytest.approx(np.mean([overlap(t, m) for t in draws]), abs=.005)


def test_expected_dice_of_nothing_is_nan():
    assert np.isnan(expected_dice(np.full((2, 2), .2), np.zeros((2, 2), bool)))


def says(warnings, text): return any(text in w for w in warnings)


@pytest.mark.parametrize('change,text', [
    (lambda v: v[:1], 'a single slice'),
    (lambda v: v[:, 30:60, 25:55], 'no dark background'),
    (lambda v: (v > 50).astype(np.float32), 'fewer than 16 grey levels'),
    (lambda v: v*0 + 90*((np.indices(v.shape)[1] > 89) & (np.indices(v.shape)[2] < 16)), 'nearly all of the image is background'),
], ids=['slice', 'cropped', 'mask', 'specks'])
def test_odd_input_is_remarked_on(change, text):
    v, _ = head()
    scan = Scan(v[None], ('flair',), (5., 1., 1.), source='x_flair.nii.gz')
    assert not any(says(scan_warnings(scan), t) for t in ('single', 'background', 'grey levels'))
    assert says(scan_warnings(dataclasses.replace(scan, data=change(v)[None])), text)


def test_what_is_missing_is_said():
    v, _ = head()
    warn = scan_warnings(Scan(v[None], ('flair',), source='scan.nii.gz', warnings=['slice number 3 occurs twice']))
    for text in ('slice number 3 occurs twice', 'no pre and post sequence', 'taken to be FLAIR', 'no volume in mL'): assert says(warn, text)
    whole = Scan(np.stack([v]*3), ('pre', 'flair', 'post'), (5., 1., 1.))
    assert scan_warnings(whole) == []


def test_an_implausible_outline_is_said():
    v, lesion = head()
    scan = Scan(v[None], ('flair',))
    assert mask_warnings(lesion, scan, .9) == []
    assert says(mask_warnings(lesion, scan, .3), 'low confidence (0.30)')
    assert says(mask_warnings(v > 50, scan, .9), 'of the head')
    assert says(mask_warnings(np.zeros_like(lesion), scan, np.nan), 'no lesion found')


# What is written ------------------------------------------------------------------------------------------------------------------------

def names(folder): return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob('*') if p.is_file())


def test_a_volume_a_stack_and_a_slice(tmp_path, card_path):
    v, lesion = head()
    (tmp_path/'in').mkdir()
    write_nifti(tmp_path/'in'/'vol_flair.nii.gz', v)
    write_stack(tmp_path/'in'/'stack', v, ending='tif')
    one = write_stack(tmp_path/'one', v[7:8])/'case_1.png'
    reports = predict_cases([tmp_path/'in'/'vol_flair.nii.gz', tmp_path/'in'/'stack', one], tmp_path/'out', model=card_path)
    by = {r['case']: r for r in reports}
    out = tmp_path/'out'
    assert names(out/'vol_flair') == ['mask.nii.gz', 'preview.png', 'report.json']
    assert names(out/'stack') == ['mask.nii.gz', *sorted(f'masks/case_{i+1}_mask.png' for i in range(len(v))), 'preview.png', 'report.json']
    assert names(out/'case_1') == ['mask.png', 'preview.png', 'report.json']
    assert overlap(read_mask(out/'stack'/'mask.nii.gz'), lesion) > .9
    # Slices sort by number: slice 10 is the tenth, in the volume and in its own file
    for i in (1, 7, 9): assert np.array_equal(read_mask(out/'stack'/'masks'/f'case_{i+1}_mask.png'), read_mask(out/'stack'/'mask.nii.gz')[i])
    assert read_mask(out/'case_1'/'mask.png').shape == v.shape[1:]
    assert by['stack']['volume_ml'] is None and by['stack']['lesion_px'] > 0
    assert by['vol_flair']['volume_ml'] > 0
    assert by['stack']['lesion_slices'] == [f'case_{i+1}' for i in np.flatnonzero(read_mask(out/'stack'/'mask.nii.gz').any((1, 2)))]


def test_a_report_is_strict_json_without_paths(tmp_path, card_path):
    v, _ = head()
    folder = write_stack(tmp_path/'p1', v)
    said, = predict_cases(folder, tmp_path/'out', model=card_path)
    text = (tmp_path/'out'/'p1'/'report.json').read_text()
    assert str(tmp_path) not in text and tmp_path.name not in text
    def refuse(x): raise AssertionError(f'{x} is no JSON')
    stored = json.loads(text, parse_constant=refuse)
    assert stored == json.loads(json.dumps(said))
    assert [i['sha256'] for i in stored['input']] == [sha256_file(folder/i['name']) for i in stored['input']]
    assert len(stored['input']) == len(v)
    assert stored['model'] == dict(name='bright', version='7', sha256=sha256_file(card_path.with_suffix('.onnx')))
    assert 'esearch use only' in stored['notice'] and stored['seconds'] > 0
    from neuroseg import __version__
    assert stored['neuroseg'] == __version__


def scaled(factor):
    "A model whose probability is FLAIR times `factor`."
    return graph_of([helper.make_node('Slice', ['x', 'start', 'two', 'axis'], ['f']), helper.make_node('Mul', ['f', 'k'], ['prob'])], [numpy_helper.from_array(np.float32(factor), 'k')])


def test_no_lesion_gives_null_and_an_empty_mask(tmp_path):
    said, = predict_cases(write_stack(tmp_path/'p', head((3, 40, 40))[0]), tmp_path/'out', model=write_model(tmp_path, scaled(.3)))
    stored = json.loads((tmp_path/'out'/'p'/'report.json').read_text())
    assert stored['lesion_px'] == stored['n_components'] == 0 and stored['confidence'] is None and stored['lesion_slices'] == []
    assert says(stored['warnings'], 'no lesion found')
    assert not read_mask(tmp_path/'out'/'p'/'mask.nii.gz').any()


def test_two_runs_write_the_same(tmp_path, card_path):
    folder = write_stack(tmp_path/'p', head()[0])
    for out in ('a', 'b'): predict_cases(folder, tmp_path/out, model=card_path)
    for name in names(tmp_path/'a'/'p'):
        a, b = ((tmp_path/o/'p'/name).read_bytes() for o in 'ab')
        if name == 'report.json': a, b = ({k: v for k, v in json.loads(t).items() if k != 'seconds'} for t in (a, b))
        assert a == b, name


@pytest.mark.parametrize('n', [1, 2, 5, 40])
def test_previews_of_any_length(n):
    v, lesion = head((n, 50, 40))
    for m in (lesion, np.zeros_like(lesion), np.ones_like(lesion)):
        im = preview(Scan(v[None], ('flair',)), m, caption='ünïcode is replaced')
        assert im.mode == 'RGB' and max(im.size) <= 1100


def test_a_preview_keeps_proportions():
    v, lesion = head((3, 40, 40))
    affine = np.diag([-1., -3., 5., 1.])
    assert preview.tiles(Scan(v[None], ('flair',), (5., 3., 1.), affine), lesion, tile_px=90)[0][1].size == (30, 90)


def test_pick_slices_stay_inside():
    rng = np.random.default_rng(0)
    for _ in range(200):
        area = rng.integers(0, 2, rng.integers(1, 60))*rng.integers(0, 9)
        picked = pick_slices(area, n=int(rng.integers(1, 15)))
        assert picked == sorted(set(picked)) and 0 <= picked[0] and picked[-1] < len(area)


# Names and overwriting ------------------------------------------------------------------------------------------------------------------

def test_scans_of_one_name_do_not_overwrite_each_other(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    for p in ('anna', 'bert'): (tmp_path/p).mkdir(); write_nifti(tmp_path/p/'scan.nii.gz', v if p == 'anna' else v[:2])
    said = predict_cases([tmp_path/p/'scan.nii.gz' for p in ('anna', 'bert')], tmp_path/'out', model=card_path)
    assert [s['case'] for s in said] == ['anna_scan', 'bert_scan']
    assert [read_mask(tmp_path/'out'/s['case']/'mask.nii.gz').shape[0] for s in said] == [3, 2]


def test_names_differ_whatever_comes():
    parts = [('a', 'x', 'scan'), ('b', 'x', 'scan'), ('b', 'y', 'Scan'), ('c', 'scan_2')]
    got = case_names([Found(None, p) for p in parts])
    assert len({n.casefold() for n in got}) == 4 and got[3] == 'scan_2'
    assert all('/' not in n and '\\' not in n and ':' not in n for n in case_names([Found(None, ('C:\\', 'scan')), Found(None, ('/', 'scan'))]))
    # A longer name must not run into one that is there
    got = case_names([Found(None, ('a', 's')), Found(None, ('b', 's')), Found(None, ('x', 'a_s'))])
    assert len(set(got)) == 3


def test_one_input_twice_is_an_error(tmp_path, card_path):
    v, _ = head((2, 30, 30))
    f = write_nifti(tmp_path/'scan.nii.gz', v)
    with pytest.raises(ConfigError, match='twice'): predict_cases([f, f], tmp_path/'out', model=card_path)
    assert not (tmp_path/'out').exists()


def test_a_scan_is_never_replaced_by_its_result(tmp_path, card_path):
    v, _ = head((3, 40, 40))
    folder = write_stack(tmp_path/'scans'/'case', v)
    before = names(folder)
    said, = predict_cases(folder, tmp_path/'scans', model=card_path)
    assert 'there already' in said['error'] and names(folder) == before


def test_a_former_result_is_replaced_whole_or_not_at_all(tmp_path, card_path, monkeypatch):
    v, _ = head((3, 40, 40))
    folder, out = write_stack(tmp_path/'case', v), tmp_path/'out'
    predict_cases(folder, out, model=card_path)
    (folder/'case_3.png').unlink()
    predict_cases(folder, out, model=card_path)
    assert sorted(names(out/'case')) == ['mask.nii.gz', 'masks/case_1_mask.png', 'masks/case_2_mask.png', 'preview.png', 'report.json']
    before = {n: (out/'case'/n).read_bytes() for n in names(out/'case')}
    def full(*_): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(result, 'write_json', full)
    said, = predict_cases(folder, out, model=card_path)
    assert said['error'] == 'cannot write `case`: no space left on device'
    assert {n: (out/'case'/n).read_bytes() for n in names(out/'case')} == before
    assert [p.name for p in out.iterdir()] == ['case']


def test_only_results_are_replaceable(tmp_path):
    assert not replaceable(tmp_path)
    (tmp_path/'report.json').write_text('{"neuroseg": "1"}')
    assert replaceable(tmp_path)
    (tmp_path/'masks').mkdir(); (tmp_path/'masks'/'a_mask.png').touch()
    assert replaceable(tmp_path)
    (tmp_path/'masks'/'a.png').touch()
    assert not replaceable(tmp_path)
    (tmp_path/'masks'/'a.png').unlink(); (tmp_path/'report.json').write_text('{"patient": 1}')
    assert not replaceable(tmp_path)
    (tmp_path/'report.json').write_text('{')
    assert not replaceable(tmp_path)


def test_out_is_a_file(tmp_path, card_path):
    f = write_nifti(tmp_path/'scan.nii.gz', head((2, 30, 30))[0])
    with pytest.raises(OutputError, match='`scan.nii.gz` is a file'): predict_cases(f, f, model=card_path)
    said, = predict_cases(f, f/'below', model=card_path)
    assert 'cannot write' in said['error'] and f.is_file()


# Which scans --------------------------------------------------------------------------------------------------------------------------------

def test_a_cohort_folder_is_its_patients(tmp_path):
    v, _ = head((2, 30, 30))
    for p in ('TCGA_PH_0001_20000101', 'TCGA_PH_0002_20000101'): write_stack(tmp_path/'kaggle_3m'/p, v)
    (tmp_path/'kaggle_3m'/'data.csv').write_text('a,b\n')
    write_stack(tmp_path/'hospital'/'patient1'/'images', v); write_stack(tmp_path/'hospital'/'patient1'/'masks', v)
    assert [f.parts[-1] for f in expand(tmp_path/'kaggle_3m')] == ['TCGA_PH_0001_20000101', 'TCGA_PH_0002_20000101']
    assert [f.parts[-1] for f in expand(tmp_path/'hospital')] == ['patient1']
    assert len(expand(tmp_path)) == 3


def test_results_among_the_inputs_are_left_out(tmp_path, card_path):
    v, _ = head((2, 40, 40))
    for p in ('a', 'b'): write_stack(tmp_path/p, v)
    for _ in range(2): assert [s['case'] for s in predict_cases(tmp_path, tmp_path/'out', model=card_path)] == ['a', 'b']


def test_files_of_one_patient_are_one_scan(tmp_path, card_path):
    v, lesion = head((4, 50, 40))
    for p, s in itertools.product(('p1', 'p2'), ('flair', 't1', 't1ce', 't2')): write_nifti(tmp_path/f'{p}_{s}.nii.gz', v if s == 'flair' else v*0+100*(v > 50))
    write_nifti(tmp_path/'p1_seg.nii.gz', lesion, dtype=np.uint8)
    for given in (tmp_path, sorted(tmp_path.glob('*_[ft]*.nii.gz'))):
        said = predict_cases(given, tmp_path/'out', model=card_path)
        assert [s['case'] for s in said] == ['p1', 'p2']
        assert [s['scan']['sequences'] for s in said] == [('pre', 'flair', 'post')]*2
        assert all(says(s['warnings'], 'not a known sequence, ignored') for s in said)


def test_patients_are_not_mixed(tmp_path):
    files = [tmp_path/f for f in ('p1_flair.nii', 'p2_flair.nii', 'p2_t1.nii', 'p3.nii', 'p4.nii')]
    assert [f.parts[-1] for f in group_sequences(files)] == ['p1_flair', 'p2', 'p3', 'p4']
    # The same name in two folders is two patients
    assert len(group_sequences([tmp_path/'a'/'x_flair.nii', tmp_path/'b'/'x_t1.nii'])) == 2


def test_a_dicom_folder_is_one_case(tmp_path, card_path):
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
    v, lesion = head((5, 60, 50))
    (tmp_path/'study'/'series1').mkdir(parents=True)
    for i, p in enumerate(v):
        meta = FileMetaDataset(); meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ExplicitVRLittleEndian, MRImageStorage, generate_uid()
        ds = FileDataset('x', {}, file_meta=meta, preamble=b'\0'*128)
        ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.SeriesDescription, ds.Modality = MRImageStorage, meta.MediaStorageSOPInstanceUID, '1.2.3', 'AX FLAIR', 'MR'
        ds.PhotometricInterpretation, ds.SamplesPerPixel, ds.PixelRepresentation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 'MONOCHROME2', 1, 0, 16, 16, 15
        ds.Rows, ds.Columns = p.shape
        ds.ImageOrientationPatient, ds.PixelSpacing, ds.ImagePositionPatient, ds.InstanceNumber = [1, 0, 0, 0, 1, 0], [.9, .9], [0, 0, 5.*i], i+1
        ds.PixelData = p.astype(np.uint16).tobytes()
        ds.save_as(tmp_path/'study'/'series1'/f'IM{9-i}', enforce_file_format=True)
    said, = predict_cases(tmp_path/'study', tmp_path/'out', model=card_path)
    assert said['case'] == 'study' and len(said['input']) == 5
    assert overlap(read_mask(tmp_path/'out'/'study'/'mask.nii.gz'), lesion) > .85
    assert said['volume_ml'] == pytest.approx(said['lesion_px']*.9*.9*5/1000)


# Bad input -------------------------------------------------------------------------------------------------------------------------------

def _bad(folder, what):
    "One faulty input by name."
    v, lesion = head((2, 40, 40))
    if what == 'truncated': f = folder/'cut.tif'; Image.fromarray(v[0].astype(np.uint8)).save(f); f.write_bytes(f.read_bytes()[:700])
    elif what == 'text': f = folder/'text.nii.gz'; f.write_text('hello')
    elif what == 'cut nifti': f = write_nifti(folder/'cut.nii.gz', v); f.write_bytes(f.read_bytes()[:300])
    elif what == '4-D': f = folder/'four.nii.gz'; nib.save(nib.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), f)
    elif what == 'empty file': f = folder/'zero.png'; f.touch()
    elif what == 'NaN': w = v.copy(); w[0, 0, :3] = np.nan; f = write_nifti(folder/'nan.nii.gz', w)
    elif what == 'flat': f = write_nifti(folder/'flat.nii.gz', v*0+7)
    elif what == 'empty folder': f = folder/'empty'; f.mkdir()
    elif what == 'absent': f = folder/'absent.nii.gz'
    elif what == 'mask': f = folder/'a_mask.png'; Image.fromarray(lesion[0].astype(np.uint8)*255).save(f)
    elif what == 'pre only': f = write_nifti(folder/'p_t1.nii.gz', v)
    elif what == 'pdf': f = folder/'report.pdf'; f.write_bytes(b'%PDF-1.7')
    elif what == 'two sizes':
        f = write_stack(folder/'sizes', v); Image.fromarray(np.zeros((9, 9), np.uint8)).save(f/'case_9.png')
    return f


BAD = ('truncated', 'text', 'cut nifti', '4-D', 'empty file', 'NaN', 'flat', 'empty folder', 'absent', 'mask', 'pre only', 'pdf', 'two sizes')


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, card_path, what):
    bad = _bad(tmp_path, what)
    good = write_stack(tmp_path/'good', head((2, 40, 40))[0])
    said = predict_cases([bad, good], tmp_path/'out', model=card_path)
    errors = [s['error'] for s in said if 'error' in s]
    assert len(errors) == 1 and len(said) == 2
    assert '\n' not in errors[0] and str(tmp_path) not in errors[0] and len(errors[0]) < 400
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['good']


@pytest.mark.parametrize('mode,make', [
    ('RGBA', lambda a: Image.fromarray(np.dstack([a]*3+[np.full_like(a, 255)]), 'RGBA')),
    ('I;16', lambda a: Image.fromarray(a.astype(np.uint16)*200)),
    ('P', lambda a: Image.fromarray(a).convert('P')),
    ('LA', lambda a: Image.fromarray(a).convert('LA')),
])
def test_unusual_pictures_are_read(tmp_path, segmenter, mode, make):
    v, lesion = head((8, 80, 70))
    k = int(lesion.sum((1, 2)).argmax())
    make(v[k].clip(0, 255).astype(np.uint8)).save(tmp_path/'slice.png')
    assert overlap(segmenter.segment(tmp_path/'slice.png').mask[0], lesion[k]) > .85


def test_out_of_memory_is_told_and_others_go_on(tmp_path, card_path, monkeypatch):
    v, _ = head((2, 40, 40))
    for p in ('a', 'b'): write_stack(tmp_path/p, v)
    plain = result.read_scan
    def greedy(source, **kw):
        if Path(source).name == 'a': raise MemoryError
        return plain(source, **kw)
    monkeypatch.setattr(result, 'read_scan', greedy)
    said = predict_cases([tmp_path/'a', tmp_path/'b'], tmp_path/'out', model=card_path)
    assert 'more memory' in said[0]['error'] and 'error' not in said[1]


def test_a_bug_is_not_hidden(tmp_path, card_path, monkeypatch):
    def bug(*_, **__): raise ZeroDivisionError
    monkeypatch.setattr(result, 'read_scan', bug)
    with pytest.raises(ZeroDivisionError): predict_cases(write_stack(tmp_path/'a', head((2, 40, 40))[0]), tmp_path/'out', model=card_path)


# Cards and model files ---------------------------------------------------------------------------------------------------------------------

def changed_input(**kw): return dict(input=dict(sequences=['pre', 'flair', 'post'], n_channels=5, prep=dataclasses.asdict(Prep(size_px=SIDE)) | kw))


@pytest.mark.parametrize('changes,text', [
    (dict(component_share=1.5), '`pieces`'), (dict(component_share='all'), 'no usable'), (dict(component_share=-1), '`pieces`'), (dict(format=2), 'format 2'), (dict(format=None), 'format None'), (dict(threshold=0), '`threshold`'), (dict(threshold='high'), 'no usable model card'),
    (dict(sha256=dict(onnx='abc')), 'no SHA-256'), (dict(sha256={}), 'no usable'), (dict(sha256='x'), 'no usable'), (dict(input={}), 'no usable'), (dict(input=None), 'no usable'),
    (changed_input(size_px=100_000), '`size_px`'), (changed_input(size_px=64.5), '`size_px`'), (changed_input(size_px=None), '`size_px`'), (changed_input(context=99), '`size_px`'),
    (changed_input(context=2), '`n_channels`'), (changed_input(clip=[99, 1]), '`clip`'), (changed_input(clip=[1]), '`size_px`'), (changed_input(clip=['a', 'b']), 'no usable'),
    (changed_input(margin=-3), '`margin`'), (changed_input(margin=float('nan')), '`margin`'), (changed_input(context_mm=0), '`context_mm`'), (changed_input(unknown=1), 'no usable'),
    (dict(input=dict(sequences=['t2'], n_channels=5, prep=dataclasses.asdict(Prep(size_px=SIDE)))), 'sequences'),
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
    monkeypatch.setattr(result, 'MAX_MODEL_MB', 0)
    with pytest.raises(InputError, match='more than the 0 allowed'): load_card(write_model(tmp_path, bright()))


@pytest.mark.parametrize('name', ['net.pt', 'net.pkl', 'net.pth', 'net.onnx'])
def test_only_a_card_opens_a_model(tmp_path, name):
    (tmp_path/name).write_bytes(b'\x80\x04')
    with pytest.raises(InputError, match='never loaded'): load_card(tmp_path/name)


def outside(_):
    w = numpy_helper.from_array(np.zeros((1, 5, 64, 64), np.float32), 'w')
    m = graph_of([helper.make_node('Add', ['x', 'w'], ['y']), helper.make_node('Slice', ['y', 'start', 'two', 'axis'], ['prob'])], [w])
    t = next(i for i in m.graph.initializer if i.name == 'w')
    t.ClearField('raw_data'); t.data_location = TensorProto.EXTERNAL
    for k, v in dict(location='../secret.bin', offset='0', length='81920').items():
        e = t.external_data.add(); e.key, e.value = k, v
    return m


def nested(_):
    body = helper.make_graph([helper.make_node('Identity', ['x'], ['o'])], 'b', [], [helper.make_tensor_value_info('o', TensorProto.FLOAT, None)])
    return graph_of([helper.make_node('If', ['yes'], ['y'], then_branch=body, else_branch=body), helper.make_node('Slice', ['y', 'start', 'two', 'axis'], ['prob'])],
                    [numpy_helper.from_array(np.array(True), 'yes')])


def with_function(_):
    f = helper.make_function('local', 'F', ['a'], ['b'], [helper.make_node('Identity', ['a'], ['b'])], [helper.make_opsetid('', 18)])
    m = graph_of([helper.make_node('F', ['x'], ['y'], domain='local'), helper.make_node('Slice', ['y', 'start', 'two', 'axis'], ['prob'])], domains=[helper.make_opsetid('local', 1)])
    m.functions.append(f)
    return m


def foreign(_):
    return graph_of([helper.make_node('Evil', ['x'], ['prob'], domain='com.example')], domains=[helper.make_opsetid('com.example', 1)])


def constant_outside(_):
    t = TensorProto(name='c', data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    e = t.external_data.add(); e.key, e.value = 'location', '/etc/hostname'
    return graph_of([helper.make_node('Constant', [], ['c'], value=t), helper.make_node('Slice', ['x', 'start', 'two', 'axis'], ['f']), helper.make_node('Add', ['f', 'c'], ['prob'])])


@pytest.mark.parametrize('make,text', [(outside, 'other files'), (constant_outside, 'other files'), (nested, 'loops or functions'), (foreign, 'not part of ONNX'),
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
    (lambda: bright(n_in=3), 'other inputs'), (lambda: bright(side=32), 'other inputs'), (lambda: bright(batch=4), 'other inputs'),
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
    with pytest.raises(InputError, match='no probabilities'): Segmenter(write_model(tmp_path, scaled(factor))).prob(Scan(head()[0][None], ('flair',)))


# The base install ----------------------------------------------------------------------------------------------------------------------------

BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}: raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Block())
"""
EXTRAS = ('torch', 'torchvision', 'fastai', 'monai', 'timm', 'pandas', 'matplotlib', 'scipy', 'sklearn', 'onnx', 'onnxscript', 'safetensors', 'streamlit', 'nilearn', 'IPython')


def python(code, root, **env):
    return subprocess.run([sys.executable, '-W', 'error', '-c', code], cwd=root, capture_output=True, text=True, env=os.environ | env)


def test_it_runs_without_any_extra(tmp_path, root, card_path):
    v, _ = head()
    write_stack(tmp_path/'p', v); write_nifti(tmp_path/'v_flair.nii.gz', v)
    code = BLOCK.format(blocked=EXTRAS) + f"""
import neuroseg
from neuroseg.infer import predict_cases
said = predict_cases([{str(tmp_path/'p')!r}, {str(tmp_path/'v_flair.nii.gz')!r}], {str(tmp_path/'out')!r})
print([s.get('error') for s in said], neuroseg.segment({str(tmp_path/'p')!r}).mask.any())
"""
    run = python(code, root, NEUROSEG_MODEL=str(card_path))
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == '[None, None] True'


def test_importing_the_package_costs_nothing(root):
    code = 'import time; t=time.process_time(); import neuroseg; s=time.process_time()-t; import sys; print(s<.05, "numpy" in sys.modules, "neuroseg.infer" in sys.modules, "segment" in dir(neuroseg))'
    run = python(code, root)
    assert run.stdout.split() == ['True', 'False', 'False', 'True'], run.stdout + run.stderr


def test_importing_infer_loads_no_reader(root):
    code = 'import neuroseg.infer, sys; print([m for m in ("nibabel", "pydicom", "onnxruntime", "PIL", "cc3d", "tqdm") if m in sys.modules])'
    run = python(code, root)
    assert run.stdout.strip() == '[]', run.stdout + run.stderr


def test_the_package_offers_segment_and_nothing_it_has_not():
    import neuroseg
    assert neuroseg.segment is segment
    with pytest.raises(AttributeError, match='no attribute'): neuroseg.segmnet


# The shipped model ----------------------------------------------------------------------------------------------------------------------------

shipped = pytest.mark.skipif(not shipped_models(), reason='no model is shipped in this tree')


@shipped
def test_shipped_models_open():
    for name in shipped_models():
        card = load_card(name)
        assert card.name == name and Segmenter(name).card == card


@shipped
def test_a_case_of_24_slices_stays_small(tmp_path, root):
    "Peak memory of a cold run, as a user would start it."
    rng = np.random.default_rng(0)
    folder = tmp_path/'case'; folder.mkdir()
    v, lesion = head((24, 256, 256))
    for i, p in enumerate(v): Image.fromarray(np.dstack([p, p + 10*rng.random(p.shape), p]).clip(0, 255).astype(np.uint8)).save(folder/f'case_{i}.tif')
    code = BLOCK.format(blocked=EXTRAS) + f"""
from neuroseg.infer import predict_cases
from neuroseg.core import peak_mb
said, = predict_cases({str(folder)!r}, {str(tmp_path/'out')!r}, model={shipped_models()[0]!r})
print(said.get('error'), peak_mb())
"""
    run = python(code, root)
    assert run.returncode == 0, run.stderr
    error, mb = run.stdout.split()
    assert error == 'None' and float(mb) < 500
