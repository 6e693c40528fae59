"""Fuzz targets of Genie: what comes from outside, as functions of bytes that must never surprise.

Nothing here needs a fuzzer: tests replay the corpus by the same functions.
"""
