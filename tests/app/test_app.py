"The application agrees with the library, keeps nothing, tells faults in a sentence. In a browser: test_browser.py."
import io, json, os, re, subprocess, sys, tempfile, zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pypdfium2
import pytest
from hostile import HOSTILE, dicom, nifti, png, put, zipped
from PIL import Image
from pydicom.data import get_testdata_file
from streamlit.testing.v1 import AppTest
from bright_model import bright, head, write_model, write_nifti

from neuroseg.app import main, received, serving, session, viewer
from neuroseg.app.i18n import LANGUAGES, figure, say
from neuroseg.app.pdf_report import report_pdf
from neuroseg.app.views import PLANES, picture, views
from neuroseg.core import InputError
from neuroseg.evaluation.metrics import hd95_mm, score_case
from neuroseg.scans.nifti import read_mask
from neuroseg.scans.dicom_phantom import write_phantom_study
from neuroseg.scans.phantom import sample_path
from neuroseg.scans.reading import Found, read_scan
from neuroseg.scans.video import read_video
from neuroseg.segmentation.batch import predict_cases
from neuroseg.segmentation.result import Segmenter

WAIT_S = 300


def forget():
    main.shared_card.clear()
    main.LOADED.clear()


@pytest.fixture(scope='module', autouse=True)
def card(tmp_path_factory):
    "The model that can be understood: tumour is where FLAIR is bright."
    path = write_model(tmp_path_factory.mktemp('model'), bright())
    before, os.environ['NEUROSEG_MODEL'] = os.environ.get('NEUROSEG_MODEL'), str(path)
    forget()
    yield path
    forget()
    os.environ.pop('NEUROSEG_MODEL')
    if before is not None: os.environ['NEUROSEG_MODEL'] = before


@pytest.fixture(scope='module')
def segmenter(card): return Segmenter(card)


def fresh(pictures=True):
    "The page, with pictures from the server or with the viewer in the browser."
    at = AppTest.from_file(main.__file__, default_timeout=WAIT_S)
    at.session_state.wants_pictures = pictures
    at.run()
    assert not at.exception
    return at


@pytest.fixture
def page(): return fresh()


@pytest.fixture
def volume(tmp_path): return write_nifti(tmp_path/'anna_flair.nii.gz', head()[0])


def upload(at, *files, key='scan files'):
    "Give the page files: paths, or pairs of name and content."
    files = [(f.name, f.read_bytes()) if isinstance(f, Path) else f for f in files]
    uploader = next(u for u in at.file_uploader if u.key.startswith(key))
    uploader.set_value([(name, data, 'application/octet-stream') for name, data in files]).run()
    assert not at.exception
    return at


def metrics(at): return {m.label: m.value for m in at.metric}


def slices(at): return int(metrics(at)['Slices'].split(' / ')[1]) # of the scan that is shown


def warned(at):
    "Warnings and notes of the page."
    boxes = [box for box in (*at.warning, *at.info) if box.value.startswith('- ')]
    return [w.removeprefix('- ') for box in boxes for w in box.value.split('\n')]


def slider(at, label): return next(s for s in at.slider if s.label == label)


def choose(at, kind, value):
    next(c for c in at.segmented_control if c.key.startswith(kind)).set_value(value).run()
    assert not at.exception
    return at


def slice_png(k, tmp_path):
    Image.fromarray(head()[0][k].astype(np.uint8)).save(tmp_path/f'slice_{k}.png')
    return tmp_path/f'slice_{k}.png'


def write_video(path, frames):
    import av
    with av.open(str(path), 'w') as box:
        s = box.add_stream('mpeg4', rate=10)
        s.height, s.width = frames.shape[1:]
        s.pix_fmt = 'yuv420p'
        for f in frames: box.mux(s.encode(av.VideoFrame.from_ndarray(f, format='gray').reformat(format='yuv420p')))
        box.mux(s.encode())
    return path


def series(n=6):
    "DICOM files of one series of `head`."
    v = head((n, 48, 40))[0].astype(np.uint16)*4
    return {f'IM{k}': dicom(Rows=48, Columns=40, PixelData=p.tobytes(), SOPInstanceUID=f'1.2.{k+1}', InstanceNumber=k,
                            PixelSpacing=[4., 4.], ImagePositionPatient=[0, 0, 5.*k],
                            ImageOrientationPatient=[1, 0, 0, 0, 1, 0]) for k, p in enumerate(v)}


