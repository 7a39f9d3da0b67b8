"The ledger of the sealed test: it grows by whole entries, and nothing in it can be changed unnoticed."
import re, shutil, subprocess
from dataclasses import replace
from hashlib import sha256

import pytest
from bright_model import bright, write_model
from sealed_phantoms import NAMES, write_repository, write_sealed

from conftest import ROOT
from neuroseg.cohorts.cohort import Cohort
from neuroseg.cohorts.tables import read_rows
from neuroseg.core import ConfigError, DataError, LeakageError, OutputError, read_json, RunError
from neuroseg.reports import sealed_test as room
from neuroseg.reports.sealed_test import (append_entry, entries, HEAD, keep_opening, LEDGER, ledger_faults, ledger_text,
                                          open_sealed, opening_summary, TABLES)
from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.result import Segmenter

NEW = dict(sha256='9'*64)
REASON = 'A test of the ledger on synthetic patients.'


@pytest.fixture(scope='module')
def lgg(tmp_path_factory): return Cohort.open(write_sealed(tmp_path_factory.mktemp('sealed')))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "Quick, and trained on nobody who is sealed."
    return write_model(tmp_path_factory.mktemp('model'), bright(), split=dict(train=['PH_1']))


@pytest.fixture
def segmenter(model): return Segmenter(model)


@pytest.fixture(scope='module')
def opened(model, lgg, tmp_path_factory):
    "A repository with three openings: the first scored, the others with its rows."
    repo = write_repository(tmp_path_factory.mktemp('repo')/'repo', ROOT)
    first = open_sealed(lgg, Segmenter(model), REASON, root=repo)
    rows, record = read_rows(first/'patients.csv'), read_json(first/'opening.json')
    for n in (2, 3):
        card = replace(load_card(), name=f'model_{n}', sha256=f'{n}'*64)
        keep_opening(rows, card, record, reason=f'{REASON} Number {n}.', root=repo, date=f'2026-12-0{n}')
    return repo


@pytest.fixture
def repo(opened, tmp_path): return shutil.copytree(opened, tmp_path/'repo')


@pytest.fixture
def empty(tmp_path): return write_repository(tmp_path/'empty', ROOT)


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def test_a_whole_ledger_has_no_fault(opened):
    assert ledger_faults(opened) == []
    found = entries(ledger_text(opened))
    assert [e['number'] for e in found] == [1, 2, 3]
    assert [e['model'] for e in found] == ['bright, version 7', 'model_2, version 1', 'model_3, version 1']
    assert ledger_text(opened).startswith(HEAD) and found[1]['date'] == '2026-12-02'


def test_an_entry_holds_what_was_done(opened, lgg, segmenter):
    first, folder = entries(ledger_text(opened))[0], opened/'reports/27_validation/sealed_1'
    about, found = read_json(folder/'opening.json'), opening_summary(folder)
    assert segmenter.card.sha256 in first['weights'] and first['reason'] == REASON == about['reason']
    assert about['data_hash'] == lgg.hash(lgg.sealed) and about['seconds'] > 0 and about['packages']
    assert f"`{about['commit']}`" in first['code'] and ('not committed' in first['code']) == about['dirty']
    assert f"mean {found['stated']['all sequences']['mean']:.3f}" in first['Dice, all sequences']
    assert found == read_json(folder/'summary.json')
    assert {r['patient'] for r in read_rows(folder/'patients.csv')} == set(NAMES)


def edit(name, old, new, count=1):
    def change(reports):
        text = (reports/name).read_text(encoding='utf-8')
        assert old in text
        (reports/name).write_text(text.replace(old, new, count), encoding='utf-8')
    return change


def parts(reports):
    "The heading and the entries as texts."
    return re.split(r'(?=\n## Opening)', (reports/LEDGER).read_text(encoding='utf-8'))


def order(*numbers):
    "The entries in another order: 0 is the heading."
    def change(reports):
        text = parts(reports)
        (reports/LEDGER).write_text(''.join(text[n] for n in numbers), encoding='utf-8')
    return change


