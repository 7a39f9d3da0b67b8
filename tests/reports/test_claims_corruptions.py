"""Whatever is changed in a small ledger, `neuroseg claims` finds it, most of it even after every page was written anew.

The small repository has one study with two runs, published numbers and claims on them, and a page that quotes a run.
"""
import contextlib, shutil

import pytest

for library in ('pandas', 'yaml', 'IPython'): pytest.importorskip(library)
import yaml

from neuroseg.cohorts.tables import read_rows, write_rows
from neuroseg.core import NeurosegError, read_json, write_json
from neuroseg.reports import checks, claims, published as published_facts
from neuroseg.reports.published import fingerprint
from neuroseg.reports.reproduce import write_summaries
from neuroseg.reports.stored_run import file_hashes, summary

NUMBERS = '''
from neuroseg.evaluation.protocols import spread
from neuroseg.reports.measures import WAYS, measures
from neuroseg.reports.stored_run import table

def mean_of(v): return dict(mean=float(v.mean()), median=float(v.median()),
                            mean_ci95=[float(v.mean()-.03), float(v.mean()+.03)],
                            median_ci95=[float(v.median()-.03), float(v.median()+.03)])

def numbers(run):
    f, people, facts = (table(run, name) for name in ('scores', 'patients', 'facts'))
    n = dict(facts=dict(zip(facts['fact'], facts['value'])), people={k: mean_of(people[k]) for k in ('dice', 'recall')},
             scatter={})
    said = {f'facts / {k}': dict(metric='count') for k in n['facts']}
    cases = dict(patients=len(people), slices=int(people['slices'].sum()))
    for (network,way),g in f.groupby(['network', 'way'], sort=False):
        first, blind = g.iloc[0], network.startswith('blind')
        of = WAYS[way] | dict(grid='128 px, soft', split=first['split_kind'], network=network, n=cases,
                              checkpoint='none' if blind else 'best on the test set',
                              seeds=[int(s) for s in g['split']])
        if network=='thesis': of |= dict(parameters=int(first['parameters']), complete=bool(first['complete']))
        n.setdefault(network, {})[way] = float(first['dice'])
        said[f'{network} / {way}'] = of | dict(seeds=of['seeds'][:1])
        if len(g)>1:
            n['scatter'].setdefault(network, {})[way] = spread(g['dice'])
            said[f'scatter / {network} / {way}'] = of
    patient = dict(unit='patient', empty='never meet', grid='original', split='patients apart', checkpoint='last epoch',
                   network='ours', n=dict(patients=len(people)), seeds=[0])
    said |= {f'people / {k} / {s}': patient | dict(metric={'dice': 'Dice'}.get(k, k), statistic=s)
             for k in n['people'] for s in ('mean', 'median')}
    return n | dict(measures=measures(n, said))
'''
ANSWER = "def headline(n): return 'Scores.'\ndef answer(n): return 'Scores.'"
PAGE = '''from IPython.display import Markdown
from neuroseg.reports.measures import measured
from neuroseg.reports.published import published
mean = measured('10_scores/cpu', 'people / dice / mean', metric='Dice', statistic='mean', unit='patient')
Markdown(f"Mean Dice {mean:.3f}; published {published('dice-evaluate')}.")'''
BY_PROTOCOL = dict(source='thesis', where='README', what='Dice', metric='soft Dice', statistic='mean', empty='smooth 1',
                   grid='128 px, soft', split='slices at random', checkpoint='best on the test set', network='thesis',
                   parameters=31_042_369, n=dict(patients=110, slices=786))
FACTS = {
    'dice-bar': BY_PROTOCOL | dict(value=.8443, unit='progress bar of batches of 32'),
    'dice-evaluate': BY_PROTOCOL | dict(value=.8549, unit='batch of 32'),
    'best-valid': BY_PROTOCOL | dict(value=.8203, unit='batch of 16'),
    'loss-bar': dict(source='thesis', where='notebook', what='loss', value=.1557, defined='shown'),
    'loss-readme': dict(source='thesis', where='README', what='loss', value=.557, defined='shown'),
    'record': dict(source='others', where='page', what='Dice', value=.836, metric='Dice', statistic='mean',
                   unit='patient', empty='never meet', grid='original', split='patients apart', checkpoint='not said',
                   network='theirs', n=dict(patients=110)),
    'counts': dict(source='thesis', where='notebook', what='slices', metric='count',
                   value=dict(train=3143, test=786)),
    'earlier': dict(source='thesis', where='README', what='Dice', value=.92, defined='nothing is said')}
