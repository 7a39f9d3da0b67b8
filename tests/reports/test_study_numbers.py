"Numbers and answers of each study on a few invented rows, worked by hand."
from types import SimpleNamespace

import pytest

for library in ('pandas', 'matplotlib'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.cohorts.tables import write_rows
from neuroseg.core import jsonable
from neuroseg.reports.study_notebook import find_study, study_cells


@pytest.fixture
def computed(tmp_path):
    "Numbers, headline and answer of a study on given tables."
    def compute(study, **tables):
        for name, rows in tables.items(): write_rows(tmp_path/f'{name}.csv', jsonable(rows))
        cells = study_cells(find_study(study, ROOT))
        n = cells.numbers(tmp_path)
        return SimpleNamespace(n=n, headline=cells.headline(n), answer=cells.answer(n))
    return compute


def close(*values): return pytest.approx(values, abs=1e-9)


def test_exploration(computed):
    "Two patients, one with a lesion of ten times the size and no post-contrast image."
    base = dict(institution='PH', n_slices=2, n_tumour=1, n_components=1, width_px=96, height_px=96, flair_median=60)
    patients = [base | dict(patient=p, fold=k, lesion_px=px, missing=missing)
                for k, (p, px, missing) in enumerate((('A', 100, ''), ('B', 1000, 'post')))]
    slices = [dict(patient=p, area_px=a) for p, a in (('A', 0), ('A', 100), ('B', 1000), ('B', 0))]
    near = [dict(seed=s, predictor='neighbours, half is tumour', unit=unit, dice=.8+.1*s)
            for s in (0, 1) for unit in ('slice', 'all pixels')]
    integrity = [dict(count='faults', found=0), dict(count='sealed patients set aside', found=0)]
    found = computed('20', patients=patients, slices=slices, neighbours=near, integrity=integrity)
    assert (found.n['patients'], found.n['tumour_share'], found.n['missing']) == (2, .5, dict(pre=0, post=1))
    assert 'has 10 times the pixels of the smallest' in found.answer and 'from 1 institution;' in found.answer
    assert 'score 0.850 where slices are averaged' in found.answer
    counts = {'patients', 'slices', 'tumour_slices', 'patients_with_sealed', 'institutions_with_sealed / PH'}
    assert found.n['measures'] == {path: dict(metric='count') for path in counts}


def thesis_tables(ended=1, **more):
    "Tables of study 21: two batches, one perfect and one empty; a patient without tumour in either mask is left out."
    networks, trained = ('fast', 'thesis', 'blind: neighbouring masks'), ('fast', 'thesis')
    order = dict(batch_8=.4, batch_16=.5, batch_64=.8, all_pixels=.9)
    step = {0: .06, 1: .02, 2: .04} # from batches of 16 to batches of 32, by order
    best = dict(best_epoch=1, best_valid_dice=.5, minutes=1., machine='a machine', arithmetic='float32')
    return dict(
        batches=[dict(network=w, batch=i, slices=32, soft_dice=d) for w in networks for i, d in enumerate((1., 0.))],
        patients=[dict(network=w, patient=p, dice=d) for w in networks for p, d in (('A', .9), ('B', .7), ('C', None))],
        history=[dict(network=w, epoch=e, slices_per_epoch=64, valid_loss=v, thesis_dice=1-v, train_s=30)
                 for w in trained for e, v in enumerate((.5, .6))],
        trainings=[dict(network=w, seed=42, parameters=31_042_369, epochs=2, ended=ended) | best for w in trained],
        orders=[dict(network=w, order=k, batch_32=.5+s, bar_32=.5+s-.01*k) | order
                for w in networks for k, s in step.items()],
        published=[dict(what=k, value=v) for k, v in (
            ('epochs', 36), ('best epoch', 31), ('best validation Dice, batches of 16', .82),
            ('Dice, `evaluate`', .85))],
        split=[dict(patients=3, train_slices=64, test_slices=64, test_patients=3, shared_patients=3, seed=42)],
        facts=[dict(fact='parameters', value=31_042_369)]) | more


def test_thesis(computed):
    found = computed('21', **thesis_tables())
    fast = found.n['fast']
    assert (fast['thesis_protocol']['dice'], fast['by_patient']['n'], fast['best_epoch']) == (.5, 2, 1)
    assert "mean Dice is 0.800 (n = 2)" in found.answer and 'ended after 2 epochs' in found.answer
    step, bar = (fast['orders'][k] for k in ('step from 16 to 32', 'progress bar minus returned'))
    assert (step['own_order'], step['mean'], step['sd']) == close(.06, .03, .02/2**.5)
    assert (step['as_large_as_theirs'], step['theirs'], bar['mean']) == close(.5, .03, -.015)  # 0.04, but not 0.02
    assert found.n['tuning'] is None
    said = found.n['measures']['thesis / thesis_protocol / bar_dice']
    assert (said['parameters'], said['complete'], said['unit']) == (31_042_369, True, 'progress bar of batches of 32')


def test_thesis_whose_training_has_not_ended(computed):
    "Its score is shown as that of an unfinished training, and answers no claim."
    found = computed('21', **thesis_tables(ended=0))
    assert 'of a training that has not ended' in found.headline and 'can be continued' in found.answer
    assert found.n['measures']['thesis / thesis_protocol / dice']['complete'] is False


def test_thesis_with_fine_tuning_of_two_seeds(computed):
    scores = dict(loss=.2, bar_dice=.79, bar_loss=.21)
    split = dict(patients=10, slices=196, train_slices=156, test_slices=40, data_hash='ab')
    tables = thesis_tables(tuning_split=[split],
        tuning=[dict(predictor='thesis, fine-tuned', seed=s, dice=d) | scores for s, d in ((42, .8), (43, .82))]
               + [dict(predictor='blind: nothing', seed=None, dice=.1) | scores])
    n = computed('21', **tables).n['tuning']
    assert (n['split']['test_slices'], n['seeds']['43']['dice'], n['blind: nothing']['dice']) == (40, .82, .1)


def test_protocol_audit(computed):
    "Scores rise by 0.01 from way to way; two patients, the second without tumour on the test slices."
    splits, networks = ('slices at random', 'patients apart'), ('fast', 'other')
    ways = [dict(checkpoint='last epoch', grid=g, unit=u, empty=e) for g in ('128 px, soft', 'original')
            for u in ('batch of 32', 'slice', 'tumour slice', 'all pixels') for e in ('counts 1', 'counts 0')]
    scores = [dict(predictor='network', network=m, split=s, seed=k, dice=.5+.01*i-.1*(m=='other')+.02*k) | w
              for m in networks for s in splits for k in (0, 1) for i, w in enumerate(ways)]
    scores += [dict(predictor=p, network='none', split=s, seed=0, dice=.6) | w | dict(checkpoint='none')
               for s in splits for p in ('nothing', 'neighbouring masks') for w in ways]
    steps = ('slices at random, batches of 32, soft', '5 other patients in training', '6 whole scans')
    ends = dict(difference=.08, difference_lo=.05, difference_hi=.11)
    found = computed('22', scores=scores,
        splits=[dict(split=s, fold=None, seed=42, test_slices=4) for s in splits],
        seeds=[dict(network=m, seed=k, difference=.07+.02*k) for m in networks for k in (0, 1)],
        patients=[dict(network=m, patient=p, fold=0, drawn=d, apart=a, whole=w)
                  for m in networks for p, d, a, w in (('A', .8, .72, .7), ('B', None, None, .5))],
        choices=[dict(network=m, factor='unit', level='batch of 32', is_thesis=1, split=s, dice=d)
                 for m in networks for s, d in zip(splits, (.8, .7))],
        road=[dict(network='fast', step=s, dice=d, dice_lo=d-.05, dice_hi=d+.05, difference=g, difference_lo=g,
                   difference_hi=g)
              for s, d, g in zip(steps, (.84, .7, .6), (None, -.14, -.1))],
        leak=[dict(network=m, score=w, patients=p, n=1, drawn=.8, apart=.72) | ends
              for m in networks for w, p in (('patient', 'all patients'), ('patient', 'fold 0'),
                                             ('evaluate', 'all patients'))],
        epochs=[dict(epoch=e, test=t, choice=c, train=.1) for e, t, c in ((1, .3, .2), (2, .2, .3))],
        checkpoints=[dict(rule=r, score='evaluate', dice=.8, gain=g, gain_lo=g-.01, gain_hi=g+.01)
                     for r, g in (('best on the test slices', 0), ('best on separate slices', .02))],
        scatter=[dict(predictor=p, split=s, seed=k, grid='128 px, soft', score='evaluate', dice=d)
                 for p, k in (('fast', 0), ('blind: nothing', None)) for s, d in ((42, .80), (0, .82))])
    one, other = (found.n['networks'][m] for m in networks)
    assert (one['slices at random']['usual'], one['slices at random']['spread']) == close(.8, .15)
    assert (one['slices at random']['honest']['n'], one['patients apart']['honest']['n']) == (1, 2)
    assert (one['patients apart']['honest']['mean'], other['slices at random']['lowest']['dice']) == close(.6, .41)
    leak = found.n['leak']['fast']
    assert leak['patient']['ci95'] == [.05, .11] and leak['folds']['0']['n'] == 1
    assert leak['by_seed'] == close(.07, .09) and found.n['checkpoint']['best_epoch'] == dict(test=2, choice=1)
    assert found.n['road']['6 whole scans']['step']['difference'] == -.1
    spread, said = found.n['scatter']['fast']['evaluate'], found.n['measures']
    assert (spread['n'], spread['mean'], spread['sd']) == close(2, .81, .02/2**.5)
    assert said['scatter / fast / evaluate'] == dict(
        metric='soft Dice', statistic='mean', empty='smooth 1', unit='batch of 32', grid='128 px, soft',
        split='slices at random', checkpoint='last epoch', network='fast', n=dict(patients=2, slices=4), seeds=[42, 0])
    honest = said['networks / fast / patients apart / honest / mean']
    assert (honest['n'], honest['seeds'], honest['split']) == (dict(patients=2), [0, 1], 'patients apart')
    assert 'the leak is +0.080 Dice (+0.050 to +0.110), n = 1' in found.answer
    assert 'by seed +0.070 and +0.090' in found.answer
    assert 'Whole scans of 2 held-out patients score 0.600 (' in found.answer
    assert len(found.answer.split()) <= 125


def test_learner(computed):
    "Three patients in two folds, each a little worse without the other sequences, one of them missed."
    cases = ((0, 'A', .9), (1, 'B', .8), (1, 'C', .4))
    base = dict(precision=.9, true_px=900, pred_px=800)
    patients = [base | dict(input=kind, fold=k, patient=p, dice=d-.05*(kind=='FLAIR only'), recall=d-.1,
                            confidence=.95 if d > .5 else .6, quoted_ten=int(p=='A'), institution='XY'[k])
                for kind in ('all sequences', 'FLAIR only') for k, p, d in cases]
    found = computed('23', patients=patients,
        one_network=[dict(fold=k, patient=p, dice=d-.02) for k, p, d in cases],
        folds=[dict(fold=0, searched=1, patients=1), dict(fold=1, searched=0, patients=2)],
        history=[dict(fold=k, epoch=0, train_s=60) for k in (0, 1)])
    n = found.n
    numbers = (-n['flair_only']['gain'], n['worst'][0]['dice'], n['train_minutes'],
               n['untouched']['scores']['dice']['mean'], n['quoted_ten']['mean'], n['one_network']['untouched']['mean'])
    assert numbers == close(.05, .4, 2., .6, .9, .58)
    assert (n['errors']['missed'], sum(n['errors'].values()), n['worst'][0]['error']) == (1, 1, 'missed')
    assert (n['institutions']['Y']['n'], n['institutions']['Y']['mean_ci95']) == (2, None)
    assert n['confidence']['warned'] == {'below 0.7': dict(n=1, warned=1), 'others': dict(n=2, warned=0)}
    assert 'our interval of the mean contains the first' in found.answer


def test_learner_from_maps(computed):
    "Masks are a fifth too large at 0.4 and of the right size at 0.5; 60 of 100 wrong voxels lie at the edge."
    cases = [dict(fold=k, patient=p) for k, p in ((0, 'A'), (0, 'B'), (1, 'C'), (1, 'D'), (1, 'E'))]
    base = dict(dice=.8, precision=.9, recall=.8, confidence=.95, true_px=99, pred_px=119, quoted_ten=0,
                institution='X')
    kinds = ('all sequences', 'FLAIR only')
    found = computed('23',
        patients=[c | base | dict(input=kind) for kind in kinds for c in cases],
        one_network=[c | dict(dice=.78) for c in cases],
        folds=[dict(fold=k, searched=0, patients=2) for k in (0, 1)],
        history=[dict(fold=k, epoch=0, member=m, train_s=60) for k in (0, 1) for m in (0, 1)],
        maps=[c | dict(input=kind, kb=500, sha256='0') for kind in kinds for c in cases],
        thresholds=[c | dict(input=kind, threshold=t, pred_px=px, true_px=99, tp=tp) for kind in kinds for c in cases
                    for t, px, tp in ((.4, 119, 95), (.5, 99, 90), (.6, 59, 55))],
        calibration=[c | dict(bin=b, n=1000, positives=y, logit=x) for c in cases
                     for b, y, x in ((0, 269, -2.), (4, 500, 0.), (8, 731, 2.))], # logits are twice too large
        errors=[c | dict(wrong_px=100, near_px=60, far_px=40, far_missed_px=10, far_extra_px=25, other_slices_px=5,
                         unseen_px=1, true_px=100) for c in cases],
        trained_on=[dict(patient=p, fold=0, model_fold=1, dice=d) for p, d in (('A', .6), ('A', .7), ('B', .9))],
        reading=[dict(patient='A', kind='label', reason='cut')],
        coverage=[dict(statistic='mean', method='x', n=k, n_samples=9, coverage=.9) for k in (10, 18, 88)])
    n, t = found.n, found.n['threshold']
    assert (set(t['by_fold'].values()), t['of_all']) == ({.5}, .5)
    sides = t['all sequences']
    assert (sides['before']['volume_ratio'], sides['after']['volume_ratio']) == close(1.2, 1.)
    assert (sides['before']['dice'], sides['after']['dice']) == close(190/218, 180/198)
    assert sides['change']['gain'] == pytest.approx(180/198-190/218)
    c = n['calibration']
    assert list(c['temperature'].values()) == pytest.approx([2., 2.], rel=.01)
    assert (c['before']['slope'], c['after']['slope']) == pytest.approx((.5, 1.), abs=.01)
    assert c['before']['ece'] > .09 > .002 > c['after']['ece']
    assert (n['edges']['near'], n['edges']['far_extra'], n['edges']['unseen']) == close(.6, .25, .01)
    assert (n['limits']['low_when_trained_on'], n['limits']['n_low']) == (['A'], 0)
    assert n['limits']['reading'] == {'label': 1, 'faint': 0, 'network': 0, 'not read': 1}
    assert n['coverage']['mean, x'] == {'10': .9, '18': .9, '88': .9} and n['maps'] == dict(n=10, mb=5.)
    assert n['measures']['all sequences / scores / dice / mean']['seeds'] == [0, 1]
    assert 'predicted over true volume from 1.20 to 1.00 and mean Dice by +0.038' in found.answer
    assert len(found.answer.split()) <= 125


def test_ablations(computed):
    "One change lowers the score, one is undecided, one is not trained; with FLAIR alone one raises it."
    def difference(kind, arm, factor, gain=None, p=None):
        tested = dict(n=2, dice=.8+gain, gain=gain, gain_lo=gain-.01, gain_hi=gain+.01) if p else {}
        said = {None: 'not yet trained', .01: 'higher' if gain and gain > 0 else 'lower', .6: 'undecided'}[p]
        blank = dict.fromkeys(('n', 'dice', 'gain', 'gain_lo', 'gain_hi'))
        return dict(input=kind, arm=arm, factor=factor) | blank | tested | dict(p=p and p/3, p_holm=p, verdict=said)
    arms = (('pooled', 'loss'), ('no_flips', 'prediction'), ('late', 'loss'))
    found = computed('24', arms=[dict(arm=a, factor=f) for a, f in arms],
        trainings=[dict(arm=a, done=n, planned=4, minutes=3*n) for a, n in (('base', 4), ('pooled', 4), ('late', 1))],
        base=[dict(fold=k, seed=s, patient=p, dice=d+.02*s) for s in (0, 1)
              for k, p, d in ((2, 'A', .9), (3, 'B', .7))],
        differences=[difference('all sequences', 'pooled', 'loss', -.03, .01),
                     difference('all sequences', 'no_flips', 'prediction', .005, .6),
                     difference('all sequences', 'late', 'loss'),
                     difference('FLAIR only', 'pooled', 'loss', .02, .01),
                     difference('FLAIR only', 'no_flips', 'prediction', 0., .6),
                     difference('FLAIR only', 'late', 'loss')],
        seeds=[dict(input='all sequences', arm='base', fold=k, seed=s, dice=.8+.02*s, gain=0.) for k in (2, 3)
               for s in (0, 1)],
        variance=[dict(kind='own networks', sd=.007, df=44), dict(kind="the base's networks", sd=.001, df=6)],
        power=[dict(true_effect=e, changes=3, n_sim=10, single=.5, holm=.25, family=.9) for e in ('no effect', '0.02')])
    n = found.n
    assert (n['base']['mean'], n['differences']['pooled']['gain'], n['minutes']) == close(.81, -.03, 27.)
    assert (n['base']['n'], n['open'], set(n['differences'])) == (2, ['late'], {'pooled', 'no_flips'})
    assert n['seeds'] == dict(base={2: pytest.approx(.02), 3: pytest.approx(.02)}, sd=.007, df=44)
    assert '1 lower the score, 0 raise it, 1 undecided. Not yet trained: 1.' in found.headline
    assert '1 lower the mean Dice of 0.810 (largest: `pooled` -0.030) and 0 raise it, with' in found.answer
    assert 'Undecided: 1, which does not mean that they have no effect. Not yet trained: 1.' in found.answer
    assert 'found in 25% of such experiments' in found.answer
    assert 'input 0 changes lower the score, 1 raise it' in found.answer
    assert n['measures']['base / mean']['seeds'] == [0, 1] and len(found.answer.split()) <= 125


def test_fine_tuning(computed):
    "Three patients, better after fine-tuning; the split gives a tenth."
    arms = {'shipped model': .7, 'fine-tuned, one left out': .8, 'fine-tuned': .79, 'fine-tuned, settings chosen': .79,
            'from ImageNet': .6, 'from scratch': .5}
    ways = {'before': .84, 'fine-tuned': .8, 'rehearsal': .83}
    found = computed('25',
        patients=[dict(arm=a, patient=p, dice=d) for a, d in arms.items() for p in 'ABC'],
        thesis_protocol=[dict(split=w, dice=d, n_slices=40) for w, d in
                         (('none, as it is', .1), ('slices at random', .85), ('slices at random, no image', .8),
                          ('patients apart, the same slices', .75))],
        seeds=[dict(arm=a, seed=s, group=0, patient=p, dice=arms[a]) for a in ('fine-tuned', 'from ImageNet')
               for s in (0, 1) for p in 'ABC'],
        comparisons=[dict(arm='fine-tuned', against=a, n=3, base=.79-g, dice=.79, gain=g, gain_lo=g-.01, gain_hi=g+.01,
                          p=p/3, p_holm=p, verdict=v, better=3, worse=0)
                     for a, g, p, v in (('its first network', .09, .012, 'higher'),
                                        ('from ImageNet', .19, .2, 'undecided'),
                                        ('from scratch', .29, .04, 'higher'))],
        curve=[dict(n_patients=k, draw=0, dice=.7+.01*k) for k in (0, 1, 2)],
        forgetting=[dict(cohort=c, arm=a, patient='A', dice=d) for c in ('first', 'new') for a, d in ways.items()],
        shift=[dict(change='as it is', dice=.7), dict(change='smoothed', dice=.71)],
        volumes=[dict(arm=a, patient='A', dice=.7, hd95_mm=5., targ_ml=100., pred_ml=p)
                 for a, p in (('as it is', 70.), ('fine-tuned', 90.))],
        chosen=[dict(group=k, candidate='all') for k in range(3)], candidates=[dict(candidate='all', dice=.8)],
        membership=[dict(auc=.6, n=10, lower=7, share_lo=.35, share_hi=.93)])
    assert (found.n['split_gives'], found.n['lost']['rehearsal']) == close(.1, .01)
    assert found.headline.startswith('Ten patients of another collection: mean Dice 0.700 as it is, 0.800 after')
    assert ('fine-tuning is better against the network as it is (+0.090, p = 0.012), '
            'undecided against a start from ImageNet (+0.190, p = 0.2), '
            'better against a start from nothing (+0.290, p = 0.04).') in found.answer
    assert 'For 7 of 10 patients the loss' in found.answer and len(found.answer.split()) <= 125
    said = found.n['measures']
    assert said['arms / fine-tuned / mean']['seeds'] == [0, 1] and said['arms / shipped model / mean']['seeds'] == [0]
    assert said['thesis_protocol / slices at random']['split'] == 'slices at random'
    assert said['thesis_protocol / none, as it is']['split'] == 'patients apart', 'it never met these patients'
    assert said['thesis_protocol / slices at random, no image']['checkpoint'] == 'none'


def test_deployment(computed):
    variants = (('float32', 0., 60.), ('float32, without the mirrored view', -.004, 80.), ('int8', -.02, 120.))
    found = computed('28',
        cold=[dict(run=i, seconds=s, peak_mb=200., slices=24) for i, s in enumerate((1.2, 1.4, 1.3))],
        parts=[dict(part='import', seconds=.3), dict(part='network', seconds=.7)],
        warm=[dict(setting='as shipped', slices_per_s=60., side_px=256),
              dict(setting='one thread', slices_per_s=35., side_px=256)],
        variants=[dict(variant=v, mb=7., slices_per_s=pace, dice=.8, gain=g, gain_lo=g-.01, gain_hi=g+.01, n=18)
                  for v, g, pace in variants])
    assert (found.n['cold_s']['median'], found.n['peak_mb']) == (1.3, 200.)
    assert 'The longest part is `network` with 0.70 s.' in found.answer
    assert 'the pace is 2.0 times that of float32' in found.answer and 'changes by -0.0200' in found.answer


def test_speed_run(computed):
    paces = {'thesis, float32': 1., 'plain U-Net': 2., 'fast, old gradients': 20., 'fast': 40.}
    found = computed('29',
        pace=[dict(label=k, slices_per_s=v, hours_of_thesis_schedule=25/v) for k, v in paces.items()],
        thesis_protocol=[dict(seed=s, dice=.85+s/100, minutes=3.) for s in (0, 1)],
        changes=[dict(change=c, dice=d, minutes=m, same_schedule=1)
                 for c, d, m in (('the record', .85, 3.), ('grey', .8, 4.))],
        unseen=[dict(seed=s, minutes=20.) for s in (0, 1)],
        patients=[dict(seed=s, input='all sequences', patient=p, dice=.8) for s in (0, 1) for p in 'ABC'])
    n = found.n
    assert (n['faster_than_thesis_network'], n['faster_than_plain_unet'], n['faster_by_gradients']) == (40., 20., 2.)
    assert n['again'] == dict(n=1, min_minutes=4., max_minutes=4.)
    assert found.headline.startswith("Raw slices to Dice 0.8500 by the thesis' protocol in 3.0 minutes, to a mean of "
                                     "0.800")
