"""Run the `run:` blocks of a workflow's job here, in a clean clone, to see them work before GitHub does.

    python tests/house/workflow_steps.py release build --ref v0.1.0
    python tests/house/workflow_steps.py test base-install --python python3.13

Actions (`uses:`) are named and left out: the clone stands for checkout, --python for setup-python. A block whose
expressions only GitHub knows (a token, the output of an action) is left out, too, and said so.
"""
import argparse, os, re, shutil, subprocess, sys, tempfile, time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
EXPRESSION = re.compile(r'\$\{\{\s*([\w.-]+)\s*\}\}')


def fill(
    text:str, # Of a step
    known:dict, # Expression to value
)->str|None: # None where an expression is not known
    "A text with its expressions `${{ matrix.os }}` replaced."
    filled = EXPRESSION.sub(lambda m: str(known.get(m[1], m[0])), str(text))
    return None if '${{' in filled else filled


def environment(workflow, job, step, known):
    "Variables of a step, those of the whole workflow and of the job among them; None where one is not known."
    named = {k: fill(v, known) for part in (workflow, job, step) for k, v in (part.get('env') or {}).items()}
    return None if None in named.values() else named


def blocks(
    workflow:dict, # As YAML gives it
    job:str, # Its name
    known:dict, # Expression to value
):
    "Each step as (title, script, variables); an action, and a step with an unknown expression, have no script."
    for step in workflow['jobs'][job]['steps']:
        script = fill(step['run'], known) if 'run' in step else None
        env = environment(workflow, workflow['jobs'][job], step, known)
        title = step.get('name') or step.get('uses') or step['run'].strip().splitlines()[0]
        yield title, None if env is None else script, env or {}


def run_job(
    name:str, # Of the workflow, without .yml
    job:str, # Of the workflow
    ref:str, # Name of the branch or tag
    python:str, # Interpreter that the steps call `python`
    matrix:dict, # One combination of the matrix
    keep:Path|None=None, # Folder for the clone; None: a temporary one
)->int: # Number of blocks that failed: 0 or 1
    "Run a job's blocks in order; the first failure ends it."
    workflow = yaml.safe_load((ROOT/f'.github/workflows/{name}.yml').read_text(encoding='utf-8'))
    scratch = Path(keep or tempfile.mkdtemp(prefix='steps-'))
    clone, tools = scratch/'clone', scratch/'bin'
    subprocess.run(['git', 'clone', '--quiet', ROOT, clone], check=True)
    tools.mkdir(parents=True)
    ask = [python, '-c', 'import sys; print(sys.executable)'] # `python` may be a script that finds the interpreter
    real = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    for alias in ('python', 'python3'): (tools/alias).symlink_to(real)
    known = {'github.repository': 'neuroseg/neuroseg', 'github.ref_name': ref}
    known |= {f'matrix.{k}': v for k, v in matrix.items()}
    base = os.environ | dict(GITHUB_REF_NAME=ref, GITHUB_REPOSITORY='neuroseg/neuroseg', CI='true',
                             PATH=f"{tools}{os.pathsep}{os.environ['PATH']}")
    failed = 0
    for title, script, env in blocks(workflow, job, known):
        if script is None: print(f'left out     {title}', flush=True); continue
        start = time.perf_counter()
        done = subprocess.run(['bash', '-eo', 'pipefail', '-c', script], cwd=clone, env=base | env, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        failed = int(done.returncode != 0)
        print(f"{'failed' if failed else 'ran':7}{time.perf_counter()-start:5.0f} s {title}", flush=True)
        print('\n'.join(f'    {line}' for line in done.stdout.strip().splitlines()[-40 if failed else -6:]), flush=True)
        if failed: break
    if not keep: shutil.rmtree(scratch)
    return failed


if __name__ == '__main__':
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('workflow'); p.add_argument('job')
    p.add_argument('--ref', default='main'); p.add_argument('--python', default='python3')
    p.add_argument('--matrix', action='append', default=[], metavar='KEY=VALUE')
    p.add_argument('--keep', type=Path, help='folder for the clone and what the steps leave in it')
    a = p.parse_args()
    sys.exit(run_job(a.workflow, a.job, a.ref, a.python, dict(m.split('=', 1) for m in a.matrix), a.keep))