OWN, SPREAD = '10_scores/cpu#thesis / ', '10_scores/cpu#scatter / fast / '
CLAIMS = [
    dict(id='dice-bar', ours=[OWN+'progress bar', '10_scores/cpu#fast / progress bar'],
         tolerance=SPREAD+'progress bar'),
    dict(id='dice-evaluate', ours=[OWN+'evaluate', '10_scores/cpu#fast / evaluate'], tolerance=SPREAD+'evaluate'),
    dict(id='best-valid', ours=[OWN+'batches of 16'], tolerance=SPREAD+'batches of 16'),
    dict(id='loss-bar', needs='its batches'), dict(id='loss-readme', misprint_of='loss-bar'),
    dict(id='record', ours=['10_scores/cpu#people / dice / mean'], tolerance='interval'),
    dict(id='counts', ours={k: f'10_scores/cpu#facts / {k}' for k in ('train', 'test')}, tolerance='exact'),
    dict(id='earlier', needs='a notebook that shows it')]
WAYS = {'progress bar': .845, 'evaluate': .852, 'batches of 16': .79}
EXPECTED = {'dice-bar': 'reproduced', 'dice-evaluate': 'reproduced', 'best-valid': 'not reproduced',
            'loss-bar': 'cannot be checked here', 'loss-readme': 'misprint', 'record': 'reached by another network',
            'counts': 'reproduced', 'earlier': 'cannot be checked here'}


def code(source, *tags):
    return dict(cell_type='code', source=source, metadata=dict(tags=list(tags)), outputs=[], execution_count=None)


def write_run(folder, split_kind='slices at random'):
    "Tables, an executed notebook, the record with its fingerprints, and the summary of the tables."
    scores = [dict(network=network, parameters=31_042_369, complete=1, split_kind=split_kind, way=way, split=s,
                   dice=dice+shift+(.004*(-1)**k if k else 0), note='as stored')
              for network, shift, splits in (('thesis', 0, [42]), ('fast', .002, [42, 0, 1, 2, 3]),
                                             ('blind: nothing', -.5, [42, 0, 1, 2, 3]))
              for way, dice in WAYS.items() for k, s in enumerate(splits)]
    people = [dict(patient=f'P{i}', slices=7 if i else 19, dice=.9-.15*(i % 2)+.02*(i % 3), recall=.95-.001*i)
              for i in range(88)]
    for name, rows in (('scores', scores), ('patients', people),
                       ('facts', [dict(fact='train', value=3143), dict(fact='test', value=786)])):
        write_rows(folder/f'{name}.csv', rows)
    write_json(folder/'notebook.ipynb', dict(cells=[code('n_epochs = 50\nprofile = "cpu"', 'injected-parameters')]))
    record = dict(study='10_scores', params=dict(n_epochs=50), dirty=False, commit='0'*40, started='2026-01-01',
                  seconds=1)
    write_json(folder/'run.json', record)
    write_json(folder/'run.json', record | dict(files=file_hashes(folder)))
    write_json(folder/'summary.json', summary(folder))


def shown(cells):
    "The page of a notebook: prose, and what its cells say."
    return '\n\n'.join(''.join(c['source']) if c['cell_type'] == 'markdown' else checks._saved(c) for c in cells) + '\n'


def write_pages(root):
    "Run the page's notebook and write the README from it, as `make readme` does."
    book = read_json(root/'nbs/index.ipynb')
    said = checks._said_now(book['cells'], root)
    for i, text in said.items():
        if isinstance(text, str): book['cells'][i]['outputs'] = [dict(data={'text/markdown': text})]
    write_json(root/'nbs/index.ipynb', book)
    (root/'README.md').write_text(shown(book['cells']), encoding='utf-8')


