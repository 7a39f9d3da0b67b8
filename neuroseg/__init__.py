"Segment brain tumours in MRI: `neuroseg.segment(path)` for one scan, `neuroseg.Segmenter` for many."
__version__ = "0.1.0"

import os

# ONNX Runtime reports each start to its maker, and leaves a file in the temporary folder, unless this is set before it
# is loaded
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')

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
