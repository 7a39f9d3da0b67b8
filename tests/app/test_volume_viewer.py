"The viewer in the browser: what it is made of, and that what is sent there lies where the scan lies."
import gzip, json, re

import nibabel as nib
import numpy as np
import pytest
from bright_model import head, write_nifti
from test_app import AFFINES, card, fresh, metrics, segmenter, slider, upload, volume

from neuroseg.app.session import segment_found
from neuroseg.app.volume_viewer import WORDS, has_volume, mask_file, ras_volume, scan_files, start_voxel
from neuroseg.core import package_dir, read_json, sha256_file
from neuroseg.scans.reading import Found

FOLDER = package_dir()/'app'/'niivue'
assert card and segmenter and volume # fixtures


def test_niivue_is_the_file_that_npm_gives():
    "Unchanged: its hash is the one that `niivue.json` names, with version, licence and the command that fetched it."
    said = read_json(FOLDER/'niivue.json')
    assert sha256_file(FOLDER/said['file']) == said['sha256']
    assert f"@{said['version']}" in said['fetch'] and said['version'] in (FOLDER/'LICENSE').read_text()
    assert said['licence'] == 'BSD-2-Clause' and 'Redistribution and use' in (FOLDER/'LICENSE').read_text()


def test_the_viewer_asks_no_other_host():
    for name in ('viewer.js', 'viewer.css', 'index.html'): assert '://' not in (FOLDER/name).read_text(), name


def test_the_bundle_stays_small():
    assert len(gzip.compress((FOLDER/'niivue.umd.js').read_bytes())) < 1e6 # of 15 MB that the wheel may have


def test_every_text_of_the_script_is_given():
    script = (FOLDER/'viewer.js').read_text()
    named = {*re.findall(r'texts\.(\w+)', script)} | {'drag_cross', 'drag_window', 'drag_pan'}
    named |= {*re.findall(r"'(\w+)'", re.search(r'const VIEWS = (.*)', script)[1])}
    assert named <= {*WORDS}, named - {*WORDS}


@pytest.mark.parametrize('affine', AFFINES.values(), ids=AFFINES)
def test_a_voxel_in_the_browser_is_where_the_scanner_saw_it(affine, tmp_path, segmenter):
    v = head((14, 40, 32))[0]
    result = segment_found(segmenter, Found(write_nifti(tmp_path/'v_flair.nii.gz', v, affine), ('v',)), 'v')
    scan = result.found.scan
    assert has_volume(result)
    sent_as = ((scan_files(result)['flair'], scan.data[0]), (mask_file(result, result.found.mask), result.found.mask))
    for data, whole in sent_as:
        sent = nib.Nifti1Image.from_bytes(gzip.decompress(data))
        assert nib.aff2axcodes(sent.affine) == ('R', 'A', 'S')
        for z, y, x in np.random.default_rng(0).integers(0, v.shape, (20, 3)):
            mm = scan.affine @ [x, y, z, 1]
            there = tuple(np.rint(np.linalg.inv(sent.affine) @ mm)[:3].astype(int))
            assert sent.get_fdata()[there] == pytest.approx(float(whole[z, y, x]), abs=.01) # one of 65,536 steps
    *_, k = start_voxel(result)
    areas = ras_volume(result.shown.turn(result.found.mask)).sum((0, 1))
    assert areas[k] == areas.max() > 0


def component(at):
    "What the page gives the browser."
    return [json.loads(e.proto.json_args) for e in at.get('component_instance')]


def test_a_volume_goes_to_the_browser_and_the_mask_follows_the_threshold(volume):
    at = upload(fresh(pictures=False), volume)
    told, = component(at)
    assert not at.get('image') and metrics(at)['Slices'].endswith('/ 12')
    assert [v['id'] for v in told['shown']['volumes']] == ['flair'] and told['shown']['sides'] and told['lang'] == 'en'
    assert all(v.startswith('/') for v in (told['shown']['mask'], told['shown']['prob']))
    slider(at, 'Threshold').set_value(.9).run()
    later, = component(at)
    assert later['shown']['mask'] != told['shown']['mask'] and later['shown']['prob'] == told['shown']['prob']
    assert not at.exception and not at.error


def test_pictures_without_distances_stay_pictures(tmp_path):
    from test_app import slice_png
    at = upload(fresh(pictures=False), *(slice_png(k, tmp_path) for k in (6, 7, 8)))
    assert component(at) == [] and len(at.get('image')) == 2


def test_a_browser_without_webgl2_gets_pictures_and_is_told(volume):
    at = fresh(pictures=False)
    at.session_state.no_webgl2 = True # as the browser's answer leaves it
    upload(at, volume)
    assert component(at) == [] and len(at.get('image')) == 2 and any('WebGL2' in c.value for c in at.caption)
