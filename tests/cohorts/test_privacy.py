"What the guard catches, what it lets through, and that nothing of a private cohort gets out of a run."
import base64, io, json, shutil, struct, subprocess, sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tracked_files
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from neuroseg.cohorts import disclosure, privacy
from neuroseg.cohorts import membership
from neuroseg.cohorts import phi_kinds
from neuroseg.cohorts import phi_scan
from neuroseg.cli import main
from neuroseg.core import NeurosegError, OutputError, read_json, write_json
from neuroseg.evaluation.cohort_score import seen_in_training, training_overlap
from neuroseg.scans.phantom import write_phantom_hospital

# Planted, in pieces, so that this file is not its own find
SECRET = 'MIL' 'LER'
HOME = '/'.join(['', 'home', 'dr.mi' 'ller', 'mri'])
UID = '.'.join(['1.2.276.0.7230010', '3.1.4.8323329', '5576.1517874381'])


def picture(form='PNG', **how):
    with io.BytesIO() as f:
        Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(f, form, **how)
        return f.getvalue()


def text_chunk():
    note = PngInfo()
    note.add_text('Description', SECRET)
    return note


def exif(thumbnail=b''):
    e = Image.Exif()
    e[315] = SECRET
    return e.tobytes() + thumbnail


def notebook(*outputs, source='1', **cell):
    return json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={},
                           cells=[dict(cell_type='code', source=source, metadata={}, execution_count=1,
                                       outputs=list(outputs), **cell)])).encode()


def data(**mime): return dict(output_type='display_data', metadata={}, data=mime)


def stream(text): return dict(output_type='stream', name='stderr', text=text)


def proto(n, body):
    "A field of a protobuf message."
    size = len(body)
    return bytes([n << 3 | 2]) + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])) + body


def nifti(at=0, text=b'', extension=0):
    head = bytearray(352)
    head[:4], head[344:348] = struct.pack('<i', 348), b'n+1\0'
    head[at:at+len(text)] = text
    head[348] = extension
    return bytes(head) + bytes(64)


def npz(**arrays):
    with io.BytesIO() as f:
        np.savez(f, **arrays)
        return f.getvalue()


def b64(blob): return base64.b64encode(blob).decode()


def weights(**meta):
    head = json.dumps(dict(__metadata__=meta)).encode()
    return struct.pack('<Q', len(head)) + head


TABLE = ('<table><thead><tr><th></th><th>patient</th><th>dice</th></tr></thead>'
         '<tbody><tr><th>0</th><td>%s</td><td>0.9</td></tr></tbody></table>')