def resealed(reports, only_first):
    "A better score in the first entry, and seals that fit: of that entry, or of all."
    head, *own = parts(reports)
    own[0] = own[0].replace('| Dice, all sequences | mean 0.', '| Dice, all sequences | mean 0.9')
    text, seals = head, {}
    for n, entry in enumerate(own):
        for old, new in seals.items(): entry = entry.replace(old, new)
        body, old = entry.split('Seal: `')[0], entry.split('Seal: `')[1][:64]
        if n == 0 or not only_first: seals[old] = sha256((text + body).encode()).hexdigest()
        text += body + f'Seal: `{seals.get(old, old)}`\n' + entry.split('`\n')[-1]
    (reports/LEDGER).write_text(text, encoding='utf-8')


def drop_row(reports):
    file = reports/'27_validation/sealed_1/out_of_fold.csv'
    file.write_text(''.join(file.read_text().splitlines(keepends=True)[:-1]))


CHANGES = {
    'a digit of the first score': edit(LEDGER, '| Dice, all sequences | mean 0.', '| Dice, all sequences | mean 0.9'),
    'the reason of the first': edit(LEDGER, REASON, 'A better reason than it had.'),
    'the date of the second': edit(LEDGER, '| date | 2026-12-02', '| date | 2026-11-02'),
    'the model of the last': edit(LEDGER, '| model | model_3', '| model | model_4'),
    'the code': edit(LEDGER, '| code | ', '| code | none '),
    'the weights of the second': edit(LEDGER, '2'*64, '4'*64),
    'the number of an entry': edit(LEDGER, '## Opening 3', '## Opening 4'),
    'the heading': edit(LEDGER, 'scored once', 'scored now and then'),
    'a space': edit(LEDGER, '## Opening 2:', '## Opening  2:'),
    'a seal': edit(LEDGER, 'Seal: `', 'Seal: `f'),
    'no seal at the end': lambda r: (r/LEDGER).write_text(ledger_text(r.parent)[:-80]),
    'the first entry is gone': order(0, 2, 3),
    'the second entry is gone': order(0, 1, 3),
    'the last entry is gone': order(0, 1, 2),
    'all entries are gone': order(0),
    'the file is gone': lambda r: (r/LEDGER).unlink(),
    'two entries swapped': order(0, 2, 1, 3),
    'an entry twice': order(0, 1, 2, 2, 3),
    'text at the end': lambda r: (r/LEDGER).write_text(ledger_text(r.parent) + '\nNot an opening.\n'),
    'an entry without a seal': lambda r: (r/LEDGER).write_text(ledger_text(r.parent) + '\n## Opening 4: x\n'),
    'the first entry changed and sealed again': lambda r: resealed(r, True),
    'a digit of a patient': edit('27_validation/sealed_1/patients.csv', ',0.', ',0.9'),
    'a digit of the summary': edit('27_validation/sealed_2/summary.json', '"mean": 0.', '"mean": 0.9'),
    'a development patient less': drop_row,
    'a table is gone': lambda r: (r/'27_validation/sealed_3/patients.csv').unlink(),
    'a folder is gone': lambda r: shutil.rmtree(r/'27_validation/sealed_2'),
    'an opening that nobody wrote down': lambda r: (r/'27_validation/sealed_9').mkdir()}


@pytest.mark.parametrize('change', CHANGES)
def test_a_change_is_noticed(repo, lgg, segmenter, change):
    CHANGES[change](repo/'reports')
    assert ledger_faults(repo) != []
    with pytest.raises(RunError, match='ledger of the sealed test is not whole'):
        open_sealed(lgg, segmenter, REASON, root=repo)


def git(repo, *args):
    subprocess.run(['git', '-C', repo, '-c', 'user.name=a', '-c', 'user.email=a@b', *args], check=True)


@pytest.mark.parametrize('change', ['all seals anew', 'the last entry with its folder'])
def test_what_the_seals_cannot_see_the_history_sees(repo, change):
    reports = repo/'reports'
    git(repo, 'init', '-q'); git(repo, 'add', '.'); git(repo, 'commit', '-qm', 'openings')
    assert ledger_faults(repo) == []
    if change == 'all seals anew': resealed(reports, False)
    else:
        order(0, 1, 2)(reports); shutil.rmtree(reports/'27_validation/sealed_3')
    assert re.fullmatch('the ledger of commit [0-9a-f]{7} was rewritten since', *ledger_faults(repo))


