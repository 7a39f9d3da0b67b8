"The ledger agrees with the stored runs; one changed digit, in the ledger or in a table, is noticed."
import shutil, subprocess, sys

import pytest
from conftest import ROOT, tracked_files

from neuroseg.reports.claims import VERDICTS, check_claims, judge, ledger_text, load_claims, our_value


@pytest.fixture
def reports_copy(tmp_path):
    "The tracked reports, studies and the page of claims, to be spoilt."
    for name in tracked_files():
        if name.startswith(('reports/', 'nbs/studies/')) or name == 'CLAIMS.md':
            (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/name, tmp_path/name)
    return tmp_path


def claims(folder):
    return subprocess.run([sys.executable, '-c',
                           'import sys; from neuroseg.cli import main; sys.exit(main(["claims"]))'],
                                          cwd=folder, capture_output=True, text=True)


def test_ledger_holds(): assert check_claims(ROOT) == []


def test_every_published_number_is_in_the_ledger():
    "What THESIS' README and notebooks state, each once at least."
    stated = {c.value for c in load_claims(ROOT)}
    of_the_thesis = {0.8443, 0.8549, 0.557, 0.1557, 0.1450, 0.8203, 0.92, 0.88, 0.8434, 0.8352, 0.1501, 31_042_369,
                     31_036_481,
                     3143, 786, 156, 40, 196, 31, 36, 49, 123}
    assert of_the_thesis | {110, 0.6505, 0.844, 0.825, 0.749, 0.836, 0.873, 0.82, 0.85, 0.84, 0.91, 0.93} <= stated


def test_every_verdict_occurs(): assert {judge(c, our_value(c, ROOT)) for c in load_claims(ROOT)} == set(VERDICTS)


def test_command_is_green(reports_copy):
    done = claims(reports_copy)
    assert (done.returncode, done.stderr) == (0, ''), done.stdout


@pytest.mark.parametrize('table',
                         ['21_thesis/cpu/batches.csv', '23_learner/cpu/patients.csv',
                          '20_exploration/cpu/patients.csv'])
def test_one_digit_in_a_table(reports_copy, table):
    file = reports_copy/'reports'/table
    head, first, rest = file.read_text(encoding='utf-8').split('\n', 2)
    column = head.split(',').index({'batches': 'soft_dice', 'patients': 'dice' if '23_' in table
                                    else 'n_slices'}[file.stem])
    cells = first.split(',')
    at = cells[column].find('.') + 2 # the second digit after the point, or of a count
    cells[column] = cells[column][:at] + str((int(cells[column][at])+1) % 10) + cells[column][at+1:]
    file.write_text('\n'.join([head, ','.join(cells), rest]), encoding='utf-8')
    done = claims(reports_copy)
    run = table.rpartition('/')[0]
    assert done.returncode == 1 and f'{run}: summary.json is not what its tables give' in done.stdout


def test_a_verdict_that_flips(reports_copy):
    ledger = reports_copy/'reports'/'claims.yml'
    ledger.write_text(ledger.read_text(encoding='utf-8').replace('value: 31042369', 'value: 31042368'),
                      encoding='utf-8')
    done = claims(reports_copy)
    assert done.returncode == 1 and 'CLAIMS.md is not what' in done.stdout
    assert "parameters: parameters of the network 31042368 is called 'reproduced'" in done.stdout


def test_ledger_page_is_written_from_the_ledger():
    assert (ROOT/'CLAIMS.md').read_text(encoding='utf-8') == ledger_text(ROOT)
