"""The console script ``ssl-dist``."""

from cluster.cli import app
from ssl_dist.cli import main


def run() -> None:
    main(app)


if __name__ == "__main__":
    run()
