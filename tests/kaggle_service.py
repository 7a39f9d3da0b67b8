"""A stand-in of Kaggle's service: the endpoints that the package `kaggle` calls for what this project does with it.

    data sets    download (a redirect to a store with ranges), status, creation, new version, upload of files
    kernels      push, status, output, log
    account      whose token is this
"""
import contextlib, json, os, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from kagglesdk import kaggle_env


class Service(ThreadingHTTPServer):
    """`cuts`: bytes after which the next answers break off; `status`: refuse what begins so; `log`: requests so far.

    `states` are given one a question, the last one for ever; `files` is the output of the kernel.
    """
    daemon_threads = True
    def __init__(self, archive=b''):
        self.archive, self.tag, self.cuts, self.status, self.refuse = archive, '"v1"', [], None, {}
        self.ranges, self.length, self.html, self.log, self.sleep_s = True, True, False, [], 0.
        self.tokens, self.pushed, self.uploads, self.datasets = {'good': 'ann'}, [], {}, {}
        self.states, self.files, self.output_log, self.saved = ['COMPLETE'], {}, '', {}
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def body(self): return self.rfile.read(int(self.headers.get('Content-Length') or 0))

    def answer(self, found, status=200):
        data = json.dumps(found).encode()
        self.send_response(status); self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(data))); self.end_headers(); self.wfile.write(data)

    def do_POST(self):
        asked, call = json.loads(self.body() or b'{}'), self.path.rpartition('/')[2]
        if self.server.sleep_s: time.sleep(self.server.sleep_s)
        if call in self.server.refuse: return self.refused(self.server.refuse[call])
        getattr(self, call)(asked)

    def refused(self, status):
        self.answer(dict(code=status, message=f'{status} for url: https://api.kaggle.com'), status)

    def DownloadDataset(self, asked): # noqa: N802 the names are the service's
        s = self.server
        s.log.append(('api', self.headers.get('Authorization')))
        if s.status: return self.send_error(s.status)
        self.send_response(302); self.send_header('Location', f'http://localhost:{s.server_port}/store')
        self.send_header('Content-Length', '0'); self.end_headers()

    def IntrospectToken(self, asked): # noqa: N802
        user = self.server.tokens.get(asked['token'])
        self.server.log.append(('introspect', asked['token']))
        self.answer(dict(active=bool(user), username=user or ''))

    def GetDatasetStatus(self, asked): # noqa: N802
        name = f"{asked['ownerSlug']}/{asked['datasetSlug']}"
        if name in self.server.datasets: self.answer(dict(status='READY'))
        else: self.refused(404)

    def StartBlobUpload(self, asked): # noqa: N802
        token = f'blob{len(self.server.uploads)}'
        self.server.uploads[token] = dict(name=asked['name'], data=None)
        self.answer(dict(token=token, createUrl=f'{self.server.url}/upload/{token}'))

    def do_PUT(self):
        self.server.uploads[self.path.rpartition('/')[2]]['data'] = self.body()
        self.send_response(200); self.send_header('Content-Length', '0'); self.end_headers()

    def CreateDataset(self, asked): # noqa: N802
        name = f"{asked['ownerSlug']}/{asked['slug']}"
        self.server.log.append(('new data set', name, asked.get('isPrivate')))
        self.server.datasets[name] = [f['token'] for f in asked['files']]
        self.answer(dict(status='ok', url='https://www.kaggle.com/x', ref=name))

    def CreateDatasetVersion(self, asked): # noqa: N802
        name = f"{asked['ownerSlug']}/{asked['datasetSlug']}"
        self.server.log.append(('new version', name, asked['body']['versionNotes']))
        self.server.datasets[name] = [f['token'] for f in asked['body']['files']]
        self.answer(dict(status='ok', url='https://www.kaggle.com/x', ref=name))

    def SaveKernel(self, asked): # noqa: N802
        self.server.pushed.append(asked)
        self.answer(dict(ref=asked['slug'], url=f"https://www.kaggle.com/code/{asked['slug']}",
                         versionNumber=len(self.server.pushed)) | self.server.saved)

    def GetKernelSessionStatus(self, asked): # noqa: N802
        s = self.server
        s.log.append(('status', asked['kernelSlug']))
        state = s.states.pop(0) if s.states[1:] else s.states[0]
        if isinstance(state, int): return self.refused(state)
        self.answer(dict(status=state, failureMessage='' if state != 'ERROR' else 'the notebook failed'))

    def ListKernelSessionOutput(self, asked): # noqa: N802
        files = [dict(fileName=name, url=f'{self.server.url}/output/{i}') for i, name in enumerate(self.server.files)]
        self.answer(dict(files=files, log=self.server.output_log))

    def do_GET(self):
        s = self.server
        if s.sleep_s: time.sleep(s.sleep_s)
        whole = s.archive
        if self.path.startswith('/output/'): whole = list(s.files.values())[int(self.path.rpartition('/')[2])]
        asked = self.headers.get('Range')
        start = int(asked[6:-1]) if asked and s.ranges and self.headers.get('If-Range') in (s.tag, None) else 0
        s.log.append(('store', start, self.headers.get('Authorization')))
        if start >= len(whole): return self.send_error(416)
        body = b'<html>sign in</html>' if s.html else whole[start:]
        self.send_response(206 if start else 200)
        self.send_header('Content-Type', 'text/html' if s.html else 'application/zip')
        if s.ranges: self.send_header('Accept-Ranges', 'bytes')
        if s.tag: self.send_header('ETag', s.tag)
        if s.length: self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        try: self.wfile.write(body[:s.cuts.pop(0)] if s.cuts else body)
        except OSError: pass # the client has had enough


@contextlib.contextmanager
def serving(service, home, monkeypatch):
    "The client's addresses lead here, and it finds no credentials of the machine."
    for k in list(os.environ):
        if k.startswith('KAGGLE_'): monkeypatch.delenv(k)
    for name in ('HOME', 'USERPROFILE'): monkeypatch.setenv(name, str(home))
    monkeypatch.setenv('no_proxy', '127.0.0.1,localhost')
    from neuroseg.cohorts.kaggle_account import client_module
    monkeypatch.setattr(client_module().KaggleApi, 'config', str(home/'kaggle.json'))
    def redirect(url): monkeypatch.setitem(kaggle_env._env_to_endpoint, kaggle_env.KaggleEnv.PROD, url)
    service.redirect = redirect
    redirect(service.url)
    thread = threading.Thread(target=service.serve_forever, kwargs=dict(poll_interval=.02), daemon=True); thread.start()
    yield service
    service.shutdown(); service.server_close(); thread.join()
