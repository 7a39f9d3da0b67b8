"The application: it agrees with the library, keeps nothing, tells faults in a sentence, and runs in a real browser."
import asyncio, io, json, os, shutil, socket, subprocess, sys, tempfile, time, zipfile
from pathlib import Path
from urllib.request import urlopen

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest
from test_infer import bright, head, write_model, write_nifti

from neuroseg import app
from neuroseg.core import InputError
from neuroseg.infer import Found, Segmenter, predict_cases
from neuroseg.io import read_mask
from neuroseg.sample import sample_path

WAIT_S = 120


@pytest.fixture(scope='module', autouse=True)
def card(tmp_path_factory):
    "The model that can be understood: tumour is where FLAIR is bright."
    path = write_model(tmp_path_factory.mktemp('model'), bright())
    before, os.environ['NEUROSEG_MODEL'] = os.environ.get('NEUROSEG_MODEL'), str(path)
    app.shared_segmenter.clear()
    yield path
    app.shared_segmenter.clear()
    os.environ.pop('NEUROSEG_MODEL')
    if before is not None: os.environ['NEUROSEG_MODEL'] = before


@pytest.fixture
def page():
    at = AppTest.from_file(app.__file__, default_timeout=WAIT_S).run()
    assert not at.exception
    return at


@pytest.fixture
def volume(tmp_path): return write_nifti(tmp_path/'anna_flair.nii.gz', head()[0])


def upload(at, *files):
    "Give the page files: paths, or pairs of name and content."
    files = [(f.name, f.read_bytes()) if isinstance(f, Path) else f for f in files]
    at.file_uploader[0].set_value([(name, data, 'application/octet-stream') for name, data in files]).run()
    assert not at.exception
    return at


def metrics(at): return {m.label: m.value for m in at.metric}


def slider(at, label): return next(s for s in at.slider if s.label==label)


def png(k, tmp_path):
    Image.fromarray(head()[0][k].astype(np.uint8)).save(tmp_path/f'slice_{k}.png')
    return tmp_path/f'slice_{k}.png'


# What the visitor sees ------------------------------------------------------------------------------------------------------------------------

def test_the_page_opens_with_the_notice_and_no_result(page):
    assert 'Not a medical device' in page.sidebar.error[0].value and 'bright 7' in page.sidebar.markdown[0].value
    assert len(page.metric) == 0 and 'built-in sample' in page.info[0].value


def test_the_sample_in_one_click(page):
    page.button[0].click().run()
    assert not page.exception and not page.main.error
    assert len(page.get('image')) == 2 and len(page.get('vega_lite_chart')) == 1
    assert slider(page, 'Slice').max == 24 and [r.label for r in page.radio] == ['Sequence']


def test_the_application_agrees_with_the_library(page, volume, card, tmp_path):
    report, = predict_cases(volume, tmp_path/'out', model=card)
    upload(page, volume)
    assert metrics(page) == {'Lesion, mL': f"{report['volume_ml']:.1f}", 'Confidence': f"{report['confidence']:.2f}", 'Slices of 12': str(len(report['lesion_slices'])),
                             'Pieces': str(report['n_components'])}
    assert [w.value for w in page.warning] == report['warnings']


def test_the_threshold_slider_cuts_the_same_probabilities_elsewhere(page, volume, monkeypatch):
    upload(page, volume)
    monkeypatch.setattr(app, 'segment_found', None) # the network is not asked again
    ml = [float(metrics(page)['Lesion, mL'])]
    for t in (.05, .95):
        slider(page, 'Threshold').set_value(t).run()
        assert not page.exception
        ml.append(float(metrics(page)['Lesion, mL']))
    assert ml[1] > ml[0] > ml[2] > 0


def test_the_slice_that_is_shown_first_holds_the_most_lesion(page, volume):
    lesion = head()[1]
    upload(page, volume)
    assert slider(page, 'Slice').value == lesion.sum((1, 2)).argmax()+1


def test_no_lesion(page, tmp_path):
    upload(page, write_nifti(tmp_path/'flat_flair.nii.gz', np.minimum(head()[0], 60) + np.indices((12, 96, 80)).sum(0)%3*(head()[0]>50)))
    slider(page, 'Threshold').set_value(.98).run()
    if metrics(page)['Lesion, mL']=='none': assert metrics(page)['Confidence'] == '–' and any('does not exclude' in w.value for w in page.warning)
    else: pytest.fail(f'a lesion in flat tissue: {metrics(page)}')


def test_pictures_as_slices_or_as_scans(page, tmp_path):
    upload(page, *(png(k, tmp_path) for k in (9, 7, 8)))
    assert page.radio[0].label == 'The 3 pictures are' and slider(page, 'Slice').max == 3 and 'Slices of 3' in metrics(page)
    page.radio[0].set_value('separate scans').run()
    assert not page.exception
    assert page.selectbox[0].options == ['slice_7', 'slice_8', 'slice_9'] and 'Slices of 1' in metrics(page) and 'Lesion, px' in metrics(page)


