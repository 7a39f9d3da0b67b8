"Runs of studies: parameters arrive, failures leave the former result, no path gets out, stored runs can be redrawn."
import dataclasses, json, os, re, shutil, signal, subprocess, sys
from pathlib import Path

import pytest

for library in ('papermill', 'nbconvert', 'matplotlib', 'yaml'): pytest.importorskip(library)
import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from neuroseg import core
from neuroseg.core import ConfigError, DataError, RunError, read_json, write_json
from neuroseg.cohorts.integrity import SEALED
from neuroseg.reports.checks import waiting_runs
from neuroseg.reports import execution, publishing, reproduce, stored_run, study_notebook

KERNEL = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
COIN = (('figures', """from neuroseg.reports.plots import bars
from neuroseg.reports.stored_run import table
def draw_sides(run): return bars(table(run, 'tosses').head(2), label='toss', value='heads', xlabel='heads')"""),
        "from neuroseg.reports.study_run import StudyRun",
        'run = StudyRun("10_coin", profile=profile, out=out, n_tosses=n_tosses, where=where)',
        'run.table("tosses", [dict(toss=i, heads=i%2) for i in range(n_tosses)])',
        'import os\nprint(os.getcwd(), run.folder.absolute(), os.path.expanduser("~"))\nn_tosses',
        ('numbers', "def numbers(run): return dict(heads=int(table(run, 'tosses')['heads'].sum()))"),
        ('answer', "def headline(n): return 'Tossed.'\ndef answer(n): return f'{n[\"heads\"]} heads.'"),
        'run.finish(numbers, headline, answer)')
PARAMS = 'profile = "smoke"\nout = None\nn_tosses = 4\nwhere = None'


def cell_of(cell): # Source, or tag and source
    if isinstance(cell, str): return new_code_cell(cell)
    return new_code_cell(cell[1], metadata={'tags': [cell[0]]})


def write_study(root, name, cells, profiles, params=PARAMS):
    "A repository with one more study."
    nb = new_notebook(metadata=KERNEL, cells=[new_markdown_cell('# A study\n\n> Of something'),
                                              *map(cell_of, [('parameters', params), *cells])])
    (root/'nbs/studies').mkdir(parents=True, exist_ok=True)
    (root/'reports'/name).mkdir(parents=True, exist_ok=True)
    nbformat.write(nb, root/f'nbs/studies/{name}.ipynb')
    (root/'reports'/name/'params.yml').write_text(json.dumps(profiles)) # JSON is YAML


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


def text_of(folder):
    texts = ('.json', '.ipynb', '.html', '.csv', '.md')
    return '\n'.join(b.decode() for name, b in files(folder).items() if Path(name).suffix in texts)


@pytest.fixture(scope='module')
def repo(tmp_path_factory):
    "A small repository, and its study run in two profiles."
    root = tmp_path_factory.mktemp('somebody')/'repo'
    write_study(root, '10_coin', COIN, {'smoke': {}, 'cpu': {'n_tosses': 9, 'where': str(root/'data')}})
    for profile in ('smoke', 'cpu'): execution.run_study('10', profile, root=root, progress=False)
    return root


@pytest.fixture
def spare(tmp_path):
    "A place for a study that goes wrong, with results of an earlier run."
    def make(*cells, profiles=None):
        write_study(tmp_path, '11_die', cells, profiles or {'smoke': {}})
        former = tmp_path/'reports/11_die/smoke'
        former.mkdir(exist_ok=True)
        (former/'summary.json').write_text('{"former": true}')
        return tmp_path
    return make


# Parameters

def test_injected_values_arrive(repo):
    nb = nbformat.read(repo/'reports/10_coin/cpu/notebook.ipynb', as_version=4)
    assert [c.outputs[-1].data['text/plain'] for c in nb.cells if c.source.endswith('\nn_tosses')] == ['9']
    assert len((repo/'reports/10_coin/cpu/tosses.csv').read_text().splitlines()) == 10
    assert read_json(repo/'reports/10_coin/cpu/run.json')['params']['n_tosses'] == 9
    assert read_json(repo/'reports/10_coin/smoke/run.json')['params']['n_tosses'] == 4


