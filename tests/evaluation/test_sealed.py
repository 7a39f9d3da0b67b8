"The sealed test: whole or not at all, never for a model that may have seen it, and the figures of its first opening."
import csv, shutil
from dataclasses import replace

import numpy as np
import pytest
from sealed_phantoms import NAMES, write_sealed

from conftest import ROOT
from neuroseg.cohorts.cohort import Cohort
from neuroseg.cohorts.integrity import SEALED
from neuroseg.cohorts.splits import FOLDS
from neuroseg.cohorts.tables import read_rows
from neuroseg.core import ConfigError, DataError, jsonable, LeakageError, read_json
from neuroseg.evaluation import sealed as room
from neuroseg.evaluation.sealed import (check_reason, check_untrained, check_whole, draws_as_kind, INPUTS, sealed_cases,
                                        sealed_rows, sealed_summary, training_set)
from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.result import Segmenter

FIRST = ROOT/'reports/27_validation/sealed_1'


@pytest.fixture(scope='module')
def lgg(tmp_path_factory): return write_sealed(tmp_path_factory.mktemp('sealed'))


def named(folder): return sorted(p for p in folder.iterdir() if p.is_dir())


def test_all_sealed_patients_and_nobody_else(lgg, tmp_path):
    both = shutil.copytree(lgg, tmp_path/'both')
    write_sealed(tmp_path/'other', ['TCGA_CS_4941'])
    shutil.copytree(tmp_path/'other'/'kaggle_3m'/'TCGA_CS_4941_20000101', both/'TCGA_CS_4941_20000101')
    assert {c.patient for c in sealed_cases(Cohort.open(both))} == SEALED


@pytest.mark.parametrize('gone', [1, 5, 21])
def test_a_part_is_refused_with_its_number(tmp_path, gone):
    folder = write_sealed(tmp_path, NAMES[gone:])
    with pytest.raises(DataError, match=f'^{22-gone} of the 22 sealed patients are in .*complete LGG cohort'):
        sealed_cases(Cohort.open(folder))


def test_two_scans_of_one_patient_are_refused(lgg, tmp_path):
    folder = shutil.copytree(lgg, tmp_path/'lgg')
    old = named(folder)[0]
    new = folder/old.name.replace('20000101', '20010101')
    shutil.copytree(old, new)
    for f in list(new.iterdir()): f.rename(f.with_name(f.name.replace('20000101', '20010101')))
    with pytest.raises(DataError, match='22 sealed patients have 23 scans'): sealed_cases(Cohort.open(folder))


@pytest.mark.parametrize('damage', ['mask gone', 'mask cut', 'slice empty', 'image cut'])
def test_a_damaged_file_is_found_before_anybody_is_scored(lgg, tmp_path, damage):
    folder = shutil.copytree(lgg, tmp_path/'lgg')
    last = named(folder)[-1]
    mask, image = next(last.glob('*_3_mask.tif')), next(last.glob('*_3.tif'))
    if damage == 'mask gone': mask.unlink()
    elif damage == 'mask cut': mask.write_bytes(mask.read_bytes()[:100])
    elif damage == 'slice empty': image.write_bytes(b'')
    else: image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError, match='fault.s. in the sealed cases, the first: '):
        check_whole(Cohort.open(folder).sealed)


def test_a_cohort_with_other_masks_is_not_the_test_of_an_earlier_opening(lgg, tmp_path):
    "Synthetic patients under the true names can never be entered behind the first opening."
    cases = Cohort.open(lgg).sealed
    former = [dict(patient=c.patient, n_slices=c.n_slices, targ_px=c.lesion_px) for c in cases]
    check_whole(cases, former)
    for change in ({'targ_px': former[7]['targ_px']+1}, {'n_slices': 99}):
        with pytest.raises(DataError, match='1 sealed patients have other slices or masks'):
            check_whole(cases, [*former[:7], former[7] | change, *former[8:]])
    with pytest.raises(DataError, match='22 sealed patients have other'):
        check_whole(cases, read_rows(FIRST/'patients.csv'))


def card(**facts): return replace(load_card(), name='mine', facts=facts)


START = dict(name='neuroseg-lgg', version='1', sha256=load_card().facts['sha256']['safetensors'])


@pytest.mark.parametrize('split', [
    dict(train=['TCGA_CS_4942']), dict(train=['TCGA_CS_4942_19970222']), dict(train=['PH_1', 'TCGA_HT_A5RC']),
    dict(train=['PH_1'], test=['TCGA_HT_A5RC'])])
@pytest.mark.parametrize('start', [None, START])
def test_a_model_that_saw_a_sealed_patient_is_refused(split, start):
    with pytest.raises(LeakageError, match='trained on 1 of the sealed patients'):
        check_untrained(card(split=split, start=start))


