"Faults that a lesson cannot show: full disks, refused permissions, killed processes, and what a bare import costs."
import errno, gzip, json, math, os, random, signal, subprocess, sys, tempfile, threading, time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from neuroseg import core
from neuroseg.core import (ConfigError, DataError, InputError, Message, MissingExtraError, NeurosegError, OutputError,
                           RunRecord, ShapeError, as_message, atomic_dir, atomic_path, cache_dir, data_dir, git_commit,
                           hardware, hash_files, jsonable, need, read_json, record_run, seed_everything, sha256_array,
                           sha256_file, versions, write_json)

ROOT = Path(core.__file__).parents[1]
posix = pytest.mark.skipif(os.name=='nt', reason='needs POSIX signals, permissions or device files')

def names(folder): return sorted(p.name for p in Path(folder).iterdir())

def run(code, **kwargs):
    "Run `code` in a fresh interpreter that sees this checkout."
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=60, **kwargs)


# --- errors

def test_builtin_types_still_catch():
    assert issubclass(InputError, ValueError) and issubclass(ConfigError, ValueError)
    assert issubclass(ShapeError, InputError)
    assert issubclass(MissingExtraError, ImportError) and not issubclass(DataError, ValueError)

def test_need_names_the_extra_and_the_library():
    with pytest.raises(MissingExtraError, match=r"^`no_such_library` is needed .*pip install '\.\[app\]'$") as e:
        need('no_such_library.part', extra='app')
    assert e.value.name=='no_such_library' and '\n' not in str(e.value)

def test_need_keeps_other_import_errors(tmp_path, monkeypatch):
    (tmp_path/'lib_missing_name.py').write_text('from json import no_such_name')
    (tmp_path/'lib_missing_dep.py').write_text('import no_such_dependency')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match='no_such_name') as e: need('lib_missing_name', extra='train')
    assert not isinstance(e.value, NeurosegError)
    with pytest.raises(ModuleNotFoundError, match='no_such_dependency') as e: need('lib_missing_dep', extra='train')
    assert not isinstance(e.value, NeurosegError)

def test_need_returns_submodule(): assert need('os.path', extra='train') is os.path


# --- messages

def test_a_message_may_hold_braces_and_other_messages():
    "A file may be called `{0}`; a fault may be a part of another message."
    fault = Message('fault', 'its size is {n}', 'error', n=3)
    whole = Message('unusable', '`{name}` cannot be used: {fault}', 'error', name='{0}.json', fault=fault)
    assert whole == '`{0}.json` cannot be used: its size is 3' and whole.values['fault'].code == 'fault'
    assert as_message(json.loads(json.dumps(whole.facts))) == whole

def test_an_error_of_a_library_has_a_message(tmp_path):
    with pytest.raises(InputError) as e: read_json(tmp_path/'absent.json')
    assert (e.value.message.code, e.value.message) == ('error', str(e.value))


# --- folders

@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    monkeypatch.delenv('NEUROSEG_DATA', raising=False)
    return tmp_path

def test_cache_dir_is_not_created(folders):
    assert cache_dir()==folders/'cache' and not (folders/'cache').exists()

@pytest.mark.parametrize('platform,env,expected', [
    ('linux', {'XDG_CACHE_HOME': '/x'}, '/x/neuroseg'), ('linux', {}, '/home/u/.cache/neuroseg'),
    ('darwin', {}, '/home/u/Library/Caches/neuroseg'), ('win32', {'LOCALAPPDATA': '/local'}, '/local/neuroseg')])
def test_cache_dir_of_each_system(monkeypatch, platform, env, expected):
    for name in ('NEUROSEG_CACHE', 'XDG_CACHE_HOME', 'LOCALAPPDATA'): monkeypatch.delenv(name, raising=False)
    for name,value in env.items(): monkeypatch.setenv(name, value)
    monkeypatch.setattr(core.sys, 'platform', platform)
    monkeypatch.setattr(Path, 'home', lambda: Path('/home/u'))
    assert cache_dir()==Path(expected)

