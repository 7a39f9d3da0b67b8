"""The application in a real browser, and many visitors at once.

Playwright drives Debian's Chromium; it downloads no browser of its own. Where there is none, and the tests run as root
on Debian, Chromium is installed; elsewhere these tests are skipped and say so. NEUROSEG_SHOTS names a folder for
screenshots.
"""
import asyncio, io, json, os, re, shutil, socket, subprocess, sys, time, zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import nibabel as nib
import numpy as np
import pypdfium2
import pytest
from hostile import HOSTILE
from PIL import Image
from test_app import series, write_video
from bright_model import bright, head, write_model, write_nifti

from neuroseg.app.serving import app_command
from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.result import Segmenter
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.phantom import sample_path

pytestmark = [pytest.mark.browser, pytest.mark.slow]
WAIT_S = 240
VISITORS = 20


def find_browser():
    "A Chromium or Chrome of the system; installed first where that is allowed."
    names = ('chromium', 'chromium-browser', 'google-chrome')
    found = next(filter(None, map(shutil.which, names)), None)
    if not found and hasattr(os, 'geteuid') and os.geteuid() == 0 and Path('/etc/debian_version').exists():
        for command in (['apt-get', 'update'], ['apt-get', 'install', '-y', '--no-install-recommends', 'chromium']):
            subprocess.run(command, capture_output=True, env={**os.environ, 'DEBIAN_FRONTEND': 'noninteractive'})
        found = next(filter(None, map(shutil.which, names)), None)
    return found


def memory_mb(pid):
    return int(re.search(r'VmRSS:\s+(\d+)',
                         Path(f'/proc/{pid}/status').read_text())[1])/1024 if sys.platform == 'linux' else float('nan')


@contextmanager
def serving(card, *, folder=None):
    "The application as `neuroseg app` starts it: its port, its process, and the file of what it wrote."
    with socket.socket() as s: s.bind(('localhost', 0)); port = s.getsockname()[1]
    code = 'import sys; from neuroseg.cli import main; sys.exit(main())'
    log = (folder or Path(card).parent)/f'server_{port}.log'
    with open(log, 'w') as out:
        job = subprocess.Popen([sys.executable, '-c', code, 'app', '--port', str(port), '--model', str(card)],
                               cwd=Path(__file__).parents[2],
                               env={**os.environ, 'BROWSER': 'true', 'STREAMLIT_SERVER_HEADLESS': 'true'}, stdout=out,
                               stderr=subprocess.STDOUT)
    try:
        deadline = time.time()+WAIT_S
        while time.time() < deadline and job.poll() is None:
            try: urlopen(f'http://localhost:{port}/_stcore/health', timeout=5).read(); break
            except OSError: time.sleep(.1)
        yield port, job, log
    finally: job.terminate(); job.wait(timeout=60)


