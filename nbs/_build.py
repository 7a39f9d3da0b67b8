"""Make the README and the docs site from the notebooks, without the Quarto binary that nbdev would ask for.

    python nbs/_build.py readme README.md    # index.ipynb through nbconvert
    python nbs/_build.py site _docs          # pages staged by nbdev, reports beside them, rendered by smalldocs
"""
import json, re, shutil, subprocess, sys
from pathlib import Path
from posixpath import normpath

import nbformat
import yaml
from nbconvert import MarkdownExporter
from nbdev.config import get_config, nbpath2html
from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
from nbdev.serve import proc_nbs
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
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


def readme(dest:Path):
    "Write `index.ipynb` as Markdown: no front matter, no hidden cells, no directives, links from the repository's root."
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    cells = []
    for cell in nb.cells:
        directives = re.findall(r'^#\|\s*(\w+)', cell.source, re.M)
        if cell.cell_type == 'raw' or 'hide' in directives: continue
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
        cells.append(cell)
    nb.cells = cells
    exporter = MarkdownExporter(config=Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags={'remove-input'})))
    for cell in nb.cells: cell.metadata.pop('execution', None) # nbdev-test notes seconds there, which nbformat does not allow
    text, resources = exporter.from_notebook_node(nb)
    if resources['outputs']: raise SystemExit(f"README: index.ipynb has pictures among its outputs ({', '.join(resources['outputs'])}); link to one under reports/ instead")
    text = relink(re.sub(r'\n{3,}', '\n\n', text), lambda path: normpath(f'nbs/{path}'))
    dest.write_text(text.strip() + '\n', encoding='utf-8')


def staged(
    page, # A notebook's path, say `studies/20_exploration.ipynb`
)->str: # Its path in the staged site, `studies/exploration.ipynb`
    "nbdev names a page without its number, in links and in the site alike."
    return nbpath2html(Path(page)).with_suffix('.ipynb').as_posix()


def stage_reports(stage:Path):
    "Put the committed runs beside the pages: their notebooks become pages, their figures and tables are there to link to."
    if not (ROOT/'reports').is_dir(): return
    shutil.copytree(ROOT/'reports', stage/'reports', ignore=shutil.ignore_patterns('smoke', 'gpu', 'private*', '*.html'), dirs_exist_ok=True)
    index = stage/'reports/README.md'
    if index.exists(): index.rename(index.with_name('index.md'))


def stage_datasheet(
    stage:Path, # The folder of the staged site
    cfg, # nbdev's configuration
):
    "Put the datasheet of the cohorts beside the pages."
    def _target(path):
        if path.startswith('nbs/') and path.endswith('.ipynb'): return f"/{staged(path.removeprefix('nbs/'))}"
        return f'/{path}' if (stage/path).exists() else f'{cfg.git_url}/blob/{cfg.branch}/{path}'
    (stage/'datasheet.md').write_text(relink((ROOT/'DATASHEET.md').read_text(encoding='utf-8'), _target), encoding='utf-8')


def stage_page(
    page:Path, # A notebook as nbdev staged it, say `_proc/00_core.ipynb`
    stage:Path, # The folder of the staged site
    cfg, # nbdev's configuration
):
    "Give a page the name that links to it use (`core`), and links that work inside the site."
    def _target(path):
        inside = normpath(f'{page.parent.relative_to(stage).as_posix()}/{path}')
        if inside.startswith('../'): # out of nbs/: a run that the site has, or else the file in the repository
            file = inside.removeprefix('../')
            return f'/{file}' if (stage/file).exists() else f'{cfg.git_url}/blob/{cfg.branch}/{file}'
        return f'/{staged(inside)}' if inside.endswith('.ipynb') else path
    def _relink(text): return relink(text.replace(f'({cfg.doc_url.rstrip("/")}/', '(/'), _target)
    nb = json.loads(page.read_text(encoding='utf-8'))
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        if cell['cell_type'] == 'raw': text = re.sub(r'^output-file:.*\n', '', text, flags=re.M)
        if cell['cell_type'] == 'markdown': text = _relink(text)
        cell['source'] = text
        for out in cell.get('outputs', []):
            data = out.get('data', {})
            if 'text/markdown' in data: data['text/markdown'] = _relink(''.join(data['text/markdown']))
    page.unlink()
    Path(staged(page)).write_text(json.dumps(nb), encoding='utf-8')


def site(dest:Path):
    "Build the site into `dest`; any warning, such as a broken link, is an error."
    cfg = get_config(ROOT)
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__(path=str(cfg.nbs_path))
    stage = proc_nbs(cfg.nbs_path, force=True)
    pages = sorted(stage.rglob('*.ipynb'))
    stage_reports(stage)
    for page in pages: stage_page(page, stage, cfg)
    stage_datasheet(stage, cfg)
    nav = yaml.safe_load((stage/'sidebar.yml').read_text())
    contents = [{**entry, 'contents': [staged(p) for p in entry['contents']]} if isinstance(entry, dict) else staged(entry)
                for entry in nav['website']['sidebar']['contents']]
    runs = [p.relative_to(stage).as_posix() for p in sorted((stage/'reports').rglob('*')) if p.suffix in ('.ipynb', '.md')]
    nav['website']['sidebar']['contents'] = contents + ['datasheet.md'] + ([{'section': 'reports', 'contents': runs}] if runs else [])
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
    if len(sys.argv) != 3 or sys.argv[1] not in ('readme', 'site'): sys.exit(__doc__)
    {'readme': readme, 'site': site}[sys.argv[1]](Path(sys.argv[2]))
