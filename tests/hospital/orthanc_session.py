"""Run inside a network namespace of its own: an Orthanc, a listener, studies there and back. Prints JSON.

    unshare -n sh -c 'ip link set lo up && exec python orthanc_session.py FOLDER N_STUDIES dimse|dicomweb'
"""
import io, json, socket, sys, time, urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from listening import small_study, start_listener, wait_for

import subprocess

import highdicom as hd
import numpy as np
import pydicom

from neuroseg.hospital.dicom_seg import source_series
from neuroseg.hospital.jobs import Jobs
from neuroseg.hospital.series import write_series
from neuroseg.scans.phantom import sample_path
from neuroseg.scans.reading import read_scan
from neuroseg.segmentation.result import segment

HTTP, DICOM, LISTENER = 8042, 4242, 11112
PLUGIN = Path('/usr/share/orthanc/plugins/libOrthancDicomWeb.so')


def ask(path, data=None, method=None):
    "Orthanc's answer to a request, as JSON where it is."
    url = f'http://127.0.0.1:{HTTP}/{path}'
    request = urllib.request.Request(url, data=data, method=method)
    with urllib.request.urlopen(request, timeout=120) as r: body = r.read()
    try: return json.loads(body)
    except ValueError: return body


def orthanc(folder):
    "A started server."
    (folder/'db').mkdir(parents=True)
    modality = dict(AET='NEUROSEG', Host='127.0.0.1', Port=LISTENER, AllowStorageCommitment=True)
    config = dict(Name='test', StorageDirectory=str(folder/'db'), IndexDirectory=str(folder/'db'), DicomAet='PACS',
                  DicomPort=DICOM, HttpPort=HTTP, RemoteAccessAllowed=False, AuthenticationEnabled=False,
                  DicomModalities=dict(neuroseg=modality), DicomAlwaysAllowStore=True, DicomAlwaysAllowFind=True,
                  Plugins=[str(PLUGIN)], DicomWeb=dict(Enable=True, Root='/dicom-web/', EnableWado=False),
                  OverwriteInstances=False, ConcurrentJobs=4,
                  DicomScuTimeout=120) # 10 s by default: on a busy machine the listener answers later
    (folder/'orthanc.json').write_text(json.dumps(config))
    with open(folder/'orthanc.log', 'w') as log:
        server = subprocess.Popen(['Orthanc', '--verbose', str(folder/'orthanc.json')], stdout=log, stderr=log)
    def up():
        try: return bool(ask('system'))
        except OSError: return False
    if not wait_for(up, 60): raise SystemExit('Orthanc has not started')
    return server


def answers(port):
    "Whether somebody listens on a port."
    try: socket.create_connection(('127.0.0.1', port), timeout=2).close()
    except OSError: return False
    return True


def upload(files):
    "Bring files into Orthanc; its name of their study."
    return [ask('instances', f.read_bytes(), 'POST')['ParentStudy'] for f in files][0]


def dicom_of(study, modality):
    "Data sets of one modality that Orthanc has of a study."
    series = [s for s in ask(f'studies/{study}/series') if s['MainDicomTags'].get('Modality')==modality]
    return [pydicom.dcmread(io.BytesIO(ask(f'instances/{i}/file'))) for s in series for i in s['Instances']]


def same_mask(files, seg):
    "Whether the SEG that came back is the mask that this machine makes of the same files."
    here = segment(files[0].parent)
    source = source_series(files, here.scan)
    back = hd.seg.Segmentation.from_dataset(seg).get_pixels_by_source_instance(
        source.instance_uids, combine_segments=True, assert_missing_frames_are_empty=True)
    return bool(np.array_equal(back.astype(bool), here.mask)), int(here.mask.sum())


def main(folder, n, way):
    folder = Path(folder)
    if n==1: studies = [write_series(read_scan(sample_path()), folder/'s0')]
    else: studies = [small_study(folder/f's{k}', k) for k in range(n)]
    server = orthanc(folder/'orthanc')
    archive = f'PACS@127.0.0.1:{DICOM}' if way=='dimse' else f'http://127.0.0.1:{HTTP}/dicom-web'
    with open(folder/'listener.log', 'w') as log:
        listener = start_listener(folder/'inbox', LISTENER, archive, log=log, ask=f'PACS@127.0.0.1:{DICOM}')
    try:
        names = [upload(files) for files in studies]
        if not wait_for(lambda: answers(LISTENER), 120): raise SystemExit('the listener has not started')
        start = time.monotonic()
        for name in names: # all at once: Orthanc's jobs run side by side
            ask('modalities/neuroseg/store', json.dumps(dict(Resources=[name], Synchronous=False)).encode(), 'POST')
        jobs = Jobs(folder/'inbox')
        def over():
            s = jobs.status()['studies']
            return s['purged']+s['quarantined']==n
        finished = wait_for(over, 60+20*n)
        seconds = time.monotonic()-start
        back = [(dicom_of(name, 'SEG'), dicom_of(name, 'SR')) for name in names]
        equal = [same_mask(files, seg[0]) if len(seg)==1 else (False, 0) for files, (seg, _) in zip(studies, back)]
        log = (folder/'orthanc'/'orthanc.log').read_text(errors='replace')
        print(json.dumps(dict(
            finished=finished, seconds=round(seconds, 1), status=jobs.status(), equal=[e for e, _ in equal],
            voxels=[v for _, v in equal], n_seg=[len(s) for s, _ in back], n_sr=[len(r) for _, r in back],
            commitments=log.count('Incoming storage commitment request'), already_stored=log.count('Already stored'),
            stow=log.count('STOW-RS request'), quarantined=jobs.status()['quarantined'])))
    finally:
        for process in (listener, server):
            process.terminate()
            process.wait(30)


if __name__=='__main__': main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
