"What must not happen beside an archive: a slice or a result that is lost, patients that are mixed, names that leak."
import io, json, os, stat, subprocess, sys, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
import pytest

pytest.importorskip('pynetdicom')
pytest.importorskip('highdicom')

from listening import CountingArchive, free_port, send_until_acknowledged, small_study, start_listener, wait_for

from neuroseg.core import InputError, Message, OutputError
from neuroseg.hospital.delivery import Archive, deliver
from neuroseg.hospital.dicomweb import web_holds, WebArchive
from neuroseg.hospital.dimse import associated, Commitments, DeliveryError, holds, object_id
from neuroseg.hospital.jobs import FIRST_WAIT_S, Jobs, LONGEST_WAIT_S, MAX_ATTEMPTS
from neuroseg.hospital.listener import Listener, safe_reason
from neuroseg.hospital.receiver import Address, DUPLICATE, NOT_UNDERSTOOD, port_of, serve, SUCCESS, take


class Memory(Archive):
    "An archive that keeps results in memory, and can be away or refuse."
    def __init__(self): super().__init__(WebArchive('http://nowhere')); self.kept, self.away, self.calls = [], False, 0
    def store(self, path):
        self.calls += 1
        if self.away: raise DeliveryError('the archive does not answer')
        self.kept.append(object_id(path).uid)
    def holds(self, path):
        self.calls += 1
        if self.away: raise DeliveryError('the archive does not answer')
        return object_id(path).uid in self.kept


def listener_at(folder, now, archive=None, **how):
    return Listener(folder, Address('NEUROSEG', 0), ('MR1',), archive, clock=lambda: now[0],
                    log=open(os.devnull, 'w'), threads=1, **how)


def changed(f, **tags):
    "Bytes of a file with other attributes."
    ds, out = pydicom.dcmread(f), io.BytesIO()
    for k, v in tags.items(): setattr(ds, k, v)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.save_as(out, enforce_file_format=True)
    return out.getvalue()


def take_all(jobs, files): assert {take(jobs, Path(f).read_bytes(), sender='MR1') for f in files}=={SUCCESS}


def rounds(listener, now, n=3):
    now[0] += 60
    for _ in range(n): listener.round()


# What counts as arrived, here and there

def foreign_seg(f, k=1):
    "A SEG that another program has made of the examination of a slice."
    return changed(f, SOPInstanceUID=f'1.2.3.4.{k}', SeriesInstanceUID='1.2.3.4', Modality='SEG',
                   SOPClassUID='1.2.840.10008.5.1.4.1.1.66.4')


def test_a_foreign_segmentation_takes_no_slices_place(tmp_path):
    "The archive has five slices; four of them and a SEG of another program have come."
    now, files, there = [0.], small_study(tmp_path/'s', 0, n_slices=5), CountingArchive()
    try:
        there.kept = {f.name: pydicom.dcmread(f) for f in files}
        there.kept['seg'] = pydicom.dcmread(io.BytesIO(foreign_seg(files[0])))
        listener = listener_at(tmp_path/'inbox', now, ask=Address('PACS', there.server.server_address[1]))
        take_all(listener.jobs, files[:4])
        assert take(listener.jobs, foreign_seg(files[0]), sender='MR1')==SUCCESS
        now[0] += 60
        listener.close_studies()
        assert listener.jobs.studies()[0].state=='receiving'
        now[0] += 700
        listener.close_studies()
        assert listener.jobs.studies()[0].reason=='4 of 5 objects are here; send the whole study again'
        take_all(listener.jobs, files[4:])
        now[0] += 60
        listener.close_studies()
        assert listener.jobs.studies()[0].state=='complete'
    finally: there.server.shutdown()


