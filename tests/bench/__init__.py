"""Benches beside fairly written peers; never part of CI."""
