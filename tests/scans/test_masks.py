"Masks against scipy's independent implementations, on many random shapes, and the corners of the input space."
import numpy as np
import pytest
from scipy import ndimage

from neuroseg.core import ConfigError, InputError, ShapeError
from neuroseg.scans.masks import (CONNECTIVITY, boundary, check_mask, check_spacing, components, fill_holes,
                                  largest_component, lesion_stats, filter_components, volume_ml)

def random_masks(n, seed=0, ndims=(2,3)):
    "Masks of random shape and density, some of them speckle, some blobs, some empty or full."
    rng = np.random.default_rng(seed)
    for i in range(n):
        shape = tuple(rng.integers(1, 16, ndims[i%len(ndims)]))
        noise = rng.normal(size=shape)
        if i%3==0: noise = ndimage.gaussian_filter(noise, 1.)
        yield noise >= np.quantile(noise, rng.uniform(0, 1)) if i%10 else np.full(shape, i%20==0)

def structure(ndim, connectivity):
    return ndimage.generate_binary_structure(ndim, {4:1, 8:2, 6:1, 18:2, 26:3}[connectivity])

@pytest.mark.parametrize('ndim,connectivity', [(n,c) for n,cs in CONNECTIVITY.items() for c in cs])
def test_components_agree_with_scipy(ndim, connectivity):
    for mask in random_masks(60, seed=connectivity, ndims=(ndim,)):
        labels, n = components(mask, connectivity=connectivity)
        expected, m = ndimage.label(mask, structure(ndim, connectivity))
        assert n==m and labels.shape==mask.shape and np.array_equal(labels>0, mask)
        # one label of ours for each of theirs
        assert len(set(zip(labels.ravel().tolist(), expected.ravel().tolist())))==n+(not mask.all())
        assert sorted(np.unique(labels))==list(range(0 if not mask.all() else 1, n+1))

def test_default_connectivity_is_full():
    diagonal = np.eye(3, dtype=bool)
    assert components(diagonal)[1]==1
    corner = np.zeros((2,2,2), bool); corner[0,0,0] = corner[1,1,1] = True
    assert components(corner)[1]==1 and components(corner, connectivity=18)[1]==2

@pytest.mark.parametrize('mask',
                         [np.asfortranarray(np.eye(4, dtype=bool)), np.eye(8, dtype=bool)[::2,::2],
                          np.eye(4, dtype=bool)[::-1]])
def test_memory_layout_does_not_matter(mask):
    assert components(mask)[1]==components(mask.copy())[1]==1
    assert np.array_equal(fill_holes(mask), mask) and np.array_equal(boundary(mask), mask)

def test_largest_component():
    for mask in random_masks(80, seed=1):
        largest = largest_component(mask)
        labels, n = ndimage.label(mask, structure(mask.ndim, CONNECTIVITY[mask.ndim][0]))
        sizes = np.bincount(labels.ravel(), minlength=n+1)[1:]
        assert largest.dtype==bool and not (largest & ~mask).any()
        assert largest.sum()==(sizes.max() if n else 0) and components(largest)[1]==min(n, 1)

def test_operations_that_change_nothing_the_second_time():
    for mask in random_masks(60, seed=3):
        for f in (largest_component, fill_holes):
            once = f(mask)
            assert np.array_equal(f(once), once)

def test_fill_holes_agrees_with_scipy_slice_by_slice():
    for mask in random_masks(120, seed=4):
        slices = mask if mask.ndim==3 else mask[None]
        expected = np.stack([ndimage.binary_fill_holes(m) for m in slices])
        assert np.array_equal(fill_holes(mask), expected if mask.ndim==3 else expected[0])

def test_fill_holes_is_not_three_dimensional():
    """A cavity closed within its slice is filled although the slice above is open; one open in its slice is not,
    although the slices above and below close it."""
    ring = np.ones((3,3), bool); ring[1,1] = False
    gap = ring.copy(); gap[1,2] = False
    assert fill_holes(np.stack([ring, np.zeros((3,3), bool)])).sum()==9
    assert np.array_equal(fill_holes(np.stack([np.ones((3,3), bool), gap, np.ones((3,3), bool)]))[1], gap)

def test_boundary_agrees_with_scipy_erosion():
    for mask in random_masks(120, seed=5):
        expected = mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(mask.ndim, 1))
        assert np.array_equal(boundary(mask), expected)

def test_inputs_are_not_changed():
    for mask in random_masks(20, seed=6):
        before = mask.copy()
        for f in (largest_component, fill_holes, boundary, lesion_stats): f(mask)
        assert np.array_equal(mask, before)

def test_results_are_new_arrays():
    mask = np.zeros((3,4,4), bool); mask[1,1:3,1:3] = True
    for f in (largest_component, fill_holes, boundary):
        out = f(mask); out[:] = True
        assert mask.sum()==4

