"The docs site builds without a warning, shows studies as they ran, and none of its links leads nowhere."
import json, re, shutil, subprocess, sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT, tracked_files


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "Built in a copy of what git holds, so that nobody's own site is touched."
    repo = tmp_path_factory.mktemp('site')/'repo'
    for name in tracked_files():
        (repo/name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT/name, repo/name)
    dest = repo/'_docs'
    run = subprocess.run([sys.executable, 'nbs/_build.py', 'site', str(dest)], cwd=repo, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return dest


def links(
    page:Path, # HTML
)->set: # Of this site, without anchors
    "Where a page leads to, pictures included."
    found = re.findall(r'(?:href|src)="([^"#?]+)', page.read_text(encoding='utf-8'))
    return {unquote(l) for l in found if not re.match(r'[a-z]+:|//', l)}


@pytest.mark.slow
@pytest.mark.parametrize('page', ['index', 'ledger', 'model_card', 'datasheet', 'reports/index', 'tutorials/first_scan', 'studies/learner', 'core'])
def test_what_a_visitor_looks_for_is_a_page(site, page): assert (site/f'{page}.html').is_file()


@pytest.mark.slow
def test_studies_are_shown_as_they_ran(site):
    runs = [f.parent for f in sorted(ROOT.glob('reports/*/cpu/notebook.ipynb'))]
    assert runs
    for run in runs:
        page = (site/'studies'/f"{run.parent.name.partition('_')[2]}.html").read_text(encoding='utf-8')
        shown = sum('image/png' in out.get('data', {}) for c in json.loads((run/'notebook.ipynb').read_text(encoding='utf-8'))['cells'] for out in c.get('outputs', ()))
        assert shown and page.count('<img') >= shown and 'As it ran on' in page, run


@pytest.mark.slow
def test_no_link_is_broken(site):
    broken = [f'{page.relative_to(site)} -> {link}' for page in site.rglob('*.html') for link in links(page)
              if not (site/link.lstrip('/') if link.startswith('/') else page.parent/link).exists()]
    assert broken == []
