"""Inputs of two patients, damaged by rule: bytes, cuts, header fields, lengths, files in the wrong place, checksums.

Each is found, read, segmented and saved as `neuroseg predict` does, or unpacked as the application does, by a process
that is ended when one input takes longer than `LIMIT_S`. `mutations.py` makes the inputs; a number is always the same
input. The quick tests take `FEW` of each way of damage; all of them, 900 of each kind and 5400 together, with a line of
counts for each kind:

    pytest -m slow -s tests/scans/test_mutated_inputs.py
"""
import json, os, queue, subprocess, sys, threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import mutations
import numpy as np
import pytest
from bright_model import bright, write_model

from neuroseg.segmentation.result import Segmenter

N = 900 # Inputs of each kind
FEW = 2 # Of each way of damage, in the quick tests
LIMIT_S = 20
STARTING_S = 120 # Until the first input: imports, on a machine with other work


def outcomes(kind, n, limit_s=LIMIT_S, command=(sys.executable, mutations.__file__)):
    "What became of each input; `hang` where it took too long, `died` where the process ended."
    first, found = 0, []
    while first < n:
        env = os.environ | dict(OMP_NUM_THREADS='1')
        run = subprocess.Popen([*command, kind, str(first), str(n)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, env=env)
        lines = queue.Queue()
        def pump(run=run, lines=lines):
            for line in run.stdout: lines.put(line)
            lines.put('')
        threading.Thread(target=pump, daemon=True).start()
        begun = len(found)
        while len(found) < n:
            try: line = lines.get(timeout=limit_s if len(found) > begun else limit_s+STARTING_S)
            except queue.Empty: found.append(dict(number=len(found), hang=True)); break
            if line.startswith('@'): found.append(json.loads(line[1:]))
            elif not line: found.append(dict(number=len(found), died=True)); break
        run.kill()
        run.wait()
        first = len(found)
    return found


def counts(found):
    "Scans that were read or refused, by the way of the damage."
    total = {way: Counter() for way in (*mutations.WAYS, *mutations.MANY_WAYS)}
    for said in found: total[mutations.way_of(said['number'])].update({k: said.get(k, 0) for k in ('read', 'refused')})
    return {way: dict(c) for way, c in total.items()}


def check(found):
    "No input ends in a traceback, a dead process, a scan of two patients, a lost slice or a bad sentence."
    for fault in ('traceback', 'died', 'hang', 'merged', 'lost'):
        bad = [s for s in found if s.get(fault)]
        assert not bad, f'{len(bad)} with {fault}: numbers {[s["number"] for s in bad][:20]}, {bad[0]}'
    assert [b for s in found for b in s['badly']] == []
    assert max(s['seconds'] for s in found) < LIMIT_S


@pytest.mark.slow
@pytest.mark.parametrize('kind', mutations.KINDS)
def test_a_damaged_input_is_read_or_refused(kind):
    found = outcomes(kind, N)
    print(kind, json.dumps(counts(found)), f"slowest {max(s.get('seconds', 0) for s in found):.1f} s")
    check(found)
    total = sum((Counter(c) for c in counts(found).values()), Counter())
    assert min(total['read'], total['refused']) > N/20 # the damage is neither harmless nor always fatal


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory): return Segmenter(write_model(tmp_path_factory.mktemp('model'), bright()), threads=1)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', mutations.KINDS)
def test_a_few_damaged_inputs_are_read_or_refused(tmp_path, segmenter, kind):
    few = [*range(FEW*len(mutations.WAYS)), *range(mutations.BY_RULE, mutations.BY_RULE+FEW*len(mutations.MANY_WAYS))]
    found = []
    for i in few:
        (tmp_path/str(i)).mkdir()
        found.append(mutations.judged(kind, i, segmenter, tmp_path/str(i)) | dict(number=i))
    check(found)
    assert all(c['read']+c['refused'] >= FEW for c in counts(found).values()) # each way was tried


# ---- the judge can find a fault

def test_whose_a_slice_is():
    rng = np.random.default_rng(0)
    for who in mutations.WHO:
        plane = mutations.plane(rng, who)
        assert {mutations.whose(p) for p in (plane, plane*3.+7, 255-plane, plane[::-1], plane[:, ::-1])} == {who}
    assert mutations.whose(rng.random(mutations.SIDE)) is None and mutations.whose(np.zeros((3, 3))) is None
    both = np.stack([mutations.plane(rng, who) for who in mutations.WHO])
    assert mutations.merged(SimpleNamespace(data=both[None]))
    assert not mutations.merged(SimpleNamespace(data=both[None, :1]))


@pytest.mark.parametrize('kind', mutations.KINDS)
@pytest.mark.parametrize('way', [*mutations.WAYS, *mutations.MANY_WAYS])
def test_the_same_number_is_the_same_input(tmp_path, kind, way):
    def made(folder):
        folder.mkdir()
        mutations.MAKE[kind](np.random.default_rng([1, len(way)]), way, folder)
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    first = made(tmp_path/'a')
    assert made(tmp_path/'b') == first != {}


def test_a_hang_and_a_death_are_found():
    script = ("import sys, time, json, os\n"
              "for i in range(int(sys.argv[2]), int(sys.argv[3])):\n"
              "    if i == 1: time.sleep(60)\n"
              "    if i == 2: os._exit(1)\n"
              "    print('@'+json.dumps(dict(number=i)), flush=True)\n")
    found = outcomes('x', 4, limit_s=2, command=(sys.executable, '-c', script))
    assert found == [dict(number=0), dict(number=1, hang=True), dict(number=2, died=True), dict(number=3)]


def test_a_bad_sentence_is_found(tmp_path):
    assert mutations.faults('a\nb', tmp_path) == ['\n'] and mutations.faults('', tmp_path) == ['empty']
    assert mutations.faults(f'{tmp_path} is bad', tmp_path) == [str(tmp_path)]
    assert mutations.faults('DOE^JOHN', Path('/nowhere')) == ['DOE']


def test_a_mask_that_names_a_patient_and_a_lost_slice_are_found(tmp_path, monkeypatch):
    scan = SimpleNamespace(data=np.zeros((1, 3, 24, 20)), n_slices=3)
    assert mutations.lost('dicom', 'bytes', scan) and not mutations.lost('dicom', 'swap', scan)
    def write(path, mask, scan): path.write_bytes(b'DOE^JOHN')
    monkeypatch.setattr('neuroseg.scans.nifti.write_mask_nifti', write)
    monkeypatch.setattr('neuroseg.scans.nifti.read_mask', lambda path: np.ones((3, 24, 20), bool))
    assert mutations.mask_faults(scan, tmp_path) == ['DOE', 'mask']


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('number', [10, 92, 127, 335, 345, 370, 730]) # a slice whose SeriesInstanceUID is another
def test_a_slice_that_left_its_series_is_not_lost(tmp_path, segmenter, number):
    said = mutations.judged('dicom', number, segmenter, tmp_path)
    assert said['refused'] and not said['read'] and not said['badly'], said
