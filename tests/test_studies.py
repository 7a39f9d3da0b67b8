"Every study runs in its smoke profile, gives whole results, and never looks at a sealed patient."
import re, shutil
from pathlib import Path

import nbformat
import pytest

for library in ('papermill', 'nbconvert', 'matplotlib', 'torch', 'nilearn'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.reports import figures
from neuroseg.reports import summaries
from neuroseg.reports import study_run
from neuroseg.reports import reproduce
from neuroseg.core import DataError, read_json, sha256_file
from neuroseg.scans.phantom import write_phantom_lgg
from neuroseg.cohorts.integrity import SEALED

STUDIES = [f.stem for f in study_run.studies(ROOT).values()]


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "The studies and the library, in a repository where they may write."
    root = tmp_path_factory.mktemp('reader')/'repo'
    for folder in ('nbs/studies', 'neuroseg'): shutil.copytree(ROOT/folder, root/folder, ignore=shutil.ignore_patterns('__pycache__'))
    for f in ROOT.glob('reports/*/params.yml'):
        (root/f.relative_to(ROOT)).parent.mkdir(parents=True)
        shutil.copy(f, root/f.relative_to(ROOT))
    return root


def cpu_seconds():
    "Processor time of the kernels that have ended; wall time would measure what else the machine does."
    resource = pytest.importorskip('resource')
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def text_of(run): return '\n'.join(p.read_text(encoding='utf-8') for p in sorted(Path(run).rglob('*')) if p.suffix in ('.json', '.ipynb', '.html', '.csv'))


@pytest.mark.parametrize('study', STUDIES)
def test_smoke(copy, study):
    before = cpu_seconds()
    run = reproduce.run_study(study, 'smoke', root=copy, progress=False)
    assert cpu_seconds()-before < 90 # of two cores: less than a minute by the clock
    names = {p.name for p in run.iterdir()}
    assert {'notebook.ipynb', 'notebook.html', 'run.json', 'summary.json', 'figures'} <= names and any(n.endswith('.csv') for n in names)
    assert read_json(run/'summary.json') == summaries.summary(run) and read_json(run/'summary.json')['headline']
    # every figure of the study is drawn, shown in the notebook, and drawn again to the same bytes from tables and panels
    figures = {p.stem: sha256_file(p) for p in (run/'figures').iterdir()}
    assert set(figures) == set(figures.FIGURES[study])
    assert {n: sha256_file(figures.draw(run, study, n)) for n in figures} == figures
    assert [p for p in (str(copy), str(ROOT), str(Path.home())+'/', 'ipykernel_') if p in text_of(run)] == []
    assert [o for c in nbformat.read(run/'notebook.ipynb', as_version=4).cells for o in c.get('outputs', []) if o.get('name') == 'stderr'] == []


@pytest.mark.parametrize('study', STUDIES)
def test_a_study_keeps_its_form(study):
    nb = nbformat.read(ROOT/f'nbs/studies/{study}.ipynb', as_version=4)
    first, last = nb.cells[0].source, nb.cells[-1].source
    assert re.match(r'# .+\n\n> .+\?', first), 'it opens with its question'
    assert 'run.finish(' in last and nb.cells[-2 if nb.cells[-2].cell_type == 'markdown' else -3].source == '## Answer', 'it ends with its answer'
    assert [c for c in nb.cells if c.get('outputs')] == [], 'outputs belong to the runs'
    assert {'profile', 'out', 'cohort'} <= set(study_run.parameters_of(ROOT/f'nbs/studies/{study}.ipynb'))
    assert not any('#| export' in c.source for c in nb.cells)
    for profile in ('smoke', 'cpu'): study_run.check_params(ROOT/f'nbs/studies/{study}.ipynb', study_run.study_params(study, profile, ROOT))


def test_data_that_are_absent_are_named(copy, monkeypatch, tmp_path):
    monkeypatch.delenv('NEUROSEG_DATA', raising=False)
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path))
    with pytest.raises(DataError, match="cohort 'lgg' is not at .*NEUROSEG_DATA"): reproduce.run_study('20', 'cpu', root=copy, progress=False)
    assert not (copy/'reports/20_exploration/cpu').exists()


def test_exploration_looks_at_no_sealed_patient(copy, tmp_path):
    "With a sealed patient's files in the folder, they are counted and nothing more."
    folder = write_phantom_lgg(tmp_path, n_patients=6, size_px=64, n_slices=8)
    name = sorted(p for p in SEALED if p.startswith('TCGA_CS'))[0]
    old = folder/'TCGA_PH_0002_20000101'
    for f in list(old.iterdir()): f.rename(old/f.name.replace('TCGA_PH_0002', name))
    old.rename(folder/f'{name}_20000101')
    (folder/'data.csv').write_text((folder/'data.csv').read_text().replace('TCGA_PH_0002', name))
    run = reproduce.run_study('20', 'smoke', root=copy, progress=False, cohort=str(folder))
    found = read_json(run/'summary.json')
    assert (found['patients'], found['integrity']['patients'], found['integrity']['sealed patients set aside']) == (5, 6, 1)
    assert found['answer'].startswith('n = 5 patients, without the 1 sealed ones')
    assert [p for p in SEALED if p in ''.join((run/f).read_text() for f in ('patients.csv', 'slices.csv', 'panels.csv', 'clinical.csv', 'intensities.csv'))] == []
    assert 'CS' not in (run/'intensities.csv').read_text() and (run/'patients.csv').read_text().count('\n') == 6
    assert int((figures.panels(run, 'lesion_count')[0][0]).max()) <= 5