@pytest.mark.parametrize('shape', [(0,5), (0,4,4), (3,0,4)])
def test_arrays_without_pixels(shape):
    mask = np.zeros(shape, bool)
    assert components(mask)[1]==0
    for f in (largest_component, fill_holes, boundary): assert f(mask).shape==shape
    assert lesion_stats(mask)['n_px']==0

def test_volume_by_hand():
    mask = np.zeros((3,4,5), bool); mask[1,1:3,1:4] = True # 6 voxels of 5 x 0.5 x 2 mm
    assert volume_ml(mask, (5,.5,2))==pytest.approx(.03)
    assert volume_ml(mask, np.array([5,.5,2]))==pytest.approx(.03)
    assert volume_ml(~mask, (5,.5,2))+volume_ml(mask, (5,.5,2))==pytest.approx(60*5/1000)

def test_volume_scales_with_each_axis_and_ignores_flips():
    for mask in random_masks(20, seed=7, ndims=(3,)):
        v = volume_ml(mask, (5,1,2))
        for axis in range(3):
            spacing = [5,1,2]; spacing[axis] *= 3
            assert volume_ml(mask, spacing)==pytest.approx(3*v)
            assert volume_ml(np.flip(mask, axis), (5,1,2))==v
        assert volume_ml(mask.transpose(2,0,1), (2,5,1))==pytest.approx(v)

@pytest.mark.parametrize('spacing,error',
                         [((1,1), ShapeError), (1., ShapeError), ((1,1,1,1), ShapeError), ((1,1,0), InputError),
    ((1,1,-1), InputError), ((1,1,float('nan')), InputError), ((1,1,float('inf')), InputError)])
def test_bad_spacing(spacing, error):
    with pytest.raises(error, match='spacing_mm'): volume_ml(np.ones((2,2,2), bool), spacing)
    with pytest.raises(error, match='spacing_mm'): check_spacing(spacing, 3)
    with pytest.raises(error, match='spacing_mm'): lesion_stats(np.ones((2,2,2), bool), spacing)

@pytest.mark.parametrize('bad',
                         [np.zeros((2,2), np.uint8), np.zeros((2,2), float), np.full((2,2), 255, np.uint8), [[0,1]]])
@pytest.mark.parametrize('f', [check_mask, components, largest_component, fill_holes, boundary, lesion_stats])
def test_only_booleans_are_masks(f, bad):
    with pytest.raises(InputError, match='a mask is boolean'): f(bad)

@pytest.mark.parametrize('shape', [(), (4,), (1,2,2,2)])
def test_only_slices_and_volumes_are_masks(shape):
    for f in (components, fill_holes, boundary, lesion_stats):
        with pytest.raises(ShapeError): f(np.zeros(shape, bool))

def test_torch_masks_are_taken():
    torch = pytest.importorskip('torch')
    assert components(torch.eye(3)>0)[1]==1

def test_wrong_connectivity():
    for ndim,c in ((2,6), (2,26), (3,8), (3,0)):
        with pytest.raises(ConfigError, match=f'connectivity={c}'): components(np.ones((2,)*ndim, bool), connectivity=c)

def test_lesion_stats_by_hand():
    mask = np.zeros((4,6,6), bool)
    mask[1,1:3,1:3] = mask[2,1:3,1:3] = True # 8 voxels
    mask[3,5,5] = True # and one on its own
    assert lesion_stats(mask, (5,1,1))==dict(n_px=9, n_slices=3, n_components=2, largest_px=8, area_px=[0,4,4,1],
                                             volume_ml=.045, largest_ml=.04)
    assert lesion_stats(mask[2])==dict(n_px=4, n_slices=1, n_components=1, largest_px=4, area_px=[4], volume_ml=None,
                                       largest_ml=None)
    assert lesion_stats(mask & False, (5,1,1))==dict(n_px=0, n_slices=0, n_components=0, largest_px=0, area_px=[0]*4,
                                                     volume_ml=0, largest_ml=0)


@pytest.mark.parametrize('share', [0, .2, .5, .9, 1])
def test_filter_components_by_hand(share):
    rng = np.random.default_rng(int(share*10))
    for mask in random_masks(40, seed=7):
        weight = rng.random(mask.shape)+.01
        labels, n = ndimage.label(mask, structure(mask.ndim, CONNECTIVITY[mask.ndim][0]))
        mass = [weight[labels==i].sum() for i in range(1, n+1)]
        expected = np.isin(labels, [i for i,m in enumerate(mass, 1) if m >= share*max(mass)])
        assert np.array_equal(filter_components(mask, weight, share=share), expected)

def test_filter_components_keeps_equals_and_is_stable():
    two = np.array([[1,0,1,1,0,1,1]], bool)
    assert filter_components(two, share=1).sum()==4
    assert np.array_equal(filter_components(filter_components(two, share=1), share=1), filter_components(two, share=1))
    # all weights are zero: no component is lighter than another
    assert filter_components(two, np.zeros(two.shape), share=.5).sum()==5
    for share in (-.1, 1.1, float('nan')):
        with pytest.raises(ConfigError, match='share='): filter_components(two, share=share)
