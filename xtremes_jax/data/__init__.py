"""The host side: where clips come from, how they are checked, cleaned, planned into batches and fed to the devices.

NumPy only: `loader.py` alone hands arrays to JAX. Read in the order of the data: `sources.py` (with `repository.py`,
`manifest.py`, `xtreme_s.py`, `babel.py`, `demo.py`), `audio.py` and `text.py`, `prepare.py`, `buckets.py`, `loader.py`.
"""
