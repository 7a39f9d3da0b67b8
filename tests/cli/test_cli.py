"The command line: every command on small data, and every kind of bad input in one sentence with exit code 2."
import csv, errno, json, os, shutil, signal, socket, struct, subprocess, sys, time, zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from bright_model import bright, head, write_model, write_nifti
from sealed_phantoms import NAMES, write_repository, write_sealed

from neuroseg.app.serving import APP_FLAGS
from neuroseg.cli import COMMANDS, main, parser
from neuroseg.core import DataError, read_json
from neuroseg.scans.nifti import read_mask

posix = pytest.mark.skipif(os.name!='posix', reason='needs POSIX')


@pytest.fixture(scope='module')
def card(tmp_path_factory): return str(write_model(tmp_path_factory.mktemp('model'), bright()))


@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
    "Five small synthetic patients in the LGG layout."
    folder = tmp_path_factory.mktemp('cohort')
    assert main(['phantom', str(folder), '--patients', '5', '--size-px', '48', '--slices', '6']) == 0
    return folder/'kaggle_3m'


@pytest.fixture
def scan(tmp_path): return write_nifti(tmp_path/'scan_flair.nii.gz', head()[0])


@pytest.fixture
def run(capsys):
    "Run a command line in this process."
    def _run(*words):
        try: code = main([str(w) for w in words])
        except SystemExit as e: code = e.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)
    return _run


def process(*words, cwd=None, env=None, **kw):
    "Start a command line in a process of its own."
    code = 'import sys; from neuroseg.cli import main; sys.exit(main())'
    return subprocess.Popen([sys.executable, '-c', code, *map(str, words)], cwd=cwd, env={**os.environ, **(env or {})},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def refused(done, *says):
    "Exit code 2, one sentence, no traceback."
    assert done.code == 2, done
    assert done.err.startswith('neuroseg: ') and done.err.count('\n') == 1 and 'Traceback' not in done.err, done.err
    for s in says: assert s in done.err, done.err


def nothing_in(folder):
    "No result, and nothing hidden that was left behind."
    return not folder.exists() or not any(folder.rglob('*'))


# What every command has -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_explains_itself_with_an_example(run, name):
    done = run(*name.split(), '--help')
    assert done.code == 0 and 'examples:' in done.out and f'neuroseg {name}' in done.out


def test_help_lists_every_command(run):
    text = run('--help').out
    assert {n.split()[0] for n in COMMANDS} <= set(text.split())


WRONG = ['', 'segment', 'predict a.png', 'predict a.png -o out --threshold 2', 'data', 'data fetch brats',
         'predict a.png -o out --sequences t2', 'predict a.png -o out --threads 0', 'phantom x --patients many',
         'phantom x --patients 0', 'phantom x --seed -1', 'train x -o y --workers -1', '--hel']


@pytest.mark.parametrize('line', WRONG)
def test_a_wrong_command_line_exits_2(run, line):
    done = run(*line.split())
    assert done.code == 2 and done.out == '' and 'usage:' in done.err


@posix
def test_help_is_cheap(root):
    "Processor time rather than wall time, so that a busy machine does not fail the test."
    def seconds(*words):
        before = os.times()
        process(*words, cwd=root).communicate()
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system
    assert min(seconds('--help') for _ in range(3)) < .5


def test_help_imports_nothing_but_core(root):
    code = ('import sys; from neuroseg.cli import parser; parser().format_help(); '
            'print(*sorted(m for m in sys.modules if m.startswith("neuroseg")))')
    out = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True).stdout
    assert {m.removeprefix('neuroseg').split('.')[1] for m in out.split()[1:]} == {'cli', 'commands', 'core'}


# Name of a command to its arguments in the first version: none may be lost, since scripts use them
OPTIONS = {
    'predict': 'inputs --series --as -o --out --sample --model --threshold --no-flips --sequences --threads',
    'series': 'folder --json',
    'phantom': 'dest --patients --seed --layout --size-px --slices',
    'data verify': 'folder --layout --names',
    'data fetch': 'cohort --dest',
    'validate': 'cohort -o --out --model --table --fold --flair-only --seen --public --no-flips --layout --threads',
    'train': 'cohort -o --out --fold --judged-by --config --set --workers --dask --private --name --layout --threads',
    'finetune': 'cohort -o --out --model --rehearse --set --private --name --layout --threads',
    'evaluate': 'cohort -o --out --model --fold --flair-only --empty --no-distances --seen --sealed --reason '
                '--no-flips --private --layout --threads',
    'reproduce': 'studies --profile --on --to --resume --compare --trial',
    'figures': 'studies',
    'claims': '--write',
    'remote pack': 'lgg gbm -o --out',
    'remote train': 'packed -o --out --seeds --minutes --runs --no-tf32 --set',
    'privacy mark': 'folder --name --public',
    'privacy check': 'paths --cohort',
    'app': '--port --address --model',
    'model': 'card --json'}


