"Study 22 finds a leak that was put into invented patients, and its road adds up."
import numpy as np
import pytest

for library in ('pandas', 'matplotlib'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.cohorts.tables import write_rows
from neuroseg.core import jsonable
from neuroseg.reports.study_notebook import find_study, tagged_cells

SPLITS = DRAWN, APART = 'slices at random', 'patients apart'
LEAK = .08 # Mean over patients


@pytest.fixture(scope='module')
def study():
    "The names that the cells tagged `numbers` define."
    space = {}
    for source in tagged_cells(find_study('22', ROOT), 'numbers'): exec(source, space)
    return space


def slice_rows(split, patients, pixels, dices, network='fast', checkpoint='last epoch', per_px=4):
    "Masks with this Dice on each slice; on the scanner's grid with `per_px` pixels for one."
    rows = []
    for who, n, d in zip(patients, pixels, dices):
        soft = dict(both=n*d, pred=n, true=n, found=n, there=n)
        columns = {f'{kind}_{k}': v*f for kind, f in (('soft', 1), ('hard', per_px)) for k, v in soft.items()}
        rows.append(dict(network=network, split=split, seed=0, checkpoint=checkpoint, patient=who) | columns)
    return rows


def cohort(folder, seed, n=88, leak=LEAK):
    "Invented patients whose Dice is higher by about `leak` for the network that learnt from their other slices."
    rng = np.random.default_rng(seed)
    of = rng.permutation(np.repeat(np.arange(n), rng.integers(3, 12, n)))
    pixels = np.where(rng.random(len(of)) < .35, rng.lognormal(6, .8, n)[of], 0.)
    apart = np.clip(1-rng.gamma(1.5, .12, n), .05, .88)
    drawn = apart + rng.normal(leak, .1, n)
    names = np.array([f'P{k:03}' for k in range(n)])
    has = np.bincount(of, pixels, minlength=n) > 0
    write_rows(folder/'slices.csv', [r for split, d in ((DRAWN, drawn), (APART, apart))
                                     for r in slice_rows(split, names[of], pixels, d[of])])
    people = [dict(network='fast', patient=p, fold=k % 5, drawn=d, apart=a, whole=a, better=None)
              for k, (p, d, a) in enumerate(zip(names, drawn, apart))]
    for r, h in zip(people, has): r.update({} if h else dict(drawn=None, apart=None))
    write_rows(folder/'patients.csv', jsonable(people))


def covered(study, folder, rows_of, seeds):
    "How many of several cohorts have an interval of the leak that holds the true one; and their rows."
    rows = []
    for seed in seeds:
        cohort(folder, seed)
        rows.append(next(r for r in rows_of(folder) if r['score'] != 'slice' and r['patients'] == 'all patients'))
    return sum(r['difference_lo'] <= LEAK <= r['difference_hi'] for r in rows), rows


def test_a_known_leak_is_in_the_interval_over_patients(study, tmp_path):
    hits, rows = covered(study, tmp_path, lambda f: study['leak_of_patients'](f, 'fast'), range(25))
    assert hits >= 20 # of 25 at 95 %: fewer once in eight hundred runs
    assert all(r['difference_lo'] > 0 for r in rows) # a leak of 0.08 is seen with 88 patients
    assert np.mean([r['difference'] for r in rows]) == pytest.approx(LEAK, abs=.01)
    width = np.mean([r['difference_hi']-r['difference_lo'] for r in rows])
    assert width == pytest.approx(2*1.96*.1/82**.5, rel=.15) # paired: the spread of differences, not of scores


def test_a_known_leak_is_in_the_interval_of_batches(study, tmp_path):
    "The thesis' own score, which pools slices of several patients."
    hits, rows = covered(study, tmp_path, lambda f: study['leak_of_scores'](f, 'fast', 150), range(10))
    assert hits >= 7 and all(r['score'] == 'evaluate' and r['n'] == 88 for r in rows)


def test_without_a_leak_none_is_reported(study, tmp_path):
    said = []
    for seed in range(15):
        cohort(tmp_path, seed, leak=0.)
        row = study['leak_of_patients'](tmp_path, 'fast')[0]
        said.append(row['difference_lo'] > 0 or row['difference_hi'] < 0)
    assert sum(said) <= 3


def test_the_folds_are_those_of_the_patients(study, tmp_path):
    cohort(tmp_path, 0)
    whole, *folds = study['leak_of_patients'](tmp_path, 'fast')
    assert [r['patients'] for r in folds] == [f'fold {k}' for k in range(5)]
    assert sum(r['n'] for r in folds) == whole['n'] < 88
    assert sum(r['n']*r['difference'] for r in folds)/whole['n'] == pytest.approx(whole['difference'])


def test_the_road_by_hand(study, tmp_path):
    """Two patients of a tumour slice of 100 pixels and an empty slice each. The network has Dice 0.8, with other
    patients in training 0.6, on whole scans 0.5, by another recipe 0.9."""
    whose, pixels = ['A', 'A', 'B', 'B'], [100., 0., 0., 100.]
    people = [dict(network='fast', patient=p, fold=0, drawn=.8, apart=.6, whole=.5, better=.9) for p in 'AB']
    write_rows(tmp_path/'slices.csv', [r for split, d in ((DRAWN, .8), (APART, .6))
                                       for r in slice_rows(split, whose, pixels, [d]*4)])
    write_rows(tmp_path/'patients.csv', people)
    rows = study['road_rows'](tmp_path, 'fast', 20)
    alone = ((2*80+1)/(200+1) + 1)/2
    dices = [(2*160+1)/(400+1), alone, .8, .8, .8, .6, .5, .9]
    assert [r['dice'] for r in rows] == pytest.approx(dices)
    assert [r['step'] for r in rows] == list(study['STEPS'])
    assert [r['difference'] for r in rows[1:]] == pytest.approx(np.diff(dices)) and rows[0]['difference'] is None
    assert (rows[5]['difference_lo'], rows[5]['difference_hi']) == pytest.approx((-.2, -.2)) # the same for everyone
    # without another recipe the road ends before it
    write_rows(tmp_path/'patients.csv', jsonable([r | dict(better=None) for r in people]))
    assert len(study['road_rows'](tmp_path, 'fast', 5)) == 7


def test_the_steps_of_the_road_add_up(study, tmp_path):
    cohort(tmp_path, 1)
    rows = study['road_rows'](tmp_path, 'fast', 60)
    assert sum(r['difference'] for r in rows[1:]) == pytest.approx(rows[-1]['dice']-rows[0]['dice'])
    assert all(r['dice_lo'] <= r['dice'] <= r['dice_hi'] for r in rows)
    leak = study['leak_of_patients'](tmp_path, 'fast')[0]
    assert rows[5]['difference'] == pytest.approx(-leak['difference']) # the leak of the road is the leak of the figure


def test_what_the_choice_of_an_epoch_gains(study, tmp_path):
    rules = {'best on the test slices': .8, 'best on separate slices': .75, 'last epoch': .7}
    write_rows(tmp_path/'slices.csv', [r for rule, d in rules.items() for r in slice_rows(
        DRAWN, list('AABB'), [100.]*4, [d]*4, network='fast, long', checkpoint=rule)])
    rows = study['checkpoint_rows'](tmp_path, 'fast, long', 20)
    gains = {r['rule']: r['gain'] for r in rows if r['score'] == 'patient'}
    assert gains == pytest.approx({'best on the test slices': 0, 'best on separate slices': .05, 'last epoch': .1})
    batch = next(r for r in rows if r['rule'] == 'last epoch' and r['score'] == 'evaluate')
    assert batch['gain'] == pytest.approx(2*.1*400/(800+1))


def test_the_scatter_counts_each_split_once(study):
    "Five splits, two more seeds on the first: the splits are one spread, the seeds of the first another."
    pandas = pytest.importorskip('pandas')
    dices = {(42, 0): .80, (0, 1): .82, (1, 2): .84, (2, 3): .86, (3, 4): .88, (42, 1): .81, (42, 2): .79}
    f = pandas.DataFrame([dict(predictor='fast', grid='128 px, soft', score='evaluate', split=s, seed=k, dice=d)
                          for (s, k), d in dices.items()])
    found = study['scatter_numbers'](f)['fast']['evaluate']
    assert (found['n'], found['mean'], found['sd']) == pytest.approx((5, .84, .001**.5))
    parts = study['seed_numbers'](f)['evaluate']
    assert (parts['n_splits'], parts['n_seeds'], parts['seed_sd']) == pytest.approx((5, 3, .01))
    assert parts['split_sd'] == pytest.approx((.001-.0001)**.5)
