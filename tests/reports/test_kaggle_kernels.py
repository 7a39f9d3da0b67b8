"A study on Kaggle: the real client against a stand-in of the service, and the kernel's notebook executed here."
import io, json, os, shutil, stat, subprocess, sys, tarfile, zipfile

import pytest

for library in ('kaggle', 'papermill', 'nbconvert', 'yaml'): pytest.importorskip(library)
import nbformat
from kaggle_service import Service, serving
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from conftest import ROOT
from neuroseg.core import ConfigError, DataError, read_json, RunError
from neuroseg.reports import kaggle_kernels as room
from neuroseg.reports.kaggle_kernels import CODE, kernel_notebook, log_tail, pack_code, reproduce_on_kaggle
from neuroseg.scans.phantom import write_phantom_lgg

STUDY = (('parameters', 'profile = "smoke"\nout = None\nn_tosses = 4'), 'from neuroseg.core import data_dir',
         'from neuroseg.cohorts.cohort import Cohort\nfrom neuroseg.reports.study_run import StudyRun',
         'run = StudyRun("10_coin", profile=profile, out=out, n_tosses=n_tosses)',
         'n = len(Cohort.open(data_dir("lgg")).patients)',
         'run.table("tosses", [dict(toss=i, patients=n) for i in range(n_tosses)])',
         ('numbers', 'from neuroseg.reports.stored_run import table\n'
                     'def numbers(run): return dict(n=len(table(run, "tosses")),\n'
                     '                              patients=int(table(run, "tosses")["patients"][0]))'),
         ('answer', "def headline(n): return 'Tossed.'\ndef answer(n): return 'Tossed.'"),
         'run.finish(numbers, headline, answer)')


def git(repo, *words):
    who = ('-c', 'user.name=a', '-c', 'user.email=a@b.c')
    return subprocess.run(['git', '-C', repo, *who, *words], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope='module')
def committed(tmp_path_factory):
    "A repository with one study and the library without its weights."
    root = tmp_path_factory.mktemp('kernels')/'repo'
    cells = [new_code_cell(c) if isinstance(c, str) else new_code_cell(c[1], metadata=dict(tags=[c[0]])) for c in STUDY]
    for folder in ('nbs/studies', 'reports/10_coin'): (root/folder).mkdir(parents=True)
    kernel = dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    nbformat.write(new_notebook(metadata=kernel, cells=[new_markdown_cell('# A study\n\n> Of coins'), *cells]),
                   root/'nbs/studies/10_coin.ipynb')
    params = 'needs: [lgg]\nsmoke: {}\ngpu: {n_tosses: 9}\nkaggle: {n_tosses: 7}\n'
    (root/'reports/10_coin/params.yml').write_text(params)
    (root/'.gitignore').write_text('reports/*/.*/\nreports/*/gpu/\n__pycache__/\n')
    left_out = shutil.ignore_patterns('weights', 'samples', '__pycache__')
    shutil.copytree(ROOT/'neuroseg', root/'neuroseg', ignore=left_out)
    git(root, 'init', '-q'); git(root, 'add', '.'); git(root, 'commit', '-qm', 'first')
    (root/'README.md').touch(); git(root, 'add', '.'); git(root, 'commit', '-qm', 'second')
    return root


@pytest.fixture
def repo(committed, tmp_path): return shutil.copytree(committed, tmp_path/'repo', symlinks=True)


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    with serving(Service(), tmp_path/'home', monkeypatch) as service:
        monkeypatch.setenv('KAGGLE_API_TOKEN', 'good')
        monkeypatch.setattr(room.time, 'sleep', lambda s: None)
        yield service


def results(repo, extra=(), **changes):
    "The archive that a kernel leaves."
    record = dict(study='10_coin', profile='gpu', commit=git(repo, 'rev-parse', 'HEAD')) | changes
    files = {'run.json': json.dumps(record), 'summary.json': '{"n": 9}', 'tosses.csv': 'toss\n1\n',
             'figures/a.png': 'x'}
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w') as z:
        for name, text in {**files, **dict(extra)}.items():
            if text is not None: z.writestr(name, text)
    return out.getvalue()