def test_profiles_do_not_overwrite_each_other(repo):
    before = files(repo/'reports/10_coin/cpu')
    execution.run_study('coin', 'smoke', root=repo, progress=False, n_tosses=6)
    assert read_json(repo/'reports/10_coin/smoke/summary.json')['heads'] == 3
    assert files(repo/'reports/10_coin/cpu') == before


@pytest.mark.parametrize('cells,params,says', [
    (COIN, dict(tosses=3), "no parameter 'tosses'; choose from profile, out, n_tosses, where"),
    ((COIN[0],), dict(profil='x'), "no parameter 'profil'"),
])
def test_a_misspelt_parameter_is_refused_before_anything_runs(spare, cells, params, says):
    root = spare(*cells)
    with pytest.raises(ConfigError, match=re.escape(says)):
        execution.run_study('die', root=root, progress=False, **params)


def test_a_tag_that_was_lost_is_noticed(spare):
    root = spare('1')
    nb = nbformat.read(root/'nbs/studies/11_die.ipynb', as_version=4)
    for c in nb.cells: c.metadata = {}
    nbformat.write(nb, root/'nbs/studies/11_die.ipynb')
    with pytest.raises(ConfigError, match='no cells tagged `parameters`'):
        execution.run_study('die', root=root, progress=False)


@pytest.mark.parametrize('text,says',
                         [('smoke: [', 'is not valid YAML'), ('cpu: {}', "no profile 'smoke'; choose one of cpu"),
                          ('', "no profile 'smoke'"), (None, 'no `params.yml`')])
def test_a_bad_params_file_is_one_sentence(spare, text, says):
    root = spare('1')
    file = root/'reports/11_die/params.yml'
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(says)) as e: execution.run_study('die', root=root, progress=False)
    assert '\n' not in str(e.value)


def test_no_repository_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match='clone it') as e: reproduce.reproduce(root=tmp_path)
    assert '\n' not in str(e.value)


# What a run leaves

def test_a_run_is_whole(repo):
    assert set(files(repo/'reports/10_coin/cpu')) == {'notebook.html', 'notebook.ipynb', 'run.json', 'summary.json',
                                                      'tosses.csv'}
    record = read_json(repo/'reports/10_coin/cpu/run.json')
    parts = {'study', 'profile', 'code', 'tree', 'lock', 'packages', 'files'}
    assert {f.name for f in dataclasses.fields(core.RunRecord)} | parts == set(record)
    assert record['packages']['papermill'] and set(record['tree']) <= {'neuroseg', 'requirements.lock'} # its library's
    assert record['seconds'] > 0 and record['peak_mb'] > 10
    assert [p.name for p in (repo/'reports/10_coin').iterdir() if p.name.startswith('.')] == []


def test_nothing_of_the_machine_gets_out(repo):
    everything = text_of(repo/'reports/10_coin')
    leaks = [str(repo), str(repo.parent), str(Path.home())+'/', 'start_time', 'iopub', 'ipykernel_', '.ssh']
    assert [w for w in leaks if w in everything] == []
    pages = [p.read_text(encoding='utf-8') for p in (repo/'reports/10_coin').rglob('notebook.*')]
    assert len(pages) >= 2 and not any('papermill' in page for page in pages)
    assert read_json(repo/'reports/10_coin/cpu/run.json')['params']['where'] == 'data'
    injected = [c.source for c in nbformat.read(repo/'reports/10_coin/cpu/notebook.ipynb', as_version=4).cells
                if 'injected-parameters' in c.metadata.get('tags', [])]
    assert 'out = "reports/10_coin/cpu"' in injected[0]


def test_the_page_needs_nothing_else(repo):
    page = (repo/'reports/10_coin/cpu/notebook.html').read_text(encoding='utf-8')
    assert re.findall(r'(?:src|href)="(?!data:|#)[^"]*"|@import|<script', page) == []
    assert len(page) < 60_000