@pytest.fixture(scope='module')
def card(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


@pytest.fixture(scope='module')
def server(card):
    with serving(card) as (port, job, log):
        yield f'http://localhost:{port}', job
        text = log.read_text()
    for word in ('Traceback', 'anna', 'bert', 'slice_', 'neuroseg-'): assert word not in text, text


PLAIN, WEBGL2 = ['--disable-gpu'], ['--use-gl=angle', '--use-angle=swiftshader', '--enable-unsafe-swiftshader']


@pytest.fixture(scope='module')
def chromium():
    "Starts browsers: `PLAIN` has no WebGL2, `WEBGL2` has it by SwiftShader, without a graphics card."
    program = find_browser()
    if not program: pytest.skip('no Chromium here: apt install chromium, or run as root on Debian')
    from playwright.sync_api import sync_playwright
    started = {}
    with sync_playwright() as p:
        def _browser(flags=PLAIN):
            if flags[0] not in started:
                started[flags[0]] = p.chromium.launch(executable_path=program, args=['--no-sandbox', *flags])
            return started[flags[0]]
        yield _browser
        for browser in started.values(): browser.close()


@pytest.fixture
def visit(chromium, server):
    "Open the page; which hosts it asks and what goes wrong in it is watched."
    contexts = []
    def _visit(query='', flags=PLAIN, **options):
        context = chromium(flags).new_context(**{'viewport': dict(width=1440, height=1100), 'accept_downloads': True,
                                          'locale': 'en-GB', **options})
        contexts.append(context)
        page = context.new_page()
        page.hosts, page.faults = set(), []
        page.on('request',
                lambda r: page.hosts.add(re.match(r'\w+:(?://)?([^:/]*)', r.url)[1]
                                         if not r.url.startswith(('data:', 'blob:')) else 'localhost'))
        page.on('pageerror', lambda e: page.faults.append(str(e)))
        page.set_default_timeout(WAIT_S*1000)
        page.goto(server[0] + query)
        page.locator('[data-testid="stMain"] [data-testid="stFileUploader"]').first.wait_for()
        return page
    yield _visit
    for c in contexts: c.close()


def settle(page):
    "Wait until Streamlit has nothing more to do."
    page.wait_for_timeout(150)
    page.wait_for_function("""() =>
        document.querySelector('[data-testid="stApp"]')?.dataset.testScriptState === 'notRunning'
        && !document.querySelector('[data-testid="stSkeleton"], [data-stale="true"]')""")
    page.wait_for_timeout(150)


def give(page, files, n=0):
    "Files into the n-th uploader of the page, and wait."
    uploaders = page.locator('[data-testid="stMain"] [data-testid="stFileUploader"] input[type=file]')
    kind = 'application/octet-stream'
    uploaders.nth(n).set_input_files([dict(name=k, mimeType=kind, buffer=v) for k, v in files.items()])
    page.wait_for_timeout(300)
    settle(page)


def numbers(page):
    return {m.locator('label').inner_text().strip(): m.locator('[data-testid="stMetricValue"]').inner_text().strip()
            for m in page.locator('[data-testid="stMetric"]').all()}


def thumb(page, label):
    return page.locator(f'[data-testid="stSlider"] [role=group][aria-label="{label}"] input[type=range]').first


def shoot(page, name):
    if not os.environ.get('NEUROSEG_SHOTS'): return
    size = page.viewport_size
    # Streamlit scrolls inside the page
    page.set_viewport_size(size | dict(height=max(size['height'], 1500 if size['width'] > 600 else 3000)))
    page.wait_for_timeout(500)
    page.screenshot(path=Path(os.environ['NEUROSEG_SHOTS'])/f'{name}.png')
    page.set_viewport_size(size)


def download(page, label):
    with page.expect_download() as got: page.get_by_role('button', name=label).click()
    return Path(got.value.path()).read_bytes()


def axe(page):
    "What axe-core finds wrong, of weight: rule and elements."
    from axe_playwright_python.sync_playwright import Axe
    return [(v['id'], v['impact'], [n['html'][:160] for n in v['nodes'][:3]])
            for v in Axe().run(page).response['violations'] if v['impact'] in ('serious', 'critical')]


@pytest.fixture(scope='module')
def volume(tmp_path_factory): return write_nifti(tmp_path_factory.mktemp('v')/'anna_flair.nii.gz', head()[0])


def test_from_the_landing_page_to_the_mask_and_away_with_it(visit, volume, card, tmp_path):
    "The way that a visitor takes, with the numbers of the library on the page, in the files and on paper."
    page = visit()
    assert 'Not a medical device' in page.inner_text('[data-testid="stMain"]') and page.title() == 'NeuroSeg'
    shoot(page, 'landing')
    assert axe(page) == []
    give(page, {volume.name: volume.read_bytes()})
    seg = Segmenter(card).segment(volume)
    assert numbers(page) == {'Lesion, mL': f'{seg.volume_ml:.1f}', 'Confidence': f'{seg.confidence:.2f}',
                             'Slices': f"{seg.stats['n_slices']} / 12", 'Components': str(seg.stats['n_components'])}
    shoot(page, 'result')
    assert axe(page) == []
    # the keyboard moves slice and threshold of the pictures
    page.get_by_text('Pictures only').click(); settle(page)
    slice_ = thumb(page, 'Slice')
    before, picture = int(slice_.input_value()), page.locator('[data-testid="stImage"] img').last.get_attribute('src')
    slice_.focus(); page.keyboard.press('ArrowRight'); settle(page)
    assert int(thumb(page, 'Slice').input_value()) == before+1
    assert page.locator('[data-testid="stImage"] img').last.get_attribute('src') != picture
    thumb(page, 'Threshold').focus()
    for _ in range(20): page.keyboard.press('ArrowRight')
    settle(page); page.wait_for_timeout(800); settle(page)
    chosen = float(thumb(page, 'Threshold').input_value())
    assert chosen > .5 and numbers(page)['Lesion, mL'] == f'{seg.with_threshold(round(chosen, 2)).volume_ml:.1f}'
    mask = seg.with_threshold(round(chosen, 2)).mask
    # every file opens and says the same
    with zipfile.ZipFile(io.BytesIO(download(page, 'Mask, preview, report'))) as z:
        assert z.namelist() == ['mask.nii.gz', 'preview.png', 'report.json']
    pdf = pypdfium2.PdfDocument(download(page, 'Report (PDF)'))
    assert numbers(page)['Lesion, mL']+' mL' in pdf[0].get_textpage().get_text_range()
    pdf.close()
    page.get_by_text('More files').click()
    (tmp_path/'mask.nii.gz').write_bytes(download(page, 'Mask (NIfTI)'))
    assert (read_mask(tmp_path/'mask.nii.gz') == mask).all()
    (tmp_path/'prob.nii.gz').write_bytes(download(page, 'Probability (NIfTI)'))
    assert np.allclose(nib.load(tmp_path/'prob.nii.gz').get_fdata().transpose(2, 1, 0), seg.prob)
    with zipfile.ZipFile(io.BytesIO(download(page, 'Slices as PNG'))) as z: assert len(z.namelist()) == 24
    assert Image.open(io.BytesIO(download(page, 'This view'))).size[1] == 560
    assert json.loads(download(page, 'Report (JSON)'))['lesion_px'] == mask.sum()
    # a reference beside it
    page.get_by_text('Compare with a reference mask').click()
    truth = write_nifti(tmp_path/'t_mask.nii.gz', np.roll(head()[1], 3, 1).astype(np.uint8), dtype=np.uint8)
    give(page, {truth.name: truth.read_bytes()}, n=1)
    page.get_by_text('Difference', exact=True).first.click(); settle(page)
    assert 'Dice' in page.locator('table').inner_text()
    shoot(page, 'comparison')
    assert axe(page) == []
    page.get_by_text('Three planes').click(); settle(page)
    assert page.locator('[data-testid="stImage"] img').count() == 3
    shoot(page, 'planes')
    assert axe(page) == []
    assert page.hosts <= {'localhost', ''} and page.faults == []


def test_every_kind_of_input(visit, tmp_path):
    page = visit()
    v = head()[0]
    def picture(kind, k):
        file = io.BytesIO(); Image.fromarray(v[k].clip(0, 255).astype(np.uint8)).save(file, kind)
        return file.getvalue()
    film = {e: write_video(tmp_path/f'f.{e}', v.clip(0, 255).astype(np.uint8)).read_bytes() for e in ('mp4', 'avi')}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as z:
        for n, d in series().items(): z.writestr(f'study/{n}', d)
    kinds = [({f'slice_{k}.{e}': picture(kind, k) for k in (6, 7)}, 2) for e,
             kind in (('png', 'PNG'), ('jpg', 'JPEG'), ('tif', 'TIFF'))]
    kinds += [({f'f.{e}': d}, 12) for e, d in film.items()] + [(series(), 6), ({'s.zip': packed.getvalue()}, 6)]
    kinds += [({p.name: p.read_bytes() for p in sample_path().glob('*_[fp]*.nii.gz')}, 24)]
    for files, n in kinds:
        page.reload(); page.locator('[data-testid="stMain"] [data-testid="stFileUploader"]').first.wait_for()
        settle(page)
        give(page, files)
        page.locator('[data-testid="stMetric"]').first.wait_for()
        assert numbers(page).get('Slices', '').endswith(f' / {n}'), list(files)[0]
    assert page.faults == []


def test_wrong_files_in_a_browser(visit):
    page = visit()
    for name in ('text named PNG', 'a zip bomb', 'a play list named MP4', 'a name that is Markdown'):
        files, says = next((f, s) for n, f, s in HOSTILE if n == name)
        page.reload(); page.locator('[data-testid="stMain"] [data-testid="stFileUploader"]').first.wait_for()
        settle(page)
        give(page, files)
        told = page.locator('[data-testid="stMain"] [data-testid="stAlert"]').all_inner_texts()
        assert len(told) == 1 and re.search(says, told[0]) and 'Traceback' not in page.content(), (name, told)
    assert page.hosts <= {'localhost', ''} and page.faults == []
    shoot(page, 'wrong_file')


def test_french_dark_and_a_warning(visit):
    page = visit(locale='fr-FR', color_scheme='dark')
    assert 'dispositif médical' in page.inner_text('[data-testid="stMain"]')
    assert page.evaluate('document.documentElement.lang') == 'fr'
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(90, 250, (64, 64, 3)).astype(np.uint8)).save(file, 'PNG')
    give(page, {'holiday.png': file.getvalue()})
    assert 'une photographie' in page.inner_text('[data-testid="stMain"]') and 'Confiance' in numbers(page)
    assert (page.evaluate("getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor")
            != 'rgb(255, 255, 255)')
    shoot(page, 'french_dark_warning')
    assert axe(page) == []
    page.goto(page.url.split('?')[0] + '?lang=en'); settle(page)
    assert 'Not a medical device' in page.inner_text('[data-testid="stMain"]')