# What was planted: file, its bytes, the kind that must catch it, and where it says it is
PLANTED = {
    'image output': ('a.ipynb', notebook(data(**{'image/png': b64(picture())})), 'notebook picture',
                     'cell 1, output 1'),
    'SVG output': ('a.ipynb', notebook(data(**{'image/svg+xml': '<svg/>'})), 'notebook picture', 'cell 1, output 1'),
    'attachment': ('a.ipynb', notebook(attachments={'x.png': {'image/png': b64(picture())}}), 'attachment', 'cell 1'),
    'text in the picture of an output': ('a.ipynb', notebook(data(**{'image/png': b64(picture(pnginfo=text_chunk()))})),
                                         'picture text', 'cell 1, output 1, chunk tEXt'),
    'picture in Markdown': ('a.ipynb', notebook(source=f'![](data:image/png;base64,{b64(picture())})'),
                            'embedded picture', 'cell 1'),
    'picture in a page': ('a.html', f'<img src="data:image/jpeg;base64,{b64(picture("JPEG"))}">'.encode(),
                          'embedded picture', 'file'),
    'picture in JSON': ('a.json', json.dumps(dict(preview=b64(picture()))).encode(), 'embedded picture', 'file'),
    'picture in SVG': ('a.svg', f'<svg><image href="data:image/png;base64,{b64(picture())}"/></svg>'.encode(),
                       'embedded picture', 'file'),
    'screenshot': ('a.png', picture(), 'picture', 'file'),
    'PNG text chunk': ('a.png', picture(pnginfo=text_chunk()), 'picture text', 'chunk tEXt'),
    'after the end of a PNG': ('a.png', picture() + SECRET.encode(), 'picture text', 'after the last chunk'),
    'JPEG comment': ('a.jpg', picture('JPEG', comment=SECRET.encode()), 'picture text', 'JPEG comment'),
    'EXIF in JPEG': ('a.jpg', picture('JPEG', exif=exif()), 'EXIF', 'segment APP1'),
    'EXIF in PNG': ('a.png', picture(exif=exif()), 'EXIF', 'chunk eXIf'),
    'thumbnail in EXIF': ('a.jpg', picture('JPEG', exif=exif(picture('JPEG'))), 'thumbnail', 'segment APP1'),
    'TIFF description': ('a.tif', picture('TIFF', description=SECRET), 'TIFF tag', 'tag ImageDescription'),
    'TIFF artist': ('a.tif', picture('TIFF', artist=SECRET), 'TIFF tag', 'tag Artist'),
    'path in a traceback': ('a.ipynb',
                            notebook(dict(output_type='error', ename='E', evalue='x',
                                          traceback=[f'\x1b[31m{HOME}/1.png\x1b[0m'])), 'path', 'cell 1, output 1'),
    'home folder in code': ('a.py', f'folder = "{HOME}"\n'.encode(), 'path', 'line 1'),
    'Windows path in a log': ('a.log', b'\nreading D:\\PACS\\export\n', 'path', 'line 2'),
    'share in a log': ('a.log', b'from \\\\radiology01\\scans\n', 'path', 'line 1'),
    'name in a title': ('a.ipynb',
                        notebook(source=f'# Scan of {SECRET}^ANN'.replace('#', '"'), ).replace(b'"code"',
    b'"markdown"'), 'patient field', 'cell 1, line 1'),
    'name in the title of a page': ('a.html', b'<title>Patient: Ann Miller</title>', 'patient field', 'line 1'),
    'field of a DICOM header in JSON': ('a.json', json.dumps(dict(PatientName=SECRET)).encode(), 'patient field',
                                        'line 1'),
    'date of birth': ('a.yml.txt', b'birth_date: 1971-02-03', 'patient field', 'line 1'),
    'DICOM identifier': ('a.ipynb', notebook(data(**{'text/plain': f"'{UID}'"})), 'DICOM UID', 'cell 1, output 1'),
    'DICOM header': ('a.ipynb', notebook(stream("(0010,0020) Patient ID  LO: '77'")), 'DICOM header',
                     'cell 1, output 1'),
    'DICOM file': ('IM000001', bytes(128) + b'DICM', 'scan', 'file'),
    'progress bar': ('a.ipynb', notebook(stream(f'{SECRET.lower()}_7:  40%|####      | 4/10')), 'progress bar',
                     'cell 1, output 1'),
    'table of patients': ('a.csv', b'patient,dice\nMiller,0.9\n', 'patient rows', 'table'),
    'table of patients, German': ('a.csv', b'\xef\xbb\xbfdice;Case\n0,9;7\n', 'patient rows', 'table'),
    'table in a notebook': ('a.ipynb', notebook(data(**{'text/html': TABLE % 'Miller'})), 'patient rows',
                            'cell 1, output 1'),
    'table as text': ('a.ipynb', notebook(data(**{'text/plain': '  patient  dice\n0  Miller   0.9'})), 'patient rows',
                      'cell 1, output 1'),
    'rows in JSON': ('a.json', json.dumps(dict(worst=[dict(patient='P4', dice=.2)])).encode(), 'patient rows', 'worst'),
    'split on a card': ('a.json', json.dumps(dict(split=dict(train=['Miller', 'Stone']))).encode(), 'patient list',
                        'split.train'),
    'cached array': ('a.npz', npz(x=np.zeros((3, 32, 32), np.uint8)), 'array', 'x'),
    'names in an array': ('a.npz', npz(who=np.array(['Miller'])), 'array', 'who'),
    'volume': ('a.nii', nifti(), 'scan', 'file'),
    'NIfTI description': ('a.nii', nifti(148, b'Miller'), 'NIfTI header', 'descrip'),
    'NIfTI database': ('a.nii', nifti(14, b'PACS 7'), 'NIfTI header', 'db_name'),
    'NIfTI auxiliary file': ('a.nii', nifti(228, b'miller.nii'), 'NIfTI header', 'aux_file'),
    'NIfTI extension': ('a.nii', nifti(extension=1), 'NIfTI header', 'extension'),
    'ONNX doc string': ('a.onnx', proto(6, SECRET.encode()), 'ONNX text', 'doc string of the model'),
    'ONNX doc string of an operation': ('a.onnx', proto(7, proto(1, proto(4, b'Relu') + proto(6, HOME.encode()))),
                                        'ONNX text', 'doc string of an operation'),
    'ONNX metadata': ('a.onnx', proto(14, proto(1, b'who') + proto(2, SECRET.encode())), 'ONNX text',
                      'metadata of the model'),
    'safetensors metadata': ('a.safetensors', weights(format='pt', patients=SECRET), 'safetensors text', 'metadata'),
    'PDF author': ('a.pdf', b'%PDF-1.4\n<< /Author (Dr Miller) >>', 'PDF metadata', 'information'),
    'pickle': ('a.pkl', b'\x80\x04.', 'opaque file', 'file'),
    'workbook': ('a.xlsx', b'PK', 'opaque file', 'file'),
    'unknown bytes': ('a.bin', b'\xff\xfe\xfd\x00', 'opaque file', 'file'),
    'folder of a private cohort': ('cohort.json', b'{"private": true}', 'private cohort', 'file')}


@pytest.fixture
def project(tmp_path):
    "A folder that is a project, and a way to put a file into it."
    root = tmp_path.resolve()/'project'
    root.mkdir()
    (root/'pyproject.toml').touch()
    def put(name, blob):
        (root/name).parent.mkdir(parents=True, exist_ok=True)
        (root/name).write_bytes(blob)
        return root
    return put


@pytest.mark.parametrize('what', PLANTED)
def test_a_planted_leak_is_caught(project, what):
    "By its own kind and at its place, and without a word of what it is."
    name, blob, kind, place = PLANTED[what]
    root = project(name, blob)
    found = phi_scan.check([root])
    assert (kind, place) in {(l.kind, l.place) for l in found}
    assert not any(w in str(l) for l in found for w in (SECRET, SECRET.title(), HOME, UID))


@pytest.mark.parametrize('what', PLANTED)
def test_without_its_reader_it_would_be_missed(project, what, monkeypatch):
    "Each kind is found by itself: nothing else reports it."
    name, blob, kind, place = PLANTED[what]
    found = {l.kind for l in phi_scan.check([project(name, blob)])}
    assert (found - {kind}
            <= {'picture', 'scan', 'embedded picture', 'notebook picture', 'EXIF', 'DICOM header', 'attachment'})


def test_the_kinds_are_all_planted():
    assert {p[2] for p in PLANTED.values()} | {'name', 'user name'} == set(phi_kinds.KINDS)


PUBLIC = {'a.ipynb': notebook(data(**{'image/png': b64(picture()), 'text/html': TABLE % 'P1'}),
                              stream('fold 0:  40%|####      |')),
          'figures/a.png': picture(), 'patients.csv': b'patient,dice\npatient1,0.9\n',
          'a.html': f'<img src="data:image/png;base64,{b64(picture())}">'.encode()}


@pytest.mark.parametrize('record,clean', [
    (dict(cohort=dict(private=False, source='BraTS 2018')), True),
    (dict(data_hash=next(iter(phi_scan.PUBLISHED))), True),
    (dict(cohort=dict(private=True)), False), (dict(data_hash='0'*64), False), (dict(cohort=dict(name='x')), False),
    ({}, False)])
