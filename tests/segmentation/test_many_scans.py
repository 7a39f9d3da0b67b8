"Many scans: a batch that is stopped goes on, a worker that dies ends no batch, and memory does not grow."
import csv, json, os, signal, subprocess, sys, time

import numpy as np
import psutil
import pytest
from bright_model import bright, head, write_model, write_nifti, write_stack
from PIL import Image

from neuroseg.core import ConfigError
from neuroseg.segmentation.batch import predict_cases
from neuroseg.segmentation.resume import sweep

pytest.importorskip('distributed')
COMMAND = [sys.executable, '-m', 'neuroseg', 'predict']


@pytest.fixture(scope='module')
def card_path(tmp_path_factory): return write_model(tmp_path_factory.mktemp('model'), bright())


def cohort(folder, n, *, side=32):
    "Folders of two tiny slices, each patient another one."
    v, _ = head((2, side, side))
    for i in range(n): write_stack(folder/f'p{i:04}', np.roll(v, i % 5, axis=2) + i/100 + 3*(i % 7))
    return folder


def table(out):
    with open(out/'cases.csv', newline='') as f: return list(csv.DictReader(f))


def left_over(out): return [p.name for p in out.iterdir() if p.name.startswith('.')]


def without_time(reports): return [{k: v for k, v in r.items() if k not in ('seconds', 'resumed')} for r in reports]


def resumed(reports): return [r['case'] for r in reports if r.get('resumed')]


# Called by workers, which import this module, after the other files of a case have been written

def die_of_p0001(result, folder):
    "The worker ends without a word, as when the system takes its memory back."
    if folder.name.endswith('p0001'): os._exit(9)


def fail_of_p0001(result, folder):
    if folder.name.endswith('p0001'): raise ZeroDivisionError


# ---- resume

def test_a_changed_scan_is_segmented_again(tmp_path, card_path):
    scans, out = cohort(tmp_path/'scans', 3), tmp_path/'out'
    first = predict_cases(scans, out, model=card_path)
    assert resumed(first) == [] and resumed(predict_cases(scans, out, model=card_path)) == ['p0000', 'p0001', 'p0002']
    Image.open(scans/'p0001'/'case_1.png').transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(scans/'p0001'/'case_2.png')
    again = predict_cases(scans, out, model=card_path)
    assert resumed(again) == ['p0000', 'p0002'] and again[1]['input'] != first[1]['input']
    (scans/'p0002'/'case_2.png').unlink()
    (out/'p0000'/'mask.nii.gz').unlink()
    assert resumed(predict_cases(scans, out, model=card_path)) == ['p0001']
    assert resumed(predict_cases(scans, out, model=card_path, resume=False)) == []


@pytest.mark.parametrize('how', [dict(threshold=.7), dict(flips=False), dict(also=[fail_of_p0001])])
def test_another_setting_is_another_result(tmp_path, card_path, how):
    scans, out = cohort(tmp_path/'scans', 1), tmp_path/'out'
    predict_cases(scans, out, model=card_path)
    assert resumed(predict_cases(scans, out, model=card_path, **how)) == []
    assert resumed(predict_cases(scans, out, model=card_path, **how)) == ['p0000']
    assert resumed(predict_cases(scans, out, model=card_path)) == []


def test_another_model_is_another_result(tmp_path, card_path):
    scans, out = cohort(tmp_path/'scans', 1), tmp_path/'out'
    predict_cases(scans, out, model=card_path)
    same_weights = write_model(tmp_path/'model', bright(), component_share=.5)
    assert resumed(predict_cases(scans, out, model=same_weights)) == []
    assert resumed(predict_cases(scans, out, model=same_weights)) == ['p0000']


