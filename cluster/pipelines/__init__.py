"""Commands of several runs, one after another."""
