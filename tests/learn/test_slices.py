"Slices in memory: neighbours stay within the patient, draws are fair, augmentation is honest, the cache never lies."
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch')
from PIL import Image

from neuroseg.cohorts.cases import find_cases
from neuroseg.core import ConfigError, NeurosegError, ShapeError
from neuroseg.learn.slices import SliceSet, batch, cache_key, draw_epoch, prepare_case, slice_set, thesis_set
from neuroseg.learn.augmentation import Augment, augment, change_intensity, sequence_dropout, paste_lesions, random_grid
from neuroseg.scans.preparation import Prep, thesis_plane
from neuroseg.cohorts.splits import thesis_split

STILL = Augment(**{f: 0. for f in Augment.__dataclass_fields__})


def invented(lengths=(4,9,1,6), context=1, channels=3, seed=0, size=8):
    "Slices whose grey level is their number in the set, so that a batch shows where its channels came from."
    n,rng = sum(lengths),np.random.default_rng(seed)
    x = np.broadcast_to(np.arange(n, dtype=np.uint8)[:,None,None,None], (n,channels,size,size)).copy()
    y = (rng.random(n)<.4)[:,None,None].repeat(size,1).repeat(size,2).astype(np.uint8)*255
    return SliceSet(x, y, np.cumsum([0,*lengths]), rng.integers(1,4,len(lengths)),
                    tuple(f'P{i}' for i in range(len(lengths))), context)


def save_case(folder, number, n=5, seed=0, px=48, grey=False):
    "One patient of the LGG layout, a disc with a bright square."
    name = f'TCGA_PH_{number:04}_20000101'
    rng,where = np.random.default_rng([seed,number]),folder/name
    where.mkdir(parents=True)
    r,c = np.mgrid[:px,:px]
    for i in range(1,n+1):
        m = np.zeros((px,px), bool); m[15:25,12+number:20+number] = i%2
        im = np.stack([((r-px/2)**2+(c-px/2)**2<(px*.45)**2)*(80+20*k) + m*(70 if k==1 else 5)
                       + rng.integers(0,8,(px,px)) for k in range(3)], -1).astype(np.uint8)
        Image.fromarray(im[...,1] if grey else im).save(where/f'{name}_{i}.tif')
        Image.fromarray(m.astype(np.uint8)*255).save(where/f'{name}_{i}_mask.tif')


@pytest.fixture
def cohort(tmp_path):
    for number in (1,2,3): save_case(tmp_path/'kaggle_3m', number)
    return find_cases(tmp_path/'kaggle_3m')


# --- batches

@pytest.mark.parametrize('context', [0,1,2])
def test_batches_against_plain_loops(context):
    s = invented(context=context)
    idx = np.random.default_rng(1).permutation(len(s))
    x,y = batch(s, idx)
    assert x.shape==(len(s), s.n_channels, 8, 8) and x.dtype==torch.float32
    for row,i in zip((x*255).round().int()[:,:,0,0].tolist(), idx):
        c = s.case_of[i]; lo,hi,step = s.starts[c],s.starts[c+1]-1,s.steps[c]
        assert row==[i]*3 + [min(max(i+d*k*step,lo),hi) for k in range(1,context+1) for d in (-1,1)]
    assert torch.equal(y[:,0]*255, torch.from_numpy(s.y[idx]).float())


def test_no_neighbour_from_another_patient():
    s = invented((3,1,5,2), context=2)
    x,_ = batch(s, np.arange(len(s)))
    for i,row in enumerate((x*255).round().int()[:,:,0,0].numpy()): assert set(s.case_of[row])=={s.case_of[i]}


def test_a_batch_is_a_copy():
    s = invented()
    before = s.fingerprint()
    x,y = batch(s, [0,1]); x.fill_(.5); y.fill_(.5)
    assert s.fingerprint()==before


@pytest.mark.parametrize('change', [dict(patients=('P0','P1','P2','Q')), dict(context=2),
                                    dict(steps=np.array([1,1,1,9])), dict(starts=np.array([0,4,12,14,20]))])
def test_fingerprints_see_every_field(change):
    assert replace(invented(), **change).fingerprint()!=invented().fingerprint()


def test_fingerprints_see_every_pixel():
    a,b = invented(),invented()
    b.y[7,3,3] ^= 255
    assert a.fingerprint()!=b.fingerprint()
    assert invented().fingerprint()==a.fingerprint()


