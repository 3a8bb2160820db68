"""``python -m ssl_dist`` is the command ``ssl-dist``."""

import os
import sys

# Python puts the current folder first, where a file numpy.py would take the place of the library. It stays where it
# holds this package.
if sys.path[0] == os.getcwd() != os.path.dirname(os.path.dirname(__file__)) and not sys.flags.safe_path:
    del sys.path[0]

from ssl_dist.commands.main import main

main()
