"Workflows: actions pinned by commit, runners that exist, blocks that bash can read, the Pythons that are promised."
import re, shutil, subprocess
from itertools import product

import pytest

yaml = pytest.importorskip('yaml')
from conftest import ROOT
from workflow_steps import blocks, fill

FILES = sorted((ROOT/'.github/workflows').glob('*.yml'))
WORKFLOWS = {f.stem: yaml.safe_load(f.read_text(encoding='utf-8')) for f in FILES}
JOBS = [(name, job) for name, workflow in WORKFLOWS.items() for job in workflow['jobs']]
# Of GitHub; without `latest`, which is another machine next year
RUNNERS = {'ubuntu-24.04', 'windows-2025', 'macos-15'}
PIN = re.compile(r'([\w/-]+)@([0-9a-f]{40} # v\d+\.\d+\.\d+)')


def combinations(job):
    "Each combination of a job's matrix, as expressions."
    matrix = job.get('strategy', {}).get('matrix', {})
    return [{f'matrix.{k}': v for k, v in zip(matrix, values)} for values in product(*matrix.values())]


def test_actions_are_pinned():
    "By a commit, with the version for the reader: a tag can be moved to other code. One commit an action."
    pinned = {}
    for f in FILES:
        used = re.findall(r'uses: (.*)', f.read_text(encoding='utf-8'))
        assert [u for u in used if not PIN.fullmatch(u)] == []
        for u in used: pinned.setdefault(PIN.fullmatch(u)[1], set()).add(PIN.fullmatch(u)[2])
    assert pinned and [action for action, versions in pinned.items() if len(versions) > 1] == []


@pytest.mark.parametrize('uses', ['actions/checkout@v7', 'actions/checkout@v7.0.0', f"actions/checkout@{'0'*40}",
                                  f"actions/checkout@{'0'*39} # v7.0.0"])
def test_a_loose_pin_is_found(uses): assert not PIN.fullmatch(uses)


@pytest.mark.parametrize('name,job', JOBS)
def test_a_job_ends_and_runs_on_a_known_machine(name, job):
    facts = WORKFLOWS[name]['jobs'][job]
    assert facts['timeout-minutes'] <= 350
    assert {fill(facts['runs-on'], known) for known in combinations(facts)} <= RUNNERS


@pytest.mark.parametrize('name', WORKFLOWS)
def test_a_workflow_may_only_read_unless_a_job_needs_more(name):
    assert WORKFLOWS[name]['permissions'] == {'contents': 'read'}


@pytest.mark.skipif(not shutil.which('bash'), reason='the blocks are for bash')
@pytest.mark.parametrize('name,job', JOBS)
def test_bash_can_read_every_block(name, job):
    for title, script, _ in blocks(WORKFLOWS[name], job, combinations(WORKFLOWS[name]['jobs'][job])[0]):
        if script is None: continue
        read = subprocess.run(['bash', '-n'], input=script, capture_output=True, text=True)
        assert read.returncode == 0, f'{title}: {read.stderr}'


def test_the_base_install_is_tried_with_every_python_that_is_promised():
    text = (ROOT/'pyproject.toml').read_text(encoding='utf-8')
    promised = re.findall(r'Programming Language :: Python :: (3\.\d+)', text)
    matrix = WORKFLOWS['test']['jobs']['base-install']['strategy']['matrix']
    assert matrix['python'] == promised and set(matrix['os']) == RUNNERS
    assert f'requires-python = ">={promised[0]}"' in text


def test_a_step_that_only_github_can_fill_has_no_script():
    job = dict(steps=[dict(run='echo ${{ github.token }}'), dict(run='echo ${{ matrix.os }}'),
                      dict(run='true', env=dict(T='${{ secrets.X }}')), dict(uses='a/b@c')])
    found = list(blocks(dict(jobs=dict(j=job)), 'j', {'matrix.os': 'here'}))
    assert [script for _, script, _ in found] == [None, 'echo here', None, None]
