"Kaggle's own client against a local stand-in of the service: whole, broken, refused, tampered with, too big."
import io, json, os, shutil, stat, struct, subprocess, sys, zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('kaggle')

from kaggle_service import Service, serving

from neuroseg.core import ConfigError, DataError, MissingExtraError, OutputError
from neuroseg.cohorts.fetch import at_hand, fetch_lgg, unpack, wanted
from neuroseg.cohorts.kaggle_account import CHUNK_BYTES, client_module, kaggle_api

RNG = np.random.default_rng(0)


def cohort_zip(tops=('kaggle_3m', 'lgg-mri-segmentation/kaggle_3m'), extra=(), n=2, compress=zipfile.ZIP_STORED):
    "Two patients of noise, everything twice, as Kaggle packs it."
    def tif(a):
        out = io.BytesIO(); Image.fromarray(a).save(out, 'TIFF'); return out.getvalue()
    files = {'data.csv': b'Patient,age\n' + b''.join(b'TCGA_PH_%04d,5\n' % i for i in range(1, n+1)),
             'README.md': b'hello'}
    for i in range(1, n+1):
        for k in range(1, 5):
            name = f'TCGA_PH_{i:04}_20000101/TCGA_PH_{i:04}_20000101_{k}'
            files[f'{name}.tif'] = tif(RNG.integers(0, 255, (90, 90, 3), dtype=np.uint8))
            files[f'{name}_mask.tif'] = tif(np.eye(90, dtype=np.uint8)*255)
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', compress) as z:
        for top in tops:
            for f, data in files.items(): z.writestr(f'{top}/{f}', data)
        for info, data in extra: z.writestr(info, data)
    return out.getvalue()


@pytest.fixture(scope='module')
def archive(): return cohort_zip()


@pytest.fixture
def kaggle(archive, tmp_path, monkeypatch):
    with serving(Service(archive), tmp_path/'home', monkeypatch) as service: yield service


def get(kaggle, dest, **kw): return fetch_lgg(dest, wait_s=0, **kw)
def starts(kaggle): return [row[1] for row in kaggle.log if row[0] == 'store']
def part(dest): return dest/'.download'/'lgg-mri-segmentation.zip'


def test_whole(kaggle, tmp_path):
    report = get(kaggle, tmp_path/'lgg')
    assert report.ok and report.counts['patients'] == 2 and report.counts['slices'] == 8
    assert [p.name for p in (tmp_path/'lgg').iterdir()] == ['kaggle_3m']
    assert len([p for p in (tmp_path/'lgg').rglob('*') if p.is_file()]) == 2*4*2 + 2
    assert starts(kaggle) == [0]
    assert get(kaggle, tmp_path/'lgg').hash == report.hash and starts(kaggle) == [0]


def test_cut_and_resumed_within_one_call(kaggle, tmp_path):
    kaggle.cuts = [100_000]
    assert get(kaggle, tmp_path/'lgg').ok
    assert [k for k in starts(kaggle) if k] == [CHUNK_BYTES]


def test_killed_and_resumed_by_the_next_call(kaggle, tmp_path):
    kaggle.cuts = [100_000]+[0]*9
    with pytest.raises(DataError, match='0.1 MB are kept, run the same again'): get(kaggle, tmp_path/'lgg')
    assert at_hand(tmp_path/'lgg'/'lgg-mri-segmentation.zip') == CHUNK_BYTES
    kaggle.log.clear(); kaggle.cuts = []
    assert get(kaggle, tmp_path/'lgg').ok and starts(kaggle) == [0, CHUNK_BYTES]
    assert [p.name for p in (tmp_path/'lgg').iterdir()] == ['kaggle_3m']


def test_a_changed_archive_is_not_glued_to_the_old(kaggle, tmp_path):
    kaggle.cuts = [100_000]+[0]*9
    with pytest.raises(DataError): get(kaggle, tmp_path/'lgg')
    kaggle.cuts = []
    kaggle.archive, kaggle.tag = cohort_zip(), '"v2"'
    report = get(kaggle, tmp_path/'lgg')
    assert report.ok and starts(kaggle)[-1] == 0


