"""Count how many public functions and classes of a notebook its lessons show, and assert.

    python tests/notebook_stats.py [FOLDER]    # one row a notebook with the names that no lesson shows, then the total

shown: a code cell that is not exported, and not hidden, uses the name. asserted: a cell that asserts does (`assert`, a fastcore `test_*`,
`expect_fail`), hidden or not. Every name counts, however many stand in one export cell.
"""
import ast, json, re, sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Lessons:
    "Counts of one notebook or of many."
    defined:int = 0 # Public functions and classes of export cells, methods patched in included
    shown:int = 0 # Of those, used in an example
    asserted:int = 0 # Of those, used where something is asserted
    missing:tuple = () # Names that no example uses
    def __add__(self, other): return Lessons(self.defined+other.defined, self.shown+other.shown, self.asserted+other.asserted, self.missing+other.missing)
    def share(self, what): return getattr(self, what)/self.defined if self.defined else 1.


def directives(cell):
    "Names of a cell's directives, whether they stand in comments or in its metadata."
    source = ''.join(cell['source'])
    return set(re.findall(r'^#\s*\|\s*(\w+)', source, re.M)) | set(cell.get('metadata', {}).get('nbdev') or {})


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


def lessons(
    nb:dict, # A notebook's JSON
)->Lessons:
    "Count a notebook's public definitions and their lessons."
    defined, shown, asserted = {}, set(), set()
    for cell in nb['cells']:
        if cell['cell_type'] != 'code': continue
        source, names = ''.join(cell['source']), directives(cell)
        if {'export', 'exports', 'exporti'} & names: defined |= dict.fromkeys(defines(source))
        else:
            if 'hide' not in names: shown |= uses(source)
            if asserts(source): asserted |= uses(source)
    return Lessons(len(defined), len(shown & defined.keys()), len(asserted & defined.keys()), tuple(n for n in defined if n not in shown))


def all_lessons(folder)->dict[str, Lessons]:
    "The counts of each library notebook of a folder."
    counted = {f.name: lessons(json.loads(f.read_text(encoding='utf-8'))) for f in sorted(Path(folder).glob('*.ipynb'))}
    return {name: count for name, count in counted.items() if count.defined}


if __name__ == '__main__':
    rows = all_lessons(sys.argv[1] if len(sys.argv) > 1 else 'nbs')
    for name, count in [*rows.items(), ('all', sum(rows.values(), Lessons()))]:
        print(f'{name:24} {count.defined:4} defined  {count.share("shown"):4.0%} shown  {count.share("asserted"):4.0%} asserted  {", ".join(count.missing) if name != "all" else ""}'.rstrip())
