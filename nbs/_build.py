"""Write the README, the model card, the datasheet and the docs site from the notebooks, without the Quarto binary that
nbdev needs.

    python nbs/_build.py readme README.md    # nbs/index.ipynb, by nbconvert
    python nbs/_build.py card MODEL_CARD.md  # nbs/model_card.ipynb, by nbconvert
    python nbs/_build.py datasheet DATASHEET.md
    python nbs/_build.py site _docs          # notebooks staged by nbdev, reports added, rendered by smalldocs

smalldocs reads Quarto's options, comes by pip in the locked environment, and needs no binary; it is young, so what the
project needs beyond it (ranking of the search, colours, texts of pictures) is plain CSS, JavaScript and Python here.
"""
import json, re, shutil, subprocess, sys
from functools import partial
from pathlib import Path
from posixpath import normpath

import nbformat
import yaml
from nbconvert import MarkdownExporter
from nbdev.config import get_config, nbpath2html
from nbdev.quarto import refresh_quarto_yml
from nbdev.serve import proc_nbs
from traitlets.config import Config

from neuroseg import __version__

from _gallery import add_alt_texts, figure_texts, gallery, lead, social_card

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that are written from a notebook: on the site, the notebook is their page
WRITTEN = {'README.md': 'nbs/index.ipynb', 'MODEL_CARD.md': 'nbs/model_card.ipynb',
           'DATASHEET.md': 'nbs/datasheet.ipynb'}
# Pages of the site that are files of the repository
RECORD = {'reports/index.md': 'reports/README.md', 'ledger.md': 'CLAIMS.md', 'openings.md': 'reports/LEDGER.md',
          'changelog.md': 'CHANGELOG.md'}
# The target of a Markdown link or picture, and of an HTML one
LINK = re.compile(r'(\]\(|(?:src|href)=")([^)"\s]+)')


def relink(
    text:str, # Markdown
    target, # Function of a relative link's path, giving its new path
)->str: # The same, its relative links rewritten
    "Rewrite the relative links of a page that moves to another folder."
    def _one(m):
        path, hash_, anchor = m[2].partition('#')
        return m[0] if not path or re.match(r'[a-z]+:|/', path) else m[1] + target(path) + hash_ + anchor
    return LINK.sub(_one, text)


def page(
    name:str, # Of a notebook in nbs/, without its ending
    dest:Path, # Markdown
):
    "Write a notebook as Markdown: no front matter, no hidden cells, no directives, links from the repository's root."
    nb = nbformat.read(ROOT/f'nbs/{name}.ipynb', as_version=4)
    cells = []
    for cell in nb.cells:
        directives = re.findall(r'^#\|\s*(\w+)', cell.source, re.M)
        if cell.cell_type == 'raw' or 'hide' in directives: continue
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
        cells.append(cell)
    nb.cells = cells
    remove = dict(enabled=True, remove_input_tags={'remove-input'})
    exporter = MarkdownExporter(config=Config(TagRemovePreprocessor=remove))
    for cell in nb.cells: cell.metadata.pop('execution', None) # nbdev-test stores seconds there, nbformat rejects them
    text, resources = exporter.from_notebook_node(nb)
    if resources['outputs']:
        pictures = ', '.join(resources['outputs'])
        raise SystemExit(f'{dest.name}: {name}.ipynb has pictures among its outputs ({pictures}); '
                         'link to a picture under reports/ instead')
    text = relink(re.sub(r'\n{3,}', '\n\n', text), lambda path: normpath(f'nbs/{path}'))
    dest.write_text(text.strip() + '\n', encoding='utf-8')


def staged(
    page, # A notebook's path, say `studies/20_exploration.ipynb`
)->str: # Its path in the staged site, `studies/exploration.ipynb`
    "nbdev names a page without its number, in links and in the site alike."
    return nbpath2html(Path(page)).with_suffix('.ipynb').as_posix()


