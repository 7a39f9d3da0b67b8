"""The house: folders are floors, and an import points to a floor below.

    9  cli                                every job as one command
    8  commands                           the commands, by what they work on
    7  sharing                            the model where people look for models
    6  learn, reports, app, hospital      four wings that do not import each other
    5  evaluation
    4  cohorts
    3  segmentation
    2  scans
    1  core

Inside a folder modules may import each other, but not in a circle. `neuroseg/__init__.py` names what it likes, as long
as it loads nothing.
"""
import ast, json, subprocess, sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

FLOOR = {'core': 1, 'scans': 2, 'segmentation': 3, 'cohorts': 4, 'evaluation': 5,
         'learn': 6, 'reports': 6, 'app': 6, 'hospital': 6, 'sharing': 7, 'commands': 8, 'cli': 9,
         '__main__': 10}
# What the base install runs: importable with its requirements alone
BASE = {'__init__', '__main__', 'core', 'scans', 'segmentation', 'cohorts', 'evaluation', 'commands', 'cli'}
HEAVY = {'av', 'dask', 'distributed', 'fastai', 'kaggle', 'matplotlib', 'monai', 'nbconvert', 'nilearn', 'pandas',
         'papermill', 'reportlab', 'scipy', 'seaborn', 'sklearn', 'streamlit', 'timm', 'torch', 'torchvision'}
TRAINERS = {'learn.trainer', 'learn.train'}
# Outside `learn`, torch is loaded inside one function of two modules: MONAI measures surfaces of tensors, and the
# drawing of a network follows a tensor through it
BORROWERS = {'evaluation.metrics', 'reports.network_drawing'}


def imports(
    source:str, # Text of a module
    module:str='neuroseg', # Its dotted name: relative imports start from there
)->list[tuple[str, bool]]: # Dotted names it imports, and whether the import runs when the module is imported
    "Every import of a module, at any depth."
    found = []
    def visit(node, at_import):
        found.extend((name, at_import) for name in names_of(node, module))
        deeper = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node): visit(child, deeper)
    visit(ast.parse(source), True)
    return found


