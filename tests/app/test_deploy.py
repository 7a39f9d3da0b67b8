"The page on deployment: the Dockerfile copies files that exist, nginx asks for a login and serves the page."
import base64, json, os, re, shlex, shutil, socket, subprocess, time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from test_browser import serving
from bright_model import bright, write_model


def test_the_dockerfile_copies_what_is_there_and_what_is_needed(root):
    text = (root/'Dockerfile').read_text()
    copied = [w for line in re.findall(r'^COPY (.+)$', text, re.M) for w in line.split()[:-1]]
    assert [c for c in copied if not (root/c).exists()] == []
    named = re.findall(r'(?:readme = |license-files = \[|include )"?([^\]\n]*)', (root/'pyproject.toml').read_text())
    needed = {'pyproject.toml', 'setup.py', 'settings.ini', 'neuroseg', 'README.md', 'LICENSE', 'NOTICE'}
    assert needed <= set(copied) and named
    allowed = {line[1:] for line in (root/'.dockerignore').read_text().splitlines() if line.startswith('!')}
    assert set(copied) <= allowed


def test_the_container_starts_the_application_as_nobody_special(root):
    text = (root/'Dockerfile').read_text()
    command = json.loads(re.search(r'^CMD (.+)$', text, re.M)[1])
    from neuroseg.cli import main
    # understood up to the model
    assert command[:2] == ['neuroseg', 'app'] and main([*command[1:], '--model', 'absent.json']) == 2
    assert re.search(r'^USER (?!root)', text, re.M)


def nginx_example(root):
    cells = json.loads((root/'nbs/tutorials/34_deploy.ipynb').read_text(encoding='utf-8'))['cells']
    return re.search(r'```nginx\n(.*?)```', '\n'.join(''.join(c['source']) for c in cells), re.S)[1]


def free_port():
    with socket.socket() as s: s.bind(('localhost', 0)); return s.getsockname()[1]


@pytest.fixture
def proxied(root, tmp_path):
    "The example of the docs, in front of the application, on this machine."
    nginx = shutil.which('nginx') or shutil.which('nginx', path='/usr/sbin')
    if not nginx or not shutil.which('openssl'):
        pytest.skip('no nginx and openssl here: apt install nginx-light openssl')
    options = f'-newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout {tmp_path}/k.pem -out {tmp_path}/c.pem'
    subprocess.run(['openssl', 'req', '-x509', *shlex.split(options)], check=True, capture_output=True)
    secret = subprocess.run(['openssl', 'passwd', '-apr1', 'secret'], check=True, capture_output=True,
                            text=True).stdout.strip()
    (tmp_path/'users').write_text(f'anna:{secret}\n')
    with serving(write_model(tmp_path/'m', bright())) as (port, _, _):
        mine = free_port()
        example = nginx_example(root)
        for a, b in (('listen 443', f'listen 127.0.0.1:{mine}'), ('neuroseg.example.org', 'localhost'),
                     ('/etc/ssl/certs/neuroseg.pem', f'{tmp_path}/c.pem'),
                     ('/etc/ssl/private/neuroseg.key', f'{tmp_path}/k.pem'),
                     ('/etc/nginx/neuroseg.users', f'{tmp_path}/users'), ('127.0.0.1:8501', f'127.0.0.1:{port}')):
            assert example.count(a) == 1
            example = example.replace(a, b)
        temp = ''.join(f'{n}_temp_path {tmp_path}/{n}; ' for n in ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
        user = 'user root; ' if os.geteuid() == 0 else ''
        server = f'daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; worker_processes 1; events {{}}'
        http = f'http {{ {temp} access_log {tmp_path}/access.log;\n{example} }}'
        (tmp_path/'nginx.conf').write_text(f'{user}{server}\n{http}')
        tmp_path.chmod(0o755)
        job = subprocess.Popen([nginx, '-p', str(tmp_path), '-c', str(tmp_path/'nginx.conf')], stderr=subprocess.PIPE,
                               text=True)
        deadline = time.time()+60
        while time.time() < deadline and job.poll() is None:
            try: socket.create_connection(('127.0.0.1', mine), timeout=1).close(); break
            except OSError: time.sleep(.1)
        assert job.poll() is None, job.stderr.read()
        yield mine, tmp_path
        job.terminate(); job.wait(timeout=30)


def ask(port, path='/', **headers):
    import ssl
    context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
    try: return urlopen(Request(f'https://localhost:{port}{path}', headers=headers), timeout=60, context=context)
    except HTTPError as e: return e


LOGIN = 'Basic ' + base64.b64encode(b'anna:secret').decode()


def test_the_nginx_example_asks_for_a_login(proxied):
    port, folder = proxied
    assert ask(port).status == 401
    assert ask(port, Authorization='Basic ' + base64.b64encode(b'anna:wrong').decode()).status == 401
    page = ask(port, Authorization=LOGIN)
    assert page.status == 200 and b'<div id="root">' in page.read()
    assert ask(port, '/_stcore/health', Authorization=LOGIN).read() == b'ok'


def test_the_websocket_passes_the_proxy_and_other_pages_do_not(proxied):
    import asyncio
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect
    port, folder = proxied
    async def connect(origin, **headers):
        request = HTTPRequest(f'wss://localhost:{port}/_stcore/stream', headers={'Origin': origin, **headers},
                              validate_cert=False)
        ws = await websocket_connect(request, subprotocols=['streamlit'])
        ws.close()
        return True
    assert asyncio.run(connect(f'https://localhost:{port}', Authorization=LOGIN))
    for origin, headers in ((f'https://localhost:{port}', {}), ('https://evil.example', dict(Authorization=LOGIN))):
        with pytest.raises(HTTPClientError): asyncio.run(connect(origin, **headers))
    assert not (folder/'access.log').exists() or (folder/'access.log').read_text() == ''