def test_an_object_of_another_program_is_not_the_own_result(tmp_path):
    "An archive that answers with every object of the study holds a SEG, but not the one that was sent."
    files, there = small_study(tmp_path/'s', 0), CountingArchive(careless=True)
    try:
        own = object_id(files[0])
        there.kept['seg'] = pydicom.dcmread(io.BytesIO(foreign_seg(files[0])))
        at = Address('PACS', there.server.server_address[1])
        assert not holds(at, own, calling='NEUROSEG')
        there.kept['own'] = pydicom.dcmread(files[0])
        assert holds(at, own, calling='NEUROSEG')
    finally: there.server.shutdown()


class CarelessWeb(BaseHTTPRequestHandler):
    "QIDO-RS that answers every question with all that it has."
    kept = []
    def log_message(self, *args): pass
    def do_GET(self):
        body = json.dumps([d.to_json_dict(suppress_invalid_tags=True) for d in self.kept]).encode()
        self.send_response(200)
        self.send_header('Content-Type', 'application/dicom+json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_an_object_of_another_program_is_not_the_own_result_by_dicomweb(tmp_path):
    pytest.importorskip('dicomweb_client')
    files = small_study(tmp_path/'s', 0)
    web = ThreadingHTTPServer(('127.0.0.1', 0), CarelessWeb)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    try:
        at = WebArchive(f'http://127.0.0.1:{web.server_port}')
        CarelessWeb.kept = [pydicom.dcmread(io.BytesIO(foreign_seg(files[0])), stop_before_pixels=True)]
        assert not web_holds(at, object_id(files[0]))
        CarelessWeb.kept.append(pydicom.dcmread(files[0], stop_before_pixels=True))
        assert web_holds(at, object_id(files[0]))
    finally: web.shutdown()


# What is acknowledged is kept

def test_a_folder_named_another_way_keeps_its_slices(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = Jobs('inbox')
    take_all(first, small_study(tmp_path/'s', 0))
    again = listener_at(tmp_path/'inbox', [time.time()])
    assert again.sweep()==0
    assert all(p.is_file() for p in again.jobs.slice_paths(again.jobs.studies()[0].uid))


def test_a_folder_that_was_moved_keeps_its_slices(tmp_path):
    take_all(Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0))
    (tmp_path/'inbox').rename(tmp_path/'moved')
    again = listener_at(tmp_path/'moved', [time.time()])
    assert again.sweep()==0
    assert all(p.is_file() for p in again.jobs.slice_paths(again.jobs.studies()[0].uid))


def test_a_slice_that_arrives_while_files_are_deleted_stays(tmp_path):
    "Between the row and the deletion of the files of a committed study, the same slice and another one arrive."
    now, files = [0.], small_study(tmp_path/'s', 0, n_slices=5)
    listener = listener_at(tmp_path/'inbox', now)
    take_all(listener.jobs, files[:4])
    rounds(listener, now, 2)
    for r in listener.jobs.results(): listener.jobs.delivered(r, 'committed')
    delete = listener._delete
    def late(*args):
        take_all(listener.jobs, files)
        delete(*args)
    listener._delete = late
    listener.round()
    paths = listener.jobs.slice_paths(listener.jobs.studies()[0].uid)
    assert len(paths)==5 and all(p.is_file() for p in paths)
    assert len([f for f in (tmp_path/'inbox'/'incoming').rglob('*.dcm')])==5


def test_one_object_on_two_associations_is_whole(tmp_path):
    jobs, files = Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0, side_px=256)
    content, said = Path(files[0]).read_bytes(), []
    ready = threading.Barrier(8)
    def send():
        ready.wait()
        said.append(take(jobs, content, sender='MR1'))
    threads = [threading.Thread(target=send) for _ in range(8)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert said==[SUCCESS]*8
    kept = list((tmp_path/'inbox'/'incoming').rglob('*.dcm'))
    assert [f.read_bytes() for f in kept]==[content]


def test_another_image_under_a_known_identifier_is_refused(tmp_path):
    "A success would be a promise that is not kept: the second image is nowhere."
    jobs, files = Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0)
    take_all(jobs, files[:1])
    other = small_study(tmp_path/'t', 1)[0]
    clash = changed(other, SOPInstanceUID=pydicom.dcmread(files[0]).SOPInstanceUID)
    assert take(jobs, clash, sender='MR1')==DUPLICATE
    assert take(jobs, changed(files[0], PatientID='P2'), sender='MR1')==DUPLICATE
    assert take(jobs, Path(files[0]).read_bytes(), sender='MR1')==SUCCESS # sent again


