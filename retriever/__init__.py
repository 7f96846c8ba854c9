"""Distils slow, good rankers into fast retrievers."""
from pathlib import Path

_here = Path(__file__).resolve().parent
if not (_here / "teachers").is_dir():  # a source tree: the sub-packages lie beside this folder
    __path__.append(str(_here.parent))  # a wheel: they lie inside it
