"Segment brain tumours in MRI: `neuroseg.segment(path)` for one scan, `neuroseg.Segmenter` for many."
__version__ = "0.1.0"

import os

# ONNX Runtime reports each start to its maker, and leaves a file in the temporary folder, unless this is set before it
# is loaded
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')


def _other_distribution(
    folder, # That holds this package
): # Folder name of the distribution `neuroseg`, None where there is none
    "We come with `neuroseg-mri`; `neuroseg` on PyPI is another project, which installs the same package name."
    try: names = os.listdir(folder)
    except OSError: return None # not installed in a folder, so not mixed with another project
    ends = '.dist-info', '.egg-info'
    return next((n for n in names if n.lower().startswith('neuroseg-') and n.endswith(ends)), None)


if _other := _other_distribution(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))):
    raise ImportError(f"the distribution `{_other.rpartition('.')[0]}` lies in the folder of neuroseg-mri, and their "
                      "files are mixed (on PyPI, `neuroseg` is another project); run: pip uninstall neuroseg "
                      "neuroseg-mri, then install neuroseg-mri again")

# Public names and their modules: loaded when first asked for, so that `import neuroseg` itself stays free of numpy
_PUBLIC = {'segment': 'segmentation.result', 'Segmentation': 'segmentation.result', 'Segmenter': 'segmentation.result',
           'predict_cases': 'segmentation.batch', 'load_card': 'segmentation.card',
           'read_scan': 'scans.reading', 'Scan': 'scans.stacks'}


def __getattr__(name):
    if name in _PUBLIC:
        from importlib import import_module
        return getattr(import_module(f'neuroseg.{_PUBLIC[name]}'), name)
    raise AttributeError(f"module 'neuroseg' has no attribute {name!r}")


def __dir__(): return sorted([*globals(), *_PUBLIC])