def test_a_result_of_another_scan_is_never_taken(tmp_path, card_path):
    for p in 'ab': write_nifti((tmp_path/p).parent/f'{p}.nii.gz', head((2, 40, 40), seed=ord(p))[0])
    (tmp_path/'x').mkdir()
    (tmp_path/'x'/'flair.nii.gz').write_bytes((tmp_path/'a.nii.gz').read_bytes())
    predict_cases(tmp_path/'x', tmp_path/'out', model=card_path)
    (tmp_path/'x'/'flair.nii.gz').write_bytes((tmp_path/'b.nii.gz').read_bytes())
    said, = predict_cases(tmp_path/'x', tmp_path/'out', model=card_path)
    assert 'holds the result of another scan' in said['error']


def test_series_that_were_named_are_no_result_of_another_choice(tmp_path, card_path):
    from neuroseg.scans.dicom_index import dicom_index
    from neuroseg.scans.dicom_phantom import write_phantom_study
    from neuroseg.scans.dicom_study import named_study
    from neuroseg.scans.reading import found_at
    from neuroseg.segmentation.batch import predict_case
    from neuroseg.segmentation.result import Segmenter
    study, segmenter = tmp_path/'study', Segmenter(card_path)
    write_phantom_study(study)
    first, second = (predict_cases(study, tmp_path/'out', model=card_path)[0] for _ in range(2))
    assert 'error' not in first and resumed([first, second]) == ['study']
    index, = dicom_index(study)
    named = named_study([study], dict(flair=index.series[0].uid))
    said = predict_case(segmenter, found_at(named, study, 'study'), tmp_path/'out'/'study', resume=True)
    assert 'resumed' not in said and (said.get('error') or said['settings']['named'])
    assert predict_cases(study, tmp_path/'out', model=card_path)[0].get('resumed') == ('error' in said or None)


def test_what_a_kill_left_is_removed(tmp_path, card_path):
    scans, out = cohort(tmp_path/'scans', 2), tmp_path/'out'
    for name in ('.01234567-p0000', '.01234567-p0001', '.01234567-other'): (out/name).mkdir(parents=True)
    (out/'.01234567-p0000'/'mask.nii.gz').touch()
    (out/'.01234567-p0001'/'thesis.docx').touch()
    (out/'.01234567-cases.csv').touch()
    predict_cases(scans, out, model=card_path)
    assert sorted(left_over(out)) == ['.01234567-other', '.01234567-p0001'] # not ours, and not only ours


def test_a_link_is_not_followed_when_sweeping(tmp_path):
    (tmp_path/'scans').mkdir(), (tmp_path/'out').mkdir()
    (tmp_path/'scans'/'mask.png').touch()
    (tmp_path/'out'/'.01234567-p').symlink_to(tmp_path/'scans')
    assert sweep(tmp_path/'out', ['p']) == 0 and (tmp_path/'scans'/'mask.png').exists()


