"DICOM, and reading of whatever was given."
import numpy as np
import pytest
from scan_files import one_sentence

from neuroseg.core import InputError, NeurosegError
from neuroseg.scans.dicom_study import read_dicom_series
from neuroseg.scans.reading import read_scan


def test_the_series_that_pydicom_ships():
    pydicom = pytest.importorskip('pydicom')
    path = pydicom.data.get_testdata_file('MR_small.dcm', download=False)
    with pytest.raises(InputError): read_scan(path) # a computed image, by its header, with the times of T2
    scan = read_dicom_series(path, sequence='flair') # unless that is what the user says
    ds = pydicom.dcmread(path)
    assert np.array_equal(scan.data[0, 0], ds.pixel_array) and scan.spacing_mm[1:] == tuple(map(float, ds.PixelSpacing))
    assert np.allclose(scan.affine[:3, 3], np.array(ds.ImagePositionPatient, float)*[-1, -1, 1])


def test_what_is_no_dicom(tmp_path):
    (tmp_path/'a.dcm').write_text('hello')
    with pytest.raises(InputError) as e: read_dicom_series(tmp_path/'a.dcm')
    one_sentence(e, '`a.dcm`')
    (tmp_path/'b.dcm').write_bytes(bytes(128)+b'DICM'+b'junk'*50)
    with pytest.raises(InputError): read_scan(tmp_path/'b.dcm')


@pytest.mark.parametrize('make', [lambda p: p/'nowhere', lambda p: [], lambda p: {}, lambda p: [p/'no.png']])
def test_nothing_to_read(tmp_path, make):
    with pytest.raises(NeurosegError): read_scan(make(tmp_path))


def test_unknown_file_is_named(tmp_path):
    (tmp_path/'movie.xyz').write_bytes(b'x'*300)
    with pytest.raises(InputError) as e: read_scan(tmp_path/'movie.xyz')
    one_sentence(e, '`movie.xyz`')