def write_published(root, facts):
    text = yaml.safe_dump(dict(sha256=fingerprint(facts), facts=facts), sort_keys=False)
    (root/'reports/published.yml').write_text(text, encoding='utf-8')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    "The small repository, without a fault."
    root = tmp_path_factory.mktemp('ledger')
    (root/'nbs/studies').mkdir(parents=True)
    study = dict(cells=[code('n_epochs = 1', 'parameters'), code(NUMBERS, 'numbers'), code(ANSWER, 'answer')])
    write_json(root/'nbs/studies/10_scores.ipynb', study)
    for name, kind in dict(cpu={}, apart=dict(split_kind='patients apart')).items():
        (root/'reports/10_scores'/name).mkdir(parents=True)
        write_run(root/'reports/10_scores'/name, **kind)
    write_published(root, FACTS)
    (root/'reports/claims.yml').write_text(yaml.safe_dump(CLAIMS, sort_keys=False), encoding='utf-8')
    page = [dict(cell_type='markdown', source='# Page', metadata={}), code(PAGE)]
    write_json(root/'nbs/index.ipynb', dict(cells=page))
    write_pages(root)
    claims.write_ledger(root)
    return root


@pytest.fixture
def repo(whole, tmp_path):
    "A copy to spoil."
    return shutil.copytree(whole, tmp_path/'repo')


def renew(root):
    "Whatever a command writes anew: summaries, CLAIMS.md, README."
    for write in (lambda: write_summaries(root=root), lambda: claims.write_ledger(root), lambda: write_pages(root)):
        with contextlib.suppress(NeurosegError, OSError): write()


def test_the_small_ledger_is_whole_and_has_every_verdict(repo):
    assert claims.check_claims(repo) == []
    facts = claims.load_published(repo)
    assert {c.id: claims.judge(c, facts, repo).verdict for c in claims.load_claims(repo)} == EXPECTED
    assert set(EXPECTED.values()) == set(claims.VERDICTS)
    renew(repo)
    assert claims.check_claims(repo) == []


# How a file is spoilt: each gives a function of the repository

def text(name, old, new, count=1):
    def spoil(root):
        before = (root/name).read_text(encoding='utf-8')
        assert old in before, f'{name} holds no {old!r}'
        (root/name).write_text(before.replace(old, new, count), encoding='utf-8')
    return spoil


def claim(name, **changes): # None takes a key away
    "Change an entry of claims.yml."
    def changed(e): return {k: v for k, v in (e | changes).items() if v is not None}
    def change(all_entries):
        assert name in {e['id'] for e in all_entries}
        return [changed(e) if e['id'] == name else e for e in all_entries]
    return entries(change)


def entries(change): # Function of the list of claims
    def spoil(root):
        file = root/'reports/claims.yml'
        file.write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text(encoding='utf-8'))), sort_keys=False),
                        encoding='utf-8')
    return spoil


def fact(name, **changes): # None takes a key away
    "Change a fact of published.yml, and leave its sum."
    def spoil(root):
        file = root/'reports/published.yml'
        said = yaml.safe_load(file.read_text(encoding='utf-8'))
        said['facts'][name] |= changes
        said['facts'][name] = {k: v for k, v in said['facts'][name].items() if v is not None}
        if not said['facts'][name]: del said['facts'][name]
        file.write_text(yaml.safe_dump(said, sort_keys=False), encoding='utf-8')
    return spoil


def in_json(name, *keys, to): # `to`: a value, or a function of the old one
    "Change a value in a JSON file of the stored run."
    def spoil(root):
        file = root/'reports/10_scores/cpu'/name
        d = value = read_json(file)
        for k in keys[:-1]: value = value[k]
        value[keys[-1]] = to(value[keys[-1]]) if callable(to) else to
        write_json(file, d)
    return spoil