def test_a_report_of_a_public_cohort_raises_no_alarm(project, record, clean):
    for name, blob in PUBLIC.items(): root = project(f'reports/10_coin/cpu/{name}', blob)
    write_json(root/'reports/10_coin/cpu/run.json', record)
    assert ({l.kind for l in phi_scan.check([root])} == set()) == clean


def test_a_public_cohort_excuses_no_path(project):
    root = project('run/a.ipynb', notebook(stream(f'{HOME}/1.png')))
    write_json(root/'run/run.json', dict(cohort=dict(private=False, source='CC BY')))
    assert [l.kind for l in phi_scan.check([root])] == ['path']


def test_the_nearest_voucher_decides(project):
    "A private run inside a public folder is private."
    root = project('reports/private_cpu/a.png', picture())
    write_json(root/'reports/run.json', dict(cohort=dict(private=False, source='CC BY')))
    write_json(root/'reports/private_cpu/run.json', dict(cohort=dict(private=True)))
    assert [l.kind for l in phi_scan.check([root])] == ['picture']


@pytest.mark.parametrize('text', ['/home/me/x', 'Dice 0.84, class 1.2.840.10008.5.1.4.1.1.4', 'patient: nobody',
                                  '45% of slices', 'version 1.2.3.4.5.6', 'x^2 and R^T', 'https://a.b/home/x',
                                  'f(0010, 0020)'])
def test_plain_text_raises_no_alarm(project, text): assert phi_scan.check([project('a.txt', text.encode())]) == []


def test_the_login_is_found(project, monkeypatch):
    monkeypatch.setattr(phi_scan.getpass, 'getuser', lambda: 'drmiller')
    root = project('a.txt', b'run by drmiller')
    assert [l.kind for l in phi_scan.check([root])] == ['user name']
    project('a.txt', b'run by drmillers')
    assert phi_scan.check([root]) == []


def test_the_committed_repository_is_clean():
    "Everything that git holds or would add."
    assert [str(l) for l in phi_scan.check([ROOT]) if l.file in tracked_files()] == []


def test_the_repository_is_not_clean_by_chance(repo_copy):
    "Were the stored runs not vouched for, their pictures would be found."
    (repo_copy/'reports/20_exploration/cpu/run.json').unlink()
    (repo_copy/'pyproject.toml').write_text('')
    found = {(l.file.split('/')[0], l.kind) for l in phi_scan.check([repo_copy])}
    assert {('reports', 'picture'), ('reports', 'notebook picture'), ('reports', 'embedded picture'),
            ('nbs', 'notebook picture'), ('neuroseg', 'scan')} <= found


@pytest.fixture
def hospital(tmp_path):
    "A synthetic cohort whose patients have names."
    folder = write_phantom_hospital(tmp_path.resolve()/'ward7', n_patients=6, size_px=48, n_slices=6)
    for n, name in enumerate(('Ann_Miller', 'Bob_Stone', 'Cleo_Brown', 'Dora_Young', 'Eve_Green', 'Fred_Long'), 1):
        (folder/f'patient{n}').rename(folder/name)
    (folder/'cohort.json').unlink() # that says they are drawn
    return folder


def test_the_names_of_a_cohort_are_found(project, hospital):
    root = project('a.md', b'as in the case of bob stone')
    project('Eve_Green.txt', b'')
    assert phi_scan.check([root]) == []
    assert ({(l.file, l.kind) for l in phi_scan.check([root], cohort=hospital)}
            == {('a.md', 'name'), ('Eve_Green.txt', 'name')})


def test_the_command_says_it_by_its_exit_code(project, capsys):
    root = project('a.png', picture())
    assert main(['privacy', 'check', str(root)]) == 1
    assert (capsys.readouterr().out.splitlines()
            == ['a.png: file: picture: a picture of no public cohort', '1 finding(s) in 1 file(s)'])
    (root/'a.png').unlink()
    assert main(['privacy', 'check', str(root)]) == 0


def test_the_hook_is_the_command():
    import yaml
    hooks = yaml.safe_load((ROOT/'.pre-commit-hooks.yaml').read_text(encoding='utf-8'))
    own = yaml.safe_load((ROOT/'.pre-commit-config.yaml').read_text(encoding='utf-8'))['repos'][0]['hooks']
    assert [h['entry'] for h in hooks] == ['neuroseg privacy check'] and own[0]['entry'].endswith(hooks[0]['entry'])
    assert own[0]['id'] == hooks[0]['id']


# What may leave

def test_numbers_are_drawn_once_and_by_lot(hospital, tmp_path):
    first = privacy.pseudonym(privacy.policy_of(hospital))
    assert privacy.pseudonym(privacy.policy_of(hospital)) == first
    assert sorted(first.values()) == [f'P{n}' for n in range(1, 7)]
    shutil.copytree(hospital/'Ann_Miller', hospital/'Gil_Short')
    later = privacy.pseudonym(privacy.policy_of(hospital))
    assert {k: v for k, v in later.items() if k in first} == first and later['Gil_Short'] == 'P7'
    orders = set()
    for _ in range(8):
        shutil.rmtree(hospital/privacy.STATE)
        orders.add(tuple(privacy.pseudonym(privacy.policy_of(hospital)).values()))
    assert len(orders) > 1, 'the order of the names would tell the numbers'


def test_two_processes_draw_the_same_numbers(hospital):
    code = f'from neuroseg.cohorts.privacy import *; print(pseudonym(policy_of({str(hospital)!r})))'
    runs = [subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
            for _ in range(3)]
    said = {r.communicate()[0] for r in runs}
    assert len(said) == 1 and "'Ann_Miller': 'P" in said.pop()


