"Catalogue and integrity report: every fault is found once, by file, and nothing is dropped or counted twice."
import shutil
from collections import Counter

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from neuroseg.cohorts.cases import FAULT_KINDS, find_cases, find_layout, load_case, pair_masks, patient_id
from neuroseg.cohorts.integrity import LGG_COUNTS, SEALED, case_table, read_clinical, verify
from neuroseg.cohorts.privacy import policy_of
from neuroseg.cohorts.splits import check_leakage, fold_split
from neuroseg.core import DataError, InputError, LeakageError

SIDE = 16


def write_lgg(root, patients=('TCGA_PH_0001', 'TCGA_PH_0002'), n=11, missing=(), seed=0, csv=True):
    "Small random patients in the LGG layout; `missing` sequences are copies of FLAIR."
    rng = np.random.default_rng(seed)
    for p in patients:
        folder = root/f'{p}_20000101'; folder.mkdir(parents=True)
        for k in range(1, n+1):
            image = rng.integers(1, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            for i, s in ((0, 'pre'), (2, 'post')):
                if s in missing: image[..., i] = image[..., 1]
            mask = np.zeros((SIDE, SIDE), np.uint8)
            if 3 <= k <= 5: mask[4:8, 4:4+k] = 255
            Image.fromarray(image).save(folder/f'{folder.name}_{k}.tif')
            Image.fromarray(mask).save(folder/f'{folder.name}_{k}_mask.tif')
    if csv: (root/'data.csv').write_text('Patient,age\n' + ''.join(f'{p},5\n' for p in patients))
    return root


@pytest.fixture
def lgg(tmp_path): return write_lgg(tmp_path/'kaggle_3m')


def slice_file(root, k, mask=False, patient='TCGA_PH_0001'):
    return root/f'{patient}_20000101'/f"{patient}_20000101_{k}{'_mask'*mask}.tif"


def kinds(root): return Counter(f.kind for f in verify(root).faults)


def test_sound_cohort(lgg):
    report = verify(lgg)
    assert report.ok and report.faults == []
    assert (report.counts
            == dict(patients=2, slices=22, tumour_slices=6, institution_PH=2, missing_pre=0, missing_post=0))
    assert [c.slice_numbers for c in find_cases(lgg)] == [tuple(range(1, 12))]*2
    assert find_cases(lgg)[0].lesion_px == 4*(3+4+5)


def damage(root, what):
    f = slice_file(root, 4); m = slice_file(root, 4, mask=True)
    match what:
        case 'missing mask': m.unlink()
        case 'mask without image':
            f.unlink(); m.unlink()
            Image.fromarray(np.ones((SIDE, SIDE), np.uint8)).save(f.with_name('x_mask.tif'))
        case 'unreadable': f.write_bytes(f.read_bytes()[:300])
        case 'unreadable mask': m.write_bytes(b'II*\0')
        case 'empty file': f.write_bytes(b'')
        case 'wrong size': Image.open(f).resize((8, 8)).save(f); Image.open(m).resize((8, 8), 0).save(m)
        case 'mask of another size': Image.open(m).resize((8, 16), 0).save(m)
        case 'non-binary mask': Image.fromarray(np.arange(SIDE*SIDE, dtype=np.uint8).reshape(SIDE, SIDE)).save(m)
        case 'duplicate slice': shutil.copy(slice_file(root, 5), f)
        case 'number twice':
            shutil.copy(slice_file(root, 1, mask=True), slice_file(root, '04', mask=True))
            Image.fromarray(np.full((SIDE, SIDE, 3), 7, np.uint8)).save(slice_file(root, '04'))
        case 'gap in numbering': f.unlink(); m.unlink()
        case 'stray file': (f.parent/'notes.txt').write_text('x')
        case 'stray folder': (f.parent/'old').mkdir()


@pytest.mark.parametrize('what,found', [
    ('missing mask', {'missing mask': 1}), ('mask without image', {'mask without image': 1, 'gap in numbering': 1}),
    ('unreadable', {'unreadable': 1}), ('unreadable mask', {'unreadable': 1}),
    ('empty file', {'unreadable': 1}), ('wrong size', {'wrong size': 1}), ('mask of another size', {'wrong size': 1}),
    ('non-binary mask', {'non-binary mask': 1}),
    ('duplicate slice', {'duplicate slice': 1}), ('number twice', {'duplicate slice': 1}),
    ('gap in numbering', {'gap in numbering': 1}),
    ('stray file', {'stray file': 1}), ('stray folder', {'stray file': 1})])
def test_each_fault_is_found_and_named(lgg, what, found):
    before = verify(lgg)
    damage(lgg, what)
    report = verify(lgg)
    assert Counter(f.kind for f in report.faults) == found and not report.ok
    assert {f.kind for f in report.faults} <= set(FAULT_KINDS)
    for f in report.faults:
        assert f.file.startswith('TCGA_PH_0001_20000101') and '/tmp' not in str(f) and '\n' not in str(f)
        assert str(f) in str(report) and f.file in report._repr_markdown_()
    assert report.counts['patients'] == 2 and (report.hash != before.hash or 'stray' in what or 'mask without' in what)


@pytest.mark.parametrize('what', ['missing mask', 'unreadable', 'empty file', 'wrong size', 'mask of another size',
                                  'non-binary mask'])
def test_a_faulty_case_is_refused_not_trimmed(lgg, what):
    damage(lgg, what)
    first, second = find_cases(lgg)
    with pytest.raises((DataError, InputError)): load_case(first)
    assert load_case(second)[1].shape == (11, SIDE, SIDE)


def test_faults_of_many_files_are_all_named(lgg):
    for k in (2, 3, 9): slice_file(lgg, k, mask=True).unlink()
    slice_file(lgg, 7, patient='TCGA_PH_0002').write_bytes(b'x')
    assert kinds(lgg) == {'missing mask': 3, 'unreadable': 1}
    with pytest.raises(DataError,
                       match='`TCGA_PH_0001_20000101_2.tif` and 2 more of `TCGA_PH_0001_20000101` has no mask'):
        load_case(find_cases(lgg)[0])


def test_black_slices_may_be_equal(lgg):
    for k in (1, 11): Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(slice_file(lgg, k))
    assert verify(lgg).ok


def test_empty_patient(lgg):
    (lgg/'TCGA_PH_0003_20000101').mkdir()
    assert kinds(lgg) == {'empty case': 1}
    with pytest.raises(DataError, match='holds no images'): load_case(find_cases(lgg)[2])


@pytest.mark.parametrize('missing', [(), ('pre',), ('post',), ('pre', 'post')])
def test_copies_of_flair_are_missing(tmp_path, missing):
    root = write_lgg(tmp_path/'kaggle_3m', missing=missing)
    case = find_cases(root)[0]
    scan, _ = load_case(case)
    assert case.missing == missing
    assert scan.sequences == case.sequences == tuple(s for s in ('pre', 'flair', 'post') if s not in missing)
    assert (verify(root).counts['missing_pre'], verify(root).counts['missing_post']) == (2*('pre' in missing),
        2*('post' in missing))


def test_one_differing_pixel_is_an_acquisition(tmp_path):
    root = write_lgg(tmp_path/'kaggle_3m', missing=('post',))
    image = np.array(Image.open(slice_file(root, 8))); image[0, 0, 2] ^= 1
    Image.fromarray(image).save(slice_file(root, 8))
    assert [c.missing for c in find_cases(root)] == [(), ('post',)]


@pytest.mark.parametrize('give', ['.', 'kaggle_3m', 'lgg-mri-segmentation', 'lgg-mri-segmentation/kaggle_3m'])
def test_the_archive_unpacked_twice_counts_once(tmp_path, give):
    write_lgg(tmp_path/'kaggle_3m'); shutil.copytree(tmp_path/'kaggle_3m', tmp_path/'lgg-mri-segmentation'/'kaggle_3m')
    report = verify(tmp_path/give)
    assert report.ok and report.counts['patients'] == 2 and report.counts['slices'] == 22
    assert any('there twice' in n for n in report.notes) == (give == '.')


def test_one_patient_alone(lgg):
    folder = slice_file(lgg, 1).parent
    assert [c.patient for c in find_cases(folder)] == ['TCGA_PH_0001']


def test_hash_is_of_pixels_and_numbers(tmp_path):
    a, b = write_lgg(tmp_path/'a'/'kaggle_3m'), write_lgg(tmp_path/'b'/'kaggle_3m')
    for f in b.glob('*/*.tif'): Image.open(f).save(f, compression='tiff_deflate')
    assert verify(a).hash == verify(b).hash
    mask = np.array(Image.open(slice_file(b, 3, mask=True))); mask[0, 0] = 255
    Image.fromarray(mask).save(slice_file(b, 3, mask=True))
    assert verify(a).hash != verify(b).hash


def test_slices_come_by_number(lgg):
    scan, mask = load_case(find_cases(lgg)[0])
    assert np.array_equal(scan.data[:, 9], np.moveaxis(np.asarray(Image.open(slice_file(lgg, 10))), -1, 0))
    assert mask.sum((1, 2)).tolist() == [0, 0, 12, 16, 20, 0, 0, 0, 0, 0, 0]


# ---- what is expected of LGG

def fake_report_inputs(root, here):
    write_lgg(root, here, n=1, csv=False)
    everyone = sorted({*here, *SEALED})
    (root/'data.csv').write_text('Patient\n' + '\n'.join(everyone) + '\n')
    return root


def test_subset_without_the_sealed_is_said(tmp_path):
    report = verify(fake_report_inputs(tmp_path/'kaggle_3m', ['TCGA_CS_4941', 'TCGA_DU_5849']))
    assert '2 of 24: the 22 sealed patients are absent' in report.notes
    assert list(report.expected) == ['published, not sealed', 'published'] and 'patients' in report.wrong
    assert not report.ok
    assert 'published, not sealed: 88   published: 110' in str(report)


def test_other_subsets_name_the_absent(tmp_path):
    report = verify(fake_report_inputs(tmp_path/'kaggle_3m', ['TCGA_CS_4941', 'TCGA_CS_4942']))
    assert list(report.expected) == ['published'] and any('absent: TCGA_CS_4944' in n for n in report.notes)


def test_published_counts_add_up():
    for c in LGG_COUNTS.values(): assert sum(v for k, v in c.items() if k.startswith('institution')) == c['patients']


# ---- hospital

def write_hospital(root, n=3, ending='.png'):
    rng = np.random.default_rng(1)
    for p in (1, 2, 10):
        for sub in ('images', 'masks'): (root/f'patient{p}'/sub).mkdir(parents=True)
        for k in range(n):
            Image.fromarray(rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)).save(root/f'patient{p}'/'images'/
                f'slice_{60+3*k}{ending}')
            Image.fromarray(np.eye(SIDE, dtype=np.uint8)*255).save(root/f'patient{p}'/'masks'/
                                                                   f'slice_{60+3*k}_mask.png')
    return root