# --- epochs

@pytest.mark.parametrize('n', [None, 7, 20, 137])
@pytest.mark.parametrize('empty_weight', [.2, .5, 1.])
def test_each_slice_comes_floor_or_ceil_of_its_share(n, empty_weight):
    s = invented((30,4,11,50), seed=3)
    w = np.where(s.has_tumour, 1., empty_weight)/np.sqrt(np.diff(s.starts)[s.case_of])
    expected = w/w.sum()*(n or len(s))
    for seed in range(20):
        drawn = draw_epoch(s, np.random.default_rng(seed), n=n, empty_weight=empty_weight)
        counts = np.bincount(drawn, minlength=len(s))
        assert len(drawn)==(n or len(s))
        assert (counts>=np.floor(expected-1e-9)).all()
        assert (counts<=np.ceil(expected+1e-9)).all()


def test_draws_follow_their_generator():
    s = invented()
    a,b,c = (draw_epoch(s, np.random.default_rng(k)) for k in (0,0,1))
    assert np.array_equal(a,b) and not np.array_equal(a,c)


def test_a_set_without_tumour_can_be_drawn_from():
    s = replace(invented(), y=np.zeros((20,8,8),np.uint8))
    assert sorted(draw_epoch(s, np.random.default_rng(0), n=500, empty_weight=.3))[-1]==19


def test_long_patients_weigh_by_the_root():
    s = replace(invented((100,25,4)), y=np.zeros((129,8,8),np.uint8))
    per_case = np.bincount(s.case_of[draw_epoch(s, np.random.default_rng(0), n=17_000)], minlength=3)
    assert per_case == pytest.approx(np.array([10,5,2])*1000, abs=3)


# --- augmentation

def images(b=6, c=5, side=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.rand(b,c,side,side,generator=g), (torch.rand(b,1,side,side,generator=g)>.7).float()


def test_a_seed_fixes_an_augmentation():
    x,y = images()
    runs = []
    for seed in (0,0,1): torch.manual_seed(seed); runs.append(augment(x,y))
    assert all(torch.equal(a,b) for a,b in zip(runs[0],runs[1])) and not torch.equal(runs[0][0],runs[2][0])


@pytest.mark.parametrize('channels', [3,5,7])
def test_augmentation_keeps_shape_range_and_its_input(channels):
    x,y = images(c=channels)
    x0,y0 = x.clone(),y.clone()
    ax,ay = augment(x,y)
    assert ax.shape==x.shape and ay.shape==y.shape and torch.equal(x,x0) and torch.equal(y,y0)
    for t in (ax,ay): assert 0<=t.min() and t.max()<=1 and t.isfinite().all()


def test_image_and_mask_move_together():
    _,y = images()
    blocks = torch.nn.functional.interpolate(torch.rand(6,1,5,5), size=40, mode='nearest')
    geometry = replace(Augment(), gain=0, gamma=0, bias=0, noise=0, blur=0, paste=0)
    ax,ay = augment(blocks.expand(-1,5,-1,-1), blocks, geometry)
    for c in range(5): assert torch.allclose(ax[:,c:c+1].clamp(1e-4,1), ay.clamp(1e-4,1), atol=1e-5)


def test_nothing_changes_when_everything_is_off():
    x,y = images(c=3)
    ax,ay = augment(x,y,STILL)
    assert torch.allclose(ax, x.clamp(1e-4,1), atol=1e-4) and torch.allclose(ay,y,atol=1e-4)


def test_turned_images_are_turned_by_no_more_than_asked():
    grid = random_grid(200, 33, replace(STILL, rotate_deg=15.))
    right = grid[:,16,-1]-grid[:,16,0] # where the middle row runs
    deg = torch.rad2deg(torch.atan2(right[:,1],right[:,0]))
    assert deg.abs().max()<=15.01 and deg.max()>10 and deg.min()<-10


@pytest.mark.parametrize('channels', [3,5,7])
def test_lost_sequences_are_flair_and_flair_is_kept(channels):
    x,_ = images(b=400, c=channels, side=4)
    out = sequence_dropout(x, Augment(flair_only=.3))
    assert torch.equal(out[:,1], x[:,1])
    same = lambda ch: (out[:,ch]==x[:,1]).all((1,2))
    both,pre,post = same(0)&same(2), same(0)&~same(2), same(2)&~same(0)
    assert both.float().mean()==pytest.approx(.3, abs=.08)
    assert pre.float().mean()==pytest.approx(.05, abs=.04)
    assert post.float().mean()==pytest.approx(.05, abs=.04)
    kept = ~same(0)
    assert torch.equal(out[kept,0], x[kept,0])


def test_neighbours_swap_sides_together():
    x = torch.arange(7.).reshape(1,7,1,1).repeat(300,1,1,1)
    out = sequence_dropout(x, STILL)[:,3:,0,0]
    assert {tuple(r) for r in out.tolist()}=={(3,4,5,6),(4,3,6,5)}
    assert (out[:,0]==4).float().mean()==pytest.approx(.5, abs=.1)


def test_intensity_treats_flair_and_its_neighbours_alike():
    x = torch.rand(8,1,16,16).expand(-1,7,-1,-1)
    out = change_intensity(x, replace(Augment(), noise=0))
    for c in (3,4,5,6): assert torch.equal(out[:,c], out[:,1])
    assert not torch.equal(out[:,0], out[:,1])


def test_augmenting_the_thesis_slices_is_refused():
    with pytest.raises(ShapeError, match='train with `augment=None`'): augment(torch.rand(2,1,8,8), torch.rand(2,1,8,8))


# --- prepared once

def test_a_set_holds_every_slice_in_order(cohort, tmp_path):
    s = slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False)
    parts = [prepare_case(c, Prep(size_px=32)) for c in cohort]
    assert np.array_equal(s.x, np.concatenate([p[0] for p in parts]))
    assert np.array_equal(s.y, np.concatenate([p[1] for p in parts]))
    assert s.patients==('TCGA_PH_0001','TCGA_PH_0002','TCGA_PH_0003') and list(s.starts)==[0,5,10,15]