def test_a_cohort_that_cannot_be_written_to_is_numbered_all_the_same(hospital, monkeypatch):
    def refuse(*args, **kwargs): raise PermissionError(13, 'no')
    monkeypatch.setattr(Path, 'mkdir', refuse)
    cohort = privacy.policy_of(hospital)
    assert privacy.pseudonym(cohort) == privacy.pseudonym(cohort) and not (hospital/privacy.STATE).exists()
    assert privacy.own_cache(cohort) != hospital/privacy.STATE


# ---- whether a patient was trained on: yes, no, or it cannot be told

def card_of(folder):
    "The facts of a card whose model was trained on all patients of a private cohort."
    policy = privacy.policy_of(folder)
    return dict(split=disclosure.safe_split(dict(train=list(policy.patients), test=[]), policy))


def trained_on(facts, folder):
    policy = privacy.policy_of(folder)
    return seen_in_training(facts, policy.patients, policy)


def test_training_patients_are_known_again(hospital, tmp_path):
    facts, patients = card_of(hospital), list(privacy.policy_of(hospital).patients)
    assert trained_on(facts, hospital) == sorted(patients)
    shutil.copytree(hospital/patients[0], hospital/'Zoe_Short')
    assert 'Zoe_Short' not in trained_on(facts, hospital) # the same key: no means no
    assert trained_on(facts, shutil.copytree(hospital, tmp_path/'with its key')) == sorted(patients)


def test_a_copy_without_its_key_cannot_be_told(hospital, tmp_path):
    facts = card_of(hospital)
    copied = shutil.copytree(hospital, tmp_path/'copy', ignore=shutil.ignore_patterns(privacy.STATE))
    assert trained_on(facts, copied) is None
    with pytest.raises(NeurosegError, match='training set'):
        training_overlap(facts, privacy.policy_of(hospital).patients, privacy.policy_of(hospital))
    said = training_overlap(facts, privacy.policy_of(copied).patients, privacy.policy_of(copied))
    assert 'does not tell' in said and 'none' not in said


def test_a_cohort_that_may_only_be_read_is_known_again(hospital, tmp_path, monkeypatch):
    "Each policy stands for another process: nothing is kept between them."
    def refuse(*args, **kwargs): raise PermissionError(13, 'no')
    monkeypatch.setattr(privacy.os, 'access', lambda folder, mode: False)
    monkeypatch.setattr(Path, 'mkdir', refuse)
    def forget(): privacy._DRAWN.clear(); return hospital
    facts, numbers = card_of(forget()), privacy.pseudonym(privacy.policy_of(hospital))
    assert trained_on(facts, forget()) == sorted(numbers) and not (hospital/privacy.STATE).exists()
    assert privacy.pseudonym(privacy.policy_of(forget())) == numbers
    monkeypatch.undo()
    other = shutil.copytree(hospital, tmp_path/'other'); (other/'Ann_Miller').rename(other/'Gil_Short')
    assert trained_on(facts, other) is None


@pytest.mark.parametrize('split', [None, dict(), dict(train=9), dict(train=9, keyed=[]), dict(train=9, keyed=['ab'])])
def test_a_card_that_does_not_tell_is_no_no(hospital, split):
    assert trained_on(dict(split=split), hospital) is None


def test_examinations_of_a_training_patient_are_seen():
    assert seen_in_training(dict(split=dict(train=['BraTS-GLI-00000-000'])), {'BraTS-GLI-00000'}) == ['BraTS-GLI-00000']


@pytest.mark.parametrize('raised',
                         [KeyError('Ann_Miller'), OSError(2, 'gone', '/x/Ann_Miller/1.png'),
                          UnicodeDecodeError('utf-8', b'x', 0, 1, 'Ann_Miller'), AssertionError(),
                          OutputError('Ann_Miller')])
def test_no_exception_carries_a_name(hospital, raised):
    import traceback
    with pytest.raises(Exception) as e:
        with privacy.guarded(privacy.policy_of(hospital)): raise raised
    assert 'Miller' not in ''.join(traceback.format_exception_only(e.value))
    assert e.value.__context__ is e.value.__cause__ is None


def test_a_guard_ends_with_its_block(hospital, monkeypatch):
    monkeypatch.setenv('NEUROSEG_CACHE', 'before')
    import logging, os
    streams, factory = (sys.stdout, sys.stderr), logging.getLogRecordFactory()
    with pytest.raises(NeurosegError, match='ValueError'):
        with privacy.guarded(privacy.policy_of(hospital)):
            assert (sys.stdout, sys.stderr) == streams, 'only a study, in a kernel of its own, has its streams replaced'
            raise ValueError
    with privacy.guarded(privacy.policy_of(hospital), printed=True): pass
    assert (sys.stdout, sys.stderr) == streams and logging.getLogRecordFactory() is factory
    assert os.environ['NEUROSEG_CACHE'] == 'before'


@pytest.mark.parametrize('raised', [KeyError('Ann_Miller'), OutputError('Ann_Miller')])
def test_no_exception_leaves_the_writer_of_results_with_a_name(hospital, tmp_path, raised):
    import traceback
    from neuroseg.cohorts.cohort import Cohort
    with pytest.raises(Exception) as e:
        with Cohort.open(hospital).results(tmp_path/'run') as out, out.record({}): raise raised
    assert 'Miller' not in ''.join(traceback.format_exception_only(e.value))
    assert e.value.__context__ is e.value.__cause__ is None
    assert not (tmp_path/'run'/'run.json').exists()


def test_the_writer_of_results_refuses_a_folder_that_git_would_publish(hospital):
    from neuroseg.cohorts.cohort import Cohort
    with pytest.raises(OutputError, match='git does not ignore'):
        with Cohort.open(hospital).results(ROOT/'scores'): pass