def test_three_sequences_of_one_patient(page):
    upload(page, *sorted(sample_path().glob('*_[pf]*.nii.gz')))
    sequences = next(r for r in page.radio if r.label=='Sequence')
    assert sequences.options == ['T1', 'FLAIR', 'T1 contrast']
    sequences.set_value('post').run()
    assert not page.exception


def test_another_upload_replaces_the_result(page, volume):
    page.button[0].click().run()
    first = metrics(page)
    upload(page, volume)
    assert metrics(page) != first and len(page.session_state.kept) == 1
    page.file_uploader[0].set_value([]).run()
    assert not page.metric and not page.session_state.kept


# Faults -----------------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('name,data,says', [('a.png', b'', '`a.png`'), ('a.nii.gz', b'text', 'no NIfTI volume'), ('a.tif', b'II*\0', '`a.tif`'), ('a_mask.png', b'', 'a_mask'),
                                            ('a.dcm', b'DICM', '`a.dcm`')])
def test_a_bad_file_is_told_in_a_sentence(page, name, data, says):
    upload(page, (name, data))
    errors = [e.value for e in page.main.error]
    assert len(errors) == 1 and says in errors[0] and 'Traceback' not in errors[0] and not page.metric


def test_one_bad_file_among_good_ones(page, volume):
    upload(page, volume, ('b.png', b'nothing'))
    assert len(page.main.error) == 1 and 'Lesion, mL' in metrics(page)


def test_a_model_that_cannot_be_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv('NEUROSEG_MODEL', str(tmp_path/'absent.json'))
    app.shared_segmenter.clear()
    at = AppTest.from_file(app.__file__, default_timeout=WAIT_S).run()
    app.shared_segmenter.clear()
    assert not at.exception and [e.value for e in at.main.error] == ['`absent.json` cannot be read (no such file or directory)'] and not at.file_uploader


class Upload:
    def __init__(self, name, data): self.name, self.data = name, data
    def getvalue(self): return self.data


@pytest.mark.parametrize('name', ['../../evil.png', '/etc/passwd.png', '..\\..\\evil.png', 'C:\\x\\evil.png', '.evil.png', 'e\0vil.png', 'x'*50+'\n.png', '`a`![](b).png'])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    path, = app.store([Upload(name, b'x')], tmp_path/'.') if tmp_path.mkdir(exist_ok=True) is None else ()
    assert path.parent == tmp_path and path.exists() and not set('`![]/\\\n\0') & set(path.name)


@pytest.mark.parametrize('name', ['...', '', '/', '..'])
def test_a_name_that_is_none(tmp_path, name):
    with pytest.raises(InputError): app.store([Upload(name, b'x')], tmp_path)


def test_too_much_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(app, 'MAX_UPLOAD_MB', 1)
    with pytest.raises(InputError, match='or 1 MB allowed'): app.store([Upload('a.png', bytes(1_100_000))], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_sentence(monkeypatch):
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(app, 'store', full)
    results, errors = app.segment_uploads(app.shared_segmenter(), [Upload('a.png', b'')])
    assert results == [] and len(errors) == 1 and 'disk' in errors[0]


# What is kept and taken away ------------------------------------------------------------------------------------------------------------------------

def test_uploads_are_deleted_before_anything_is_shown(page, volume, tmp_path, monkeypatch):
    scratch = tmp_path/'scratch'; scratch.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(scratch))
    upload(page, volume, ('b.png', b'nothing'))
    assert page.metric and list(scratch.iterdir()) == []


def test_the_zip_is_what_predict_writes(volume, card, tmp_path):
    report, = predict_cases(volume, tmp_path/'out', model=card)
    (result,), _ = app.segment_uploads(Segmenter(card), [Upload(volume.name, volume.read_bytes())])
    with zipfile.ZipFile(io.BytesIO(app.bundle(result, result.found.at(.5)))) as z: z.extractall(tmp_path/'zip')
    here, there = tmp_path/'zip', tmp_path/'out'/'anna_flair'
    assert sorted(p.name for p in here.iterdir()) == sorted(p.name for p in there.iterdir())
    assert (read_mask(here/'mask.nii.gz') == read_mask(there/'mask.nii.gz')).all()
    assert (nib.load(here/'mask.nii.gz').affine == nib.load(there/'mask.nii.gz').affine).all()
    ours, theirs = json.loads((here/'report.json').read_text()), json.loads((there/'report.json').read_text())
    assert {k for k in theirs if ours[k]!=theirs[k]} <= {'seconds'}