@pytest.mark.parametrize('change', [dict(ranges=False), dict(tag=None), dict(tag='W/"weak"'), dict(length=False)])
def test_servers_that_cannot_resume(kaggle, tmp_path, change):
    for k, v in change.items(): setattr(kaggle, k, v)
    kaggle.cuts = [100_000] if kaggle.length else []
    assert get(kaggle, tmp_path/'lgg').ok


def test_more_at_hand_than_there_is(kaggle, tmp_path):
    "The part is longer than the file on the server: all of it is loaded."
    old = part(tmp_path/'lgg')
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(len(kaggle.archive)+10))
    old.with_name(old.name+'.kaggle-partial').write_text(json.dumps(dict(validator='"v1"', size=len(kaggle.archive))))
    assert get(kaggle, tmp_path/'lgg').ok


@pytest.mark.parametrize('status,words',
                         [(401, 'make a token on https://www.kaggle.com/settings'), (403, 'asks for an account'),
                          (404, 'no longer has the data set'), (429, 'wait an hour'),
                          (500, 'answered with an error (500)')])
def test_refused(kaggle, tmp_path, status, words):
    kaggle.status = status
    with pytest.raises(DataError) as e: get(kaggle, tmp_path/'lgg')
    assert words in str(e.value) and 'https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation' in str(e.value)
    assert '\n' not in str(e.value)
    assert list((tmp_path/'lgg').iterdir()) == [] and len(kaggle.log) == 1


def test_credentials_go_to_kaggle_and_no_further(kaggle, tmp_path, monkeypatch):
    monkeypatch.setenv('KAGGLE_USERNAME', 'somebody'); monkeypatch.setenv('KAGGLE_KEY', 'secret')
    assert get(kaggle, tmp_path/'lgg').ok
    assert kaggle.log[0] == ('api', 'Basic c29tZWJvZHk6c2VjcmV0') and kaggle.log[1][2] is None
    monkeypatch.setenv('KAGGLE_API_TOKEN', 'good')
    assert get(kaggle, tmp_path/'more').ok and ('api', 'Bearer good') in kaggle.log
    kaggle.status = 403
    with pytest.raises(DataError, match='does not accept your credentials.*accept the data set.s terms') as e:
        get(kaggle, tmp_path/'other')
    assert 'good' not in str(e.value)


def test_a_broken_file_of_credentials(kaggle, tmp_path, monkeypatch):
    monkeypatch.setattr(client_module().KaggleApi, 'config', str(tmp_path/'kaggle.json'))
    for text in ('{', '[]'):
        (tmp_path/'kaggle.json').write_text(text)
        with pytest.raises(DataError, match='`kaggle.json` cannot be read'): get(kaggle, tmp_path/'other')
    (tmp_path/'kaggle.json').write_text('{"username": "somebody", "key": "secret"}'); kaggle.log.clear()
    assert get(kaggle, tmp_path/'lgg').ok and kaggle.log[0][1] == 'Basic c29tZWJvZHk6c2VjcmV0'


def test_offline(kaggle, tmp_path, monkeypatch):
    kaggle.redirect('http://127.0.0.1:9')
    with pytest.raises(DataError, match='cannot be reached or keeps breaking off: check your network'):
        get(kaggle, tmp_path/'lgg')
    monkeypatch.setenv('KAGGLE_API_TOKEN', 'good')
    with pytest.raises(DataError, match='Kaggle cannot be reached: check your network'): get(kaggle, tmp_path/'lgg')


def test_a_silent_server_is_not_waited_for(kaggle, tmp_path, monkeypatch):
    import neuroseg.cohorts.kaggle_account as room
    monkeypatch.setattr(room, 'TIMEOUT_S', (.2, .2)); kaggle.sleep_s = 1.
    with pytest.raises(DataError, match='cannot be reached'): get(kaggle, tmp_path/'lgg', tries=1)


def test_a_login_page_is_no_archive(kaggle, tmp_path):
    kaggle.html = True
    with pytest.raises(DataError, match='a web page instead of the file'): get(kaggle, tmp_path/'lgg')
    assert list((tmp_path/'lgg').iterdir()) == []


@pytest.mark.parametrize('length', [True, False])
def test_larger_than_expected(kaggle, tmp_path, length):
    kaggle.length = length
    with pytest.raises(DataError, match='MB expected'): get(kaggle, tmp_path/'lgg', max_bytes=100_000)
    assert sum(p.stat().st_size for p in (tmp_path/'lgg').iterdir()) <= 100_000


