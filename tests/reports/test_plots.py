"Figures: readable when small, told apart by everybody, the same bytes in every process."
import itertools, os, subprocess, sys

import numpy as np
import pytest

pd = pytest.importorskip('pandas')
pytest.importorskip('matplotlib')
from conftest import ROOT
from neuroseg.core import ConfigError, InputError, ShapeError, sha256_file, write_json
from neuroseg.reports import network_drawing, plots, stored_run, study_notebook
from neuroseg.reports.study_notebook import study_cells


@pytest.fixture(scope='module')
def patients():
    rng, n = np.random.default_rng(0), 30
    rows = dict(patient=[f'PH_{i:04}' for i in range(n)], institution=rng.choice(['DU', 'HT', 'CS', 'FG', 'EZ'], n),
                fold=np.arange(n)%5, n_slices=rng.integers(20, 80, n), lesion_px=rng.lognormal(9.6, 1, n).astype(int),
                dice=rng.beta(6, 1.6, n))
    return pd.DataFrame(rows).assign(n_tumour=lambda f: (f['n_slices']*.35).astype(int))


@pytest.fixture(scope='module')
def history():
    return pd.DataFrame([dict(epoch=e, train_loss=.9**e, valid_loss=.93**e+.01*max(e-12, 0), train_dice=1-.9**e,
                              pooled_dice=.9-.9**e*.8) for e in range(18)])


@pytest.fixture(scope='module')
def exploration():
    "The figures of study 20, which draws the cohort."
    return study_cells(study_notebook.find_study('exploration', ROOT)).figures


@pytest.fixture
def cohort_run(tmp_path):
    "A made-up run of study 20."
    def make(patients):
        run = tmp_path/'run'
        run.mkdir(exist_ok=True)
        patients.to_csv(run/'patients.csv', index=False)
        return run
    return make


@pytest.fixture(scope='module')
def networks():
    torch = pytest.importorskip('torch')
    from neuroseg.learn.networks import ThesisUnet
    return torch, network_drawing.trace_network(ThesisUnet(1, widths=(64,128,256)), (1,64,64))


@pytest.fixture(scope='module')
def drawn(patients, history, networks, exploration):
    "One of each figure: the shared ones on made-up rows, those of study 20 on its stored run."
    grey = np.random.default_rng(1).integers(0, 255, (64,64)).astype(np.uint8)
    mask = np.zeros((64,64), bool)
    mask[20:40,20:40] = True
    both = pd.concat([patients.assign(model='all sequences'), patients.assign(model='FLAIR only')])
    of_cohort = {name: draw(ROOT/'reports/20_exploration/cpu') for name, draw in exploration.items()}
    return of_cohort | {
        'training_curves': plots.training_curves(history), 'architecture': network_drawing.architecture(networks[1]),
        'dice_strip': plots.dice_strip(both, by='model'), 'montage': plots.montage([grey]*4, list('abcd')),
        'triptych': plots.triptych([plots.triptych_panel(grey, mask, mask)]*2, ['Dice 0.9', 'Dice 0.8'])}


def renderer_of(fig):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw(renderer)
    return renderer


def test_letters_stay_readable_at_300_pixels(drawn):
    from matplotlib.text import Text
    small = {name: min(t.get_fontsize()/72*300/fig.get_size_inches()[0]
                       for t in fig.findobj(Text) if t.get_text().strip()) for name,fig in drawn.items()}
    assert min(small.values()) >= 6.5, small


def test_nothing_is_cut_off(drawn):
    cut = {}
    for name, fig in drawn.items():
        box, (wide, high) = fig.get_tightbbox(renderer_of(fig)), fig.get_size_inches()
        if min(box.x0, box.y0, wide-box.x1, high-box.y1) < -.01: cut[name] = (box.x0, box.y0, wide-box.x1, high-box.y1)
    assert cut == {}


def test_tick_labels_do_not_overlap(drawn):
    bad = []
    for name, fig in drawn.items():
        renderer = renderer_of(fig)
        for axis in (a for ax in fig.axes if ax.axison for a in (ax.xaxis, ax.yaxis)):
            lo, hi = sorted(axis.get_view_interval())
            ticks = [t for t in axis.get_major_ticks()+axis.get_minor_ticks() if lo <= t.get_loc() <= hi]
            shown = [t.label1 for t in ticks if t.label1.get_visible() and t.label1.get_text()]
            boxes = [(label.get_text(), label.get_window_extent(renderer)) for label in shown]
            bad += [(name, a, b) for (a, at), (b, other) in itertools.combinations(boxes, 2) if at.overlaps(other)]
    assert bad == []


