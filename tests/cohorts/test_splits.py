"Splits: by patient, fixed, reproducible, and a guard that fires."
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from neuroseg.cohorts.cases import Case
from neuroseg.core import ConfigError, LeakageError
from neuroseg.cohorts.cases import patient_id
from neuroseg.cohorts.integrity import SEALED
from neuroseg.cohorts.splits import (FOLDS, LESION_PX, case_folds, check_leakage, development, fold_split, sealed,
                                     stratified_folds, thesis_split)


def case(name, px=0, institution='PH', n=2):
    c = Case(patient_id(name), name, 'lgg', Path(name), tuple(Path(f'{name}_{i}.tif') for i in range(1, n+1)),
             (None,)*n, tuple(range(1, n+1)), institution)
    c.facts = type('Facts', (), dict(tumour_px=(px,)))
    return c


LGG = [case(f'{p}_19990101') for p in sorted({*FOLDS, *SEALED})]


def test_folds_never_change():
    "The fingerprint of the fixed assignment: whoever edits the table must mean it."
    text = '\n'.join(f'{p} {k}' for p, k in sorted(FOLDS.items()))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == '3a99d27e3d716705'
    assert hashlib.sha256('\n'.join(sorted(SEALED)).encode()).hexdigest()[:16] == '4f73f1dbc1faaa93'


def test_folds_are_what_the_method_makes_of_the_lesions():
    assert stratified_folds(LESION_PX, [p[5:7] for p in LESION_PX], LESION_PX.values()) == FOLDS


def test_folds_are_balanced():
    size = Counter(FOLDS.values())
    assert sorted(size.values()) == [17, 17, 18, 18, 18]
    for place in {p[5:7] for p in FOLDS}:
        n = [sum(p[5:7] == place and FOLDS[p] == k for p in FOLDS) for k in range(5)]
        assert max(n)-min(n) <= 1
    mean = [np.mean([LESION_PX[p] for p in FOLDS if FOLDS[p] == k]) for k in range(5)]
    assert max(mean)/min(mean) < 1.07


def test_nobody_is_sealed_and_in_a_fold():
    assert len(SEALED) == 22 and len(FOLDS) == 88 and not SEALED & set(FOLDS)
    assert Counter(p[5:7] for p in SEALED) == dict(DU=9, HT=7, CS=3, FG=3)


@pytest.mark.parametrize('n,n_folds,seed', [(10, 5, 0), (23, 5, 1), (60, 4, 2), (7, 7, 3), (9, 2, 4)])
def test_stratified_folds_in_general(n, n_folds, seed):
    rng = np.random.default_rng(seed)
    names, places, px = [f'p{i}' for i in range(n)], rng.choice(list('ABC'), n), rng.integers(0, 9999, n)
    fold = stratified_folds(names, places, px, n_folds, seed)
    assert set(fold) == set(names)
    for group in [names, *([p for p, q in zip(names, places) if q == o] for o in 'ABC')]:
        size = [sum(fold[p] == k for p in group) for k in range(n_folds)]
        assert max(size)-min(size) <= 1
    shuffled = rng.permutation(n)
    assert stratified_folds([names[i] for i in shuffled], places[shuffled], px[shuffled], n_folds, seed) == fold


def test_stratified_folds_refuse():
    with pytest.raises(ConfigError, match='p0 is listed twice'):
        stratified_folds(['p0', 'p0', 'p1'], 'AAA', [1, 2, 3], 2)
    for n_folds in (0, 1, 4):
        with pytest.raises(ConfigError, match=f'{n_folds} folds of 3 patients'):
            stratified_folds(['p0', 'p1', 'p2'], 'AAA', [1, 2, 3], n_folds)
    with pytest.raises(ValueError): stratified_folds(['p0', 'p1'], 'A', [1, 2], 2)