def rows(change, table='scores'): # Function of the list of rows
    def spoil(root):
        file = root/f'reports/10_scores/cpu/{table}.csv'
        write_rows(file, change(read_rows(file)))
    return spoil


def first(**changes): return lambda r: [r[0] | changes, *r[1:]]
def said(path, **changes): return in_json('summary.json', 'measures', path, to=lambda c: c | changes)
def gone(name): return lambda root: shutil.rmtree(root/name) if (root/name).is_dir() else (root/name).unlink()


def page_edited(root):
    "The saved sentence and the page written from it."
    for name in ('nbs/index.ipynb', 'README.md'): text(name, 'Mean Dice 0.8', 'Mean Dice 0.9')(root)


def other_summary(root):
    shutil.copy(root/'reports/10_scores/apart/summary.json', root/'reports/10_scores/cpu/summary.json')


EVALUATE, FAST = OWN+'evaluate', '10_scores/cpu#fast / '
RENEWED, AS_IT_IS = True, False # Whether it is found even after every page was written anew
CORRUPTIONS = {
    # The ledger
    'a tolerance widened by hand': (claim('best-valid', tolerance=.5), RENEWED, 'tolerance is 0.5'),
    'the spread of another score': (claim('dice-bar', tolerance=SPREAD+'batches of 16'), RENEWED, 'of another score'),
    'the spread of another predictor':
        (claim('best-valid', tolerance='10_scores/cpu#scatter / blind: nothing / batches of 16'),
                                        RENEWED, 'of another score'),
    'the spread of another split': (claim('best-valid', tolerance='10_scores/apart#scatter / fast / batches of 16'),
                                    RENEWED, 'of another score'),
    'an interval for a score of batches':
        (claim('best-valid', tolerance='interval'), RENEWED, 'no interval over patients'),
    'exact for a score': (claim('dice-bar', tolerance='exact'), RENEWED, "tolerance is 'exact'"),
    'another run':
        (claim('dice-bar', ours=['10_scores/apart#thesis / progress bar']), RENEWED, "split 'slices at random'"),
    'batches of 16 for batches of 32': (claim('dice-evaluate', ours=[OWN+'batches of 16']), RENEWED, "'batch of 16'"),
    'progress bar for evaluate': (claim('dice-evaluate', ours=[OWN+'progress bar']), RENEWED, "unit 'batch of 32'"),
    'evaluate for progress bar': (claim('dice-bar', ours=[EVALUATE]), RENEWED, "unit 'progress bar"),
    'median for mean': (claim('record', ours=['10_scores/cpu#people / dice / median']), RENEWED, "statistic 'mean'"),
    'recall for Dice': (claim('record', ours=['10_scores/cpu#people / recall / mean']), RENEWED, "metric 'Dice'"),
    'slices for patients': (claim('record', ours=[EVALUATE]), RENEWED, 'measures something else'),
    'a count for a score': (claim('dice-bar', ours=['10_scores/cpu#facts / test']), RENEWED, 'a count and a score'),
    'a score for a count': (claim('counts', ours=dict(train=EVALUATE, test=EVALUATE)), RENEWED, 'is no count'),
    'one count left out':
        (claim('counts', ours=dict(test='10_scores/cpu#facts / test')), RENEWED, 'expected counts of'),
    'a run that is not there': (claim('dice-bar', ours=['99_none/cpu#thesis / evaluate']), RENEWED, 'there is no run'),
    'a claim deleted': (entries(lambda e: e[1:]), RENEWED, 'has no claim'),
    'a claim twice': (entries(lambda e: [*e, e[0]]), RENEWED, 'stands there twice'),
    'a claim on nothing': (entries(lambda e: [*e, dict(id='mine', needs='x')]), RENEWED, 'is not in published.yml'),
    'a verdict written by hand': (claim('best-valid', verdict='reproduced'), RENEWED, 'unknown verdict'),
    'a misprint unexplained': (claim('loss-readme', misprint_of=None), RENEWED, 'expected exactly one of'),
    'a misprint of another number': (claim('loss-readme', misprint_of='dice-bar'), RENEWED, 'with a digit left out'),
    'the number of the own network left out': (claim('dice-bar', ours=['10_scores/cpu#fast / progress bar']), RENEWED,
                                               'answers it as well'),
    'what was not reproduced is excused': (claim('best-valid', ours=None, tolerance=None, needs='a graphics card'),
                                           RENEWED, 'has conditions, so that a stored number can answer it'),
    'open conditions are answered': (claim('earlier', needs=None, ours=[EVALUATE], tolerance=SPREAD+'evaluate'),
                                     RENEWED, 'has open conditions'),
    'a need left out': (claim('earlier', needs=None), RENEWED, 'expected exactly one of'),
    # What others published
    'a published value edited': (fact('dice-bar', value=.8543), RENEWED, 'a fact was changed'),
    'a published unit edited': (fact('best-valid', unit='batch of 32'), RENEWED, 'a fact was changed'),
    'a published n edited': (fact('dice-bar', n=dict(patients=88, slices=628)), RENEWED, 'a fact was changed'),
    'a published network renamed': (fact('dice-bar', network='fast', parameters=None), RENEWED, 'a fact was changed'),
    'a published protocol dropped': (fact('dice-bar', split=None), RENEWED, 'a fact was changed'),
    'a published condition left open': (fact('best-valid', unit='not said'), RENEWED, 'a fact was changed'),
    'a published fact deleted': (fact('earlier', **dict.fromkeys(FACTS['earlier'])), RENEWED, 'a fact was changed'),
    # A stored run
    'one digit in a table': (rows(first(dice=.846)), RENEWED, 'scores.csv changed after the run'),
    'one digit that no number uses': (rows(first(note='as wanted')), RENEWED, 'scores.csv changed after the run'),
    'a seed dropped from a table':
        (rows(lambda r: [x for x in r if str(x['split']) != '3']), RENEWED, 'changed after the run'),
    'a network renamed in a table': (rows(lambda r: [x | dict(network='thesis') for x in r if x['network'] == 'fast']),
                                     RENEWED, 'changed after the run'),
    'a training called cut short':
        (rows(lambda r: [x | dict(complete=0) for x in r]), RENEWED, 'changed after the run'),
    'a table deleted': (gone('reports/10_scores/cpu/facts.csv'), RENEWED, 'facts.csv changed after the run'),
    'a table added':
        (lambda root: (root/'reports/10_scores/cpu/more.csv').write_text('a\n'), RENEWED, 'more.csv changed'),
    'one digit in a summary':
        (in_json('summary.json', 'thesis', 'evaluate', to=.8549), AS_IT_IS, 'summary.json is not'),
    'a spread widened in a summary':
        (in_json('summary.json', 'scatter', 'fast', 'batches of 16', 'sd', to=.1), AS_IT_IS,
                                      'summary.json is not'),
    'a network renamed in a summary': (said('fast / evaluate', network='thesis', parameters=31_042_369), AS_IT_IS,
                                       'summary.json is not'),
    'a unit changed in a summary':
        (said('thesis / batches of 16', unit='batch of 32'), AS_IT_IS, 'summary.json is not'),
    'n changed in a summary':
        (said('thesis / evaluate', n=dict(patients=110, slices=786)), AS_IT_IS, 'summary.json is not'),
    'a seed dropped in a summary': (said('scatter / fast / evaluate', seeds=[42]), AS_IT_IS, 'summary.json is not'),
    'a declaration deleted': (in_json('summary.json', 'measures', to={}), AS_IT_IS, 'summary.json is not'),
    'the summary of another run': (other_summary, AS_IT_IS, 'summary.json is not'),
    'a parameter edited in the record':
        (in_json('run.json', 'params', 'n_epochs', to=5), RENEWED, 'differ in n_epochs'),
    'a parameter edited in the notebook':
        (text('reports/10_scores/cpu/notebook.ipynb', 'n_epochs = 50', 'n_epochs = 5'),
                                           RENEWED, 'differ in n_epochs'),
    'a stored notebook deleted': (gone('reports/10_scores/cpu/notebook.ipynb'), RENEWED, 'notebook.ipynb'),
    'a stored run deleted': (gone('reports/10_scores/cpu'), RENEWED, 'there is no run 10_scores/cpu'),
    'a declaration that contradicts its name': (
        text('nbs/studies/10_scores.ipynb', "said[f'{network} / {way}'] = of | dict(seeds",
             "said[f'{network} / {way}'] = of | dict(unit='slice') | dict(seeds"),
        RENEWED, "is declared as unit 'slice'"),
    'an opening of the sealed test made up': (
        lambda root: (root/'reports/LEDGER.md').write_text('# Openings of the sealed test\n\n## Opening 1\n'),
        RENEWED, 'LEDGER.md: '),
    # Pages
    'one digit in the README': (text('README.md', 'Mean Dice 0.8', 'Mean Dice 0.9'), AS_IT_IS, 'says something else'),
    'one digit in the README and its notebook': (page_edited, AS_IT_IS, 'says something else than the stored runs'),
    'one digit in CLAIMS.md': (text('CLAIMS.md', '0.8443', '0.8543'), AS_IT_IS, 'CLAIMS.md is not what'),
    'a verdict edited in CLAIMS.md': (text('CLAIMS.md', '**not reproduced**', '**reproduced**'), AS_IT_IS,
                                      'CLAIMS.md is not what'),
    'CLAIMS.md deleted': (gone('CLAIMS.md'), AS_IT_IS, 'CLAIMS.md is not what'),
    'a page that quotes the median as mean': (text('nbs/index.ipynb', 'people / dice / mean', 'people / dice / median'),
                                              RENEWED, "has statistic 'median', not 'mean'"),
    'a page that quotes the recall as Dice': (text('nbs/index.ipynb', 'people / dice / mean', 'people / recall / mean'),
                                              RENEWED, "has metric 'recall', not 'Dice'"),
}


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_a_corruption_is_found(repo, name):
    spoil, renewed, says = CORRUPTIONS[name]
    spoil(repo)
    assert says in '\n'.join(claims.check_claims(repo))
    if not renewed: return
    renew(repo)
    assert says in '\n'.join(claims.check_claims(repo)), 'found, and hidden again by the commands that write pages'