@pytest.mark.parametrize('path,text',
                         [('/home/ann', 'in /home/ann/x and /home/anna'),
                          ('C:\\Users\\Ann\\repo', 'at C:\\Users\\Ann\\repo\\a and C:/Users/Ann/repo/b')])
def test_only_whole_paths_are_replaced(path, text):
    got = publishing.scrub(text, {path: '.'})
    assert 'ann/' not in got.lower() and 'ann\\' not in got.lower()
    assert publishing.scrub('/opt/data-2/x', {'/opt/data': '.'}) == '/opt/data-2/x'


# Failures

def test_a_failing_cell_leaves_the_former_result(spare):
    root = spare('# the roll\nfaces = 6', 'print("so far")', 'faces/0')
    with pytest.raises(RunError) as e: execution.run_study('die', root=root, progress=False)
    assert str(e.value) == 'study 11_die stopped in cell [5] `faces/0`: ZeroDivisionError: division by zero'
    assert files(root/'reports/11_die/smoke') == {'summary.json': b'{"former": true}'}
    assert [p.name for p in (root/'reports/11_die').iterdir() if p.name.startswith('.')] == []
    kept = (root/'reports/11_die/smoke.failed/failed.ipynb').read_text()
    assert 'so far' in kept and str(root) not in kept


@pytest.mark.skipif(os.name == 'nt', reason='no SIGKILL')
def test_a_killed_kernel_is_one_sentence(spare):
    root = spare('x = 1', f'import os; os.kill(os.getpid(), {signal.SIGKILL:d})', 'x')
    with pytest.raises(RunError, match=r'^study 11_die: the kernel was killed at `import os; os\.kill') as e:
        execution.run_study('die', root=root, progress=False)
    assert '\n' not in str(e.value) and 'memory' in str(e.value)
    assert files(root/'reports/11_die/smoke') == {'summary.json': b'{"former": true}'}
    assert [p.name for p in (root/'reports/11_die').iterdir() if p.name.startswith('.')] == []


def test_an_error_of_ours_keeps_its_type(spare, monkeypatch, tmp_path):
    monkeypatch.delenv('NEUROSEG_DATA', raising=False)
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    root = spare('from neuroseg.reports.study_run import StudyRun',
                 'StudyRun("11_die", profile=profile, out=out).cohort()', profiles={'cpu': {}})
    with pytest.raises(DataError, match=r"^study 11_die: cohort 'lgg' is not at .* set NEUROSEG_DATA") as e:
        execution.run_study('die', 'cpu', root=root, progress=False)
    assert '\n' not in str(e.value)
    assert (root/'reports/11_die/cpu.failed/failed.ipynb').exists()


def test_a_cohort_that_is_absent_leaves_out_its_study(spare, monkeypatch, tmp_path, capsys):
    "Of all studies, those run that can; a study that is named and cannot run is an error before anything runs."
    monkeypatch.delenv('NEUROSEG_DATA', raising=False)
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    root = spare(*COIN, profiles={'needs': ['gbm'], 'smoke': {}, 'cpu': {}})
    with pytest.raises(DataError, match="study 11_die needs cohort 'gbm', which is not on this machine"):
        reproduce.reproduce(['die'], 'cpu', root=root, trial=True, progress=False)
    with pytest.raises(DataError, match="study 11_die needs cohort 'gbm'"):
        reproduce.reproduce(profile='cpu', root=root, trial=True, progress=False)
    (root/'nbs/studies/12_die.ipynb').write_bytes((root/'nbs/studies/11_die.ipynb').read_bytes())
    (root/'reports/12_die').mkdir()
    (root/'reports/12_die/params.yml').write_text('cpu: {}')
    done = reproduce.reproduce(profile='cpu', root=root, trial=True, progress=False)
    assert [d.parent.name for d in done] == ['12_die'] and not (root/'reports/11_die/cpu').exists()
    assert "left out: study 11_die needs cohort 'gbm'" in capsys.readouterr().out
    shutil.rmtree(root/'reports/12_die'); (root/'nbs/studies/12_die.ipynb').unlink()


