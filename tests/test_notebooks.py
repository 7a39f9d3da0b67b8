"Notebooks and library are in step, lessons show and assert, and papermill's parameters survive cleaning."
import json, re

import nbformat
import pytest
import yaml
from conftest import nbdev
from notebook_stats import Lessons, all_lessons, lessons


def contents(repo):
    return {p.relative_to(repo).as_posix(): p.read_bytes() for folder in ('nbs', 'neuroseg') for p in sorted((repo/folder).rglob('*'))
            if p.is_file() and '__pycache__' not in p.parts}


def changed(before, after): return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def test_export_leaves_no_diff(repo_copy):
    before = contents(repo_copy)
    nbdev('nbdev-export', repo_copy)
    assert changed(before, contents(repo_copy)) == [], 'run `make export` and commit what it writes'


def test_clean_leaves_no_diff(repo_copy):
    before = contents(repo_copy)
    nbdev('nbdev-clean', repo_copy)
    assert changed(before, contents(repo_copy)) == [], 'run `make export` and commit what it writes'


def test_a_hand_edit_is_seen(repo_copy):
    "The two tests above compare something: an edited module and an uncleaned notebook are both restored."
    module, book = repo_copy/'neuroseg/core.py', repo_copy/'nbs/00_core.ipynb'
    module.write_text(module.read_text(encoding='utf-8') + '\n# by hand\n', encoding='utf-8')
    nb = json.loads(book.read_text(encoding='utf-8'))
    nb['cells'][0]['metadata']['collapsed'] = True
    book.write_text(json.dumps(nb, indent=1), encoding='utf-8')
    before = contents(repo_copy)
    nbdev('nbdev-export', repo_copy)
    nbdev('nbdev-clean', repo_copy, '--fname', 'nbs/00_core.ipynb')
    assert changed(before, contents(repo_copy)) == ['nbs/00_core.ipynb', 'neuroseg/core.py']


def test_lessons_show_and_assert(root, constants):
    rows = all_lessons(root/'nbs')
    total = sum(rows.values(), Lessons())
    table = '\n'.join(f'{name}: {r.share("shown"):.0%} shown, {r.share("asserted"):.0%} asserted of {r.defined}; not shown: {", ".join(r.missing)}' for name, r in rows.items())
    assert total.defined > 0
    assert total.share('shown') >= constants['shown'], table
    assert total.share('asserted') >= constants['asserted'], table


def book(*cells): return {'cells': [dict(cell_type='code', source=s, metadata={}) for s in cells]}


@pytest.mark.parametrize('cells,counted', [
    (['#| export\ndef f(): pass', 'f()', 'assert f() is None'], (1, 1, 1)),
    (['#| export\ndef f(): pass', '#| export\ndef g(): pass', 'g()'], (2, 1, 0)),
    (['#| export\ndef f(): pass\ndef g(): pass', 'assert g() is None'], (2, 1, 1)),
    (['#| export\ndef f(): pass\ndef _g(): pass', 'f = 1', '1'], (1, 0, 0)),
    (['#| export\n@patch\ndef f(self:A): pass', 'a.f()'], (1, 1, 0)),
    (['#| export\ndef f(): pass', '#| hide\ntest_eq(f(), None)'], (1, 0, 1)),
    (['#| export\nX = 1', 'assert X'], (0, 0, 0)),
    (['#| export\nclass A: pass', '# assert nothing\nA, "assert"'], (1, 1, 0)),
    (['#| export\ndef f(): pass', 'with expect_fail(ValueError): f(1)'], (1, 1, 1)),
    (['#| export\ndef f(): pass', 'from a import f', '"f"'], (1, 0, 0)),
])
def test_lessons_are_counted(cells, counted):
    got = lessons(book(*cells))
    assert (got.defined, got.shown, got.asserted) == counted


# A path of one machine, or noise that says nothing about the lesson
NOISE = re.compile(r'/(?:home|Users|root|work|tmp)/|[A-Z]:\\\\|\w*Warning:|Traceback \(most recent|it/s\]')


@pytest.mark.parametrize('text', ['saved to /home/me/x.png', 'UserWarning: deprecated', '12/20 [00:01<00:02, 7.1it/s]', 'C:\\\\data'])
def test_noise_is_recognised(text): assert NOISE.search(text)


def test_saved_outputs_are_clean(root):
    bad = []
    for f in sorted((root/'nbs').rglob('*.ipynb')):
        for cell in nbformat.read(f, as_version=4).cells:
            for out in cell.get('outputs', []):
                text = out.get('text', '') + ''.join(str(v) for k, v in out.get('data', {}).items() if k.startswith('text/'))
                bad += [f'{f.name}: {m[0]!r} in {text[:80]!r}' for m in NOISE.finditer(text)]
    assert bad == []


def test_papermill_injects_after_cleaning(repo_copy):
    "nbdev-clean keeps the tag that papermill looks for; without it papermill runs the notebook's own defaults and only warns."
    import papermill
    nb = nbformat.v4.new_notebook(metadata={'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}, cells=[
        nbformat.v4.new_code_cell('n_patients = 1', metadata={'tags': ['parameters'], 'collapsed': True}), nbformat.v4.new_code_cell('n_patients*10')])
    study, executed = repo_copy/'nbs/studies/99_probe.ipynb', repo_copy/'executed.ipynb'
    study.parent.mkdir(exist_ok=True)
    nbformat.write(nb, study)
    nbdev('nbdev-clean', repo_copy, '--fname', str(study))
    assert nbformat.read(study, as_version=4).cells[0].metadata == {'tags': ['parameters']}
    papermill.execute_notebook(str(study), str(executed), parameters={'n_patients': 7}, progress_bar=False, log_output=False)
    assert nbformat.read(executed, as_version=4).cells[-1].outputs[0].data['text/plain'] == '70'


def test_every_study_takes_parameters(root):
    studies = sorted((root/'nbs/studies').glob('[0-9]*.ipynb'))
    untagged = [f.name for f in studies if not any('parameters' in c.metadata.get('tags', []) for c in nbformat.read(f, as_version=4).cells)]
    assert untagged == []


def test_notebook_names_are_unique_without_their_number(root):
    "nbdev names pages and modules by what follows the number."
    stems = [f.stem.partition('_')[2] for f in (root/'nbs').rglob('[0-9]*_*.ipynb')]
    assert len(stems) == len(set(stems))


def test_the_sidebar_has_every_page_once(root):
    contents = yaml.safe_load((root/'nbs/sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    listed = [page for entry in contents for page in (entry['contents'] if isinstance(entry, dict) else [entry])]
    pages = [f.relative_to(root/'nbs').as_posix() for f in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in f.parts]
    assert sorted(listed) == sorted(pages)


def test_the_first_cell_is_title_and_description_alone(root):
    "The site takes both from there and drops the rest of the cell."
    long = [f.name for f in sorted((root/'nbs').rglob('*.ipynb')) if nbformat.read(f, as_version=4).cells[0].source.strip().count('\n\n')>1]
    assert long == []
