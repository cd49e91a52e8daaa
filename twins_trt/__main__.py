"""`python -m twins_trt` is `twins-trt`."""

import sys

from twins_trt.cli import main

if __name__ == "__main__":
    sys.exit(main())
