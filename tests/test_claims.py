"The ledger agrees with the stored runs; one changed digit, on a page or in a table, is noticed."
import re, shutil, subprocess, sys

import pytest
from conftest import ROOT, tracked_files

from neuroseg.reports.claims import PAGES, VERDICTS, check_claims, judge, ledger_text, load_claims, our_value, strayed


@pytest.fixture
def pages_copy(tmp_path):
    "The tracked reports and pages, to be spoilt."
    for name in tracked_files():
        if name.startswith(('reports/', 'nbs/studies/')) or '/' not in name or name in PAGES.values():
            (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT/name, tmp_path/name)
    return tmp_path


def claims(folder): return subprocess.run([sys.executable, '-c', 'import sys; from neuroseg.cli import main; sys.exit(main(["claims"]))'],
                                          cwd=folder, capture_output=True, text=True)


def test_ledger_holds(): assert check_claims(ROOT) == []


def test_every_published_number_is_in_the_ledger():
    "What THESIS' README and notebooks state, each once at least."
    stated = {c.value for c in load_claims(ROOT)}
    assert {0.8443, 0.8549, 0.557, 0.1557, 0.1450, 0.8203, 0.92, 0.88, 0.8434, 0.8352, 0.1501, 31_042_369, 31_036_481, 3143, 786, 156, 40, 196, 110, 45, 34, 16, 14, 10, 11, 27, 31, 36, 49, 123, 101,
            0.6505, 0.844, 0.825, 0.749, 0.836, 0.873, 0.82, 0.85, 0.84, 0.91, 0.93} <= stated


def test_every_verdict_occurs(): assert {judge(c, our_value(c, ROOT)) for c in load_claims(ROOT)} == set(VERDICTS)


def test_command_is_green(pages_copy):
    done = claims(pages_copy)
    assert (done.returncode, done.stderr) == (0, ''), done.stdout


@pytest.mark.parametrize('page', ['README.md', 'MODEL_CARD.md'])
def test_one_digit_on_a_page(pages_copy, page):
    text = (pages_copy/page).read_text(encoding='utf-8')
    digit = re.search(r'0\.(\d)\d\d \(0\.\d{3} to', text) or re.search(r'mean Dice 0\.(\d)\d\d', text) # the first, since another patient or fold may well have the neighbouring value
    (pages_copy/page).write_text(text[:digit.start(1)] + str((int(digit[1])+5) % 10) + text[digit.end(1):], encoding='utf-8')
    done = claims(pages_copy)
    assert done.returncode == 1 and f'{page}: no stored run shows' in done.stdout and f'write it with `make readme`' in done.stdout


@pytest.mark.parametrize('page', ['README.md', 'MODEL_CARD.md'])
def test_every_digit_of_a_page_is_held(pages_copy, page):
    "Each digit outside links, changed by itself, is noticed, though some other run may hold the wrong number."
    text = (pages_copy/page).read_text(encoding='utf-8')
    links = [m.span() for m in re.finditer(r'\]\([^)]*\)|https?://\S+', text)]
    digits = [m.start() for m in re.finditer(r'\d', text) if not any(a <= m.start() < b for a,b in links)]
    assert len(digits) > 100
    for at in digits:
        (pages_copy/page).write_text(text[:at] + str((int(text[at])+1) % 10) + text[at+1:], encoding='utf-8')
        assert strayed(pages_copy, page), text[at-20:at+20]


@pytest.mark.parametrize('table', ['21_thesis/cpu/batches.csv', '23_learner/cpu/patients.csv', '20_exploration/cpu/patients.csv'])
def test_one_digit_in_a_table(pages_copy, table):
    file = pages_copy/'reports'/table
    head, first, rest = file.read_text(encoding='utf-8').split('\n', 2)
    column = head.split(',').index({'batches': 'soft_dice', 'patients': 'dice' if '23_' in table else 'n_slices'}[file.stem])
    cells = first.split(',')
    at = cells[column].find('.') + 2 # the second digit after the point, or of a count
    cells[column] = cells[column][:at] + str((int(cells[column][at])+1) % 10) + cells[column][at+1:]
    file.write_text('\n'.join([head, ','.join(cells), rest]), encoding='utf-8')
    done = claims(pages_copy)
    assert done.returncode == 1 and f'{table.rpartition("/")[0]}: summary.json is not what its tables give' in done.stdout


def test_a_verdict_that_flips(pages_copy):
    ledger = pages_copy/'reports'/'claims.yml'
    ledger.write_text(ledger.read_text(encoding='utf-8').replace('value: 31042369', 'value: 31042368'), encoding='utf-8')
    done = claims(pages_copy)
    assert done.returncode == 1 and "parameters: parameters of the network 31042368 is called 'reproduced'" in done.stdout and 'CLAIMS.md is not what' in done.stdout


def test_ledger_page_is_written_from_the_ledger(): assert (ROOT/'CLAIMS.md').read_text(encoding='utf-8') == ledger_text(ROOT)
