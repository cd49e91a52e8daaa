"""`python -m twins_trt.cli`, where the console script is not on the PATH."""

from twins_trt.cli import main

raise SystemExit(main())
