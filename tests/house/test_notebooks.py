"Notebooks and library are in step, lessons show and assert, cells and lines are short, papermill finds its parameters."
import json, re, subprocess, sys, tomllib

import nbformat
import pytest
import yaml
from conftest import nbdev
from notebook_stats import Lessons, all_lessons, code_lines, exported, lessons, notebooks, table, text


def contents(repo):
    files = [p for folder in ('nbs', 'neuroseg') for p in sorted((repo/folder).rglob('*')) if p.is_file()]
    return {p.relative_to(repo).as_posix(): p.read_bytes() for p in files if '__pycache__' not in p.parts}


def changed(before, after):
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


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


@pytest.fixture(scope='session')
def counts(root): return all_lessons(root/'nbs')


@pytest.fixture(scope='session')
def total(counts): return sum(counts.values(), Lessons())


@pytest.mark.parametrize('what', ['shown', 'asserted'])
def test_lessons_show_and_assert(counts, total, constants, what):
    assert total.defined > 0
    assert total.share(what) >= constants[what], table(counts)


def test_lessons_explain(counts, total, constants):
    assert total.words >= constants['words_per_export']*len(total.lines), table(counts)


def test_exported_cells_are_short(root, counts, total, constants):
    assert total.median <= constants['cell_lines_median'], table(counts)
    assert total.p90 <= constants['cell_lines_p90'], table(counts)
    cells = [(name, cell) for name, nb in notebooks(root/'nbs').items() for cell in nb['cells']]
    long = [f'{name} {cell["id"]}: {n} lines' for name, cell in cells if exported(cell)
            and (n := code_lines(text(cell))) > constants['cell_lines_max']]
    assert long == []


def long_lines(
    nb:dict, # A notebook's JSON
    most:int, # Characters of a line
)->list[str]: # 'cell: start of the line'
    "Lines of a notebook that are too long. A row of a table, an address and a picture with a link cannot be broken."
    found = [(cell, line) for cell in nb['cells'] for line in text(cell).splitlines() if len(line) > most]
    def whole(cell, line):
        prose = cell['cell_type'] == 'markdown'
        return ' ' not in line.strip('#- ') or (prose and line.startswith(('|', '[![')))
    return [f'{cell["id"]}: {line[:60]}' for cell, line in found if not whole(cell, line)]


@pytest.fixture(scope='session')
def line_length(root):
    return tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['tool']['ruff']['line-length']


@pytest.mark.parametrize('script', ['Makefile', '.ci/run', 'Dockerfile', 'settings.ini', 'pyproject.toml'])
def test_lines_of_scripts_are_short(root, line_length, script):
    "As ruff holds those of Python."
    lines = (root/script).read_text(encoding='utf-8').splitlines()
    assert [line for line in lines if len(line) > line_length] == []


def test_lines_of_notebooks_are_short(root, line_length):
    "Code and prose."
    books = notebooks(root/'nbs').items()
    assert [f'{name} {line}' for name, nb in books for line in long_lines(nb, line_length)] == []


@pytest.mark.parametrize('kind,line,found', [
    ('code', 'x = ' + 'a'*120, 1), ('markdown', 'word '*25, 1), ('code', '| cell '*20, 1),
    ('markdown', '| cell '*20, 0),
    ('markdown', '<https://' + 'a'*120 + '>', 0), ('code', 'x = 1', 0)])
def test_a_long_line_is_found(kind, line, found):
    assert len(long_lines({'cells': [dict(cell_type=kind, id='c', source=[line])]}, 120)) == found


def book(*cells):
    "A notebook of code cells."
    return {'cells': [dict(cell_type='code', source=s, metadata={}) for s in cells]}


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


def test_lines_and_words_are_counted():
    prose = dict(cell_type='markdown', source='two words')
    first = [*book('#| export\ndef f():\n\n    return 1')['cells'], prose]
    got = lessons({'cells': first}) + lessons(book('#| export\na = 1', 'b = 2'))
    assert (got.lines, got.words, got.median, got.p90) == ((2, 1), 2, 1.5, 2)


