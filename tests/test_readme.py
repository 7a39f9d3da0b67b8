"README.md is what index.ipynb gives, its scores stand in stored runs, its links and commands exist, and no page names one machine."
import re, subprocess, sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, nbdev, tracked_files

from neuroseg.reports.claims import PAGES, scores, stored_numbers, unsupported


def own_numbers():
    "All numbers of the committed runs; what lies about uncommitted is no result."
    tracked = tracked_files()
    return [(v, at) for v, at in stored_numbers(ROOT) if f"reports/{at.split(' / ')[0]}/summary.json" in tracked]


@pytest.fixture(scope='module')
def quoted(): return yaml.safe_load((ROOT/'reports/quoted.yml').read_text(encoding='utf-8'))


@pytest.mark.parametrize('page', PAGES)
def test_scores_stand_in_stored_runs(page, quoted):
    if not (ROOT/page).exists(): pytest.skip(f'{page} is not written yet')
    assert unsupported((ROOT/page).read_text(encoding='utf-8'), own_numbers(), quoted) == []


def test_quotes_name_their_source(quoted):
    assert all(set(q) == {'value', 'near', 'what', 'source'} and all(isinstance(v, str) and v for v in q.values()) for q in quoted)


@pytest.mark.parametrize('text,found', [
    ('a Dice of 0.812.', ['0.812']), ('0.812 (0.7 to 0.85)', ['0.812', '0.7', '0.85']), ('better by 3.2 % or 12%', ['3.2 %', '12%']),
    ('| fold 0 | 0.781 |', ['0.781']), ('in 1.25 s', ['1.25']), ('0.84+-.05', ['0.84', '.05']), ('0.70-0.85', ['0.70', '0.85']), ('about .79.', ['.79']), ('1.2.3 of 3.5 mL', []),
    ('Python 3.11+, CC BY-NC-SA 4.0, doi 10.1016/j.x.2019.05.002, `0.5`, [x](a0.55b), 110 patients, 31,042,369', []),
    ('```\ndice 0.999\n```\n\nthen 0.25', ['0.25']), ('    output 0.999\n', []),
])
def test_scores_are_found(text, found): assert [s for s, _ in scores(text)] == found


@pytest.mark.parametrize('text,bad', [
    ('Dice 0.781', []), ('Dice 0.782', ['0.782']), ('Dice 0.78', []), ('Dice 0.79', ['0.79']), ('precision 97.1 %', []), ('precision 97.2 %', ['97.2 %']),
    ('the thesis says 0.8443', []), ('we reach 0.8443', ['0.8443']), ('the thesis says 0.8433', ['0.8433']),
    ('the thesis says 0.8443\n\nwe reach 0.8443', ['0.8443']), ('| thesis | 0.8443 |\n| ours | 0.8443 |', ['0.8443']),
])
def test_a_wrong_digit_is_found(text, bad):
    quotes = [dict(value='0.8443', near='thesis', what='Dice', source='thesis')]
    assert [b.partition(':')[0] for b in unsupported(text, [(.78124, 'a'), (.9713, 'b'), (17., 'c')], quotes)] == bad


