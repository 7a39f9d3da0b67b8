"""Write the README, the model card, the datasheet and the docs site from the notebooks, without the Quarto binary that
nbdev needs.

    python nbs/_build.py readme README.md    # nbs/index.ipynb, by nbconvert
    python nbs/_build.py card MODEL_CARD.md  # nbs/model_card.ipynb, by nbconvert
    python nbs/_build.py datasheet DATASHEET.md
    python nbs/_build.py site _docs          # notebooks staged by nbdev, reports added, rendered by smalldocs
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

ROOT = Path(__file__).resolve().parent.parent
# Files of the repository that are written from a notebook: on the site, the notebook is their page
WRITTEN = {'README.md': 'nbs/index.ipynb', 'MODEL_CARD.md': 'nbs/model_card.ipynb',
           'DATASHEET.md': 'nbs/datasheet.ipynb'}
# Pages of the site that are files of the repository
RECORD = {'reports/index.md': 'reports/README.md', 'ledger.md': 'CLAIMS.md', 'openings.md': 'reports/LEDGER.md'}
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
    for page in (stage/'studies').glob('*.ipynb'):
        if (run := ROOT/'reports'/page.stem/'cpu').is_dir(): stage_run(page, run, cfg)
    for name,source in RECORD.items():
        folder = Path(source).parent.as_posix()
        def _target(path, folder=folder): return site_path(normpath(f'{folder}/{path}'), stage, cfg)
        text = (ROOT/source).read_text(encoding='utf-8')
        (stage/name).write_text(relink(text, _target), encoding='utf-8')


def stage_run(
    page:Path, # A study as nbdev staged it: without outputs
    run:Path, # Its committed run
    cfg, # nbdev's configuration
):
    "Replace a study by its run, under the title of the study, with a line on date, code and folder of the run."
    files = page, run/'notebook.ipynb', run/'run.json'
    shown, ran, record = (json.loads(f.read_text(encoding='utf-8')) for f in files)
    folder = f"{cfg.git_url}/tree/{cfg.branch}/{run.relative_to(ROOT).as_posix()}"
    line = (f"*As it ran on {record['started'][:10]}, by code `{(record['commit'] or 'unknown')[:7]}`. "
            f"Its [tables, figures and record]({folder}) are in the repository.*")
    title = [c for c in shown['cells'] if c['cell_type'] == 'raw']
    ran['cells'] = title + [dict(cell_type='markdown', id='as-it-ran', metadata={}, source=line)] + ran['cells'][1:]
    page.write_text(json.dumps(ran), encoding='utf-8')


def stage_page(
    page:Path, # A notebook as nbdev staged it, say `_proc/00_core.ipynb`
    stage:Path, # The folder of the staged site
    cfg, # nbdev's configuration
):
    "Give a page the name that links to it use (`core`), and links that work inside the site."
    def _target(path):
        file = normpath(f'nbs/{page.parent.relative_to(stage).as_posix()}/{path}')
        return path if file.startswith('nbs/') and not file.endswith('.ipynb') else site_path(file, stage, cfg)
    def _relink(text): return relink(text.replace(f'({cfg.doc_url.rstrip("/")}/', '(/'), _target)
    nb = json.loads(page.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'raw': text = re.sub(r'^output-file:.*\n', '', text, flags=re.M)
        if cell['cell_type'] == 'markdown': text = _relink(text)
        cell['source'] = text
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            # Staging runs the cells of a module as a script, so the types of its signatures come as `__main__.Scan`
            if 'text/markdown' in data:
                data['text/markdown'] = _relink(''.join(data['text/markdown']).replace('__main__.', ''))
    page.unlink()
    Path(staged(page)).write_text(json.dumps(nb), encoding='utf-8')


def site(dest:Path):
    "Build the site into `dest`; any warning, such as a broken link, is an error."
    cfg = get_config(ROOT)
    refresh_quarto_yml()
    stage = proc_nbs(cfg.nbs_path, force=True)
    pages = sorted(stage.rglob('*.ipynb'))
    stage_reports(stage, cfg)
    for page in pages: stage_page(page, stage, cfg)
    nav = yaml.safe_load((stage/'sidebar.yml').read_text())
    def _entry(entry):
        if isinstance(entry, str): return staged(entry)
        record = RECORD if entry['section'] == 'On record' else ()
        return {**entry, 'contents': [*map(staged, entry['contents']), *record]}
    nav['website']['sidebar']['contents'] = [_entry(e) for e in nav['website']['sidebar']['contents']]
    (stage/'sidebar.yml').write_text(yaml.safe_dump(nav, sort_keys=False))
    base = yaml.safe_load((stage/'nbdev.yml').read_text())
    del base['format-links'] # Quarto's way to offer Markdown copies; smalldocs has its own, `llms-txt`
    base['project']['output-dir'] = str(dest.resolve())
    (stage/'nbdev.yml').write_text(yaml.safe_dump(base))
    failed = subprocess.run([sys.executable, '-m', 'smalldocs.cli', 'render', '--strict', str(stage)]).returncode
    if failed: sys.exit(failed)
    # The docstring of each module names its page's Markdown copy as nbdev calls it
    for copy in dest.rglob('*.llms.md'): shutil.copy(copy, copy.with_name(copy.name.replace('.llms.md', '.html.md')))


if __name__ == '__main__':
    makes = {'readme': partial(page, 'index'), 'card': partial(page, 'model_card'),
             'datasheet': partial(page, 'datasheet'), 'site': site}
    if len(sys.argv) != 3 or sys.argv[1] not in makes: sys.exit(__doc__)
    makes[sys.argv[1]](Path(sys.argv[2]))