@pytest.mark.parametrize('where', ['download', 'unpack'])
def test_no_room(kaggle, tmp_path, monkeypatch, where):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage',
                        lambda p: usage._replace(free=1000 if where == 'download' or p != tmp_path/'lgg'
                                                 or (p/'lgg-mri-segmentation.zip').exists() else 10**9))
    with pytest.raises(OutputError, match='has room for 0 MB'): get(kaggle, tmp_path/'lgg')
    left = [p.name for p in (tmp_path/'lgg').iterdir() if p.is_file()]
    assert left == ([] if where == 'download' else ['lgg-mri-segmentation.zip'])
    monkeypatch.undo()


def test_disk_full_while_downloading(kaggle, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data): raise OSError(28, 'No space left on device')
    def opened(p, mode='r', **k):
        full = str(p).endswith('.zip') and mode in ('wb', 'ab')
        return Full(p, mode.replace('b', '')) if full else open(p, mode, **k)
    monkeypatch.setattr(client_module(), 'open', opened, raising=False)
    with pytest.raises(OutputError, match='No space left on device'): get(kaggle, tmp_path/'lgg')


@pytest.mark.parametrize('at', [.01, .3, .7, .999])
def test_corrupted_archive_is_removed(kaggle, tmp_path, at):
    bad = bytearray(kaggle.archive); bad[int(len(bad)*at)] ^= 0xff
    good, kaggle.archive = kaggle.archive, bytes(bad)
    try: report = get(kaggle, tmp_path/'lgg')
    except DataError as e:
        assert 'damaged' in str(e) or 'no patient' in str(e) or 'not safe' in str(e)
        assert list((tmp_path/'lgg').iterdir()) == []
        kaggle.archive = good
        report = get(kaggle, tmp_path/'lgg')
    assert report.ok and report.counts['patients'] == 2 # damage in the second copy does not matter


def test_not_a_zip(kaggle, tmp_path):
    kaggle.archive = b'hello'*1000
    with pytest.raises(DataError, match='damaged'): get(kaggle, tmp_path/'lgg')
    assert list((tmp_path/'lgg').iterdir()) == []


def link(name, target):
    info = zipfile.ZipInfo(name); info.external_attr = (stat.S_IFLNK | 0o777) << 16; info.create_system = 3
    return info, target


@pytest.mark.parametrize('extra', [('../evil.tif', b'x'), ('/evil.tif', b'x'), ('kaggle_3m/../../evil.tif', b'x'),
                                   ('C:/evil.tif', b'x'), ('kaggle_3m\\..\\..\\evil.tif', b'x'),
                                   link('kaggle_3m/TCGA_PH_0001_20000101/evil.tif', '/etc/passwd'),
                                   link('kaggle_3m/TCGA_PH_0003_20000101', '/etc')])
def test_zip_slip(kaggle, tmp_path, extra):
    kaggle.archive = cohort_zip(extra=[extra])
    with pytest.raises(DataError, match='not safe to unpack'): get(kaggle, tmp_path/'deep'/'er'/'lgg')
    assert not list(tmp_path.rglob('*evil*')) and not Path('/evil.tif').exists()


