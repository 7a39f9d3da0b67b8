"""Hand settings.ini to setuptools; everything static stands in pyproject.toml.

Wheel and source archive come out the same, byte for byte, wherever and whenever a commit is built. The source archive
holds the files that git knows, the tests among them, and nothing else that lies in the folder.
"""
import gzip, os, re, subprocess, tarfile
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup
from setuptools.command import bdist_wheel, egg_info, sdist

ROOT = Path(__file__).parent
REPOSITORY = 'https://github.com/neuroseg/neuroseg'
# Of every file in the archives, 2020-01-01: the time of a checkout says nothing
EPOCH = int(os.environ.setdefault('SOURCE_DATE_EPOCH', '1577836800'))

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(ROOT/'settings.ini', encoding='utf-8')


def requirements(text:str)->list[str]: return [line for line in text.splitlines() if line.strip()]
def entry_points(section:str)->list[str]: return [f'{name} = {target}' for name, target in cfg[section].items()]


def page()->str: # README.md, with links that hold outside the repository
    "The text for PyPI: pictures and files of the version's tag on GitHub."
    version = re.search(r'__version__ = "([^"]+)"', (ROOT/'neuroseg/__init__.py').read_text(encoding='utf-8'))[1]
    raw = f"{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')}/v{version}"
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    text = re.sub(r'(!\[[^\]]*\]\()(?![a-z]+:|#)', rf'\1{raw}/', text)
    return re.sub(r'(?<!!)(\[[^\]]*\]\()(?![a-z]+:|#)', rf'\1{REPOSITORY}/blob/v{version}/', text)


def tracked(folder:str='')->list[str]: # Paths; none outside git, where setuptools takes the archive's list
    "What goes into the source archive: a folder of private results beside the code does not."
    git = ['git', '-C', str(ROOT), 'ls-files', '-z']
    try: inside = subprocess.run([*git, '--error-unmatch', 'setup.py'], capture_output=True).returncode==0
    except OSError: return []
    if not inside: return []
    names = subprocess.run(git, capture_output=True, check=True).stdout.decode().split('\0')
    return [n for n in names if n and (ROOT/n).is_file()]


class Sdist(sdist.sdist):
    "A source archive with the same bytes each time."
    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        def plain(member):
            member.mtime, member.uid, member.gid, member.uname, member.gname = EPOCH, 0, 0, '', ''
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            return member
        name = f'{base_name}.tar.gz'
        files = sorted(f for f in Path(base_dir).rglob('*') if f.is_file())
        with open(name, 'wb') as raw, gzip.GzipFile('', 'wb', 9, raw, mtime=EPOCH) as packed, \
             tarfile.open(fileobj=packed, mode='w', format=tarfile.PAX_FORMAT) as tar:
            for f in files: tar.add(f, f.as_posix(), recursive=False, filter=plain)
        return name


class Wheel(bdist_wheel.bdist_wheel):
    "A wheel whose files have the same modes whatever umask they were checked out and built with."
    def write_wheelfile(self, wheelfile_base, *args, **kwargs):
        super().write_wheelfile(wheelfile_base, *args, **kwargs)
        for f in Path(wheelfile_base).parent.rglob('*'):
            if f.is_file(): f.chmod(0o644)


# setuptools asks this function for the files under version control
egg_info.walk_revctrl = tracked
extras = {name: requirements(text) for name, text in cfg['extras'].items()}
extras['all'] = sorted({req for reqs in extras.values() for req in reqs})

setup(long_description=page(), long_description_content_type='text/markdown',
      cmdclass=dict(sdist=Sdist, bdist_wheel=Wheel),
      install_requires=requirements(cfg['install']['requirements']), extras_require=extras,
      entry_points={'console_scripts': entry_points('scripts'), 'nbdev': entry_points('nbdev')})