def test_there_are_many_corruptions(): assert len(CORRUPTIONS) >= 40


# The guard that finds a corruption: without it the corruption passes
GUARDS = {
    'like with like': ('median for mean', claims, 'mismatches', lambda *a: []),
    'the spread of the same score': ('the spread of another score', claims, 'spread_faults', lambda *a: []),
    'fingerprints of a run': ('one digit that no number uses', checks, 'changed_files', lambda run: []),
    'summaries from tables': ('a spread widened in a summary', checks, '_summary_fault', lambda run: ''),
    'parameters': ('a parameter edited in the record', checks, '_changed_parameters', lambda run: []),
    'no number left out': ('the number of the own network left out', claims, 'left_out', lambda *a: []),
    'pages': ('one digit in the README', claims, 'changed_pages', lambda root: []),
    'the digits of a misprint': ('a misprint of another number', claims, '_judge_misprint',
                                 lambda *a: claims.Judged('misprint')),
    'the sum of the facts': ('a published value edited', published_facts, 'fingerprint', None)}


@pytest.mark.parametrize('name', GUARDS)
def test_without_its_guard_a_corruption_passes(repo, monkeypatch, name):
    "So the test above can fail, and each guard does its work."
    corruption, room, guard, blind = GUARDS[name]
    CORRUPTIONS[corruption][0](repo)
    assert claims.check_claims(repo) != []
    if name == 'the sum of the facts':
        said = yaml.safe_load((repo/'reports/published.yml').read_text(encoding='utf-8'))['sha256']
        def blind(facts): return said
    monkeypatch.setattr(room, guard, blind)
    if name == 'like with like': monkeypatch.setattr(claims, 'left_out', lambda *a: []) # it compares conditions too
    if CORRUPTIONS[corruption][1]: renew(repo)
    else: claims.write_ledger(repo)
    assert claims.check_claims(repo) == []