def site_path(
    file:str, # From the repository's root
    stage:Path, # The folder of the staged site
    cfg, # nbdev's configuration
)->str: # A page or file of the site, else the file in the repository
    "The address on the site of a file of the repository."
    run = re.fullmatch(r'reports/([^/]+)/cpu/notebook\.(?:ipynb|html)', file)
    study = f'nbs/studies/{run[1]}.ipynb' if run else None
    if study and (ROOT/study).exists(): file = study # the page of a study shows its run
    file = WRITTEN.get(file, file)
    if file.startswith('nbs/') and file.endswith('.ipynb'): return f"/{staged(file.removeprefix('nbs/'))}"
    staged_as = {source: name for name,source in RECORD.items()}.get(file, file)
    if staged_as in RECORD or (stage/file).exists(): return f'/{staged_as}'
    return f'{cfg.git_url}/blob/{cfg.branch}/{file}'


def stage_reports(
    stage:Path, # The folder of the staged site
    cfg, # nbdev's configuration
):
    "Show each study as it ran; add the figures and tables of all runs, and the claims."
    # The pages of the library's folder `reports` are staged under the same name and stay
    skipped = shutil.ignore_patterns('smoke', 'gpu', 'private*', '*.html', '*.ipynb', '*.md')
    shutil.copytree(ROOT/'reports', stage/'reports', ignore=skipped, dirs_exist_ok=True)
    stored = []
    for page in sorted((stage/'studies').glob('*.ipynb')):
        if not (run := ROOT/'reports'/page.stem/'cpu').is_dir(): continue
        stage_run(page, run, cfg)
        stored.append(run)
    (stage/'gallery.md').write_text(gallery(stored, staged), encoding='utf-8')
    for name,source in RECORD.items():
        folder = Path(source).parent.as_posix()
        def _target(path, folder=folder): return site_path(normpath(f'{folder}/{path}'), stage, cfg)
        text = relink((ROOT/source).read_text(encoding='utf-8'), _target)
        (stage/name).write_text(front_matter(sources(source, cfg)) + text, encoding='utf-8')


def stage_run(
    page:Path, # A study as nbdev staged it: without outputs
    run:Path, # Its committed run
    cfg, # nbdev's configuration
):
    "Replace a study by its run, under its title: the answer and its figure first, and which run it is."
    files = page, run/'notebook.ipynb', run/'run.json'
    shown, ran, record = (json.loads(f.read_text(encoding='utf-8')) for f in files)
    folder = f"{cfg.git_url}/tree/{cfg.branch}/{run.relative_to(ROOT).as_posix()}"
    line = (f"*As it ran on {record['started'][:10]}, by code `{(record['commit'] or 'unknown')[:7]}`. "
            f"Its [tables, figures and record]({folder}) are in the repository.*")
    title = [c for c in shown['cells'] if c['cell_type'] == 'raw']
    first = dict(cell_type='markdown', id='as-it-ran', metadata={}, source=lead(run, line))
    ran['cells'] = title + [first] + ran['cells'][1:]
    add_alt_texts(ran, figure_texts(ROOT/f'nbs/studies/{page.name}'))
    page.write_text(json.dumps(ran), encoding='utf-8')


def front_matter(options:dict)->str:
    "The options of a page, at its head."
    return f'---\n{yaml.safe_dump(options, sort_keys=False, allow_unicode=True)}---\n\n'


def sources(
    source:str, # A file of the repository, say `nbs/scans/03_nifti.ipynb`
    cfg, # nbdev's configuration
)->dict: # The option `code-links` of a page
    "Links from a page to its source, and from a notebook of the library to the module that it writes."
    folder,_,name = source.removesuffix('.ipynb').rpartition('/')
    module = f"neuroseg{folder.removeprefix('nbs')}/{name.partition('_')[2]}.py"
    links = {source: 'journal-code' if source.endswith('.ipynb') else 'markdown'}
    if source.endswith('.ipynb') and (ROOT/module).is_file(): links[module] = 'file-code'
    return {'code-links': [dict(text=file, href=f'{cfg.git_url}/blob/{cfg.branch}/{file}', icon=icon)
                           for file,icon in links.items()]}