def sub_parsers(p, name=''):
    "Each command of the parser, by its full name."
    groups = [a.choices for a in p._actions if isinstance(a.choices, dict)]
    if not groups: yield name, p
    for word, q in (item for choices in groups for item in choices.items()):
        yield from sub_parsers(q, f'{name} {word}'.strip())


def test_no_option_is_lost():
    have = {name: {f for a in p._actions for f in a.option_strings or [a.dest]} for name, p in sub_parsers(parser())}
    assert {name: set(words.split()) - have.get(name, set()) for name,
            words in OPTIONS.items()} == {n: set() for n in OPTIONS}


def test_help_tells_what_the_sequences_are(run):
    assert 'pre, T1 before contrast (t1); post, T1 after contrast (t1ce' in run('--help').out
    assert 'pre (t1)' in run('predict', '--help').out


def test_the_streams_of_the_process_stay(hospital, card, tmp_path, monkeypatch):
    "Not even the guard of a private cohort replaces them, before, during or after a command."
    import neuroseg.evaluation.cohort_score as room
    out, err, seen, score = sys.stdout, sys.stderr, [], room.evaluate_cases
    def looking(*args, **kwargs): seen.append((sys.stdout is out, sys.stderr is err)); return score(*args, **kwargs)
    monkeypatch.setattr(room, 'evaluate_cases', looking)
    assert main(['evaluate', str(hospital), '-o', str(tmp_path/'scores'), '--no-distances', '--model', card]) == 0
    assert seen == [(True, True)] and sys.stdout is out and sys.stderr is err


@pytest.fixture
def hospital(tmp_path):
    "Two small patients of a private cohort."
    small = ['--patients', '2', '--size-px', '48', '--slices', '6']
    assert main(['phantom', str(tmp_path/'ward'), '--layout', 'hospital', *small]) == 0
    (tmp_path/'ward'/'cohort.json').unlink() # which says that they are synthetic
    return tmp_path/'ward'


def test_a_name_that_the_terminal_cannot_write(root, tmp_path, card):
    path = write_nifti(tmp_path/'فحص_flair.nii.gz', head()[0])
    job = process('predict', path, '-o', tmp_path/'out', '--model', card, cwd=root,
                  env=dict(PYTHONIOENCODING='ascii', PYTHONUTF8='0'))
    out, err = job.communicate(timeout=120)
    assert job.returncode == 0 and r'\u0641' in out, err


def test_version(run):
    import neuroseg
    assert run('--version').out.startswith(f'neuroseg {neuroseg.__version__}, Python 3.')


def test_debug_shows_the_traceback(run, tmp_path, monkeypatch):
    monkeypatch.setenv('NEUROSEG_DEBUG', '1')
    with pytest.raises(DataError): main(['data', 'verify', str(tmp_path/'nowhere')])


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch, cohort):
    import neuroseg.cohorts.cohort
    def broken(*a, **k): raise KeyError('dice')
    monkeypatch.setattr(neuroseg.cohorts.cohort, 'verify', broken)
    with pytest.raises(KeyError): main(['data', 'verify', str(cohort)])


# predict --------------------------------------------------------------------------------------------------------------

def test_predict_many_kinds_at_once(run, card, scan, slice_png, tmp_path):
    out = tmp_path/'out'
    done = run('predict', scan, slice_png, '-o', out, '--model', card, '--no-flips', '--threads', 1)
    assert done.code == 0 and done.err == ''
    assert sorted(p.name for p in out.iterdir()) == ['cases.csv', 'scan_flair', 'slice']
    reproduce = read_json(out/'scan_flair'/'report.json')
    assert f"{reproduce['volume_ml']:.1f} mL" in done.out
    assert read_mask(out/'scan_flair'/'mask.nii.gz').sum() == reproduce['lesion_px'] > 0


def test_predict_threshold_and_flips_arrive(run, card, scan, tmp_path):
    def px(name, *words):
        assert run('predict', scan, '-o', tmp_path/name, '--model', card, *words).code == 0
        return read_json(tmp_path/name/'scan_flair'/'report.json')
    assert px('a', '--threshold', '.9')['lesion_px'] < px('b', '--threshold', '.1')['lesion_px']
    assert px('a', '--threshold', '.9')['threshold'] == .9


def test_predict_the_built_in_sample(run, card, tmp_path):
    assert run('predict', '--sample', '-o', tmp_path, '--model', card).code == 0
    assert (tmp_path/'phantom'/'mask.nii.gz').exists()


def test_predict_with_named_sequences(run, card, tmp_path):
    a, b = (write_nifti(tmp_path/f'{n}.nii.gz', head()[0]) for n in 'ab')
    assert run('predict', a, b, '--sequences', 'post,flair', '-o', tmp_path/'out', '--model', card).code == 0
    assert read_json(tmp_path/'out'/'b'/'report.json')['scan']['sequences'] == ['flair', 'post']
    refused(run('predict', a, b, '--sequences', 'flair', '-o', tmp_path/'x', '--model', card),
            '2 file(s) but 1 sequence name(s)')