def test_a_phone(visit, volume):
    page = visit(viewport=dict(width=390, height=844), device_scale_factor=1, has_touch=True)
    assert 'Not a medical device' in page.inner_text('[data-testid="stMain"]'), 'the notice stands outside the sidebar'
    give(page, {volume.name: volume.read_bytes()})
    assert 'Confidence' in numbers(page) and page.evaluate('document.scrollingElement.scrollWidth') <= 390
    shoot(page, 'phone')
    assert axe(page) == []


# The viewer in the browser -------------------------------------------------------------------------------------------

def viewer(page):
    "The frame of the viewer, once it shows a scan."
    page.locator('iframe[title*="volume_viewer"]').first.wait_for()
    frame = next(f for f in page.frames if 'volume_viewer' in f.url)
    frame.wait_for_function("document.body.dataset.case && document.getElementById('readout').children.length")
    return frame


def test_picture_and_numbers_are_seen_together(visit, volume):
    page = visit(flags=WEBGL2, viewport=dict(width=1366, height=768))
    give(page, {volume.name: volume.read_bytes()})
    frame = viewer(page)
    for box in (page.locator('[data-testid="stMetric"]').first, page.locator('iframe[title*="volume_viewer"]').first):
        seen = box.bounding_box()
        assert seen['y'] >= 0 and seen['y']+seen['height'] <= 768, seen
    shown = frame.locator('#readout').inner_text()
    assert 'of 12' in shown and ' mm' in shown and 'FLAIR' in shown and 'Probability' in shown
    for view in ('axial', 'solid', 'beside', 'planes'):
        frame.select_option('#view', view)
        frame.wait_for_function('v => view.view === v', arg=view)
        assert frame.locator('#right').is_visible() == (view == 'beside')
        shoot(page, f'viewer_{view}')
    assert axe(page) == [] and page.faults == []