def test_without_workers_nothing_of_dask_is_loaded(tmp_path, card_path):
    cohort(tmp_path/'scans', 2)
    code = ('import sys\nfrom neuroseg.cli import main\nmain(sys.argv[1:])\n'
            'print({"dask", "distributed"} & {m.split(".")[0] for m in sys.modules})')
    run = subprocess.run([sys.executable, '-c', code, 'predict', tmp_path/'scans', '-o', tmp_path/'out', '--model',
                          card_path], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == 'set()', run.stderr


# ---- workers

def test_workers_give_the_same_results(tmp_path, card_path):
    scans = cohort(tmp_path/'scans', 6)
    (scans/'p0003'/'case_2.png').write_bytes(b'')
    here = predict_cases(scans, tmp_path/'here', model=card_path)
    there = predict_cases(scans, tmp_path/'there', model=card_path, workers=2)
    assert without_time(here) == without_time(there) and 'error' in there[3]
    assert [r | dict(case='') for r in table(tmp_path/'here')] == [r | dict(case='') for r in table(tmp_path/'there')]
    masks = [(tmp_path/o/'p0005'/'masks'/'case_1_mask.png').read_bytes() for o in ('here', 'there')]
    assert masks[0] == masks[1] and left_over(tmp_path/'there') == []
    assert len(resumed(predict_cases(scans, tmp_path/'here', model=card_path, workers=2))) == 5


def test_a_worker_that_dies_ends_its_case_only(tmp_path, card_path):
    scans, out = cohort(tmp_path/'scans', 4), tmp_path/'out'
    said = predict_cases(scans, out, model=card_path, workers=2, also=[die_of_p0001])
    assert ['error' in r for r in said] == [False, True, False, False]
    assert 'the worker that segmented `p0001` died again and again' in said[1]['error'] and left_over(out) == []
    assert [r['status'] for r in table(out)] == ['done', 'failed', 'done', 'done']
    said = predict_cases(scans, out, model=card_path, workers=2, also=[fail_of_p0001])
    assert 'ZeroDivisionError in test_many_scans.py' in said[1]['error'] and len(resumed(said)) == 0


def test_no_scheduler_is_one_sentence(tmp_path, card_path):
    cohort(tmp_path/'scans', 1)
    with pytest.raises(ConfigError, match='no Dask scheduler answers at `tcp://127.0.0.1:9`'):
        predict_cases(tmp_path/'scans', tmp_path/'out', model=card_path, scheduler='tcp://127.0.0.1:9')


@pytest.fixture
def scheduler():
    "The address of a cluster that somebody else started, with two workers."
    from distributed import LocalCluster

    from neuroseg.segmentation.parallel import LOCAL
    with LocalCluster(n_workers=2, **LOCAL) as cluster: yield cluster.scheduler_address


def test_a_scheduler_is_used_and_left_running(tmp_path, card_path, scheduler):
    scans, out = cohort(tmp_path/'scans', 4), tmp_path/'out'
    run = subprocess.run([*COMMAND, scans, '-o', out, '--model', card_path, '--scheduler', scheduler],
                         capture_output=True, text=True)
    assert run.returncode == 0 and len(run.stdout.splitlines()) >= 4, run.stderr
    said = predict_cases(scans, out, model=card_path, scheduler=scheduler)
    assert len(resumed(said)) == 4 and len(table(out)) == 4


@pytest.mark.slow
def test_a_worker_without_the_package_is_told_before_the_first_case(tmp_path, card_path):
    from distributed import LocalCluster
    cohort(tmp_path/'scans', 2)
    (tmp_path/'path').mkdir()
    (tmp_path/'path'/'neuroseg.py').write_text('raise ImportError("no neuroseg here")')
    with LocalCluster(n_workers=0, host='127.0.0.1', dashboard_address=None) as cluster:
        env = os.environ | dict(PYTHONPATH=str(tmp_path/'path'))
        worker = subprocess.Popen([sys.executable, '-m', 'distributed.cli.dask_worker', cluster.scheduler_address,
                                   '--no-nanny', '--no-dashboard'], env=env, stderr=subprocess.DEVNULL, cwd=tmp_path)
        try:
            while not cluster.scheduler.workers: time.sleep(.1)
            with pytest.raises(ConfigError, match='cannot load neuroseg .*install neuroseg'):
                predict_cases(tmp_path/'scans', tmp_path/'out', model=card_path, scheduler=cluster.scheduler_address)
            assert worker.poll() is None # it can go on with the work of others
        finally:
            worker.kill()
            worker.wait()


CLUSTER = """import sys, time
from distributed import LocalCluster
if __name__ == '__main__':
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, host='127.0.0.1', dashboard_address=None)
    print(cluster.scheduler_address, flush=True)
    time.sleep(1000)
"""


@pytest.mark.slow
def test_a_scheduler_that_dies_ends_the_batch_in_a_sentence(tmp_path, card_path):
    scans, out = cohort(tmp_path/'scans', 80), tmp_path/'out'
    (tmp_path/'cluster.py').write_text(CLUSTER)
    cluster = subprocess.Popen([sys.executable, tmp_path/'cluster.py'], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.DEVNULL)
    run = start(scans, out, card_path, '--scheduler', cluster.stdout.readline().strip())
    wait_for(out, 5, run)
    cluster.kill()
    _, err = run.communicate(timeout=120)
    assert run.returncode == 2 and 'run the same command again to resume' in err and 'Traceback' not in err, err
    assert len(table(out)) >= 4


# ---- stopped, killed, large

def start(scans, out, card, *more):
    return subprocess.Popen([*COMMAND, scans, '-o', out, '--model', card, *more], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def results(out): return len(list(out.glob('[!.]*/report.json')))


def wait_for(out, n, run, limit_s=300):
    "Until that many cases are done."
    end = time.monotonic()+limit_s
    while results(out) < n:
        assert run.poll() is None, run.communicate()
        assert time.monotonic() < end, 'too slow'
        time.sleep(.05)


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--workers', '2')])
@pytest.mark.parametrize('sign', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_half(tmp_path, card_path, more, sign):
    scans, out = cohort(tmp_path/'scans', 80), tmp_path/'out'
    run = start(scans, out, card_path, *more)
    wait_for(out, 5, run)
    # A terminal sends Ctrl-C to all processes of the command; `kill` and a queue send SIGTERM to the first alone
    os.killpg(run.pid, sign) if sign == signal.SIGINT else run.send_signal(sign)
    _, err = run.communicate(timeout=60)
    assert run.returncode == (130 if sign == signal.SIGINT else 143)
    assert 'run the same command again to resume' in err and 'Traceback' not in err
    done = [r for r in table(out) if r['status'] == 'done']
    # A result may be written whose report has not come back
    assert 3 <= len(done) < 80 and left_over(out) == [] and 0 <= results(out)-len(done) <= 2
    said = predict_cases(scans, out, model=card_path)
    assert len(resumed(said)) >= len(done) and len(table(out)) == 80


def peak_of(run):
    "Most memory of a command and its workers, in MB: of the first process, and of all at one time."
    first = together = 0.
    while run.poll() is None:
        try:
            here = psutil.Process(run.pid)
            own = here.memory_info().rss/1e6
            first = max(first, own)
            together = max(together, own + sum(p.memory_info().rss/1e6 for p in here.children(recursive=True)))
        except psutil.Error: pass
        time.sleep(.1)
    return first, together


def finish(scans, out, card, *more):
    "A complete run: seconds, peaks in MB."
    start_s = time.monotonic()
    said = out.with_name(f'{out.name}.log')
    with open(said, 'w') as log:
        run = subprocess.Popen([*COMMAND, scans, '-o', out, '--model', card, *more], stdout=log, stderr=log)
        first, together = peak_of(run)
    assert run.returncode == 0, said.read_text()[-2000:]
    return dict(seconds=time.monotonic()-start_s, first_mb=first, together_mb=together)


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--workers', '2')])
def test_a_thousand_cases_two_kills_one_table(tmp_path, card_path, more):
    many, few = cohort(tmp_path/'many', 1000), cohort(tmp_path/'few', 10)
    out = tmp_path/'out'
    ten = finish(few, tmp_path/'out_few', card_path, *more)
    for n in (300, 600):
        run = start(many, out, card_path, *more)
        wait_for(out, n, run)
        run.kill() # SIGKILL: nothing can be tidied up
        run.communicate()
        time.sleep(2) # its workers notice
    before = {p.parent.name: p.stat().st_mtime_ns for p in out.glob('[!.]*/report.json')}
    thousand = finish(many, out, card_path, *more)
    assert {n: (out/n/'report.json').stat().st_mtime_ns for n in before} == before # nothing was done twice
    rows = table(out)
    assert len(before) >= 600 and left_over(out) == [] and results(out) == 1000
    assert [r['case'] for r in rows] == [f'p{i:04}' for i in range(1000)] and {r['status'] for r in rows} == {'done'}
    for r in rows[::97]:
        assert int(r['lesion_px']) == json.loads((out/r['case']/'report.json').read_text())['lesion_px']
    whole = finish(many, tmp_path/'out_whole', card_path, *more)
    print(json.dumps(dict(more=more, killed_at=len(before), ten=ten, rest=thousand, thousand=whole)))
    for peak in ('first_mb', 'together_mb'): assert whole[peak] < 1.15*ten[peak] + 20
