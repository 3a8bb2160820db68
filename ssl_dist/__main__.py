"""``python -m ssl_dist`` is the command ``ssl-dist``."""

from ssl_dist.commands.main import main

main()
