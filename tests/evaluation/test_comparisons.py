"Comparisons of trained recipes: standard errors, p values and corrections hold what they promise, by simulation."
import numpy as np
import pytest

pytest.importorskip('scipy')
from scipy import stats

from conftest import ROOT
from neuroseg.cohorts.tables import read_rows
from neuroseg.core import InputError
from neuroseg.evaluation.comparisons import (difference_scores, holm, paired_test, rejection_rates, Scores, scores_of,
                                             training_variance, TrainingVariance, verdict)

NONE = TrainingVariance(0., 0., 1)


def recipe(rng, own, sizes, trainings, tau, noise):
    "Scores of patients with own values, moved by trainings and noise."
    ends = np.cumsum([0, *sizes])
    tables = {k: own[a:b] + tau*rng.normal(size=(trainings, 1)) + noise*rng.normal(size=(trainings, b-a))
              for k, (a, b) in enumerate(zip(ends, ends[1:]))}
    return Scores(tables, {k: tuple(f'{k}-{i}' for i in range(n)) for k, n in enumerate(sizes)})


def experiment(rng, sizes, trainings, tau, noise=.02, spread=.03, effect=0.):
    "An arm and its base, with a difference of their own for each patient."
    n = sum(sizes)
    base = recipe(rng, np.full(n, .8), sizes, trainings, tau, noise)
    return recipe(rng, .8+effect+spread*rng.normal(size=n), sizes, trainings, tau, noise), base


def test_without_trainings_it_is_the_paired_t_test():
    rng = np.random.default_rng(0)
    arm, base = experiment(rng, (9, 8), 2, 0.)
    found, known = paired_test(arm, base, NONE), stats.ttest_rel(arm.means(), base.means())
    assert (found['p'], found['df']) == pytest.approx((known.pvalue, 16))
    assert (found['gain_lo'], found['gain_hi']) == pytest.approx(tuple(known.confidence_interval(.95)))


@pytest.mark.parametrize('sizes, trainings', [((17, 18), 2), ((30, 5), 2), ((2,)*5, 3), ((1,)*8, 2), ((12,), 4)])
def test_the_standard_error_is_the_true_one(sizes, trainings):
    "The variance of many differences is the mean of the variances that were stated, whatever the folds."
    rng, tau = np.random.default_rng(1), .02
    known = TrainingVariance(tau**2, tau**2, 10**6)
    found = [paired_test(*experiment(rng, sizes, trainings, tau), known) for _ in range(3000)]
    stated = np.mean([r['se_patients']**2+r['se_trainings']**2 for r in found])
    assert stated == pytest.approx(np.var([r['gain'] for r in found]), rel=.1)


@pytest.mark.parametrize('sizes, trainings, tau', [((17, 18), 2, .007), ((17, 18), 2, .03), ((2,)*5, 3, .02)])
def test_one_in_twenty_finds_something_where_nothing_is(sizes, trainings, tau):
    "And the 95 % interval contains the truth as often; the variance of trainings is estimated, not known."
    rng, effect, p, inside = np.random.default_rng(2), .02, [], []
    for _ in range(1500):
        arm, base = experiment(rng, sizes, trainings, tau, effect=effect)
        pool = [arm, base] + [recipe(rng, np.zeros(sum(sizes)), sizes, trainings, tau, .02)
                              for _ in range(18 if trainings==2 else 0)]
        r = paired_test(arm, base, training_variance(pool))
        p.append(2*stats.t.sf(abs(r['gain']-effect)/np.hypot(r['se_patients'], r['se_trainings']), r['df']))
        inside.append(r['gain_lo']<effect<r['gain_hi'])
    assert .03 < np.mean(np.array(p)<.05) < .07
    assert .93 < np.mean(inside) < .97


def test_leaving_out_the_trainings_finds_what_is_not_there():
    rng = np.random.default_rng(3)
    p = [paired_test(*experiment(rng, (17, 18), 2, .015), NONE)['p'] for _ in range(500)]
    assert np.mean(np.array(p)<.05) > .2


def test_shared_networks_bring_their_chance_once():
    "A threshold moves every network's score a little differently; its variance is that of the difference."
    rng, p = np.random.default_rng(4), []
    for _ in range(800):
        base = recipe(rng, np.full(35, .8), (17, 18), 2, .05, .02)
        arms = [Scores({k: v + .004*rng.normal(size=(2, 1)) + .03*rng.normal(size=v.shape[1])
                        for k, v in base.folds.items()}, base.patients) for _ in range(3)]
        moves = training_variance([difference_scores(a, base) for a in arms])
        p += [paired_test(a, base, moves, shared=True)['p'] for a in arms]
    assert .03 < np.mean(np.array(p)<.05) < .07