@pytest.mark.parametrize('inside', ['kaggle_3m', 'TCGA_PH_0001_20000101', 'lgg-mri-segmentation/kaggle_3m'])
def test_data_dir_takes_the_variable_as_the_cohort_itself(folders, monkeypatch, inside):
    (folders/'download'/inside).mkdir(parents=True)
    monkeypatch.setenv('NEUROSEG_DATA', str(folders/'download'))
    assert data_dir('lgg')==folders/'download'
    with pytest.raises(DataError): data_dir('hospital')

def test_data_dir_order(folders, monkeypatch):
    for name in ('given', 'data/lgg', 'data/kaggle_3m', 'cache/lgg'): (folders/name).mkdir(parents=True)
    monkeypatch.setenv('NEUROSEG_DATA', str(folders/'data'))
    assert data_dir('lgg', folders/'given')==folders/'given'
    assert data_dir('lgg')==folders/'data'/'lgg'
    (folders/'data'/'lgg').rmdir()
    assert data_dir('lgg')==folders/'data'
    (folders/'data'/'kaggle_3m').rmdir()
    assert data_dir('lgg')==folders/'cache'/'lgg'

def test_data_dir_absent_names_three_ways(folders):
    with pytest.raises(DataError, match="cohort 'lgg'.*pass its folder.*NEUROSEG_DATA.*put it into") as e:
        data_dir('lgg')
    assert str(folders/'cache'/'lgg') in str(e.value) and '\n' not in str(e.value)

def test_data_dir_refuses_a_file(folders):
    (folders/'lgg').touch()
    with pytest.raises(DataError): data_dir('lgg', folders/'lgg')


# --- seeds and fingerprints

def test_seed_everything_repeats_torch_too():
    torch = pytest.importorskip('torch')
    def draw(): return random.random(), float(np.random.rand()), float(torch.rand(1))
    seed_everything(7); a = draw()
    seed_everything(7); b = draw()
    seed_everything(8); c = draw()
    assert a==b and all(x!=y for x,y in zip(a, c))

def test_seed_everything_does_not_import_torch():
    r = run("import sys; from neuroseg.core import seed_everything; seed_everything(1); print('torch' in sys.modules)")
    assert r.stdout.strip()=='False', r.stderr

def test_sha256_file_of_a_file_longer_than_a_buffer(tmp_path):
    import hashlib
    data = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path/'big').write_bytes(data)
    assert sha256_file(tmp_path/'big')==hashlib.sha256(data).hexdigest()

def test_sha256_array_of_views_and_scalars():
    a = np.arange(24).reshape(2,3,4)
    assert sha256_array(a[:,::2])==sha256_array(a[:,::2].copy())
    assert sha256_array(a.T)==sha256_array(a.T.copy()) and sha256_array(a.T)!=sha256_array(a)
    assert sha256_array(np.zeros((0,3)))!=sha256_array(np.zeros((3,0)))
    assert sha256_array(np.float32(1))!=sha256_array(np.float64(1))

def test_hash_files_sees_content_name_and_nothing_else(tmp_path):
    def cohort(root, files):
        for name,data in files.items():
            (root/name).parent.mkdir(parents=True, exist_ok=True); (root/name).write_bytes(data)
        return hash_files(p for p in root.rglob('*') if p.is_file())
    files = {'p1/a.tif': b'1', 'p1/b.tif': b'2', 'p2/a.tif': b'3'}
    base = cohort(tmp_path/'base', files)
    assert cohort(tmp_path/'elsewhere', dict(reversed(files.items())))==base
    assert cohort(tmp_path/'changed', files | {'p2/a.tif': b'4'})!=base
    assert cohort(tmp_path/'swapped', files | {'p1/a.tif': b'2', 'p1/b.tif': b'1'})!=base
    assert cohort(tmp_path/'renamed', {k.replace('p2/a', 'p2/z'):v for k,v in files.items()})!=base
    assert cohort(tmp_path/'fewer', {k:v for k,v in files.items() if k!='p2/a.tif'})!=base

