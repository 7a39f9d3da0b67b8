"""Studies go from a real archive to the listener and come back as SEG and SR: Debian's Orthanc, on loopback."""
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

pytest.importorskip('pynetdicom')
pytest.importorskip('highdicom')

SESSION = Path(__file__).with_name('orthanc_session.py')
# Orthanc 1.10 listens on every address, so it gets a network of its own, in which there is only loopback
APART = ['unshare', '-n'] if os.name=='posix' and os.geteuid()==0 else ['unshare', '-rn']


def _cannot():
    "Why the tests cannot run here; empty if they can."
    if not shutil.which('Orthanc'): return 'Orthanc is not installed (Debian: apt install orthanc orthanc-dicomweb)'
    if not Path('/usr/share/orthanc/plugins/libOrthancDicomWeb.so').exists(): return 'orthanc-dicomweb is not installed'
    if not shutil.which('unshare') or not shutil.which('ip'): return 'there is no unshare or ip (Debian: iproute2)'
    if subprocess.run([*APART, 'ip', 'link', 'set', 'lo', 'up'], capture_output=True).returncode:
        return 'a network namespace cannot be made here'
    return ''


reason = _cannot()
pytestmark = pytest.mark.skipif(bool(reason), reason=reason)


def session(folder, n, way):
    "What `orthanc_session.py` reports."
    inside = 'ip link set lo up && exec "$0" "$@"'
    said = subprocess.run([*APART, 'sh', '-c', inside, sys.executable, str(SESSION), str(folder), str(n), way],
                          capture_output=True, text=True, timeout=1500)
    assert said.returncode==0, said.stderr[-3000:]
    return json.loads(said.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize('way', ('dimse', 'dicomweb'))
def test_a_study_there_and_back(tmp_path, way):
    found = session(tmp_path, 1, way)
    assert found['finished'] and found['status']['studies']['purged']==1, found
    assert (found['n_seg'], found['n_sr'], found['equal'])==([1], [1], [True])
    assert found['voxels'][0]>0
    assert found['already_stored']==0 # nothing was sent twice
    assert found['commitments']>=1 if way=='dimse' else found['stow']==2
    log = (tmp_path/'listener.log').read_text()
    assert 'segmented: 24 slices' in log and 'Traceback' not in log and 'SYNTHETIC' not in log


@pytest.mark.slow
def test_fifty_studies_at_once(tmp_path):
    found = session(tmp_path, 50, 'dimse')
    assert found['finished'], found
    assert found['status']['studies']['purged']==50, found['quarantined']
    assert set(found['n_seg'])==set(found['n_sr'])=={1}
    assert all(found['equal']) and found['already_stored']==0
