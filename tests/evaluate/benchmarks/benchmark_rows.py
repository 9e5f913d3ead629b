"""Made files in the layouts of benchmarks: images that differ, archives, Parquet and saved data sets."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image


def png(value: int) -> bytes:
    """A small image that no other value gives."""
    out = io.BytesIO()
    Image.new("L", (4, 3), value).save(out, "PNG")
    return out.getvalue()


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """Writes bytes, texts, lists (as JSON, or as lines where the name ends in .jsonl)."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif name.endswith(".jsonl"):
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content), encoding="utf-8")
        else:
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return folder


def pack(path: Path, files: Mapping[str, Any]) -> Path:
    """Writes a zip archive; lists become JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes | str) else json.dumps(content))
    return path


def parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Writes rows as Parquet, images as the hub does: {"bytes", "path"}."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=2)
    return path


def arrow(path: Path, rows: Sequence[Mapping[str, Any]], stream: bool = True) -> Path:
    """Writes rows as Arrow: the stream form of saved data sets, or the file form."""
    import pyarrow as pa

    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([dict(row) for row in rows])
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def hub_image(value: int) -> dict[str, Any]:
    return {"bytes": png(value), "path": f"{value}.png"}
