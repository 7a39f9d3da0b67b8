"Folders of slices: order, size, numbering, sequences."
import numpy as np
import pytest
from PIL import Image
from scan_files import GREY, one_sentence, RNG, save

from neuroseg.core import InputError, ShapeError
from neuroseg.scans.pictures import read_image
from neuroseg.scans.reading import read_scan
from neuroseg.scans.stacks import numbering_faults, read_stack


def test_numbering_of_one_or_none():
    assert numbering_faults([]) == ([], [])
    assert numbering_faults([5]) == ([], []) and numbering_faults([3, 3]) == ([3], [])


def folder_of(path, n=3, **shape):
    for i in range(1, n+1): save(path/f's_{i}.png', RNG.integers(0, 255, (6, 5), dtype=np.uint8))
    return path


def test_empty_folder(tmp_path):
    with pytest.raises(InputError, match='holds no images'): read_scan(tmp_path)


def test_only_masks(tmp_path):
    save(tmp_path/'s_1_mask.png', GREY)
    with pytest.raises(InputError, match='holds no images'): read_stack(tmp_path)


def test_sizes_that_differ_name_both(tmp_path):
    folder_of(tmp_path)
    save(tmp_path/'s_9.png', GREY)
    with pytest.raises(ShapeError) as e: read_stack(tmp_path)
    one_sentence(e, '`s_1.png`', '5 x 6', '`s_9.png`', '14 x 20')


def test_grey_among_colour_and_depths(tmp_path):
    save(folder_of(tmp_path/'a')/'s_4.png', np.dstack([GREY[:6, :5]]*3))
    with pytest.raises(InputError, match='one is grey and one in colour'): read_stack(tmp_path/'a')
    save(folder_of(tmp_path/'b')/'s_4.png', np.ones((6, 5), np.uint16))
    with pytest.raises(InputError, match='uint8 and `s_4.png` uint16'): read_stack(tmp_path/'b')


def test_same_slice_in_two_formats(tmp_path):
    save(folder_of(tmp_path)/'s_2.tif', GREY[:6, :5])
    with pytest.raises(InputError, match='holds `s_2` in two formats'): read_stack(tmp_path)


def test_whatever_is_left_out_is_named(tmp_path):
    folder_of(tmp_path)
    for n in ('notes.txt', '.DS_Store', 'Thumbs.db', '._s_1.png', '.s_9.png'): (tmp_path/n).write_text('x')
    for n in ('@eaDir', 'old', 'masks'): (tmp_path/n).mkdir()
    assert [w.code for w in read_stack(tmp_path).warnings] == ['ignored_file', 'ignored_folder', 'system_files',
                                                               'hidden_files']
    assert '._s_1.png' in read_stack(tmp_path).warnings[2] and 'old' in read_stack(tmp_path).warnings[1]


def test_a_slice_that_is_a_link_to_nothing_is_not_left_out(tmp_path):
    (folder_of(tmp_path)/'s_4.png').symlink_to(tmp_path/'gone.png')
    with pytest.raises(InputError) as e: read_scan(tmp_path)
    one_sentence(e, '`s_4.png`', 'link to a file that is not there')


@pytest.mark.parametrize('names', [
    ['anna_1', 'anna_2', 'bert_1'], ['flair_1', 't1_1'], ['p1_s1', 'p1_s2', 'p2_s1', 'p2_s2'], ['a_1', 'b_2']])
def test_slices_of_two_scans_are_no_stack(tmp_path, names):
    for n in names: save(tmp_path/f'{n}.png', GREY)
    with pytest.raises(InputError) as e: read_scan(tmp_path)
    one_sentence(e, 'holds slices of 2 scans', names[0])
    with pytest.raises(InputError, match='2 scans'): read_scan(sorted(tmp_path.iterdir()))


def test_an_empty_end_slice_in_grey_is_in_colour_again(tmp_path):
    colour = np.dstack([GREY, GREY[::-1], GREY.T.reshape(GREY.shape)])
    for i in (1, 2): save(tmp_path/f's_{i}.png', colour)
    save(tmp_path/'s_3.png', GREY*0)
    scan = read_stack(tmp_path)
    assert scan.sequences == ('pre', 'flair', 'post') and not scan.data[:, 2].any()


def test_number_twice(tmp_path):
    save(folder_of(tmp_path)/'s_02.png', GREY[:6, :5])
    assert 'slice number 2 occurs twice' in read_stack(tmp_path).warnings


def test_list_of_files_in_any_order(tmp_path):
    files = sorted(folder_of(tmp_path, 12).iterdir())
    assert np.array_equal(read_stack(files[::-1]).data, read_stack(tmp_path).data)
    assert read_scan(files).names == tuple(f's_{i}' for i in range(1, 13))


def test_colour_slices_keep_channel_order_and_drop_copies(tmp_path):
    planes = RNG.integers(0, 255, (3, 4, 6, 5, ), dtype=np.uint8)
    for i in range(4):
        save(tmp_path/'all'/f's_{i}.tif', np.dstack(planes[:, i]))
        save(tmp_path/'two'/f's_{i}.tif', np.dstack([planes[0, i], planes[1, i], planes[1, i]]))
    scan = read_stack(tmp_path/'all')
    assert scan.sequences == ('pre', 'flair', 'post')
    assert np.array_equal(scan.data, planes) and scan.data.dtype == np.float32
    scan = read_stack(tmp_path/'two')
    assert scan.sequences == ('pre', 'flair') and np.array_equal(scan.data, planes[:2])


def test_multipage_tiff(tmp_path):
    pages = [Image.fromarray(RNG.integers(0, 255, (6, 5), dtype=np.uint8)) for _ in range(12)]
    pages[0].save(tmp_path/'stack.tif', save_all=True, append_images=pages[1:])
    scan = read_scan(tmp_path/'stack.tif')
    assert scan.kind == 'stack'
    assert np.array_equal(scan.data[0], np.stack([np.asarray(p) for p in pages])) and scan.warnings == []
    with pytest.raises(InputError, match='has 12 pages'): read_image(tmp_path/'stack.tif')
