"""Hostile input for the store's readers, and the child process in which each case is tried and measured.

A kind of input is a function of (folder, seed) that yields endless cases; the same seed gives the same cases. The first
are complete files that are known to be hard, most are real files with changed bytes, and some are made by hypothesis.
"""