def test_one_bad_scan_does_not_stop_the_others(run, card, scan, tmp_path):
    (tmp_path/'bad.png').write_bytes(b'nothing')
    done = run('predict', tmp_path/'bad.png', scan, '-o', tmp_path/'out', '--model', card)
    assert done.code == 2 and '`bad.png`' in done.err and '1 of 2 scans were segmented, 1 failed (bad)' in done.err
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == ['cases.csv', 'scan_flair']
    assert 'scan_flair: lesion' in done.out


def test_sigterm_leaves_nothing_half(card, tmp_path):
    v = head((40, 120, 120))[0]
    for p in range(30): write_nifti(tmp_path/'scans'/f'p{p}_flair.nii.gz', v) if (tmp_path/'scans').mkdir(
        exist_ok=True) is None else None
    words = ['predict', tmp_path/'scans', '-o', tmp_path/'out', '--model', card, '--threads', '1']
    p = subprocess.Popen([sys.executable, '-m', 'neuroseg', *map(str, words)], stderr=subprocess.PIPE, text=True)
    while not list((tmp_path/'out').glob('*/report.json')) and p.poll() is None: time.sleep(.05)
    p.terminate()
    assert 'interrupted' in p.communicate(timeout=60)[1] and p.returncode == 143
    left = [q for q in (tmp_path/'out').iterdir() if q.is_dir()]
    assert 0 < len(left) < 30 and all((q/'report.json').exists() and not q.name.startswith('.') for q in left)
    assert (tmp_path/'out'/'cases.csv').exists()


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='only root can become another user')
def test_a_user_without_home_and_name(tmp_path):
    code = ("import getpass, os; from pathlib import Path; from neuroseg.commands.command import _settle_home; "
            "from neuroseg.core import cache_dir; os.setgid(54321); os.setuid(54321); _settle_home(); "
            "print(getpass.getuser(), oct(Path.home().stat().st_mode)[-3:], cache_dir().is_relative_to(Path.home()))")
    gone = ('HOME', 'USER', 'LOGNAME', 'LNAME', 'USERNAME', 'NEUROSEG_CACHE', 'XDG_CACHE_HOME', 'TMPDIR')
    env = {k: v for k, v in os.environ.items() if k not in gone}
    done = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    assert done.stdout.split() == ['uid54321', '700', 'True'], done.stderr


@pytest.mark.parametrize('encoding', ['cp1252', 'ascii'])
def test_a_console_that_knows_few_letters(card, tmp_path, encoding):
    f = write_nifti(tmp_path/'Łódź_flair.nii.gz', head()[0])
    words = [sys.executable, '-m', 'neuroseg', 'predict', str(f), '-o', str(tmp_path/'out'), '--model', str(card)]
    done = subprocess.run(words, env=os.environ | dict(PYTHONIOENCODING=encoding, PYTHONUTF8='0'), capture_output=True)
    assert done.returncode == 0 and b'Traceback' not in done.stderr and b'lesion' in done.stdout


@pytest.mark.parametrize('words,says', [
    (['--set', 'prep.size_px=16'], 'prep.size_px is 16'), (['--set', 'seed=-1'], 'seed is -1'),
    (['--set', 'lr=0'], 'lr is 0'), (['--set', 'lr=0,001'], 'expected float'), (['--set', 'empty_weight=2'], '2'),
    (['--set', 'prep.context=9'], 'prep.context is 9'), (['--name', 'my model/v1'], 'is no name of a file'),
    (['--name', '..'], 'is no name of a file')])
def test_settings_are_refused_before_training(run, cohort, tmp_path, words, says):
    done = run('train', cohort, '-o', tmp_path/'run', *words)
    assert done.code == 2 and says in done.err and not (tmp_path/'run').exists()


# Bad input ------------------------------------------------------------------------------------------------------------

def zero_png(path):
    "A PNG of no pixels."
    def chunk(kind, data): return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    header = struct.pack('>IIBBBBB', 0, 0, 8, 0, 0, 0, 0)
    chunks = chunk(b'IHDR', header) + chunk(b'IDAT', zlib.compress(b'')) + chunk(b'IEND', b'')
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunks)


def cut_tiff(path):
    Image.fromarray(head()[0][6].astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])


def nan_volume(path):
    v = head()[0]; v[3, 40:42, 40] = np.nan
    write_nifti(path, v)


def four_d(path):
    import nibabel as nib
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 4, 3), np.float32), np.eye(4)), path)


def only_masks(path):
    path.mkdir(); Image.fromarray(np.zeros((32, 32), np.uint8)).save(path/'slice_1_mask.png')


def touched(path): path.touch()


