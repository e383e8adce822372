"""`python -m stylegan_inversion`."""

import sys

from stylegan_inversion.cli import main

sys.exit(main())
