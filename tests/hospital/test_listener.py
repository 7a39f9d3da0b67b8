"""A listener under what hospitals do to it: kills, late slices, strangers, broken associations, a full disk."""
import json, os, random, signal, socket, subprocess, sys, threading, time, tracemalloc

import pydicom
import pytest

pytest.importorskip('pynetdicom')
pytest.importorskip('highdicom')

from listening import (CountingArchive, free_port, send_slices, send_until_acknowledged, small_study, start_listener,
                       wait_for)
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian

from neuroseg.hospital import arrivals
from neuroseg.hospital.jobs import Jobs
from neuroseg.hospital.receiver import Address, NO_ROOM, port_of, serve, SUCCESS, take

KILLS = 30


@pytest.fixture
def archive():
    a = CountingArchive()
    yield a
    a.server.shutdown()


def _states(folder): return {s.uid: s.state for s in Jobs(folder).studies()}


def _studies_of(archive):
    "Modalities that the archive has of each study."
    found = {}
    for ds in archive.kept.values(): found.setdefault(str(ds.StudyInstanceUID), []).append(ds.Modality)
    return {k: sorted(v) for k, v in found.items()}


@pytest.mark.slow
def test_thirty_kills_lose_nothing_and_send_nothing_twice(tmp_path, archive):
    "SIGKILL at seeded random moments while studies come in, are segmented and are delivered."
    rng, folder, port, n = random.Random(7), tmp_path/'inbox', free_port(), 10
    studies = [small_study(tmp_path/f's{k}', k) for k in range(n)]
    until = time.monotonic()+900
    def send_all():
        for files in studies:
            send_until_acknowledged(files, port, until=until)
            time.sleep(rng.random()*4)
    sender = threading.Thread(target=send_all, daemon=True)
    sender.start()
    died_in, log = [], open(tmp_path/'log', 'w')
    for _ in range(KILLS):
        listener = start_listener(folder, port, archive.address, log=log)
        time.sleep(1+rng.random()*9)
        died_in.append(sorted(set(_states(folder).values())) if (folder/'jobs.sqlite').exists() else [])
        listener.send_signal(signal.SIGKILL)
        listener.wait()
    listener = start_listener(folder, port, archive.address, log=log)
    try:
        sender.join(300)
        assert not sender.is_alive(), (tmp_path/'log').read_text()[-1000:]
        done = wait_for(lambda: len(_states(folder))==n and set(_states(folder).values())=={'purged'}, 300)
        assert done, _states(folder)
    finally:
        listener.terminate()
        listener.wait()
    assert len(_studies_of(archive))==n # none lost
    assert set(map(tuple, _studies_of(archive).values()))=={('SEG', 'SR')}
    assert set(archive.got.values())=={1} # none sent twice
    assert any(died_in) # the kills did not all come before anything had happened


def test_sigterm_ends_it_and_a_restart_goes_on(tmp_path, archive):
    folder, port = tmp_path/'inbox', free_port()
    files = small_study(tmp_path/'s', 0)
    for part in (files[:2], files[2:]): # each to a listener that waits for more, and is told to stop
        listener = start_listener(folder, port, archive.address, quiet=600)
        assert send_until_acknowledged(part, port, until=time.monotonic()+60)
        listener.terminate()
        assert listener.wait(60)==0
        assert list(_states(folder).values())==['receiving']
    listener = start_listener(folder, port, archive.address)
    try: assert wait_for(lambda: list(_states(folder).values())==['purged'], 120), _states(folder)
    finally:
        listener.terminate()
        listener.wait()
    assert Jobs(folder).studies()[0].n_slices==len(files)
    assert list(_studies_of(archive).values())==[['SEG', 'SR']] and set(archive.got.values())=={1}


@pytest.fixture
def inbox(tmp_path):
    "A listener without a network, five slices of a study, and its clock."
    from neuroseg.hospital.listener import Listener
    now = [0.]
    listener = Listener(tmp_path/'inbox', Address('NEUROSEG', 0), ('MR1',), clock=lambda: now[0],
                        log=open(os.devnull, 'w'), threads=1)
    def receive(files, *, then_s=60, rounds=3):
        for f in files: assert take(listener.jobs, f.read_bytes(), sender='MR1')==SUCCESS
        now[0] += then_s
        for _ in range(rounds): listener.round()
        return listener.jobs.studies()[0]
    return listener, small_study(tmp_path/'s', 0, n_slices=5), receive


@pytest.fixture
def purged(inbox):
    "The same after four slices were segmented, committed and deleted."
    listener, files, receive = inbox
    receive(files[:4])
    for r in listener.jobs.results(): listener.jobs.delivered(r, 'committed')
    listener.round()
    assert listener.jobs.studies()[0].state=='purged'
    return inbox


def test_a_series_without_a_frame_of_reference_gets_its_report(inbox):
    "A SEG would have no place beside it."
    listener, files, receive = inbox
    for f in files:
        ds = pydicom.dcmread(f)
        del ds.FrameOfReferenceUID
        ds.save_as(f)
    assert receive(files).state=='done'
    result, = listener.jobs.results()
    assert pydicom.dcmread(result.path).Modality=='SR'