def test_hospital(tmp_path):
    root = write_hospital(tmp_path/'gbm')
    assert [c.patient for c in find_cases(root)] == ['patient1', 'patient2', 'patient10']
    report = verify(root)
    assert report.ok and report.layout == 'hospital' and report.counts['slices'] == 9 and report.expected == {}
    assert find_cases(root/'patient2')[0].patient == 'patient2'
    (root/'patient1'/'masks'/'slice_63_mask.png').unlink()
    (root/'patient2'/'images'/'slice_66.png').rename(root/'patient2'/'images'/'slice_72.png')
    assert kinds(root) == {'missing mask': 2, 'mask without image': 1, 'gap in numbering': 1}


def test_hospital_without_masks(tmp_path):
    root = write_hospital(tmp_path/'gbm')
    for p in root.iterdir(): shutil.rmtree(p/'masks')
    assert kinds(root) == {'missing mask': 9}
    with pytest.raises(DataError, match='read the scan alone'): load_case(find_cases(root)[0])


def test_masks_named_like_their_images(tmp_path):
    for sub in ('images', 'masks'):
        (tmp_path/sub).mkdir()
        for k in (1, 2): Image.new('L', (4, 4)).save(tmp_path/sub/f's{k}.png')
    assert ([m.parent.name+m.name for m in pair_masks(tmp_path/'images', tmp_path/'masks')[1]]
            == ['maskss1.png', 'maskss2.png'])


