"The reporting checklists answer every item once, and every answer points to something that is there."
import json, re

import pytest
import yaml
from conftest import ROOT, tracked_files

ITEMS = {
    'claim': [str(n) for n in range(1, 45)],
    'tripod_ai': '''1 2 3a 3b 3c 4 5a 5b 6a 6b 6c 7 8a 8b 8c 9a 9b 9c 10 11 12a 12b 12c 12d 12e 12f 12g 13 14 15 16 17
                    18a 18b 18c 18d 18e 18f 19 20a 20b 20c 21 22 23a 23b 24 25 26 27a 27b 27c'''.split(),
}
KINDS = {'answer', 'not_applicable', 'open'}
CHECKLISTS = {name: yaml.safe_load((ROOT/f'reports/checklists/{name}.yml').read_text(encoding='utf-8'))
              for name in ITEMS}
ENTRIES = [pytest.param(e, id=f"{name}-{e['item']}") for name, entries in CHECKLISTS.items() for e in entries]
POINTERS = sorted({p for entries in CHECKLISTS.values() for e in entries for p in e.get('at', [])})


def headings(file):
    "Headings and bold beginnings of paragraphs of a Markdown file or a notebook, outside code blocks."
    text = file.read_text(encoding='utf-8')
    if file.suffix == '.ipynb':
        text = '\n\n'.join(''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'markdown')
    text = re.sub(r'^(```|~~~).*?^\1', '', text, flags=re.M | re.S)
    return [title or bold for title, bold in re.findall(r'^(?:#{1,6} +(.+?) *$|\*\*(.+?)\*\*)', text, re.M)]


def dangling(
    pointer:str, # As the head of a checklist describes it
    root, # What its path starts from
)->str: # What is wrong, naming the pointer; empty if it leads somewhere
    "Follow a pointer without importing anything."
    named = re.fullmatch(r'neuroseg\.([\w.]+):([A-Za-z]\w*)', pointer)
    path, mark, place = (f"neuroseg/{named[1].replace('.', '/')}.py", ':',
                         named[2]) if named else pointer.partition('#')
    if not (root/path).is_file(): return f'{pointer}: there is no file {path}'
    if not mark: return ''
    if named:
        found = re.search(rf'^(?:(?:def|class) {place}\b(?!\(self)|{place} ?=)',
                          (root/path).read_text(encoding='utf-8'), re.M)
        return '' if found else f'{pointer}: {path} defines no {place}'
    if path.endswith('.json'):
        value = json.loads((root/path).read_text(encoding='utf-8'))
        for key in place.split(' / '):
            if not (isinstance(value, dict) and key in value): return f'{pointer}: {path} has no {key!r} there'
            value = value[key]
        return ''
    if not path.endswith(('.md', '.ipynb')): return f'{pointer}: {path} is neither Markdown, a notebook nor JSON'
    n = headings(root/path).count(place)
    return '' if n == 1 else f'{pointer}: {path} has {n} headings of this text, expected one'


@pytest.mark.parametrize('name', ITEMS)
def test_every_item_is_there_once_and_in_order(name): assert [e['item'] for e in CHECKLISTS[name]] == ITEMS[name]


@pytest.mark.parametrize('entry', ENTRIES)
def test_an_item_is_answered_excused_or_open(entry):
    kind = KINDS & set(entry)
    assert len(kind) == 1, f"has {sorted(kind) or 'none'} of {sorted(KINDS)}"
    assert set(entry) == {'item', 'section', 'asks', *kind} | ({'at'} if 'answer' in kind else set())
    texts = [v for k, v in entry.items() if k != 'at']
    assert all(isinstance(v, str) and v.strip() for v in texts)
    assert not re.search(r'(?<!\d)0?\.\d', ' '.join(texts)), 'a score stands in the runs, not here'
    assert 'answer' not in kind or (isinstance(entry['at'], list) and entry['at'])


@pytest.mark.parametrize('pointer', POINTERS)
def test_a_pointer_leads_somewhere(pointer):
    problem = dangling(pointer, ROOT)
    assert not problem, problem


def test_pointers_lead_to_what_a_clone_has():
    files = [re.sub(r'^neuroseg\.([\w.]+):.*', lambda m: f"neuroseg/{m[1].replace('.', '/')}.py", p) for p in POINTERS]
    paths = {f.partition('#')[0] for f in files}
    assert paths - set(tracked_files()) == set()


@pytest.fixture
def small(tmp_path):
    "A repository with one file of each kind."
    (tmp_path/'neuroseg').mkdir()
    code = ('LIMIT = 3\nclass Run:\n    def inner(self): pass\ndef seed(n): return n\ndef seeds(\n    n): pass\n'
            'def save(self:Run): pass\n')
    (tmp_path/'neuroseg/core.py').write_text(code)
    (tmp_path/'CARD.md').write_text('# Card\n\n**How well.** So **so.**\n\n```sh\n# Not a heading\n```\n\n## '
                                    'Twice\n\n## Twice\n')
    cells = [dict(cell_type='markdown', source=['# A study\n', '\n', '> Of what?']),
             dict(cell_type='code', source=['# Only code'])]
    (tmp_path/'study.ipynb').write_text(json.dumps(dict(cells=cells)))
    (tmp_path/'summary.json').write_text(json.dumps({'all sequences': {'dice': {'mean': None}}}))
    (tmp_path/'plain.yml').write_text('# Comment\n')
    return tmp_path


@pytest.mark.parametrize('pointer',
                         ['CARD.md', 'plain.yml', 'CARD.md#Card', 'CARD.md#How well.', 'study.ipynb#A study',
                          'neuroseg.core:seed', 'neuroseg.core:seeds',
                                     'neuroseg.core:Run', 'neuroseg.core:LIMIT', 'summary.json#all sequences',
                          'summary.json#all sequences / dice / mean'])
def test_a_good_pointer_is_followed(small, pointer): assert dangling(pointer, small) == ''


@pytest.mark.parametrize('pointer,says', [
    ('GONE.md', 'no file GONE.md'), ('neuroseg', 'no file neuroseg'), ('GONE.md#Card', 'no file GONE.md'),
                                          ('CARD.md#', '0 headings'), ('CARD.md#How', '0 headings'),
    ('CARD.md#so.', '0 headings'), ('CARD.md#Not a heading', '0 headings'), ('CARD.md#Twice', '2 headings'),
                                          ('plain.yml#Comment', 'neither Markdown'),
    ('study.ipynb#Only code', '0 headings'), ('neuroseg.gone:seed', 'no file neuroseg/gone.py'),
                                          ('neuroseg.core:see', 'defines no see'),
    ('neuroseg.core:inner', 'defines no inner'), ('neuroseg.core:save', 'defines no save'),
                                          ('neuroseg.core:_seed', 'no file'),
    ('summary.json#dice', "no 'dice'"), ('summary.json#all sequences / dice / median', "no 'median'"),
                                          ('summary.json#all sequences / dice / mean / x', "no 'x'"),
])
def test_a_dangling_pointer_is_named(small, pointer, says):
    problem = dangling(pointer, small)
    assert problem.startswith(f'{pointer}: ') and says in problem