def test_what_nobody_calls_public_is_private(hospital, tmp_path):
    assert not privacy.policy_of(write_phantom_hospital(tmp_path/'drawn', n_patients=1, size_px=32, n_slices=4)).private
    assert privacy.policy_of(hospital).private and 'ward7' not in json.dumps(privacy.policy_of(hospital).facts)
    with open(hospital/'cohort.csv', 'w') as f:
        f.write('patient,case\n' +
                ''.join(f'{p.name},Brats18_TCIA01_{n}_1\n' for n, p in enumerate(sorted(hospital.iterdir()))
                        if p.is_dir()))
    assert not privacy.policy_of(hospital).private
    privacy.mark(hospital)
    assert privacy.policy_of(hospital).private


# A whole run

# Cells of a study, each with its tag or none; `%s` stands for a cell that a test adds
STUDY = [
    (None, 'import numpy as np, sys\nfrom IPython.display import Markdown\n'
           'from neuroseg.cohorts.cases import find_cases, load_case\nfrom neuroseg.reports.study_run import StudyRun'),
    ('numbers', 'from neuroseg.reports.stored_run import table\ndef numbers(run):\n    rows = table(run, "patients")\n'
                '    return dict(mean=float(rows["lesion_px"].mean()), worst=rows.to_dict("records")[:1])'),
    ('answer', 'def headline(n): return "Lesions."\n'
               'def answer(n): return "The mean lesion is known; ask Ann_Miller."'),
    ('figures', 'from neuroseg.reports.plots import new_figure\nfrom neuroseg.reports.stored_run import table\n'
                'def draw_dots(run):\n    fig, ax = new_figure(height_in=1)\n'
                '    ax.plot(table(run, "patients")["lesion_px"])\n    return fig'),
    (None, 'run = StudyRun("10_ward", profile=profile, out=out, cohort=cohort)\nfolder = run.cohort(cohort)\n'
           'cases = find_cases(folder)\nprint(folder, cases[0])\ncases[0].folder'),
    (None, 'rows = []\nfor c in cases:\n    scan, mask = load_case(c)\n    print("reading", c.case, file=sys.stderr)\n'
           '    run.panel(c.case, np.ascontiguousarray(scan.data[0,0]).astype(np.uint8), label=c.patient)\n'
           '    rows.append(dict(patient=c.patient, lesion_px=int(mask.sum())))'),
    (None, 'run.table("patients", rows)'), (None, 'run.figure(draw_dots)'),
    (None, 'from PIL import Image\nImage.fromarray(mask[0])'), (None, '%s'),
    (None, 'found = run.finish(numbers, headline, answer, data_hash="0"*64)\nMarkdown(found["answer"])')]


def private_study(root, hospital, extra='1', **params):
    "A study of a private cohort that says and shows whatever it can."
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    from neuroseg.reports.execution import run_study
    cells = [new_markdown_cell('# A ward\n\n> Who?'),
             new_code_cell('profile = "smoke"\nout = None\ncohort = None', metadata={'tags': ['parameters']}),
             *(new_code_cell(extra if c == '%s' else c, metadata={'tags': [tag]} if tag else {}) for tag, c in STUDY)]
    (root/'nbs/studies').mkdir(parents=True, exist_ok=True)
    (root/'reports/10_ward').mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(metadata={'kernelspec': dict(display_name='python3', language='python',
                                                             name='python3')}, cells=cells),
                                                             root/'nbs/studies/10_ward.ipynb')
    (root/'reports/10_ward/params.yml').write_text('smoke: {}')
    return run_study('10', root=root, progress=False, cohort=str(hospital), **params)


def everything(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(Path(folder).rglob('*')) if p.is_file()}


@pytest.fixture
def repo(tmp_path, monkeypatch):
    "A repository, and places for caches and temporary files that can be looked through."
    pytest.importorskip('papermill'), pytest.importorskip('torch')
    root = tmp_path.resolve()/'repo'
    for name in ('tmp', 'cache', 'ipython'): (tmp_path.resolve()/name).mkdir()
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path.resolve()/'cache'))
    monkeypatch.setenv('TMPDIR', str(tmp_path.resolve()/'tmp'))
    monkeypatch.setattr('tempfile.tempdir', None)
    return root


def betrayed(tmp_path, hospital, but=()):
    "Files outside the cohort's own folder that hold a name of it or one of its pictures."
    from neuroseg.cohorts.privacy import policy_of, name_pattern
    cohort = policy_of(hospital)
    pattern, scans = name_pattern(cohort), [f.read_bytes()[-200:-20] for c in cohort.cases for f in c.images]
    return [n for n, b in everything(tmp_path).items() if not (tmp_path.resolve()/n).is_relative_to(hospital)
            and n not in but
            and (pattern.search(b.decode('utf-8', 'ignore')) or pattern.search(n) or any(s in b for s in scans))]


def test_a_private_run_leaves_nothing_outside_the_cohort(repo, hospital, tmp_path, capfd):
    extra = ('from neuroseg.learn.slices import slice_set\nfrom neuroseg.scans.preparation import Prep\n'
             'len(slice_set(cases, Prep(size_px=32), progress=True))')
    run = private_study(repo, hospital, extra=extra)
    assert run.name == 'private_smoke' and betrayed(tmp_path, hospital, but=('repo/nbs/studies/10_ward.ipynb',)) == []
    said = capfd.readouterr()
    assert not any(w in said.out + said.err for w in ('Miller', 'Stone', str(hospital)))
    assert list((tmp_path/'cache').rglob('*')) == [] and list((hospital/'.neuroseg'/'prepared').iterdir())
    found, record = read_json(run/'summary.json'), read_json(run/'run.json')
    assert found['worst'] == '1 withheld' and 'P' in found['answer'] and found['mean'] > 0
    assert (record['cohort']
            == dict(name='a private cohort', private=True, source='private: nobody has called it public', patients=6))
    assert record['data_hash'].startswith('keyed:')
    assert (run/'patients.csv').read_text().splitlines()[0].startswith('column,patients,values,mean')
    assert len((run/'patients.csv').read_text().splitlines()) == 2
    nb = json.loads((run/'notebook.ipynb').read_text(encoding='utf-8'))
    shown = [base64.b64decode(o['data']['image/png']) for c in nb['cells'] for o in c.get('outputs', [])
             if 'image/png' in o.get('data', {})]
    assert shown == [(run/'figures/dots.png').read_bytes()], 'the figure that went through StudyRun, and no slice'
    assert not (run/'.private.json').exists()
    found = phi_scan.check([run], root=run, cohort=hospital)
    assert found != [], 'were it not a drawing, the picture would be found'
    assert ({l.kind for l in phi_scan.check([run], root=run, cohort=hospital)}
            <= {'picture', 'notebook picture', 'embedded picture'})