def names_of(
    node:ast.AST, # One node of a module's syntax tree
    module:str, # Dotted name of the module
)->list[str]: # Dotted names that the node itself imports
    "Of an import; of `need('name')` or `import_module('name')`; of `neuroseg.name`, which loads a public name."
    if isinstance(node, ast.Import): return [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
        base = [*module.split('.')[:-node.level], node.module] if node.level else [node.module]
        base = '.'.join(part for part in base if part)
        # `from neuroseg import cli` and `from neuroseg.scans import masks` name modules
        return [f'{base}.{a.name}' if folder(base) == 'neuroseg' else base for a in node.names]
    if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'neuroseg': return [f'neuroseg.{node.attr}']
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
        if called in ('need', 'import_module', '__import__'): return [node.args[0].value]
    return []


def sources(root)->dict[str, str]: # Dotted name below `neuroseg` -> text
    "Every module of the package, but the folders' empty `__init__.py`."
    package = Path(root)/'neuroseg'
    files = [f for f in sorted(package.rglob('*.py')) if f.stem != '_modidx']
    texts = {'.'.join(f.relative_to(package).with_suffix('').parts): f.read_text(encoding='utf-8') for f in files}
    return {name: text for name, text in texts.items() if text.strip()}


def folder(module): return module.split('.')[0]


def in_package(
    parts:list[str], # Of a dotted name that an import names: neuroseg, a folder, a module, a function
)->str: # 'folder.module', or 'core', or what else is not in a folder
    "The module below `neuroseg` that a name belongs to."
    return '.'.join(parts[1:3] if parts[1] in FLOOR and parts[1] not in ('core', 'cli') else parts[1:2])


def own_imports(module, source):
    "Modules of the package that a module imports, by their name below `neuroseg`, each once."
    names = [n.split('.') for n, _ in imports(source, f'neuroseg.{module}')]
    inside = [in_package(n) for n in names if n[0] == 'neuroseg' and len(n) > 1]
    return [name for name in dict.fromkeys(inside) if name != module]


def faults(
    module:str, # Its dotted name below `neuroseg`
    source:str, # Its text
)->list[str]: # A sentence for each import that does not point to a floor below or to the module's own folder
    "The imports of a module that break the house."
    here, bad = folder(module), []
    if module == '__init__':
        loaded = [n for n, at_import in imports(source) if at_import]
        return [f'__init__ loads {n}' for n in loaded if folder(n) not in sys.stdlib_module_names]
    for other in own_imports(module, source):
        there = folder(other)
        if there == '__version__': continue # a string of the package, which itself loads nothing
        if there not in FLOOR: bad.append(f'{module} imports the package itself: neuroseg.{other}')
        elif there != here and FLOOR[there] >= FLOOR[here]:
            bad.append(f'{module} (floor {FLOOR[here]}) imports {other} (floor {FLOOR[there]})')
    return bad


def circle(
    modules:dict[str, str], # Dotted name -> text
)->list[str]: # The modules of one circle, or none
    "Whether modules of one folder import each other in a circle."
    graph = {m: [o for o in own_imports(m, text) if folder(o) == folder(m)] for m, text in modules.items()}
    try: TopologicalSorter(graph).prepare()
    except CycleError as e: return e.args[1]
    return []


def lines(source):
    "Lines of a module that somebody wrote: without blank ones, nbdev's marks and the list of names."
    assigned = [n for n in ast.parse(source).body if isinstance(n, ast.Assign)]
    start = [n.end_lineno for n in assigned if getattr(n.targets[0], 'id', '') == '__all__']
    written = source.splitlines()[max(start, default=0):]
    return sum(1 for line in written if line.strip() and not line.startswith('# %%'))


def heavy(source): return {folder(n) for n, at_import in imports(source) if at_import} & HEAVY


def test_every_module_has_a_floor(root):
    unknown = {folder(m) for m in sources(root)} - set(FLOOR) - {'__init__'}
    assert unknown == set(), f'give {sorted(unknown)} a floor'


def test_imports_point_downward(root):
    assert [fault for module, text in sources(root).items() for fault in faults(module, text)] == []


def test_no_circle_inside_a_folder(root): assert circle(sources(root)) == []


@pytest.mark.parametrize('module,text,says', [
    ('core', 'import neuroseg.scans.masks', 'core (floor 1) imports scans.masks (floor 2)'),
    ('scans.nifti', 'def f():\n    from ..segmentation.result import Segmenter',
     'scans.nifti (floor 2) imports segmentation.result (floor 3)'),
    ('segmentation.card', 'from neuroseg import cli', 'segmentation.card (floor 3) imports cli (floor 9)'),
    ('cohorts.cases', "need('neuroseg.evaluation.scores', extra='x')",
     'cohorts.cases (floor 4) imports evaluation.scores (floor 5)'),
    ('reports.claims', 'from neuroseg.learn import export', 'reports.claims (floor 6) imports learn.export (floor 6)'),
    ('scans.phantom', 'def f():\n    import neuroseg\n    neuroseg.segment(1)',
     'scans.phantom imports the package itself: neuroseg.segment'),
    ('__init__', 'import numpy', '__init__ loads numpy'),
])
def test_a_broken_import_is_found(module, text, says): assert faults(module, text) == [says]


def test_a_circle_is_found():
    ring = {'scans.a': 'from .b import B', 'scans.b': 'def f():\n    from neuroseg.scans.c import C',
            'scans.c': 'from neuroseg.scans import a'}
    assert set(circle(ring)) == {'scans.a', 'scans.b', 'scans.c'}
    assert circle({**ring, 'scans.c': 'from neuroseg.core import A'}) == []


def test_good_imports_pass():
    downward = 'from neuroseg.core import B\nfrom ..cohorts.cases import C\nfrom .recipe import R\n'
    assert faults('learn.train', downward + 'from neuroseg import __version__') == []
    assert faults('__init__', 'import os\ndef __getattr__(name):\n    import neuroseg.learn.train') == []


def test_only_learn_knows_torch_and_only_its_trainers_fastai(root):
    used = {m: [(folder(n), at_import) for n, at_import in imports(text)] for m, text in sources(root).items()}
    assert {m for m, found in used.items() for n, _ in found if n == 'fastai'} == TRAINERS
    outside = {m: found for m, found in used.items() if folder(m) != 'learn'}
    torch = {(m, at_import) for m, found in outside.items() for n, at_import in found if n == 'torch'}
    assert torch == {(m, False) for m in BORROWERS}


def test_base_modules_import_nothing_heavy(root):
    assert {m: heavy(text) for m, text in sources(root).items() if folder(m) in BASE and heavy(text)} == {}


def test_a_heavy_import_is_found_where_it_runs():
    assert heavy('class A:\n    import torch\ntry: import pandas.core\nexcept ImportError: pass') == {'torch', 'pandas'}
    assert heavy('def f():\n    import torch') == set()


def test_the_base_install_starts_light(root):
    "Every module of the base install, and so `neuroseg --help`, starts without a heavy library, however indirectly."
    modules = [f'neuroseg.{m}' for m in sources(root) if folder(m) in BASE - {'__init__', '__main__'}]
    code = (f'import importlib, sys\nfor m in {modules}: importlib.import_module(m)\n'
            'print(*{m.split(".")[0] for m in sys.modules})')
    run = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) & HEAVY == set()


