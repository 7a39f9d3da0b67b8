"What the site shows of the studies: an answer and a figure at the head of each page, a gallery, and a social card."
import ast, json, re
from pathlib import Path

import yaml
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
# The figure that stands for a study; a study that is not named here, or whose run lacks it, shows its first figure
BEST = {'20_exploration': 'lesion_map', '21_thesis': 'triptych', '22_protocol_audit': 'road',
        '23_learner': 'best_median_worst', '25_fine_tuning': 'curve', '29_speed_run': 'score_over_time'}
# A slice of the public cohort, a held-out patient of study 23, for the social card
CARD_PANEL = 'reports/23_learner/cpu/panels/patient_best.png'


def cells(notebook:Path)->list:
    "The cells of a notebook, each source as one string."
    nb = json.loads(notebook.read_text(encoding='utf-8'))
    return [c | dict(source=''.join(c['source'])) for c in nb['cells']]


def figure_texts(
    notebook:Path, # A study
)->dict: # Name of a figure to the docstring of the function that draws it
    "The figures of a study in the order of its page, each with a sentence that says what it shows."
    found = {}
    for cell in cells(notebook):
        if 'figures' not in cell['metadata'].get('tags', ()): continue
        for node in ast.parse(cell['source']).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith('draw_'):
                found[node.name.removeprefix('draw_')] = ast.get_docstring(node) or node.name
    return found


def best_figure(
    run:Path, # Folder of a run of a study
)->tuple: # Its PNG and what it shows; None twice where the run holds no figure
    "The figure that stands for a study; none that shows sealed patients."
    study = run.parent.name
    texts = figure_texts(ROOT/f'nbs/studies/{study}.ipynb')
    names = [n for n in (BEST.get(study), *texts)
             if n in texts and 'sealed' not in n and (run/f'figures/{n}.png').is_file()]
    return (run/f'figures/{names[0]}.png', texts[names[0]]) if names else (None, None)


def lead(
    run:Path, # Folder of a run
    line:str, # On date, code and folder of the run
)->str: # Markdown
    "The head of a study's page: the answer of the stored run, its figure, and which run it is."
    answer = json.loads((run/'summary.json').read_text(encoding='utf-8'))['answer']
    waiting = yaml.safe_load((ROOT/'reports/waiting.yml').read_text(encoding='utf-8')) or {}
    parts = [f'::: {{.answer}}\n**Answer.** {answer}\n:::']
    png,text = best_figure(run)
    if png: parts.append(f'![{text}](/{png.relative_to(ROOT).as_posix()}){{.lead}}')
    name = f'{run.parent.name}/{run.name}'
    if name in waiting: line += f" The study has changed since and waits to be run again: {waiting[name]['why']}."
    return '\n\n'.join([*parts, line])


def headline(
    cells:list, # Of a notebook
)->tuple: # Its title and the line below
    "Title and question of a study, as its first cell has them."
    first = next(c['source'] for c in cells if c['cell_type']=='markdown')
    return re.search(r'^# (.*)', first, re.M)[1], re.search(r'^> (.*)', first, re.M)[1]


def gallery(
    stored:list, # Folders of runs
    page_of, # Function of the path of a notebook in nbs/, giving its page
)->str: # Markdown
    "A page of figures: one of each study, which leads to the page of the study, with the study's finding."
    shown = []
    for run in stored:
        notebook = ROOT/f'nbs/studies/{run.parent.name}.ipynb'
        png,text = best_figure(run)
        if not png: continue
        title,question = headline(cells(notebook))
        found = json.loads((run/'summary.json').read_text(encoding='utf-8'))['headline'].rstrip('.')
        page = page_of(f'studies/{notebook.name}')
        shown.append(f'::: {{.card}}\n[![{text}](/{png.relative_to(ROOT).as_posix()})](/{page})\n\n'
                     f'## [{title}](/{page})\n\n*{question}*\n\n{found}.\n:::')
    head = ('---\ntitle: Gallery\ndescription: One figure of each study. A click opens the page of the study.\n'
            'toc: false\n---\n\nEach figure is drawn from the stored tables of a run in `reports/`. Slices of patients '
            'come from the public LGG collection.')
    return '\n\n'.join([head, ':::: {.gallery}', *shown, '::::']) + '\n'


def alt_text(
    source:str, # Of a code cell
    texts:dict, # As `figure_texts` gives them
    heading:str, # The heading above the cell
)->str: # What a picture among the outputs shows
    "The text that stands for a picture where it cannot be seen."
    called = [n for n in re.findall(r'\bdraw_(\w+)', source) if n in texts]
    return texts[called[0]] if called else f'Output of the code above, in the section {heading!r}'


def add_alt_texts(
    nb:dict, # A notebook as it is staged; changed
    texts:dict, # As `figure_texts` gives them; empty for a notebook that is no study
):
    "Give each picture among the outputs of a notebook a text, as Quarto's option `fig-alt`."
    heading = 'introduction'
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        found = re.findall(r'^#+ (.*)', text, re.M) if cell['cell_type']=='markdown' else []
        if found: heading = found[-1]
        pictures = any(k.startswith('image/') for o in cell.get('outputs', ()) for k in o.get('data', {}))
        if pictures and 'fig-alt' not in text:
            cell['source'] = f'#| fig-alt: {json.dumps(alt_text(text, texts, heading))}\n{text}'


def social_card(
    dest:Path, # PNG of 1200 x 630 pixels, the size that social networks show
    title:str,
    text:str, # One sentence
):
    "A picture that stands for the site where somebody links to it."
    card = Image.new('RGB', (1200, 630), '#10243b')
    panel = Image.open(ROOT/CARD_PANEL).convert('RGB')
    side = panel.height
    for left,top in ((0, 10), (panel.width-side, 320)): # The scan, and the mask of the network
        part = panel.crop((left, 0, left+side, side)).resize((300, 300), Image.Resampling.LANCZOS)
        card.paste(part, (880, top))
    draw = ImageDraw.Draw(card)
    draw.text((70, 130), title, font=ImageFont.load_default(110), fill='white')
    lines, width = [''], 760
    font = ImageFont.load_default(42)
    for word in text.split():
        longer = f'{lines[-1]} {word}'.strip()
        if draw.textlength(longer, font=font) > width: lines.append(word)
        else: lines[-1] = longer
    draw.multiline_text((70, 290), '\n'.join(lines), font=font, fill='#c9dcf2', spacing=18)
    card.save(dest, optimize=True)