def test_a_fourth_entry_leaves_the_others_as_they_are(repo):
    before = files(repo)
    first = repo/'reports/27_validation/sealed_1'
    card = replace(load_card(), sha256='4'*64)
    keep_opening(read_rows(first/'patients.csv'), card, read_json(first/'opening.json'), reason=REASON, root=repo,
                 date='2027-01-01', source='scored elsewhere')
    after = files(repo)
    ledger = f'reports/{LEDGER}'
    assert after[ledger].startswith(before[ledger]) and ledger_faults(repo) == []
    assert {k: v for k, v in after.items() if k in before and k != ledger} == {
        k: v for k, v in before.items() if k != ledger}


def refused(error, says, repo, *args, **kwargs):
    "Nothing is written and nobody is scored."
    before = files(repo)
    with pytest.raises(error, match=says): open_sealed(*args, root=repo, **kwargs)
    assert files(repo) == before


@pytest.fixture
def unscored(monkeypatch):
    def never(*a, **k): raise AssertionError('a patient was scored')
    monkeypatch.setattr(room, 'sealed_rows', never)


def test_refusals_come_before_the_first_patient(empty, repo, lgg, tmp_path, segmenter, model, unscored):
    told = segmenter
    refused(ConfigError, 'is opened for a reason', empty, lgg, told, 'why not')
    refused(ConfigError, 'with these weights was scored on', repo, lgg, told, REASON)
    few = Cohort.open(write_sealed(tmp_path/'few', NAMES[:20]))
    refused(DataError, '20 of the 22 sealed patients', empty, few, told, REASON)
    silent = Segmenter(model); silent.card = replace(silent.card, facts={})
    refused(LeakageError, 'does not name every patient', empty, lgg, silent, REASON)
    learner = empty/'reports/23_learner/cpu/patients.csv'
    learner.write_text(''.join(learner.read_text().splitlines(keepends=True)[:-1]))
    refused(DataError, 'run study 23 again', empty, lgg, told, REASON)


def test_other_masks_than_in_the_first_opening(repo, tmp_path, segmenter, unscored):
    other = Cohort.open(write_sealed(tmp_path/'other', seed=5))
    segmenter.card = replace(segmenter.card, **NEW)
    refused(DataError, 'other slices or masks than in an earlier opening', repo, other, segmenter, REASON)


def test_two_openings_at_once(repo, lgg, segmenter, unscored):
    (repo/'reports'/f'.{LEDGER}.lock').touch()
    segmenter.card = replace(segmenter.card, **NEW)
    refused(RunError, 'is being opened by another process', repo, lgg, segmenter, REASON)


@pytest.mark.parametrize('step', ['save_figure', 'write_rows', 'append_entry'])
def test_an_opening_that_breaks_off_leaves_no_half(repo, monkeypatch, step):
    before, first = files(repo), repo/'reports/27_validation/sealed_1'
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(room, step, full)
    with pytest.raises((OSError, OutputError)):
        keep_opening(read_rows(first/'patients.csv'), replace(load_card(), **NEW),
                     read_json(first/'opening.json'), reason=REASON, root=repo, date='2027-01-01')
    assert files(repo) == before


def test_a_ledger_that_grew_meanwhile_is_not_overwritten(repo):
    text = ledger_text(repo)
    append_entry(repo, 'one\n', text)
    with pytest.raises(RunError, match='was changed meanwhile'): append_entry(repo, 'two\n', text)
    assert ledger_text(repo) == text + 'one\n'


def test_a_reason_cannot_forge_an_entry(empty, lgg, segmenter):
    forged = 'Release of version 2. |\n\nSeal: `' + '0'*64 + '`\n\n## Opening 2: better version'
    open_sealed(lgg, segmenter, forged, root=empty)
    assert len(entries(ledger_text(empty))) == 1 and ledger_faults(empty) == []


# The ledger of this project -------------------------------------------------------------------------------------------

def test_the_ledger_of_this_project_is_whole():
    assert ledger_faults(ROOT) == []


def test_the_first_opening_of_this_project():
    first = entries(ledger_text(ROOT))[0]
    assert first['date'] == '2026-11-27' and first['model'] == 'neuroseg-lgg, version 1'
    assert load_card().sha256 in first['weights']
    assert first['Dice, all sequences'] == 'mean 0.858 (0.834 to 0.882), median 0.875, worst 0.746 (TCGA_CS_6665)'
    assert first['Dice, FLAIR only'].startswith('mean 0.855 ')
    assert all(name in first for name in TABLES)
