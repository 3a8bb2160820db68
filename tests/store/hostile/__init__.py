"""Hostile input: cases of each kind, and the child process in which they are tried and measured.

A kind is a function of (folder, seed) that gives cases without end; the same seed gives the same cases. Some are whole
and known to be hard (they come first), most are real files whose bytes were changed, some are made by hypothesis.
"""
