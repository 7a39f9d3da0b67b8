"The ledger agrees with the stored runs, lists every published number, and its command is green."
import shutil, subprocess, sys

import pytest
from conftest import ROOT, tracked_files

yaml = pytest.importorskip('yaml')

from neuroseg.core import read_json
from neuroseg.reports.checks import changed_runs, run_fingerprint
from neuroseg.reports.claims import VERDICTS, band, check_claims, judge, ledger_text, load_claims, look_up
from neuroseg.reports.published import load_published
from neuroseg.reports.stored_run import kept_runs

CLAIMS, FACTS = {c.id: c for c in load_claims(ROOT)}, load_published(ROOT)
# Stored numbers and spreads that the ledger asks for and no run holds yet; a rerun brings them
OF_NETWORK, OF_BLIND = ('22_protocol_audit/cpu#scatter / fast / ', '22_protocol_audit/cpu#scatter_original / blind: ')
PENDING = {*(f'{OF_NETWORK}{way}' for way in ('progress bar', 'evaluate', 'batches of 16', 'best epoch', 'epochs')),
           *(f'{OF_BLIND}{way}' for way in ('nothing / slice', 'neighbouring masks / slice',
             'neighbouring masks / tumour slice', 'neighbouring masks / all pixels', 'neighbouring masks / evaluate'))}

# Runs that were stored before studies declared what their numbers measure
UNDECLARED = {f'{s}/cpu' for s in ('20_exploration', '21_thesis', '22_protocol_audit', '23_learner', '24_ablations',
                                   '25_fine_tuning', '28_deployment', '29_speed_run')}


def refs(claim):
    "Every stored number that a claim names."
    ours = claim.ours or []
    spread = [claim.tolerance] if '#' in str(claim.tolerance) else []
    return [*(ours.values() if isinstance(ours, dict) else ours), *spread]


def claims(folder):
    run = 'import sys; from neuroseg.cli import main; sys.exit(main(["claims"]))'
    return subprocess.run([sys.executable, '-c', run], cwd=folder, capture_output=True, text=True)


def test_ledger_holds(): assert check_claims(ROOT) == []


def test_every_published_number_of_the_thesis_is_in_the_ledger():
    "What its README and notebooks state, listed a second time: an anchor of published.yml that no command writes."
    def of(source):
        values = [f.value for f in FACTS.values() if f.source == source]
        return sorted(v for value in values for v in (value.values() if isinstance(value, dict) else [value]))
    assert of('thesis') == sorted([.8443, .8549, .557, .1557, .1450, .8203, 31, 36, .8443, .8443, 31_042_369,
                                   31_036_481, 3143, 786, 156, 40, 49, 123, .92, .88])
    assert of('hospital') == sorted([.8434, .8352, .1501, 10, 196])
    assert of('data') == sorted([110, 45, 34, 16, 14, 1, 3929, 1373])
    assert of('masks') == sorted([.6505, .844, .825, .8065, .749])
    assert of('others') == sorted([.836, .873, .82, .85, .91, .84, .02, .93])


def test_every_condition_of_the_thesis_is_in_the_ledger():
    "Progress bar and `evaluate` are batches of 32, the training shows batches of 16; one split, one network."
    unit = {k: FACTS[k].conditions['unit'] for k in ('dice-bar', 'dice-evaluate', 'best-valid-dice')}
    assert unit == {'dice-bar': 'progress bar of batches of 32', 'dice-evaluate': 'batch of 32',
                    'best-valid-dice': 'batch of 16'}
    scored = [f.conditions for f in FACTS.values() if f.source == 'thesis' and 'split' in (f.conditions or {})]
    assert {c['parameters'] for c in scored} == {31_042_369} and {c['n']['patients'] for c in scored} == {110}


def test_stored_numbers_are_there_or_pending():
    wanted = {r for c in CLAIMS.values() for r in refs(c)}
    missing = {r for r in wanted if look_up(r, ROOT).value is None}
    assert missing <= PENDING, 'a study lost a number that the ledger asks for'


def test_runs_declare_their_numbers():
    runs = {f.relative_to(ROOT/'reports').as_posix(): read_json(f/'summary.json') for f in kept_runs(ROOT)}
    assert {name for name, found in runs.items() if 'measures' not in found} <= UNDECLARED


