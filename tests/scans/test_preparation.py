"Preparation: every orientation there and back, intensities, context, and the thesis' own preparation to the byte."
from dataclasses import replace
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from neuroseg.core import InputError, ShapeError
from neuroseg.scans.pictures import SEQUENCES
from neuroseg.scans.stacks import Scan
from neuroseg.evaluation.metrics import dice
from neuroseg.scans.preparation import (THESIS_PX, Grid, Prep, axial_view, context_step, crop, from_axial,
                                        grey_levels, head_box, head_mask, paste, prepare, prepare_mask, rescale,
                                        resize_planes, restore, thesis_plane, thesis_slices, to_axial, with_context)

ORIENTATIONS = [''.join(p) for axes in permutations(('LR','PA','IS')) for p in product(*axes)]


def head(shape=(12,80,70), seed=0, blobs=2):
    "A noisy ellipsoid with bright balls in it, and the mask of the balls."
    rng = np.random.default_rng(seed)
    z,y,x = np.meshgrid(*(np.arange(n) for n in shape), indexing='ij')
    def ball(c, r): return sum(((a-b)/s)**2 for a,b,s in zip((z,y,x), c, r)) < 1
    Z,Y,X = shape
    tissue = ball((Z/2,Y/2,X/2), (Z*.6,Y*.42,X*.4))
    mask = np.zeros(shape, bool)
    for _ in range(blobs):
        mask |= ball((rng.uniform(Z*.3,Z*.7), rng.uniform(Y*.35,Y*.65), rng.uniform(X*.35,X*.65)),
                     (Z*.2, *rng.uniform(8,12,2)))
    noise = [rng.normal(0,3,shape) for _ in range(3)]
    data = np.stack([tissue*(90+20*c) + mask*tissue*(80 if c==1 else 10) + noise[c] for c in range(3)])
    data = data.astype(np.float32)
    return data, mask & tissue


def stored(data, mask, codes, spacing=(5.,1.,1.)):
    "The same voxels as a NIfTI file with these axis codes would hold them; `data` and `mask` are axial, in LPS order."
    affine = np.diag([-spacing[2],-spacing[1],spacing[0],1.])
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(codes))
    def one(v):
        img = nib.Nifti1Image(np.transpose(v, (2,1,0)), affine).as_reoriented(turn)
        return np.transpose(np.asarray(img.dataobj), (2,1,0)), img
    vols = [one(v)[0] for v in data]
    m,img = one(mask.astype(np.uint8))
    return Scan(np.stack(vols), SEQUENCES, spacing_mm=tuple(nib.affines.voxel_sizes(img.affine)[::-1]),
                affine=img.affine), m>0


def test_there_are_48_orientations(): assert len(set(ORIENTATIONS))==48


@pytest.mark.parametrize('codes', ORIENTATIONS)
def test_every_orientation_comes_to_one_view_and_back(codes):
    data,mask = head((5,9,7), blobs=0)
    mask = np.random.default_rng(1).random(mask.shape)>.5
    scan,m = stored(data, mask, codes)
    view = axial_view(scan.affine)
    assert np.array_equal(to_axial(m, *view), mask)
    assert np.array_equal(from_axial(to_axial(m, *view), *view), m)
    for v,w in zip(scan.data, data): assert np.array_equal(to_axial(v, *view), w)


@pytest.mark.parametrize('codes', ['LPS','RAS','PIR','ASL','SRA','IPL'])
def test_a_scan_is_prepared_alike_however_it_is_stored(codes):
    data,mask = head()
    plain,(scan,m) = stored(data, mask, 'LPS')[0], stored(data, mask, codes)
    a,b = prepare(plain, Prep(size_px=48)), prepare(scan, Prep(size_px=48))
    assert np.array_equal(a.x, b.x) and a.grid.step==b.grid.step==1
    assert np.array_equal(prepare_mask(m, b.grid), prepare_mask(mask, a.grid))
    assert restore(np.ones((12,48,48)), b.grid).shape==m.shape


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('size_px,codes', [(64,'LPS'), (96,'RAS'), (160,'PIR'), (192,'SAL')])
def test_a_mask_survives_the_round_trip(seed, size_px, codes):
    scan,mask = stored(*head((10,110,100), seed), codes)
    grid = prepare(scan, Prep(size_px=size_px)).grid
    back = restore(prepare_mask(mask, grid)/255, grid) > .5
    assert dice(back, mask, empty=1.) > .97