def test_the_variance_of_trainings_is_not_the_noise_of_patients():
    rng = np.random.default_rng(5)
    quiet = training_variance([recipe(rng, np.zeros(17), (17,), 2, 0., .05) for _ in range(400)])
    assert quiet.raw == pytest.approx(.05**2/17, rel=.2) and quiet.value < quiet.raw/5
    assert quiet.noise == pytest.approx(.05**2, rel=.1)
    loud = training_variance([recipe(rng, np.zeros(17), (17,), 3, .01, .05) for _ in range(400)])
    assert (loud.value, loud.df) == (pytest.approx(.01**2, rel=.2), 800)
    alone = training_variance([recipe(rng, np.zeros(3), (1, 1, 1), 2, .01, .02) for _ in range(400)])
    assert alone.value == alone.raw, 'of one patient a fold, noise and training cannot be told apart'


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(6)
    rows = [dict(fold=k, seed=s, patient=f'{k}{i}', dice=float(rng.uniform()))
            for k in (2, 3) for s in (0, 1) for i in range(4)]
    mixed = [rows[i] for i in rng.permutation(len(rows))]
    a, b = scores_of(rows), scores_of(mixed)
    assert a.patients == b.patients and np.allclose(a.means(), b.means())
    assert training_variance([a]).value == pytest.approx(training_variance([b]).value)


@pytest.mark.parametrize('spoil', ['other patient', 'other fold', 'missing patient'])
def test_different_patients_are_never_compared(spoil):
    rng = np.random.default_rng(7)
    rows = [dict(fold=2, seed=s, patient=p, dice=float(rng.uniform())) for s in (0, 1) for p in 'ABC']
    other = {'other patient': [r | dict(patient=r['patient'].replace('C', 'D')) for r in rows],
             'other fold': [r | dict(fold=3) for r in rows],
             'missing patient': [r for r in rows if r['patient']!='C']}[spoil]
    with pytest.raises(InputError, match='score both recipes on the same patients'):
        paired_test(scores_of(other), scores_of(rows), NONE)


def test_holm_by_its_definition():
    "Step down: reject while the smallest remaining p value is below alpha over the number of remaining comparisons."
    rng = np.random.default_rng(8)
    for _ in range(300):
        p = .08*rng.uniform(size=rng.integers(1, 9))
        rejected, order = set(), np.argsort(p)
        for step, i in enumerate(order):
            if p[i]*(len(p)-step) > .05: break
            rejected.add(int(i))
        assert {i for i, v in enumerate(holm(p)) if v<=.05} == rejected


def test_a_finding_of_an_unfinished_list_stays_one():
    rng = np.random.default_rng(9)
    for _ in range(300):
        p, k = rng.uniform(size=12)**4, int(rng.integers(1, 12))
        assert all(whole <= part+1e-12 for whole, part in zip(holm(p)[:k], holm(p[:k], n=12)))


def test_an_arm_that_is_not_trained_has_no_verdict_of_its_own():
    assert verdict({}) == verdict(dict(p_holm=None)) == 'not yet trained'
    assert verdict(dict(p_holm=.05, gain=1.)) == 'undecided'


@pytest.fixture(scope='module')
def measured():
    "Study 24's stored trainings: differences from the base, and how trainings scatter."
    rows = {}
    for f in sorted((ROOT/'reports/24_ablations/cpu/trainings').glob('*/patients.csv')):
        name, _, rest = f.parent.name.partition('_fold_')
        fold, seed = map(int, rest.split('_seed_'))
        rows.setdefault(name, []).extend(dict(fold=fold, seed=seed, patient=r['patient'], dice=r['dice'])
                                         for r in read_rows(f) if r['input']=='all sequences')
    scores = {name: scores_of(some) for name, some in rows.items()}
    base = scores['base']
    same = {k: s for k, s in scores.items() if s.patients==base.patients and k!='base'}
    moves = training_variance([base, *same.values()])
    return [s.means()-base.means() for s in same.values()], moves


def test_with_the_differences_of_study_24_few_findings_are_false(measured):
    differences, moves = measured
    usual = dict(fold_sizes=(17, 18), training_sd=moves.value**.5, noise_sd=moves.noise**.5, n_sim=100)
    null = rejection_rates(differences, **usual)
    assert .02 < null['single'] < .07 and null['family'] <= .08
    unstable = np.full(len(differences)+1, moves.value**.5)
    unstable[1:4] *= 2
    assert rejection_rates(differences, **usual | dict(training_sd=unstable))['family'] <= .1
    assert rejection_rates(differences, effect=.05, **usual)['holm'] > .6