def test_a_slice_whose_file_has_gone_is_written_again(tmp_path):
    jobs, files = Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0)
    take_all(jobs, files)
    path = jobs.slice_paths(jobs.studies()[0].uid)[0]
    path.unlink()
    take_all(jobs, files)
    assert all(p.is_file() for p in jobs.slice_paths(jobs.studies()[0].uid))


def test_an_own_result_that_comes_back_opens_nothing(tmp_path):
    "An archive that sends on everything sends our results, too: taken as slices they would be segmented for ever."
    now, archive = [0.], Memory()
    listener = listener_at(tmp_path/'inbox', now, archive, keep=True)
    take_all(listener.jobs, small_study(tmp_path/'s', 0))
    for _ in range(4): rounds(listener, now, 1)
    state = listener.jobs.studies()[0].state
    take_all(listener.jobs, [r.path for r in listener.jobs.results()])
    study, = listener.jobs.studies()
    assert (study.state, study.n_slices)==(state, 4)


# Results

def test_a_result_that_was_being_sent_when_the_archive_went_away_is_sent(tmp_path):
    now, archive = [0.], Memory()
    listener = listener_at(tmp_path/'inbox', now, archive)
    take_all(listener.jobs, small_study(tmp_path/'s', 0))
    archive.away = True
    rounds(listener, now, 2)
    for r in listener.jobs.results(): listener.jobs.attempt(r) # ... a kill, and the archive is still away afterwards
    again = listener_at(tmp_path/'inbox', now, archive)
    again.jobs.recover()
    again.round()
    archive.away = False
    for _ in range(8): rounds(again, now, 1); now[0] += LONGEST_WAIT_S
    assert again.jobs.studies()[0].state=='purged' and len(archive.kept)==2


def test_results_that_failed_are_kept_and_tried_again_after_a_restart(tmp_path):
    now, archive = [0.], Memory()
    listener = listener_at(tmp_path/'inbox', now, archive)
    archive.away = True
    take_all(listener.jobs, small_study(tmp_path/'s', 0))
    for _ in range(2*MAX_ATTEMPTS+3): rounds(listener, now, 1); now[0] += LONGEST_WAIT_S
    assert listener.jobs.status()['results']['failed']==2
    again = listener_at(tmp_path/'inbox', now, archive)
    archive.away = False
    again.jobs.recover()
    assert again.sweep()==0
    for _ in range(6): rounds(again, now, 1); now[0] += LONGEST_WAIT_S
    assert len(archive.kept)==2


def test_an_archive_may_be_away_for_a_weekend():
    waits = [min(FIRST_WAIT_S*2**k, LONGEST_WAIT_S) for k in range(MAX_ATTEMPTS-1)]
    assert 60<sum(waits)/3600<64


def test_kept_results_survive_a_restart(tmp_path):
    now = [0.]
    listener = listener_at(tmp_path/'inbox', now, Memory(), keep=True)
    take_all(listener.jobs, small_study(tmp_path/'s', 0))
    for _ in range(4): rounds(listener, now, 1)
    assert listener.jobs.studies()[0].state=='committed' and listener.sweep()==0
    assert all(r.path.is_file() for r in listener.jobs.results())


def test_no_result_of_a_quarantined_study_is_sent(tmp_path):
    "The archive is away; then a slice of another patient arrives in the same study."
    now, archive, files = [0.], Memory(), small_study(tmp_path/'s', 0, n_slices=5)
    listener = listener_at(tmp_path/'inbox', now, archive)
    archive.away = True
    take_all(listener.jobs, files[:4])
    rounds(listener, now, 1)
    assert take(listener.jobs, changed(files[4], PatientID='P2'), sender='MR1')==SUCCESS
    archive.away = False
    for _ in range(4): rounds(listener, now, 1); now[0] += LONGEST_WAIT_S
    assert (listener.jobs.studies()[0].state, archive.kept)==('quarantined', [])


