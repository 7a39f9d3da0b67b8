"The lock pins everything that the project needs, with hashes, and names no place to fetch it from."
import re
from configparser import ConfigParser

import pytest

pytest.importorskip('packaging')
from packaging.requirements import Requirement

from conftest import ROOT

HASH = re.compile(r' +--hash=sha256:[0-9a-f]{64}( \\)?')


def pins(text):
    "Package to its pinned requirements; several where the version depends on Python or system."
    found = {}
    for line in text.splitlines():
        if not re.match('[a-z0-9]', line): continue
        requirement = Requirement(line.removesuffix('\\').strip())
        found.setdefault(requirement.name, []).append(requirement)
    return found


@pytest.fixture(scope='module')
def lock(): return (ROOT/'requirements.lock').read_text(encoding='utf-8')


def requirements():
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(ROOT/'settings.ini', encoding='utf-8')
    listed = [cfg['install']['requirements'], *cfg['extras'].values()]
    return [Requirement(line) for text in listed for line in text.splitlines() if line.strip()]


def missing(needed, pinned):
    "Requirements that no pin fulfils."
    def fits(r):
        name = re.sub(r'[-_.]+', '-', r.name).lower()
        return any(r.specifier.contains(next(iter(p.specifier)).version) for p in pinned.get(name, []))
    return [str(r) for r in needed if not fits(r)]


def test_every_requirement_is_pinned(lock):
    assert missing(requirements(), pins(lock)) == [], 'run `make lock`'


def test_a_requirement_that_is_not_pinned_is_found(lock):
    assert missing([Requirement('numpy>=99'), Requirement('gone')], pins(lock)) == ['numpy>=99', 'gone']


def test_every_pin_is_exact_and_hashed(lock):
    assert all(str(r.specifier).startswith('==') for rs in pins(lock).values() for r in rs)
    blocks = re.split(r'\n(?=[a-z0-9])', lock)[1:]
    assert len(blocks) > 200
    assert [b.split('\n')[0] for b in blocks if not all(HASH.fullmatch(line) for line in b.strip().split('\n')[1:])
            or '\n' not in b.strip()] == []


def test_the_lock_names_no_host(lock): assert not re.search(r'https?:|file:|index-url|find-links', lock)
