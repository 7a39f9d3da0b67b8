"French: every message of the library and every text of the page has a translation, with the same values in it."
import ast, gettext, string
from importlib.resources import files
from io import BytesIO

import pytest
from bright_model import bright, write_model
from hostile import HOSTILE

from neuroseg.app.i18n import CARD_LABELS, LANGUAGES, TEXTS, catalogue, figure, say, translated
from neuroseg.app.session import segment_uploads
from neuroseg.core import SEVERITIES, InputError, Message
from neuroseg.segmentation.result import Segmenter

LOCALE = files('neuroseg')/'app/locale/fr/LC_MESSAGES'
# core.py makes messages from plain sentences and from stored ones; their texts are no templates
PLAIN = '{text}'


def fields(template):
    "The values of a template, each with its conversion and format."
    return sorted((name, conversion, spec) for _, name, spec, conversion in string.Formatter().parse(template) if name)


def message_calls(root):
    "Every `Message(...)` in the library: file and line, and the call."
    for path in sorted((root/'neuroseg').rglob('*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if path.name == 'core.py' or not isinstance(node, ast.Call): continue
            if 'Message' in (getattr(node.func, 'id', ''), getattr(node.func, 'attr', '')):
                yield f'{path.relative_to(root).as_posix()}:{node.lineno}', node


@pytest.fixture(scope='module')
def calls(root):
    found = dict(message_calls(root))
    assert len(found) > 100
    return found


@pytest.fixture(scope='module')
def templates(calls): return {node.args[1].value for node in calls.values()} | {*CARD_LABELS} - {PLAIN}


@pytest.fixture(scope='module')
def stored():
    "The .po file: (context, English) to French."
    po = pytest.importorskip('babel.messages.pofile')
    read = po.read_po(BytesIO((LOCALE/'neuroseg.po').read_bytes()))
    assert not [m.id for m in read if m.fuzzy and m.id]
    return {(m.context, m.id): m.string for m in read if m.id}


def test_every_message_is_data(calls):
    "Code, template and severity are constants, so that they can be found; the template names all the values."
    for place, node in calls.items():
        code, template, *severity = (a.value if isinstance(a, ast.Constant) else None for a in node.args)
        assert isinstance(code, str) and code.isidentifier() and isinstance(template, str), place
        assert not severity or severity[0] in SEVERITIES, place
        given, named = {k.arg for k in node.keywords}, {name for name, _, _ in fields(template)}
        assert given == named or None in given and given-{None} <= named, place # None: a `**dict`


def test_every_message_has_french(stored, templates):
    assert sorted(templates - {text for context, text in stored if context is None}) == []


def test_every_text_of_the_page_has_french(stored):
    assert [k for k, text in TEXTS.items() if not stored.get((k, text))] == []


def test_no_translation_is_orphaned(stored, templates):
    asked = {(None, t) for t in templates} | {(k, text) for k, text in TEXTS.items()}
    assert sorted(text for _, text in stored.keys() - asked) == []


def test_translations_hold_the_same_values(stored):
    assert [en for (_, en), fr in stored.items() if fields(en) != fields(fr)] == []


def test_the_compiled_catalogue_is_the_written_one(stored):
    "`make messages` was run after the last change."
    mo = pytest.importorskip('babel.messages.mofile')
    compiled = {(m.context, m.id): m.string for m in mo.read_mo(BytesIO((LOCALE/'neuroseg.mo').read_bytes())) if m.id}
    assert compiled == stored


def test_a_changed_catalogue_would_be_seen(stored):
    assert fields('{n:,} of {m!r}') != fields('{n} of {m!r}') and fields('no {{brace}}') == []
    with pytest.raises(OSError): gettext.GNUTranslations(BytesIO(b'no catalogue'))


def test_every_text_is_used(root):
    "A text that the page no longer shows would be translated for nothing."
    code = '\n'.join(p.read_text(encoding='utf-8') for p in (root/'neuroseg/app').glob('*.py') if p.name != 'i18n.py')
    # Keys that are made of the names of layers, sequences, planes and scores
    built = {'probability_here', 'difference_here', 'post', 'pre', 'flair', 'axial', 'coronal', 'sagittal', 'dice',
             'iou', 'precision', 'recall', 'volume_error_ml', 'hd95_mm', 'probability', 'outline', 'difference'}
    assert [k for k in TEXTS if k not in built and f"'{k}'" not in code] == []


def test_names_are_carried_over_and_numbers_written_anew():
    said = Message('cut_short', '`{name}` ends after {size:,} of {expected:,} bytes; copy it again', 'error',
                   name='1,234.5.nii', size=1234, expected=5678901)
    french = translated(said, 'fr')
    assert '`1,234.5.nii`' in french and '1\xa0234' in french and '5\xa0678\xa0901' in french


def test_a_message_in_a_message_is_translated_too():
    fault = Message('card_flips', 'its `flips` must be true or false', 'error')
    whole = InputError(Message('card_fault', '`{name}` cannot be used: {fault}; export the model again', 'error',
                               name='a.json', fault=fault))
    assert 'son `flips` doit' in translated(whole.message, 'fr') and 'its `flips` must' in str(whole)


@pytest.mark.parametrize('said', ['a plain sentence', '', '{', Message('unheard_of', 'never {seen}', seen='{x}')])
def test_an_unknown_sentence_stays_english(said): assert translated(said, 'fr') == str(said)


def test_each_language_answers():
    for lang in LANGUAGES: assert say('notice', lang) and catalogue(lang) is catalogue(lang)
    assert figure(-1234.5, ',.1f', 'fr') == '-1\xa0234,5' and figure(3, '', 'fr') == '3'


class Upload:
    def __init__(self, name, data): self.name, self.data = name, data
    def getvalue(self): return self.data


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory): return Segmenter(write_model(tmp_path_factory.mktemp('model'), bright()))


@pytest.mark.parametrize('inputs,says', [pytest.param(inputs, says, id=name) for name, inputs, says in HOSTILE])
def test_every_refusal_of_a_hostile_input_has_french(segmenter, inputs, says):
    "An error with a plain sentence would be shown in English."
    _, refusals = segment_uploads(segmenter, [Upload(*item) for item in inputs.items()])
    assert refusals and all(r.message.code != 'error' and r.text('fr') != r.text() for r in refusals), refusals