def test_hash_files_is_the_same_for_relative_paths(tmp_path, monkeypatch):
    (tmp_path/'a').write_bytes(b'1'); (tmp_path/'b').write_bytes(b'2')
    absolute = hash_files([tmp_path/'a', tmp_path/'b'])
    monkeypatch.chdir(tmp_path)
    assert hash_files(['b', 'a'])==absolute


# --- atomic writes

def write_text(p): p.write_text('x'*100_000)
def write_array(p): np.save(p, np.ones(100_000))
def write_gzip(p):
    with gzip.open(p, 'wb') as f: f.write(os.urandom(100_000))
def write_image(p):
    from PIL import Image
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300,300), np.uint8)).save(p)

writers = pytest.mark.parametrize('write,name',
                                  [(write_text, 'a.json'), (write_array, 'a.npy'), (write_gzip, 'a.nii.gz'),
                                   (write_image, 'a.png')])

@posix
@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
@writers
def test_full_device_leaves_nothing(tmp_path, write, name):
    "The temporary file is made a link to a device that is always full, so real writers meet a real ENOSPC."
    with pytest.raises(OutputError, match=rf'^cannot write `{name}`: .') as e, atomic_path(tmp_path/name) as tmp:
        tmp.symlink_to('/dev/full')
        write(tmp)
    assert names(tmp_path)==[] and str(tmp_path) not in str(e.value)

@posix
@writers
def test_file_size_limit_keeps_the_old_file(tmp_path, write, name):
    "A real write that fails half way: the process may write 20 kB a file and not more."
    import resource
    (tmp_path/name).write_text('old')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match=f'cannot write `{name}`'), atomic_path(tmp_path/name) as tmp: write(tmp)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path)==[name] and (tmp_path/name).read_text()=='old'

@pytest.mark.parametrize('number,words',
                         [(errno.ENOSPC, 'no space left'), (errno.EACCES, 'permission denied'),
                          (errno.EROFS, 'read-only')])
def test_failing_write_says_why(tmp_path, monkeypatch, number, words):
    def broken(self, *a, **k): raise OSError(number, os.strerror(number))
    monkeypatch.setattr(Path, 'write_text', broken)
    with pytest.raises(OutputError, match=f'(?i)^cannot write `run.json`: {words}'): write_json(tmp_path/'run.json', {})
    assert names(tmp_path)==[]

