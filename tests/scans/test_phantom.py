"Synthetic patients beyond the lessons: determinism across processes, volumes, contrast, layouts, faults."
import csv, socket, subprocess, sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from neuroseg.scans import anatomy
from neuroseg.scans import phantom
from neuroseg.core import InputError, MissingExtraError, OutputError, sha256_array
from neuroseg.scans.phantom import (LABELS, phantom_patient, write_phantom_hospital, write_phantom_lgg,
                                    write_phantom_nifti)
from neuroseg.scans.pictures import SEQUENCES

ROOT = Path(__file__).resolve().parents[2]
SMALL = dict(size_px=64, n_slices=12)


@pytest.fixture(scope='module')
def cohort(): return {n: phantom_patient(n, **SMALL) for n in range(1, 13)}

@pytest.fixture(scope='module')
def sharp(): return {n: phantom_patient(n, size_px=128, n_slices=24) for n in (2, 5, 7)}

def ml(pt): return pt.mask.sum()*np.prod(pt.spacing_mm)/1000
def grey(pt, label, sequence='flair'):
    return np.median(pt.image[SEQUENCES.index(sequence)][pt.tissue==LABELS.index(label)])
def pixels(path): return np.asarray(Image.open(path))


def test_same_bytes_in_another_process_with_other_threads(cohort):
    code = ('from neuroseg.scans.phantom import phantom_patient; from neuroseg.core import sha256_array; '
            'p = phantom_patient(2, size_px=64, n_slices=12); '
            'print(sha256_array(p.image), sha256_array(p.mask))')
    env = dict(PATH='', OPENBLAS_NUM_THREADS='1', OMP_NUM_THREADS='1', PYTHONHASHSEED='7', HOME=str(Path.home()))
    run = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=ROOT, env=env, capture_output=True,
                         text=True, check=True)
    assert run.stdout.split() == [sha256_array(cohort[2].image), sha256_array(cohort[2].mask)]

def test_numbers_and_seeds_differ(cohort):
    assert len({sha256_array(p.mask) for p in cohort.values()}) == len(cohort)
    other = phantom_patient(1, seed=1, **SMALL)
    assert sha256_array(other.image) != sha256_array(cohort[1].image) and other.lesion_ml != cohort[1].lesion_ml

def test_global_random_state_is_neither_used_nor_changed(cohort):
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    assert sha256_array(phantom_patient(1, **SMALL).image) == sha256_array(cohort[1].image)
    assert (np.random.get_state()[1] == before).all()

def test_types_and_shapes(cohort):
    for p in cohort.values():
        assert p.image.shape == (3,12,64,64) and p.image.dtype == np.uint8
        assert p.mask.shape == p.tissue.shape == (12,64,64) and p.mask.dtype == bool and p.tissue.max() < len(LABELS)
        assert len(p.spacing_mm) == 3 and p.spacing_mm[1] == p.spacing_mm[2]
        assert np.allclose(np.abs(np.diag(p.affine)[2::-1]), p.spacing_mm)

def test_native_slices_are_thick_and_few():
    plans = [phantom.slice_plan(n, np.random.default_rng(n), 'lgg', None)[0] for n in range(1, 60)]
    assert {len(z) for z in plans} <= set(range(20, 31)) and all(4 < z[1] - z[0] < 7 for z in plans)


def test_lesion_lies_in_the_head(cohort):
    for p in cohort.values():
        assert p.mask.any() and (p.tissue[p.mask] > 0).all()
        # in the brain, but for partial volume at its surface
        assert (p.tissue[p.mask] >= LABELS.index('csf')).mean() > .99

@pytest.mark.parametrize('n', [2, 5, 7])
def test_mask_volume_is_the_declared_volume(sharp, n):
    assert ml(sharp[n]) == pytest.approx(sharp[n].lesion_ml, rel=.08)

def test_mask_volume_at_coarse_resolution(cohort):
    ratio = [ml(p)/p.lesion_ml for p in cohort.values()]
    assert all(.75 < r < 1.25 for r in ratio) and np.mean(ratio) == pytest.approx(1, abs=.08)

def test_declared_volume_does_not_depend_on_the_grid(cohort, sharp): assert sharp[2].lesion_ml == cohort[2].lesion_ml

def test_volumes_span_the_range():
    volumes = np.array([anatomy.draw_head(n).lesion.volume_ml for n in range(1, 25)])
    assert 5 <= volumes.min() < 12 and 70 < volumes.max() <= 100 and 20 < np.median(volumes) < 35

