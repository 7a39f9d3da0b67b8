"""A stand-in of Hugging Face's Hub: files of one repository under their commit, with the headers that its client reads.

It answers HEAD and GET of `/OWNER/NAME/resolve/REVISION/FILE`, as the real Hub does for public, private and gated
models, for wrong revisions and for missing files. What was asked is kept in `asked`.
"""
import hashlib, threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO, COMMIT = 'ann/neuroseg-lgg', '5'*40


class Hub(ThreadingHTTPServer):
    "`files`: name to bytes; `gated`, `down`: how the repository behaves; `cut`: bytes after which an answer breaks."
    daemon_threads = True
    def __init__(self, files):
        self.files, self.commits, self.gated, self.down, self.cut = files, {COMMIT, 'main'}, False, None, None
        self.asked, self.lengths = [], {}
        super().__init__(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.server_port}'


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass

    def refuse(self, status, code):
        self.send_response(status)
        if code: self.send_header('X-Error-Code', code)
        self.send_header('Content-Length', '0'); self.end_headers()

    def do_GET(self):
        s = self.server
        s.asked.append((self.command, self.path))
        repo, _, rest = self.path.lstrip('/').partition('/resolve/')
        revision, _, name = rest.partition('/')
        if s.down: return self.refuse(s.down, None)
        if repo != REPO: return self.refuse(404, 'RepoNotFound')
        if s.gated: return self.refuse(403, 'GatedRepo')
        if revision not in s.commits: return self.refuse(404, 'RevisionNotFound')
        if name not in s.files: return self.refuse(404, 'EntryNotFound')
        data = s.files[name]
        self.send_response(200)
        self.send_header('X-Repo-Commit', COMMIT)
        self.send_header('ETag', f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header('Content-Length', str(s.lengths.get(name, len(data)))); self.end_headers()
        if self.command == 'GET': self.wfile.write(data[:s.cut])

    def do_HEAD(self): self.do_GET()


@contextmanager
def serving(files):
    "A Hub that runs until the block ends."
    hub = Hub(files)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try: yield hub
    finally: hub.shutdown(); hub.server_close()