def test_the_viewer_on_a_french_phone(visit, volume):
    page = visit(flags=WEBGL2, locale='fr-FR', viewport=dict(width=390, height=844), has_touch=True)
    give(page, {volume.name: volume.read_bytes()})
    frame = viewer(page)
    assert 'coupe' in frame.locator('#readout').inner_text() and frame.evaluate('document.documentElement.lang') == 'fr'
    picture, slider = (frame.locator(f'#{i}').bounding_box() for i in ('left', 'slice'))
    assert slider['y'] + slider['height'] - picture['y'] < 844, 'the picture stands beside its slider'
    assert page.evaluate('document.scrollingElement.scrollWidth') <= 390
    shoot(page, 'viewer_phone')
    assert axe(page) == [] and page.faults == []


def test_cancel(chromium, tmp_path):
    "A long scan can be left, and started again; with the shipped model, which takes its time."
    big = write_nifti(tmp_path/'bert_flair.nii.gz', np.tile(head((20, 96, 80))[0], (4, 1, 1)))
    with serving(load_card().path, folder=tmp_path) as (port, _, log):
        page = chromium().new_page()
        page.set_default_timeout(60_000)
        page.goto(f'http://localhost:{port}')
        page.locator('[data-testid="stMain"] [data-testid="stFileUploader"]').first.wait_for()
        settle(page) # a file given before the page is connected is lost
        page.locator('[data-testid="stMain"] input[type=file]').first.set_input_files([dict(name=big.name,
            mimeType='application/gzip', buffer=big.read_bytes())])
        # not the uploader's own, which stops an upload
        page.locator('[data-testid="stButton"] button', has_text='Cancel').click()
        page.get_by_text('Nothing was kept').wait_for()
        assert page.locator('[data-testid="stMetric"]').count() == 0
        page.get_by_role('button', name='Start again').click()
        page.get_by_text('/ 80').wait_for()
        page.close()
        assert 'Traceback' not in log.read_text() and 'bert' not in log.read_text()