# What the visitor sees -----------------------------------------------------------------------------------------------

def test_the_page_opens_with_the_notice_and_no_result(page):
    assert 'Not a medical device' in page.markdown[0].value
    assert any('bright 7' in m.value for m in page.sidebar.markdown)
    assert len(page.metric) == 0 and 'built-in sample' in page.info[0].value


def test_the_page_does_not_wait_for_the_network(monkeypatch):
    "Painted from the card, even if the network takes for ever to load."
    monkeypatch.setattr(main, 'load_ahead', lambda card: None)
    monkeypatch.setattr(main, 'Segmenter', None)
    forget()
    assert not fresh().error


def test_the_sample_in_one_click(page):
    page.button(key='sample').click().run()
    assert not page.exception and not page.error
    assert len(page.get('image')) == 2 and len(page.get('vega_lite_chart')) == 1
    assert slider(page, 'Slice').max == 24
    assert [c.key.split()[0] for c in page.main.segmented_control] == ['view', 'layer', 'sequence']


def test_the_application_agrees_with_the_library(page, volume, card, tmp_path):
    report, = predict_cases(volume, tmp_path/'out', model=card)
    upload(page, volume)
    assert metrics(page) == {'Lesion, mL': f"{report['volume_ml']:.1f}", 'Confidence': f"{report['confidence']:.2f}",
                             'Slices': f"{len(report['lesion_slices'])} / 12",
                             'Components': str(report['n_components'])}
    assert warned(page) == [w['text'] for w in report['warnings']]


def test_the_threshold_slider_cuts_the_same_probabilities_elsewhere(page, volume, monkeypatch):
    upload(page, volume)
    monkeypatch.setattr(session, 'segment_found', None) # the network does not run again
    ml = [float(metrics(page)['Lesion, mL'])]
    for t in (.05, .95):
        slider(page, 'Threshold').set_value(t).run()
        assert not page.exception and not page.error
        ml.append(float(metrics(page)['Lesion, mL']))
    assert ml[1] > ml[0] > ml[2] > 0


def test_the_slice_that_is_shown_first_holds_the_most_lesion(page, volume):
    lesion = head()[1]
    upload(page, volume)
    assert slider(page, 'Slice').value == lesion.sum((1, 2)).argmax()+1


AFFINES = dict(axial=np.diag([-1., -1., 4., 1.]),
               turned=np.array([[0, 0, 2., 0], [1., 0, 0, 0], [0, 1., 0, 0], [0, 0, 0, 1]]),
               sagittal=np.array([[0, 0, -3., 9], [-1., 0, 0, 5], [0, -1., 0, 7], [0, 0, 0, 1]]),
               oblique=np.array([[.98, -.2, 0, 3], [.2, .98, .1, -4], [0, -.1, 4, 8], [0, 0, 0, 1]]))


@pytest.mark.parametrize('affine', AFFINES.values(), ids=AFFINES)
def test_right_is_right_whatever_way_the_volume_is_stored(affine, tmp_path):
    "A bright spot at the patient's right, front and top lies where the letters R, A and S are."
    v = head((30, 40, 32))[0]
    # millimetres to the right, front and top of each voxel
    at = np.moveaxis(np.indices(v.shape), 0, -1)[..., ::-1] @ affine[:3, :3].T
    v[(at > np.percentile(at, 70, axis=(0, 1, 2))).all(-1)] = 900
    shown = views(read_scan(write_nifti(tmp_path/'v_flair.nii.gz', v, affine)))
    z, y, x = (np.argwhere(shown.volumes['flair'] > 250).mean(0)/shown.shape)
    assert shown.sides and z > .6 and y < .4 and x < .4
    for plane, up, left in (('axial', 'A', 'R'), ('coronal', 'S', 'R'), ('sagittal', 'S', 'A')):
        k = int(dict(axial=z, coronal=y, sagittal=x)[plane]*shown.shape[PLANES.index(plane)])
        plain, marked = (np.asarray(picture(shown, plane, k, letters=letters)).astype(int)
                         for letters in (' '*6, 'RLAPSI'))
        h, w = plain.shape
        upper_left, lower_right = plain[:int(.45*h), :int(.45*w)], plain[int(.55*h):, int(.55*w):]
        assert upper_left.mean() > 1.2*lower_right.mean(), 'the spot is up and left'
        for letter, box in ((up, np.s_[:30]), (left, np.s_[:, :30])):
            letters = ''.join(c if c == letter else ' ' for c in 'RLAPSI')
            only = np.asarray(picture(shown, plane, k, letters=letters)).astype(int)
            assert (only[box] != plain[box]).any() and (only != plain).sum() == (only[box] != plain[box]).sum()


