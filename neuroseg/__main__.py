"`python -m neuroseg` is the command line."
from neuroseg.cli import main

if __name__ == '__main__': raise SystemExit(main())