@pytest.mark.parametrize('facts', [
    {}, dict(split=None), dict(split={}), dict(split=dict(train=[])), dict(split=dict(train=88)),
    dict(split=dict(train=10, keyed=['ab'])), dict(split=dict(train='TCGA_CS_4941')),
    dict(split=dict(train=['PH_1']), start=dict(name='theirs', sha256='0'*64)),
    dict(split=dict(train=['PH_1']), start=dict(START, sha256='0'*64)),
    dict(split=dict(train=['PH_1']), start=dict(name='neuroseg-lgg'))])
def test_a_model_that_does_not_tell_is_refused(facts):
    assert training_set(facts) is None
    with pytest.raises(LeakageError, match='does not name every patient'): check_untrained(card(**facts))


def test_the_shipped_model_and_its_children_pass():
    check_untrained(load_card())
    check_untrained(card(split=dict(train=['PH_1']), start=START))
    assert training_set(dict(split=dict(train=['PH_1']), start=START)) == {'PH_1', *FOLDS}


@pytest.mark.parametrize('reason', [None, '', ' ', 'why', 'Release.', 'aaaa '*10, 'x'*50, 'one two three', 'a b c d e',
                                    'word '*61 + 'many more', 'A reason\x07 with a bell in it'])
def test_no_reason_no_test(reason):
    with pytest.raises(ConfigError, match='is opened for a reason'): check_reason(reason)


def test_there_is_one_way_of_scoring(lgg, monkeypatch):
    asked = []
    monkeypatch.setattr(room, 'evaluate_cases', lambda cases, s, **how: asked.append(how) or [dict(patient='a')])
    segmenter = Segmenter()
    rows = sealed_rows(Cohort.open(lgg).sealed, segmenter)
    assert [r['input'] for r in rows] == list(INPUTS) and [h['flair_only'] for h in asked] == [False, True]
    assert {(h['empty'], h['threshold'], h['surface']) for h in asked} == {(1., segmenter.card.threshold, False)}


def test_draws_are_as_the_exact_count(root):
    rng = np.random.default_rng(3)
    others, scores = rng.random(40), rng.random(6)*.5+.3
    got = draws_as_kind(scores, others, n_draws=40_000, seed=1)
    assert got['worst'] == pytest.approx(got['worst_exact'], abs=4*(got['worst_exact']/40_000)**.5)
    assert got == draws_as_kind(scores, others, n_draws=40_000, seed=1)
    assert draws_as_kind(others, others, n_draws=100)['worst'] == 1
    assert draws_as_kind([1.], [0.]*9, n_draws=100)['worst'] == 0


# The first opening ----------------------------------------------------------------------------------------------------

def recomputed():
    patients, others = (read_rows(FIRST/name) for name in ('patients.csv', 'out_of_fold.csv'))
    return jsonable(sealed_summary(patients, others, seeds=[0]))


def test_the_figures_of_the_first_opening():
    "As they were stated on the day, to their three digits."
    found = recomputed()
    whole, flair = found['stated']['all sequences'], found['stated']['FLAIR only']
    low, high = whole['mean_ci95']
    assert [f'{v:.3f}' for v in (whole['mean'], low, high, whole['median'], whole['worst'], flair['mean'])] == [
        '0.858', '0.834', '0.882', '0.875', '0.746', '0.855']
    assert whole['n'] == flair['n'] == 22 and whole['worst_patient'] == 'TCGA_CS_6665'
    together = found['together']['all sequences']
    assert (together['n'], f"{together['mean']:.4f}") == (110, '0.8425')
    assert 1/90 < found['as kind']['worst_exact'] < 1/75  # about once in eighty draws


def test_the_summary_of_the_first_opening_is_what_its_tables_give():
    "All but intervals whose method was replaced by a better one since; those that the ledger states have their own."
    stored, found = read_json(FIRST/'summary.json'), recomputed()
    for part in ('n', 'split', 'empty', 'seeds', 'stated', 'out of fold', 'together', 'as kind'):
        assert stored[part] == found[part], part
    for kind in INPUTS:
        a, b = stored[kind], found[kind]
        if a['conditions'] == b['conditions']: assert a == b
        for key, score in a['scores'].items():
            assert {k: v for k, v in score.items() if 'ci95' not in k} == {
                k: v for k, v in b['scores'][key].items() if 'ci95' not in k}


def test_the_rows_of_the_first_opening_are_the_sealed_patients_and_their_counts():
    rows = list(csv.DictReader(open(FIRST/'patients.csv')))
    assert {(r['input'], r['patient']) for r in rows} == {(k, p) for k in INPUTS for p in SEALED} and len(rows) == 44
    for r in rows:
        tp, fp, fn = (int(r[k]) for k in ('tp', 'fp', 'fn'))
        assert float(r['dice']) == pytest.approx(2*tp/(2*tp+fp+fn), abs=1e-12)
    others = read_rows(FIRST/'out_of_fold.csv')
    assert {r['patient'] for r in others} == set(FOLDS) and len(others) == 2*88


def test_there_is_no_image_of_a_sealed_patient():
    names = sorted(f.relative_to(FIRST).as_posix() for f in FIRST.rglob('*') if f.is_file())
    assert names == ['figures/sealed.png', 'opening.json', 'out_of_fold.csv', 'patients.csv', 'summary.json']