def test_no_side_is_claimed_where_the_file_says_none(page, tmp_path):
    # both codes
    (tmp_path/'silent_flair.nii.gz').write_bytes(nifti(head()[0].transpose(2, 1, 0), change=put('<2h', 252, 0, 0)))
    upload(page, tmp_path/'silent_flair.nii.gz')
    assert any('left and right are not marked' in w for w in warned(page))
    assert not views(read_scan(tmp_path/'silent_flair.nii.gz')).sides


def test_three_planes_and_every_layer(page, volume):
    upload(page, volume)
    choose(page, 'view', 'planes_view')
    assert [s.max for s in page.slider if s.label in ('Axial', 'Coronal', 'Sagittal')] == [12, 96, 80]
    assert len(page.get('image')) == 3
    choose(page, 'layer', 'probability')
    slider(page, 'Window').set_value((20, 60)).run()
    assert not page.exception and not page.error and len(page.get('image')) == 3


def test_no_lesion(page, tmp_path):
    upload(page, write_nifti(tmp_path/'flat_flair.nii.gz',
                             np.minimum(head()[0], 60) + (np.indices((12, 96, 80)).sum(0)%3+.01)*(head()[0] > 50)))
    slider(page, 'Threshold').set_value(.98).run()
    assert metrics(page)['Lesion, mL'] == '0.0' and metrics(page)['Confidence'] == '–'
    assert any('does not exclude' in w for w in warned(page))


def test_pictures_as_slices_or_as_scans(page, tmp_path):
    upload(page, *(slice_png(k, tmp_path) for k in (9, 7, 8)))
    assert page.radio[0].label == 'The 3 pictures are' and slider(page, 'Slice').max == 3 and slices(page) == 3
    page.radio[0].set_value('separate').run()
    assert not page.exception
    assert page.selectbox[0].options == ['slice_7', 'slice_8', 'slice_9'] and slices(page) == 1
    assert 'Lesion, px' in metrics(page)


def test_three_sequences_of_one_patient(page):
    upload(page, *sorted(sample_path().glob('*_[pf]*.nii.gz')))
    assert (next(c for c in page.segmented_control if c.key.startswith('sequence')).options
            == ['T1', 'FLAIR', 'T1 contrast'])
    choose(page, 'sequence', 'post')


@pytest.mark.parametrize('ending', ['mp4', 'avi'])
def test_a_video_and_its_range(page, tmp_path, ending):
    film = write_video(tmp_path/f'scroll.{ending}', head((16, 96, 80))[0].clip(0, 255).astype(np.uint8))
    upload(page, film)
    assert slices(page) == 16 and any('compression' in w for w in warned(page))
    next(n for n in page.number_input if n.key.startswith('last')).set_value(9).run()
    assert slices(page) == 9 and any('the video goes on' in w for w in warned(page))


@pytest.mark.parametrize('how', ['zip', 'files'])
def test_a_dicom_series(page, how):
    upload(page, *([('study.zip', zipped({f'a/{n}': d for n, d in series().items()}))] if how == 'zip'
                   else series().items()))
    assert slices(page) == 6 and 'Lesion, mL' in metrics(page) and not page.error


def a_study(tmp_path, **how):
    "A synthetic study of five series, as a zip."
    folder = write_phantom_study(tmp_path/'study', **how)
    return 'study.zip', zipped({str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob('*') if f.is_file()})


def test_the_series_of_a_study_are_shown_before_anything_is_segmented(page, tmp_path):
    upload(page, a_study(tmp_path))
    roles = {s.label.split(' is taken')[0]: s.value for s in page.selectbox}
    assert roles == {'1 Survey': '', '2 T1W SE tra': 'pre', '3 T2W TSE tra': '', '4 T2W FLAIR tra': 'flair',
                     '5 T1W SE tra': 'post'}
    assert not page.metric and not page.error
    page.button(key='use series').click().run()
    assert slices(page) == 24 and not page.error and 'missing sequences' not in ' '.join(warned(page))