def test_an_oblique_affine_takes_the_nearest_axes():
    tilt = np.array([[np.cos(.3),-np.sin(.3),0,0],[np.sin(.3),np.cos(.3),0,0],[0,0,1,0],[0,0,0,1.]])
    assert axial_view(tilt @ np.diag([-1,-1,5,1.])) == axial_view(None)


def test_one_slice_is_a_scan():
    data,mask = head((1,60,60))
    p = prepare(Scan(data, SEQUENCES, kind='slice'), Prep(size_px=32))
    assert p.x.shape==(1,3,32,32) and restore(np.zeros((1,32,32)), p.grid).shape==(1,60,60)
    assert np.array_equal(with_context(p.x, [0])[0,3:], p.x[[0,0],1])


# --- the head and its grey levels

@pytest.mark.parametrize('gain,offset', [(1,0), (.01,0), (400,-3000), (2,1000)])
def test_preparation_ignores_the_scanners_scale(gain, offset):
    data,_ = head()
    a,b = (prepare(Scan(d, SEQUENCES), Prep(size_px=48)).x.astype(int) for d in (data, data*gain+offset))
    assert abs(a-b).max() <= 1 # a rounding apart


def test_head_box_moves_with_the_head():
    m = np.zeros((3,60,60), bool); m[:,10:30,20:50] = True
    y,x,side = head_box(m, margin=0)
    assert side==30 and (y,x)==(5,20)
    assert head_box(np.roll(m, (7,-4), (1,2)), margin=0) == (12,16,30)
    assert head_box(m, margin=.1)[2] == 36


def test_head_box_of_nothing_is_the_image():
    assert head_box(np.zeros((3,40,50), bool)) == (0,0,50)
    one = np.zeros((3,200,200), bool); one[1,100,100] = True # below 2 % of its row
    assert head_box(one) == (0,0,200)


@pytest.mark.parametrize('box', [(0,0,20), (-5,-7,40), (3,4,6), (15,18,10), (-2,10,25)])
def test_paste_is_the_inverse_of_crop(box):
    v = np.random.default_rng(0).integers(1,99,(2,20,24))
    back = paste(crop(v, box), box, v.shape[1:])
    y,x,side = box
    inside = np.zeros((20,24), bool); inside[max(y,0):y+side, max(x,0):x+side] = True
    assert np.array_equal(back[:,inside], v[:,inside]) and not back[:,~inside].any()


def test_rescale_takes_its_range_from_the_head_alone():
    data,_ = head()
    m = head_mask(data[1])
    wide = np.pad(data[1], ((0,0),(40,40),(40,40)))
    assert np.allclose(rescale(wide, np.pad(m, ((0,0),(40,40),(40,40))))[:,40:-40,40:-40], rescale(data[1], m))
    # a flat sequence beside a good FLAIR does not divide by zero
    assert rescale(np.full((2,4,4), 7.), np.ones((2,4,4), bool)).max()==0


def test_missing_sequences_are_flair():
    data,_ = head()
    x = prepare(Scan(data[1:], ('flair','post')), Prep(size_px=48)).x
    full = prepare(Scan(data, SEQUENCES), Prep(size_px=48)).x
    assert np.array_equal(x[:,0], full[:,1]) and np.array_equal(x[:,1:], full[:,1:])


def test_resize_keeps_constants_and_brightness():
    assert np.allclose(resize_planes(np.full((2,31,17), .3), 24), .3)
    p = np.zeros((1,64,64)); p[0,20:40,24:44] = 1
    for size in (16,32,48,128): assert np.isclose(resize_planes(p, size).mean(), p.mean(), atol=2e-3)


@pytest.mark.parametrize('wrong,says', [
    (lambda d,m: prepare(Scan(d[1], ('flair',))), 'expected a non-empty (C,Z,Y,X)'),
    (lambda d,m: prepare(Scan(d[:,:0], SEQUENCES)), 'expected a non-empty'),
    (lambda d,m: prepare(Scan(d[:1], ('pre',))), "hold no 'flair'"),
    (lambda d,m: prepare(Scan(np.zeros_like(d), SEQUENCES)), 'one flat value'),
    (lambda d,m: prepare_mask(m[:,1:], prepare(Scan(d, SEQUENCES)).grid), "bring it to the scan's grid"),
    (lambda d,m: restore(np.zeros((12,5,5)), prepare(Scan(d, SEQUENCES)).grid), 'expected (12, 192, 192)'),
    (lambda d,m: thesis_slices(Scan(d[:1], ('pre',)), m), "hold no 'flair'"),
    (lambda d,m: thesis_slices(Scan(d, SEQUENCES), m[1:]), "bring it to the scan's grid"),
])
def test_what_cannot_be_prepared_is_refused_in_one_sentence(wrong, says):
    with pytest.raises(InputError) as e: wrong(*head())
    assert says in str(e.value) and '\n' not in str(e.value)


