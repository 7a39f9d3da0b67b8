"README, model card and datasheet are what their notebooks give, links and commands exist, no machine is named."
import json, re, subprocess, sys
from pathlib import Path

import pytest
from conftest import ROOT, nbdev, tracked_files

WRITTEN = {'readme': ('nbs/index.ipynb', 'README.md'), 'card': ('nbs/model_card.ipynb', 'MODEL_CARD.md'),
           'datasheet': ('nbs/datasheet.ipynb', 'DATASHEET.md')}
SCORES = 'nbs/tutorials/37_what_the_score_means.ipynb'
PAGES = ['README.md', 'MODEL_CARD.md', 'DATASHEET.md', 'CONTRIBUTING.md', 'CHANGELOG.md']
def load(name): return json.loads((ROOT/name).read_text(encoding='utf-8'))


def build(repo, dest, what='readme'):
    run = subprocess.run([sys.executable, 'nbs/_build.py', what, str(dest)], cwd=repo, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return dest.read_text(encoding='utf-8')


@pytest.mark.parametrize('what', WRITTEN)
def test_a_page_is_what_its_notebook_gives(tmp_path, what):
    page = (ROOT/WRITTEN[what][1]).read_text(encoding='utf-8')
    assert build(ROOT, tmp_path/'page.md', what) == page, 'run `make readme`'


@pytest.mark.parametrize('what', WRITTEN)
def test_a_page_is_what_a_fresh_run_gives(repo_copy, what):
    "The saved outputs of the notebook are those that the stored runs give now."
    book, page = WRITTEN[what]
    nbdev('nbdev-test', repo_copy, book, '--save')
    assert build(repo_copy, repo_copy/'fresh.md', what) == (ROOT/page).read_text(encoding='utf-8'), 'run `make readme`'


def test_the_account_of_the_scores_is_what_a_fresh_run_gives(repo_copy):
    nbdev('nbdev-test', repo_copy, SCORES, '--save')
    def outputs(nb): return [out.get('data', {}) for c in nb['cells'] for out in c.get('outputs', [])]
    assert outputs(load(repo_copy/SCORES)) == outputs(load(SCORES))


def test_the_readme_fits_on_two_screens():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 100 and len(text.split()) <= 800
    assert len(re.findall(r'!\[', text)) == 1 and len(re.findall(r'^\|---', text, re.M)) == 1, 'one picture, one table'


def test_an_edited_readme_is_seen(repo_copy):
    "The comparison above compares: a changed notebook gives another README."
    book = repo_copy/'nbs/index.ipynb'
    book.write_text(book.read_text(encoding='utf-8').replace('make reproduce', 'make everything'), encoding='utf-8')
    assert build(repo_copy, repo_copy/'fresh.md') != (ROOT/'README.md').read_text(encoding='utf-8')


def test_hidden_cells_and_directives_stay_out():
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    assert '#|' not in text and 'def stored' not in text and '](../' not in text


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r'\]\(([^)#\s]+)', (ROOT/page).read_text(encoding='utf-8'))
    tracked = tracked_files()
    local = [link for link in links if not re.match(r'[a-z]+:', link)]
    def there(link): return link in tracked or any(name.startswith(link.rstrip('/') + '/') for name in tracked)
    assert [link for link in local if not there(link)] == []


@pytest.mark.parametrize('page', PAGES)
def test_files_that_a_page_names_exist(page):
    "Paths of notebooks, modules and reports in backticks, without placeholders."
    named = re.findall(r'`((?:nbs|tests|reports|neuroseg)/[\w./]+)`', (ROOT/page).read_text(encoding='utf-8'))
    assert [name for name in named if not (ROOT/name).exists()] == []


def test_modules_that_the_changelog_names_exist():
    table = re.findall(r'^\| `.*\| (`.*`).* \|$', (ROOT/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    modules = [m for row in table for m in re.findall(r'`([\w.]+)`', row)]
    assert modules and [m for m in modules if not (ROOT/f"neuroseg/{m.replace('.', '/')}.py").is_file()] == []


WORKFLOWS = [f'.github/workflows/{name}.yml' for name in ('test', 'reproduce', 'docs', 'newest', 'release')]


@pytest.mark.parametrize('page', ['README.md', 'CONTRIBUTING.md', '.ci/run', *WORKFLOWS])
def test_make_targets_exist(page):
    "No page tells anyone to run a target that is gone."
    targets = set(re.findall(r'^([a-z-]+):', (ROOT/'Makefile').read_text(encoding='utf-8'), re.M))
    # A command stands at the start of a line, in backticks or after `run:`; "make" in a sentence is a verb
    named = set(re.findall(r'(?:^\s*|`|run: )make ([a-z-]+)', (ROOT/page).read_text(encoding='utf-8'), re.M))
    assert named and named <= targets


def test_make_help_lists_every_target():
    text = (ROOT/'Makefile').read_text(encoding='utf-8')
    assert {'install', 'reproduce', 'test', 'check', 'docs', 'app'} <= set(re.findall(r'^([a-z-]+):.*## ', text, re.M))
    phony = re.search(r'^\.PHONY: (.*)', text, re.M)[1].split()
    assert sorted(phony) == sorted(re.findall(r'^([a-z-]+):', text, re.M))


# Paths of one machine: where this checkout and this user's files lie, and common roots (in two parts each, so that this
# file does not find itself)
PRIVATE = re.compile('|'.join([re.escape(f'{ROOT}/'), re.escape(f'{Path.home()}/'), r'(?<![\w.])/ro' r'ot/',
                               r'(?<![\w.])/wo' r'rk/', r'\.\./sha' r'red']))


def test_no_file_names_one_machine():
    bad, binary = [], ('.png', '.onnx', '.safetensors', '.safetensors-rest', '.gz', '.tif', '.ico', '.npz', '.mo')
    for name in tracked_files():
        if name.startswith('.ci/') or name == 'LICENSE' or Path(name).suffix in binary: continue
        text = (ROOT/name).read_text(encoding='utf-8')
        # Pictures inside notebooks are text by chance only
        text = re.sub(r'"image/png": "[^"]*"', '', text)
        bad += [f'{name}: {m[0]}' for m in PRIVATE.finditer(text)]
    assert bad == []


@pytest.mark.parametrize('text', [f'{ROOT}/nbs', f'{Path.home()}/x', 'see /ro' 'ot/x', '"/wo' 'rk/main"',
                                  '../sha' 'red/data'])
def test_a_machine_path_is_recognised(text): assert PRIVATE.search(text)


def test_a_path_inside_the_project_is_not(): assert not PRIVATE.search('frame' '/wo' 'rk/flow homework/root.py')