def test_the_choice_of_series_decides(page, tmp_path):
    "T1 is left out, and T2 is taken for FLAIR, because the visitor says so."
    upload(page, a_study(tmp_path, contrast=False))
    by_title = {s.label.split(' is taken')[0]: s for s in page.selectbox}
    by_title['4 T2W FLAIR tra'].set_value('').run()
    assert page.button(key='use series').disabled
    next(s for s in page.selectbox if s.label.startswith('3 T2W')).set_value('flair').run()
    page.button(key='use series').click().run()
    assert slices(page) == 24 and any('missing sequences (pre, post)' in w for w in warned(page))


def test_two_flair_are_a_question(page):
    second = {f'a/x{n}': d.replace(b'1.2\0', b'1.3\0').replace(b'FLAIR ', b'FLAIR2').replace(b'1.2.', b'1.3.')
              for n, d in series().items()}
    upload(page, ('study.zip', zipped({**{f'a/{n}': d for n, d in series().items()}, **second})))
    assert [s.value for s in page.selectbox] == ['', ''] and page.button(key='use series').disabled and not page.metric
    page.selectbox[0].set_value('flair').run()
    page.button(key='use series').click().run()
    assert slices(page) == 6 and not page.error


def test_another_upload_replaces_the_result(page, volume):
    page.button(key='sample').click().run()
    first = metrics(page)
    upload(page, volume)
    assert metrics(page) != first and len(page.session_state.kept) == 1
    upload(page)
    assert not page.metric and not page.session_state.kept


def test_the_sample_stands_beside_an_upload_and_goes_with_the_next(page, volume, tmp_path):
    upload(page, volume)
    page.button(key='sample').click().run()
    assert slices(page) == 24 and not page.exception
    assert page.selectbox(key='scan').options == ['anna_flair', 'built-in sample']
    upload(page, write_nifti(tmp_path/'bert_flair.nii.gz', head((8, 60, 50))[0]))
    assert slices(page) == 8 and not page.selectbox


def test_a_new_scan_begins_with_the_threshold_of_the_model(page, volume, tmp_path):
    "Sliders belong to a result; the next result has its own, even if it lies at the same place in memory."
    for k in range(4):
        upload(page, write_nifti(tmp_path/f'{k}_flair.nii.gz', head((10+k, 48, 40))[0]))
        assert slider(page, 'Threshold').value == .5
        slider(page, 'Threshold').set_value(.8).run()
    assert len({session.Result('a', None, [], None).key for _ in range(5)}) == 5


def test_several_scans_stand_in_one_table(page, volume, tmp_path, segmenter):
    second = write_nifti(tmp_path/'bert_flair.nii.gz', head((8, 60, 50))[0])
    upload(page, volume, second)
    table, masks = page.dataframe[0].value, [segmenter.segment(f).mask for f in (volume, second)]
    assert [*table['Scan']] == ['anna_flair', 'bert_flair']
    assert [*table['Slices']] == [f'{m.any((1, 2)).sum()} / {len(m)}' for m in masks]
    assert table['Lesion'][0] == f"{metrics(page)['Lesion, mL']} mL" and '×' in table['Diameters, mm'][0]
    assert [*table['Dice']] == ['–', '–']


def test_what_looks_unlike_a_head_is_remarked_on(page, tmp_path):
    inverted = head()[0].max() - head()[0]
    upload(page, write_nifti(tmp_path/'x_flair.nii.gz', inverted))
    assert any('inverted' in w for w in warned(page))
    Image.fromarray(np.random.default_rng(0).integers(90, 250, (64, 64, 3)).astype(np.uint8)).save(tmp_path/
        'holiday.png')
    upload(page, tmp_path/'holiday.png')
    assert any('photograph' in w for w in warned(page))


@pytest.mark.parametrize('name,says', [
    ('examples_overlay', 'ABDOMEN, not the head'), ('examples_overlay', 'not that of a head'),
    ('J2K_pixelrep_mismatch', 'CT, not MR'), ('MR_small', 'no dark background'),
    ('JPEG2000', 'NM, not MR')])