def test_disk_that_fills_at_the_last_moment(tmp_path, monkeypatch):
    "Network disks report a failed write only when the file is synced."
    def broken(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(core.os, 'fsync', broken)
    with pytest.raises(OutputError, match='cannot write `a.txt`'), atomic_path(tmp_path/'a.txt') as tmp:
        tmp.write_text('whole')
    assert names(tmp_path)==[]

def as_nobody(what):
    "Run `what` in a forked child without root's rights; its exit code is 0 if it returned True."
    pid = os.fork()
    if not pid:
        try:
            if os.geteuid()==0: os.setgroups([]); os.setgid(65534); os.setuid(65534)
            os._exit(0 if what() else 1)
        except BaseException: os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

@posix
@pytest.mark.parametrize('write', [lambda p: write_json(p/'out'/'run.json', {}),
                                   lambda p: write_json(p/'run.json', {}), lambda p: atomic_dir(p/'case').__enter__()])
def test_folder_without_permission(tmp_path, write):
    locked = tmp_path/'locked'; locked.mkdir(); locked.chmod(0o555)
    for p in [tmp_path, *tmp_path.parents]: # pytest makes folders that only their owner may enter
        if p==Path(tempfile.gettempdir()): break
        p.chmod(p.stat().st_mode | 0o055)
    def refused():
        try: write(locked)
        except OutputError as e: return 'permission denied' in str(e) and str(tmp_path) not in str(e)
    assert as_nobody(refused)==0
    assert names(locked)==[]

def test_parent_that_is_a_file(tmp_path):
    (tmp_path/'out').touch()
    with pytest.raises(OutputError, match='cannot write `run.json`'): write_json(tmp_path/'out'/'run.json', {})

def test_target_that_is_a_folder(tmp_path):
    (tmp_path/'mask.png').mkdir()
    with pytest.raises(OutputError, match='cannot write `mask.png`'), atomic_path(tmp_path/'mask.png') as tmp:
        tmp.write_text('x')
    assert names(tmp_path)==['mask.png']

def test_block_that_writes_nothing(tmp_path):
    with pytest.raises(OutputError, match='cannot write `mask.png`: no such file'), atomic_path(tmp_path/'mask.png'):
        pass
    assert names(tmp_path)==[]

def test_missing_input_is_not_called_an_output(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path/'mask.png') as tmp:
        tmp.write_text('half')
        (tmp_path/'scan.nii').read_bytes()
    assert names(tmp_path)==[]

@posix
@pytest.mark.parametrize('kill', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize('old', [None, 'old'])
def test_killed_half_way(tmp_path, kill, old):
    if old: (tmp_path/'mask.txt').write_text(old)
    r = run(f'''
import os
from neuroseg.core import atomic_path
with atomic_path({str(tmp_path/'mask.txt')!r}) as tmp:
    f = open(tmp, 'w'); f.write('half'); f.flush()
    os.kill(os.getpid(), {int(kill)})
    import time; time.sleep(30)
''')
    assert r.returncode!=0
    visible = [n for n in names(tmp_path) if not n.startswith('.')]
    assert visible==(['mask.txt'] if old else [])
    if old: assert (tmp_path/'mask.txt').read_text()==old
    if kill==signal.SIGINT: assert names(tmp_path)==visible # an interrupt cleans up, only a kill cannot

@posix
def test_dir_killed_half_way(tmp_path):
    r = run(f'''
import os, signal
from neuroseg.core import atomic_dir
with atomic_dir({str(tmp_path/'case')!r}) as tmp:
    (tmp/'mask.txt').write_text('half')
    os.kill(os.getpid(), signal.SIGKILL)
''')
    assert r.returncode==-signal.SIGKILL and not (tmp_path/'case').exists()

def test_writers_at_the_same_time_do_not_mix(tmp_path):
    failed = []
    def write(letter):
        try:
            with atomic_path(tmp_path/'a') as tmp:
                with open(tmp, 'w') as f:
                    for _ in range(50): f.write(letter*1000); f.flush(); time.sleep(.001)
        except OutputError as e: failed.append(e)
    threads = [threading.Thread(target=write, args=(c,)) for c in 'abcd']
    for t in threads: t.start()
    for t in threads: t.join()
    assert not failed and len(set((tmp_path/'a').read_text()))==1 and names(tmp_path)==['a']

@posix
def test_written_files_have_the_usual_rights(tmp_path):
    (tmp_path/'plain').touch()
    write_json(tmp_path/'atomic', {})
    assert (tmp_path/'plain').stat().st_mode==(tmp_path/'atomic').stat().st_mode

def test_relative_path_survives_a_change_of_folder(tmp_path, monkeypatch):
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_path('a.txt') as tmp:
        tmp.write_text('x')
        os.chdir('elsewhere')
    assert names(tmp_path)==['a.txt','elsewhere'] and names(tmp_path/'elsewhere')==[]

def test_atomic_dir_makes_parents_and_takes_an_empty_folder(tmp_path):
    with atomic_dir(tmp_path/'a'/'b') as tmp: (tmp/'x').touch()
    (tmp_path/'c').mkdir()
    with atomic_dir(tmp_path/'c') as tmp: (tmp/'y').touch()
    assert names(tmp_path/'a')==['b'] and names(tmp_path/'a'/'b')==['x'] and names(tmp_path/'c')==['y']

def test_atomic_dir_replaced_only_when_the_new_one_is_whole(tmp_path):
    with atomic_dir(tmp_path/'case') as tmp: (tmp/'old').touch()
    with pytest.raises(RuntimeError), atomic_dir(tmp_path/'case', replace=True) as tmp:
        (tmp/'new').touch()
        raise RuntimeError
    assert names(tmp_path/'case')==['old']
    with atomic_dir(tmp_path/'case', replace=True) as tmp: (tmp/'new').touch()
    assert names(tmp_path/'case')==['new'] and names(tmp_path)==['case']

def test_atomic_dir_brings_the_old_folder_back_if_the_move_fails(tmp_path, monkeypatch):
    with atomic_dir(tmp_path/'case') as tmp: (tmp/'old').touch()
    rename = Path.rename
    def broken(self, target):
        if Path(target).name=='case' and (self/'new').exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(self))
        return rename(self, target)
    monkeypatch.setattr(Path, 'rename', broken)
    with pytest.raises(OutputError, match='cannot write `case`'), atomic_dir(tmp_path/'case', replace=True) as tmp:
        (tmp/'new').touch()
    assert names(tmp_path)==['case'] and names(tmp_path/'case')==['old']

def test_atomic_dir_full_disk(tmp_path):
    with pytest.raises(OutputError, match='cannot write `case`: no space left'), atomic_dir(tmp_path/'case') as tmp:
        (tmp/'report.json').write_text('{}')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path)==[]