@pytest.mark.parametrize('cells,says', [
    (('1',), 'ended without `run.finish()`'),
    ((*COIN[:2], 'n_tosses = 5', *COIN[2:]), 'did not run with the given n_tosses'),
    ((*COIN[:5], ('numbers', "def numbers(run): return dict(heads=len(os.sep)*n_tosses)"), *COIN[6:]),
     "use a name that none of them defines (name 'os' is not defined)"),
    ((*COIN[:5], ('numbers', "COUNT = []\ndef numbers(run): return dict(heads=len(COUNT))"), COIN[6], 'COUNT.append(1)',
      COIN[7]), 'its numbers do not follow from its tables alone'),
    ((*COIN[:7], 'def draw_late(run): return draw_sides(run)\nrun.figure(draw_late)', COIN[7]),
     'no cell tagged `figures` draws late'),
])
def test_a_study_that_breaks_the_rules_is_refused(spare, cells, says):
    root = spare(*cells)
    with pytest.raises(core.NeurosegError, match=re.escape(says)):
        execution.run_study('die', root=root, progress=False, n_tosses=3)
    assert files(root/'reports/11_die/smoke') == {'summary.json': b'{"former": true}'}


def test_a_good_run_clears_the_failed_one(repo):
    failed = repo/'reports/10_coin/smoke.failed'
    failed.mkdir()
    execution.run_study('coin', root=repo, progress=False)
    assert not failed.exists()


# Order, resuming, index

@pytest.fixture
def calls(monkeypatch):
    "What `reproduce` would run, without running it."
    done = []
    monkeypatch.setattr(reproduce, 'run_study', lambda name, profile, **kw: done.append((name, profile, kw['resume'])))
    return done


def test_studies_run_by_number(tmp_path, calls):
    for name, profiles in {'20_b': {'smoke': {}, 'cpu': {}}, '3_c': {'smoke': {}},
                           '100_a': {'smoke': {}, 'cpu': {}}}.items():
        write_study(tmp_path, name, ['1'], profiles)
    reproduce.reproduce(root=tmp_path, progress=False)
    reproduce.reproduce(['a', '20'], 'cpu', root=tmp_path, progress=False, resume=True)
    reproduce.reproduce(profile='cpu', root=tmp_path, progress=False)
    assert calls == [('3_c','smoke',False), ('20_b','smoke',False), ('100_a','smoke',False), ('20_b','cpu',True),
                     ('100_a','cpu',True), ('20_b','cpu',False), ('100_a','cpu',False)]


@pytest.mark.parametrize('names', [['a', 'nothing'], ['3_c', 'a']])
def test_what_cannot_run_is_said_before_the_first_study(tmp_path, calls, names):
    for name, profiles in {'3_c': {'smoke': {}}, '100_a': {'smoke': {}, 'cpu': {}}}.items():
        write_study(tmp_path, name, ['1'], profiles)
    with pytest.raises(ConfigError): reproduce.reproduce(names, 'cpu', root=tmp_path, progress=False)
    assert calls == []


def test_what_is_kept_needs_committed_code(tmp_path, calls):
    write_study(tmp_path, '3_c', ['1'], {'smoke': {}, 'cpu': {}})
    git = lambda *args: subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=t', '-c', 'user.email=t@localhost',
                                        *args], check=True, capture_output=True)
    git('init'); git('add', '.'); git('commit', '-m', 'all')
    reproduce.reproduce(profile='cpu', root=tmp_path, progress=False)
    (tmp_path/'reports'/'3_c'/'cpu.txt').write_text('a result') # what a study made is no change of the code
    reproduce.reproduce(profile='cpu', root=tmp_path, progress=False)
    (tmp_path/'nbs'/'new.py').write_text('x = 1')
    with pytest.raises(RunError, match='not committed'):
        reproduce.reproduce(profile='cpu', root=tmp_path, progress=False)
    reproduce.reproduce(profile='smoke', root=tmp_path, progress=False)
    reproduce.reproduce(profile='cpu', root=tmp_path, progress=False, trial=True)
    assert [c[1] for c in calls] == ['cpu', 'cpu', 'smoke', 'cpu']