@pytest.mark.parametrize('affine', [np.diag([-1., -1., 4., 1.]), np.array([[0, 0, 2., 0], [1., 0, 0, 0], [0, 1., 0, 0], [0, 0, 0, 1]])], ids=['axial', 'turned'])
def test_the_overlay_lies_on_the_lesion_whatever_way_the_volume_is_stored(affine, tmp_path):
    v, lesion = head((10, 40, 30))
    result = app.segment_found(app.shared_segmenter(), Found(write_nifti(tmp_path/'v_flair.nii.gz', v, affine), ('v',)), 'v')
    shown = app.views(result.found.scan)
    areas, _ = app.extent(result.found, shown)
    k = int(np.argmax(areas))
    grey, drawn = (np.asarray(im.convert('RGB')).astype(int) for im in app.pair(shown, result.found.mask, k))
    red = (drawn!=grey).any(-1)
    assert red.any() and grey[red].mean() > 1.5*grey[~red & (grey[..., 0]>30)].mean()


def test_no_torch_in_the_application(root, card):
    code = 'import sys, neuroseg.app; print(*sorted({"torch", "fastai", "monai", "timm", "matplotlib"} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr


# A real server --------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def server(card):
    "The application as `neuroseg app` starts it."
    root = Path(app.__file__).parent.parent
    with socket.socket() as s: s.bind(('localhost', 0)); port = s.getsockname()[1]
    job = subprocess.Popen([sys.executable, '-c', 'import sys; from neuroseg.cli import main; sys.exit(main())', 'app', '--port', str(port), '--model', str(card)], cwd=root,
                           env={**os.environ, 'BROWSER': 'true', 'STREAMLIT_SERVER_HEADLESS': 'true'}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.time()+WAIT_S
    while time.time()<deadline and job.poll() is None:
        try: urlopen(f'http://localhost:{port}/_stcore/health', timeout=5).read(); break
        except OSError: time.sleep(.2)
    yield port
    job.terminate()
    text, _ = job.communicate(timeout=30)
    assert 'Traceback' not in text, text


def test_the_server_answers_this_machine_only(server):
    assert urlopen(f'http://localhost:{server}/_stcore/health', timeout=30).read() == b'ok'
    mine = {i[4][0] for i in socket.getaddrinfo(socket.gethostname(), server) if not i[4][0].startswith(('127.', '::1', 'fe80'))}
    for address in mine:
        with pytest.raises(OSError): socket.create_connection((address, server), timeout=2)


@pytest.fixture
def browser(tmp_path):
    "A headless browser's debugging address."
    program = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if not program: pytest.skip('no Chromium or Chrome here')
    job = subprocess.Popen([program, '--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', f'--user-data-dir={tmp_path}', '--remote-debugging-port=0', '--window-size=1440,1000', 'about:blank'],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    port, deadline = tmp_path/'DevToolsActivePort', time.time()+WAIT_S
    while not port.exists() and time.time()<deadline: time.sleep(.1)
    yield f'http://localhost:{port.read_text().split()[0]}'
    job.terminate(); job.wait(timeout=30)


async def visit(debugger, url):
    "Open the page, click the sample; what was read, and which hosts were asked."
    from tornado.websocket import websocket_connect
    target = next(t for t in json.loads(urlopen(debugger+'/json', timeout=30).read()) if t['type']=='page')
    tab, n = await websocket_connect(target['webSocketDebuggerUrl'], max_message_size=2**27), 0
    async def ask(method, **params):
        nonlocal n
        n += 1
        await tab.write_message(json.dumps(dict(id=n, method=method, params=params)))
        while (answer := json.loads(await tab.read_message())).get('id')!=n: pass
        return answer['result']
    async def value(script): return (await ask('Runtime.evaluate', expression=script, returnByValue=True))['result'].get('value')
    async def until(word):
        deadline = time.time()+WAIT_S
        while word not in (text := await value('document.body.innerText') or '') and time.time()<deadline: await asyncio.sleep(.3)
        return text
    await ask('Page.navigate', url=url)
    texts = [await until('Try the built-in sample')]
    await value("[...document.querySelectorAll('button')].find(b => b.innerText.includes('Try the built-in sample')).click()")
    texts.append(await until('report.json'))
    hosts = await value("JSON.stringify([...new Set(performance.getEntriesByType('resource').map(r => new URL(r.name).hostname))])")
    tab.close()
    return texts, json.loads(hosts)


@pytest.mark.browser
def test_a_browser_shows_the_sample_and_asks_nobody_else(server, browser):
    (start, shown), hosts = asyncio.run(visit(browser, f'http://localhost:{server}'))
    assert 'Not a medical device' in start and 'Confidence' not in start
    assert 'Confidence' in shown and 'slice' in shown and 'report.json' in shown
    assert set(hosts) <= {'localhost', ''}
