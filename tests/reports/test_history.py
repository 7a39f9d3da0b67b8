"Every stored run names code that this history holds."
import csv, subprocess

import pytest

from conftest import ROOT
from neuroseg.core import git_objects, read_json
from neuroseg.reports.stored_run import find_commit, kept_runs, source_paths

RUNS = {f.relative_to(ROOT/'reports').as_posix(): f for f in kept_runs(ROOT)}
# Their commits were folded into later ones before the record named git's hashes; a rerun takes them off this list
LOST = {'21_thesis/cpu', '22_protocol_audit/cpu', '23_learner/cpu', '29_speed_run/cpu'}


def git(*args): return subprocess.run(['git', '-C', str(ROOT), *args], capture_output=True, text=True, check=False)


pytestmark = pytest.mark.skipif(git('rev-parse', '--is-shallow-repository').stdout.strip() != 'false',
                                reason='needs the whole history, not an archive or a shallow clone')


@pytest.mark.parametrize('run', RUNS)
def test_the_code_of_a_stored_run_is_in_the_history(run):
    found = find_commit(read_json(RUNS[run]/'run.json'), ROOT)
    assert bool(found) == (run not in LOST), f'{run}: rerun it on committed code, or take it off LOST'


def test_a_made_up_commit_is_not_found():
    assert find_commit(dict(commit='0'*40), ROOT) is None


def test_a_made_up_tree_is_not_found():
    true = git_objects(ROOT, source_paths('20_exploration'))
    assert find_commit(dict(commit='0'*40, tree=true), ROOT)  # the commit is lost, its content is not
    assert find_commit(dict(commit='0'*40, tree=true | {'neuroseg': '1'*40}), ROOT) is None


def test_records_of_the_speed_run_name_commits_of_this_history():
    "Each record was made by code that can be looked at, not only the run that gathers them."
    with open(RUNS['29_speed_run/cpu']/'records.csv', newline='') as f:
        commits = [r['commit'] for r in csv.DictReader(f)]
    assert commits and [c for c in commits if git('merge-base', '--is-ancestor', c, 'HEAD').returncode] == []