def test_an_archive_that_is_away_holds_up_one_attempt_a_round(tmp_path):
    now, archive, jobs = [0.], Memory(), Jobs(tmp_path/'inbox', clock=lambda: now[0])
    file = small_study(tmp_path/'s', 0)[0]
    for k in range(20):
        jobs.received(f'1.{k}', f'1.{k}.1', f'1.{k}.1.1', 'IM', sender='MR1')
        for state in ('complete', 'running'): jobs.move(next(s for s in jobs.studies() if s.uid==f'1.{k}'), state)
        jobs.store_results(jobs.studies('running')[0], {f'1.{k}.9': file})
    archive.away = True
    deliver(jobs, archive)
    assert archive.calls==1
    for r in jobs.results('waiting'): jobs.attempt(r)
    archive.calls = 0
    deliver(jobs, archive)
    assert archive.calls<=2


# Patients

@pytest.mark.parametrize('tags', [
    dict(PatientID='P2'), dict(PatientName='Somebody^Else'), dict(PatientBirthDate='19700101'),
    dict(PatientID='P2', SeriesInstanceUID='1.2.826.0.1.3680043.8.498.1.77', SeriesDescription='AX T1')])
def test_two_patients_in_one_study_are_put_aside(tmp_path, tags):
    now, files = [0.], small_study(tmp_path/'s', 0, n_slices=5)
    listener = listener_at(tmp_path/'inbox', now)
    take_all(listener.jobs, files[:4])
    assert take(listener.jobs, changed(files[4], **tags), sender='MR1')==SUCCESS
    rounds(listener, now)
    study, = listener.jobs.studies()
    assert study.state=='quarantined' and listener.jobs.results()==[]


def test_studies_do_not_share_a_folder_by_chance(tmp_path):
    "Eight letters are a name for a log; with ten thousand studies two of them would be the same once in a hundred."
    jobs = Jobs(tmp_path/'inbox')
    take_all(jobs, small_study(tmp_path/'s', 0))
    assert len(jobs.slice_paths(jobs.studies()[0].uid)[0].parent.name)==32


# Names

def test_no_free_text_reaches_status_or_log(tmp_path):
    now, log = [0.], open(tmp_path/'log', 'w')
    listener = listener_at(tmp_path/'inbox', now)
    listener.log = log
    for k, tags in enumerate((dict(SeriesDescription='MUELLER Anna FLAIR', ImagePositionPatient=[0, 0, 0]),
                              dict(SeriesDescription='MUELLER Anna T2', ProtocolName='MUELLER', EchoTime='90',
                                   InversionTime='', ScanningSequence='SE'),
                              dict(SeriesDescription='MUELLER Anna FLAIR', Modality='MUELLER'))):
        for f in small_study(tmp_path/f's{k}', k): take(listener.jobs, changed(f, **tags), sender='MR1')
    for _ in range(6): rounds(listener, now, 1)
    log.flush()
    said = json.dumps(listener.jobs.status())+(tmp_path/'log').read_text()
    assert listener.jobs.studies('quarantined') and 'MUELLER' not in said and '1.2.826' not in said
    assert 'slices_at_one_place' in said


