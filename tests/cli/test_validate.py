"`neuroseg validate`: a page from a cohort with masks, nothing of a patient in it, one sentence for bad input."
import csv, json, re, shutil
from types import SimpleNamespace

import pytest
from bright_model import bright, write_model

from neuroseg.cli import main
from neuroseg.core import read_json
from neuroseg.reports import validation_page

NAMES = [f'Lindqvist_{k}' for k in ('Åsa', 'Bo', 'Cora', 'Dag', 'Eli', 'Finn')]
FILES = ['cases.csv', 'report.html', 'report.json', 'run.json']


@pytest.fixture(scope='module')
def card(tmp_path_factory): return str(write_model(tmp_path_factory.mktemp('model'), bright()))


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
    "Six patients in the layout of a hospital, with names, and nothing that calls them public."
    ward = tmp_path_factory.mktemp('clinic')/'Ward_Nord'
    small = ['--patients', '6', '--size-px', '48', '--slices', '5']
    assert main(['phantom', str(ward), '--layout', 'hospital', *small]) == 0
    (ward/'cohort.json').unlink()
    for f, name in zip(sorted(ward.glob('patient*')), NAMES): f.rename(ward/name)
    return ward


@pytest.fixture
def ward(drawn, tmp_path): return shutil.copytree(drawn, tmp_path/drawn.name)


@pytest.fixture
def run(capsys, card):
    "Validate in this process."
    def _run(*words):
        try: code = main(['validate', *map(str, words), '--model', card])
        except SystemExit as e: code = e.code
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)
    return _run


def text(folder): return '\n'.join(f.read_text(encoding='utf-8') for f in sorted(folder.iterdir()))


def words_of(ward): # What could betray a patient: names, their parts, the cohort's folder
    return [*NAMES, 'Lindqvist', 'Cora', ward.name, str(ward.parent)]


def own_table(folder):
    with open(folder/'own.csv', 'w', newline='', encoding='utf-8') as f:
        people = ((p, 'f' if i < 5 else 'm', 33) for i, p in enumerate(NAMES))
        csv.writer(f).writerows([('Patient', 'sex', 'age'), *people])
    return folder/'own.csv'


def refused(done, out, says):
    assert done.code == 2 and done.err.startswith('neuroseg: ') and done.err.count('\n') == 1, done
    assert says in done.err and not any(n in done.err for n in NAMES) and not out.exists()


def test_nothing_of_a_patient_is_in_the_results(run, ward, tmp_path):
    done = run(ward, '-o', tmp_path/'out', '--table', own_table(tmp_path))
    assert done.code == 0 and done.out.startswith('6 patients: mean Dice'), done
    assert sorted(f.name for f in (tmp_path/'out').iterdir()) == FILES
    assert [w for w in words_of(ward) if w in text(tmp_path/'out') + done.out + done.err] == []
    page, report = (tmp_path/'out'/'report.html').read_text(), read_json(tmp_path/'out'/'report.json')
    assert not re.search(r'\bP\d\b', page) and 'withheld' not in json.dumps(report)
    with open(tmp_path/'out'/'cases.csv', newline='') as f: rows = list(csv.DictReader(f))
    assert {r['patient'] for r in rows} == {f'P{i}' for i in range(1, 7)}
    assert not {'case', 'institution', 'sex', 'age', 'grade'} & set(rows[0])


def test_a_public_cohort_is_private_too_unless_it_is_asked_for(run, tmp_path):
    lgg = tmp_path/'lgg'
    main(['phantom', str(lgg), '--patients', '6', '--size-px', '48', '--slices', '5'])
    assert run(lgg/'kaggle_3m', '-o', tmp_path/'hidden').code == run(lgg/'kaggle_3m', '-o', tmp_path/'out',
                                                                     '--public').code == 0
    assert 'TCGA_PH' not in text(tmp_path/'hidden') and 'TCGA_PH' in (tmp_path/'out'/'report.html').read_text()


def test_of_fewer_than_five_patients_only_the_mean_is_told(run, ward, tmp_path):
    for name in NAMES[:2]: shutil.rmtree(ward/name)
    done = run(ward, '-o', tmp_path/'out')
    assert done.code == 0 and 'Of fewer than five patients nothing else is told' in done.out
    assert set(read_json(tmp_path/'out'/'report.json')['numbers']) == {'n', 'dice'}
    assert [w for w in words_of(ward) if w in text(tmp_path/'out')] == []


def test_without_matplotlib_the_page_has_its_tables_and_says_so(run, ward, tmp_path, monkeypatch):
    found = validation_page.find_spec
    monkeypatch.setattr(validation_page, 'find_spec', lambda m: None if m == 'matplotlib' else found(m))
    assert run(ward, '-o', tmp_path/'out').code == 0
    page = (tmp_path/'out'/'report.html').read_text()
    assert '<img' not in page and page.count('<table>') >= 3 and 'Figures need the extra `reproduce`' in page


def test_a_page_needs_no_network_and_no_script(run, ward, tmp_path):
    pytest.importorskip('matplotlib')
    assert run(ward, '-o', tmp_path/'out').code == 0
    page = (tmp_path/'out'/'report.html').read_text()
    assert '<img' in page and not re.search(r'<script|https?:|<link|url\(', page)


def test_bad_input_is_one_sentence(run, ward, tmp_path):
    out, other = tmp_path/'out', tmp_path/'other.csv'
    refused(run(ward, '-o', out, '--public'), out, 'the cohort is private; leave out --public')
    refused(run(tmp_path/'nowhere', '-o', out), out, 'there is no folder `nowhere`')
    refused(run(ward, '-o', out, '--table', tmp_path/'no.csv'), out, '`no.csv` cannot be read')
    other.write_text('Patient,sex\nsomebody,f\n')
    refused(run(ward, '-o', out, '--table', other), out, '`other.csv` names no patient of the cohort')
    other.write_text('name,sex\nsomebody,f\n')
    refused(run(ward, '-o', out, '--table', other), out, 'has no column `Patient`')
    next((ward/NAMES[2]/'masks').iterdir()).unlink()
    refused(run(ward, '-o', out), out, 'mask')
