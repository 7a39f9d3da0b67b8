"Fetching the LGG cohort from a local server that plays Kaggle's part: whole, broken, refused, tampered with, too big."
import io, json, os, shutil, stat, struct, sys, threading, zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip('kagglesdk')

from neuroseg.cohorts import fetch
from neuroseg.core import DataError, MissingExtraError, OutputError
from neuroseg.cohorts.fetch import CHUNK_BYTES, archive_url, at_hand, credentials, fetch_lgg, unpack, wanted

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


class Kaggle(ThreadingHTTPServer):
    """Redirects to a store which knows ranges.

    `cuts`: bytes after which the next answers break off; `status`: refuse; `log`: requests so far.
    """
    daemon_threads = True
    def __init__(self, archive):
        self.archive, self.tag, self.cuts, self.status = archive, '"v1"', [], None
        self.ranges, self.length, self.html, self.log = True, True, False, []
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        s = self.server
        if self.path.startswith('/api/v1/datasets/download/mateuszbuda/lgg-mri-segmentation'):
            s.log.append(('api', self.headers.get('Authorization')))
            if s.status: return self.send_error(s.status)
            self.send_response(302); self.send_header('Location', f'http://localhost:{s.server_port}/store')
            self.send_header('Content-Length', '0')
            return self.end_headers()
        asked = self.headers.get('Range')
        start = int(asked[6:-1]) if asked and s.ranges and self.headers.get('If-Range') in (s.tag, None) else 0
        s.log.append(('store', start, self.headers.get('Authorization')))
        if start >= len(s.archive): return self.send_error(416)
        body = b'<html>sign in</html>' if s.html else s.archive[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', 'text/html' if s.html else 'application/zip')
        if s.tag: self.send_header('ETag', s.tag)
        if s.length: self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        try: self.wfile.write(body[:s.cuts.pop(0)] if s.cuts else body)
        except OSError: pass # the client has had enough


@pytest.fixture(scope='module')
def archive(): return cohort_zip()


@pytest.fixture
def kaggle(archive, tmp_path, monkeypatch):
    for k in list(os.environ):
        if k.startswith('KAGGLE_'): monkeypatch.delenv(k)
    monkeypatch.setenv('HOME', str(tmp_path/'home')); monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    monkeypatch.setenv('no_proxy', '127.0.0.1,localhost')
    server = Kaggle(archive)
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True); thread.start()
    yield server
    server.shutdown(); server.server_close(); thread.join()


def get(kaggle, dest, **kw): return fetch_lgg(dest, base_url=kaggle.url, wait_s=0, **kw)
def starts(kaggle): return [row[1] for row in kaggle.log if row[0] == 'store']


def test_whole(kaggle, tmp_path):
    report = get(kaggle, tmp_path/'lgg')
    assert report.ok and report.counts['patients'] == 2 and report.counts['slices'] == 8
    assert [p.name for p in (tmp_path/'lgg').iterdir()] == ['kaggle_3m']
    assert len([p for p in (tmp_path/'lgg').rglob('*') if p.is_file()]) == 2*4*2 + 2
    assert starts(kaggle) == [0]
    assert get(kaggle, tmp_path/'lgg').hash == report.hash and starts(kaggle) == [0]


def test_cut_and_resumed_within_one_call(kaggle, tmp_path):
    kaggle.cuts = [100_000, 70_000, 0, 150_000]
    assert get(kaggle, tmp_path/'lgg').ok
    assert starts(kaggle) == [0, CHUNK_BYTES, 2*CHUNK_BYTES, 2*CHUNK_BYTES, 4*CHUNK_BYTES]


def test_killed_and_resumed_by_the_next_call(kaggle, tmp_path):
    kaggle.cuts = [100_000, 0, 0, 0]
    with pytest.raises(DataError, match='0.1 MB are kept, run the same again'): get(kaggle, tmp_path/'lgg')
    assert at_hand(tmp_path/'lgg'/'lgg-mri-segmentation.zip') == (CHUNK_BYTES, '"v1"')
    kaggle.log.clear()
    assert get(kaggle, tmp_path/'lgg').ok and starts(kaggle) == [CHUNK_BYTES]
    assert [p.name for p in (tmp_path/'lgg').iterdir()] == ['kaggle_3m']


def test_a_changed_archive_is_not_glued_to_the_old(kaggle, tmp_path):
    kaggle.cuts = [100_000, 0, 0, 0]
    with pytest.raises(DataError): get(kaggle, tmp_path/'lgg')
    kaggle.archive, kaggle.tag = cohort_zip(), '"v2"'
    report = get(kaggle, tmp_path/'lgg')
    assert report.ok and starts(kaggle)[-1] == 0


@pytest.mark.parametrize('change', [dict(ranges=False), dict(tag=None), dict(tag='W/"weak"'), dict(length=False)])
def test_servers_that_cannot_resume(kaggle, tmp_path, change):
    for k, v in change.items(): setattr(kaggle, k, v)
    kaggle.cuts = [100_000] if kaggle.length else []
    assert get(kaggle, tmp_path/'lgg').ok