def test_nested_writes_name_the_inner_file(tmp_path):
    def broken(p): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputError, match='cannot write `mask.png`'), atomic_dir(tmp_path/'case') as folder:
        with atomic_path(folder/'mask.png') as tmp: broken(tmp)
    assert names(tmp_path)==[]


# --- JSON

def test_json_has_no_nan(tmp_path):
    write_json(tmp_path/'a.json',
               dict(nan=math.nan, inf=math.inf, np32=np.float32('nan'), deep=[(np.array([1., -np.inf]),)]))
    def refuse(constant): raise AssertionError(constant)
    back = json.loads((tmp_path/'a.json').read_text(), parse_constant=refuse)
    assert back==dict(nan=None, inf=None, np32=None, deep=[[[1., None]]])

def test_json_keeps_types():
    @dataclass
    class Row: a:int; b:tuple
    out = jsonable(dict(i=np.int64(3), t=np.True_, s={'b','a'}, row=Row(1, (2,)), key={1: np.str_('x')},
                        zero=np.array(2.5)))
    assert out==dict(i=3, t=True, s=['a','b'], row=dict(a=1, b=[2]), key={'1': 'x'}, zero=2.5)
    assert type(out['i']) is int and type(out['t']) is bool and type(out['key']['1']) is str

def test_json_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(InputError, match='`complex`'): write_json(tmp_path/'a.json', dict(z=[1j]))
    assert names(tmp_path)==[]

def test_json_is_the_same_file_for_the_same_content(tmp_path):
    write_json(tmp_path/'a', dict(b=1, a={'y': 1, 'x': 'é'})); write_json(tmp_path/'b', dict(a={'x': 'é', 'y': 1}, b=1))
    data = (tmp_path/'a').read_bytes()
    assert data==(tmp_path/'b').read_bytes() and b'\r' not in data and 'é'.encode() in data and data.endswith(b'}\n')

@pytest.mark.parametrize('content', [b'{"a": 1', b'', b'\xff\xfe\x00'])
def test_read_json_of_a_damaged_file(tmp_path, content):
    (tmp_path/'run.json').write_bytes(content)
    with pytest.raises(InputError, match='^`run.json` is not valid JSON'): read_json(tmp_path/'run.json')

def test_read_json_of_no_file(tmp_path):
    for bad in (tmp_path/'run.json', tmp_path):
        with pytest.raises(InputError, match=f'`{bad.name}` cannot be read') as e: read_json(bad)
        assert str(bad) not in str(e.value)


# --- the run record

@pytest.fixture
def repo(tmp_path, monkeypatch):
    for name in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'): monkeypatch.delenv(name, raising=False)
    def git(*args):
        subprocess.run(['git', '-C', str(tmp_path), '-c', 'user.name=n', '-c', 'user.email=n@example.org', *args],
                       check=True, capture_output=True)
    git('init')
    (tmp_path/'lib').mkdir(); (tmp_path/'lib'/'a.py').write_text('1'); (tmp_path/'.gitignore').write_text('.venv\n')
    git('add', '.'); git('commit', '-m', 'one')
    return tmp_path

