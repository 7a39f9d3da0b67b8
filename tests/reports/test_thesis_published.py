"The numbers that study 21 quotes of the thesis are those of `reports/published.yml`."
import pytest

for library in ('yaml', 'pandas'): pytest.importorskip(library)
from conftest import ROOT
from neuroseg.core import read_json
from neuroseg.reports.published import load_published

NAMES = {'epochs': 'epochs', 'best epoch': 'best-epoch', 'best validation Dice, batches of 16': 'best-valid-dice',
         'Dice, `evaluate`': 'dice-evaluate', 'Dice, progress bar': 'dice-bar', 'loss, `evaluate`': 'loss-evaluate',
         'loss, progress bar': 'loss-bar', 'Dice, `evaluate`, fine-tuned': 'hospital-evaluate',
         'Dice, progress bar, fine-tuned': 'hospital-bar'}


def test_study_21_quotes_the_thesis_as_it_is_published():
    cells = read_json(ROOT/'nbs/studies/21_thesis.ipynb')['cells']
    code = next(s for c in cells if (s := ''.join(c['source'])).startswith('PUBLISHED = {'))
    space = {}
    exec(code.split('run.table')[0], space)
    facts = load_published(ROOT)
    assert space['PUBLISHED'] == {what: facts[name].value for what, name in NAMES.items()}