def test_every_development_patient_is_tested_once():
    tested = []
    for k in range(5):
        train, test = fold_split(LGG, k)
        assert len(train)+len(test) == 88 and not {c.patient for c in train} & {c.patient for c in test}
        tested += [c.patient for c in test]
    assert sorted(tested) == sorted(FOLDS)


def test_development_and_sealed_part_the_cohort():
    assert len(development(LGG)) == 88 and len(sealed(LGG)) == 22 and len(LGG) == 110


def test_a_part_of_the_cohort_keeps_its_folds():
    some = LGG[::3]
    for k in range(5):
        train, test = fold_split(some, k)
        assert all(FOLDS[c.patient] == k for c in test) and all(FOLDS[c.patient] != k for c in train)


def test_unknown_patients_get_folds_of_their_own():
    own = [case(f'patient{i}', px=i) for i in range(1, 11)]
    folds = case_folds(own + development(LGG)[:5])
    assert all(folds[c.patient] == FOLDS[c.patient] for c in development(LGG)[:5])
    assert Counter(folds[c.patient] for c in own) == {k: 2 for k in range(5)}
    with pytest.raises(ConfigError, match='5 folds of 3 patients'): fold_split(own[:3], 0)
    assert len(fold_split(own[:4], 1, n_folds=2)[1]) == 2


def test_two_scans_of_a_patient_stay_together():
    twice = [case(f'TCGA_PH_{i:04}_{y}0101', px=i) for i in range(6) for y in (2000, 2001)]
    train, test = fold_split(twice, 0, n_folds=3)
    assert Counter(c.patient for c in test).most_common()[-1][1] == 2
    assert not {c.patient for c in train} & {c.patient for c in test}


@pytest.mark.parametrize('fold', [-1, 5, '0', None])
def test_no_such_fold(fold):
    with pytest.raises(ConfigError, match='expected one of'): fold_split(LGG, fold)


# ---- leakage

def test_guard_fires():
    with pytest.raises(LeakageError, match='2 patient'): check_leakage(['a', 'b', 'c'], ['b', 'c', 'd'])
    with pytest.raises(LeakageError, match='TCGA_CS_4941'): check_leakage(['TCGA_CS_4941_19960909'], ['TCGA_CS_4941'])
    with pytest.raises(LeakageError, match='sealed'): check_leakage([*FOLDS, next(iter(SEALED))], ['x'])
    with pytest.raises(ConfigError, match='unknown'): check_leakage([], [], protocol='none')
    assert check_leakage(['a'], ['b']) == [] and check_leakage(list(FOLDS), sorted(SEALED)) == []
    assert check_leakage(['a', 'b', 'c'], ['c', 'b', 'd'], protocol='thesis') == ['b', 'c']


# ---- the thesis

@pytest.mark.parametrize('n', [5, 6, 10, 196, 3929])
@pytest.mark.parametrize('test_size,seed', [(.2, 42), (.25, 0), (1/3, 7)])
def test_thesis_split_is_scikit_learns(n, test_size, seed):
    train_test_split = pytest.importorskip('sklearn.model_selection').train_test_split
    train, test = thesis_split(n, test_size=test_size, seed=seed)
    assert [train.tolist(), test.tolist()] == train_test_split(range(n), test_size=test_size, random_state=seed)


def test_thesis_counts():
    train, test = thesis_split(3929)
    assert (len(train), len(test)) == (3143, 786) and sorted([*train, *test]) == list(range(3929))
    assert [len(s) for s in thesis_split(196)] == [156, 40]
    # without scikit-learn at hand: the first indices it draws
    assert test[:5].tolist() == [1835, 1490, 2063, 1178, 3749] and train[:5].tolist() == [2330, 2638, 3189, 1922, 3595]


@pytest.mark.parametrize('n,kw', [(0, {}), (1, {}), (10, dict(test_size=0)), (10, dict(test_size=1))])
def test_thesis_split_refuses_an_empty_side(n, kw):
    with pytest.raises(ConfigError, match='leave one side empty'): thesis_split(n, **kw)