def test_the_order_of_cases_is_part_of_the_key(cohort, tmp_path):
    "Patients must never be attached to another order's slices."
    for cases in (cohort, cohort[::-1], cohort[1:]):
        s = slice_set(cases, Prep(size_px=32), cache=tmp_path/'c', progress=False)
        for i,c in enumerate(cases):
            assert np.array_equal(s.x[s.starts[i]:s.starts[i+1]], prepare_case(c, Prep(size_px=32))[0])
    assert len(list((tmp_path/'c').iterdir()))==3


def test_a_changed_mask_is_prepared_anew(cohort, tmp_path):
    a = slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False)
    Image.fromarray(np.zeros((48,48),np.uint8)).save(cohort[0].masks[0])
    b = slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False)
    assert a.y[0].any() and not b.y[0].any() and np.array_equal(a.x, b.x)


@pytest.mark.parametrize('damage',
                         [lambda b: b[:100], lambda b: b'', lambda b: b'PK\x03\x04 and nothing', lambda b: b[:-40]])
def test_a_damaged_cache_is_made_anew(cohort, tmp_path, damage):
    a = slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False)
    file = min((tmp_path/'c').iterdir())
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False).fingerprint()==a.fingerprint()
    assert len(file.read_bytes())==len(whole)


def test_the_cache_is_read(cohort, tmp_path, monkeypatch):
    slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False)
    monkeypatch.setattr('neuroseg.learn.slices.prepare_case', None)
    assert len(slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False))==15


def test_a_cache_that_cannot_be_written_says_so(cohort, tmp_path):
    (tmp_path/'file').write_text('in the way')
    with pytest.raises(NeurosegError, match='cannot write'):
        slice_set(cohort, Prep(size_px=32), cache=tmp_path/'file', progress=False)


def test_keys_see_the_settings(cohort):
    keys = {cache_key(cohort, p) for p in (Prep(), Prep(size_px=32), Prep(context=2), Prep(clip=(0.,100.)),
                                           Prep(margin=.1), Prep(context_mm=3.))}
    assert len(keys)==6


# --- the thesis' slices

def test_thesis_slices_are_pillows(cohort):
    t = thesis_set(cohort, progress=False)
    files = [f for c in cohort for f in c.images]
    masks = [f for c in cohort for f in c.masks]
    assert t.x.shape==(15,1,128,128) and t.context==0
    for i in (0,7,14):
        assert np.array_equal(t.x[i,0], thesis_plane(np.asarray(Image.open(files[i]))))
        assert np.array_equal(t.y[i], thesis_plane(np.asarray(Image.open(masks[i]))))