# Many visitors -------------------------------------------------------------------------------------------------------

async def visitor(base, name, data):
    "One visitor without a browser: uploads a volume by Streamlit's protocol, and returns the numbers of the page."
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
    from tornado.httpclient import AsyncHTTPClient, HTTPRequest
    from tornado.websocket import websocket_connect
    http = AsyncHTTPClient()
    ws = await websocket_connect(HTTPRequest(base.replace('http', 'ws')+'/_stcore/stream', headers={'Origin': base}),
                                 max_message_size=2**27, subprotocols=['streamlit'])
    async def rerun(states=()):
        msg = BackMsg(); msg.rerun_script.query_string = ''
        for s in states: msg.rerun_script.widget_states.widgets.add().CopyFrom(s)
        await ws.write_message(msg.SerializeToString(), binary=True)
    async def until_finished(seen):
        while True:
            raw = await asyncio.wait_for(ws.read_message(), WAIT_S)
            msg = ForwardMsg(); msg.ParseFromString(raw)
            kind = msg.WhichOneof('type')
            if kind == 'new_session': seen['session'] = msg.new_session.initialize.session_id
            elif kind == 'file_urls_response': seen['urls'] = msg.file_urls_response.file_urls; return
            elif kind == 'delta' and msg.delta.WhichOneof('type') == 'new_element':
                e = msg.delta.new_element
                if e.WhichOneof('type') == 'metric': seen.setdefault('metrics', {})[e.metric.label] = e.metric.body
                elif e.WhichOneof('type') == 'file_uploader' and 'scan files' in e.file_uploader.id:
                    seen.setdefault('uploader', e.file_uploader.id)
            elif kind == 'script_finished': return
    seen = {}
    await rerun(); await until_finished(seen)
    ask = BackMsg(); ask.file_urls_request.request_id, ask.file_urls_request.session_id = name, seen['session']
    ask.file_urls_request.file_names.append(name)
    await ws.write_message(ask.SerializeToString(), binary=True); await until_finished(seen)
    url = seen['urls'][0]
    edge = '----neuroseg'
    head = (f'--{edge}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n'
            'Content-Type: application/octet-stream\r\n\r\n')
    body = head.encode() + data + f'\r\n--{edge}--\r\n'.encode()
    cookie = (await http.fetch(base+'/_stcore/health')).headers.get_list('Set-Cookie')
    token = next((re.match(r'\w*xsrf=([^;]+)', c)[1] for c in cookie if 'xsrf' in c), '')
    await http.fetch(HTTPRequest(base+url.upload_url, method='PUT', body=body, request_timeout=WAIT_S,
                                 headers={'Content-Type': f'multipart/form-data; boundary={edge}',
                                          'Cookie': f'_streamlit_xsrf={token}', 'X-Xsrftoken': token}))
    from streamlit.proto.WidgetStates_pb2 import WidgetState
    state = WidgetState(id=seen['uploader'])
    info = state.file_uploader_state_value.uploaded_file_info.add()
    info.file_id, info.name, info.size = url.file_id, name, len(data)
    info.file_urls.CopyFrom(url)
    start = time.perf_counter()
    await rerun([state])
    while 'metrics' not in seen: await until_finished(seen)
    seconds = time.perf_counter()-start
    ws.close()
    return seen['metrics'], seconds