def test_a_late_slice_makes_another_result(inbox):
    "The result of an incomplete study is replaced, with another identifier."
    listener, files, receive = inbox
    study = receive(files[:4])
    first = {r.uid for r in listener.jobs.results()}
    assert (study.state, study.generation, len(first))==('done', 1, 2)
    study = receive(files[4:])
    second = {r.uid for r in listener.jobs.results()}
    assert (study.state, study.generation, study.n_slices, len(second))==('done', 2, 5, 2)
    assert not first & second


def test_one_late_slice_of_a_purged_study_is_not_segmented_alone(purged):
    _, files, receive = purged
    assert receive(files[4:]).state=='receiving' # it waits for the other four
    assert receive(files[:4]).state=='done'


def test_a_study_whose_slices_do_not_come_is_put_aside(purged):
    _, files, receive = purged
    study = receive(files[4:], then_s=700)
    assert (study.state, study.reason)==('quarantined', '1 of 5 objects are here; send the whole study again')


def test_strangers_are_rejected(tmp_path):
    jobs, files = Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0)
    server = serve(jobs, Address('NEUROSEG', 0), senders=['MR1'])
    try:
        assert send_slices(files, port_of(server), calling='STRANGER') is None
        assert send_slices(files, port_of(server), called='OTHER') is None
        assert jobs.studies()==[]
        assert server.server_address[0]=='127.0.0.1'
    finally: server.shutdown()


def test_a_broken_association_leaves_whole_files_only(tmp_path):
    "The connection is cut in the middle of an object; what was acknowledged is there, the rest is not."
    jobs, files = Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0)
    server = serve(jobs, Address('NEUROSEG', 0), senders=['MR1'])
    try:
        relay, cut = _cutting_relay(port_of(server), after=20_000)
        done = send_slices(files, relay) or []
        cut.join(10)
        assert len(done)<len(files)
        wait_for(lambda: len(jobs.studies())>0 or not done, 5)
        kept = [pydicom.dcmread(p) for p in (tmp_path/'inbox'/'incoming').rglob('*.dcm')
                if p.parent.name!='partial']
        assert len(kept)>=len(done) and all(ds.PixelData for ds in kept)
        assert send_slices(files, port_of(server))==files # and again from the beginning
        assert jobs.studies()[0].n_slices==len(files)
        assert wait_for(lambda: not _half(jobs), 10) # nothing is left of the half object
    finally: server.shutdown()


def _half(jobs): return list((jobs.folder/arrivals.PARTIAL).iterdir())