def test_a_reason_keeps_numbers_and_hides_text():
    why = Message('inner', 'there are {n} slices in {place}', 'error', n=3, place='MUELLER 1.2.3')
    said = safe_reason(InputError(Message('outer', 'series {title} is refused: {why}', 'error', title='MUELLER',
                                          why=why)))
    assert said=='series (...) is refused: there are 3 slices in (...) [outer, inner]'
    assert 'MUELLER' not in safe_reason(InputError('MUELLER has no slices'))


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_values_of_faulty_headers_are_not_printed(tmp_path):
    "pydicom's warnings and pynetdicom's log repeat values; a service writes both into the journal of the machine."
    archive = CountingArchive()
    port, log, files = free_port(), tmp_path/'log', small_study(tmp_path/'s', 0)
    for f in files:
        f.write_bytes(changed(f, FrameOfReferenceUID='MUELLER Anna', AcquisitionDate='MUELLER'))
    with open(log, 'w') as out:
        listener = start_listener(tmp_path/'inbox', port, archive.address, log=out)
        try:
            assert send_until_acknowledged(files, port, until=time.monotonic()+60)
            assert wait_for(lambda: set(s.state for s in Jobs(tmp_path/'inbox').studies())<={'purged', 'quarantined'},
                            60)
        finally:
            listener.terminate()
            listener.wait()
            archive.server.shutdown()
    assert 'MUELLER' not in log.read_text() and 'Traceback' not in log.read_text()


@pytest.mark.skipif(os.name!='posix', reason='modes of POSIX')
def test_files_are_readable_by_their_owner_alone_in_an_open_folder(tmp_path):
    now, before = [0.], os.umask(0o022)
    try:
        (tmp_path/'inbox').mkdir(mode=0o755)
        listener = listener_at(tmp_path/'inbox', now)
        take_all(listener.jobs, small_study(tmp_path/'s', 0))
        rounds(listener, now)
    finally: os.umask(before)
    below = [p for p in (tmp_path/'inbox').iterdir()]
    assert below and not [p.name for p in below if stat.S_IMODE(p.stat().st_mode) & 0o077]


# What comes from outside

@pytest.mark.filterwarnings('ignore::UserWarning')
@pytest.mark.parametrize('uid', ['*', '1.2.?', '../../etc', 'MUELLER^ANNA', '1'*65, '1.2\\1.3'])
def test_what_is_no_identifier_is_not_taken(tmp_path, uid):
    "A `*` would ask an archive for everything that it has."
    content = changed(small_study(tmp_path/'s', 0)[0], StudyInstanceUID=uid)
    jobs = Jobs(tmp_path/'inbox')
    assert take(jobs, content, sender='MR1')==NOT_UNDERSTOOD and jobs.studies()==[]


def test_packed_objects_are_not_unpacked(tmp_path):
    "Ten megabytes of a deflated object can be ten gigabytes in memory."
    from pydicom.uid import DeflatedExplicitVRLittleEndian
    ds = pydicom.dcmread(small_study(tmp_path/'s', 0)[0])
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    ds.save_as(tmp_path/'packed.dcm', enforce_file_format=True)
    assert take(Jobs(tmp_path/'inbox'), (tmp_path/'packed.dcm').read_bytes(), sender='MR1')==NOT_UNDERSTOOD
    from pynetdicom import AE
    server = serve(Jobs(tmp_path/'inbox'), Address('NEUROSEG', 0), senders=['MR1'])
    try:
        ae = AE(ae_title='MR1')
        ae.add_requested_context(ds.SOPClassUID, DeflatedExplicitVRLittleEndian)
        assert not ae.associate('127.0.0.1', port_of(server), ae_title='NEUROSEG').is_established
    finally: server.shutdown()


def test_reports_of_commitment_do_not_fill_the_memory():
    from types import SimpleNamespace
    c = Commitments()
    for k in range(5000):
        said = pydicom.Dataset()
        said.TransactionUID = f'1.2.{k}'
        c.report(SimpleNamespace(event_information=said))
    assert len(c.kept)<=1000


def test_an_archive_that_breaks_off_is_no_fault_of_the_listener():
    archive = CountingArchive()
    host, port = archive.address.rpartition('@')[2].split(':')
    try:
        with pytest.raises(DeliveryError), associated(Address('PACS', int(port), host), 'NEUROSEG',
                                                      '1.2.840.10008.5.1.4.1.2.2.1') as link:
            link.abort()
            link.send_c_find(pydicom.Dataset(), '1.2.840.10008.5.1.4.1.2.2.1')
    finally: archive.server.shutdown()