# ---- NIfTI

def write_nifti(path, v, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image(v, np.diag([1, 1, 2, 1.]) if affine is None else affine).to_filename(path)


LESION = np.zeros((6, 5, 4), np.uint8)
LESION[2, 2], LESION[3, 2] = [0, 1, 2, 4], [0, 1, 1, 0] # labels of BraTS, in the middle of three slices


def write_brats(root, names=('B_001', 'B_002')):
    rng = np.random.default_rng(2)
    for n in names:
        for s in ('t1', 't1ce', 't2', 'flair'):
            write_nifti(root/n/f'{n}_{s}.nii.gz', rng.integers(0, 99, (6, 5, 4)).astype(np.int16))
        write_nifti(root/n/f'{n}_seg.nii.gz', LESION)
    return root


def test_brats_layout(tmp_path):
    root = write_brats(tmp_path/'brats')
    cases = find_cases(root)
    assert find_layout(root) == 'nifti' and [c.case for c in cases] == ['B_001', 'B_002']
    assert [f.name for f in cases[0].images] == ['B_001_t1.nii.gz', 'B_001_flair.nii.gz', 'B_001_t1ce.nii.gz']
    scan, mask = load_case(cases[0])
    assert scan.sequences == ('pre', 'flair', 'post') and mask.shape == scan.shape == (4, 5, 6)
    assert cases[0].n_slices == 4
    assert verify(root).ok
    assert (verify(root).notes
            == ['2 NIfTI file(s) are of no sequence used here and not read: B_001_t2.nii.gz, B_002_t2.nii.gz'])


def test_flat_nifti_folder(tmp_path):
    for p in (1, 2, 10):
        write_nifti(tmp_path/f'patient{p}_flair.nii.gz', np.ones((6, 5, 4), np.int16)*p)
        write_nifti(tmp_path/f'patient{p}_mask.nii.gz', LESION)
    assert [c.patient for c in find_cases(tmp_path)] == ['patient1', 'patient2', 'patient10'] and verify(tmp_path).ok


@pytest.mark.parametrize('what,kind',
                         [('shape', 'wrong size'), ('affine', 'wrong size'), ('soft', 'non-binary mask'),
                          ('text', 'unreadable'), ('none', 'missing mask'), ('two', 'stray file'),
                          ('image', 'unreadable')])
def test_nifti_faults(tmp_path, what, kind):
    root = write_brats(tmp_path/'brats', ['B_001'])
    (root/'B_001'/'B_001_t2.nii.gz').unlink()
    seg = root/'B_001'/'B_001_seg.nii.gz'
    match what:
        case 'shape': write_nifti(seg, np.ones((6, 5, 3), np.uint8))
        case 'affine': write_nifti(seg, LESION, np.eye(4))
        case 'soft': write_nifti(seg, np.linspace(0, 1, 120, dtype=np.float32).reshape(6, 5, 4))
        case 'text': seg.write_text('hello')
        case 'none': seg.unlink()
        case 'two': write_nifti(root/'B_001'/'B_001_mask.nii.gz', np.ones((6, 5, 4), np.uint8))
        case 'image': (root/'B_001'/'B_001_t1ce.nii.gz').write_text('hello')
    assert set(kinds(root)) == {kind} | ({'missing mask'} if what == 'two' else set())
    with pytest.raises((DataError, InputError)): load_case(find_cases(root)[0])


# ---- layouts and tables

def test_no_layout(tmp_path):
    for make in (lambda p: None, lambda p: p.mkdir(), lambda p: ((p/'a.png').write_bytes(b''))):
        make(tmp_path/'x')
        with pytest.raises(DataError, match='`x`'): find_cases(tmp_path/'x')
    with pytest.raises(DataError, match='expected one of lgg, hospital, nifti'): find_cases(tmp_path, 'brats')


@pytest.mark.parametrize('name,patient',
                         [('TCGA_CS_4941_19960909', 'TCGA_CS_4941'), ('TCGA_CS_4941_19960909_1.tif', 'TCGA_CS_4941'),
                          ('TCGA_DU_A5TT', 'TCGA_DU_A5TT'), ('patient1', 'patient1'), ('', '')])
def test_patient_id(name, patient): assert patient_id(name) == patient


def test_case_table_and_bar(lgg, capsys):
    rows = case_table(find_cases(lgg), workers=1)
    assert capsys.readouterr().err == '' and rows == case_table(find_cases(lgg), progress=True, workers=3)
    assert 'reading cases' in capsys.readouterr().err
    assert [r['lesion_px'] for r in rows] == [48, 48]


@pytest.mark.parametrize('content,words',
                         [(b'', 'no column `Patient`'), (b'\xff\xfe\x00', 'it is not text'),
                          (b'a,b\n1,2', 'no column `Patient`'),
                          (b'Patient,a\nX,1\nY\n', '1 fields in line 3 but 2 columns')])
def test_bad_clinical_tables(tmp_path, content, words):
    (tmp_path/'data.csv').write_bytes(content)
    with pytest.raises(InputError, match=words): read_clinical(tmp_path/'data.csv')
    with pytest.raises(InputError, match='`none.csv` cannot be read as a table'): read_clinical(tmp_path/'none.csv')


def test_clinical_values(tmp_path):
    (tmp_path/'data.csv').write_text('Patient;a;b;c;d\nX; 1 ;2,5;-3;NA\n\n')
    assert read_clinical(tmp_path/'data.csv') == [dict(Patient='X', a=1, b=2.5, c=-3, d=None)]


# ---- whose scan is it, and which masks are none

@pytest.mark.parametrize('name,patient', [
    ('BraTS-GLI-00000-000', 'BraTS-GLI-00000'), ('BraTS-GLI-00000-001', 'BraTS-GLI-00000'),
    ('BraTS-MET-12345-010', 'BraTS-MET-12345'), ('sub-01_ses-2', 'sub-01'), ('p01_post-op', 'p01'),
    ('UPENN-GBM-00001_21', 'UPENN-GBM-00001'), ('A-1', 'A-1'), ('A_1', 'A_1'), ('pre', 'pre'), ('post_1', 'post_1'),
    ('BraTS20_Training_355', 'BraTS20_Training_355'), ('Brats18_TCIA08_242_1', 'Brats18_TCIA08_242_1')])
def test_an_examination_is_no_patient(name, patient): assert patient_id(name) == patient


def test_two_examinations_stay_on_one_side(tmp_path):
    names = [f'BraTS-GLI-0000{k}-00{t}' for k in range(5) for t in (0, 1)]
    for n in names:
        for s, v in (('t2f', np.arange(120, dtype=np.int16).reshape(6, 5, 4)), ('seg', LESION)):
            write_nifti(tmp_path/n/f'{n}-{s}.nii.gz', v)
    cases = find_cases(tmp_path)
    assert [c.case for c in cases] == names and len({c.patient for c in cases}) == 5
    for k in range(5):
        train, test = fold_split(cases, k)
        assert len(test) == 2 and not {c.patient for c in train} & {c.patient for c in test}
    with pytest.raises(LeakageError): check_leakage([names[0]], [names[1]])
    assert not policy_of(tmp_path).private # identifiers of a published cohort
    assert verify(tmp_path).ok and verify(tmp_path).counts['patients'] == 5


def test_simple_names_in_a_folder_of_each_patient(tmp_path):
    for p in ('sub1', 'sub2'):
        flair = np.arange(120, dtype=np.int16).reshape(6, 5, 4)
        for s, v in (('FLAIR', flair), ('t1ce', np.eye(6, 5)[..., None]*LESION), ('seg', LESION)):
            write_nifti(tmp_path/p/f'{s}.NII.GZ', v)
        (tmp_path/p/'._FLAIR.NII.GZ').write_bytes(bytes(400))
    cases = find_cases(tmp_path)
    found = [(c.case, len(c.images), c.masks[0].name) for c in cases]
    assert found == [('sub1', 2, 'seg.NII.GZ'), ('sub2', 2, 'seg.NII.GZ')]
    assert verify(tmp_path).ok and load_case(cases[0])[1].sum() == 5


def test_a_mask_of_another_name_in_the_folder_of_one_patient(tmp_path):
    root = write_brats(tmp_path/'brats', ['BraTS20_Training_355'])
    folder = root/'BraTS20_Training_355'
    (folder/'BraTS20_Training_355_seg.nii.gz').rename(folder/'W39_1998.09.19_Segm.nii.gz')
    case, = find_cases(root)
    assert case.masks[0].name == 'W39_1998.09.19_Segm.nii.gz' and verify(root).ok
    write_nifti(folder/'W40_Segm.nii.gz', LESION)
    assert kinds(root) == {'missing mask': 1, 'stray file': 2} # which of them, nobody can tell


def test_folders_and_endings_in_any_case(tmp_path):
    root = write_hospital(tmp_path/'gbm')
    for p in root.iterdir():
        for f in (p/'images').iterdir(): f.rename(f.with_name(f.stem.upper()+'.PNG'))
        for s in ('images', 'masks'): (p/s).rename(p/s.upper())
        (p/'IMAGES'/'Thumbs.db').touch(); (p/'MASKS'/'@eaDir').mkdir()
    assert verify(root).ok and find_layout(root) == 'hospital'


def test_results_in_a_cohort_are_no_cases(tmp_path):
    root = write_brats(tmp_path/'brats')
    out = root/'out'/'B_001'; out.mkdir(parents=True)
    write_nifti(out/'mask.nii.gz', LESION)
    (out/'report.json').write_text('{"neuroseg": "1", "case": "a", "model": {}}')
    assert [c.case for c in find_cases(root)] == ['B_001', 'B_002'] and verify(root).ok


def head_and_lesion(n=5, side=40):
    v = np.zeros((n, side, side), np.uint8)
    v[:, 8:-8, 8:-8] = np.random.default_rng(0).integers(60, 200, (n, side-16, side-16))
    lesion = np.zeros(v.shape, bool); lesion[1:3, 15:20, 15:20] = True
    return v, lesion


@pytest.mark.parametrize('what,found', [
    ('sound', {}), ('inverted', {'implausible mask': 1}), ('brain', {'implausible mask': 1}),
    ('empty', {'no tumour': 1}), ('red on black', {}),
    ('red on white', {'non-binary mask': 2, 'implausible mask': 1}), ('two colours', {'non-binary mask': 2}),
    ('1 and 0', {}), ('one bit', {}), ('palette', {}), ('two labels', {'non-binary mask': 2}),
    ('one slice of 16 bits', {'unlike slices': 1}), ('one slice in colour', {'unlike slices': 1}),
    ('an empty slice in grey', {}), ('two series', {'unlike slices': 1})])
def test_masks_and_slices_that_training_would_take_or_refuse(tmp_path, what, found):
    v, lesion = head_and_lesion()
    if what == 'an empty slice in grey': v[4] = 0
    for k, (im, m) in enumerate(zip(v, lesion)):
        m = {'inverted': ~m, 'brain': im > 0, 'empty': m & False}.get(what, m)
        red = np.where(m[..., None], [255, 0, 0], 255 if what == 'red on white' else 0).astype(np.uint8)
        if what == 'two colours': red[16, 16] = [0, 255*m[16, 16], 0]
        mask = Image.fromarray(red) if what in ('red on black', 'red on white', 'two colours') else Image.fromarray(
            m.astype(np.uint8)*(1 if what == '1 and 0' else 255))
        labels = m.astype(np.uint8)*(1+(np.arange(40) > 16)).astype(np.uint8)
        if what == 'two labels': mask = Image.fromarray(labels)
        if what == 'one bit': mask = mask.convert('1')
        if what == 'palette': mask = Image.fromarray(red).convert('P')
        image = Image.fromarray(im)
        if what == 'one slice of 16 bits' and k == 2: image = Image.fromarray(im.astype(np.uint16)*257)
        if what == 'one slice in colour' and k == 2: image = Image.fromarray(np.dstack([im]*3))
        if what == 'an empty slice in grey' and k < 4: image = Image.fromarray(np.dstack([im, im, 255-im]))
        name = f't1_{k+1}' if what == 'two series' and k > 2 else f'slice_{k+1}'
        for folder, picture, ending in (('images', image, ''), ('masks', mask, '_mask')):
            (tmp_path/'p1'/folder).mkdir(parents=True, exist_ok=True)
            picture.save(tmp_path/'p1'/folder/f'{name}{ending}.png')
    assert kinds(tmp_path) == found
    case, = find_cases(tmp_path)
    if set(found) - {'implausible mask', 'no tumour'}:
        with pytest.raises((DataError, InputError)): load_case(case)
    else: assert load_case(case)[0].n_slices == 5


def test_a_volume_without_flair_is_named(tmp_path):
    root = write_brats(tmp_path/'brats', ['B_001'])
    (root/'B_001'/'B_001_flair.nii.gz').unlink()
    assert kinds(root) == {'no FLAIR': 1}
