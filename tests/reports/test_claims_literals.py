"""No score is typed: a page reads it from a stored run, prose quotes only what others published, examples are listed.

A decimal number below 1 near a word such as Dice is taken for a score. On the pages that readers quote nothing of this
kind is typed. In the prose of lessons and studies it must be a value of reports/published.yml, digit by digit, or stand
in `EXAMPLES` with its reason.
"""
import ast, json, re

import pytest
from conftest import ROOT, tracked_files

from neuroseg.reports.checks import PAGES
from neuroseg.reports.published import load_published

NUMBER = re.compile(r'(?<![\d.\w/-])0?\.\d{2,}(?!\d|\.\d|\w*\.\w)')
ABOUT = re.compile(r'Dice|IoU|\bmeans?\b|median|scor|recall|precision|\bloss\b|overlap|thesis', re.I)
REACH = 120 # Characters around a number in which such a word makes it a score
TEXTS = ('CONTRIBUTING.md', 'CHANGELOG.md')
PUBLISHED = {float(v) for f in load_published(ROOT).values()
             for v in (f.value.values() if isinstance(f.value, dict) else [f.value])}
EXAMPLES = {
    'nbs/evaluation/01_metrics.ipynb': {'0.65': 'worked out in the lesson below, and asserted there',
                                        '0.00': 'worked out in the lesson below, and asserted there',
                                        '0.75': 'of the formula beside it'},
    'nbs/evaluation/03_protocols.ipynb': {'0.05': 'set in the example below', '0.75': 'of the ten pixels beside it'},
    'nbs/learn/03_losses.ipynb': {'0.0001': 'a probability', '0.04': 'of the formula beside it',
                                  '.95': 'asserted in the next cell'},
    'nbs/learn/04_networks.ipynb': {'.001': 'a constant of Keras', '.01': 'a momentum of PyTorch',
                                    '.00001': 'a constant of PyTorch'},
    'nbs/learn/06_trainer.ipynb': {'.995': 'a decay'},
    'nbs/reports/01_plots.ipynb': {'0.78': 'an invented example', '0.34': 'an invented example'},
    'nbs/reports/09_measures.ipynb': {'0.86': 'an invented example'},
    'nbs/scans/08_preparation.ipynb': {k: 'a weight of a colour' for k in ('.299', '.587', '.114')},
    'nbs/studies/21_thesis.ipynb': {'0.0346': 'the difference of two published values, 0.8549 and 0.8203'},
    'nbs/studies/29_speed_run.ipynb': {'0.80': 'a target that was set before the runs'}}


def typed(source):
    "The strings of code without what is put into them, and without the formats of numbers."
    tree = ast.parse(re.sub(r'^[#%!].*$', '', source, flags=re.M))
    formats = {id(part) for node in ast.walk(tree) if isinstance(node, ast.FormattedValue) and node.format_spec
               for part in ast.walk(node.format_spec)}
    words = [n.value for n in ast.walk(tree)
             if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in formats]
    return '\n'.join(words)


def scores(text):
    "Decimal numbers below 1 that stand near a word of a score."
    return [m[0] for m in NUMBER.finditer(text)
            if ABOUT.search(text[max(0, m.start()-REACH):m.end()+REACH//2])]


def scores_of(name, text):
    "Of a notebook: its prose, and for pages and studies the strings of its code; outputs are made by code."
    if not name.endswith('.ipynb'): return scores(text)
    parts = []
    for c in json.loads(text)['cells']:
        source = ''.join(c['source'])
        if c['cell_type'] == 'markdown': parts.append(source)
        elif c['cell_type'] == 'code' and (name in PAGES or '/studies/' in name): parts.append(typed(source))
    return [s for part in parts for s in scores(part)]


def unexplained(name, text):
    "Typed scores that are neither published nor explained; on a page, a published one is quoted by its name."
    known = set() if name in PAGES else PUBLISHED
    return [s for s in scores_of(name, text) if float(s) not in known and s not in EXAMPLES.get(name, ())]


FILES = [n for n in tracked_files() if n.startswith('nbs/') and n.endswith('.ipynb') or n in TEXTS]


@pytest.mark.parametrize('name', FILES)
def test_no_score_is_typed(name):
    assert unexplained(name, (ROOT/name).read_text(encoding='utf-8')) == []


def test_an_explanation_is_needed():
    "What no longer stands there is taken off the list."
    found = {name: set(scores_of(name, (ROOT/name).read_text(encoding='utf-8'))) for name in EXAMPLES}
    idle = {name: sorted(set(known)-found[name]) for name, known in EXAMPLES.items() if set(known)-found[name]}
    assert idle == {}


@pytest.mark.parametrize('page', [n for n in PAGES if n != 'nbs/datasheet.ipynb'])
def test_a_page_reads_stored_runs(page):
    text = (ROOT/page).read_text(encoding='utf-8')
    assert 'stored(' in text and 'measured(' in text


def notebook(kind, source): return json.dumps(dict(cells=[dict(cell_type=kind, source=source)]))


@pytest.mark.parametrize('name,kind,source,found', [
    ('nbs/index.ipynb', 'markdown', 'a mean Dice of 0.812.', ['0.812']),
    ('nbs/index.ipynb', 'markdown', 'the thesis has 0.8443', ['0.8443']), # on a page by its name
    ('nbs/index.ipynb', 'code', 'Markdown(f"Dice {d:.3f} of 0.77")', ['0.77']),
    ('nbs/index.ipynb', 'code', "f'{s:.2f} Dice'; x = 0.77", []),
    ('nbs/learn/x.ipynb', 'markdown', 'the thesis has 0.8443', []),
    ('nbs/learn/x.ipynb', 'markdown', 'the thesis has 0.8444', ['0.8444']), # one digit
    ('nbs/learn/x.ipynb', 'markdown', 'its IoU is .79', ['.79']),
    ('nbs/learn/x.ipynb', 'markdown', 'a rate of 0.001', []), # nothing of a score
    ('nbs/learn/x.ipynb', 'code', "'Dice 0.77'", []), # code of a lesson computes
    ('nbs/studies/x.ipynb', 'code', "'the Dice is 0.77'", ['0.77']),
    ('nbs/index.ipynb', 'markdown', 'score: Python 3.11, CC BY-NC-SA 4.0, doi 10.1016/j.x.2019.05.002', [])])
def test_a_typed_score_is_found(name, kind, source, found):
    assert unexplained(name, notebook(kind, source)) == found
