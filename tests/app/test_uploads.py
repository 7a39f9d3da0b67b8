"Archives: folders are kept whole, so that no two patients meet."
import io, zipfile

import numpy as np
import pytest
from PIL import Image

from neuroseg.app import uploads
from neuroseg.core import InputError
from neuroseg.scans.reading import read_scan


def picture(value):
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(file, 'PNG')
    return file.getvalue()


def archive(path, files):
    with zipfile.ZipFile(path, 'w') as z:
        for name, data in files.items(): z.writestr(name, data)
    return path


def unpacked(tmp_path, files): return uploads.unpack(archive(tmp_path/'export.zip', files), tmp_path/'out')


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
        uploads.unpack(tmp_path/'a.zip', tmp_path/'out')


def test_a_place_that_is_a_file_and_a_folder(tmp_path):
    with pytest.raises(InputError): unpacked(tmp_path, {'p/a.png': picture(1), 'p/a.png/b.png': picture(2)})


def test_what_the_system_added_is_left_out(tmp_path):
    files = {'p/1.png': picture(1), '__MACOSX/p/._1.png': b'x', 'p/__MACOSX/1.png': b'x', 'p/@eaDir/1.png': b'x',
             'p/._1.png': b'x', 'p/Thumbs.db': b'x'}
    assert [p.name for p in unpacked(tmp_path, files).rglob('*') if p.is_file()] == ['1.png']


def test_too_many_folders(tmp_path):
    with pytest.raises(InputError, match='lies in 30 folders'): unpacked(tmp_path, {'a/'*30+'1.png': picture(1)})