# Name of the input to how it is made, and words of the sentence
BAD = {
    'cut.tif': (cut_tiff, 'cannot be read as a picture'),
    'text.nii.gz': (lambda p: p.write_text('no volume at all'), 'no NIfTI volume'),
    'four.nii.gz': (four_d, '4-D'),
    'zero.png': (zero_png, '`zero.png`'),
    'empty.png': (touched, '`empty.png`'),
    'empty.nii': (touched, '`empty.nii`'),
    'nan.nii.gz': (nan_volume, '2 of 92,160 voxels that are NaN'),
    'folder': (lambda p: p.mkdir(), 'holds no images'),
    'masks': (only_masks, 'holds no images'),
    'absent.nii.gz': (lambda p: None, 'does not exist'),
    'slice_mask.png': (touched, 'mask by its name'),
    'black.png': (lambda p: Image.new('L', (64, 64)).save(p), 'one flat value')}


@pytest.mark.parametrize('name', BAD)
def test_bad_input_is_refused_in_a_sentence(run, card, tmp_path, name):
    make, says = BAD[name]
    make(tmp_path/name)
    refused(run('predict', tmp_path/name, '-o', tmp_path/'out', '--model', card), name.split('.')[0], says)
    assert nothing_in(tmp_path/'out')


@pytest.mark.parametrize('kind', ['rgba', '16 bit', 'palette', 'one bit less'])
def test_odd_pictures_work(run, card, tmp_path, kind):
    grey, lesion = head(); grey, lesion = grey[7], lesion[7]
    colours = np.dstack([grey]*3+[np.full_like(grey, 255)]).astype(np.uint8)
    picture = {'rgba': Image.fromarray(colours, 'RGBA'), '16 bit': Image.fromarray((grey*200).astype(np.uint16)),
               'palette': Image.fromarray(grey.astype(np.uint8)).convert('P'),
               'one bit less': Image.fromarray((grey/2).astype(np.uint8))}[kind]
    picture.save(tmp_path/'odd.png')
    assert run('predict', tmp_path/'odd.png', '-o', tmp_path/'out', '--model', card).code == 0
    mask = read_mask(tmp_path/'out'/'odd'/'mask.png')
    assert 2*(mask & lesion).sum()/(mask.sum()+lesion.sum()) > .8


@pytest.mark.parametrize('content,says',
                         [('{"format": 1', 'not valid JSON'), ('[]', 'no model card'), ('['*100_000, 'not valid JSON'),
                          (None, 'cannot be read')])
def test_a_bad_card(run, scan, tmp_path, content, says):
    if content: (tmp_path/'mine.json').write_text(content)
    refused(run('predict', scan, '-o', tmp_path/'out', '--model', tmp_path/'mine.json'), '`mine.json`', says)
    assert nothing_in(tmp_path/'out')


def test_weights_that_were_changed(run, card, scan, tmp_path):
    for end in ('.json', '.onnx'): shutil.copy(Path(card).with_suffix(end), tmp_path)
    with open((tmp_path/Path(card).name).with_suffix('.onnx'), 'ab') as f: f.write(b'x')
    refused(run('predict', scan, '-o', tmp_path/'out', '--model', tmp_path/Path(card).name), 'SHA-256 differs')


def test_an_output_that_is_a_file(run, card, scan, tmp_path):
    (tmp_path/'out').write_text('mine')
    refused(run('predict', scan, '-o', tmp_path/'out', '--model', card), '`out` is a file')
    assert (tmp_path/'out').read_text() == 'mine'


def test_a_folder_of_somebody_elses_is_not_replaced(run, card, scan, tmp_path):
    (tmp_path/'out'/'scan_flair').mkdir(parents=True); (tmp_path/'out'/'scan_flair'/'notes.txt').write_text('mine')
    refused(run('predict', scan, '-o', tmp_path/'out', '--model', card), '`scan_flair` is there already')
    assert [p.name for p in (tmp_path/'out').rglob('*') if p.is_file()] == ['notes.txt']


# The machine says no --------------------------------------------------------------------------------------------------

@pytest.fixture
def full_disk(tmp_path):
    "A file system of 16 kB."
    folder = tmp_path/'disk'; folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=16k', 'tmpfs', folder]
    if os.name!='posix' or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip('only root can mount a small disk')
    yield folder
    subprocess.run(['umount', folder], check=True)


def test_a_full_disk(run, card, scan, full_disk):
    refused(run('predict', scan, '-o', full_disk/'out', '--model', card), 'no space left on device')
    assert nothing_in(full_disk/'out')


def test_a_full_disk_keeps_the_former_result(run, card, scan, tmp_path, monkeypatch):
    "Wherever a result is written: the disk fills up at the last file."
    import neuroseg.segmentation.result
    assert run('predict', scan, '-o', tmp_path/'out', '--model', card).code == 0
    before = {p.name: p.read_bytes() for p in (tmp_path/'out'/'scan_flair').iterdir()}
    def full(path, obj): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(neuroseg.segmentation.result, 'write_json', full)
    refused(run('predict', scan, '-o', tmp_path/'out', '--model', card, '--threshold', '.9'), 'no space left on device')
    assert {p.name: p.read_bytes() for p in (tmp_path/'out'/'scan_flair').iterdir()} == before
    assert [p.name for p in (tmp_path/'out').iterdir()] == ['scan_flair']