# --- context

@pytest.mark.parametrize('context,step', [(0,1), (1,1), (1,3), (2,2), (3,1)])
def test_context_against_plain_loops(context, step):
    x = np.random.default_rng(0).integers(0,255,(9,3,2,2), dtype=np.uint8)
    got = with_context(x, [0,4,8], step=step, context=context)
    assert got.shape==(3, 3+2*context, 2, 2)
    for row,i in zip(got, (0,4,8)):
        wanted = [x[i,0],x[i,1],x[i,2]] + [x[min(max(i+d*k*step,0),8),1] for k in range(1,context+1) for d in (-1,1)]
        assert np.array_equal(row, np.stack(wanted))


def test_context_step_reads_the_axial_spacing():
    data,mask = head((12,80,70))
    thin,_ = stored(data, mask, 'PIR', spacing=(1.,.9,.9))
    assert prepare(thin, Prep(size_px=32)).grid.step==5
    assert prepare(replace(thin, spacing_mm=None), Prep(size_px=32)).grid.step==1
    assert [context_step(s, 4.) for s in (.5, 4, 100)]==[8,1,1]


def test_a_grid_says_all():
    data,mask = head()
    scan,m = stored(data, mask, 'SAL')
    g = prepare(scan, Prep(size_px=64)).grid
    assert Grid(**vars(g))==g and g.axial_shape==data.shape[1:] and g.shape==m.shape


# --- the thesis

@pytest.mark.parametrize('shape', [(256,256,3), (240,240), (100,80,3), (128,128), (64,300)])
def test_thesis_plane_is_what_pillow_does(shape):
    a = np.random.default_rng(0).integers(0,256,shape,dtype=np.uint8)
    assert np.array_equal(thesis_plane(a), np.asarray(Image.fromarray(a).convert('L').resize((128,128))))
    assert thesis_plane(a).shape==(THESIS_PX,THESIS_PX)


def test_thesis_masks_have_a_soft_rim():
    m = np.zeros((256,256), bool); m[60:121,80:141] = True
    t = thesis_plane(m)
    assert set(np.unique(t)) > {0,255}
    assert np.array_equal(t, np.asarray(Image.fromarray(m.astype(np.uint8)*255).resize((128,128))))


def test_grey_stored_in_three_channels_stays_grey():
    a = np.random.default_rng(0).integers(0,256,(256,256),dtype=np.uint8)
    assert np.array_equal(thesis_plane(np.dstack([a]*3)), thesis_plane(a))


@pytest.mark.parametrize('a',
                         [np.zeros((8,8,4),np.uint8), np.zeros((8,8)), np.zeros(8,np.uint8),
                          np.zeros((2,8,8,3),np.uint8), np.zeros((8,8),np.uint16)])
def test_thesis_plane_takes_8_bit_planes_only(a):
    with pytest.raises(ShapeError, match='expected uint8'): thesis_plane(a)


def test_grey_levels_keeps_bytes_and_scales_the_rest():
    b = np.random.default_rng(0).integers(0,256,(2,5,5))
    assert np.array_equal(grey_levels(b.astype(np.float32)), b)
    wide = grey_levels(b*16.+7)
    assert wide.dtype==np.uint8 and wide.min()==0 and wide.max()==255
    assert grey_levels(np.full((1,2,2), 500.)).max()==0


def test_thesis_slices_are_axial_and_in_order():
    data,mask = head()
    data = data.clip(0,255).round()
    scan,m = stored(data, mask, 'PIR')
    x,y = thesis_slices(scan, m)
    assert x.shape==y.shape==(12,128,128)
    for i in (0,5,11):
        assert np.array_equal(x[i], thesis_plane(np.moveaxis(data[:,i],0,-1).astype(np.uint8)))
        assert np.array_equal(y[i], thesis_plane(mask[i]))