def _multi_frame(path, k, *, size_mb):
    "An enhanced multi-frame object of about this size."
    ds = pydicom.dcmread(small_study(path.parent/f's{k}', k)[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    ds.Rows = ds.Columns = 512
    ds.NumberOfFrames = round(size_mb*1e6/2/512**2)
    ds.PixelData = bytes(ds.NumberOfFrames*512**2*2)
    ds.save_as(path, enforce_file_format=True)
    return path


def _send_large(files, port):
    "Send files from a process of its own; the answers."
    code = ('import json, sys\nfrom pynetdicom import _config, AE\n_config.STORE_SEND_CHUNKED_DATASET = True\n'
            'ae = AE(ae_title="MR1")\nae.add_requested_context(sys.argv[2], sys.argv[3])\n'
            'link = ae.associate("127.0.0.1", int(sys.argv[1]), ae_title="NEUROSEG")\n'
            'print(json.dumps([link.send_c_store(f).Status for f in sys.argv[4:]]))\nlink.release()')
    words = [sys.executable, '-c', code, port, EnhancedMRImageStorage, ExplicitVRLittleEndian, *files]
    said = subprocess.run([str(w) for w in words], capture_output=True, text=True, timeout=300)
    return json.loads(said.stdout or 'null')


def test_the_memory_does_not_grow_with_what_arrives(tmp_path):
    "Two associations hand over 16 MB each at one time; both objects are on disk, whole, and never in memory."
    jobs = Jobs(tmp_path/'inbox')
    files = [_multi_frame(tmp_path/f'{k}.dcm', k, size_mb=16) for k in range(2)]
    server, said = serve(jobs, Address('NEUROSEG', 0), senders=['MR1']), []
    tracemalloc.start()
    try:
        send = [threading.Thread(target=lambda f=f: said.extend(_send_large([f], port_of(server)))) for f in files]
        for t in send: t.start()
        for t in send: t.join()
        peak_mb = tracemalloc.get_traced_memory()[1]/1e6
    finally:
        tracemalloc.stop()
        server.shutdown()
    assert said==[SUCCESS]*2 and peak_mb<8, peak_mb
    sent = pydicom.dcmread(files[0]).PixelData
    kept = [pydicom.dcmread(p).PixelData for s in jobs.studies() for p in jobs.slice_paths(s.uid)]
    assert kept==[sent, sent]


def test_an_object_that_is_too_large_is_refused_and_the_next_one_taken(tmp_path, monkeypatch):
    "By the status for a lack of resources; nothing of it stays, and the association goes on."
    monkeypatch.setattr(arrivals, 'MAX_OBJECT_BYTES', 2_000_000)
    jobs = Jobs(tmp_path/'inbox')
    large, small = (_multi_frame(tmp_path/f'{mb}.dcm', mb, size_mb=mb) for mb in (5, 1))
    server = serve(jobs, Address('NEUROSEG', 0), senders=['MR1'])
    try: assert _send_large([large, small, large], port_of(server))==[NO_ROOM, SUCCESS, NO_ROOM]
    finally: server.shutdown()
    assert jobs.status()['slices']==1 and not _half(jobs)


def test_a_kill_while_an_object_arrives_leaves_nothing_half(tmp_path):
    "SIGKILL when a part of it is on disk: no row, no file with its name, and the next start deletes the part."
    from neuroseg.hospital.listener import Listener
    folder, large = tmp_path/'inbox', _multi_frame(tmp_path/'large.dcm', 1, size_mb=60)
    code = ('import sys, time\nfrom neuroseg.hospital.jobs import Jobs\n'
            'from neuroseg.hospital.receiver import Address, port_of, serve\n'
            'print(port_of(serve(Jobs(sys.argv[1]), Address("NEUROSEG", 0), senders=["MR1"])), flush=True)\n'
            'time.sleep(600)')
    receiver = subprocess.Popen([sys.executable, '-c', code, str(folder)], stdout=subprocess.PIPE, text=True)
    port, said = int(receiver.stdout.readline()), []
    sender = threading.Thread(target=lambda: said.append(_send_large([large], port)), daemon=True)
    def half(): return [f for f in (folder/arrivals.PARTIAL).glob('*') if f.stat().st_size>1_000_000]
    try:
        sender.start()
        assert wait_for(half, 120, pause_s=.01)
    finally:
        receiver.kill()
        receiver.wait()
    assert half() and half()[0].stat().st_size<large.stat().st_size
    listener = Listener(folder, Address('NEUROSEG', 0), ('MR1',), log=open(os.devnull, 'w'), threads=1)
    assert (listener.jobs.studies(), listener.sweep())==([], 1)
    assert not [f for f in (folder/'incoming').rglob('*') if f.is_file()]


def test_a_disk_that_is_too_full_is_told_while_the_object_comes(tmp_path):
    jobs, files = Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0)
    server = serve(jobs, Address('NEUROSEG', 0), senders=['MR1'], least_free=10**18)
    try: assert send_slices(files, port_of(server))==[]
    finally: server.shutdown()
    assert jobs.studies()==[] and not _half(jobs)


def _cutting_relay(port, *, after):
    "A port that passes bytes on and cuts the connection after some of them."
    listening = socket.create_server(('127.0.0.1', 0))
    def pump(a, b, limit):
        n = 0
        try:
            while n<limit and (part := a.recv(min(1024, limit-n))):
                n += len(part)
                b.sendall(part)
        except OSError: pass
        for s in (a, b):
            try: s.shutdown(socket.SHUT_RDWR)
            except OSError: pass
    def run():
        inside, _ = listening.accept()
        outside = socket.create_connection(('127.0.0.1', port))
        back = threading.Thread(target=pump, args=(outside, inside, 10**9), daemon=True)
        back.start()
        pump(inside, outside, after)
        back.join(5)
        listening.close()
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return listening.getsockname()[1], thread


@pytest.mark.skipif(os.name!='posix' or os.geteuid()!=0, reason='a small disk needs root to mount it')
def test_a_full_disk_is_answered_and_forgets_nothing(tmp_path):
    disk = tmp_path/'disk'
    disk.mkdir()
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=600k', 'tmpfs', disk], capture_output=True)
    if made.returncode: pytest.skip('a tmpfs cannot be mounted here')
    try:
        jobs = Jobs(disk/'inbox')
        files = [f for k in range(12) for f in small_study(tmp_path/f's{k}', k, side_px=96)]
        said = [take(jobs, f.read_bytes(), sender='MR1', least_free=0) for f in files]
        assert said[0]==SUCCESS and NO_ROOM in said and set(said)=={SUCCESS, NO_ROOM}
        kept = {str(p) for s in jobs.studies() for p in jobs.slice_paths(s.uid)}
        assert len(kept)==said.count(SUCCESS)
        for p in kept: assert pydicom.dcmread(p).PixelData # each acknowledged slice is whole
    finally: subprocess.run(['umount', disk], check=True)


def test_the_status_names_nobody(tmp_path):
    jobs, files = Jobs(tmp_path/'inbox'), small_study(tmp_path/'s', 0)
    for f in files: take(jobs, f.read_bytes(), sender='MR1')
    jobs.move(jobs.studies()[0], 'complete')
    said = json.dumps(jobs.status())
    ds = pydicom.dcmread(files[0])
    assert not [v for v in (ds.StudyInstanceUID, ds.PatientID, 'Nobody') if v in said]
    assert not [p for p in (tmp_path/'inbox').rglob('*') if ds.StudyInstanceUID in p.name or 'P1' in p.name]