# The loop

def test_a_second_listener_on_the_same_folder_is_refused(tmp_path):
    archive = CountingArchive()
    first = start_listener(tmp_path/'inbox', free_port(), archive.address)
    try:
        assert wait_for(lambda: (tmp_path/'inbox'/'incoming').exists(), 30)
        time.sleep(1)
        with open(tmp_path/'log', 'w') as log: second = start_listener(tmp_path/'inbox', free_port(), archive.address,
                                                                       log=log)
        try: assert second.wait(60)==2
        finally: second.kill()
        assert 'is in use by another listener' in (tmp_path/'log').read_text()
    finally:
        first.terminate()
        first.wait()
        archive.server.shutdown()


@pytest.mark.parametrize('jump_s', [-1e6, 1e6])
def test_a_clock_that_jumps_stops_nothing(tmp_path, jump_s):
    now, archive = [2e6], Memory()
    listener = listener_at(tmp_path/'inbox', now, archive)
    take_all(listener.jobs, small_study(tmp_path/'s', 0))
    archive.away = True
    now[0] += jump_s
    listener.round()
    for _ in range(2): rounds(listener, now, 1)
    now[0] += jump_s
    archive.away = False
    for _ in range(4): rounds(listener, now, 1); now[0] += LONGEST_WAIT_S
    assert listener.jobs.studies()[0].state=='purged'


def test_a_study_that_changes_as_its_turn_comes_is_no_fault(tmp_path):
    now, files = [0.], small_study(tmp_path/'s', 0, n_slices=5)
    listener = listener_at(tmp_path/'inbox', now)
    take_all(listener.jobs, files[:4])
    move = listener.jobs.move
    def late(study, state, **how):
        done = move(study, state, **how)
        if state=='running': take_all(listener.jobs, files[4:])
        return done
    listener.jobs.move = late
    rounds(listener, now, 1)
    assert listener.jobs.studies()[0].state=='receiving'


def test_a_full_disk_while_a_study_is_segmented_is_no_end(tmp_path):
    now = [0.]
    listener = listener_at(tmp_path/'inbox', now)
    take_all(listener.jobs, small_study(tmp_path/'s', 0))
    objects, full = listener._objects, [True]
    def once(study):
        if full.pop() if full else False: raise OutputError('no space left')
        return objects(study)
    listener._objects = once
    with pytest.raises(OutputError): rounds(listener, now, 1)
    rounds(listener, now)
    assert listener.jobs.studies()[0].state=='done'


def test_a_result_whose_file_has_gone_does_not_end_the_loop(tmp_path):
    now, archive = [0.], Memory()
    listener = listener_at(tmp_path/'inbox', now, archive)
    for k in range(2): take_all(listener.jobs, small_study(tmp_path/f's{k}', k))
    archive.away = True
    for _ in range(3): rounds(listener, now, 1)
    listener.jobs.results()[0].path.unlink()
    archive.away = False
    for _ in range(4): rounds(listener, now, 1); now[0] += LONGEST_WAIT_S
    assert len(archive.kept)==3 and 'sending' not in {r.state for r in listener.jobs.results()}


@pytest.mark.parametrize('options', [('--quiet', 'nan'), ('--quiet', '-1'), ('--to', 'nonsense'), ('--from', 'MR1,,')])
def test_bad_options_are_refused_in_one_sentence(tmp_path, options):
    words = [sys.executable, '-m', 'neuroseg', 'listen', str(tmp_path/'inbox'), '--from', 'MR1', *options]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode==2 and 'Traceback' not in done.stderr


def test_a_password_is_not_repeated(tmp_path):
    words = [sys.executable, '-m', 'neuroseg', 'listen', str(tmp_path/'inbox'), '--from', 'MR1',
             '--to', 'user:geheim@pacs.example/dicom-web']
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode==2 and 'geheim' not in done.stderr