def test_commit_is_dirty_by_any_file_but_reports(repo):
    commit, dirty = git_commit(repo/'lib')
    assert len(commit)==40 and not dirty
    (repo/'reports').mkdir(); (repo/'reports'/'x.csv').touch()
    assert git_commit(repo/'lib')==(commit, False)
    (repo/'notebook.ipynb').touch()
    assert git_commit(repo/'lib')==(commit, True)
    (repo/'notebook.ipynb').unlink(); (repo/'lib'/'a.py').write_text('2')
    assert git_commit(repo/'lib')==(commit, True)

def test_commit_of_an_untracked_folder_is_nobodys(repo):
    installed = repo/'.venv'/'site-packages'; installed.mkdir(parents=True); (installed/'a.py').touch()
    assert git_commit(installed)==('', False)

def test_commit_without_git(repo, monkeypatch):
    monkeypatch.setenv('PATH', '')
    assert git_commit(repo/'lib')==('', False)

def test_versions_of_what_is_absent():
    assert versions('no-such-distribution')==dict(python='.'.join(map(str, sys.version_info[:3])),
                                                  **{'no-such-distribution': None})

def test_hardware_is_publishable():
    h = hardware()
    assert h['cores']>=1 and jsonable(h)==h
    private = {os.environ.get('USER') or '?', os.uname().nodename if hasattr(os, 'uname') else '?', str(Path.home())}
    assert not private & {str(v) for v in h.values()}

def test_peak_mb_sees_an_allocation():
    r = run('''
import numpy as np
from neuroseg.core import peak_mb
a = peak_mb(); x = np.ones(25_000_000); y = x.sum(); del x; print(a, peak_mb())''')
    before, after = map(float, r.stdout.split())
    assert 150 < after-before < 260 # 200 MB, freed again

@posix
def test_peak_mb_of_a_child_is_its_own():
    "A small process started by a big one must not report the big one's peak."
    big = np.ones(60_000_000); assert big.sum()>0
    assert float(run('from neuroseg.core import peak_mb; print(peak_mb())').stdout) < 300

def test_record_run_records(tmp_path):
    params = dict(seed=np.int64(3), path=Path('a')/'b', folds=[0])
    with record_run(params, data_hash='abc') as rec:
        assert math.isnan(rec.seconds) and math.isnan(rec.peak_mb)
        params['folds'].append(1) # what the run was given stays what it was
    rec.save(tmp_path/'run.json')
    back = read_json(tmp_path/'run.json')
    assert set(back)=={'params','versions','commit','dirty','data_hash','hardware','started','seconds','peak_mb'}
    assert back['params']==dict(seed=3, path='a/b', folds=[0]) and back['data_hash']=='abc' and back['seconds']>=0
    assert back['versions']['numpy']==np.__version__ and back['started'].endswith('+00:00')

def test_record_run_of_a_failing_block_is_completed_and_raises():
    with pytest.raises(ZeroDivisionError), record_run({}) as rec: 1/0 # noqa: B018
    assert rec.seconds>=0 and rec.peak_mb>0

def test_unfinished_record_has_no_time(tmp_path):
    RunRecord({}, {}, '', False, None, {}, '2025-01-01T00:00:00+00:00').save(tmp_path/'run.json')
    assert read_json(tmp_path/'run.json')['seconds'] is None


# --- what a bare import costs

@pytest.mark.parametrize('module', ['core', 'scans.masks', 'evaluation.metrics'])
def test_import_is_light(module):
    heavy = 'torch monai fastai scipy sklearn pandas matplotlib cc3d nibabel pydicom onnxruntime PIL IPython'.split()
    r = run(f"import sys, neuroseg.{module}; print([m for m in {heavy} if m in sys.modules])")
    assert r.stdout.strip()=='[]', r.stdout+r.stderr