def test_other_parts_of_the_body_and_other_machines_are_remarked_on(page, name, says):
    "Real pictures: an abdomen, a head in CT, a detail of MRI, a scintigram. Segmented only on the visitor's word."
    upload(page, Path(get_testdata_file(f'{name}.dcm', download=False)))
    if page.selectbox and not page.metric:
        assert [s.value for s in page.selectbox] == ['']
        page.selectbox[0].set_value('flair').run()
        page.button(key='use series').click().run()
    assert any(says in w for w in warned(page)) and not page.error


def test_an_ultrasound_in_colour_is_refused(page):
    upload(page, Path(get_testdata_file('examples_palette.dcm', download=False)))
    assert 'colour picture' in page.error[0].value and not page.metric


def test_a_mask_in_dicom_is_refused_even_on_the_visitors_word(page):
    upload(page, Path(get_testdata_file('liver_1frame.dcm', download=False)))
    page.selectbox[0].set_value('flair').run()
    page.button(key='use series').click().run()
    assert 'a mask or a map of labels' in page.error[0].value and not page.metric


def test_a_holiday_picture(page):
    "Of a temple and of a flower, in colour."
    datasets = pytest.importorskip('sklearn.datasets')
    for k in range(2):
        file = io.BytesIO(); Image.fromarray(datasets.load_sample_images().images[k]).save(file, 'JPEG')
        upload(page, (f'holiday{k}.jpg', file.getvalue()))
        assert any('photograph' in w or 'not that of a head' in w for w in warned(page)), warned(page)


def test_a_reference_is_compared_with(page, volume, tmp_path, segmenter, monkeypatch):
    upload(page, volume)
    truth = np.roll(head()[1], 3, 1)
    upload(page, write_nifti(tmp_path/'t_mask.nii.gz', truth.astype(np.uint8), dtype=np.uint8), key='reference')
    row = score_case(segmenter.segment(volume).mask, truth, spacing_mm=(5., .9, .9), empty=1., surface=False)
    table = next(m.value for m in page.markdown if m.value.startswith('| score'))
    assert f"| Dice | {row['dice']:.3f} |" in table and f"{row['volume_error_ml']:.3f}" in table
    assert f"{hd95_mm(segmenter.segment(volume).mask, truth, spacing_mm=(5., .9, .9), empty=0.):.3f}" in table
    assert next(c for c in page.segmented_control if c.key.startswith('layer')).value == 'difference', 'shown at once'
    def with_surface(*args, surface, **kwargs): return row | dict(surface_dice=.875 if surface else None)
    # the measure itself, which needs MONAI, has tests of its own
    monkeypatch.setattr(session, 'score_case', with_surface)
    next(o for o in page.toggle if o.key.startswith('surfaces')).set_value(True).run()
    assert '| surface Dice at 2 mm | 0.875 |' in next(m.value for m in page.markdown if m.value.startswith('| score'))
    next(b for b in page.button if b.key.startswith('forget')).click().run() # and away with it
    assert not page.error and next(c for c in page.segmented_control if c.key.startswith('layer')).value == 'outline'


def test_a_reference_of_another_scan_is_refused(page, volume, tmp_path):
    upload(page, volume)
    affine = nib.load(volume).affine.copy()
    affine[0, 3] += 20
    upload(page, write_nifti(tmp_path/'moved_mask.nii.gz', head()[1].astype(np.uint8), affine, dtype=np.uint8),
           key='reference')
    assert len(page.error) == 1 and 'another grid' in page.error[0].value
    upload(page, write_nifti(tmp_path/'t_mask.nii.gz', np.zeros((3, 4, 5), np.uint8), dtype=np.uint8), key='reference')
    assert len(page.error) == 1 and 'draw it on this scan' in page.error[0].value and page.metric


def test_a_model_of_ones_own(page, volume, tmp_path):
    mine = write_model(tmp_path/'m', bright(), name='mine', threshold=.7)
    upload(page, (mine.name, mine.read_bytes()), ('mine.onnx', mine.with_suffix('.onnx').read_bytes()), key='own files')
    assert any('mine 7' in m.value for m in page.sidebar.markdown) and not page.error
    upload(page, volume)
    assert slider(page, 'Threshold').value == .7
    assert any('bright 7' in m.value for m in fresh().sidebar.markdown), 'another visitor has the shared model'


