"The real cohorts, where $NEUROSEG_DATA names them: read whole, without a fault, and no sealed patient in them."
import pytest

from neuroseg.cohorts.cases import find_cases
from neuroseg.cohorts.integrity import SEALED, verify
from neuroseg.core import data_dir

pytestmark = pytest.mark.realdata


def test_lgg_development_cohort():
    report = verify(data_dir('lgg'))
    assert report.faults == [] and report.layout == 'lgg' and report.counts['patients'] == 88
    assert not {case.patient for case in find_cases(data_dir('lgg'))} & set(SEALED)


def test_gbm_in_the_hospital_layout():
    report = verify(data_dir('gbm'))
    assert report.faults == [] and report.layout == 'hospital'
    assert (report.counts['patients'], report.counts['slices']) == (10, 196)
