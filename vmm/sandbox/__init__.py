"""A program seen as a library of C functions: their types, and how they are called.

All of it is pure: values in, values out.
"""