def test_a_private_run_that_fails_leaves_nothing_either(repo, hospital, tmp_path):
    with pytest.raises(Exception) as e:
        private_study(repo, hospital, extra='raise ValueError(f"{cases[1].folder} of {cases[1].patient}")')
    assert 'ValueError' in str(e.value) and not any(w in str(e.value) for w in ('Bob', 'Stone', 'ward7'))
    assert (repo/'reports/10_ward/private_smoke.failed/failed.ipynb').is_file()
    # the study's own source, which the test wrote, names one
    assert betrayed(tmp_path, hospital, but=('repo/nbs/studies/10_ward.ipynb',)) == []


def test_a_study_that_writes_by_itself_is_stopped(repo, hospital, tmp_path):
    extra = ('(run.folder/"notes.txt").write_text(cases[0].patient)\n'
             'Image.fromarray(np.zeros((9,9), np.uint8)).save(run.folder/"mine.png")\n'
             'np.save(run.folder/"x.npy", np.zeros((40,40)))')
    with pytest.raises(Exception, match='would betray patients') as e: private_study(repo, hospital, extra=extra)
    assert ([w in str(e.value) for w in ('mine.png: file: picture', 'notes.txt: line 1: name', 'x.npy: array: array')]
            == [True]*3)
    assert not (repo/'reports/10_ward/private_smoke').exists()
    assert betrayed(tmp_path, hospital, but=('repo/nbs/studies/10_ward.ipynb',)) == []


def test_results_of_a_private_cohort_stay_out_of_git(hospital, tmp_path):
    assert (subprocess.run(['git', 'check-ignore', '-q', 'reports/25_x/private_cpu/run.json'], cwd=ROOT).returncode
            in (0, 128))
    cohort = privacy.policy_of(hospital)
    disclosure.check_place(ROOT/'reports/25_x/private_cpu', cohort)
    if (ROOT/'.git').exists():
        with pytest.raises(OutputError, match='git does not ignore'):
            disclosure.check_place(ROOT/'reports/25_x/cpu', cohort)


def test_four_patients_are_no_statistic(repo, hospital):
    for name in ('Eve_Green', 'Fred_Long'): shutil.rmtree(hospital/name)
    run = private_study(repo, hospital)
    assert (run/'patients.csv').read_text().splitlines()[0] == 'column,patients,values,mean'
    assert read_json(run/'summary.json')['answer'] == disclosure.FEW


def test_a_real_study_of_a_private_cohort(repo, tmp_path):
    "Study 20, unchanged, on a cohort in another layout that is marked private."
    from neuroseg.reports.execution import run_study
    from neuroseg.scans.phantom import write_phantom_lgg
    (repo/'reports/20_exploration').mkdir(parents=True)
    (repo/'nbs/studies').mkdir(parents=True)
    for name in ('nbs/studies/20_exploration.ipynb', 'reports/20_exploration/params.yml'):
        shutil.copy(ROOT/name, repo/name)
    ward = write_phantom_lgg(tmp_path.resolve()/'ward9', n_patients=8, size_px=96, n_slices=14)
    privacy.mark(ward)
    run = run_study('20', 'smoke', root=repo, cohort=str(ward), progress=False)
    assert run.name == 'private_smoke' and read_json(run/'summary.json')['patients'] == 8
    assert betrayed(tmp_path, ward) == []
    assert (run/'patients.csv').read_text().startswith('column,patients,values,mean')
    assert sorted(p.name for p in (ward/privacy.STATE).iterdir()) == ['numbers.json']


# Training and scoring

TRIAL = ('--set', 'model=trial', 'epochs=1', 'bs=4', 'prep.size_px=32')
WORDS = ('ward7', 'Miller', 'Stone', 'Brown', 'Young', 'Green', 'Ann_', 'Bob_', 'Cleo_', 'Dora_', 'Eve_', 'Fred_',
         'Long_')


@pytest.fixture
def ward(hospital, tmp_path, monkeypatch):
    "The cohort, file names included, and no other place where anything could be written unseen."
    pytest.importorskip('fastai')
    for f in [f for f in hospital.rglob('*.png')]: f.rename(f.with_name(f'{f.parents[1].name}_{f.name}'))
    (hospital/'Fred_Long').rename(hospital/'Fred_Long_2')
    for name in ('tmp', 'cache'): (tmp_path/name).mkdir()
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    monkeypatch.setenv('TMPDIR', str(tmp_path/'tmp'))
    monkeypatch.setattr('tempfile.tempdir', None)
    return hospital


def plain_prints(ward):
    "Fingerprints that identify files to somebody who has them: of each patient, of all, of all but each, of each file."
    from neuroseg.core import hash_files, sha256_file
    files = {c.patient: [f for f in (*c.images, *c.masks) if f] for c in privacy.policy_of(ward).cases}
    whole = [f for fs in files.values() for f in fs]
    rest = [[f for q, fs in files.items() if q != p for f in fs] for p in files]
    return [hash_files(fs) for fs in (*files.values(), *rest, whole)] + [sha256_file(f) for f in whole]