def build(repo, dest, what='readme'):
    run = subprocess.run([sys.executable, 'nbs/_build.py', what, str(dest)], cwd=repo, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dest.read_text(encoding='utf-8')


WRITTEN = {'readme': ('nbs/index.ipynb', 'README.md'), 'card': ('nbs/model_card.ipynb', 'MODEL_CARD.md')}


@pytest.mark.parametrize('what', WRITTEN)
def test_a_page_is_what_its_notebook_gives(tmp_path, what):
    assert build(ROOT, tmp_path/'page.md', what) == (ROOT/WRITTEN[what][1]).read_text(encoding='utf-8'), 'run `make readme`'


@pytest.mark.parametrize('what', WRITTEN)
def test_a_page_is_what_a_fresh_run_gives(repo_copy, what):
    "The notebook's saved outputs are those that the stored runs give now."
    book, page = WRITTEN[what]
    nbdev('nbdev-test', repo_copy, book, '--save')
    assert build(repo_copy, repo_copy/'fresh.md', what) == (ROOT/page).read_text(encoding='utf-8'), 'run `make readme`'


def test_an_edited_readme_is_seen(repo_copy):
    "The comparison above compares: a changed notebook gives another README."
    book = repo_copy/'nbs/index.ipynb'
    book.write_text(book.read_text(encoding='utf-8').replace('make reproduce', 'make everything'), encoding='utf-8')
    assert build(repo_copy, repo_copy/'fresh.md') != (ROOT/'README.md').read_text(encoding='utf-8')


def test_hidden_cells_and_directives_stay_out():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert '#|' not in text and 'def stored' not in text and '](../' not in text


@pytest.mark.parametrize('page', [*PAGES, 'CONTRIBUTING.md', 'CHANGELOG.md'])
def test_links_lead_somewhere(page):
    if not (ROOT/page).exists(): pytest.skip(f'{page} is not written yet')
    links = re.findall(r'\]\(([^)#\s]+)', (ROOT/page).read_text(encoding='utf-8'))
    tracked = tracked_files()
    local = [link for link in links if not re.match(r'[a-z]+:', link)]
    assert [link for link in local if link not in tracked and not any(name.startswith(link.rstrip('/') + '/') for name in tracked)] == []


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', '.ci/run', *(f'.github/workflows/{n}.yml' for n in ('test', 'reproduce', 'docs'))])
def test_make_targets_exist(page):
    "No page tells anyone to run a target that is gone."
    targets = set(re.findall(r'^([a-z]+):', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M))
    # A command stands at the start of a line, in backticks or after `run:`; "make" in a sentence is a verb
    named = set(re.findall(r'(?:^\s*|`|run: )make ([a-z]+)', (ROOT/page).read_text(encoding='utf-8'), re.M))
    assert named and named <= targets


def test_make_help_lists_every_target():
    text = (ROOT/'Makefile').read_text(encoding='utf-8')
    assert {'install', 'reproduce', 'test', 'check', 'docs', 'app'} <= set(re.findall(r'^([a-z]+):.*## ', text, re.M))
    phony = re.search(r'^\.PHONY: (.*)', text, re.M)[1].split()
    assert sorted(phony) == sorted(re.findall(r'^([a-z]+):', text, re.M))


def test_workflow_actions_are_pinned():
    "By a full version: a workflow run next year uses the same action."
    for f in sorted((ROOT/'.github/workflows').glob('*.yml')):
        jobs = yaml.safe_load(f.read_text(encoding='utf-8'))['jobs']
        used = [step['uses'] for job in jobs.values() for step in job['steps'] if 'uses' in step]
        assert used and [u for u in used if not re.fullmatch(r'[\w./-]+@v\d+\.\d+\.\d+', u)] == []


# Paths of one machine: where this checkout and this user's files lie, and (in pieces, so that this file is not its own find) common roots
PRIVATE = re.compile('|'.join([re.escape(f'{ROOT}/'), re.escape(f'{Path.home()}/'), r'(?<![\w.])/ro' r'ot/', r'(?<![\w.])/wo' r'rk/', r'\.\./sha' r'red']))


def test_no_file_names_one_machine():
    bad = []
    for name in tracked_files():
        if name.startswith('.ci/') or name == 'LICENSE' or Path(name).suffix in ('.png', '.onnx', '.safetensors', '.gz', '.tif', '.ico'): continue
        text = (ROOT/name).read_text(encoding='utf-8')
        # Pictures inside notebooks are text by chance only
        text = re.sub(r'"image/png": "[^"]*"', '', text)
        bad += [f'{name}: {m[0]}' for m in PRIVATE.finditer(text)]
    assert bad == []


@pytest.mark.parametrize('text', [f'{ROOT}/nbs', f'{Path.home()}/x', 'see /ro' 'ot/x', '"/wo' 'rk/main"', '../sha' 'red/data'])
def test_a_machine_path_is_recognised(text): assert PRIVATE.search(text)


def test_a_path_inside_the_project_is_not(): assert not PRIVATE.search('frame' '/wo' 'rk/flow homework/root.py')