def stage_page(
    page:Path, # A notebook as nbdev staged it, say `_proc/00_core.ipynb`
    stage:Path, # The folder of the staged site
    cfg, # nbdev's configuration
):
    """Give a page the name that links to it use (`core`), links that work inside the site, a link to its source, and
    texts of its pictures."""
    def _target(path):
        file = normpath(f'nbs/{page.parent.relative_to(stage).as_posix()}/{path}')
        return path if file.startswith('nbs/') and not file.endswith('.ipynb') else site_path(file, stage, cfg)
    def _relink(text): return relink(text.replace(f'({cfg.doc_url.rstrip("/")}/', '(/'), _target)
    nb = json.loads(page.read_text(encoding='utf-8'))
    source = f'nbs/{page.relative_to(stage).as_posix()}'
    for i,cell in enumerate(nb['cells']):
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'raw' and i == 0:
            options = yaml.safe_load(text.strip().strip('-'))
            options.pop('output-file', None)
            text = front_matter(options | sources(source, cfg))
        if cell['cell_type'] == 'markdown': text = _relink(text)
        cell['source'] = text
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            # Staging runs the cells of a module as a script, so the types of its signatures come as `__main__.Scan`
            if 'text/markdown' in data:
                data['text/markdown'] = _relink(''.join(data['text/markdown']).replace('__main__.', ''))
    add_alt_texts(nb, {})
    page.unlink()
    Path(staged(page)).write_text(json.dumps(nb), encoding='utf-8')


def configure(
    stage:Path, # The folder of the staged site
    dest:Path, # Of the site
):
    "Complete the options of the site: where it goes, the sidebar with the pages that are no notebooks, version, card."
    nav = yaml.safe_load((stage/'sidebar.yml').read_text(encoding='utf-8'))
    added = {'Studies': (['gallery.md'], ()), 'On record': ((), RECORD)} # Pages before and after those of the section
    def _entry(entry):
        if isinstance(entry, str): return staged(entry)
        before,after = added.get(entry['section'], ((), ()))
        return {**entry, 'contents': [*before, *map(staged, entry['contents']), *after]}
    nav['website']['sidebar']['contents'] = [_entry(e) for e in nav['website']['sidebar']['contents']]
    (stage/'sidebar.yml').write_text(yaml.safe_dump(nav, sort_keys=False), encoding='utf-8')
    base = yaml.safe_load((stage/'nbdev.yml').read_text(encoding='utf-8'))
    del base['format-links'] # Quarto's way to offer Markdown copies; smalldocs has its own, `llms-txt`
    base['project'] |= {'output-dir': str(dest.resolve()), 'resources': ['social.png']}
    web = base['website']
    social_card(stage/'social.png', web['title'], web['description'])
    web['navbar'] = dict(right=[dict(text='Gallery', href='gallery.md'), dict(text='Questions', href='faq.ipynb'),
                                dict(text=f'Version {__version__}', href='changelog.md'),
                                dict(text='GitHub', href=web['repo-url'])])
    web['page-footer'] = dict(
        left=f'neuroseg {__version__}. Research software, not a medical device.',
        right='Code: Apache-2.0. Weights and slices of patients: CC BY-NC-SA 4.0.')
    (stage/'nbdev.yml').write_text(yaml.safe_dump(base, allow_unicode=True), encoding='utf-8')


def site(dest:Path):
    "Build the site into `dest`; any warning, such as a broken link, is an error."
    cfg = get_config(ROOT)
    refresh_quarto_yml()
    # In this process: torch is imported once, and no worker can wait for a lock for ever
    stage = proc_nbs(cfg.nbs_path, force=True, n_workers=0)
    pages = sorted(stage.rglob('*.ipynb'))
    stage_reports(stage, cfg)
    for page in pages: stage_page(page, stage, cfg)
    configure(stage, dest)
    failed = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '--strict', str(stage)]).returncode
    if failed: sys.exit(failed)
    # The docstring of each module names its page's Markdown copy as nbdev calls it
    for copy in dest.rglob('*.llms.md'): shutil.copy(copy, copy.with_name(copy.name.replace('.llms.md', '.html.md')))


if __name__ == '__main__':
    makes = {'readme': partial(page, 'index'), 'card': partial(page, 'model_card'),
             'datasheet': partial(page, 'datasheet'), 'site': site}
    if len(sys.argv) != 3 or sys.argv[1] not in makes: sys.exit(__doc__)
    makes[sys.argv[1]](Path(sys.argv[2]))