def test_the_checks_of_text_can_fail():
    fig, ax = plots.new_figure(width_in=4, height_in=2)
    # hidden from the layout, which would make room
    text = ax.text(.9, .5, 'a label that leaves the figure at its right', in_layout=False)
    renderer = renderer_of(fig)
    assert fig.get_tightbbox(renderer).x1 <= 4
    text.set_in_layout(True)
    assert fig.get_tightbbox(renderer).x1 > 4


# Machado, Oliveira, Fernandes 2009, severity 1: linear RGB as protanopes, deuteranopes and tritanopes see it
SEEN_AS = {'protan': [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
           'deutan': [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
           'tritan': [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]}


def lab(rgb, seen_as):
    "CIE L*a*b* of an sRGB colour, as somebody sees it."
    c = np.array(rgb)/255
    c = np.where(c <= .04045, c/12.92, ((c+.055)/1.055)**2.4)
    c = np.clip(np.array(SEEN_AS.get(seen_as, np.eye(3))) @ c, 0, 1)
    xyz = np.array([[.4124,.3576,.1805], [.2126,.7152,.0722], [.0193,.1192,.9505]]) @ c / [.9505, 1, 1.089]
    f = np.where(xyz > .008856, np.cbrt(xyz), 7.787*xyz+16/116)
    return np.array([116*f[1]-16, 500*(f[0]-f[1]), 200*(f[1]-f[2])])


@pytest.mark.parametrize('eye', ['normal', *SEEN_AS])
@pytest.mark.parametrize('a,b', [('train', 'valid'), ('true', 'pred'), *itertools.combinations(plots.SERIES[:4], 2)])
def test_colours_are_told_apart(a, b, eye):
    assert np.linalg.norm(lab(plots.rgb(a), eye) - lab(plots.rgb(b), eye)) > 15


def test_the_check_of_colours_can_fail():
    red, olive = (255,0,0), (160,120,0)
    seen = {eye: np.linalg.norm(lab(red, eye) - lab(olive, eye)) for eye in ('deutan', 'normal')}
    assert seen['deutan'] < 15 < seen['normal']


CODE = '''
import sys
from neuroseg.reports.plots import dice_strip, save_figure
rows = [dict(model='AB'[i%2], dice=.1*i) for i in range(9)]
save_figure(dice_strip(rows, by='model'), sys.argv[1])
'''


@pytest.mark.parametrize('kind', ['png', 'svg', 'pdf'])
def test_another_process_draws_the_same_bytes(tmp_path, root, kind):
    def run(name, **env):
        subprocess.run([sys.executable, '-W', 'error', '-c', CODE, str(tmp_path/name)], check=True, cwd=root,
                       env={**os.environ, **env})
        return sha256_file(tmp_path/name)
    (tmp_path/'matplotlibrc').write_text('font.size: 20\naxes.facecolor: yellow\nsavefig.dpi: 300\n')
    assert run(f'a.{kind}', PYTHONHASHSEED='1') == run(f'b.{kind}', PYTHONHASHSEED='2',
                                                       MATPLOTLIBRC=str(tmp_path/'matplotlibrc'))


def test_drawing_leaves_the_readers_settings_alone(patients):
    import matplotlib as mpl
    before = dict(mpl.rcParams)
    plots.dice_strip(patients)
    with pytest.raises(InputError): plots.dice_strip([])
    assert dict(mpl.rcParams) == before
    assert 'matplotlib.pyplot' not in sys.modules or not sys.modules['matplotlib.pyplot'].get_fignums()


# The network as it is traced

def test_skips_are_those_of_the_module(networks):
    _, rows = networks
    step = {r['step']: r for r in rows}
    for join in (r for r in rows if r['op'] == 'join'):
        source, up = step[join['skip_from']], step[join['step']-1]
        assert (source['height'], up['op']) == (join['height'], 'up')
        assert source['channels'] + up['channels'] == join['channels']


def test_a_residual_sum_is_followed_through(networks):
    torch, _ = networks
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Conv2d(n, 4, 3, padding=1) for n in (2, 4, 8))
        def forward(self, x):
            x = self.a(x)
            x = x + self.b(x).relu() # handed on by an addition that belongs to no module
            y = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(x, 2), scale_factor=2)
            return self.c(torch.cat([y, x], 1))
    net = Net().train()
    rows = network_drawing.trace_network(net, (2,8,8))
    assert [r['op'] for r in rows] == ['input', 'conv', 'conv', 'pool', 'up', 'join', 'conv']
    assert rows[5]['skip_from'] == 2 and net.training
    assert rows[0]['parameters'] == sum(p.numel() for p in net.parameters())


