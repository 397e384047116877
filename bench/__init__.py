"""Figures: one script each, run as root with `python -m bench.NAME`. They print, they assert nothing. docs/performance.md reads them."""
