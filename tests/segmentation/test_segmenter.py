"One scan through a model: the lesion is found, and neither threads nor batches nor a former model change it."
import nibabel as nib
import numpy as np
import pytest
from bright_model import bright, head, overlap, scaled, write_model

from neuroseg.core import ConfigError, InputError
from neuroseg.scans.stacks import Scan
from neuroseg.segmentation import result
from neuroseg.segmentation.card import load_card, shipped_models
from neuroseg.segmentation.quality import binarize
from neuroseg.segmentation.result import Segmenter, segment
from neuroseg.segmentation.batch import predict_cases
from neuroseg.cohorts.cases import find_cases
from neuroseg.evaluation.scores import evaluate_case


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


@pytest.fixture(scope='module')
def segmenter(card_path): return Segmenter(card_path)


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
    for name, a in (('flair', v), ('mask', result.mask)):
        nib.save(nib.Nifti1Image(np.asarray(a, np.float32).transpose(2,1,0), np.diag([1.,1.,5.,1.])),
                 d/f'anna_{name}.nii.gz')
    said, = predict_cases(d/'anna_flair.nii.gz', tmp_path/'out', model=path)
    assert (said['n_components'], said['lesion_px'], said['component_share']) == (n, result.mask.sum(), component_share)
    case, = find_cases(d, 'nifti')
    assert evaluate_case(case, Segmenter(path), empty=1., surface=False)['dice'] == 1


def test_a_changed_card_is_a_changed_model(tmp_path):
    "Though the network is the same file."
    scan = Scan(two_lesions()[None], ('flair',))
    for component_share, n in ((0., 2), (1., 1), (0., 2)):
        assert segment(scan, model=write_model(tmp_path, bright(),
                                               component_share=component_share)).stats['n_components'] == n


@pytest.mark.parametrize('t', [0, 1, -1, 50, float('nan')])
def test_a_threshold_that_is_no_probability_is_refused(segmenter, t):
    with pytest.raises(ConfigError, match='threshold'):
        segmenter.segment(Scan(head()[0][None], ('flair',)), threshold=t)


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


shipped = pytest.mark.skipif(not shipped_models(), reason='no model is shipped in this tree')


@shipped
def test_shipped_models_open():
    for name in shipped_models():
        card = load_card(name)
        assert card.name == name and Segmenter(name).card == card
