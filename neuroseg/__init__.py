"Outline brain tumours in MRI, and know what the score means. `neuroseg.segment(path)` is the shortest way in."
__version__ = "0.1.0"

import os

# ONNX Runtime tells its maker of every start, and leaves a mark in the temporary folder, unless this is set before it is loaded. Nothing leaves this machine
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')


def __getattr__(name):
    # Loaded when first asked for: `import neuroseg` itself stays free of numpy and everything else
    if name == 'segment':
        from neuroseg.infer import segment
        return segment
    raise AttributeError(f"module 'neuroseg' has no attribute {name!r}")


def __dir__(): return sorted([*globals(), 'segment'])