def test_tumour_slices_of_the_cohort(cohort):
    assert .33 < np.mean([p.mask.any((1,2)).mean() for p in cohort.values()]) < .47

def test_every_patient_has_slices_without_lesion(cohort):
    assert all(3 <= (~p.mask.any((1,2))).sum() for p in cohort.values())


def test_flair_contrast(cohort):
    for p in cohort.values():
        les,wm,gm,csf = (grey(p, k) for k in ('lesion', 'wm', 'gm', 'csf'))
        assert les > 1.05*wm and csf < .7*min(wm, gm), p.name
    assert np.median([grey(p, 'lesion')/grey(p, 'wm') for p in cohort.values()]) > 1.3

def test_t1_contrast(cohort):
    for p in cohort.values():
        if 'pre' in p.missing: continue
        assert grey(p, 'wm', 'pre') > grey(p, 'gm', 'pre') > grey(p, 'csf', 'pre'), p.name
        assert grey(p, 'lesion', 'pre') < grey(p, 'wm', 'pre'), p.name

def test_post_contrast_lights_vessels(sharp):
    def bright(p, s):
        v = p.image[SEQUENCES.index(s)]; return (v[p.tissue==LABELS.index('csf')] > 1.2*grey(p, 'wm', s)).mean()
    assert all(bright(p, 'post') > 2*bright(p, 'pre') for p in sharp.values())

def test_brightness_alone_is_not_enough(cohort):
    "No threshold on FLAIR finds the lesions: fat, caps and bias are in the way."
    def dice(p): return max(2*(m := p.image[1] > t)[p.mask].sum()/(m.sum() + p.mask.sum()) for t in range(20, 250, 4))
    assert np.mean([dice(p) for p in cohort.values()]) < .6

def test_noise_in_air_is_rician(sharp):
    for p in sharp.values():
        corner = p.image[1,1:-1,:6,:6]
        assert 0 < corner.mean() < 8 and corner.std() > .3


def test_missing_sequences_are_exact_copies(cohort):
    assert {n: p.missing for n,p in cohort.items() if p.missing} == {4: ('post',), 8: ('pre',), 12: ('pre', 'post')}
    for p in cohort.values():
        for s in ('pre', 'post'): assert (p.image[SEQUENCES.index(s)] == p.image[1]).all() == (s in p.missing)

def test_end_slices_are_blank(cohort):
    for n,p in cohort.items():
        blank = p.image.reshape(3, 12, -1).max((0,2)) == 0
        assert blank[-1]
        assert blank[0] == (n%3==0) and not blank[1:-1].any() and not p.mask[blank].any() and not p.tissue[blank].any()

def test_gbm_is_skull_stripped_and_brighter(cohort):
    p = phantom_patient(1, kind='gbm', **SMALL)
    assert p.image[:,p.tissue<LABELS.index('csf')].max() == 0 and p.missing == ()
    assert grey(p, 'wm') > np.median([grey(q, 'wm') for q in cohort.values()])


def test_lgg_layout_reads_back(tmp_path, cohort):
    folder = write_phantom_lgg(tmp_path, n_patients=4, **SMALL)
    assert folder == tmp_path/'kaggle_3m'
    assert {f.name for f in folder.iterdir()} == {f'TCGA_PH_{n:04}_20000101' for n in range(1, 5)} | {'data.csv'}
    for n in (1, 4):
        p = cohort[n]
        for k in range(12):
            stem = folder/p.name/f'{p.name}_{k+1}'
            image,mask = pixels(f'{stem}.tif'), pixels(f'{stem}_mask.tif')
            assert image.shape == (64,64,3)
            assert image.dtype == mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
            assert (image.transpose(2,0,1) == p.image[:,k]).all() and ((mask==255) == p.mask[k]).all()
    assert len(list((folder/p.name).iterdir())) == 24

def test_clinical_table_has_kaggles_columns(tmp_path):
    rows = list(csv.DictReader(open(write_phantom_lgg(tmp_path, n_patients=2, size_px=32, n_slices=4)/'data.csv')))
    assert list(rows[0]) == (
        'Patient,RNASeqCluster,MethylationCluster,miRNACluster,CNCluster,RPPACluster,OncosignCluster,COCCluster,'
        'histological_type,neoplasm_histologic_grade,tumor_tissue_site,laterality,tumor_location,gender,'
        'age_at_initial_pathologic,race,ethnicity,death01').split(',')
    assert [r['Patient'] for r in rows] == ['TCGA_PH_0001', 'TCGA_PH_0002']