def told(ward, tmp_path, capfd):
    "What was written outside the cohort's folder, or said, with a name or a piece of a scan: file and word."
    said = capfd.readouterr()
    written = {n: b for n, b in everything(tmp_path).items()
               if not (tmp_path.resolve()/n).is_relative_to(ward)} | dict(stdout=said.out.encode(),
            stderr=said.err.encode())
    words = [w.lower().encode() for w in (*WORDS, str(ward), *plain_prints(ward))]
    scans = [f.read_bytes()[-200:-20] for f in ward.rglob('*.png')]
    return {(n, w.decode()) for n, b in written.items() for w in words if w in b.lower()
            or w.decode() in n.lower()} | {(n, 'scan') for n, b in written.items() if any(s and s in b for s in scans)}


def test_training_and_scoring_tell_nobody(ward, tmp_path, capfd):
    from neuroseg.cohorts.tables import read_rows
    from neuroseg.learn.cross_validation import split_cohort
    at, model = tmp_path/'run', tmp_path/'run'/'model'/'model.json'
    assert main(['train', str(ward), '-o', str(at), '--fold', '1', *TRIAL]) == 0
    assert main(['evaluate', str(ward), '--fold', '1', '--model', str(model), '-o', str(tmp_path/'asked')]) == 0
    assert main(['evaluate', str(ward), '--seen', '--model', str(model), '-o', str(tmp_path/'all')]) == 0
    assert main(['evaluate', str(ward), '--model', str(model), '-o', str(tmp_path/'refused')]) == 2
    said = capfd.readouterr()
    print(said.out, said.err)
    assert '5 of these patients are in the training set of the model: choose the fold' in said.err
    assert told(ward, tmp_path, capfd) == set()
    taught, asked, _ = split_cohort(ward, fold=1)
    number, card, plan, record = privacy.pseudonym(privacy.policy_of(ward)), read_json(model), read_json(at/
        'plan.json'), read_json(at/'run.json')
    assert (card['split']['train'], card['split']['test'], len(card['split']['keyed'])) == (5, 1, 5)
    assert plan['split'] == card['split']
    assert all(h.startswith('keyed:')
               for h in (card['data']['hash'], plan['data_hash'], record['data_hash'],
                         read_json(tmp_path/'all'/'run.json')['data_hash']))
    assert record['params']['cohort'] == read_json(tmp_path/'all'/'run.json')['params'][
        'cohort'] == privacy.policy_of(ward).facts
    assert card['metrics']['all sequences']['dice'] == dict(mean=read_json(at/'summary.json')['all sequences'][
        'scores']['dice']['mean']), 'one patient is no statistic'
    assert {r['patient'] for r in read_rows(at/'patients.csv')} == {number[c.patient] for c in asked}
    rows = read_rows(tmp_path/'all'/'patients.csv')
    assert [r['patient'] for r in rows] == [f'P{n}' for n in range(1, 7)] and not {'case',
        'institution'} & set(rows[0]), 'in the order of the numbers, not of the names'
    assert (tmp_path/'asked'/'patients.csv').read_text().startswith('column,patients,values,mean\n')
    assert list((tmp_path/'cache').iterdir()) == [] and list((ward/privacy.STATE/'prepared').iterdir())
    assert (phi_scan.check([at/'model', tmp_path/'asked', at/'plan.json', at/'run.json'], root=tmp_path, cohort=ward)
            == [])


@pytest.mark.parametrize('words', [('train', '--fold', '1', *TRIAL), ('train', '--fold', 'all', *TRIAL), ('evaluate',)],
                         ids=['train', 'all folds', 'evaluate'])
def test_a_fault_in_the_middle_tells_nobody(ward, tmp_path, capfd, words):
    damaged = next((ward/'Fred_Long_2'/'images').iterdir())
    damaged.write_bytes(damaged.read_bytes()[:-300])
    assert main([words[0], str(ward), '-o', str(tmp_path/'run'), *words[1:]]) == 2
    said = capfd.readouterr()
    print(said.out, said.err)
    assert 'neuroseg: `<file>` cannot be read' in said.err.splitlines()[-1]
    assert told(ward, tmp_path, capfd) == set()


def test_a_cross_validation_and_the_model_of_all_tell_nobody(ward, tmp_path, capfd, monkeypatch):
    "Exporting is left to the test above: what is written on a card is what matters here."
    from neuroseg.learn import cross_validation
    from neuroseg.cohorts.tables import read_rows
    from neuroseg.learn.networks import TorchSegmenter
    trained = {}
    def export(nets, folder, *, name, card, cfg, bits):
        trained[folder/f'{name}.json'] = TorchSegmenter(nets[0], cfg.prep, threshold=cfg.threshold)
        trained[folder/f'{name}.json'].card = trained[folder/f'{name}.json']
        write_json(folder/f'{name}.json', card)
        return folder/f'{name}.json'
    monkeypatch.setattr(cross_validation, 'export_model', export)
    monkeypatch.setattr(cross_validation, 'Segmenter', lambda card, threads: trained[card])
    assert main(['train', str(ward), '-o', str(tmp_path/'cv'), '--fold', 'all', *TRIAL]) == 0
    assert main(['train', str(ward), '-o', str(tmp_path/'kept'), '--judged-by', str(tmp_path/'cv')]) == 0
    said = capfd.readouterr()
    print(said.out, said.err)
    assert 'neuroseg train <cohort> -o RUN --judged-by' in said.out and told(ward, tmp_path, capfd) == set()
    assert (sorted(r['patient'] for r in read_rows(tmp_path/'cv'/'patients.csv') if r['input'] == 'FLAIR only')
            == [f'P{n}' for n in range(1, 7)])
    card, summary = read_json(tmp_path/'kept'/'model'/'model.json'), read_json(tmp_path/'cv'/'summary.json')
    assert card['split']['train'] == 6
    assert (card['metrics']['FLAIR only']['dice']['median_ci95']
            == summary['FLAIR only']['scores']['dice']['median_ci95'])
    shutil.rmtree(ward/'Ann_Miller')
    assert main(['train', str(ward), '-o', str(tmp_path/'other'), '--judged-by', str(tmp_path/'cv')]) == 2
    assert 'was made on other data than `<cohort>`' in capfd.readouterr().err