@pytest.mark.parametrize('files,says',
                         [({'net.pkl': b'\x80\x04.'}, 'Pickles'), ({'net.pt': b'PK'}, 'Pickles'),
                          ({'a.json': b'{}'}, 'give both'), ({'a.onnx': b'x', 'a.json': b'[]'}, 'no model card'),
                                        ({'a.onnx': b'x', 'a.json': b'\xff'}, 'a.json'),
                                        ({'a.json': b'{}', 'b.json': b'{}'}, 'give both')])
def test_a_model_that_is_none_is_refused_with_a_reason(page, files, says):
    upload(page, *files.items(), key='own files')
    assert len(page.error) == 1 and says in page.error[0].value
    assert any('bright 7' in m.value for m in page.sidebar.markdown)


# Languages -----------------------------------------------------------------------------------------------------------

def test_french(page, tmp_path, volume):
    choose(page, 'lang', 'fr')
    assert 'dispositif médical' in page.markdown[0].value and 'exemple intégré' in page.info[0].value
    upload(page, volume)
    assert {'Confiance', 'Lésion, mL'} <= set(metrics(page)) and any('séquence' in w for w in warned(page))
    upload(page, ('a.png', b'no picture'))
    assert 'ne peut pas être lu' in page.error[0].value


# Faults --------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope='module')
def one_page(): return fresh()


@pytest.fixture(scope='module')
def in_the_docs(root):
    "The table of the docs: input to sentence."
    cells = json.loads((root/'nbs/tutorials/36_hostile.ipynb').read_text(encoding='utf-8'))['cells']
    return dict(re.findall(r'^\| (.+?) \| (.+) \|$', ''.join(cells[-1]['source']), re.M))


# without the decoder's own words, which change with its version
def plain(sentence): return re.sub(r'\(.*\)', '', sentence.replace('\\|', '|'))


@pytest.mark.parametrize('name,files,says', [pytest.param(*row, id=row[0]) for row in HOSTILE])
def test_hostile_input_is_told_in_a_sentence(one_page, name, files, says, tmp_path, monkeypatch, in_the_docs):
    "Broken files: one sentence each, no traceback, nothing left on the disk, and the page lives on."
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    upload(one_page, *files.items())
    errors = [e.value for e in one_page.error]
    assert len(errors) == 1 and re.search(says, errors[0]), errors
    assert not one_page.metric and 'Traceback' not in errors[0] and str(tmp_path) not in errors[0]
    assert '](' not in errors[0]
    assert say('fault') not in errors and list(tmp_path.iterdir()) == []
    assert plain(in_the_docs[name]) == plain(errors[0])


def test_there_are_many_kinds_of_hostile_input(in_the_docs):
    assert len(HOSTILE) >= 40 and [*in_the_docs][1:] == [n for n, _, _ in HOSTILE]


def test_the_page_lives_on_after_all_that(one_page, volume):
    upload(one_page, volume)
    assert 'Lesion, mL' in metrics(one_page)


def test_one_bad_file_among_good_ones(page, volume):
    upload(page, volume, ('b.png', b'nothing'))
    assert len(page.error) == 1 and 'Lesion, mL' in metrics(page)


@pytest.mark.parametrize('module,part', [(session, 'views'), (viewer, 'picture')], ids=['views', 'picture'])
def test_a_fault_of_ours_is_a_sentence_and_the_log_names_nobody(page, volume, monkeypatch, capsys, module, part):
    "Whether it happens while segmenting or while a slider redraws the pictures."
    def broken(*a, **k): raise RuntimeError('patient Anna')
    monkeypatch.setattr(module, part, broken)
    upload(page, volume)
    assert [e.value for e in page.error] == [say('fault')]
    log = capsys.readouterr()
    assert 'RuntimeError in broken' in log.err and 'nna' not in log.err + log.out


def test_a_model_that_cannot_be_loaded(monkeypatch, tmp_path):
    monkeypatch.setenv('NEUROSEG_MODEL', str(tmp_path/'absent.json'))
    forget()
    at = fresh()
    forget()
    assert [e.value for e in at.error] == ['`absent.json` cannot be read (no such file or directory)']
    assert not at.file_uploader


class Upload:
    def __init__(self, name, data): self.name, self.data = name, data
    def getvalue(self): return self.data


@pytest.mark.parametrize('name', ['../../evil.png', '/etc/passwd.png', '..\\..\\evil.png', 'C:\\x\\evil.png',
                                  '.evil.png', 'e\0vil.png', 'x'*50+'\n.png', '`a`![](b).png', 'x'*300+'.png'])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    path, = received.store([Upload(name, b'x')], tmp_path)
    assert path.parent == tmp_path and path.exists() and not set('`![]/\\\n\0') & set(path.name)