@posix
def test_a_file_that_may_not_grow(scan, card, tmp_path, root):
    "The kernel's own refusal, in a process of its own."
    import resource
    job = process('predict', scan, '-o', tmp_path/'out', '--model', card, cwd=root,
                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)))
    out, err = job.communicate(timeout=300)
    refused(SimpleNamespace(code=job.returncode, out=out, err=err), 'file too large')
    assert nothing_in(tmp_path/'out')


@posix
def test_no_permission(run, card, scan, tmp_path, monkeypatch):
    locked = tmp_path/'locked'; locked.mkdir()
    if os.geteuid()==0: monkeypatch.setattr(os, 'mkdir', _denied(locked, os.mkdir))
    else: locked.chmod(0o555)
    refused(run('predict', scan, '-o', locked/'out', '--model', card), 'permission denied')
    assert nothing_in(locked)


def _denied(folder, mkdir):
    "`os.mkdir` as somebody who is not root sees it: root may write everywhere."
    def denied(path, *args, **kwargs):
        if Path(path).absolute().is_relative_to(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return mkdir(path, *args, **kwargs)
    return denied


@pytest.mark.skipif(os.name!='posix' or os.geteuid()!=0, reason='needs root, who then steps down')
def test_an_input_that_may_not_be_read(run, card, tmp_path):
    "Root reads everything, so it becomes nobody for the length of the call, whose imports have been made before."
    import tempfile
    with tempfile.TemporaryDirectory(dir='/tmp') as d:
        scan = write_nifti(Path(d)/'scan.nii.gz', head()[0])
        os.chmod(d, 0o755); model = Path(d)/'model'; model.mkdir()
        for end in ('.json', '.onnx'): shutil.copy(Path(card).with_suffix(end), model/f'm{end}')
        assert run('predict', scan, '-o', tmp_path/'warm', '--model', model/'m.json').code == 0
        scan.chmod(0o600)
        os.seteuid(65534)
        try: done = run('predict', scan, '-o', Path(d)/'out', '--model', model/'m.json')
        finally: os.seteuid(0)
        refused(done, '`scan.nii.gz` may not be read (permission denied)')
        assert nothing_in(Path(d)/'out')


@posix
def test_ctrl_c_leaves_nothing_behind(tmp_path, root):
    job = process('phantom', tmp_path/'cohort', '--patients', 500, '--size-px', 48, '--slices', 6, cwd=root)
    deadline = time.time()+300
    while not any(tmp_path.glob('cohort/.*/TCGA_*')) and time.time()<deadline and job.poll() is None: time.sleep(.05)
    job.send_signal(signal.SIGINT)
    out, err = job.communicate(timeout=120)
    assert (job.returncode, out, err) == (130, '', 'neuroseg: interrupted; run the same command again to resume\n')
    assert [p for p in tmp_path.rglob('*') if p.is_file()] == []


@posix
def test_nobody_reads_on(root, card):
    "`neuroseg model | head -n 1`"
    job = process('model', card, cwd=root)
    job.stdout.close()
    assert (job.wait(timeout=120), job.stderr.read()) == (0, '')
    job.stderr.close()


def test_too_little_memory(run, cohort, monkeypatch):
    import neuroseg.cohorts.cohort
    def big(*a, **k): np.empty(2**55)
    monkeypatch.setattr(neuroseg.cohorts.cohort, 'verify', big)
    refused(run('data', 'verify', cohort), 'not enough memory')


# Cohorts --------------------------------------------------------------------------------------------------------------

def test_verify_answers_by_its_exit_code(run, cohort, tmp_path):
    shutil.copytree(cohort, tmp_path/'kaggle_3m')
    assert run('data', 'verify', tmp_path).code == 0
    next((tmp_path/'kaggle_3m').rglob('*_2_mask.tif')).unlink()
    done = run('data', 'verify', tmp_path)
    assert done.code == 1 and 'missing mask' in done.out


@pytest.mark.parametrize('make,says',
                         [(lambda d: None, 'there is no folder'), (lambda d: d.mkdir(), 'follows no known layout'),
                          (lambda d: d.write_text('x'), 'there is no folder')])
def test_verify_of_no_cohort(run, tmp_path, make, says):
    make(tmp_path/'data')
    refused(run('data', 'verify', tmp_path/'data'), says)


@pytest.mark.parametrize('layout,files', [('hospital', 'images'), ('nifti', 'flair')])
def test_phantom_in_other_layouts(run, tmp_path, layout, files):
    words = ['--patients', '1'] if layout=='hospital' else []
    assert run('phantom', tmp_path/'c', '--layout', layout, '--size-px', 48, '--slices', 12, *words).code == 0
    assert run('data', 'verify', tmp_path/'c', '--names').out.startswith(f'c ({layout}): no faults')


@pytest.mark.parametrize('words', [('--size-px', '5'), ('--slices', '2')])
def test_phantom_refuses_nonsense(run, tmp_path, words):
    refused(run('phantom', tmp_path/'c', *words))
    assert nothing_in(tmp_path/'c')


def test_fetch_passes_its_folder_on(run, tmp_path, monkeypatch):
    import neuroseg.cohorts.fetch
    class Report:
        ok = False
        def __str__(self): return 'one fault'
    monkeypatch.setattr(neuroseg.cohorts.fetch, 'fetch_lgg', lambda dest: Report() if dest==str(tmp_path) else None)
    done = run('data', 'fetch', 'lgg', '--dest', tmp_path)
    assert (done.code, done.out) == (1, 'one fault\n')


# Train and evaluate ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def trained(cohort, tmp_path_factory):
    "A run of one pass with a network of a few filters."
    from neuroseg.learn.networks import MODELS, ThesisUnet
    folder, MODELS['tiny'] = tmp_path_factory.mktemp('run'), lambda n_in, pretrained: ThesisUnet(n_in, (4, 8))
    os.environ['NEUROSEG_CACHE'] = str(folder/'cache')
    (folder/'recipe.json').write_text('{"model": "tiny", "epochs": 9, "bs": 4}')
    words = ['train', str(cohort), '-o', str(folder/'run'), '--fold', '1', '--config', str(folder/'recipe.json'),
             '--set', 'epochs=1', 'prep.size_px=32']
    assert main(words) == 0
    yield words, folder/'run'
    del MODELS['tiny'], os.environ['NEUROSEG_CACHE']


def test_train_writes_everything_down(trained):
    _, folder = trained
    assert {'patients.csv', 'summary.json', 'run.json', 'plan.json', 'history.csv',
            'weights.safetensors'} <= {p.name for p in folder.iterdir()}
    card, summary = read_json(folder/'model'/'model.json'), read_json(folder/'summary.json')
    assert card['recipe']['epochs'] == 1 and card['recipe']['prep']['size_px'] == 32
    rows = list(csv.DictReader(open(folder/'patients.csv')))
    assert {r['patient'] for r in rows} == set(card['split']['test'])
    assert set(card['split']['test']).isdisjoint(card['split']['train'])
    for name in ('all sequences', 'FLAIR only'):
        dice = [float(r['dice']) for r in rows if r['input']==name]
        mean = pytest.approx(np.mean(dice))
        assert summary[name]['scores']['dice']['mean'] == mean and card['metrics'][name]['dice']['mean'] == mean
    assert len(card['data']['hash']) == 64 and card['seconds'] is not None


def test_train_again_only_reads_the_result(run, trained, monkeypatch):
    import neuroseg.learn.cross_validation
    words, folder = trained
    def never(*a, **k): raise AssertionError('trained again')
    monkeypatch.setattr(neuroseg.learn.cross_validation, 'train', never)
    done = run(*words)
    assert done.code == 0 and 'all sequences' in done.out


def test_another_recipe_in_the_same_folder_is_refused(run, trained):
    words, folder = trained
    refused(run(*words, 'lr=1e-4'), '`run` holds a run that differs in recipe.lr')


def test_a_trained_model_predicts(run, trained, cohort, tmp_path):
    words, folder = trained
    case = next(p for p in cohort.iterdir() if p.is_dir())
    assert run('predict', case, '-o', tmp_path/'out', '--model', folder/'model'/'model.json').code == 0
    assert read_json(tmp_path/'out'/case.name/'report.json')['model']['name'] == 'model'


def test_train_passes_on_what_was_asked(run, cohort, tmp_path, monkeypatch):
    import neuroseg.learn.cross_validation as room
    asked, score = [], dict(scores=dict(dice=dict(n=5, mean=.8, median=.8, mean_ci95=(.7, .9))))
    def note(name, gives): monkeypatch.setattr(room, name, lambda *a, **k: asked.append((name, a, k)) or gives)
    note('cross_validate', {'all sequences': score}); note('fit_everyone', tmp_path/'kept.json')
    done = run('train', cohort, '-o', tmp_path/'cv', '--fold', 'all', '--workers', 2, '--set', 'epochs=1', '--name',
               'mine')
    assert done.code == 0 and '0.700 to 0.900' in done.out and f'--judged-by {tmp_path/"cv"}' in done.out
    assert f"model: {tmp_path/'kept.json'}" in run('train', cohort, '-o', tmp_path, '--judged-by', tmp_path/'cv').out
    (first, (_, out), how), (second, _, whole) = asked
    assert (first, out, how['workers']) == ('cross_validate', str(tmp_path/'cv'), 2)
    assert (how['cfg'].epochs, how['name']) == (1, 'mine')
    assert (second, whole['scores']) == ('fit_everyone', str(tmp_path/'cv'))


@pytest.mark.slow
def test_folds_side_by_side_and_a_model_of_everybody(run, cohort, tmp_path):
    "Two processes train five folds, each patient scored by a network not trained on it; then a model of all patients."
    small = ['epochs=1', 'pretrained=false', 'bs=4', 'slices_per_epoch=4', 'prep.size_px=32']
    done = process('train', cohort, '-o', tmp_path/'cv', '--fold', 'all', '--workers', '2', '--set', *small,
                   env={'NEUROSEG_CACHE': str(tmp_path/'cache')})
    out, err = done.communicate(timeout=500)
    assert done.returncode == 0 and '--judged-by' in out, err
    rows = [r for r in csv.DictReader(open(tmp_path/'cv'/'patients.csv')) if r['input']=='all sequences']
    assert sorted(r['fold'] for r in rows) == list('01234') and len({r['patient'] for r in rows}) == 5
    for r in rows:
        assert r['patient'] not in read_json(tmp_path/'cv'/f"fold_{r['fold']}"/'model'/'model.json')['split']['train']
    assert run('train', cohort, '-o', tmp_path/'kept', '--judged-by', tmp_path/'cv').code == 0
    card = read_json(tmp_path/'kept'/'model'/'model.json')
    assert len(card['split']['train']) == 5
    assert card['metrics']['all sequences']['dice']['mean'] == pytest.approx(np.mean([float(r['dice']) for r in rows]))
    refused(run('evaluate', cohort, '-o', tmp_path/'scores', '--model', tmp_path/'kept'/'model'/'model.json'),
            '5 of these patients are in the training set')


def test_evaluate_refuses_patients_that_taught_the_model(run, trained, cohort, tmp_path):
    words, folder = trained
    card = folder/'model'/'model.json'
    refused(run('evaluate', cohort, '-o', tmp_path/'a', '--model', card), '4 of these patients are in the training set')
    assert nothing_in(tmp_path/'a')
    done = run('evaluate', cohort, '--fold', 1, '-o', tmp_path/'b', '--model', card)
    assert done.code == 0 and 'none of them in the training set' in done.out
    dice = read_json(tmp_path/'b'/'summary.json')['scores']['dice']['mean']
    assert dice == pytest.approx(read_json(folder/'summary.json')['all sequences']['scores']['dice']['mean'])
    assert run('evaluate', cohort, '-o', tmp_path/'c', '--model', card, '--seen', '--no-distances',
               '--flair-only').code == 0
    assert len(list(csv.DictReader(open(tmp_path/'c'/'patients.csv')))) == 5


def test_evaluate_with_a_missing_mask(run, cohort, card, tmp_path):
    shutil.copytree(cohort, tmp_path/'kaggle_3m')
    next((tmp_path/'kaggle_3m').rglob('*_2_mask.tif')).unlink()
    refused(run('evaluate', tmp_path/'kaggle_3m', '-o', tmp_path/'out', '--model', card, '--no-distances'),
            'has no mask')
    assert nothing_in(tmp_path/'out')


def test_sealed_patients_are_never_scored(cohort, tmp_path):
    one = next(p for p in cohort.iterdir() if p.is_dir())
    for name in ('TCGA_CS_4942_19970222', 'TCGA_CS_4941_19960909'): shutil.copytree(one, tmp_path/'kaggle_3m'/name)
    from neuroseg.cohorts.cohort import Cohort
    from neuroseg.evaluation.cohort_score import scorable_cases
    assert [c.patient for c in scorable_cases(Cohort.open(tmp_path))] == ['TCGA_CS_4941']


@pytest.mark.parametrize('words,says', [
    ('--sealed', 'is opened for a reason'), ('--sealed --reason release', 'is opened for a reason'),
    ('--reason x', '--reason belongs to --sealed'), ('', 'name it with -o OUT'),
    ('--sealed --reason R --fold 0 --seen', 'leave out --fold, --seen'), ('--sealed --reason R -o x', 'leave out -o'),
    ('--sealed --reason R --no-flips --empty 0', 'leave out --empty, --no-flips'),
    ('--sealed --reason R --flair-only --no-distances --private', 'leave out --flair-only, --no-distances, --private')])
def test_the_sealed_test_has_no_options(run, cohort, tmp_path, monkeypatch, words, says):
    (tmp_path/'nbs'/'studies').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    refused(run('evaluate', cohort, *words.split()), says)
    assert not (tmp_path/'reports').exists()


def test_the_sealed_test_is_opened_once_and_written_down(run, tmp_path, monkeypatch, root):
    pytest.importorskip('seaborn')
    repo, told = write_repository(tmp_path/'repo', root), dict(split=dict(train=['PH_1']))
    card, folder = write_model(tmp_path/'model', bright(), **told), write_sealed(tmp_path/'lgg')
    monkeypatch.chdir(repo)
    words = 'evaluate', folder, '--model', card, '--sealed', '--reason', 'A test of the command on synthetic patients.'
    done = run(*words)
    assert done.code == 0 and 'all sequences     22' in done.out and 'FLAIR only        22' in done.out, done.err
    assert 'reports/27_validation/sealed_1 and to reports/LEDGER.md; commit both' in done.out
    assert 'on synthetic patients' in (repo/'reports/LEDGER.md').read_text()
    refused(run(*words), 'was scored on', 'a model is scored once')
    few = write_sealed(tmp_path/'few', NAMES[:5])
    other = write_model(tmp_path/'other', bright(), threshold=.4, **told, name='other')
    refused(run('evaluate', few, '--model', other, *words[4:]), 'was scored on')
    shutil.rmtree(repo/'reports/27_validation'); (repo/'reports/LEDGER.md').unlink()
    refused(run('evaluate', few, '--model', other, *words[4:]), '5 of the 22 sealed patients are in')


@pytest.mark.parametrize('words,says', [('--set epochs', 'no setting'), ('--set epoch=3', 'unknown setting epoch'),
                                        ('--set prep.size_px=big', '`prep.size_px`'), ('--set model=resnet', 'resnet'),
                                        ('--fold 9', 'fold 9'), ('--config absent.json', '`absent.json`')])
def test_train_refuses_nonsense(run, cohort, tmp_path, words, says):
    refused(run('train', cohort, '-o', tmp_path/'run', *words.split()), says)


# Studies, application, model ------------------------------------------------------------------------------------------

def test_reproduce_and_figures_pass_on_what_was_asked(run, monkeypatch, tmp_path):
    from neuroseg.reports import reproduce
    asked = []
    monkeypatch.setattr(reproduce, 'reproduce', lambda names, profile, resume, compare,
                        trial: asked.append((names, profile, resume, compare, trial)) or [tmp_path])
    monkeypatch.setattr(reproduce, 'figures', lambda names: asked.append(names) or [tmp_path/'dice.png'])
    assert 'notebook.html' in run('reproduce', 'thesis', '--profile', 'cpu', '--resume').out
    assert run('reproduce').code == 0 and run('figures').out.startswith('1 figure(s) drawn')
    assert asked == [(['thesis'], 'cpu', True, False, False), (None, 'smoke', False, False, False), None]


def test_reproduce_on_kaggle_passes_on_what_was_asked(run, monkeypatch, tmp_path):
    import neuroseg.reports.kaggle_kernels as room
    asked = []
    def note(*args, say, **how): say('running'); asked.append((args, how)); return tmp_path/'gpu'
    monkeypatch.setattr(room, 'reproduce_on_kaggle', note)
    done = run('reproduce', 'thesis', '--on', 'kaggle')
    assert done.code == 0 and done.err == 'running\n' and 'results in ' in done.out
    assert run('reproduce', '21', '--on', 'kaggle', '--profile', 'cpu', '--to', 'x').code == 0
    assert asked == [(('thesis', 'gpu'), dict(out=None)), (('21', 'cpu'), dict(out='x'))]
    refused(run('reproduce', 'thesis', 'learner', '--on', 'kaggle'), 'name one, not 2')
    refused(run('reproduce', 'thesis', '--on', 'kaggle', '--resume'), 'leave out --resume')
    assert run('reproduce', 'thesis', '--on', 'colab').code == 2


def test_the_application_is_started_for_this_machine_only(run, monkeypatch, card):
    import streamlit.web.cli as web
    seen = {}
    monkeypatch.setenv('NEUROSEG_MODEL', '')
    monkeypatch.setattr(web, 'main', lambda args,
                        standalone_mode: seen.update(args=args, model=os.environ['NEUROSEG_MODEL']))
    assert run('app', '--model', card).code == 0
    assert {'--server.address=localhost', '--browser.gatherUsageStats=false',
            '--server.maxUploadSize=1000'} <= set(seen['args'])
    assert seen['model'] == card
    assert Path(seen['args'][1]).is_file()


def test_every_flag_of_the_application_exists(run):
    from streamlit import config
    assert {f for f in APP_FLAGS if f not in config._config_options_template} == set()


def test_a_port_in_use(run):
    with socket.socket() as s:
        s.bind(('localhost', 0)); s.listen()
        refused(run('app', '--port', s.getsockname()[1]), 'is in use')


def test_a_missing_extra_is_named(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'torch', None)
    refused(run('train', tmp_path, '-o', tmp_path/'run'), "pip install '.[train]'")


def test_model_prints_its_card(run, card):
    assert json.loads(run('model', card, '--json').out)['name'] == 'bright'
    assert 'name: bright' in run('model', card).out


def test_a_folder_cannot_be_named_by_sequence(tmp_path, capsys):
    (tmp_path/'study').mkdir()
    assert main(['predict', str(tmp_path/'study'), '--sequences', 'flair', '-o', str(tmp_path/'out')]) == 2
    assert '--series UID --as flair' in capsys.readouterr().err and not (tmp_path/'out').exists()


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() != 0, reason='only root can become a user without a home')
def test_a_home_that_cannot_be_written_is_replaced():
    code = ("import os; from neuroseg.commands.command import _settle_home; "
            "os.setgid(65534); os.setuid(65534); os.environ['HOME'] = '/'; _settle_home(); "
            "print(os.access(os.environ['HOME'], os.W_OK), os.environ['HOME'] != '/')")
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='/')
    assert out.stdout.split() == ['True', 'True'], out.stderr