def go(repo, **kw): return reproduce_on_kaggle('coin', root=repo, wait_s=0, **kw)
def gpu(repo): return repo/'reports/10_coin/gpu'
def kept(repo): return repo/'reports/10_coin/.kaggle/gpu.json'


def test_a_study_goes_there_and_its_results_come_back(repo, kaggle):
    said = []
    kaggle.states, kaggle.files = ['QUEUED', 'RUNNING', 'RUNNING', 'COMPLETE'], {'results.zip': results(repo)}
    assert go(repo, say=said.append) == gpu(repo)
    assert {p.name for p in gpu(repo).rglob('*')} == {'run.json', 'summary.json', 'tosses.csv', 'figures', 'a.png'}
    assert [s.split()[0] for s in said] == ['study', 'queued', 'running', 'complete'] and not kept(repo).exists()
    sent, = kaggle.pushed
    assert sent['slug'] == 'ann/neuroseg-10-coin' and sent['newTitle'] == 'neuroseg 10 coin'
    assert sent['isPrivate'] and sent['enableGpu'] and sent['enableInternet'] and sent['kernelType'] == 'notebook'
    assert sent['datasetDataSources'] == ['mateuszbuda/lgg-mri-segmentation', 'ann/neuroseg-code']
    assert git(repo, 'rev-parse', 'HEAD') in json.loads(sent['text'])['cells'][1]['source']
    assert git(repo, 'status', '--porcelain') == ''


def test_the_code_goes_as_a_private_data_set_of_one_commit(repo, kaggle, tmp_path):
    kaggle.files = {'results.zip': results(repo)}
    go(repo); go(repo)
    commit = git(repo, 'rev-parse', 'HEAD')
    assert [row for row in kaggle.log if row[0].startswith('new')] == [
        ('new data set', 'ann/neuroseg-code', True), ('new version', 'ann/neuroseg-code', commit)]
    up, = [u for token, u in kaggle.uploads.items() if token in kaggle.datasets['ann/neuroseg-code']]
    assert up['name'] == CODE
    with tarfile.open(fileobj=io.BytesIO(up['data'])) as t: t.extractall(tmp_path/'code', filter='data')
    assert git(tmp_path/'code'/'code.git', 'rev-list', 'HEAD') == commit
    assert git(tmp_path/'code'/'code.git', 'rev-parse', 'HEAD^{tree}') == git(repo, 'rev-parse', 'HEAD^{tree}')


def test_waiting_can_be_interrupted_and_goes_on(repo, kaggle, monkeypatch):
    kaggle.states, kaggle.files = ['RUNNING'], {'results.zip': results(repo)}
    def interrupted(s): raise KeyboardInterrupt
    monkeypatch.setattr(room.time, 'sleep', interrupted)
    with pytest.raises(KeyboardInterrupt): go(repo)
    assert read_json(kept(repo))['kernel'] == 'ann/neuroseg-10-coin'
    (repo/'later.txt').write_text('work goes on while the kernel runs')
    git(repo, 'add', '.'); git(repo, 'commit', '-qm', 'later')
    kaggle.states = ['COMPLETE']
    assert go(repo) == gpu(repo) and len(kaggle.pushed) == 1 and not kept(repo).exists()


def test_to_another_folder(repo, kaggle, tmp_path):
    kaggle.files = {'results.zip': results(repo)}
    assert go(repo, out=tmp_path/'there') == tmp_path/'there' and (tmp_path/'there'/'summary.json').is_file()
    assert not gpu(repo).exists()


def test_no_account_and_an_old_token(repo, kaggle, monkeypatch):
    monkeypatch.setenv('KAGGLE_API_TOKEN', 'old')
    with pytest.raises(ConfigError, match='does not accept your credentials'): go(repo)
    monkeypatch.delenv('KAGGLE_API_TOKEN')
    with pytest.raises(ConfigError, match='make a token on https://www.kaggle.com/settings'): go(repo)
    assert kaggle.pushed == [] and kaggle.uploads == {}