def test_a_result_that_moved_is_named(tmp_path, monkeypatch):
    write_study(tmp_path, '3_c', ['1'], {'cpu': {}})
    file = tmp_path/'reports'/'3_c'/'cpu'/'summary.json'
    write_json(file, dict(dice=.84, n=88, minutes=3.))
    (tmp_path/'reports'/'tolerances.yml').write_text("3_c: {'minutes': null, 'dice': 0.02}")
    for found, moved in ((dict(dice=.83, n=88, minutes=9.), None), (dict(dice=.83, n=88, minutes=9.), None),
                         (dict(dice=.80, n=88, minutes=9.), 'dice 0.83 -> 0.8'),
                         (dict(dice=.80, n=87, minutes=9.), 'n 88 -> 87')):
        monkeypatch.setattr(reproduce, 'run_study', lambda name, profile, *, found=found, **kw: write_json(file, found))
        if moved is None: reproduce.reproduce(profile='cpu', root=tmp_path, progress=False, compare=True)
        else:
            with pytest.raises(RunError, match=f'1 number.*3_c {moved}'):
                reproduce.reproduce(profile='cpu', root=tmp_path, progress=False, compare=True)


def test_what_is_committed_is_what_counts(tmp_path, monkeypatch):
    "A second try must not pass because the first has left its result behind."
    write_study(tmp_path, '3_c', ['1'], {'cpu': {}})
    file = tmp_path/'reports'/'3_c'/'cpu'/'summary.json'
    write_json(file, dict(dice=.84))
    git = lambda *args: subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=t', '-c', 'user.email=t@localhost',
                                        *args], check=True, capture_output=True)
    git('init'); git('add', '.'); git('commit', '-m', 'all')
    monkeypatch.setattr(reproduce, 'run_study', lambda name, profile, **kw: write_json(file, dict(dice=.5)))
    for _ in range(2):
        with pytest.raises(RunError, match='dice 0.84 -> 0.5'):
            reproduce.reproduce(profile='cpu', root=tmp_path, progress=False, compare=True)


def test_the_tolerances_of_the_repository_are_of_its_studies(root):
    assert set(reproduce.tolerances(root)) <= set(study_notebook.studies(root))


def test_resume_skips_only_what_would_be_the_same(repo, monkeypatch):
    ran = []
    def record(*args, **kwargs): ran.append(args[0].stem); raise RunError('ran')
    monkeypatch.setattr(execution, 'execute', record)
    def runs(**params):
        ran.clear()
        try: execution.run_study('coin', 'cpu', root=repo, resume=True, progress=False, **params)
        except RunError: pass
        return bool(ran)
    assert not runs()
    assert runs(n_tosses=10)
    study = repo/'nbs/studies/10_coin.ipynb'
    before = study.read_bytes()
    nb = nbformat.read(study, as_version=4)
    nb.cells[0].source += '\n\nMore prose.'
    nbformat.write(nb, study)
    assert not runs()
    nb.cells[-1].source += '\n1'
    nbformat.write(nb, study)
    assert runs()
    study.write_bytes(before)
    assert not runs()


def test_a_change_of_the_library_is_a_change_of_the_code(tmp_path):
    write_study(tmp_path, '11_die', ['1'], {})
    (tmp_path/'neuroseg').mkdir()
    (tmp_path/'neuroseg/core.py').write_text('x = 1')
    notebook = tmp_path/'nbs/studies/11_die.ipynb'
    before = execution.code_hash(notebook)
    (tmp_path/'neuroseg/core.py').write_text('x = 2')
    assert execution.code_hash(notebook) != before
    (tmp_path/'neuroseg/core.py').write_text('x = 1')
    assert execution.code_hash(notebook) == before
    (tmp_path/'neuroseg/scans').mkdir()
    (tmp_path/'neuroseg/scans/nifti.py').write_text('x = 1')
    assert execution.code_hash(notebook) != before