def test_a_network_without_skips_or_with_one_resolution_is_drawn(networks):
    torch, _ = networks
    for net in (torch.nn.Conv2d(1, 1, 3, padding=1),
                torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3, stride=2, padding=1), torch.nn.Upsample(scale_factor=2))):
        assert len(network_drawing.architecture(net, (1,16,16)).axes[0].patches) >= 2


# Odd tables

def test_scores_that_are_missing_are_left_out_and_counted(patients):
    rows = patients.assign(dice=[np.nan, *patients['dice'][1:]])
    assert f'n = {len(patients)-1}: mean' in plots.dice_strip(rows).axes[0].texts[0].get_text()


def test_one_patient_is_drawn(patients, exploration, cohort_run):
    one = patients.head(1)
    assert plots.dice_strip(one).axes
    for name in ('slices_per_patient', 'lesion_by_institution', 'folds'): assert exploration[name](cohort_run(one)).axes


def test_institutions_may_be_unknown(patients, exploration, cohort_run):
    run = cohort_run(patients.assign(institution=None))
    labels = [t.get_text() for t in exploration['lesion_by_institution'](run).axes[0].get_yticklabels()]
    assert labels == [f'unknown  ({len(patients)})']
    assert exploration['slices_per_patient'](run).axes and exploration['folds'](run).axes


def test_drawings_of_the_cohort_count_right(patients, exploration, cohort_run):
    "Bars add up to the slices, stacked bars to the patients."
    run = cohort_run(patients)
    bars = [p for c in exploration['slices_per_patient'](run).axes[0].containers for p in c]
    assert sum(p.get_height() for p in bars) == patients['n_slices'].sum()+patients['n_tumour'].sum()
    assert sum(p.get_height() for p in exploration['folds'](run).axes[0].patches) == len(patients)


def test_curves_of_one_epoch_and_without_validation(history):
    assert len(plots.training_curves(history.head(1)).axes) == 2
    fig = plots.training_curves(history[['epoch', 'train_loss']])
    assert [l.get_label() for l in fig.axes[0].lines if not l.get_label().startswith('_')] == ['train']


def test_the_kept_epoch_is_the_one_given(history):
    dice = plots.training_curves(history, best=3).axes[1]
    assert dice.texts[0].get_text().strip() == 'epoch 4'


@pytest.mark.parametrize('kind', ['png', 'jpg', 'gif', ''])
def test_only_formats_without_a_date_are_written(tmp_path, kind, patients):
    path = tmp_path/f'a.{kind}'
    if kind == 'png': assert plots.save_figure(plots.dice_strip(patients), path).stat().st_size > 1000
    else:
        with pytest.raises(plots.OutputError, match='figures are stored as .png'):
            plots.save_figure(plots.dice_strip(patients), path)
        assert list(tmp_path.iterdir()) == []


def test_masks_of_another_size_are_refused():
    with pytest.raises(ShapeError): plots.triptych_panel(np.zeros((4,4)), np.zeros((4,4), bool), np.zeros((5,4), bool))


def test_missed_tumour_is_sky_and_wrong_tumour_orange():
    scan, true, pred = np.full((30,30), 100, np.uint8), np.zeros((30,30), bool), np.zeros((30,30), bool)
    true[5:15,5:15], pred[18:28,18:28] = True, True
    model = plots.triptych_panel(scan, true, pred, gap_px=0)[:,60:]
    assert tuple(model[5,8]) == plots.rgb('true') and tuple(model[18,20]) == plots.rgb('pred')
    inside = model[23,23].astype(int)
    # grey8 makes the flat scan white; only the prediction is filled
    assert inside[0] > inside[2] and tuple(model[10,10]) == (255,255,255)


def test_an_unknown_figure_is_named(tmp_path):
    write_json(tmp_path/'run.json', dict(study='28_deployment'))
    with pytest.raises(ConfigError, match="study 28_deployment has no figure 'y'; choose one of parts, warm"):
        stored_run.draw(tmp_path, 'y')
