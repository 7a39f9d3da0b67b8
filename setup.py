"Hand settings.ini to setuptools; everything static stands in pyproject.toml."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(Path(__file__).parent/'settings.ini', encoding='utf-8')


def requirements(text:str)->list[str]: return [line for line in text.splitlines() if line.strip()]
def entry_points(section:str)->list[str]: return [f'{name} = {target}' for name, target in cfg[section].items()]


extras = {name: requirements(text) for name, text in cfg['extras'].items()}
extras['all'] = sorted({req for reqs in extras.values() for req in reqs})

setup(install_requires=requirements(cfg['install']['requirements']), extras_require=extras,
      entry_points={'console_scripts': entry_points('scripts'), 'nbdev': entry_points('nbdev')})