def test_the_index_lists_kept_runs_only(repo):
    for name in ('smoke', 'gpu', 'private_site', '.1a2b-cpu', 'cpu.failed'):
        folder = repo/'reports/10_coin'/name
        if not folder.exists(): shutil.copytree(repo/'reports/10_coin/cpu', folder)
    (repo/'reports/10_coin/cpu.failed/run.json').unlink()
    rows = [l for l in reproduce.write_index(repo).read_text().splitlines() if l.startswith('| [10_coin]')]
    for name in ('gpu', 'private_site', '.1a2b-cpu', 'cpu.failed'): shutil.rmtree(repo/'reports/10_coin'/name)
    assert len(rows) == 1 and '| Tossed. | cpu, ' in rows[0] and '(10_coin/cpu/notebook.html)' in rows[0]


# The runs that this repository keeps

def kept_runs(root): return [f.parent for f in sorted(root.glob('reports/*/cpu/run.json'))]


def test_the_index_is_in_step(root, tmp_path):
    for f in root.glob('reports/*/cpu/*.json'):
        (tmp_path/f.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f, tmp_path/f.relative_to(root))
    for f in root.glob('reports/*/cpu/notebook.*'): shutil.copy(f, tmp_path/f.relative_to(root))
    shutil.copytree(root/'nbs/studies', tmp_path/'nbs/studies')
    stored, now = (f.read_text(encoding='utf-8') for f in (root/'reports/README.md', reproduce.write_index(tmp_path)))
    assert stored == now, 'run neuroseg.reports.reproduce.write_index()'


def test_kept_summaries_are_what_their_tables_say(root):
    "Their sentences too; the numbers are held by the golden test."
    assert kept_runs(root)
    waits = waiting_runs(root) # until they are run again
    for run in kept_runs(root):
        if f'{run.parent.name}/{run.name}' in waits: continue
        assert read_json(run/'summary.json')['answer'] == stored_run.summary(run)['answer'], run


def test_answers_are_short(root):
    for run in kept_runs(root):
        found = read_json(run/'summary.json')
        assert len(re.findall(r'[.?!](?=\s|$)', found['answer'])) <= 6 and len(found['answer'].split()) <= 125, run
        assert '. ' not in found['headline'], run


OF_A_MACHINE = re.compile(r'(?:/home|/Users|/root|/tmp|/work)/\S{0,40}|[A-Z]:\\\\Users\S{0,40}|'
                          r'ipykernel_\d+|"papermill": \{')


def test_kept_runs_name_no_machine_and_are_small(root):
    for run in kept_runs(root):
        assert OF_A_MACHINE.findall(text_of(run)) == [], run
        limit = {name: 200_000 if name.startswith('figures/') else 1_000_000 for name in files(run)}
        big = {name: len(b) for name, b in files(run).items() if len(b) > limit[name]}
        assert big == {}, run


def test_no_sealed_patient_stands_in_a_kept_run(root):
    for run in kept_runs(root): assert [p for p in SEALED if p in text_of(run)] == [], run


# A new study

def test_a_new_study_edits_no_library_module(repo):
    "A made-up study has its figures and numbers, redrawn and recomputed in another process from stored tables alone."
    run = repo/'reports/10_coin/cpu'
    before = files(run)
    code = f"""
from neuroseg.reports.reproduce import figures, write_summaries
from neuroseg.core import read_json, write_json
from pathlib import Path
run = Path({str(run)!r})
write_json(run/'summary.json', read_json(run/'summary.json') | dict(heads=-1, headline='Old.'))
print(len(figures(root={str(repo)!r})), [f.parent.name for f in write_summaries(root={str(repo)!r})])
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=repo)
    assert done.stdout.strip() == "1 ['cpu']"
    assert files(run)['summary.json'] == before['summary.json'] and 'figures/sides.png' in files(run)
    shutil.rmtree(run/'figures')


def test_the_library_names_no_study(root):
    "Nothing about one study stands in the library."
    modules = {f: f.read_text(encoding='utf-8') for f in sorted((root/'neuroseg').rglob('*.py'))}
    for study in study_notebook.studies(root):
        named = [f.name for f, text in modules.items() if f"'{study}'" in re.sub(r'#.*|root=[^,]*', '', text)]
        assert named == [], (study, named)
