"""A listener as a process of its own, senders, and an archive that counts what it gets."""
import logging, subprocess, sys, threading, time
from collections import Counter

import numpy as np
import pydicom
from pynetdicom import AE, evt
from pynetdicom.sop_class import (Comprehensive3DSRStorage, MRImageStorage, SegmentationStorage,
                                  StudyRootQueryRetrieveInformationModelFind)

from neuroseg.hospital.series import ROOT, write_series
from neuroseg.scans.stacks import Scan

logging.getLogger('pynetdicom').setLevel(logging.CRITICAL) # a listener that was killed refuses: that is the test


def small_study(folder, k, *, n_slices=4, side_px=64):
    "Files of a small synthetic study with a bright spot, number `k`."
    rng = np.random.default_rng(k)
    v = rng.random((n_slices, side_px, side_px)).astype(np.float32)*.1
    y, x = np.mgrid[:side_px, :side_px]-side_px/2
    v += (np.hypot(y, x)<.45*side_px)*.4
    v[1:-1] += (np.hypot(y-6, x+8)<6+k%3)*.5
    affine = np.diag([-3., -3., 6., 1.])
    scan = Scan(v[None], ('flair',), (6., 3., 3.), affine, [f's{i}' for i in range(n_slices)], 'volume', 'small', [])
    return write_series(scan, folder, uid=f'{ROOT}.7.{k+1}', StudyInstanceUID=f'{ROOT}.8.{k+1}', PatientID=f'P{k+1}',
                        FrameOfReferenceUID=f'{ROOT}.9.{k+1}')


class CountingArchive:
    "Takes objects, counts how often it got each, and answers C-FIND; a careless one does not match by SOPInstanceUID."
    def __init__(self, *, careless=False):
        self.careless = careless
        self.got, self.kept, self.lock, ae = Counter(), {}, threading.Lock(), AE(ae_title='PACS')
        for uid in (SegmentationStorage, Comprehensive3DSRStorage, StudyRootQueryRetrieveInformationModelFind):
            ae.add_supported_context(uid)
        on = [(evt.EVT_C_STORE, self._store), (evt.EVT_C_FIND, self._find)]
        self.server = ae.start_server(('127.0.0.1', 0), block=False, evt_handlers=on)
        self.address = f'PACS@127.0.0.1:{self.server.server_address[1]}'
    def _store(self, event):
        with self.lock:
            uid = str(event.request.AffectedSOPInstanceUID)
            self.got[uid] += 1
            self.kept[uid] = event.dataset
        return 0
    def _find(self, event):
        ask = event.identifier
        with self.lock: kept = [d for d in self.kept.values() if d.StudyInstanceUID==ask.StudyInstanceUID]
        if ask.QueryRetrieveLevel=='SERIES':
            for (uid, kind), n in Counter((d.SeriesInstanceUID, d.Modality) for d in kept).items():
                yield 0xFF00, _answer(SeriesInstanceUID=uid, Modality=kind, NumberOfSeriesRelatedInstances=n)
            return
        for d in kept:
            if self.careless or d.SOPInstanceUID==ask.SOPInstanceUID:
                yield 0xFF00, _answer(SOPInstanceUID=d.SOPInstanceUID)


def _answer(**tags):
    "A data set of an answer."
    ds = pydicom.Dataset()
    for k, v in tags.items(): setattr(ds, k, v)
    return ds


def free_port():
    "A port that nobody listens on now."
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def start_listener(folder, port, archive, *, quiet=1., log=None, **options):
    "Start `neuroseg listen` as a process."
    more = [word for k, v in options.items() for word in (f'--{k}', str(v))]
    words = [sys.executable, '-m', 'neuroseg', 'listen', str(folder), '--at', f'NEUROSEG@127.0.0.1:{port}',
             '--from', 'MR1,PACS', '--to', archive, '--quiet', str(quiet), '--threads', '1', *more]
    return subprocess.Popen(words, stdout=log or subprocess.DEVNULL, stderr=log or subprocess.DEVNULL)


def send_slices(files, port, *, calling='MR1', called='NEUROSEG'):
    "Send files on one association; returns those that were acknowledged, or None if it was rejected."
    ae = AE(ae_title=calling)
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.add_requested_context(MRImageStorage)
    link = ae.associate('127.0.0.1', port, ae_title=called)
    if not link.is_established: return None
    done = []
    try:
        for f in files:
            answer = link.send_c_store(pydicom.dcmread(f))
            if answer.get('Status')!=0: break
            done.append(f)
    except (RuntimeError, ValueError): pass # the association has ended
    if link.is_established: link.release()
    return done


def send_until_acknowledged(files, port, *, until):
    "Send files as an archive does: what was not acknowledged is sent again, until a time."
    left = list(files)
    while left and time.monotonic()<until:
        done = send_slices(left, port) or []
        left = [f for f in left if f not in done]
        if left: time.sleep(.3)
    return not left


def wait_for(condition, seconds, pause_s=.2):
    "Wait until a condition holds; False when the time is over."
    until = time.monotonic()+seconds
    while time.monotonic()<until:
        if condition(): return True
        time.sleep(pause_s)
    return False
