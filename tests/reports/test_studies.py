"Every study runs in its smoke profile, gives whole results, and never looks at a sealed patient."
import re, shutil
from pathlib import Path

import nbformat
import pytest

for library in ('papermill', 'nbconvert', 'matplotlib', 'torch', 'nilearn'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.cohorts.integrity import SEALED
from neuroseg.core import DataError, read_json, sha256_file
from neuroseg.reports import execution, stored_run, study_notebook
from neuroseg.scans.phantom import write_phantom_lgg

STUDIES = [f.stem for f in study_notebook.studies(ROOT).values()]


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The studies and the library, in a repository where they may write."
    root = tmp_path_factory.mktemp('reader')/'repo'
    for folder in ('nbs/studies', 'neuroseg'):
        shutil.copytree(ROOT/folder, root/folder, ignore=shutil.ignore_patterns('__pycache__'))
    for f in ROOT.glob('reports/*/params.yml'):
        (root/f.relative_to(ROOT)).parent.mkdir(parents=True)
        shutil.copy(f, root/f.relative_to(ROOT))
    return root


TEXTS = ('.json', '.ipynb', '.html', '.csv')
def text_of(run):
    return '\n'.join(p.read_text(encoding='utf-8') for p in sorted(Path(run).rglob('*')) if p.suffix in TEXTS)


# `make test` runs every study's notebook by nbdev-test; here one study, and in `make test-all` each, leaves a whole run
@pytest.mark.parametrize('study', [STUDIES[0], *(pytest.param(s, marks=pytest.mark.slow) for s in STUDIES[1:])])
def test_smoke(copy, study):
    run = execution.run_study(study, 'smoke', root=copy, progress=False)
    names = {p.name for p in run.iterdir()}
    assert {'notebook.ipynb', 'notebook.html', 'run.json', 'summary.json', 'figures'} <= names
    assert any(n.endswith('.csv') for n in names)
    assert read_json(run/'summary.json') == stored_run.summary(run) and read_json(run/'summary.json')['headline']
    # every figure is drawn, shown in the notebook, and drawn again to the same bytes from tables and panels
    drawn = {p.stem: sha256_file(p) for p in (run/'figures').iterdir()}
    assert set(drawn) == set(study_notebook.study_cells(study_notebook.find_study(study, copy)).figures)
    assert {n: sha256_file(stored_run.draw(run, n)) for n in drawn} == drawn
    assert [p for p in (str(copy), str(ROOT), str(Path.home())+'/', 'ipykernel_') if p in text_of(run)] == []
    outputs = [o for c in nbformat.read(run/'notebook.ipynb', as_version=4).cells for o in c.get('outputs', [])]
    assert [o for o in outputs if o.get('name') == 'stderr'] == []


@pytest.mark.parametrize('study', STUDIES)
def test_a_study_keeps_its_form(study):
    notebook = ROOT/f'nbs/studies/{study}.ipynb'
    nb = nbformat.read(notebook, as_version=4)
    sources = [c.source for c in nb.cells]
    assert re.match(r'# .+\n\n> .+\?$', sources[0]), 'it opens with its question'
    opening = '\n'.join(c.source for c in nb.cells[1:4] if c.cell_type == 'markdown') # with badges before it
    link = re.search(r'\]\((\.\./\.\./reports/.+?/notebook\.ipynb)\)', opening)
    run = ROOT/f'reports/{study}/cpu/notebook.ipynb'
    assert link and (notebook.parent/link[1]).resolve() == run, 'a link to its run'
    assert [s for s in sources if s.startswith('## ')][-1] == '## Answer', 'it ends with its answer'
    assert 'run.finish(numbers, headline, answer' in sources[-1]
    assert [c for c in nb.cells if c.get('outputs')] == [], 'outputs belong to the runs'
    assert {'profile', 'out', 'cohort'} <= set(study_notebook.parameters_of(notebook))
    assert not any('#| export' in s for s in sources)
    for profile in ('smoke', 'cpu'):
        study_notebook.check_params(notebook, study_notebook.study_params(study, profile, ROOT))


@pytest.mark.parametrize('study', STUDIES)
def test_tagged_cells_need_neither_data_nor_torch(study):
    "Figures and numbers are computed again by readers who have the stored tables only."
    tags = ('figures', 'numbers', 'answer')
    notebook = study_notebook.find_study(study, ROOT)
    code = '\n'.join(s for tag in tags for s in study_notebook.tagged_cells(notebook, tag))
    imported = re.findall(r'^\s*(?:from|import) ([\w.]+)', code, re.M)
    assert [m for m in imported if m.startswith(('torch', 'fastai', 'neuroseg.learn'))] == []
    assert not re.search(r'load_case|find_cases|data_dir', code)


def test_data_that_are_absent_are_named(copy, monkeypatch, tmp_path):
    monkeypatch.delenv('NEUROSEG_DATA', raising=False)
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path))
    with pytest.raises(DataError, match="cohort 'lgg' is not at .*NEUROSEG_DATA"):
        execution.run_study('20', 'cpu', root=copy, progress=False)
    assert not (copy/'reports/20_exploration/cpu').exists()


def test_exploration_looks_at_no_sealed_patient(copy, tmp_path):
    "With a sealed patient's files in the folder, they are counted and nothing more."
    folder = write_phantom_lgg(tmp_path, n_patients=6, size_px=64, n_slices=8)
    name = sorted(p for p in SEALED if p.startswith('TCGA_CS'))[0]
    old = folder/'TCGA_PH_0002_20000101'
    for f in list(old.iterdir()): f.rename(old/f.name.replace('TCGA_PH_0002', name))
    old.rename(folder/f'{name}_20000101')
    (folder/'data.csv').write_text((folder/'data.csv').read_text().replace('TCGA_PH_0002', name))
    run = execution.run_study('20', 'smoke', root=copy, progress=False, cohort=str(folder))
    found = read_json(run/'summary.json')
    checked = found['integrity']
    assert (found['patients'], checked['patients'], checked['sealed patients set aside']) == (5, 6, 1)
    assert 'has n = 5 patients, without the 1 sealed ones in this folder,' in found['answer']
    assert [p for p in SEALED
            if p in ''.join((run/f).read_text()
                            for f in ('patients.csv', 'slices.csv', 'panels.csv', 'clinical.csv',
                                      'intensities.csv'))] == []
    assert 'CS' not in (run/'intensities.csv').read_text() and (run/'patients.csv').read_text().count('\n') == 6
    assert int((stored_run.panels(run, 'lesion_count')[0][0]).max()) <= 5