def in_thread(coroutine): # Playwright keeps an event loop running in this one
    with ThreadPoolExecutor(1) as pool: return pool.submit(asyncio.run, coroutine).result()


def test_twenty_visitors_each_get_their_own(card, tmp_path, capsys):
    "Each uploads another volume at the same time; each sees the library's numbers of its own."
    volumes = [write_nifti(tmp_path/f'v{k}_flair.nii.gz', head((8+k, 96, 80), seed=k)[0]) for k in range(VISITORS)]
    segmenter = Segmenter(card)
    expected = [segmenter.segment(v) for v in volumes]
    async def everybody(port, volumes): return await asyncio.gather(*(visitor(f'http://localhost:{port}',
        f'visitor{k}_flair.nii.gz', v.read_bytes()) for k, v in enumerate(volumes)))
    with serving(card) as (port, job, log):
        started = memory_mb(job.pid)
        in_thread(everybody(port, volumes[:1]))
        one = memory_mb(job.pid)
        answers = in_thread(everybody(port, volumes))
        many = memory_mb(job.pid)
        text = log.read_text()
    for (metrics, _), seg in zip(answers, expected):
        assert metrics == {'Lesion, mL': f'{seg.volume_ml:.1f}', 'Confidence': f'{seg.confidence:.2f}',
                           'Slices': f"{seg.stats['n_slices']} / {seg.scan.n_slices}",
                           'Components': str(seg.stats['n_components'])}
    assert len({m['Lesion, mL'] for m, _ in answers}) > VISITORS//2 and 'visitor' not in text
    assert 'Traceback' not in text
    with capsys.disabled():
        print(f' [server: {started:.0f} MB, 1 visitor {one:.0f} MB, {VISITORS} visitors {many:.0f} MB; '
              f'slowest answer {max(s for _, s in answers):.1f} s] ', end='')


# The server ----------------------------------------------------------------------------------------------------------

def test_the_server_answers_this_machine_only(server):
    port = int(server[0].rpartition(':')[2])
    mine = {i[4][0] for i in socket.getaddrinfo(socket.gethostname(), port)
            if not i[4][0].startswith(('127.', '::1', 'fe80'))}
    for address in mine:
        with pytest.raises(OSError): socket.create_connection((address, port), timeout=2)


def test_telemetry_is_off_and_faults_are_not_shown():
    words = app_command(8600)
    assert ({'--browser.gatherUsageStats=false', '--client.showErrorDetails=none', '--server.address=localhost'}
            <= set(words))


def test_an_upload_without_the_page_is_refused(server):
    "A file is taken from a page of this server only."
    request = Request(server[0]+'/_stcore/upload_file/nobody/1', data=b'x', method='PUT',
                      headers={'Origin': 'http://evil.example'})
    with pytest.raises(OSError): urlopen(request, timeout=30)