def test_thesis_slices_of_grey_pictures(tmp_path):
    save_case(tmp_path/'kaggle_3m', 1, grey=True)
    case, = find_cases(tmp_path/'kaggle_3m')
    assert np.array_equal(thesis_set([case], progress=False).x[2,0],
                          thesis_plane(np.asarray(Image.open(case.images[2]))))


@pytest.mark.parametrize('idx', [[3,0,14], np.array([7]), slice(2,9,3), np.arange(15)%2==0, []])
def test_taken_slices_keep_their_order_and_patient(cohort, idx):
    t = thesis_set(cohort, progress=False)
    where = np.arange(15)[idx] if len(np.atleast_1d(np.array(idx, dtype=object))) else np.array([], int)
    got = t.take(idx if len(where) else where)
    assert np.array_equal(got.x, t.x[where])
    assert got.patients==tuple(t.patients[i//5] for i in where)
    assert len(got.starts)==len(where)+1
    if len(where): assert torch.equal(batch(got, np.arange(len(where)))[0], batch(t, where)[0])


def test_the_thesis_split_leaks_and_shows_it(cohort):
    t = thesis_set(cohort, progress=False)
    train,test = (t.take(i) for i in thesis_split(len(t)))
    assert len(train)+len(test)==15 and set(train.patients)&set(test.patients)


def test_slices_that_are_taken_keep_their_neighbours_and_their_order(cohort, tmp_path):
    s = slice_set(cohort, Prep(size_px=32), cache=tmp_path/'c', progress=False)
    idx = np.array([len(s)-1, 0, s.starts[1], s.starts[1]-1, 3]) # ends of volumes, too
    taken = s.take(idx)
    for mine,theirs in zip(batch(taken, np.arange(len(idx))), batch(s, idx)):
        np.testing.assert_array_equal(mine, theirs)
    assert taken.patients == tuple(s.patients[i] for i in s.case_of[idx]) and taken.shrunk(16).x.shape == (5,5,16,16)
    assert slice_set(cohort, Prep(size_px=32, context=0), cache=tmp_path/'c',
                     progress=False).take([4,2]).x.shape==(2,3,32,32)


@pytest.mark.parametrize('make', [slice_set, thesis_set])
def test_no_case_is_a_mistake(make):
    with pytest.raises(ConfigError, match='no case was given'): make([], progress=False)


def heads_with_lesions(n=8, side=64):
    "Round heads of one grey, every second one with a brighter lesion; and the masks."
    yy,xx = torch.meshgrid(torch.linspace(-1,1,side), torch.linspace(-1,1,side), indexing='ij')
    head,lesion = (yy**2+xx**2<.7).float(), ((yy+.2)**2+(xx-.3)**2<.02).float()
    y = torch.stack([lesion*(i%2) for i in range(n)])[:,None]
    return head*.3 + .5*y.expand(-1,5,-1,-1), y, head


@pytest.mark.parametrize('seed', range(5))
def test_pasted_lesions_lie_in_the_head_and_bring_their_grey_levels(seed):
    x,y,head = heads_with_lesions()
    torch.manual_seed(seed)
    nx,ny = paste_lesions(x, y, replace(STILL, paste=1.))
    added = (ny-y)[:,0]
    assert added.sum()>0 and (added*(1-head)).sum()<=.05*added.sum()+1e-6
    core = -torch.nn.functional.max_pool2d(-(added[:,None]>.99).float(), 3, 1, 1)[:,0]>0
    assert core.any() and torch.allclose(nx[:,1][core], torch.tensor(.8), atol=.02)
    torch.manual_seed(seed)
    assert torch.equal(paste_lesions(x, y, replace(STILL, paste=1.))[0], nx)


def test_pasting_happens_as_often_as_asked():
    x,y,_ = heads_with_lesions(64)
    torch.manual_seed(0)
    often = [sum((paste_lesions(x, y, replace(STILL, paste=p))[1]!=y).flatten(1).any(1).sum().item() for _ in range(5))
             for p in (0., .3, 1.)]
    assert often[0]==0 and .15*often[2]<often[1]<.5*often[2]
