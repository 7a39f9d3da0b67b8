"Synthetic patients under the names of the sealed ones, and a repository with nothing but the out-of-fold scores."
import shutil
from pathlib import Path

from neuroseg.cohorts.integrity import SEALED
from neuroseg.scans.phantom import write_phantom_lgg

NAMES = tuple(sorted(SEALED))


def write_sealed(
    dest:Path, # Folder in which `kaggle_3m` is made
    names=NAMES, # One for each patient
    **kwargs, # For `write_phantom_lgg`
)->Path: # The folder `kaggle_3m`
    "A small cohort in the layout of the LGG cohort."
    cohort = write_phantom_lgg(dest, n_patients=len(names), **dict(size_px=48, n_slices=7) | kwargs)
    (cohort/'data.csv').unlink()
    for old, name in zip(sorted(p for p in cohort.iterdir() if p.is_dir()), names):
        for f in list(old.iterdir()): f.rename(f.with_name(f.name.replace(old.name, f'{name}_20000101')))
        old.rename(cohort/f'{name}_20000101')
    return cohort


def write_repository(
    dest:Path, # Folder to make
    root:Path, # The true repository
)->Path: # `dest`
    "What `find_repo` and `out_of_fold` look for."
    learner = 'reports/23_learner/cpu/patients.csv'
    for part in ('nbs/studies', 'reports/23_learner/cpu'): (dest/part).mkdir(parents=True)
    shutil.copy(root/learner, dest/learner)
    return dest