def test_the_guard_changes_no_number(hospital, tmp_path, monkeypatch):
    "The same patients, once public and once private: the same folds, weights and scores."
    pytest.importorskip('fastai')
    from neuroseg.cohorts.tables import read_rows
    from neuroseg.learn.cross_validation import fit_cohort, recipe
    from neuroseg.learn.train import checkpoint_meta
    monkeypatch.setenv('NEUROSEG_CACHE', str(tmp_path/'cache'))
    cfg, number = recipe(dict(model='trial', epochs=1, bs=4,
                              prep=dict(size_px=32))), privacy.pseudonym(privacy.policy_of(hospital))
    fit_cohort(hospital, tmp_path/'private', cfg=cfg, fold=1, progress=False)
    privacy.mark(hospital, private=False, source='drawn')
    open_, held = fit_cohort(hospital, tmp_path/'public', cfg=cfg, fold=1,
                             progress=False), read_json(tmp_path/'private'/'summary.json')
    assert (tmp_path/'private'/'weights.safetensors').read_bytes() == (tmp_path/'public'/
        'weights.safetensors').read_bytes()
    ours, theirs = (checkpoint_meta(tmp_path/which/'checkpoint.safetensors')['data'] for which in ('private', 'public'))
    assert not set(ours) & set(theirs), 'what was learnt from can be recognised by its owner only'
    assert held['all sequences']['scores']['dice']['mean'] == open_['all sequences']['scores']['dice']['mean']
    assert ({number[r['patient']] for r in read_rows(tmp_path/'public'/'patients.csv')}
            == {r['patient'] for r in read_rows(tmp_path/'private'/'patients.csv')})
    split = read_json(tmp_path/'public'/'plan.json')['split']
    assert len(split['train']) == 5 and 'keyed' not in split
    assert 'cohort' not in read_json(tmp_path/'public'/'run.json')['params']


def test_a_private_training_is_resumed_and_stays_out_of_git(ward, tmp_path, capfd):
    words = ['train', str(ward), '-o', str(tmp_path/'run'), '--fold', '1', *TRIAL]
    assert main(words) == 0
    (tmp_path/'run'/'run.json').unlink() # as if it had been interrupted after the last epoch
    before = (tmp_path/'run'/'checkpoint.safetensors').stat().st_mtime_ns
    assert main(words) == 0 and (tmp_path/'run'/'checkpoint.safetensors').stat().st_mtime_ns == before
    shutil.rmtree(ward/privacy.STATE) # another key: nobody could tell whether these are the same patients
    assert main(words) == 2 and 'differs in split.keyed, split.key, data_hash' in capfd.readouterr().err
    for command in (['train', *TRIAL], ['evaluate']):
        assert main([command[0], str(ward), '-o', str(ROOT/'scores'), *command[1:]]) == 2
        assert 'git does not ignore' in capfd.readouterr().err and not (ROOT/'scores').exists()


def test_a_run_in_the_cohorts_own_folder_is_whole_but_for_its_card(ward, tmp_path, capfd):
    at = ward/privacy.STATE/'runs'
    assert main(['train', str(ward), '-o', str(at), '--fold', '1', *TRIAL]) == 0
    assert 'Ann_Miller' in (at/'plan.json').read_text() + (at/'patients.csv').read_text()
    assert not any(w in (at/'model'/'model.json').read_text() for w in WORDS)
    assert not any(w in capfd.readouterr().out for w in WORDS)


def test_verify_names_private_patients_on_request_only(ward, tmp_path, capfd):
    next((ward/'Ann_Miller'/'masks').iterdir()).unlink()
    assert main(['data', 'verify', str(ward)]) == 1
    said = capfd.readouterr().out
    print(said)
    assert 'missing mask: P' in said and '1 fault(s)' in said and told(ward, tmp_path, capfd) == set()
    assert main(['data', 'verify', str(ward), '--names']) == 1
    assert 'missing mask: Ann_Miller/images/' in capfd.readouterr().out


def test_outlines_of_a_marked_cohort_stay_out_of_git(ward, capfd):
    privacy.mark(ward)
    assert main(['predict', str(ward/'Ann_Miller'/'images'), '-o', str(ROOT/'outlines')]) == 2
    assert 'git does not ignore' in capfd.readouterr().err and not (ROOT/'outlines').exists()


# What a shared model remembers

@pytest.mark.parametrize('seed', range(5))
def test_the_attack_is_the_one_that_counting_pairs_finds(seed):
    "Ties, unequal groups and a lost patient's infinite loss included."
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 6, 7).astype(float), rng.integers(1, 9, 11).astype(float)
    b[0] = np.inf
    found = membership.membership_attack(a, b, n_draws=50)
    assert found['auc'] == pytest.approx(np.mean([(x < y) + .5*(x == y) for x in a for y in b]))
    assert found['advantage'] == pytest.approx(max(0, *((a <= t).mean() - (b <= t).mean() for t in (*a, *b))))


def test_where_nobody_was_learnt_from_chance_is_seldom_exceeded():
    rng = np.random.default_rng(0)
    found = [membership.membership_attack(rng.normal(size=9), rng.normal(size=8), n_draws=400) for _ in range(300)]
    assert np.mean([f['advantage'] > f['chance_advantage'] for f in found]) <= .07
    assert .02 <= np.mean([f['p'] < .05 for f in found]) <= .09
    assert .88 <= np.mean([f['auc_ci95'][0] <= .5 <= f['auc_ci95'][1] for f in found])
    assert membership.membership_attack([1, 2], [3, 3]) == membership.membership_attack([1, 2], [3, 3])