def test_too_much_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(received, 'MAX_UPLOAD_MB', 1)
    with pytest.raises(InputError, match='or 1 MB allowed'):
        received.store([Upload('a.png', bytes(1_100_000))], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_zip_that_lies_about_its_size(tmp_path, monkeypatch):
    "What a header says is not believed: reading stops at the bound."
    monkeypatch.setattr(received, 'MAX_UNPACKED_MB', 1)
    monkeypatch.setattr(received, '_entries', lambda z, name: z.infolist())
    (tmp_path/'a.zip').write_bytes(zipped({'a.nii': bytes(5_000_000)}))
    with pytest.raises(InputError, match='more than the 1 MB'): received.unpack(tmp_path/'a.zip', tmp_path/'out')
    assert not (tmp_path/'out/a.nii').exists()


def test_an_upload_is_kept_in_memory(page):
    "Starlette writes what is larger than this to a temporary file of its own."
    from starlette.formparsers import MultiPartParser
    assert MultiPartParser.spool_max_size == serving.SPOOL_BYTES > received.MAX_UPLOAD_MB*10**6


def test_importing_the_page_changes_nothing_in_streamlit_and_starlette(root):
    "The server is prepared when the page is served, not when a program imports the module."
    code = ('from starlette.formparsers import MultiPartParser\nimport streamlit as st\n'
            'from streamlit.runtime.memory_uploaded_file_manager import MemoryUploadedFileManager as M\n'
            'before = MultiPartParser.spool_max_size, M.add_file, {k: id(v) for k, v in vars(st).items()}\n'
            'import neuroseg.app.main\n'
            'assert before == (MultiPartParser.spool_max_size, M.add_file, {k: id(v) for k, v in vars(st).items()})')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != 'linux', reason='looks at the marks that ONNX Runtime leaves on Linux')
def test_the_runtime_tells_nobody_and_leaves_no_mark(tmp_path, card, root):
    "ONNX Runtime reports to its maker, and leaves a file in the temporary folder, unless this is off beforehand."
    code = ('from neuroseg.segmentation.result import Segmenter; import onnxruntime, os; '
            'Segmenter(os.environ["NEUROSEG_MODEL"]); print(os.environ["ORT_DISABLE_TELEMETRY"])')
    env = {k: v for k, v in os.environ.items() if k != 'ORT_DISABLE_TELEMETRY'} | dict(TMPDIR=str(tmp_path),
        HOME=str(tmp_path), NEUROSEG_MODEL=str(card))
    done = subprocess.run([sys.executable, '-c', code], cwd=root, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, '1'), done.stderr
    assert [p.name for p in tmp_path.rglob('*')] == []


def test_a_full_disk_is_a_sentence(monkeypatch, segmenter):
    def full(*a, **k): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(session, 'store', full)
    results, refusals = session.segment_uploads(segmenter, [Upload('a.png', b'')])
    assert results == [] and len(refusals) == 1 and 'disk' in refusals[0].text()


# What is kept and taken away -----------------------------------------------------------------------------------------

def test_uploads_are_deleted_before_anything_is_shown(page, volume, tmp_path, monkeypatch):
    scratch = tmp_path/'scratch'; scratch.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(scratch))
    upload(page, volume, ('b.png', b'nothing'), ('c.zip', zipped({'x/d.png': png()})))
    assert page.metric and list(scratch.iterdir()) == []


def test_a_cancelled_run_leaves_nothing(volume, segmenter, tmp_path, monkeypatch):
    "Streamlit ends a run by raising in the progress bar."
    scratch = tmp_path/'scratch'; scratch.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(scratch))
    class Ended(BaseException): pass
    def on_progress(share, name): raise Ended
    with pytest.raises(Ended):
        session.segment_uploads(segmenter, [Upload(volume.name, volume.read_bytes())], on_progress=on_progress)
    assert list(scratch.iterdir()) == []
    assert session.GATE.acquire(timeout=1); session.GATE.release()


def test_cancel_and_start_again(page, volume):
    upload(page, volume)
    key = next(iter(page.session_state.kept))
    # as a click on the button in the midst of a run leaves it
    page.session_state.kept, page.session_state.cancelled, page.session_state.cases = {}, key, []
    page.run()
    assert not page.metric and [e.value for e in page.error] == [say('cancelled')]
    page.button(key='again').click().run()
    assert 'Lesion, mL' in metrics(page) and not page.error