@pytest.mark.parametrize('name', [c.id for c in CLAIMS.values() if c.ours])
def test_no_verdict_without_conditions_and_tolerance(name):
    "A verdict that says something names a stored number of the same kind and a measured tolerance."
    claim, fact, judged = CLAIMS[name], FACTS[name], judge(CLAIMS[name], FACTS, ROOT)
    assert judged.verdict in VERDICTS and judged.faults == ()
    if judged.verdict == 'cannot be checked here': assert judged.because
    elif isinstance(fact.value, dict): assert claim.tolerance == 'exact'
    else:
        assert (judged.low, judged.high, []) == band(claim, judged.ours, ROOT)
        measured = read_json(ROOT/'reports'/judged.ours.run/'summary.json')['measures'][judged.ours.path]
        for key in ('metric', 'statistic', 'unit', 'split'): assert fact.conditions[key] == measured[key]
        assert (judged.verdict == 'reached by another network') == (measured['network'] != fact.conditions['network'])


def test_ledger_page_is_written_from_the_ledger():
    assert (ROOT/'CLAIMS.md').read_text(encoding='utf-8') == ledger_text(ROOT)


def test_command_is_green(tmp_path):
    for name in tracked_files():
        if name.startswith(('reports/', 'nbs/')) or name in ('CLAIMS.md', 'README.md', 'MODEL_CARD.md', 'DATASHEET.md'):
            (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/name, tmp_path/name)
    done = claims(tmp_path)
    assert (done.returncode, done.stderr) == (0, ''), done.stdout
    (tmp_path/'CLAIMS.md').write_text('')
    done = claims(tmp_path)
    assert done.returncode == 1 and 'CLAIMS.md is not what the ledger gives' in done.stdout


@pytest.mark.parametrize('run,table,column', [('20_exploration/cpu', 'patients', 'n_slices'),
                                              ('23_learner/cpu', 'patients', 'dice'),
                                              ('29_speed_run/cpu', 'patients', 'dice')])
def test_one_digit_in_a_real_table(tmp_path, run, table, column):
    "The second digit after the point, or of a count, in the first row."
    study = run.partition('/')[0]
    (tmp_path/'nbs/studies').mkdir(parents=True)
    shutil.copy(ROOT/f'nbs/studies/{study}.ipynb', tmp_path/'nbs/studies')
    shutil.copytree(ROOT/'reports'/run, tmp_path/'reports'/run)
    before = changed_runs(tmp_path)
    file = tmp_path/f'reports/{run}/{table}.csv'
    head, first, rest = file.read_text(encoding='utf-8').split('\n', 2)
    cells, i = first.split(','), head.split(',').index(column)
    at = cells[i].find('.') + 2
    cells[i] = cells[i][:at] + str((int(cells[i][at])+1) % 10) + cells[i][at+1:]
    file.write_text('\n'.join([head, ','.join(cells), rest]), encoding='utf-8')
    fault = f'{run}: summary.json is not what its tables give; run the study again'
    assert fault in changed_runs(tmp_path) and fault not in before


def test_a_run_that_can_be_computed_does_not_wait(tmp_path):
    "The list of waiting runs excuses no run but those that need it."
    for name in ('reports/20_exploration', 'nbs/studies'): shutil.copytree(ROOT/name, tmp_path/name)
    shutil.copy(ROOT/'settings.ini', tmp_path)
    run = tmp_path/'reports'/'20_exploration'/'cpu'
    entry = '20_exploration/cpu: {why: no reason, files: %s}\n'
    (tmp_path/'reports'/'waiting.yml').write_text(entry % run_fingerprint(run))
    found = [f for f in changed_runs(tmp_path) if f.startswith('20_exploration/cpu')]
    assert len(found) == 1 and 'strike it out' in found[0]


@pytest.mark.parametrize('name', ('summary.json', 'patients.csv', 'figures/training_curves.png'))
def test_a_waiting_run_is_not_changed(tmp_path, name):
    "Neither its numbers nor its figures, though they cannot be computed again."
    waits = yaml.safe_load((ROOT/'reports'/'waiting.yml').read_text())
    if '21_thesis/cpu' not in waits: pytest.skip('it has been run again')
    for folder in ('reports/21_thesis', 'nbs/studies'): shutil.copytree(ROOT/folder, tmp_path/folder)
    for file in ('settings.ini', 'reports/waiting.yml'): shutil.copy(ROOT/file, tmp_path/file)
    assert [f for f in changed_runs(tmp_path) if '21_thesis' in f] == []
    file = tmp_path/'reports'/'21_thesis'/'cpu'/name
    file.write_bytes(file.read_bytes() + b' ')
    assert any('waiting runs' in f for f in changed_runs(tmp_path) if '21_thesis' in f)