def test_hospital_layout_reads_back(tmp_path):
    folder = write_phantom_hospital(tmp_path/'hospital', n_patients=2, **SMALL)
    p = phantom_patient(2, kind='gbm', **SMALL)
    images,masks = (sorted((folder/'patient2'/d).iterdir()) for d in ('images', 'masks'))
    tumour = np.flatnonzero(p.mask.any((1,2)))
    assert [f'{i.stem}_mask.png' for i in images] == [m.name for m in masks] and len(images) == len(tumour)
    for k,i,m in zip(tumour, images, masks):
        assert (pixels(i) == p.image[1,k]).all() and ((pixels(m)==255) == p.mask[k]).all()

def test_nifti_geometry(tmp_path, cohort):
    p = cohort[3]
    assert write_phantom_nifti(tmp_path/'v', number=3, **SMALL) == tmp_path/'v'
    assert {f.name for f in (tmp_path/'v').iterdir()} == {f'{p.name}_{s}.nii.gz' for s in (*SEQUENCES, 'mask')}
    for s,v in zip((*SEQUENCES, 'mask'), (*p.image, p.mask)):
        img = nib.load(tmp_path/'v'/f'{p.name}_{s}.nii.gz')
        assert (np.asarray(img.dataobj).transpose(2,1,0) == v).all()
        assert np.allclose(img.header.get_zooms(), p.spacing_mm[::-1])
        assert nib.aff2axcodes(img.affine) == ('L', 'P', 'S') and img.header.get_xyzt_units()[0] == 'mm'

def test_affine_finds_the_lesion_on_its_side_of_the_body(cohort):
    "The mask's centre in mm is where the anatomy has its tumour: a flipped axis would move it by centimetres."
    for n,p in cohort.items():
        head = anatomy.draw_head(n)
        planned = np.linalg.solve(head.matrix, head.lesion.centre - head.offset)[::-1]
        z,y,x = np.argwhere(p.mask).mean(0)
        assert np.abs((p.affine @ [x, y, z, 1])[:3] - planned).max() < 20
        assert np.sign(planned[0]) == np.sign((p.affine @ [x, y, z, 1])[0])
    assert np.diag(p.affine)[0] < 0 and np.diag(p.affine)[1] < 0 < np.diag(p.affine)[2] # as seen from the feet, face up


def test_a_failed_cohort_leaves_nothing(tmp_path, monkeypatch):
    whole = phantom.write_lgg_slices
    def fail(folder, patient):
        if '0002' in patient.name: raise OSError(28, 'No space left on device')
        return whole(folder, patient)
    monkeypatch.setattr(phantom, 'write_lgg_slices', fail)
    with pytest.raises(OutputError): write_phantom_lgg(tmp_path, n_patients=2, size_px=32, n_slices=4)
    assert not any(tmp_path.iterdir())

def test_a_filled_folder_is_not_overwritten(tmp_path):
    (tmp_path/'kaggle_3m').mkdir()
    (tmp_path/'kaggle_3m'/'mine.txt').write_text('keep')
    with pytest.raises(OutputError): write_phantom_lgg(tmp_path, n_patients=1, size_px=32, n_slices=4)
    assert (tmp_path/'kaggle_3m'/'mine.txt').read_text() == 'keep'

@pytest.mark.parametrize('kw',
                         [dict(number=0), dict(number=1, seed=-1), dict(number=1, size_px=8),
                          dict(number=1, n_slices=1), dict(number=1, kind='ct')])
def test_impossible_requests_are_refused(kw):
    with pytest.raises(InputError): phantom_patient(**kw)

def test_template_needs_no_network(monkeypatch):
    def refuse(*a, **k): raise AssertionError('the template went to the network')
    monkeypatch.setattr(socket, 'socket', refuse)
    assert anatomy.atlas.__wrapped__().gm.shape == (189,233,197)

def test_without_nilearn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, 'nilearn.datasets', None)
    with pytest.raises(MissingExtraError, match=r'\.\[reproduce\]'): anatomy.atlas.__wrapped__()

def test_import_is_light():
    big = ('scipy', 'nilearn', 'PIL', 'nibabel', 'pandas', 'torch', 'matplotlib')
    code = f'import neuroseg.scans.phantom, sys; print([m for m in {big} if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True,
                          check=True).stdout.strip() == '[]'
