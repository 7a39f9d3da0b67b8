"Archives: folders are kept whole, so that no two patients meet."
import io, zipfile

import numpy as np
import pydicom
import pytest
from PIL import Image

from neuroseg.app import received, session, uploads
from neuroseg.core import InputError
from neuroseg.scans.dicom_phantom import write_series
from neuroseg.scans.reading import read_scan


def picture(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def archive(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in files.items(): z.writestr(name, data)
    return path


def unpacked(tmp_path, files): return received.unpack(archive(tmp_path/'export.zip', files), tmp_path/'out')


@pytest.mark.parametrize('below', ['', 'MRI/', 'MRI/FLAIR/png/', 'a/b/c/d/e/f/'])
def test_patients_of_an_archive_are_not_mixed(tmp_path, below):
    files = {f'export/{who}/{below}slice_{k}.png': picture(v+k) for who, v in (('Anna', 10), ('Bert', 100))
             for k in range(4)}
    found = uploads.scans_in_folder(unpacked(tmp_path, files), 'export')
    assert len(found) == 2 and ['Anna' in found[0].parts[0], 'Bert' in found[1].parts[0]] == [True, True]
    for f, v in zip(found, (10, 100)):
        assert read_scan(f.source).data[0, :, 0, 0].tolist() == [v, v+1, v+2, v+3]


@pytest.mark.parametrize('names', [('p/slice#.png', 'p/slice@.png'), ('p/a.png', 'p/A.png'), ('p/a.png', 'p/./a.png'),
                                   ('p/'+'x'*120+'.png', 'p/y'+'x'*120+'.png')])
def test_names_that_collide_are_refused(tmp_path, names):
    with pytest.raises(InputError) as e: unpacked(tmp_path, {n: picture(k) for k, n in enumerate(names)})
    assert e.value.message.code == 'zip_same_name'


def test_a_file_twice_in_an_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z, pytest.warns(UserWarning):
        for v in (1, 2): z.writestr('p/1.png', picture(v))
    with pytest.raises(InputError, match='two files of the archive are called `1.png`'):
        received.unpack(tmp_path/'a.zip', tmp_path/'out')


def test_a_place_that_is_a_file_and_a_folder(tmp_path):
    with pytest.raises(InputError): unpacked(tmp_path, {'p/a.png': picture(1), 'p/a.png/b.png': picture(2)})


def test_what_the_system_added_is_left_out(tmp_path):
    files = {'p/1.png': picture(1), '__MACOSX/p/._1.png': b'x', 'p/__MACOSX/1.png': b'x', 'p/@eaDir/1.png': b'x',
             'p/._1.png': b'x', 'p/Thumbs.db': b'x'}
    assert [p.name for p in unpacked(tmp_path, files).rglob('*') if p.is_file()] == ['1.png']


def test_too_many_folders(tmp_path):
    with pytest.raises(InputError, match='lies in 30 folders'): unpacked(tmp_path, {'a/'*30+'1.png': picture(1)})


# A study as exported: listed by its headers, limited after the choice

SIDE = 192 # Pixels: a slice is larger than what is unpacked of it at first


def series(folder, uid, n, *, description='AX FLAIR', seed=0, **tags):
    "A series of noise; FLAIR by its header unless told otherwise."
    v = np.random.default_rng(seed).integers(0, 4000, (n, SIDE, SIDE))
    said = dict(Modality='MR', SeriesDescription=description, RepetitionTime='9000', EchoTime='120',
                InversionTime='2500', ScanningSequence='IR', StudyInstanceUID='1.2.5', FrameOfReferenceUID='1.2.6',
                PatientID='P1', SeriesInstanceUID=uid)
    def name(ds, k): ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f'{uid}.{k+1}'
    def edit(ds, k):
        name(ds, k)
        for tag in [t for t in tags if tags[t] is None]: delattr(ds, tag)
    at = write_series(folder, v, np.diag([1., 1., 5., 1.]), edit=edit,
                      **said | {k: t for k, t in tags.items() if t is not None})
    return v, sorted(p for p in at.iterdir())


T2 = dict(description='AX T2', EchoTime='100', InversionTime=None, ScanningSequence='SE')


def study_zip(tmp_path, folders):
    "A zip of folders of series."
    with zipfile.ZipFile(tmp_path/'study.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for name, files in folders.items():
            for f in files: z.write(f, f'{name}/{f.name}')
    return tmp_path/'study.zip'


def test_of_a_study_only_what_is_chosen_is_unpacked_and_counted(tmp_path, monkeypatch):
    "Nine slices of three series, and limits that let pass three."
    flair, files = series(tmp_path/'a', '1.2.1', 3)
    others = {f'T2 {k}': series(tmp_path/f'b{k}', f'1.2.{k}', 3, seed=k, **T2)[1] for k in (2, 3)}
    monkeypatch.setattr(uploads, 'MAX_FILES', 3)
    monkeypatch.setattr(uploads, 'MAX_SCAN_MB', .3)
    monkeypatch.setattr(uploads, 'MAX_VISIT_VOXELS', 3*SIDE**2)
    found, = uploads.scans_in_files([study_zip(tmp_path, {'FLAIR': files} | others)])
    assert len(found.source.series) == 3
    assert not any(pydicom.dcmread(f).pixel_array.any() for f in found.source.files) # headers only so far
    uploads.check_size([found])
    assert np.array_equal(uploads.read_found(found).data[0], flair)
    whole = [pydicom.dcmread(f).pixel_array.any() for f in found.source.files]
    assert sum(whole) == 3
    found.source.named |= dict(pre='1.2.2') # more than one visit may segment
    with pytest.raises(InputError, match='6 files'): uploads.check_size([found])


@pytest.mark.parametrize('what', ['MAX_RECEIVED_FILES', 'MAX_STATED_MB', 'MAX_UNPACKED_MB'])
def test_what_is_received_stays_bounded(tmp_path, monkeypatch, what):
    _, files = series(tmp_path/'a', '1.2.1', 3)
    path = study_zip(tmp_path, dict(FLAIR=files, PNG=[]))
    with zipfile.ZipFile(path, 'a') as z: z.writestr('p.bin', bytes(10**5))
    uploads.scans_in_files([path])
    monkeypatch.setattr(received, what, dict(MAX_RECEIVED_FILES=3, MAX_STATED_MB=0, MAX_UNPACKED_MB=0)[what])
    with pytest.raises(InputError) as e: received.unpack_headers(path)
    assert e.value.message.code in ('zip_too_large', 'zip_unpacks_too_large')


def test_two_images_with_one_identifier_are_compared_whole(tmp_path):
    "As headers alone they would be copies of each other."
    _, files = series(tmp_path/'a', '1.2.1', 3)
    ds = pydicom.dcmread(files[0])
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(tmp_path/'other', enforce_file_format=True)
    found, = uploads.scans_in_files([study_zip(tmp_path, dict(a=[*files, tmp_path/'other']))])
    with pytest.raises(InputError, match='have one SOPInstanceUID but differ'): uploads.read_found(found)


def test_two_discs_without_identifiers_are_two_scans(tmp_path):
    "As the command line has it: nothing but the folder tells one patient from the other."
    none = dict(StudyInstanceUID=None, PatientID=None)
    discs = {f'export/{who}': series(tmp_path/who, f'1.2.{k}', 3, seed=k, **none) for k, who in
             enumerate(('anna', 'bert'), 1)}
    found = uploads.scans_in_files([study_zip(tmp_path, {name: files for name, (_, files) in discs.items()})])
    assert [f.parts[-1] for f in found] == ['anna AX FLAIR', 'bert AX FLAIR']
    for f, (v, _) in zip(found, discs.values()): assert np.array_equal(uploads.read_found(f).data[0], v)


def test_a_result_is_kept_for_the_pixels_not_for_the_headers(tmp_path):
    "Two uploads of one visit with the same headers and other pixels are two scans."
    keys = set()
    for seed in (1, 2):
        folder = tmp_path/str(seed)
        _, files = series(folder/'a', '1.2.1', 3, seed=seed)
        found, = uploads.scans_in_files([study_zip(folder, dict(a=files))])
        keys.add(session.scan_key(found, 'a', 'model'))
    assert len(keys) == 2 and None not in keys
