"""Imports point downward only, one module knows fastai, and the base install starts without any of the big libraries.

    L5  cli app              L4  answers report viz evaluate fit fanout claims intake looks sheet     L3  train pace export models losses infer leaks
    L2  data prep splits cases io fetch sample privacy frames    L1  metrics masks phantom words     L0  core
"""
import ast, subprocess, sys
from pathlib import Path

import pytest

LAYERS = [{'core'}, {'masks', 'metrics', 'phantom', 'words'}, {'io', 'frames', 'cases', 'fetch', 'sample', 'splits', 'prep', 'data', 'privacy'},
          {'losses', 'models', 'train', 'pace', 'export', 'infer', 'leaks'},
          {'evaluate', 'fanout', 'fit', 'ablate', 'finetune', 'protocol', 'viz', 'answers', 'report', 'claims', 'intake', 'looks', 'sheet'}, {'cli', 'app', '__init__'}]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
# Within a layer these alone may import a neighbour
NEIGHBOURS = {'metrics': {'masks'}, 'phantom': {'masks'}, 'cases': {'io'}, 'frames': {'io'}, 'fetch': {'cases', 'io'}, 'sample': {'io'}, 'splits': {'cases', 'io'}, 'prep': {'io'}, 'privacy': {'cases'},
              'data': {'prep', 'splits', 'cases', 'io'}, 'models': {'losses'}, 'train': {'models', 'losses'}, 'export': {'models', 'train'}, 'pace': {'models', 'train'}, 'leaks': {'infer'},
              'fit': {'evaluate', 'fanout'}, 'finetune': {'evaluate', 'fit'}, 'ablate': {'evaluate', 'fanout', 'fit'}, 'viz': {'evaluate'}, 'answers': {'viz', 'evaluate'}, 'report': {'viz', 'evaluate', 'answers'}, 'claims': {'report', 'answers'}, 'sheet': {'looks'}, 'cli': {'app'}}
# What the base install runs: importable with its requirements alone
BASE = {'__init__', 'core', 'masks', 'metrics', 'phantom', 'io', 'cases', 'fetch', 'sample', 'splits', 'prep', 'infer', 'cli', 'privacy', 'leaks'}
HEAVY = {'av', 'reportlab', 'torch', 'torchvision', 'fastai', 'monai', 'timm', 'pandas', 'matplotlib', 'scipy', 'seaborn', 'sklearn', 'nilearn', 'streamlit',
         'papermill', 'nbconvert', 'kaggle', 'distributed', 'dask'}


def imports(
    source:str, # A module of the package
)->list[tuple[str, bool]]: # Dotted names it imports, at any depth, and whether the import runs when the module is imported
    "Every import of a module, `need('name', ...)` and `importlib.import_module('name')` included."
    found = []
    def visit(node, at_import):
        if isinstance(node, ast.Import): found.extend((a.name, at_import) for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = 'neuroseg' + (f'.{node.module}' if node.module else '') if node.level else node.module
            # `from neuroseg import io` names a module too
            found.extend((f'neuroseg.{a.name}' if base == 'neuroseg' else base, at_import) for a in node.names)
        elif isinstance(node, ast.Call):
            name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
            if name in ('need', 'import_module', '__import__') and node.args and isinstance(node.args[0], ast.Constant): found.append((node.args[0].value, at_import))
        deeper = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node): visit(child, deeper)
    visit(ast.parse(source), True)
    return found


def upward(
    module:str, # Its name in the package
    source:str, # Its text
)->list[str]: # A sentence for each import that points up, or sideways where that is not agreed
    "The imports of a module that break the layers."
    bad = []
    for name, _ in imports(source):
        parts = name.split('.')
        if parts[0] != 'neuroseg' or len(parts) < 2 or parts[1] not in LEVEL or parts[1] == module: continue
        other = parts[1]
        if LEVEL[other] > LEVEL[module]: bad.append(f'{module} (L{LEVEL[module]}) imports {other} (L{LEVEL[other]})')
        elif LEVEL[other] == LEVEL[module] and other not in NEIGHBOURS.get(module, ()): bad.append(f'{module} imports its neighbour {other}')
    return bad


def sources(root):
    return {f.stem: f.read_text(encoding='utf-8') for f in sorted((Path(root)/'neuroseg').glob('*.py')) if f.stem != '_modidx'}


def test_every_module_has_a_layer(root):
    assert set(sources(root)) <= set(LEVEL), f"give {sorted(set(sources(root)) - set(LEVEL))} a layer"


def test_imports_point_downward(root):
    assert [bad for module, text in sources(root).items() for bad in upward(module, text)] == []


@pytest.mark.parametrize('module,text,says', [
    ('core', 'import neuroseg.masks', 'core (L0) imports masks (L1)'),
    ('metrics', 'def f():\n    from neuroseg.io import Scan', 'metrics (L1) imports io (L2)'),
    ('infer', 'from neuroseg import cli', 'infer (L3) imports cli (L5)'),
    ('infer', 'from .train import fit', 'infer imports its neighbour train'),
    ('masks', "need('neuroseg.report', extra='x')", 'masks (L1) imports report (L4)'),
])
def test_an_upward_import_is_found(module, text, says): assert upward(module, text) == [says]


def test_agreed_imports_pass():
    assert upward('train', 'from neuroseg.data import A\nfrom neuroseg.core import B\nfrom neuroseg import __version__') == []


def test_neighbours_make_no_circle():
    def reach(m, seen=()):
        assert m not in seen, f"neighbours import each other: {' -> '.join([*seen, m])}"
        for n in NEIGHBOURS.get(m, ()): reach(n, (*seen, m))
    for m in NEIGHBOURS: reach(m)
    assert all(LEVEL[m] == LEVEL[n] for m, ns in NEIGHBOURS.items() for n in ns)


def test_only_train_knows_fastai(root):
    assert {m for m, text in sources(root).items() if any(n.split('.')[0] == 'fastai' for n, _ in imports(text))} <= {'train'}


def heavy(source): return {n.split('.')[0] for n, at_import in imports(source) if at_import} & HEAVY


def test_base_modules_import_nothing_big(root):
    assert {m: heavy(text) for m, text in sources(root).items() if m in BASE and heavy(text)} == {}


def test_a_big_import_is_found_where_it_runs():
    assert heavy('class A:\n    import torch\ntry: import pandas.core\nexcept ImportError: pass') == {'torch', 'pandas'}
    assert heavy('def f():\n    import torch') == set()


def test_the_command_line_starts_light(root):
    "What a user waits for at every `neuroseg --help`: no big library, however indirectly."
    code = 'import neuroseg.cli, sys; print(*sorted({m.split(".")[0] for m in sys.modules}))'
    run = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(run.stdout.split()) & HEAVY == set()