def test_more_at_hand_than_there_is(kaggle, tmp_path):
    "The part is longer than the file on the server: 416, then all of it."
    (tmp_path/'lgg').mkdir()
    part = tmp_path/'lgg'/'lgg-mri-segmentation.zip.part'
    part.write_bytes(bytes(len(kaggle.archive)+10))
    part.with_name(part.name+'.json').write_text(json.dumps(dict(tag='"v1"')))
    assert get(kaggle, tmp_path/'lgg').ok


@pytest.mark.parametrize('status,words',
                         [(401, 'asks for credentials'), (403, 'asks for credentials'),
                          (404, 'no longer has the data set'), (429, 'wait an hour'),
                          (500, 'answered with an error (500)')])
def test_refused(kaggle, tmp_path, status, words):
    kaggle.status = status
    with pytest.raises(DataError) as e: get(kaggle, tmp_path/'lgg')
    assert words in str(e.value) and 'https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation' in str(e.value)
    assert '\n' not in str(e.value)
    assert list((tmp_path/'lgg').iterdir()) == [] and len(kaggle.log) == 1


def test_credentials_go_to_kaggle_and_no_further(kaggle, tmp_path, monkeypatch):
    (tmp_path/'home'/'.kaggle').mkdir(parents=True)
    (tmp_path/'home'/'.kaggle'/'kaggle.json').write_text('{"username": "somebody", "key": "secret"}')
    assert credentials() == ({}, ('somebody', 'secret'))
    assert get(kaggle, tmp_path/'lgg').ok
    assert kaggle.log[0] == ('api', 'Basic c29tZWJvZHk6c2VjcmV0') and kaggle.log[1][2] is None
    monkeypatch.setenv('KAGGLE_API_TOKEN', 'token'); kaggle.status = 403
    with pytest.raises(DataError, match='refused your credentials') as e: get(kaggle, tmp_path/'other')
    assert kaggle.log[-1] == ('api', 'Bearer token') and 'token ' not in str(e.value).replace('the token in', '')
    monkeypatch.delenv('KAGGLE_API_TOKEN'); (tmp_path/'home'/'.kaggle'/'kaggle.json').write_text('{')
    with pytest.raises(DataError, match='`kaggle.json` cannot be read'): get(kaggle, tmp_path/'other')


def test_offline(kaggle, tmp_path):
    with pytest.raises(DataError, match='cannot be reached or keeps breaking off: check your network'):
        fetch_lgg(tmp_path/'lgg', base_url='http://127.0.0.1:9', wait_s=0)
    with pytest.raises(DataError, match='cannot be requested'):
        fetch_lgg(tmp_path/'lgg', base_url='ftp:/nowhere', wait_s=0)


def test_a_login_page_is_no_archive(kaggle, tmp_path):
    kaggle.html = True
    with pytest.raises(DataError, match='a web page instead of the archive'): get(kaggle, tmp_path/'lgg')
    assert list((tmp_path/'lgg').iterdir()) == []


@pytest.mark.parametrize('length', [True, False])
def test_larger_than_expected(kaggle, tmp_path, length):
    kaggle.length = length
    with pytest.raises(DataError, match='MB expected'): get(kaggle, tmp_path/'lgg', max_bytes=100_000)
    assert sum(p.stat().st_size for p in (tmp_path/'lgg').iterdir()) <= 100_000


@pytest.mark.parametrize('where', ['download', 'unpack'])
def test_no_room(kaggle, tmp_path, monkeypatch, where):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, 'disk_usage',
                        lambda p: usage._replace(free=1000 if where == 'download' or p != tmp_path/'lgg'
                                                 or (p/'lgg-mri-segmentation.zip').exists() else 10**9))
    with pytest.raises(OutputError, match='has room for 0 MB'): get(kaggle, tmp_path/'lgg')
    assert [p.name for p in (tmp_path/'lgg').iterdir()] == ([] if where == 'download' else ['lgg-mri-segmentation.zip'])
    monkeypatch.undo()


def test_disk_full_while_downloading(kaggle, tmp_path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(fetch, 'open', lambda p, mode, **k: Full(p, mode.replace('b', '')) if str(p).endswith('.part')
                        else open(p, mode, **k), raising=False)
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
    for m in [m for m in sys.modules if m.split('.')[0] == 'kagglesdk']: monkeypatch.delitem(sys.modules, m)
    monkeypatch.setitem(sys.modules, 'kagglesdk', None)
    with pytest.raises(MissingExtraError, match=r'\.\[kaggle\]'): archive_url()


def test_importing_never_logs_in(kaggle, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, 'kaggle', raising=False)
    get(kaggle, tmp_path/'lgg')
    assert 'kaggle' not in sys.modules


def test_bars_only_when_asked(kaggle, tmp_path, capsys):
    get(kaggle, tmp_path/'a')
    assert capsys.readouterr() == ('', '')
    get(kaggle, tmp_path/'b', progress=True)
    err = capsys.readouterr().err
    assert 'lgg-mri-segmentation.zip' in err and 'unpack' in err and 'reading cases' in err