def test_two_visitors_do_not_meet(volume, tmp_path):
    a, b = fresh(), fresh()
    upload(a, volume)
    assert not b.run().metric
    upload(b, write_nifti(tmp_path/'bert_flair.nii.gz', head((8, 60, 50))[0]))
    assert slices(a.run()) == 12 and slices(b.run()) == 8


def result_of(volume, segmenter):
    return session.segment_uploads(segmenter, [Upload(volume.name, volume.read_bytes())])[0][0]


def test_the_zip_is_what_predict_writes(volume, card, segmenter, tmp_path):
    report, = predict_cases(volume, tmp_path/'out', model=card)
    result = result_of(volume, segmenter)
    with zipfile.ZipFile(io.BytesIO(session.bundle(result, result.with_threshold(.5)))) as z:
        z.extractall(tmp_path/'zip')
    here, there = tmp_path/'zip', tmp_path/'out'/'anna_flair'
    assert sorted(p.name for p in here.iterdir()) == sorted(p.name for p in there.iterdir())
    assert (read_mask(here/'mask.nii.gz') == read_mask(there/'mask.nii.gz')).all()
    assert (nib.load(here/'mask.nii.gz').affine == nib.load(there/'mask.nii.gz').affine).all()
    ours, theirs = json.loads((here/'report.json').read_text()), json.loads((there/'report.json').read_text())
    assert ours.pop('settings') is None and theirs.pop('settings') # by which a batch goes on
    assert {k for k in theirs if ours[k] != theirs[k]} <= {'seconds'}


@pytest.mark.parametrize('lang', LANGUAGES)
def test_the_sheet_says_what_the_page_says(volume, segmenter, lang):
    result = result_of(volume, segmenter)
    seg = result.with_threshold(.5)
    document = pypdfium2.PdfDocument(report_pdf(seg, 'sœur | x', lang=lang, shown=result.shown))
    text = document[0].get_textpage().get_text_range()
    document.close()
    for said in (figure(seg.volume_ml, '.1f', lang)+' mL', figure(seg.confidence, '.2f', lang), 'bright 7', 'sœur',
                 say('notice', lang).split('.')[0]):
        assert said in text


@pytest.mark.parametrize('affine',
                         [np.diag([-1., -1., 4., 1.]),
                          np.array([[0, 0, 2., 0], [1., 0, 0, 0], [0, 1., 0, 0], [0, 0, 0, 1]])],
                          ids=['axial', 'turned'])
def test_the_overlay_lies_on_the_lesion_whatever_way_the_volume_is_stored(affine, tmp_path, segmenter):
    v, lesion = head((10, 40, 30))
    result = session.segment_found(segmenter, Found(write_nifti(tmp_path/'v_flair.nii.gz', v, affine), ('v',)), 'v')
    mask = result.shown.turn(result.found.mask)
    for plane, axes in (('axial', (1, 2)), ('coronal', (0, 2)), ('sagittal', (0, 1))):
        k = int(mask.sum(axes).argmax())
        grey, drawn = (np.asarray(picture(result.shown, plane, k, layer=l, mask=mask).convert('RGB')).astype(int)
                       for l in (None, 'outline'))
        red = (drawn != grey).any(-1)
        assert red.any() and grey[red].mean() > 1.5*grey[~red & (grey[..., 0] > 30)].mean()


def test_no_torch_in_the_application(root, card):
    code = ('import sys, neuroseg.app.main\n'
            'big = {"torch", "fastai", "monai", "timm", "matplotlib", "av", "reportlab"}\n'
            'print(*sorted(big & set(sys.modules)))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ''), done.stderr


def test_a_video_is_read_no_further_than_asked(tmp_path, monkeypatch):
    film = write_video(tmp_path/'x.mp4',
                       np.zeros((30, 32, 32), np.uint8) + np.arange(30, dtype=np.uint8)[:, None, None]*7)
    assert read_video(film, first=4, last=6).shape == (3, 32, 32)
    monkeypatch.setattr('neuroseg.scans.video.MAX_PX', 1000)
    with pytest.raises(InputError, match='frames of 32 x 32 pixels'): read_video(film)