def test_zip_bombs(kaggle, tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('kaggle_3m/TCGA_PH_0001_20000101/a.tif', bytes(30_000_000))
    (tmp_path/'bomb.zip').write_bytes(out.getvalue())
    assert len(out.getvalue()) < 50_000
    with pytest.raises(DataError, match='would unpack to 1 files of 30 MB'):
        unpack(tmp_path/'bomb.zip', tmp_path/'out', max_bytes=10**7)
    lying = bytearray(out.getvalue())
    # both headers promise 1000 bytes
    for at in (22, lying.rindex(b'PK\1\2')+24): lying[at:at+4] = struct.pack('<I', 1000)
    (tmp_path/'lying.zip').write_bytes(lying)
    with pytest.raises(DataError): unpack(tmp_path/'lying.zip', tmp_path/'out', max_bytes=10**7)
    assert not (tmp_path/'out').exists()
    with pytest.raises(DataError, match='50,000 files'):
        wanted([zipfile.ZipInfo(f'kaggle_3m/{i}') for i in range(50_000)])


def test_encrypted(tmp_path):
    raw = bytearray(cohort_zip(tops=('kaggle_3m',)))
    for mark, at in ((b'PK\3\4', 6), (b'PK\1\2', 8)):
        i = raw.find(mark)
        while i >= 0: raw[i+at] |= 1; i = raw.find(mark, i+4)
    (tmp_path/'a.zip').write_bytes(raw)
    with pytest.raises(DataError, match='it is encrypted'): unpack(tmp_path/'a.zip', tmp_path/'out')


def test_other_archives_and_other_files(tmp_path):
    (tmp_path/'a.zip').write_bytes(cohort_zip(tops=('holiday',), n=0))
    with pytest.raises(DataError, match='holds no patient'): unpack(tmp_path/'a.zip', tmp_path/'out')
    (tmp_path/
     'b.zip').write_bytes(cohort_zip(tops=('kaggle_3m',),
                                     extra=[('kaggle_3m/setup.py', b'x'),
                                            ('kaggle_3m/TCGA_PH_0001_20000101/run.exe', b'x')]))
    assert unpack(tmp_path/'b.zip', tmp_path/'out') == 18
    assert not list((tmp_path/'out').rglob('*.exe')) + list((tmp_path/'out').rglob('*.py'))


def test_archive_from_a_browser_is_used(kaggle, tmp_path):
    (tmp_path/'lgg').mkdir()
    (tmp_path/'lgg'/'lgg-mri-segmentation.zip').write_bytes(kaggle.archive)
    assert get(kaggle, tmp_path/'lgg', keep_archive=True).ok and kaggle.log == []
    assert (tmp_path/'lgg'/'lgg-mri-segmentation.zip').exists()


def test_default_place_is_the_cache(kaggle, tmp_path, monkeypatch):
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    assert get(kaggle, None).ok and (tmp_path/'cache'/'lgg'/'kaggle_3m').is_dir()


def test_without_the_extra(tmp_path, monkeypatch):
    for m in [m for m in sys.modules if m.split('.')[0] == 'kaggle']: monkeypatch.delitem(sys.modules, m)
    monkeypatch.setitem(sys.modules, 'kaggle', None)
    with pytest.raises(MissingExtraError, match=r'\.\[kaggle\]'): fetch_lgg(tmp_path/'lgg')


def test_importing_never_logs_in(kaggle, tmp_path):
    "In a fresh process with a token: nobody is asked, nothing is printed, and the package is usable by others."
    code = ('from kagglesdk import kaggle_env\n'
            f'kaggle_env._env_to_endpoint[kaggle_env.KaggleEnv.PROD] = {kaggle.url!r}\n'
            'from neuroseg.cohorts.kaggle_account import client_module\n'
            'client_module()\nimport kaggle\nassert kaggle.api.config_values == {} and kaggle.__version__\n'
            'kaggle.api.authenticate()\nassert kaggle.api.get_config_value("username") == "ann"\n')
    def run(code):
        env = {**os.environ, 'KAGGLE_API_TOKEN': 'good'}
        return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)
    first = run(code.partition('kaggle.api.authenticate')[0])
    assert (first.returncode, first.stdout, first.stderr, kaggle.log) == (0, '', '', [])
    assert run(code).returncode == 0 and kaggle.log == [('introspect', 'good')]


def test_a_settings_folder_that_cannot_be_made(kaggle, tmp_path, monkeypatch):
    for m in [m for m in sys.modules if m.split('.')[0] == 'kaggle']: monkeypatch.delitem(sys.modules, m)
    def refused(*a, **k): raise PermissionError(13, 'Permission denied')
    monkeypatch.setattr(os, 'makedirs', refused)
    monkeypatch.setenv('HOME', str(tmp_path/'nowhere'))
    with pytest.raises(ConfigError, match='set KAGGLE_CONFIG_DIR'): kaggle_api(anonymous=True)
    assert 'kaggle' not in sys.modules


def test_bars_only_when_asked(kaggle, tmp_path, capsys):
    get(kaggle, tmp_path/'a')
    assert capsys.readouterr() == ('', '')
    get(kaggle, tmp_path/'b', progress=True)
    err = capsys.readouterr().err
    assert '100%' in err and 'unpack' in err and 'reading cases' in err
