"""Count what the lessons of the library's notebooks show and assert, and how long their cells and lines are.

    python tests/house/notebook_stats.py [FOLDER]    # one row a notebook with what no lesson shows, then the total

shown: a code cell that is not exported, and not hidden, uses the name of a public function or class.
asserted: a cell that asserts (`assert`, a fastcore `test_*`, `expect_fail`), hidden or not, uses it.
Every name counts, however many stand in one exported cell.
"""
import ast, json, re, statistics, sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Lessons:
    "Counts of one notebook or of many."
    defined:int = 0 # Public functions and classes of exported cells, methods patched in included
    shown:int = 0 # Of those, used in an example
    asserted:int = 0 # Of those, used where something is asserted
    missing:tuple = () # Names that no example uses
    unasserted:tuple = () # Names of which nothing is asserted
    words:int = 0 # Of prose
    lines:tuple = () # Of each exported cell, blank lines and directives left out

    def __add__(self, other): return Lessons(*(a+b for a, b in zip(vars(self).values(), vars(other).values())))

    def share(self, what): return getattr(self, what)/self.defined if self.defined else 1.

    @property
    def median(self): return statistics.median(self.lines)

    @property
    def p90(self): return sorted(self.lines)[int(.9*len(self.lines))]


def text(cell): return ''.join(cell['source'])


def directives(cell):
    "Names of a cell's directives, whether they stand in comments or in its metadata."
    return set(re.findall(r'^#\s*\|\s*(\w+)', text(cell), re.M)) | set(cell.get('metadata', {}).get('nbdev') or {})


def exported(cell): return cell['cell_type'] == 'code' and bool({'export', 'exports', 'exporti'} & directives(cell))


def parse(source):
    "The syntax tree of a cell; magics and directives are comments to Python or are made so."
    return ast.parse(re.sub(r'^(\s*)[%!]', r'\1#', source, flags=re.M))


def defines(source):
    "Public names of a cell's functions and classes."
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [n.name for n in parse(source).body if isinstance(n, kinds) and not n.name.startswith('_')]


def uses(source):
    "Names and attributes that a cell reads."
    nodes = [n for n in ast.walk(parse(source)) if isinstance(getattr(n, 'ctx', None), ast.Load)]
    return {n.id for n in nodes if isinstance(n, ast.Name)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def asserts(source):
    "True when the cell's code, not a comment or string in it, asserts something."
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Assert): return True
        if isinstance(node, ast.Call):
            name = getattr(node.func, 'id', getattr(node.func, 'attr', ''))
            if re.fullmatch(r'test_\w+|expect_fail|assert_\w+', name): return True
    return False


def code_lines(source): return sum(1 for line in source.splitlines() if line.strip() and not re.match(r'#\s*\|', line))


def lessons(
    nb:dict, # A notebook's JSON
)->Lessons:
    "Count a notebook's public definitions, their lessons, its words and the lines of its exported cells."
    defined, shown, asserted = {}, set(), set()
    for cell in nb['cells']:
        if cell['cell_type'] != 'code': continue
        source = text(cell)
        if exported(cell): defined |= dict.fromkeys(defines(source))
        else:
            if 'hide' not in directives(cell): shown |= uses(source)
            if asserts(source): asserted |= uses(source)
    return Lessons(len(defined), len(shown & defined.keys()), len(asserted & defined.keys()),
                   tuple(n for n in defined if n not in shown), tuple(n for n in defined if n not in asserted),
                   sum(len(text(c).split()) for c in nb['cells'] if c['cell_type'] == 'markdown'),
                   tuple(code_lines(text(c)) for c in nb['cells'] if exported(c)))


def notebooks(folder)->dict[str, dict]: # Path from `folder` -> the notebook's JSON
    "Every notebook below a folder."
    files = [f for f in sorted(Path(folder).rglob('*.ipynb')) if '.ipynb_checkpoints' not in f.parts]
    return {f.relative_to(folder).as_posix(): json.loads(f.read_text(encoding='utf-8')) for f in files}


def all_lessons(folder)->dict[str, Lessons]:
    "The counts of each library notebook of a folder and the folders in it."
    counted = {}
    for name, nb in notebooks(folder).items():
        try: counted[name] = lessons(nb)
        except SyntaxError as e: raise ValueError(f'{name}: {e.text}') from e
    return {name: count for name, count in counted.items() if count.lines}


def row(
    name:str, # Of a notebook, or 'all'
    count:Lessons,
    names:bool=True, # With the names that no example uses, and those of which nothing is asserted?
)->str:
    "One line of the table."
    shares = f'{count.defined:4} defined  {count.share("shown"):4.0%} shown  {count.share("asserted"):4.0%} asserted'
    lines = f'lines: median {count.median:2.0f}, p90 {count.p90:2}, most {max(count.lines):2}'
    line = f'{name:34} {shares}  {count.words/len(count.lines):3.0f} words a cell  {lines}'
    lacks = [('not shown', count.missing), ('not asserted', count.unasserted)]
    return '  '.join([line, *(f'{what}: {", ".join(found)}' for what, found in lacks if found and names)])


def table(
    rows:dict[str, Lessons], # Of `all_lessons`
)->str:
    "A line for each notebook, then one for all."
    total = sum(rows.values(), Lessons())
    return '\n'.join([*(row(name, count) for name, count in rows.items()), row('all', total, names=False)])


if __name__ == '__main__': print(table(all_lessons(sys.argv[1] if len(sys.argv) > 1 else 'nbs')))