@pytest.mark.parametrize('call', ['CreateDataset', 'SaveKernel'])
@pytest.mark.parametrize('status,says', [(401, 'does not accept your credentials'), (500, 'error 500.*try again later'),
                                         (403, 'verify your phone number.*accept the terms of the data set')])
def test_refused(repo, kaggle, call, status, says):
    kaggle.refuse[call] = status
    with pytest.raises(RunError, match=says) as e: go(repo)
    assert '\n' not in str(e.value) and not kept(repo).exists()


@pytest.mark.parametrize('answer,says', [
    (dict(error='Maximum weekly GPU quota of 30.00 hours reached.'), 'did not start the kernel: Maximum weekly'),
    (dict(invalidDatasetSources=['mateuszbuda/lgg-mri-segmentation']), 'did not attach mateuszbuda.*accept the terms')])
def test_not_started(repo, kaggle, answer, says):
    kaggle.saved = answer
    with pytest.raises(RunError, match=says): go(repo)
    assert not kept(repo).exists()


def test_a_kernel_that_fails_shows_the_end_of_its_log(repo, kaggle):
    lines = [*(f'epoch {i}\n' for i in range(40)), 'Traceback (most recent call last):\n',
             '\x1b[31mValueError\x1b[0m: no\n']
    kaggle.states = ['RUNNING', 'ERROR']
    kaggle.output_log = json.dumps([dict(stream_name='stdout', time=i, data=line) for i, line in enumerate(lines)])
    with pytest.raises(RunError) as e: go(repo)
    said = str(e.value)
    assert 'epoch 39 | Traceback (most recent call last): | ValueError: no;' in said and 'epoch 30' not in said
    assert '(the notebook failed)' in said and '/code/ann/neuroseg-10-coin' in said and '\n' not in said
    assert not kept(repo).exists() and not gpu(repo).exists()
    kaggle.states, kaggle.files = ['COMPLETE'], {'results.zip': results(repo)}
    assert go(repo) and len(kaggle.pushed) == 2


@pytest.mark.parametrize('log', ['', '[]', '{', 'plain\ntext', '[1, 2]', 'null', '{"data": 3}'])
def test_odd_logs(log): assert '\n' not in log_tail(log)


@pytest.mark.parametrize('state,says', [('CANCEL_ACKNOWLEDGED', 'was cancelled'), ('CANCEL_REQUESTED', 'was cancelled'),
                                        (403, 'does not show the kernel')])
def test_a_kernel_that_is_gone(repo, kaggle, state, says):
    kaggle.states = ['RUNNING', state]
    with pytest.raises(RunError, match=says): go(repo)
    assert not kept(repo).exists()


def test_a_service_that_is_away_for_a_while(repo, kaggle):
    kaggle.states, kaggle.files = ['RUNNING', *[500]*9, 'RUNNING', *[503]*9, 'COMPLETE'], {'results.zip': results(repo)}
    assert go(repo) == gpu(repo)
    kaggle.states = [500]
    with pytest.raises(DataError, match='the kernel goes on there'): go(repo)
    assert kept(repo).is_file()


def test_results_that_break_off(repo, kaggle):
    kaggle.files, kaggle.cuts = {'results.zip': results(repo, [('big.csv', 'x'*200_000)])}, [100_000, 70_000]
    assert go(repo) == gpu(repo) and (gpu(repo)/'big.csv').stat().st_size == 200_000
    kaggle.cuts = [10]*9
    with pytest.raises(DataError, match='cannot be downloaded.*run the same command again'): go(repo)
    assert kept(repo).is_file() # the kernel is complete and is not run again
    kaggle.cuts = []
    n = len(kaggle.pushed)
    assert go(repo) and len(kaggle.pushed) == n


def link(name, target):
    info = zipfile.ZipInfo(name); info.external_attr = (stat.S_IFLNK | 0o777) << 16; info.create_system = 3
    return info, target


