"""One short file per method: a sequence layout and its losses."""
