"A cohort is opened once: in a cross-validation each of its files is hashed once, however many folds there are."
import pickle
from collections import Counter
from pathlib import Path

import pytest

for library in ('torch', 'fastai'): pytest.importorskip(library)
from neuroseg.cohorts import cases, cohort as cohort_room, privacy
from neuroseg.cohorts.cohort import Cohort
from neuroseg.cohorts.privacy import policy_of
from neuroseg.core import ConfigError, hash_files, read_json

from neuroseg.learn.cross_validation import cross_validate, fit_everyone, recipe, split_cohort
from neuroseg.scans import pictures, stacks
from neuroseg.scans.phantom import write_phantom_hospital, write_phantom_lgg

CFG = recipe(dict(model='trial', epochs=1, bs=8, prep=dict(size_px=32)))


@pytest.fixture
def lgg(tmp_path, monkeypatch):
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    return write_phantom_lgg(tmp_path/'lgg', n_patients=6, size_px=32, n_slices=5)


@pytest.fixture
def read(monkeypatch):
    "How often each picture was opened to decode its pixels."
    files, real = Counter(), pictures.read_pages
    def pages(path, *args, **kwargs): files[Path(path).name] += 1; return real(path, *args, **kwargs)
    for room in (pictures, stacks): monkeypatch.setattr(room, 'read_pages', pages)
    return files


@pytest.fixture
def counted(monkeypatch):
    "How often each file was hashed, how many pixel arrays were, and how often cases were searched."
    files, other = Counter(), Counter()
    real_hash, real_array, real_find = cases.sha256_file, cases.sha256_array, cases.find_cases
    def hash_file(path): files[path.name] += 1; return real_hash(path)
    def hash_array(a): other['pixels'] += 1; return real_array(a)
    def find(*args, **kwargs): other['find_cases'] += 1; return real_find(*args, **kwargs)
    monkeypatch.setattr(cases, 'sha256_file', hash_file)
    monkeypatch.setattr('neuroseg.core.sha256_file', hash_file)
    monkeypatch.setattr(cases, 'sha256_array', hash_array)
    for room in (cases, cohort_room, privacy): monkeypatch.setattr(room, 'find_cases', find)
    return files, other


def test_five_folds_hash_and_read_each_file_once_for_each_purpose(lgg, tmp_path, counted, read):
    "Hashed once; decoded once to check the cohort, once to prepare it for training, once to score it."
    files, other = counted
    cross_validate(lgg, tmp_path/'cv', cfg=CFG, progress=False)
    pictures = {f.name for f in lgg.rglob('*.tif')}
    assert len(list((tmp_path/'cv').glob('fold_*'))) == 5 and len(pictures) == 6*5*2
    assert {n: k for n, k in files.items() if n in pictures} == dict.fromkeys(pictures, 1)
    assert other['find_cases'] == 1 and other['pixels'] == len(pictures)
    assert {n: k for n, k in read.items() if n in pictures} == dict.fromkeys(pictures, 3)


def test_an_open_cohort_is_read_once_for_several_jobs(lgg, tmp_path, counted):
    "Cross-validation, the model of all patients and the integrity report share one reading."
    files, other = counted
    cohort = Cohort.open(lgg)
    cross_validate(cohort, tmp_path/'cv', cfg=CFG, progress=False)
    fit_everyone(cohort, tmp_path/'all', scores=tmp_path/'cv', progress=False)
    assert cohort.report(progress=False).ok and max(k for n, k in files.items() if n.endswith('.tif')) == 1
    assert other['find_cases'] == 1 and other['pixels'] == 6*5*2


def test_the_hashes_are_those_of_the_files(lgg, tmp_path):
    "Stored runs stay comparable: the hash of a run is `hash_files` of its files."
    cross_validate(lgg, tmp_path/'cv', cfg=CFG, progress=False)
    found = cases.find_cases(lgg)
    assert read_json(tmp_path/'cv'/'plan.json')['data_hash'] == hash_files(cases.case_files(found))
    train = [c for c in found if c.patient in read_json(tmp_path/'cv'/'fold_2'/'plan.json')['split']['train']]
    card = read_json(tmp_path/'cv'/'fold_2'/'model'/'model.json')
    assert card['data']['hash'] == hash_files(cases.case_files(train))


def test_a_changed_file_is_hashed_again(lgg):
    cohort = Cohort.open(lgg)
    before, mask = cohort.hash(), cohort.cases[0].masks[0]
    mask.write_bytes(mask.read_bytes()+b' ')
    assert cohort.hash() == hash_files(cases.case_files(cohort.cases)) != before
    mask.unlink()
    with pytest.raises(Exception, match='cannot be read'): cohort.hash()


def test_workers_get_what_is_known(lgg, counted):
    files, other = counted
    cohort = Cohort.open(lgg)
    known = cohort.hash(), cohort.folds()
    seen, pixels = sum(files.values()), other['pixels']
    sent = pickle.loads(pickle.dumps(cohort))
    assert (sent.hash(), sent.folds()) == known and sent.split(0).facts == cohort.split(0).facts
    assert sum(files.values()) == seen and other['pixels'] == pixels


def test_functions_take_a_folder_or_an_open_cohort(lgg):
    cohort = Cohort.open(lgg)
    assert split_cohort(lgg, fold=1)[2] == split_cohort(cohort, fold=1)[2]
    with pytest.raises(ConfigError, match='open already'): split_cohort(cohort, layout='lgg')


def test_names_of_all_patients_are_replaced_where_few_were_scored(tmp_path):
    "Facts about one fold are few, but any name of the cohort may stand in them."
    ward = write_phantom_hospital(tmp_path/'ward', n_patients=6, size_px=32, n_slices=4)
    (ward/'cohort.json').unlink()
    (ward/'patient1').rename(ward/'Ann_Miller')
    cohort = Cohort.open(ward)
    with cohort.results(tmp_path/'run') as out:
        out.json('summary.json', dict(note='unlike Ann_Miller', dice=dict(mean=.5, max=.9)), n_patients=1)
    assert 'Miller' not in (tmp_path/'run'/'summary.json').read_text()
    assert read_json(tmp_path/'run'/'summary.json')['dice'] == dict(mean=.5)
    assert policy_of(ward).patients == cohort.patients
