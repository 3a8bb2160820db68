"""Which images of a store to label next: strategies that choose among its unlabelled images by their features.

``strategies`` lists them and calls one, ``recommended`` says which of them was best where it was measured.
"""