# A path of one machine, or noise that says nothing about the lesson
NOISE = re.compile(r'/(?:home|Users|root|work|tmp)/|[A-Z]:\\\\|\w*Warning:|Traceback \(most recent|it/s\]')


@pytest.mark.parametrize('text', ['saved to /home/me/x.png', 'UserWarning: deprecated', '12/20 [00:01<00:02, 7.1it/s]',
                                  'C:\\\\data'])
def test_noise_is_recognised(text): assert NOISE.search(text)


def test_saved_outputs_are_clean(root):
    bad = []
    for f in sorted((root/'nbs').rglob('*.ipynb')):
        for cell in nbformat.read(f, as_version=4).cells:
            for out in cell.get('outputs', []):
                data = [str(v) for k, v in out.get('data', {}).items() if k.startswith('text/')]
                shown = ''.join([out.get('text', ''), *data])
                bad += [f'{f.name}: {m[0]!r} in {shown[:80]!r}' for m in NOISE.finditer(shown)]
    assert bad == []


def undefined(folder):
    "Names that a module of a folder uses and nobody defines there, as ruff finds them."
    command = [sys.executable, '-m', 'ruff', 'check', '--isolated', '--select', 'F821', '--output-format', 'concise']
    return [line for line in subprocess.run([*command, str(folder)], capture_output=True, text=True).stdout.splitlines()
            if 'F821' in line]


def test_a_module_has_all_names_that_it_uses(root, tmp_path):
    "A lesson that imports a name must not hide that the exported cells lack it."
    assert undefined(root/'neuroseg') == []
    (tmp_path/'room.py').write_text('def here(): return os.getcwd()\n')
    assert len(undefined(tmp_path)) == 1


def test_papermill_injects_after_cleaning(repo_copy):
    "nbdev-clean keeps the tag that papermill looks for; without it papermill runs the defaults and only warns."
    import papermill
    kernel = {'display_name': 'python3', 'language': 'python', 'name': 'python3'}
    cells = [nbformat.v4.new_code_cell('n_patients = 1', metadata={'tags': ['parameters'], 'collapsed': True}),
             nbformat.v4.new_code_cell('n_patients*10')]
    nb = nbformat.v4.new_notebook(metadata={'kernelspec': kernel}, cells=cells)
    study, executed = repo_copy/'nbs/studies/99_probe.ipynb', repo_copy/'executed.ipynb'
    study.parent.mkdir(exist_ok=True)
    nbformat.write(nb, study)
    nbdev('nbdev-clean', repo_copy, '--fname', str(study))
    assert nbformat.read(study, as_version=4).cells[0].metadata == {'tags': ['parameters']}
    options = dict(progress_bar=False, log_output=False)
    papermill.execute_notebook(str(study), str(executed), parameters={'n_patients': 7}, **options)
    assert nbformat.read(executed, as_version=4).cells[-1].outputs[0].data['text/plain'] == '70'


def test_every_study_takes_parameters(root):
    studies = sorted((root/'nbs/studies').glob('[0-9]*.ipynb'))
    def tags(f): return {tag for c in nbformat.read(f, as_version=4).cells for tag in c.metadata.get('tags', [])}
    assert [f.name for f in studies if 'parameters' not in tags(f)] == []


def test_notebook_names_are_unique_without_their_number(root):
    "nbdev names pages and modules by what follows the number."
    stems = [f.stem.partition('_')[2] for f in (root/'nbs').rglob('[0-9]*_*.ipynb')]
    assert len(stems) == len(set(stems))


def test_the_sidebar_has_every_page_once(root):
    sidebar = yaml.safe_load((root/'nbs/sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar']
    sections = [entry['contents'] if isinstance(entry, dict) else [entry] for entry in sidebar['contents']]
    listed = [page for pages in sections for page in pages]
    assert sorted(listed) == sorted(notebooks(root/'nbs'))


def test_the_first_cell_is_title_and_description_alone(root):
    "The site takes both from there and drops the rest of the cell."
    assert [name for name, nb in notebooks(root/'nbs').items() if text(nb['cells'][0]).strip().count('\n\n') > 1] == []
