"""The command line ``ssl-dist``."""
