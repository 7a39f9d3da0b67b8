"""Count how many exported definitions a lesson shows, and asserts, before the next export.

    python tests/notebook_stats.py [FOLDER]    # one row a notebook, then the total

shown: a code cell that is not exported, and not hidden, stands between this export cell and the next. asserted: one that asserts does
(`assert`, a fastcore `test_*`, `expect_fail`), hidden or not.
"""
import ast, json, re, sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Lessons:
    "Counts of one notebook or of many."
    defined:int = 0 # Export cells that define a function or class
    shown:int = 0 # Of those, followed by an example
    asserted:int = 0 # Of those, followed by an assertion
    def __add__(self, other): return Lessons(self.defined+other.defined, self.shown+other.shown, self.asserted+other.asserted)
    def share(self, what): return getattr(self, what)/self.defined if self.defined else 1.


def directives(cell):
    "Names of a cell's directives, whether they stand in comments or in its metadata."
    source = ''.join(cell['source'])
    return set(re.findall(r'^#\s*\|\s*(\w+)', source, re.M)) | set(cell.get('metadata', {}).get('nbdev') or {})


def parse(source):
    "The syntax tree of a cell; magics and directives are comments to Python or are made so."
    return ast.parse(re.sub(r'^(\s*)[%!]', r'\1#', source, flags=re.M))


def defines(source):
    return any(isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) for n in parse(source).body)


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
    "Count a notebook's exported definitions and their lessons."
    total, current = Lessons(), None
    for cell in nb['cells']:
        if cell['cell_type'] != 'code': continue
        source, names = ''.join(cell['source']), directives(cell)
        if {'export', 'exports', 'exporti'} & names:
            if current: total += current
            current = Lessons(1) if defines(source) else None
        elif current and source.strip() and 'default_exp' not in names:
            if 'hide' not in names: current.shown = 1
            if asserts(source): current.asserted = 1
    return total + current if current else total


def all_lessons(folder)->dict[str, Lessons]:
    "The counts of each library notebook of a folder."
    counted = {f.name: lessons(json.loads(f.read_text(encoding='utf-8'))) for f in sorted(Path(folder).glob('*.ipynb'))}
    return {name: count for name, count in counted.items() if count.defined}


if __name__ == '__main__':
    rows = all_lessons(sys.argv[1] if len(sys.argv) > 1 else 'nbs')
    for name, count in [*rows.items(), ('all', sum(rows.values(), Lessons()))]:
        print(f'{name:24} {count.defined:4} defined  {count.share("shown"):4.0%} shown  {count.share("asserted"):4.0%} asserted')