BAD = {'up': [('../evil.csv', 'x')], 'root': [('/evil.csv', 'x')], 'windows': [('C:/evil.csv', 'x')],
       'link': [link('evil.csv', '/etc/passwd')], 'code': [('evil.py', 'x')], 'no ending': [('evil', 'x')],
       'weights': [('evil.pth', 'x')], 'too many': [(f'evil_{i}.csv', '') for i in range(3001)],
       'no record': [('run.json', None)], 'no summary': [('summary.json', None)], 'broken record': [('run.json', '{')]}


@pytest.mark.parametrize('kind', BAD)
def test_results_that_are_refused(repo, kaggle, kind, tmp_path):
    gpu(repo).mkdir(); (gpu(repo)/'summary.json').write_text('{"former": true}')
    kaggle.files = {'results.zip': results(repo, BAD[kind])}
    with pytest.raises(RunError, match='the results are refused'): go(repo)
    assert [p.name for p in gpu(repo).iterdir()] == ['summary.json'] and not list(tmp_path.rglob('evil*'))


@pytest.mark.parametrize('change', [dict(commit='0'*40), dict(study='11_die'), dict(profile='smoke')])
def test_results_of_another_run_are_refused(repo, kaggle, change):
    kaggle.files = {'results.zip': results(repo, **change)}
    with pytest.raises(RunError, match=f'not a complete run of 10_coin.*{next(iter(change))}'): go(repo)


def test_results_that_are_too_large_or_no_archive(repo, kaggle, monkeypatch):
    kaggle.files = {'results.zip': b'hello'*100}
    with pytest.raises(RunError, match='is damaged'): go(repo)
    kaggle.files = {'other.zip': results(repo)}
    with pytest.raises(RunError, match='left no results.zip'): go(repo)
    monkeypatch.setattr(room, 'MAX_RESULT_BYTES', 100)
    kaggle.files = {'results.zip': results(repo)}
    with pytest.raises(RunError, match='more than the 0 MB expected'): go(repo)
    assert not gpu(repo).exists() and not kept(repo).exists()


def test_only_what_is_committed_and_on_kaggle(repo, kaggle):
    (repo/'new.py').touch()
    with pytest.raises(RunError, match='changes that are not committed'): go(repo)
    (repo/'new.py').unlink()
    (repo/'reports/10_coin/params.yml').write_text('needs: [lgg, gbm]\ngpu: {}\n')
    with pytest.raises(ConfigError, match="needs 'gbm', and only the LGG cohort"): go(repo)
    (repo/'reports/10_coin/params.yml').write_text('smoke: {}\n')
    with pytest.raises(ConfigError, match="has no profile 'gpu'"): go(repo)
    assert kaggle.pushed == [] and kaggle.uploads == {}


def test_the_notebook_of_a_kernel_runs_the_study(repo, kaggle, tmp_path):
    "All but the installation, in folders as Kaggle has them; what it leaves is accepted as the results."
    home = tmp_path/'kaggle'
    for name in ('input/neuroseg-code', 'working'): (home/name).mkdir(parents=True)
    write_phantom_lgg(home/'input'/'lgg-mri-segmentation', n_patients=3, size_px=48, n_slices=4)
    commit = pack_code(repo, home/'input'/'neuroseg-code')
    setup, study = (c['source'] for c in kernel_notebook('10_coin', 'gpu', commit, home=str(home))['cells'][1:])
    lines = setup.splitlines()
    assert 'pip' in lines[-1] and '[train,reproduce]' in lines[-1]
    env = {**os.environ, 'PYTHONPATH': str(home/'temp'/'neuroseg'), 'PYTHONDONTWRITEBYTECODE': '1'}
    source = '\n'.join([*lines[:-1], study])
    done = subprocess.run([sys.executable, '-c', source], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    kaggle.files = {'results.zip': (home/'working'/'results.zip').read_bytes()}
    folder = go(repo)
    record = read_json(folder/'run.json')
    assert (record['commit'], record['dirty'], record['params']['n_tosses']) == (commit, False, 7)
    assert read_json(folder/'summary.json')['patients'] == 3 and (folder/'notebook.html').is_file()
    assert record['tree']['neuroseg'] == git(repo, 'rev-parse', 'HEAD:neuroseg')