def test_the_command_line_starts_without_numpy(root):
    "Half of the time that `neuroseg --help` would take."
    code = 'import neuroseg.cli, sys; print(*sys.modules)'
    run = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert {'numpy', 'onnxruntime', 'nibabel', 'pydicom', 'PIL'} & set(run.stdout.split()) == set()


# Imports each module as if it were the first of the package; other libraries stay loaded, or it would take minutes
ALONE = '''
import importlib, json, sys
failed = {}
for module in json.loads(sys.argv[1]):
    for name in [n for n in sys.modules if n.partition('.')[0] == 'neuroseg']: del sys.modules[name]
    try: importlib.import_module(module)
    except Exception as e: failed[module] = repr(e)
print(json.dumps(failed))
'''


def import_alone(modules, cwd):
    "Names of the modules that cannot be the first of the package to be imported, and why."
    command = [sys.executable, '-W', 'ignore', '-c', ALONE, json.dumps(modules)]
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_module_can_be_imported_first(root):
    for library in ('fastai', 'streamlit', 'reportlab'): pytest.importorskip(library)
    modules = [f'neuroseg.{m}' for m in sources(root) if m not in ('__init__', '__main__')]
    assert import_alone(modules, root) == {}


def test_a_module_that_needs_another_first_is_found(tmp_path):
    package = tmp_path/'neuroseg'
    package.mkdir()
    (package/'__init__.py').touch()
    (package/'a.py').write_text('from neuroseg.b import B\nA = 1')
    (package/'b.py').write_text('from neuroseg.a import A\nB = 1')
    (package/'c.py').write_text('C = 1')
    assert set(import_alone(['neuroseg.a', 'neuroseg.b', 'neuroseg.c'], tmp_path)) == {'neuroseg.a', 'neuroseg.b'}


def test_public_names_are_where_the_package_says(root):
    "`neuroseg.segment` and its like are loaded by name: the names and modules exist."
    import neuroseg
    modules = {m: ast.parse(text).body for m, text in sources(root).items()}
    defined = {(m, getattr(n, 'name', None)) for m, body in modules.items() for n in body}
    assert {(m, n) for n, m in neuroseg._PUBLIC.items()} - defined == set()


def test_rooms_are_small(root, constants):
    big = {m: n for m, text in sources(root).items() if (n := lines(text)) > constants['room_lines']}
    assert big == {}


def test_lines_of_a_room_are_counted():
    assert lines('# %% auto #0\n__all__ = ["a",\n   "b"]\n\n# %% ../nbs/x.ipynb #1\na = 1\n\n# why\nb = 2\n') == 3
